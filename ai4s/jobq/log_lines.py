"""Lines of a call's log, as they lie in storage and as they are shown: `<epoch seconds> <stream> <text>`.

The stream is one letter: what was printed to stdout (o) or stderr (e), what was logged (l), and what jobq itself notes (j). A text
never has a line's end in it. Whoever can write to the place can write a log: any bytes are some lines, and none of them is more
than text.

Next: `worker/voices.py`, which writes them; `logs.py`, which reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .printable import storable

OUT, ERR, LOG, NOTE = "o", "e", "l", "j"
STREAMS = {OUT: "stdout", ERR: "stderr", LOG: "log", NOTE: "jobq"}

MAX_TAIL_BYTES = 4096
"""What an outcome keeps of the last lines of its call."""

MAX_PACKED_TAIL_BYTES = 2048
"""What a failure of a batch's call keeps of them: a log entry holds thousands of outcomes."""


CUT = "Earlier lines are in the call's log."
"""The first line of what an outcome keeps, where it is not all."""


FULL = "It says too much to be kept: what follows is left out, but for the last lines."
"""The last line of a log that has reached its bound."""


class KeptLine(str):
    """A text that is logged, and stands in the running call's log already."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of what a call said.

    `at` is in epoch seconds by the worker's clock, 0 where it is not known; `stream` is "stdout", "stderr", "log" (of Python's
    `logging`) or "jobq" (a note of ours, such as the one that begins an attempt). `text` is as the task wrote it, without the end
    of the line: it may hold control characters, which who shows it has to escape.
    """

    at: float
    stream: str
    text: str
    attempt: int = 1


def to_line(at: float, stream: str, text: str) -> str:
    """A line as it lies in storage, with its end."""
    return f"{at:.3f} {stream} {text}\n"


def parsed(line: str, attempt: int = 1) -> LogLine:
    """A line from storage; what is none is shown as it is."""
    head, _, text = line.partition(" ")
    stream, _, text = text.partition(" ")
    try:
        at = float(head)
    except ValueError:
        at = math.nan
    if stream not in STREAMS or not math.isfinite(at):
        return LogLine(0.0, STREAMS[NOTE], line, attempt)
    return LogLine(at, STREAMS[stream], text, attempt)


def plain(lines: str) -> str:
    """Lines from storage without their times and streams, for whoever shows only the text."""
    return "\n".join(parsed(line).text for line in split(lines))


def split(lines: str) -> list[str]:
    """Whole lines, without their ends; what has none, at the end, counts as one."""
    found = lines.split("\n")
    return found[:-1] if not found[-1] else found


def last_lines(lines: str, most_bytes: int) -> str:
    """The last of these lines, as many whole ones as so many bytes hold; of one that is too long alone, its beginning."""
    data = storable(lines).encode()
    if len(data) <= most_bytes:
        return lines
    cut = data[-most_bytes:]
    whole = cut[cut.find(b"\n") + 1 :]
    if not whole:  # the last line alone is longer
        start = data.rfind(b"\n", 0, len(data) - 1) + 1
        whole = data[start : start + most_bytes - 1] + b"\n"
    return whole.decode("utf-8", "ignore")
