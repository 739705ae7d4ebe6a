"""What goes on beside a pack's calls: outcomes are logged as they come, and what waits is given to idle workers.

Whether others are idle is asked of the queue: if it holds nothing that they could take, a part of what waits here is put there. One
message that nobody takes is enough to know that nobody is idle; so a fleet shares one slow pack, and a lone worker gives away
once at most.

Next: `pack_log.py`, which does both.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from ..errors import MessageError, TransportError
from ..printable import printable
from ..transports.base import Queue
from .dealing import Dealer
from .lease import Lease
from .pack_log import PackLog

log = logging.getLogger("ai4s.jobq.worker")

FLUSH_SECONDS = 5.0
"""How long an outcome waits to be logged at most: what is lost with a worker has run since then."""

FIRST_LOOK_SECONDS, LOOK_SECONDS, LONGEST_LOOK_SECONDS = 1.0, 2.0, 10.0
"""Between two looks whether others have nothing to do; ever longer while they have."""

WORTH_GIVING_SECONDS = 1.0
"""What this worker will have begun within a second is not worth a message."""


@asynccontextmanager
async def upkeep(dealer: Dealer, pack_log: PackLog, lease: Lease, queue: Queue) -> AsyncIterator[None]:
    """Log and share for the length of the block. Once the lease is lost, nothing more is dealt."""
    kept = _Upkeep(dealer, pack_log, lease, queue, asyncio.Event())
    async with asyncio.TaskGroup() as group:
        group.create_task(kept.flush())
        group.create_task(kept.share())
        try:
            yield
        finally:
            # Not cancelled: what is being appended or given should be known here to be done.
            kept.over.set()
            dealer.flush_wanted.set()


@dataclass(frozen=True, slots=True)
class _Upkeep:
    dealer: Dealer
    log: PackLog
    lease: Lease
    queue: Queue
    over: asyncio.Event

    async def flush(self) -> None:
        while not self.over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self.dealer.flush_wanted.wait()
            self.dealer.flush_wanted.clear()
            if not self.over.is_set():
                await self._do(self._log_what_ended)

    async def share(self) -> None:
        pause = FIRST_LOOK_SECONDS
        while not await self._is_over_within(pause * random.uniform(0.9, 1.1)):
            if self.dealer.estimate_seconds < WORTH_GIVING_SECONDS or not self.lease.held:
                pause = LOOK_SECONDS
                continue
            is_needed = await self._do(self._look)
            pause = LOOK_SECONDS if is_needed else min(LONGEST_LOOK_SECONDS, 2 * pause)
            if is_needed:
                await self._do(self._give)

    async def _look(self) -> bool:
        """Whether there is nothing on the queue that somebody idle could take."""
        return not await self.queue.peek(1)

    async def _give(self) -> bool:
        """Give half of what waits away; what a chunk keeps waiting is called back, for the next time."""
        waiting = self.dealer.waiting
        if not waiting:
            self.dealer.recall()
            return False
        if await self.log.give(-(-waiting // 2)):
            await self.lease.refresh()
        return True

    async def _log_what_ended(self) -> bool:
        await self.dealer.take_in()
        await self.log.append()
        return True

    async def _do(self, step: Callable[[], Awaitable[bool]]) -> bool:
        """Do something that the storage may refuse for now; without a lease, or a log to write to, see that no more is dealt."""
        try:
            return await step()
        except TransportError as exc:
            log.warning("A pack could not be looked after, to be tried again: %s", printable(str(exc)))
            return False
        except MessageError:
            # It meets whoever appends last, who knows what becomes of the pack.
            self.dealer.stop()
            return False
        finally:
            if not self.lease.held:
                self.dealer.stop()

    async def _is_over_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()
        return self.over.is_set()
