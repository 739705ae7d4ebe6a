"""What people order beside the messages: a queue paused or drained, calls cancelled. Read from `control/<queue>` every few seconds.

One small conditional read per queue; so its cost grows with workers, never with calls. No clocks are compared: a worker is
drained by what it had not found when it started.

Next: `poller.py`, which leaves paused queues alone; `interruptions.py`, which stops what was cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import MessageError, TransportError
from ..ledger import Ledger
from ..message import Call, Control
from ..printable import printable
from .interruptions import Interruptions
from .poller import Line
from .shutdown import Shutdown

log = logging.getLogger("ai4s.jobq.worker")

READ_SECONDS = 4.5
"""Between two reads of a queue's control: what was cancelled stops within 10 s, of which its process has 5 s to end by itself."""


@dataclass(slots=True)
class _Known:
    """What was read of one queue's control last; and its `drained_at` when it was read first."""

    control: Control = field(default_factory=Control)
    etag: str | None = None
    drained_before: float | None = None


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
        else:
            if found is not None:
                known.control, known.etag = found
            if known.drained_before is None:
                known.drained_before = known.control.drained_at
        self._follow(queue, known)

    def _follow(self, queue: str, known: _Known) -> None:
        self._pause(queue, paused=known.control.paused)
        # Again and again, since an attempt may begin just after the first time.
        self._ways.interruptions.cancel(known.control.cancelled)
        if known.drained_before is not None and known.control.drained_at > known.drained_before:
            self._ways.shutdown.finish(f"Queue {queue} is drained")

    def _pause(self, queue: str, *, paused: bool) -> None:
        lines = [line for line in self._lines if line.name == queue]  # several, where a queue is named in several groups
        if any(line.paused != paused for line in lines):
            log.info("Queue %s is %s.", queue, "paused" if paused else "served again")
        for line in lines:
            line.paused = paused
