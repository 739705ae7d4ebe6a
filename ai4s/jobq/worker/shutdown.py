"""How a worker ends, in three steps: it takes nothing new, then it stops what runs, then it waits for nobody any more.

A signal, the time limit and a notice that the machine will go begin the first step, and what runs has most of the grace
period to finish; the last part of it is for giving back what did not. A second signal leaves at once. What has begun can only
become shorter, except for a notice, which does not end the worker: having given back what ran it waits for the machine to go,
and goes on if the notice is withdrawn, or nothing has happened for long enough.

Next: `runtime.py`, which listens; `preemption.py`, which brings the notices.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from ..clock import boottime
from ..config import PREEMPTION_TIMEOUT_SECONDS

log = logging.getLogger("ai4s.jobq.worker")

T = TypeVar("T")

ONE_WISH_SECONDS = 0.5
"""Some senders signal a process and then its group, which is one wish and not two."""

LEAVING_SECONDS, PART_FOR_LEAVING = 6.0, 0.3
"""What is kept of a grace period for stopping attempts and giving them back, at most, and as a part of a short one."""

LEAST_LEAVING_SECONDS = 2.5
"""What is kept of a shorter one at least: for killing a process, and giving its call back. Where less is left, it is tried."""

SOONER_SECONDS = 1.0
"""By less than this a notice does not change what is under way: it is repeated, and its time has whole seconds."""

TEARDOWN_SECONDS = 2.0
"""For closing connections and ending children that are being killed, once the worker is out of time."""


class Why(Enum):
    """What made a worker end: its work is done, somebody stopped it, or it (or its machine) has to make room."""

    DONE = "done"
    STOPPED = "stopped"
    PREEMPTED = "preempted"


class Shutdown:
    """`draining`: take nothing new. `leaving`: stop what runs, and give it back. `over`: wait for no answer any more.

    Only what a notice began can end again, draining and leaving; `ending` is set once there is no way back. `at_last` is called
    when it is over. `patience_seconds` after the moment that a notice named, its event is among the `outlived` ones.
    """

    def __init__(
        self,
        grace_seconds: float,
        at_last: Callable[[], None] = lambda: None,
        *,
        patience_seconds: float = PREEMPTION_TIMEOUT_SECONDS,
    ) -> None:
        self.draining, self.ending, self.leaving, self.over = (asyncio.Event() for _ in range(4))
        self.why: Why | None = None
        self.outlived: set[str] = set()
        self._grace_seconds, self._at_last, self._patience_seconds = grace_seconds, at_last, patience_seconds
        self._timers: list[asyncio.TimerHandle] = []
        self._gone_at = float("inf")
        self._signalled_at: float | None = None
        self._turned = asyncio.Event()

    def drain(self, reason: str, why: Why = Why.DONE) -> None:
        """Take nothing new from now on, and be gone when the grace period is over, or with the machine."""
        if not self.ending.is_set() or self._gone_at == float("inf"):
            self.ending.set()
            # What a worker that waits for its machine to go has given back is there for the next one, whoever ends it.
            self.why = Why.PREEMPTED if self.leaving.is_set() else why
            self._begin(min(self._grace_seconds, self._left_seconds()), reason)

    def finish(self, reason: str) -> None:
        """Take nothing new from now on, and be gone when what runs has ended; in a hurry only if something else says so."""
        if not self.ending.is_set():
            log.info("%s: no new work; the worker is gone when what it runs has ended.", reason)
            self.ending.set()
            self.why = self.why or Why.DONE
            self.draining.set()
            self._turned.set()

    def notice(self, reason: str, seconds: float, event: str = "") -> None:
        """The machine goes in so many seconds, unless the notice is withdrawn: take nothing new, and hold nothing by then.

        May be repeated. To a worker that ends already it only says that there is less time.
        """
        if seconds < self._left_seconds() - SOONER_SECONDS and not self.leaving.is_set():
            self.why = self.why or Why.PREEMPTED
            self._begin(seconds, reason)
            self._at(max(seconds, LEAST_LEAVING_SECONDS) + self._patience_seconds, partial(self._outlive, event))

    def withdraw(self, reason: str) -> None:
        """The machine stays after all: go on, unless something else ends the worker. What was stopped begins elsewhere."""
        if self.draining.is_set() and not self.ending.is_set():
            log.info("%s: going on.", reason)
            self._stop_timers()
            self.why, self._gone_at = None, float("inf")
            self.draining.clear()
            self.leaving.clear()
            self._turned.set()

    async def until_turned(self) -> None:
        """While draining: wait until it is withdrawn, or final."""
        while self.draining.is_set() and not self.ending.is_set():
            self._turned.clear()
            await self._turned.wait()

    def signalled(self, name: str, why: Why) -> None:
        """The first signal: drain. A second one: leave."""
        now = boottime()
        if self._signalled_at is None:
            self._signalled_at = now
            if self.ending.is_set():
                log.info("%s received: the worker ends already; another one stops what runs.", name)
            self.drain(f"{name} received", why)
        elif now - self._signalled_at > ONE_WISH_SECONDS:
            self._leave()
            self._at(LEAVING_SECONDS, self._end)

    async def unless_draining(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await `work`, or cancel it once nothing new is to be taken: then None."""
        return await unless(self.draining, work)

    async def unless_over(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Await `work`, or cancel it once the worker is out of time: then None."""
        return await unless(self.over, work)

    def _begin(self, seconds: float, reason: str) -> None:
        """Be gone in so many seconds, or have given everything back; for that there are some in any case."""
        seconds = max(seconds, LEAST_LEAVING_SECONDS)
        then = "gone" if self.ending.is_set() else "done with what it runs"
        log.info("%s: no new work; the worker is %s within %g s.", reason, then, round(seconds, 1))
        self._stop_timers()
        self._gone_at = boottime() + seconds
        self.draining.set()
        self._turned.set()
        self._at(seconds - min(LEAVING_SECONDS, max(LEAST_LEAVING_SECONDS, PART_FOR_LEAVING * seconds)), self._leave)
        self._at(seconds, self._end)

    def _leave(self) -> None:
        if not self.leaving.is_set():
            log.warning("What still runs is stopped and given back now.")
            if not self.ending.is_set():
                log.info("Then the worker waits for its machine to go.")
        self.leaving.set()
        self._turned.set()

    def _outlive(self, event: str) -> None:
        self.outlived.add(event)
        self.withdraw(f"The machine is still there {self._patience_seconds:g} s after the notice's time")

    def _end(self) -> None:
        if self.ending.is_set() and not self.over.is_set():
            self.over.set()
            self._at_last()

    def _left_seconds(self) -> float:
        return self._gone_at - boottime()

    def _at(self, seconds: float, step: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, step))

    def _stop_timers(self) -> None:
        while self._timers:
            self._timers.pop().cancel()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Drain on SIGTERM, by which clusters take a machine back, and on SIGINT, for the length of the block."""
        loop = asyncio.get_running_loop()
        whys = {signal.SIGTERM: Why.PREEMPTED, signal.SIGINT: Why.STOPPED}
        for number, why in whys.items():
            loop.add_signal_handler(number, self.signalled, number.name, why)
        try:
            yield
        finally:
            for number in whys:
                loop.remove_signal_handler(number)
            self._stop_timers()


def exit_soon(code: int) -> None:
    """End this process in `TEARDOWN_SECONDS`, whatever it still waits for: a thread that looks up a name cannot be stopped."""
    timer = threading.Timer(TEARDOWN_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Await `work`, or cancel it when the event comes first: then None."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await cancel_and_wait(working, waiting)


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether an event is set, by then at the latest."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """End what is left of these, so that nothing goes on behind its owner's back."""
    for task in tasks:
        task.cancel()
    if left := [task for task in tasks if not task.done()]:
        await asyncio.gather(*left, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # whoever wanted to know has asked
