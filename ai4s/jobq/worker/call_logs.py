"""What calls say, kept by the supervisor: the last lines in memory, for the outcome; the rest in a blob, where there is much of it.

A call that is short and says little costs no request. What it says is stored beside its path: nothing waits for it, no fault of it
fails a call, and memory stays bounded. What the death of this worker loses has been said within the last 5 s. Each attempt has a
blob of its own, so nobody else ever appends to it.

Next: `voices.py`, the child's side; `../logs.py`, which reads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

from .. import layout
from ..clock import boottime
from ..errors import AlreadyExists, ConditionFailed, TransportError
from ..ledger import Ledger
from ..lifecycle import Died, TimedOut
from ..log_lines import CUT, FULL, MAX_PACKED_TAIL_BYTES, MAX_TAIL_BYTES, NOTE, last_lines, to_line
from ..message import Call
from ..printable import printable
from .jobs import Said
from .lease import Clock

Ended = TypeVar("Ended")

log = logging.getLogger("ai4s.jobq.worker")

FLUSH_SECONDS = 5.0
"""How long a line waits to be stored at most; what is lost with a worker was said since then."""

FLUSH_BYTES = 64 * 1024
MAX_BLOCK_BYTES = 4 * 1024 * 1024
"""What one request may append."""

MAX_STORED_BYTES, MAX_BLOCKS = 16 * 1024 * 1024, 45_000
"""Of an attempt. Azure takes 50,000 blocks."""

MAX_WAITING_BYTES, MAX_ALL_WAITING_BYTES = 2 * 1024 * 1024, 32 * 1024 * 1024
"""Of an attempt, and of all, in memory while the storage does not take it; then the oldest is left out, and counted."""

UPLOADS = 8
"""Logs that are stored side by side."""

MAX_LOGS = 20_000
"""That wait to be stored. Where calls of a batch speak faster than the storage takes it, some have none, which is counted."""

TOLD_SECONDS = 60.0
"""Between two words of what was left out."""

LOOK_SECONDS = 1.0
GIVE_UP_SECONDS = 30.0
"""How long a log is tried to be stored whose attempt is over."""

LAST_SECONDS = 5.0
"""For what is still to be stored when the worker ends."""


class CallLog:
    """What one attempt says."""

    def __init__(self, logs: CallLogs, call: Call, token: str) -> None:
        self._logs, self._call, self._token = logs, call, token
        self._began = time.time()
        self._tail = ""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = self._left_out = 0
        self._since = self._retry_at = float("-inf")
        self._sending = b""  # the same bytes until they are surely stored
        self._position = self._blocks = 0
        self._is_full = self._is_begun = self._is_cut = False
        self._ended: float | None = None
        self.busy = self.is_kept = False
        """Whether it is being stored now; whether an outcome with its last lines is durable."""

    @property
    def name(self) -> str:
        """Its blob's name: with the time, since an attempt whose worker vanished is not always counted as one."""
        return layout.call_log(self._call.id, (self._call.run, self._call.attempt, self._began), self._token)

    @property
    def tail(self) -> str:
        """The last lines, and whether there were others."""
        if not self._is_cut and len(self._tail.encode()) <= MAX_TAIL_BYTES:
            return self._tail
        cut = to_line(self._began, NOTE, CUT)
        return cut + last_lines(self._tail, MAX_TAIL_BYTES - len(cut))

    @property
    def waits(self) -> bool:
        """Whether something is still to be stored."""
        return bool(self._waiting or self._sending)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be said."""
        return self._ended is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will be stored any more."""
        return self._ended is not None and (not self.waits or self._logs.clock() - self._ended > GIVE_UP_SECONDS)

    @property
    def due(self) -> bool:
        """Whether something is to be stored now."""
        now = self._logs.clock()
        if not self.waits or self.busy or now < self._retry_at:
            return False
        is_much = self._waiting_bytes >= min(FLUSH_BYTES, self._logs.most_waiting // 2)
        return is_much or bool(self._sending) or self._ended is not None or now - self._since >= FLUSH_SECONDS

    def hear(self, said: Said) -> None:
        """Take in lines."""
        self._tail += said.text
        if len(self._tail) > 4 * MAX_TAIL_BYTES:
            self._tail, self._is_cut = last_lines(self._tail, MAX_TAIL_BYTES), True
        if self._is_full or self._ended is not None:
            return
        data = said.text.encode()
        size = self._position + len(self._sending) + self._waiting_bytes + len(data)
        self._is_full = said.tail_only or size > MAX_STORED_BYTES or self._blocks >= MAX_BLOCKS
        self._put_off(_note(FULL) if self._is_full else data)
        self._logs.note(self)

    def close(self) -> None:
        """The task is done: what its outcome could not hold is stored from now on, while the attempt is settled."""
        if self._tail and not self._fits:
            self._ended = self._logs.clock()
            self._logs.note(self)

    def end(self) -> None:
        """The attempt is over."""
        if not self._tail:
            return
        self._ended = self._logs.clock() if self._ended is None else self._ended
        if self.is_kept and self._fits:
            self._drop()
        self._logs.note(self)

    @property
    def _fits(self) -> bool:
        """Whether what waits is among the last lines."""
        return not self._left_out and self.tail.encode().endswith(b"".join(self._waiting))

    def give_up(self) -> None:
        """Store nothing more."""
        self._is_full, self._sending = True, b""
        self._drop()

    def _drop(self) -> None:
        self._waiting.clear()
        self._hold(-self._waiting_bytes)

    def _hold(self, more: int) -> None:
        self._waiting_bytes += more
        self._logs.waiting_bytes += more

    async def store(self) -> None:
        """Store what waits. A fault leaves it to the next time."""
        self._sending = self._sending or self._next_block()
        try:
            await self._store(self._sending)
        except TransportError as exc:
            self._retry_at = self._logs.clock() + FLUSH_SECONDS
            log.warning("What call %s says could not be stored, to be tried again: %s", self._call.id, printable(str(exc)))
        else:
            self._blocks += 1
            self._sending = b""

    def _put_off(self, data: bytes) -> None:
        if not self._waiting:
            self._since = self._logs.clock()
        self._waiting.append(data)
        self._hold(len(data))
        while self._waiting_bytes > self._logs.most_waiting and len(self._waiting) > 1:
            oldest = self._waiting.popleft()
            self._hold(-len(oldest))
            self._left_out += oldest.count(b"\n")

    def _next_block(self) -> bytes:
        """What is stored next, out of what waits."""
        taken = [] if self._position else [self._head()]
        if self._left_out:
            taken.append(_note(f"{self._left_out:,} lines are left out here: the storage did not take them in time."))
            self._left_out = 0
        size = sum(map(len, taken))
        while self._waiting and size + len(self._waiting[0]) <= MAX_BLOCK_BYTES:
            taken.append(self._waiting.popleft())
            size += len(taken[-1])
            self._hold(-len(taken[-1]))
        self._since = self._logs.clock()
        return b"".join(taken)

    async def _store(self, data: bytes) -> None:
        assert self._logs.ledger is not None
        store = await self._logs.ledger.store()
        if self._ended is not None and not (self._is_begun or self._waiting):
            # All there will ever be: then one request does it, where the first append takes two.
            with suppress(AlreadyExists):  # by us, and the answer was lost
                await store.put(self.name, data, if_absent=True)
            return
        self._is_begun = True
        try:
            self._position = await store.append(self.name, data, at=self._position)
        except ConditionFailed:
            # Nobody else appends: it was done before, and the answer lost.
            self._position = (await store.head(self.name)).size

    def _head(self) -> bytes:
        run = f" of run {self._call.run}" if self._call.run > 1 else ""
        return _note(f"Attempt {self._call.attempt}{run}, by worker {self._logs.worker}", self._began)


def _note(text: str, at: float | None = None) -> bytes:
    return to_line(time.time() if at is None else at, NOTE, text).encode()


class CallLogs:
    """The logs of all attempts of one worker. `keep` stores what they say; without a ledger, only the last lines are kept."""

    def __init__(self, ledger: Ledger | None = None, worker: str = "", clock: Clock = boottime) -> None:
        self.ledger, self.worker, self.clock = ledger, worker, clock
        # What is to be looked at from time to time, and what is being stored or waits for its turn: that may be many.
        self._open: set[CallLog] = set()
        self._busy: set[CallLog] = set()
        self.waiting_bytes = 0
        """Of all of them, in memory."""
        self._left_out, self._told, self._told_at = 0, 0, float("-inf")
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(UPLOADS)

    def open(self, call: Call, token: str) -> CallLog:
        """The log of an attempt, which costs nothing before it says something. To be ended."""
        return CallLog(self, call, token)

    @contextmanager
    def opened(self, call: Call, token: str) -> Iterator[CallLog]:
        """As `open`, for the length of the block."""
        opened = self.open(call, token)
        try:
            yield opened
        finally:
            opened.end()

    @property
    def most_waiting(self) -> int:
        """Bytes that one log may hold in memory now."""
        return max(MAX_TAIL_BYTES, min(MAX_WAITING_BYTES, MAX_ALL_WAITING_BYTES // (self._count or 1)))

    @property
    def _count(self) -> int:
        return len(self._open) + len(self._busy)

    def note(self, changed: CallLog) -> None:
        """Something was said, or an attempt is over."""
        if self.ledger is None or changed in self._busy:
            return
        is_too_much = self._count > MAX_LOGS or self.waiting_bytes > MAX_ALL_WAITING_BYTES
        if is_too_much and changed.has_ended and changed.waits:
            self._open.discard(changed)
            self._left_out += 1
            changed.give_up()
        else:
            self._look_at(changed)

    def _look_at(self, each: CallLog) -> None:
        if not self._open or each.due:
            self._news.set()
        self._open.add(each)

    async def keep(self) -> None:
        """Store what is to be stored, for ever."""
        async with asyncio.TaskGroup() as uploads:
            while True:
                await self._until_news()
                over = {each for each in self._open if each.is_over}
                due = {each for each in self._open - over if each.due}
                self._open -= over | due
                self._busy |= due
                for each in due:
                    each.busy = True
                    uploads.create_task(self._store(each))
                self._tell_left_out([each for each in over if each.waits])

    async def _until_news(self) -> None:
        """Wait until something is to be stored, or may be by now."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS if self._open else None):
                await self._news.wait()
        self._news.clear()

    def _tell_left_out(self, more: list[CallLog]) -> None:
        for each in more:
            each.give_up()
        self._left_out += len(more)
        if self._left_out > self._told and self.clock() - self._told_at >= TOLD_SECONDS:
            log.warning("Logs of calls, or their ends, are left out, as the storage did not take them in time: %d", self._left_out)
            self._told, self._told_at = self._left_out, self.clock()

    async def finish(self) -> None:
        """Store what is left when the worker ends, as far as that is done soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await asyncio.gather(*(self._finish(each) for each in self._open | self._busy if each.waits))

    async def _finish(self, each: CallLog) -> None:
        await self._store(each)
        while each.waits:
            await asyncio.sleep(LOOK_SECONDS)
            await self._store(each)

    async def _store(self, each: CallLog) -> None:
        try:
            async with self._room:
                await each.store()
        except Exception:  # whatever it is, no call fails because of its log
            log.exception("A call's log is given up.")
            each.give_up()
        finally:
            each.busy = False
            self._busy.discard(each)
            self._look_at(each)


class ChunkLogs:
    """What the calls of one chunk say: all of it if that is wanted of the batch; else the last lines of the one that runs."""

    def __init__(self, logs: CallLogs, call_at: Callable[[int], Call], token: str) -> None:
        self._logs, self._call_at, self._token = logs, call_at, token
        self._open: dict[int, CallLog] = {}
        self._place, self._tail = -1, ""

    def hear(self, said: Said) -> None:
        """Take in lines."""
        if said.place != self._place:
            self._place, self._tail = said.place, ""
            if not said.tail_only:
                self.end()
        self._tail = last_lines(self._tail + said.text, MAX_PACKED_TAIL_BYTES)
        if said.place not in self._open and not said.tail_only:
            self._open[said.place] = self._logs.open(self._call_at(said.place), self._token)
        if said.place in self._open:
            self._open[said.place].hear(said)

    def tail_of(self, place: int) -> str:
        """The last lines of the call at this place of its pack, as far as they are known here."""
        return self._tail if place == self._place else ""

    def end(self) -> None:
        """What has spoken so far is over."""
        for each in self._open.values():
            each.end()
        self._open.clear()


def with_tail(ending: Ended, tail: str) -> Ended:
    """How a batch's call ended, with its last lines if it is a failure of its process or its time."""
    if not tail or not isinstance(ending, Died | TimedOut):
        return ending
    return replace(ending, failure=replace(ending.failure, tail=tail))
