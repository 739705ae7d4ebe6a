"""What a call says, for a page that asks again and again for what is new: read once for all who ask, and kept in part.

Kept are the last lines, by number from the first one on. A log that has ended is read again from its beginning where the call has
begun another run: then the numbers begin anew, which an answer tells by `from`.

Next: `../logs.py`, which reads.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

from ..app import App
from ..clock import boottime
from ..ledger import Ledger
from ..log_lines import LogLine
from ..logs import LogReader
from ..printable import escaped, redacted, storable
from .shared import Shared

MOST_LINES, MOST_LINE_CHARS = 20_000, 2_000
LINES_AT_A_TIME = 2_000
"""Of one answer."""

READS_AT_A_TIME = 8
"""Of a mebibyte each: a long log is gone through in several looks."""


class CallLog:
    """The log of one call. The lines are kept for the loop of whoever asks, and read on the portal's."""

    def __init__(self, app: App, call: str, seconds: float) -> None:
        self._app, self._call = app, call
        self._reader = self._new_reader()
        self._lines: deque[LogLine] = deque(maxlen=MOST_LINES)
        self._count, self._resume_at = 0, 0.0
        self.has_ended = False
        self._run: int | None = None
        self.shared = Shared(self._read, seconds=seconds)

    async def data(self, after: int) -> dict[str, Any]:
        """The lines from this number on, as many as go into an answer, and which number comes next."""
        await self.shared.get()
        first = self._count - len(self._lines)
        begin = 0 if after > self._count else after
        begin = max(begin, first)
        lines = list(islice(self._lines, begin - first, begin - first + LINES_AT_A_TIME))
        following = begin + len(lines)
        said = {"problem": self.shared.problem, "problem_since": self.shared.problem_since} if self.shared.problem else {}
        is_all = self.has_ended and following == self._count
        return {"lines": [_shown(line) for line in lines], "from": begin, "next": following, "ended": is_all, **said}

    def expire(self) -> None:
        """Have it read anew; from the beginning where it had ended: perhaps another run begins."""
        self._begin_anew()
        self.shared.expire()

    def is_of(self, run: int | None) -> None:
        """Begin anew where another run has begun than the one it is of; `run` is the last one, once that has ended, else None."""
        if self._run is not None and run != self._run:
            self._begin_anew()
        self._run = run

    def _begin_anew(self) -> None:
        if self.has_ended:
            self._reader, self.has_ended, self._count = self._new_reader(), False, 0
            self._lines.clear()

    def _new_reader(self) -> LogReader:
        return LogReader(self._call, self._app.handle(self._call).look, follow=True)

    async def _read(self) -> None:
        if self.has_ended or boottime() < self._resume_at:
            return
        found, self.has_ended = await self._app.client.arun(self._more)
        self._lines.extend(found)
        self._count += len(found)
        self._resume_at = 0.0 if found else boottime() + self._reader.pause_seconds

    async def _more(self, ledger: Ledger) -> tuple[list[LogLine], bool]:
        """What is new, and whether that was all for ever."""
        found: list[LogLine] = []
        for _ in range(READS_AT_A_TIME):
            lines = await self._reader.more(ledger)
            if lines is None:
                return found, True
            if not lines:
                break
            found += lines
        return found, False


def _shown(line: LogLine) -> dict[str, Any]:
    text = "\t".join(map(escaped, redacted(storable(line.text[:MOST_LINE_CHARS])).split("\t")))
    return {"at": line.at, "stream": line.stream, "text": text, "attempt": line.attempt}
