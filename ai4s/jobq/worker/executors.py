"""Children by the kind of their tasks: one job each for plain functions, many on a loop for coroutines.

A child is made when it is needed and kept. One that has other shipped modules than a call needs is replaced
while idle, since a process cannot hold two versions of a module. A child that dies takes its own jobs with it and nothing else; if
several shared it, none is charged, and each runs alone from then on.

Next: `child_process.py`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from ..errors import ConfigurationError
from ..lifecycle import Died, Disturbed, Hindered, Preempted, TimedOut
from ..message import Call, Cause, Failure, Pool
from .child_process import GRACE_SECONDS, Child, ChildDied
from .jobs import ChildSetup, Job, Ready, Report
from .shutdown import unless

LOOP_CHILDREN = 4
"""Children with event loops, at most: one for each set of shipped modules that is in use at a time."""

log = logging.getLogger("ai4s.jobq.worker")
Ending = Report | TimedOut | Died | Preempted | Disturbed | Hindered


class _Start:
    """A child that is being started, and how many jobs will have it."""

    def __init__(self, shipped: tuple[str, ...]) -> None:
        self.shipped = shipped
        self.load = 1
        self.child: asyncio.Future[Child] = asyncio.get_running_loop().create_future()


class Crew:
    """Up to `size` children like `setup`, each with room for `setup.capacity` jobs."""

    def __init__(self, setup: ChildSetup, size: int) -> None:
        self._setup, self._size = setup, size
        self._children: list[Child] = []
        self._starts: list[_Start] = []
        self._changed = asyncio.Event()

    async def first(self) -> Ready:
        """Start one child and return what it can do; raises ConfigurationError if it cannot start."""
        child, ready = await self._start(())
        self._children.append(child)
        return ready

    async def run(self, job: Job, shipped: tuple[str, ...], leaving: asyncio.Event) -> Ending:
        """Run a job to its end: its report, its timeout, its child's death, or the worker's leaving."""
        try:
            child = await unless(leaving, self._acquire(shipped))
        except ConfigurationError as exc:
            log.error("Call %s goes back, since no child process can be started: %s", job.call.id, exc)
            return Hindered()
        if child is None:
            return Preempted()
        try:
            return await self._run_on(child, job, leaving)
        finally:
            child.load -= 1
            self._changed.set()

    async def close(self) -> None:
        """End all children: idle ones in good order."""
        await asyncio.gather(*(child.kill() if child.load else child.retire() for child in self._children))
        self._children.clear()

    async def _run_on(self, child: Child, job: Job, leaving: asyncio.Event) -> Ending:
        running, left = asyncio.create_task(child.run(job)), asyncio.create_task(leaving.wait())
        try:
            await asyncio.wait({running, left}, timeout=job.call.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            await self._stop(child, job, running)
            return Preempted() if left.done() else TimedOut(_timeout_failure(job.call))
        except ChildDied as exc:
            return _after_death(job.call, exc, leaving)
        finally:
            left.cancel()
            running.cancel()
            with suppress(asyncio.CancelledError, ChildDied):
                await running

    async def _stop(self, child: Child, job: Job, running: asyncio.Task[Report]) -> None:
        """Stop one job: where it is not alone, by cancelling it, and only if that does not help with its whole process."""
        if self._setup.capacity > 1:
            child.cancel(job)
            done, _ = await asyncio.wait({running}, timeout=GRACE_SECONDS)
            if done:
                return
        await child.kill()

    async def _acquire(self, shipped: tuple[str, ...]) -> Child:
        """A child with room, taken: one that is there, one that is being started, or one that is started now."""
        while True:
            child = self._with_room(shipped)
            if child is not None:
                child.load += 1
                return child
            start = self._start_to_join(shipped)
            if start is not None:
                return await self._join(start)
            idle = self._place_for_another()
            if idle is not None:
                return await self._begin(_Start(shipped), idle)
            self._changed.clear()
            await self._changed.wait()

    def _with_room(self, shipped: tuple[str, ...]) -> Child | None:
        self._children = [child for child in self._children if child.alive]
        fits = (child for child in self._children if child.setup.shipped == shipped and child.load < self._setup.capacity)
        return next(fits, None)

    def _start_to_join(self, shipped: tuple[str, ...]) -> _Start | None:
        fits = (start for start in self._starts if start.shipped == shipped and start.load < self._setup.capacity)
        return next(fits, None)

    async def _join(self, start: _Start) -> Child:
        start.load += 1
        try:
            return await asyncio.shield(start.child)
        except asyncio.CancelledError:
            start.load -= 1
            raise

    async def _begin(self, start: _Start, idle: list[Child]) -> Child:
        """Start a child once the idle ones are gone; whoever joined gets it, or the error, as well."""
        self._starts.append(start)
        try:
            for old in idle:
                await old.retire()
            child, _ = await self._start(start.shipped)
        except BaseException as exc:
            start.child.set_exception(exc if isinstance(exc, ConfigurationError) else ConfigurationError(f"No child: {exc!r}"))
            start.child.exception()  # perhaps nobody joined
            raise
        finally:
            self._starts.remove(start)
            self._changed.set()
        child.load = start.load
        self._children.append(child)
        start.child.set_result(child)
        return child

    def _place_for_another(self) -> list[Child] | None:
        """Which idle children must go so that one may be started: none if there is room; None if all are busy."""
        if len(self._children) + len(self._starts) < self._size:
            return []
        idle = [child for child in self._children if not child.load][:1]
        self._children = [child for child in self._children if child not in idle]
        return idle or None

    async def _start(self, shipped: tuple[str, ...]) -> tuple[Child, Ready]:
        try:
            child, ready = await Child.start(replace(self._setup, shipped=shipped))
        except OSError as exc:  # no memory, no descriptors, no processes left
            raise ConfigurationError(f"This machine cannot start a process: {exc}") from exc
        if ready.problem is not None:
            await child.kill()
            raise ConfigurationError(ready.problem)
        return child, ready


class Executors:
    """The crews of a worker: `concurrency` processes for plain functions, loops with room for `async_concurrency` coroutines."""

    def __init__(self, setup: ChildSetup, *, concurrency: int, async_concurrency: int) -> None:
        self.sizes = {Pool.PROCESS: concurrency, Pool.THREAD: concurrency, Pool.ASYNC: async_concurrency}
        self._processes = Crew(replace(setup, pool=Pool.PROCESS, capacity=1), concurrency)
        # Threads run in the loops' children, which have room for both.
        self._alone = Crew(replace(setup, pool=Pool.ASYNC, capacity=1), LOOP_CHILDREN)
        self._loops = Crew(replace(setup, pool=Pool.ASYNC, capacity=concurrency + async_concurrency), LOOP_CHILDREN)

    async def first(self) -> Ready:
        """Start the first child and return what it serves. Raises ConfigurationError if it cannot start."""
        return await self._processes.first()

    async def run(self, job: Job, shipped: tuple[str, ...], leaving: asyncio.Event) -> Ending:
        """Run a job in the kind of child that its pool names."""
        crew = self._processes if job.call.pool is Pool.PROCESS else self._alone if job.call.alone else self._loops
        return await crew.run(job, shipped, leaving)

    async def close(self) -> None:
        """End all children."""
        await asyncio.gather(self._processes.close(), self._loops.close(), self._alone.close())


def _after_death(call: Call, exc: ChildDied, leaving: asyncio.Event) -> Ending:
    if leaving.is_set():
        return Preempted()
    if exc.on_purpose or exc.jobs > 1:
        return Disturbed(suspect=not exc.on_purpose)
    return Died(_death(call, exc))


def _timeout_failure(call: Call) -> Failure:
    return Failure(Cause.TIMED_OUT, "", f"It ran longer than its timeout of {call.timeout_seconds:g} s and was stopped.")


def _death(call: Call, exc: ChildDied) -> Failure:
    return Failure(Cause.DIED, "", f"The process that ran attempt {call.attempt} ended without an answer: {exc}.")
