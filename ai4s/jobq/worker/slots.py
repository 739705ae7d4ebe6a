"""Slots: how many attempts run side by side in each pool, and how many more messages to fetch.

Fetching ahead pays where calls take milliseconds, since one receive brings 32; where they take minutes, it would
keep work from idle workers. So a pool takes ahead what it would work off in about a second, and nothing before it knows.

Next: `poller.py`, which asks for room; `attempt.py`, which takes slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from ..message import Pool
from ..transports.base import MAX_RECEIVE

class Closed(Exception):
    """The worker takes no more work: what waits for a slot goes back."""


AHEAD_SECONDS = 1.0
MAX_AHEAD = 64
SMOOTHING = 0.2
"""Weight of the newest run time in the running mean: some five calls make it follow a change."""


class _Pool:
    def __init__(self, size: int) -> None:
        self.size = size
        self.running = 0
        self.waiting = 0
        self.mean_seconds: float | None = None

    @property
    def ahead(self) -> int:
        if self.mean_seconds is None:
            return 0
        return min(MAX_AHEAD, int(self.size * AHEAD_SECONDS / max(self.mean_seconds, 1e-4)))

    @property
    def room(self) -> int:
        return self.size + self.ahead - self.running - self.waiting


class Slots:
    """The slots of a worker, by pool. Pools are in play once a task of theirs is known to exist."""

    def __init__(self, sizes: Mapping[Pool, int], in_play: set[Pool]) -> None:
        self._pools = {pool: _Pool(size) for pool, size in sizes.items()}
        self._in_play = in_play | {Pool.PROCESS}
        self._changed = asyncio.Condition()
        self._arriving = 0
        self._closed = False

    @property
    def total(self) -> int:
        """Slots of all pools in play."""
        return sum(self._pools[pool].size for pool in self._in_play)

    @property
    def running(self) -> int:
        """Attempts that run now."""
        return sum(pool.running for pool in self._pools.values())

    def room(self) -> int:
        """How many messages to fetch now; 0 where every pool in play has enough."""
        return max(0, min(MAX_RECEIVE, max(self._pools[pool].room for pool in self._in_play) - self._arriving))

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Counts a delivery whose pool is not known yet, so that nothing is fetched twice for the same room."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    def welcome(self, pool: Pool) -> bool:
        """Whether a call of this pool that came along with others should wait here, or go back for other workers."""
        self._in_play.add(pool)
        return self._pools[pool].room > 0

    @asynccontextmanager
    async def take(self, pool: Pool) -> AsyncIterator[None]:
        """A slot, for the length of the block; waits for one. Raises Closed once there are none to be had any more."""
        slot = self._pools[pool]
        slot.waiting += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._closed or slot.running < slot.size)
                if self._closed:
                    raise Closed
                slot.running += 1
        finally:
            slot.waiting -= 1
        try:
            yield
        finally:
            slot.running -= 1
            await self._notify()

    def took(self, pool: Pool, seconds: float) -> None:
        """Note how long an attempt ran."""
        slot = self._pools[pool]
        slot.mean_seconds = seconds if slot.mean_seconds is None else slot.mean_seconds + SMOOTHING * (seconds - slot.mean_seconds)

    async def until_room(self) -> None:
        """Wait until there is room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.room() > 0)

    async def close(self) -> None:
        """Give out no more slots."""
        self._closed = True
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
