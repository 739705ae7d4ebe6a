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
from ..message import NO_NEEDS, Call, Pool, Resources
from ..transports.base import MAX_RECEIVE
from .devices import Hardware
from .gates import Gate, Share

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


NO_HARDWARE = Hardware()


class Closed(Exception):
    """The worker takes no more work: what waits for a slot goes back."""


@dataclass(slots=True, eq=False)
class PackTurn:
    """A pack of so many calls that a pool works on.

    `estimate_seconds` says how long it will keep the whole pool busy: for ever, until known. `width` is how many of its calls can
    run side by side.
    """

    calls: int
    width: int
    estimate_seconds: Callable[[], float] = lambda: math.inf


class _Pool:
    """One pool's slots; who waits for one is served in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.running = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.packs: set[PackTurn] = set()
        self.gated = 0  # calls that wait for something else than a slot
        self.mean_seconds: float | None = None

    @property
    def ahead(self) -> int:
        if self.mean_seconds is None:
            return 0
        return min(MAX_AHEAD, int(self.size * AHEAD_SECONDS / max(self.mean_seconds, SHORTEST_SECONDS)))

    @property
    def room(self) -> int:
        # What waits for something else leaves its slot to others, but not the room to hold yet more of its kind.
        free = self.size - self.running - len(self.waiting)
        if not self.packs:
            return free + max(0, self.ahead - self.gated)
        if self._is_narrow:
            return max(0, min(PACKS_A_FETCH, free))
        return self._packs_to_fetch if self.takes_packs else 0

    @property
    def takes_packs(self) -> bool:
        """Whether those that are there are nearly done, or cannot use all slots."""
        held = sum(turn.calls for turn in self.packs)
        nearly_done = sum(turn.estimate_seconds() for turn in self.packs) < AHEAD_SECONDS
        return held < MAX_HELD_CALLS and (nearly_done or self._is_narrow)

    @property
    def _is_narrow(self) -> bool:
        """Whether the packs that are there leave slots that none of their calls can use."""
        return sum(turn.width for turn in self.packs) < self.size

    @property
    def _packs_to_fetch(self) -> int:
        """Two; or, of packs as small as those that are there, as many as there are free slots."""
        largest = max(turn.calls for turn in self.packs)
        return max(PACKS_A_FETCH, (self.size - self.running) // largest)

    @property
    def wanted(self) -> int:
        """The room once it is worth a request: half of what it holds ahead is worked off, or it has a slot with nothing to do."""
        worth = min(MAX_RECEIVE, self.ahead // 2) if (self.waiting or self.gated) and not self.packs else 0
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

    def __init__(
        self, sizes: Mapping[Pool, int], in_play: set[Pool], clock: Callable[[], float] = boottime, hardware: Hardware = NO_HARDWARE
    ) -> None:
        self._gate = Gate(hardware)
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
        return self._arriving > 0 or any(pool.running or pool.waiting or pool.gated or pool.packs for pool in self._pools.values())

    def needs(self, call: Call) -> Resources:
        """What a call needs beside a slot."""
        return self._gate.needs(call)

    def width(self, pool: Pool, needs: Resources) -> int:
        """How many calls with such needs can run side by side in a pool."""
        return self._gate.width(needs, self._pools[pool].size)

    def is_free(self, pool: Pool, needs: Resources) -> bool:
        """Whether a call with such needs could begin now."""
        return self._pools[pool].running < self._pools[pool].size and self._gate.is_open(needs)

    def room(self) -> int:
        """How many messages to fetch now; 0 where every pool in play has enough, or a full one was crowded lately."""
        pools = [self._pools[pool] for pool in self._in_play]
        wanted, tightest = max(pool.wanted for pool in pools), 0 if self._gate.waiting else min(pool.room for pool in pools)
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

    def welcome(self, pool: Pool, needs: Resources = NO_NEEDS) -> bool:
        """Whether a call of this pool should wait here, or go back for other workers.

        What was fetched for one pool's room may turn out to be of another that is full, or to need what others hold. Of those one
        may wait, so that its turn comes, or as many as are worked off in about a second.
        """
        if pool not in self._in_play:
            self._in_play.add(pool)
            self._changed.set()
        slot = self._pools[pool]
        fits = len(self._in_play) == 1 or slot.room > 0 or len(slot.waiting) < slot.ahead
        fits = fits and self._gate.may_wait(needs)
        if not fits:
            self._crowd()
        elif self._gate.waiting:
            self._relieve()
        return fits

    def _crowd(self) -> None:
        """Fetching for a free pool brought calls for a full one: do so more rarely."""
        now = self._clock()
        if now >= self._probe_at:
            self._probe_pause = min(LONGEST_PROBE_SECONDS, max(FIRST_PROBE_SECONDS, 2 * self._probe_pause))
            self._probe_at = now + self._probe_pause

    def _relieve(self) -> None:
        """Something that can run came along with what must wait at the gate: the next probe may come sooner."""
        if self._probe_pause:
            self._probe_pause = max(FIRST_PROBE_SECONDS, self._probe_pause / 2)
            self._probe_at = min(self._probe_at, self._clock() + self._probe_pause)
            self._changed.set()

    @asynccontextmanager
    async def pack(
        self, pool: Pool, calls: int, patience_seconds: float, needs: Resources = NO_NEEDS
    ) -> AsyncIterator[PackTurn | None]:
        """The turn of a pack of so many calls, for the length of the block; None if those before it take longer than that."""
        self._in_play.add(pool)
        slot, turn = self._pools[pool], PackTurn(calls, self.width(pool, needs))
        give_up = self._clock() + patience_seconds
        # What it waits for is an estimate, which no event tells of.
        while not self._takes_pack(slot, needs) and (left := give_up - self._clock()) > 0 and not self._closed:  # noqa: ASYNC110
            await asyncio.sleep(min(left, TURN_LOOK_SECONDS))
        if not self._takes_pack(slot, needs):
            if slot.takes_packs:
                self._crowd()
            yield None
            return
        slot.packs.add(turn)
        try:
            yield turn
        finally:
            slot.packs.discard(turn)
            self._changed.set()

    def _takes_pack(self, slot: _Pool, needs: Resources) -> bool:
        # What runs of a pack waits at the gate with the next chunk, as a rule: one pack of a kind is enough.
        return slot.takes_packs and not self._gate.is_awaited(needs)

    @asynccontextmanager
    async def take(self, pool: Pool, needs: Resources = NO_NEEDS) -> AsyncIterator[Share]:
        """A slot and what a call needs beside it, for the length of the block; waits for both.

        Raises Closed once there are none to be had any more. The gate first: who waits there leaves the slots to others.
        """
        slot = self._pools[pool]
        share, since = await self._share(slot, needs), self._clock()
        try:
            if self._closed:
                raise Closed
            await slot.take()
            try:
                yield share
            finally:
                slot.give()
        finally:
            self._gate.give(share)
            self._gate.note(needs, self._clock() - since)
            self._changed.set()

    async def _share(self, slot: _Pool, needs: Resources) -> Share:
        if self._closed:
            raise Closed
        slot.gated += 1
        try:
            return await self._gate.take(needs)
        finally:
            slot.gated -= 1
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
                # Not wait_for, which in Python 3.11 forgets a cancellation that comes together with the change.
                async with asyncio.timeout(probe_seconds if probe_seconds > 0 else None):
                    await self._changed.wait()

    def open(self) -> None:
        """Give out slots, as at the beginning."""
        self._closed = False

    def close(self) -> None:
        """Give out no more slots until `open`."""
        self._closed = True
        self._gate.turn_away(Closed())
        for pool in self._pools.values():
            pool.close()
