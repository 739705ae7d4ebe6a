"""What people order beside the messages: a queue paused or drained, calls cancelled. Read from `control/<queue>` every few seconds.

One small conditional read per queue; so its cost grows with workers, never with calls. Only where more was cancelled than the list
can hold are the outcomes of running attempts looked at. No clocks are compared: a worker is drained by what it had not found
when it started.

Next: `poller.py`, which leaves paused queues alone; `interruptions.py`, which stops what was cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..batches import BatchLedger
from ..errors import MessageError, ResultGone, TransportError
from ..layout import batch_of
from ..ledger import Ledger
from ..message import Call, Control, State
from ..printable import printable
from .interruptions import Interruptions, Stop, cancelled_as
from .poller import Line
from .shutdown import Shutdown

log = logging.getLogger("ai4s.jobq.worker")

READ_SECONDS = 4.5
"""Between two reads of a queue's control: what was cancelled stops within 10 s, of which its process has 5 s to end by itself."""

LOOKS_AT_ONCE = 16
"""Outcomes that are read at a time."""


@dataclass(slots=True)
class _Known:
    """What was read of one queue's control last; its `drained_at` when it was read first; and which running attempts are surely
    on the list if they were cancelled until then, or were looked at."""

    control: Control = field(default_factory=Control)
    etag: str | None = None
    drained_before: float | None = None
    checked: set[asyncio.Future[Stop]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Ways:
    """How orders are carried out."""

    interruptions: Interruptions
    shutdown: Shutdown


class Orders:
    """Follows the control of the queues that a worker serves."""

    def __init__(self, ledger: Ledger, lines: Sequence[Line], *, ways: Ways) -> None:
        self._ledger, self._lines, self._ways = ledger, lines, ways
        self._known = {line.name: _Known() for line in lines}
        self._room = asyncio.Semaphore(LOOKS_AT_ONCE)

    def may_be_cancelled(self, call: Call) -> bool:
        """Whether the call was sent before somebody cancelled one of its queue: its outcome is worth a look before it runs."""
        return call.sent <= self._known[call.queue].control.cancelled_at

    async def keep(self) -> None:
        """Read and follow, for ever."""
        while True:
            await asyncio.sleep(READ_SECONDS)
            await self.read()

    async def read(self) -> None:
        """Read and follow once; a fault is logged, and what was known stays in force."""
        await asyncio.gather(*(self._read(queue, known) for queue, known in self._known.items()))

    async def _read(self, queue: str, known: _Known) -> None:
        try:
            found = await self._ledger.control(queue, if_none_match=known.etag)
        except (TransportError, MessageError) as exc:
            log.warning("The orders for queue %s could not be read: %s", queue, printable(str(exc)))
            self._follow(queue, known)
        else:
            if found is not None:
                if _may_have_missed(known.control, found[0]):
                    known.checked.clear()
                known.control, known.etag = found
            if known.drained_before is None:
                known.drained_before = known.control.drained_at
            self._follow(queue, known)
            await self._check(queue, known)

    def _follow(self, queue: str, known: _Known) -> None:
        self._pause(queue, paused=known.control.paused)
        # Again and again, since an attempt may begin just after the first time.
        self._ways.interruptions.cancel(known.control.cancelled)
        if known.drained_before is not None and known.control.drained_at > known.drained_before:
            self._ways.shutdown.finish(f"Queue {queue} is drained")

    async def _check(self, queue: str, known: _Known) -> None:
        """Look at the outcomes of running attempts, once, where they may have been cancelled without being on the list any more."""
        running = self._ways.interruptions.running(queue)
        known.checked &= running.keys()
        unchecked = [stop for stop in running if stop not in known.checked]
        if known.control.cancels > len(known.control.cancelled):
            looks = (self._look(running[stop]) for stop in unchecked)
            unchecked = [stop for stop, is_known in zip(unchecked, await asyncio.gather(*looks), strict=True) if is_known]
        known.checked.update(unchecked)

    async def _look(self, call: Call) -> bool:
        """Stop the call's attempt if it was cancelled; False if that could not be found out now."""
        if not self.may_be_cancelled(call):
            return True
        try:
            async with self._room:
                is_cancelled = await self._is_cancelled(call)
        except (TransportError, MessageError) as exc:
            log.warning("Whether call %s was cancelled could not be read: %s", call.id, printable(str(exc)))
            return False
        if is_cancelled:
            self._ways.interruptions.cancel([cancelled_as(call)])
        return True

    async def _is_cancelled(self, call: Call) -> bool:
        if (batch := batch_of(call.id)) is not None:
            return await BatchLedger(self._ledger, batch).is_cancelled()
        try:
            outcome = await self._ledger.outcome(call.id, call.run)
        except ResultGone:  # it was cancelled, and then forgotten
            return True
        return outcome is not None and outcome.state is State.CANCELLED

    def _pause(self, queue: str, *, paused: bool) -> None:
        lines = [line for line in self._lines if line.name == queue]  # several, where a queue is named in several groups
        if any(line.paused != paused for line in lines):
            log.info("Queue %s is %s.", queue, "paused" if paused else "served again")
        for line in lines:
            line.paused = paused


def _may_have_missed(before: Control, now: Control) -> bool:
    """Whether more was cancelled since than is listed."""
    return now.cancels - before.cancels > len(now.cancelled)
