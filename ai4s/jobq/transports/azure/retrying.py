"""The only place that repeats a request.

The SDK's retries are off: they wait 15 s and more, they send a message twice without a word, and they hide that a first
answer was lost. Three manners here: `once`; `repeat` for what is harmless twice; `repeat_unsent` for sends and receives,
which go again only when they surely never left this machine.

Next: `queue.py` and `store.py`, which choose the manner for each operation.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ...errors import LeaseLost, NotFound, Unreachable
from .translate import Account, retry_after_seconds, status_of, translated

T = TypeVar("T")
logger = logging.getLogger(__name__)

TOLD_AT = 6
"""The attempt at which a fault is worth a line in the log: it has lasted a few seconds."""

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Retrying:
    """How long one account's requests are tried, and whose they are.

    Args:
        account: what errors name.
        budget_seconds: no attempt begins later than this after the first.
        jitter: a number in [0, 1) that a pause is multiplied with, so that a fleet does not come back in step.
    """

    account: Account
    budget_seconds: float = 30.0
    jitter: Callable[[], float] = random.random

    async def once(self, operation: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Make one request."""
        with translated(self.account, operation):
            return await attempt()

    async def repeat(self, operation: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat what is harmless to repeat, through passing faults, until the budget is used up."""
        return await self._persist(operation, attempt, _Tries())

    async def repeat_unsent(self, operation: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat only while no connection comes about at all."""
        return await self._persist(operation, attempt, _Tries(unsent_only=True))

    async def remove(self, operation: str, attempt: Callable[[], Awaitable[object]]) -> None:
        """Repeat a removal; "not there" after a lost answer says that the lost attempt did it."""
        tries = _Tries()
        try:
            await self._persist(operation, attempt, tries)
        except (NotFound, LeaseLost):
            if not tries.maybe_done:
                raise

    async def _persist(self, operation: str, attempt: Callable[[], Awaitable[T]], tries: _Tries) -> T:
        deadline = time.monotonic() + self.budget_seconds
        while True:
            try:
                return await self.once(operation, attempt)
            except Unreachable as fault:
                tries.note(fault)
                pause = self._pause_seconds(tries.count, fault)
                if tries.over or time.monotonic() + pause > deadline:
                    fault.maybe_done = tries.maybe_done
                    raise
                level = logging.WARNING if tries.count == TOLD_AT else logging.DEBUG
                logger.log(level, "%s Trying on for up to %.0f s.", fault, deadline - time.monotonic())
            await asyncio.sleep(pause)

    def _pause_seconds(self, count: int, fault: Unreachable) -> float:
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(count - 1, 10))
        return max(longest * self.jitter(), retry_after_seconds(fault.__cause__))


class _Tries:
    """What the attempts of one operation have come to; `maybe_done` if any of them may have been carried out."""

    def __init__(self, *, unsent_only: bool = False) -> None:
        self._unsent_only = unsent_only
        self.count = 0
        self.maybe_done = False
        self.over = False

    def note(self, fault: Unreachable) -> None:
        self.count += 1
        self.maybe_done = self.maybe_done or fault.maybe_done
        # A refusal that came as an answer went out; the contract leaves it to the caller.
        self.over = self._unsent_only and (fault.maybe_done or status_of(fault.__cause__) is not None)
