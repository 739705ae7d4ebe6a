"""Leases: a delivery stays ours while it waits and runs, and not a moment longer.

A lease ends at a deadline that this machine reckons itself, from before the request that granted it: if renewals fail or the
network is silent, it is over by then, whatever the server thinks. Renewing and settling exclude each other, since
each renewal voids the receipt before it. A lease that was lost is never settled as a failure or a retry.

Next: `attempt.py`, which works under a lease.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import TypeVar

from ..errors import AccessDenied, LeaseLost, TransportError, Unreachable
from ..transports.base import Delivery, Queue, Receipt

T = TypeVar("T")
log = logging.getLogger("ai4s.jobq.worker")

FIRST_LEASE_SECONDS = 45.0
LONGEST_LEASE_SECONDS = 600.0
PART_OF_AGE = 0.1
"""A lease grows to this part of the delivery's age: long calls cost few renewals, and what they lose stays in proportion."""

ROUND_SECONDS = 1.0

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
"""Between tries of a step that the storage did not take; on top of what the transport tried by itself."""

LEAST_LEASE_SECONDS, MOST_LEASE_SECONDS = 10.0, 7 * 86400.0
"""What a first lease may be: two renewals must be able to fail in a short one, and Azure knows none above seven days."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Terms:
    """How leases are: the first one's length (None: `FIRST_LEASE_SECONDS`), and whether they are renewed while calls run."""

    first_seconds: float | None = None
    renewed: bool = True

    @property
    def seconds(self) -> float:
        """The length of the first lease, which no later one is shorter than."""
        return FIRST_LEASE_SECONDS if self.first_seconds is None else self.first_seconds


USUAL_TERMS = Terms()


class Lease:
    """The right to settle one delivery."""

    def __init__(self, queue: Queue, delivery: Delivery, clock: Clock, terms: Terms = USUAL_TERMS) -> None:
        self._queue, self._clock, self._terms = queue, clock, terms
        self._receipt = delivery.receipt
        self._began = delivery.received_at
        self._lost = False
        self.refresh: Callable[[], Awaitable[None]] = self.renew
        """What renews it when that is due: a pack's message changes with what is left of it."""
        self.context: Context | None = None
        """In which that is done: it says what the lease is of, and who is charged for it."""
        self._busy = asyncio.Lock()
        self._extend(terms.seconds, delivery.received_at)

    @property
    def held(self) -> bool:
        """Whether the delivery is surely still ours."""
        return not self._lost and self.in_time

    @property
    def in_time(self) -> bool:
        """Whether the deadline is still to come, whatever has been heard of the receipt."""
        return self._clock() < self._deadline

    @property
    def due(self) -> bool:
        """Whether it is time to renew: after a third, so that two renewals may fail."""
        return self._terms.renewed and not self._lost and not self._busy.locked() and self._clock() >= self._renew_at

    async def renew(self, body: str | None = None) -> None:
        """Extend the lease, and replace the message's body if one is given. Raises LeaseLost, Unreachable, AccessDenied."""
        async with self._busy:
            self._check()
            now = self._clock()
            seconds = max(self._terms.seconds, min(LONGEST_LEASE_SECONDS, PART_OF_AGE * (now - self._began)))
            try:
                self._receipt = await self._queue.renew(self._receipt, lease_seconds=seconds, body=body)
            except LeaseLost:
                self._lost = True
                raise
            self._extend(seconds, now)

    async def settle(self, step: Callable[[Queue, Receipt], Awaitable[T]]) -> T:
        """Do something with the receipt, after which the lease is over. Raises LeaseLost if it is over already."""
        async with self._busy:
            self._check()
            done = await step(self._queue, self._receipt)
            self._lost = True
            return done

    async def delete(self) -> None:
        """Remove the message, by whatever receipt there is: what must come before is durable, so a late delete harms nobody."""
        async with self._busy:
            await self._queue.delete(self._receipt)
            self._lost = True

    async def patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step through storage faults for as long as the lease is ours; what each step does may be done twice."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await step()
            except (Unreachable, AccessDenied) as exc:
                if not self.held:
                    raise
                log.warning("Trying again while the lease lasts: %s", exc)
            await asyncio.sleep(pause * (0.5 + random.random() / 2))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _check(self) -> None:
        if not self.held:
            self._lost = True
            raise LeaseLost("The lease ran out.")

    def _extend(self, seconds: float, since: float) -> None:
        self._deadline = since + seconds
        self._renew_at = since + seconds / 3


class LeaseKeeper:
    """Renews all leases of a worker that are due, until it is cancelled."""

    def __init__(self, clock: Clock, terms: Terms = USUAL_TERMS) -> None:
        self.clock, self._terms = clock, terms
        self._leases: set[Lease] = set()

    @asynccontextmanager
    async def hold(self, queue: Queue, delivery: Delivery) -> AsyncIterator[Lease]:
        """A lease on this delivery that is renewed for the length of the block."""
        lease = Lease(queue, delivery, self.clock, self._terms)
        lease.context = copy_context()
        self._leases.add(lease)
        try:
            yield lease
        finally:
            self._leases.discard(lease)

    async def keep(self) -> None:
        """Renew what is due, for ever."""
        async with asyncio.TaskGroup() as renewals:
            while True:
                for lease in [lease for lease in self._leases if lease.due]:
                    renewals.create_task(_renew(lease), context=lease.context)
                await asyncio.sleep(ROUND_SECONDS)


async def _renew(lease: Lease) -> None:
    try:
        await lease.refresh()
    except LeaseLost:
        log.warning("A lease was lost: the call may run elsewhere; a success of ours still counts if it comes first.")
    except TransportError as exc:
        log.warning("A lease could not be renewed (%s); trying again until it runs out.", exc)
