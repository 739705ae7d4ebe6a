"""How a worker ends: first it takes nothing new, then it gives back what still runs.

The first signal gives running attempts a grace period, a second one none. What has not begun goes back at once in either case.

Next: `runtime.py`, which listens.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from ..clock import boottime

log = logging.getLogger("ai4s.jobq.worker")

T = TypeVar("T")

ONE_WISH_SECONDS = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """`draining`: take nothing new. `leaving`: give back what runs. The second follows the first after the grace period."""

    def __init__(self, grace_seconds: float) -> None:
        self.draining, self.leaving = asyncio.Event(), asyncio.Event()
        self._grace_seconds = grace_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._signalled_at = float("-inf")

    def drain(self, reason: str, *, grace_seconds: float | None = None) -> None:
        """Take nothing new from now on, and leave when the grace period is over."""
        if self.draining.is_set():
            return
        grace = self._grace_seconds if grace_seconds is None else grace_seconds
        log.info("%s: no new work; what runs has %g s to finish.", reason, grace)
        self.draining.set()
        self._timer = asyncio.get_running_loop().call_later(grace, self._leave)

    def signalled(self, name: str) -> None:
        """Drain; for a signal that comes while draining, leave."""
        if self.draining.is_set():
            # Some senders signal a process and then its group, which is one wish and not two.
            if boottime() - self._signalled_at > ONE_WISH_SECONDS:
                self._leave()
            return
        self._signalled_at = boottime()
        self.drain(f"{name} received")

    async def unless_draining(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await `work`, or cancel it once nothing new is to be taken: then None."""
        return await unless(self.draining, work)

    def _leave(self) -> None:
        if not self.leaving.is_set():
            log.warning("What still runs is given back now.")
        self.leaving.set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Drain on SIGTERM and SIGINT for the length of the block."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.signalled, number.name)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
            if self._timer is not None:
                self._timer.cancel()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Await `work`, or cancel it when the event comes first: then None."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
