"""Slots: how many attempts run side by side in each pool, and how many more messages to fetch.

Fetching ahead pays where calls take milliseconds, since one receive brings 32; where they take minutes, it would
keep work from idle workers. So a pool takes ahead what it would work off in about a second, and nothing before it knows.

Next: `poller.py`, which asks for room; `attempt.py`, which takes slots.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from ..clock import boottime
from ..message import Pool
from ..transports.base import MAX_RECEIVE

AHEAD_SECONDS = 1.0
MAX_AHEAD = 64
SMOOTHING = 0.2
"""Weight of the newest run time in the running mean: some five calls make it follow a change."""

SHORTEST_SECONDS = 1e-4

TURN_LOOK_SECONDS = 0.02

FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS = 0.25, 5.0
PROBE_MESSAGES = 4
CALM_SECONDS = 30.0
"""A queue that holds calls for a full pool is only probed, ever more rarely, for calls of the others; until it has been calm."""


PACKS_A_FETCH = 2
"""Messages to fetch at a time for a pool that works on packs: each may hold thousands of calls, which others could run."""

MAX_HELD_CALLS = 8192
"""Calls of packs that a pool holds before it takes another pack, however short they are: so memory is bounded."""


class Closed(Exception):
    """The worker takes no more work: what waits for a slot goes back."""


@dataclass(slots=True, eq=False)
class PackTurn:
    """A pack of so many calls that a pool works on.

    `estimate_seconds` says how long it will keep the whole pool busy: for ever, until known.
    """

    calls: int
    estimate_seconds: Callable[[], float] = lambda: math.inf


class _Pool:
    """One pool's slots; who waits for one is served in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.running = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.packs: set[PackTurn] = set()
        self.mean_seconds: float | None = None

    @property
    def ahead(self) -> int:
        if self.mean_seconds is None:
            return 0
        return min(MAX_AHEAD, int(self.size * AHEAD_SECONDS / max(self.mean_seconds, SHORTEST_SECONDS)))

    @property
    def room(self) -> int:
        if self.packs:
            return self._packs_to_fetch if self.takes_packs else 0
        return self.size + self.ahead - self.running - len(self.waiting)

    @property
    def takes_packs(self) -> bool:
        """Whether those that are there are nearly done."""
        held = sum(turn.calls for turn in self.packs)
        return held < MAX_HELD_CALLS and sum(turn.estimate_seconds() for turn in self.packs) < AHEAD_SECONDS

    @property
    def _packs_to_fetch(self) -> int:
        """Two; or, of packs as small as those that are there, as many as there are free slots."""
        largest = max(turn.calls for turn in self.packs)
        return max(PACKS_A_FETCH, (self.size - self.running) // largest)

    @property
    def wanted(self) -> int:
        """The room once it is worth a request: half of what it holds ahead is worked off, or it has a slot with nothing to do."""
        worth = min(MAX_RECEIVE, self.ahead // 2) if self.waiting and not self.packs else 0
        return self.room if self.room >= worth else 0

    async def take(self) -> None:
        if self.running < self.size:
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn in self.waiting:
                self.waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give()  # it was ours already, and nobody will use it
            raise

    def give(self) -> None:
        """Hand the slot to who waits longest, or have it free."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def close(self) -> None:
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_exception(Closed())


class Slots:
    """The slots of a worker, by pool. Pools are in play once a task of theirs is known to exist."""

    def __init__(self, sizes: Mapping[Pool, int], in_play: set[Pool], clock: Callable[[], float] = boottime) -> None:
        self._pools = {pool: _Pool(size) for pool, size in sizes.items()}
        self._in_play = in_play | {Pool.PROCESS}
        self._changed = asyncio.Event()
        self._arriving = 0
        self._closed = False
        self._clock = clock
        self._probe_pause, self._probe_at = 0.0, 0.0

    @property
    def total(self) -> int:
        """Slots of all pools in play."""
        return sum(self._pools[pool].size for pool in self._in_play)

    @property
    def running(self) -> int:
        """Attempts that run now."""
        return sum(pool.running for pool in self._pools.values())

    @property
    def busy(self) -> bool:
        """Whether any delivery is being worked on, or waits here to be."""
        return self._arriving > 0 or any(pool.running or pool.waiting or pool.packs for pool in self._pools.values())

    def size(self, pool: Pool) -> int:
        """Slots of a pool."""
        return self._pools[pool].size

    def free(self, pool: Pool) -> int:
        """Slots of a pool in which nothing runs."""
        return self._pools[pool].size - self._pools[pool].running

    def room(self) -> int:
        """How many messages to fetch now; 0 where every pool in play has enough, or a full one was crowded lately."""
        pools = [self._pools[pool] for pool in self._in_play]
        wanted, tightest = max(pool.wanted for pool in pools), min(pool.room for pool in pools)
        return max(0, min(MAX_RECEIVE, wanted - self._arriving, self._bound(tightest)))

    def _bound(self, tightest: int) -> int:
        """What crowding leaves of the room: as much as the fullest pool can take, or a probe from time to time."""
        if not self._probe_pause or self._clock() > self._probe_at + CALM_SECONDS:
            self._probe_pause = 0.0
            return MAX_RECEIVE
        if tightest > 0:
            return tightest
        return PROBE_MESSAGES if self._clock() >= self._probe_at else 0

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Counts a delivery whose pool is not known yet, so that nothing is fetched twice for the same room."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1
            self._changed.set()

    def welcome(self, pool: Pool) -> bool:
        """Whether a call of this pool should wait here, or go back for other workers.

        What was fetched for one pool's room may turn out to be of another that is full.
        """
        if pool not in self._in_play:
            self._in_play.add(pool)
            self._changed.set()
        slot = self._pools[pool]
        fits = len(self._in_play) == 1 or slot.room > 0 or len(slot.waiting) < slot.ahead
        if not fits:
            self._crowd()
        return fits

    def _crowd(self) -> None:
        """Fetching for a free pool brought calls for a full one: do so more rarely."""
        now = self._clock()
        if now >= self._probe_at:
            self._probe_pause = min(LONGEST_PROBE_SECONDS, max(FIRST_PROBE_SECONDS, 2 * self._probe_pause))
            self._probe_at = now + self._probe_pause

    @asynccontextmanager
    async def pack(self, pool: Pool, calls: int, patience_seconds: float) -> AsyncIterator[PackTurn | None]:
        """The turn of a pack of so many calls, for the length of the block; None if those before it take longer than that."""
        self._in_play.add(pool)
        slot, turn = self._pools[pool], PackTurn(calls)
        give_up = self._clock() + patience_seconds
        # What it waits for is an estimate, which no event tells of.
        while not slot.takes_packs and (left := give_up - self._clock()) > 0 and not self._closed:  # noqa: ASYNC110
            await asyncio.sleep(min(left, TURN_LOOK_SECONDS))
        if not slot.takes_packs:
            yield None
            return
        slot.packs.add(turn)
        try:
            yield turn
        finally:
            slot.packs.discard(turn)
            self._changed.set()

    @asynccontextmanager
    async def take(self, pool: Pool) -> AsyncIterator[None]:
        """A slot, for the length of the block; waits for one. Raises Closed once there are none to be had any more."""
        if self._closed:
            raise Closed
        try:
            await self._pools[pool].take()
        except BaseException:
            self._changed.set()
            raise
        try:
            yield
        finally:
            self._pools[pool].give()
            self._changed.set()

    def took(self, pool: Pool, seconds: float) -> None:
        """Note how long an attempt ran."""
        slot = self._pools[pool]
        slot.mean_seconds = seconds if slot.mean_seconds is None else slot.mean_seconds + SMOOTHING * (seconds - slot.mean_seconds)
        self._changed.set()

    async def until_room(self) -> None:
        """Wait until there is room."""
        while self.room() == 0:
            self._changed.clear()
            probe_seconds = self._probe_at - self._clock()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), probe_seconds if probe_seconds > 0 else None)

    def open(self) -> None:
        """Give out slots, as at the beginning."""
        self._closed = False

    def close(self) -> None:
        """Give out no more slots until `open`."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
