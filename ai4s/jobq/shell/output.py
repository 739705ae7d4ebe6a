"""What a command writes: its last bytes are kept, and its lines go to the log as they come.

Whatever it writes (no newline for hours, progress bars, no text at all), memory and log stay bounded.

Next: `process.py`, which reads it.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable

from ..printable import redacted
from ..shell_result import MAX_OUTPUT_BYTES

MAX_LINE_CHARS = 8192
"""A longer line is logged in pieces."""

PROGRESS_SECONDS = 10.0
"""A line that is written over and over, ended by a carriage return, is logged at most so often."""


class Tail:
    """The end of all that was added."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Add to the end; what lies too far before it is forgotten."""
        self._data += data
        if len(self._data) > 2 * MAX_OUTPUT_BYTES:
            del self._data[:-MAX_OUTPUT_BYTES]

    @property
    def text(self) -> str:
        """At most MAX_OUTPUT_BYTES, as UTF-8; what is none is replaced."""
        # What replaces a byte takes three of them.
        encoded = self._data[-MAX_OUTPUT_BYTES:].decode("utf-8", "replace").encode()
        return encoded[-MAX_OUTPUT_BYTES:].decode("utf-8", "ignore")


class Lines:
    """Bytes to lines, each of which goes to `log`."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""
        self._progress_at = float("-inf")

    def add(self, data: bytes, *, final: bool = False) -> None:
        """Log what has become whole lines."""
        *lines, self._begun = (self._begun + self._decoder.decode(data, final)).split("\n")
        for line in lines:
            self._log_line(line)
        if "\r" in self._begun:
            self._log_progress()
        while len(self._begun) > MAX_LINE_CHARS:
            self._log(self._begun[:MAX_LINE_CHARS])
            self._begun = self._begun[MAX_LINE_CHARS:]

    def close(self) -> None:
        """Log what has no end."""
        self.add(b"", final=True)
        if self._begun:
            self._log_line(self._begun)

    def _log_line(self, line: str) -> None:
        # What a terminal would show in the end.
        shown = line.rstrip().rpartition("\r")[2]
        for start in range(0, max(len(shown), 1), MAX_LINE_CHARS):
            self._log(shown[start : start + MAX_LINE_CHARS])

    def _log_progress(self) -> None:
        # At the very end it may be the half of a line's end.
        end = "\r" if self._begun.endswith("\r") else ""
        before, written_over, last = self._begun.removesuffix(end).rpartition("\r")
        if not written_over:
            return
        self._begun = last + end
        shown = before.rpartition("\r")[2].rstrip()
        if shown and self._clock() - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = self._clock()
            self._log(shown[:MAX_LINE_CHARS])


def last_lines(output: str, count: int = 5) -> str:
    """The end of an output, for a message."""
    return redacted("\n".join(output.rstrip().splitlines()[-count:])[-1000:])
