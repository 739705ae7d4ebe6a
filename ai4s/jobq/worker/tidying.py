"""What a worker does when it has nothing to do, where its app has a `result_ttl`: a small step of gc, once a minute.

Each step looks at one page of outcomes and removes some of those that are old enough; several workers go through the
folders in different orders. It stops when work comes, and may be cut off anywhere.

Next: `sweeping.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable

from .. import layout
from ..errors import TransportError
from ..ledger import Ledger
from ..maps.standing import Standing, standings
from ..sweeping import Ended, Folders, Limits, Sweeper, ended_calls
from ..waiting import common_beginning

log = logging.getLogger("ai4s.jobq.worker")

PAUSE_SECONDS = 60.0

NAMES_A_STEP = 500
"""As many as a request brings, so that a step comes to the end of one page at most. To take in more at a time would keep the
worker from its queues for a moment that calls could feel."""

CALLS_A_STEP = 100

BATCHES_EVERY = 5
"""Steps of which one is for batches: there are few of them, and a step looks at all of each."""

STATUSES_EVERY = 60
"""Steps between two looks at the statuses of workers, which take the place of calls and not of batches."""


class Tidying:
    """Removes what is older than `ttl_seconds`, while `is_idle`; nothing without a `ttl_seconds`.

    Where it begins is left to `chance`; of any `BATCHES_EVERY` steps in a row exactly one is for batches.
    """

    def __init__(
        self, ledger: Ledger, ttl_seconds: float | None, is_idle: Callable[[], bool], *, chance: random.Random | None = None
    ) -> None:
        self._ledger, self._ttl_seconds, self._is_idle = ledger, ttl_seconds, is_idle
        self._chance = chance or random.Random()
        self._walk: AsyncIterator[Ended] | None = None
        self._batches: AsyncIterator[Standing] | None = None
        self._letters: list[str] = []
        self._steps = self._chance.randrange(STATUSES_EVERY)

    async def keep(self) -> None:
        """A step from time to time, for ever."""
        while self._ttl_seconds is not None:
            # Not all workers of a fleet at the same moment.
            await asyncio.sleep(PAUSE_SECONDS * self._chance.uniform(0.8, 1.2))
            if self._is_idle():
                await self.step(self._ttl_seconds)

    async def step(self, ttl_seconds: float) -> None:
        """One step. A fault is logged, and the walk goes on elsewhere the next time."""
        try:
            await self._step(ttl_seconds)
        except TransportError as exc:
            self._walk = self._batches = None
            log.warning("Old outcomes could not be removed, to be tried again: %s", exc)

    async def _step(self, ttl_seconds: float) -> None:
        store, now = await self._ledger.store(), await self._ledger.transport.server_time()
        limits = Limits.at(now, ttl_seconds)
        sweeper = Sweeper(self._ledger, store, limits)
        self._steps += 1
        if self._steps % BATCHES_EVERY == 0:
            await self._batches_step(sweeper)
            return
        if self._steps % STATUSES_EVERY == STATUSES_EVERY - 1:
            await sweeper.sweep_workers()
            return
        due = await self._next_due(limits)
        if due:
            folders = Folders(store, common_beginning(due[0].call, due[-1].call), page=NAMES_A_STEP)
            await sweeper.sweep_calls(self._while_idle(due), folders)
            log.info("Removed what was kept of %d calls, since their result_ttl is over.", sweeper.counts["calls"])

    async def _batches_step(self, sweeper: Sweeper) -> None:
        """Look at some batches, about a page of what lies there for them; of a large one at all."""
        await sweeper.sweep_batches(self._next_batches(), self._is_idle)
        if count := sweeper.counts["batches"]:
            log.info("Removed what was kept of %d batches, since their result_ttl is over.", count)

    async def _next_batches(self) -> AsyncIterator[Standing]:
        if self._batches is None:
            listing = (await self._ledger.store()).list(layout.BATCHES, with_metadata=True, page=NAMES_A_STEP)
            self._batches = standings(listing)
        names = 0
        while names < NAMES_A_STEP and self._is_idle():
            standing = await anext(self._batches, None)
            if standing is None:
                self._batches = None
                return
            names += len(standing.blobs)
            yield standing

    async def _while_idle(self, due: list[Ended]) -> AsyncIterator[Ended]:
        for ended in due:
            if not self._is_idle():
                return
            yield ended

    async def _next_due(self, limits: Limits) -> list[Ended]:
        """The calls that are old enough among the next ones of the walk: about a page, or fewer if there are enough."""
        if self._walk is None:
            prefix = layout.RESULTS + self._next_letter()
            self._walk = ended_calls((await self._ledger.store()).list(prefix, with_metadata=True, page=NAMES_A_STEP))
        due: list[Ended] = []
        names = 0
        while names < NAMES_A_STEP and len(due) < CALLS_A_STEP:
            ended = await anext(self._walk, None)
            if ended is None:
                self._walk = None
                break
            names += len(ended.outcomes)
            if ended.is_due(limits):
                due.append(ended)
        return due

    def _next_letter(self) -> str:
        """What the clients' names of the next part of the walk begin with. A worker may not live for a whole round."""
        if not self._letters:
            self._letters = self._chance.sample(layout.CLIENT_LETTERS, len(layout.CLIENT_LETTERS))
        return self._letters.pop()
