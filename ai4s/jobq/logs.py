"""Reading what a call has said: the blobs of its attempts in their order, then the last lines that its outcome keeps.

The end of a log may never reach a blob: what is short lies in the outcome alone, and a worker may have died. So the outcome's lines
are put after those of the blob, from where the two overlap on. Nothing is written here, and nothing that is read is believed to be
more than text.

Next: `handle.py`, which hands the lines out; `worker/call_logs.py`, which writes them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable

from . import layout
from .errors import NotFound
from .ledger import Ledger
from .log_lines import CUT, FULL, NOTE, STREAMS, LogLine, parsed, split
from .message import Outcome
from .printable import printable

READ_BYTES = 1024 * 1024
MAX_LINE_BYTES = 64 * 1024
"""What is longer and has no end is no line that a worker wrote; it is shown in pieces."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 10.0
"""Between two looks at what is new; ever longer while nothing is."""

LISTED_EVERY = 3
"""Looks that found nothing, after which it is asked whether another attempt has begun: a listing costs ten times a look."""

LATE_LOOKS = 3
"""How often to look for what is stored beside the call's end, and so perhaps after it."""

OVERLAP_LINES = 256
"""More lines than an outcome keeps."""

ATTEMPT = re.compile(r"/(?P<run>[0-9]{1,9})-(?P<attempt>[0-9]{1,9})-[0-9]+-(?P<token>[A-Za-z0-9]+)")


class LogReader:
    """Goes through what a call has said.

    Args:
        call: its id.
        look: reads its outcome, None while it runs.
        follow: go on until the call has ended, instead of to what is there now.
    """

    def __init__(self, call: str, look: Callable[[Ledger], Awaitable[Outcome | None]], *, follow: bool = False) -> None:
        self._prefix, self._look, self._follow = layout.call_logs(call), look, follow
        self._names: list[str] | None = None
        self._at = self._position = 0
        self._begun = b""
        self._last: deque[str] = deque(maxlen=OVERLAP_LINES)
        self._outcome: Outcome | None = None
        self._is_over = False
        self._idle, self._patience = 0, LATE_LOOKS

    @property
    def pause_seconds(self) -> float:
        """How long to wait before asking again, after nothing was new."""
        return float(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** max(0, self._idle - 1)))

    async def more(self, ledger: Ledger) -> list[LogLine] | None:
        """The next lines, in one read or two; none if nothing is new, None at the end. It does not wait.

        Raises ResultGone for a call that was forgotten.
        """
        if self._names is None:
            self._outcome = await self._look(ledger)
            self._names = await self._listed(ledger)
        while not self._is_over:
            if lines := await self._read(ledger, self._names):
                self._idle = 0
                return lines
            goes_on = await self._goes_on(ledger)
            if goes_on is None:
                self._is_over = True
                return self._end(self._names)
            if not goes_on:
                return []
        return None

    async def _goes_on(self, ledger: Ledger) -> bool | None:
        """Whether there may be more to read now; None if that was all."""
        assert self._names is not None
        if self._at + 1 < len(self._names):
            self._at, self._position, self._begun = self._at + 1, 0, b""
            self._last.clear()
            return True
        if self._is_late():
            return await self._has_more(ledger)
        if self._outcome is not None or not self._follow:
            return None
        return await self._has_news(ledger)

    async def _has_news(self, ledger: Ledger) -> bool:
        """Whether the call has ended, or another attempt has begun; looked at after a pause only."""
        self._idle += 1
        if self._idle == 1:
            return False
        self._outcome = await self._look(ledger)
        if self._outcome is not None or not self._names or self._idle % LISTED_EVERY == 0:
            return await self._has_more(ledger) or self._outcome is not None
        return False

    def _is_late(self) -> bool:
        """Whether the call has just ended, and the lines before those that its outcome has are still on their way."""
        if self._outcome is None or self._patience == 0 or not _is_cut(lines := split(self._outcome.tail)):
            return False
        if self._names and _is_of(self._names[-1], self._outcome) and (self._is_full or _overlap(list(self._last), lines[1:])):
            return False
        self._patience -= 1
        return True

    async def _has_more(self, ledger: Ledger) -> bool:
        """Whether there are logs that were not there before."""
        assert self._names is not None
        known = len(self._names)
        self._names = await self._listed(ledger)
        return len(self._names) > known

    @property
    def _is_full(self) -> bool:
        """Whether the log that was read last has reached its bound."""
        return bool(self._last) and parsed(self._last[-1]).text == FULL

    async def _listed(self, ledger: Ledger) -> list[str]:
        try:
            return [info.name async for info in (await ledger.store()).list(self._prefix)]
        except NotFound:
            return []

    async def _read(self, ledger: Ledger, names: list[str]) -> list[LogLine]:
        """The next lines of the attempt that is read now."""
        found: list[LogLine] = []
        while names and not found:
            try:
                blob = await (await ledger.store()).get(names[self._at], start=self._position, length=READ_BYTES)
            except NotFound:
                break  # it was removed meanwhile
            if blob is None or not blob.data:
                break
            self._position += len(blob.data)
            found = self._cut(blob.data, _numbers(names[self._at])[1])
        return found

    def _cut(self, data: bytes, attempt: int) -> list[LogLine]:
        *whole, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > MAX_LINE_BYTES:
            whole, self._begun = [*whole, self._begun], b""
        texts = [line[:MAX_LINE_BYTES].decode("utf-8", "replace") for line in whole]
        self._last.extend(texts)
        return [parsed(text, attempt) for text in texts]

    def _end(self, names: list[str]) -> list[LogLine] | None:
        """What the outcome has of the last lines, beyond what was read; the last attempt of all may have no blob."""
        if self._outcome is None or not self._outcome.tail:
            return None
        outcome, lines = self._outcome, split(self._outcome.tail)
        attempt = outcome.attempts
        if not names or not _is_of(names[-1], outcome):
            begun = LogLine(outcome.started or 0.0, STREAMS[NOTE], _heading(outcome), attempt)
            return [begun, *(parsed(line, attempt) for line in lines)]
        known = lines[1:] if _is_cut(lines) else lines
        count = _overlap(list(self._last), known)
        return [parsed(line, attempt) for line in (known[count:] if count or self._is_full else lines)] or None


def _is_cut(lines: list[str]) -> bool:
    """Whether an outcome's lines are not all."""
    return bool(lines) and parsed(lines[0]).stream == STREAMS[NOTE] and parsed(lines[0]).text == CUT


def _overlap(before: list[str], after: list[str]) -> int:
    """How many lines stand at the end of one and at the beginning of the other; one that was too long may stand alone there."""
    if len(after) == 1 and before and before[-1].startswith(after[0]):
        return 1
    return next((count for count in range(min(len(before), len(after)), 0, -1) if before[-count:] == after[:count]), 0)


def _numbers(name: str) -> tuple[int, int]:
    """Run and attempt in a log's name; 1 where it says none."""
    match = ATTEMPT.search(name)
    return (int(match["run"]), int(match["attempt"])) if match else (1, 1)


def _is_of(name: str, outcome: Outcome) -> bool:
    """Whether this is the log of the attempt that the outcome tells of; of a batch's calls the token is that of many."""
    is_single = layout.batch_of(outcome.call) is None
    return _numbers(name) == (outcome.run, outcome.attempts) and not (is_single and not name.endswith(f"-{outcome.token}"))


def _heading(outcome: Outcome) -> str:
    run = f" of run {outcome.run}" if outcome.run > 1 else ""
    return f"Attempt {outcome.attempts}{run}, by worker {printable(outcome.worker)}"
