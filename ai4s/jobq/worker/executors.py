"""Children by the kind of their tasks: one job each for plain functions, many on a loop for coroutines.

A child is made when it is needed and kept. One that has other shipped modules, devices or threads than a call needs is replaced
while idle, since a process cannot change them. A child that dies takes its own jobs with it and nothing else; if several shared it,
none is charged, and each runs alone from then on. A device belongs to a child until its process has ended.

Next: `child_process.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..clock import boottime
from ..config import read_settings
from ..errors import ConfigurationError
from ..lifecycle import Cancelled, Died, Disturbed, Hindered, Preempted, TimedOut
from ..message import Call, Cause, Failure, Pool
from ..printable import printable
from ..sigterm import WORD_SECONDS
from . import child_process
from .child_process import GRACE_SECONDS, Child, ChildDied, Serve
from .devices import Hardware, displaced
from .gates import Share
from .interruptions import Stop
from .jobs import ChildSetup, Chunk, Job, Kind, Notice, Outfit, Ready, Report
from .limits import ChildLimits
from .memory import held_by_trees, readable
from .shutdown import cancel_and_wait, set_within

LOOP_CHILDREN = 4
"""Children with event loops, at most: one for each set of shipped modules that is in use at a time."""

WATCH_SECONDS = 0.5

log = logging.getLogger("ai4s.jobq.worker")
Ending = Report | TimedOut | Died | Preempted | Cancelled | Disturbed | Hindered


@dataclass(frozen=True, slots=True)
class Work:
    """A job, the modules that it needs, what may stop it, and who serves its requests; who hears what of a chunk was recalled."""

    job: Job | Chunk
    shipped: tuple[str, ...]
    stop: asyncio.Future[Stop]
    serve: Serve
    recalled: child_process.Hear = child_process.ignore
    share: Share = Share()  # noqa: RUF009  # frozen
    progressed: child_process.HearProgress = child_process.ignore_progress
    said: child_process.HearSaid = child_process.ignore_said

    @property
    def timeout_seconds(self) -> float | None:
        """After how long to stop it. A chunk's calls have a timeout each, which is for its owner to watch."""
        return self.job.call.timeout_seconds if isinstance(self.job, Job) else None


class _Start:
    """A child that is being started, and how many jobs will have it; `making` does so, whoever of them is stopped meanwhile."""

    def __init__(self, outfit: Outfit, leaving: list[Child]) -> None:
        self.outfit, self.leaving = outfit, leaving
        self.load = 0
        self.child: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self.making: asyncio.Task[None] | None = None


class Crew:
    """Up to `size` children like `setup`, each with room for `setup.capacity` jobs."""

    def __init__(self, setup: ChildSetup, size: int, limits: ChildLimits, hardware: Hardware) -> None:
        self._setup, self._size, self._limits, self._hardware = setup, size, limits, hardware
        self._children: list[Child] = []
        self._worn: list[Child] = []
        self._starts: list[_Start] = []
        self._told = asyncio.Event()
        self._changed = asyncio.Event()

    async def first(self, outfit: Outfit) -> Ready:
        """Start one child and return what it can do; raises ConfigurationError if it cannot start."""
        child, ready = await self._start(outfit)
        self._children.append(child)
        self._limits.check_room(child)
        return ready

    async def run(self, work: Work, outfit: Outfit) -> Ending:
        """Run a job to its end: its report, its timeout, its child's death, or what stops it."""
        try:
            child = await self._child_for(work, outfit)
        except ConfigurationError as exc:
            log.error("Call %s goes back, since no child process can be started: %s", work.job.call.id, printable(str(exc)))
            return Hindered()
        if child is None:
            # It never began: a preemption would be charged for nothing.
            ending = work.stop.result().ending
            return Disturbed(suspect=False) if isinstance(ending, Preempted) else ending
        try:
            return await self._run_on(child, work)
        finally:
            child.load -= 1
            self._retire_worn()
            self._changed.set()

    def _retire_worn(self) -> None:
        """Give no more jobs to children that are worn; they go when they have none."""
        self._worn += [child for child in self._children if self._limits.worn(child)]
        self._children = [child for child in self._children if child not in self._worn]

    @property
    def busy(self) -> list[Child]:
        """The children that run something."""
        return [child for child in (*self._children, *self._worn) if child.load]

    def end_greedy(self, held_by: Mapping[int, int], allowed: int) -> None:
        """End the busy children that hold more memory than they may, and so what they run."""
        for child in self.busy:
            held = held_by.get(child.pid, 0)
            if held > allowed:
                child.condemn(f"its memory grew to {readable(held)}, and a child may hold {readable(allowed)}")

    def recall(self, number: int) -> None:
        """Have the chunk of this number give back what has not begun."""
        for child in (*self._children, *self._worn):
            child.recall(number)

    def tell(self, notice: Notice) -> None:
        """Have all children know whether the worker is about to end, and those that are being started."""
        (self._told.set if notice.preempted else self._told.clear)()
        for child in [*self._children, *self._worn]:
            child.tell(notice)

    async def close(self, *, at_once: bool = False) -> None:
        """End all children: idle ones in good order, unless it must be at once."""
        leaving = [child for start in self._starts for child in start.leaving if child.alive]
        await cancel_and_wait(*(start.making for start in self._starts if start.making is not None))
        ending = [*self._children, *self._worn, *leaving]
        if at_once:
            await asyncio.gather(*(child.kill(0) for child in ending))
        else:
            await asyncio.gather(*(child.kill() if child.load else child.retire() for child in ending))
        self._children.clear()
        self._worn.clear()

    async def _child_for(self, work: Work, outfit: Outfit) -> Child | None:
        """A child with room, taken; None if the job is stopped before there is one."""
        child = self._with_room(outfit)
        if child is not None and not work.stop.done():
            return self._given(child)
        acquiring = asyncio.create_task(self._acquire(outfit))
        try:
            await asyncio.wait((acquiring, work.stop), return_when=asyncio.FIRST_COMPLETED)
            return acquiring.result() if acquiring.done() else None
        finally:
            await cancel_and_wait(acquiring)

    async def _run_on(self, child: Child, work: Work) -> Ending:
        run = child.run(work.job, work.serve, work.recalled, progressed=work.progressed, said=work.said)
        running, call = asyncio.create_task(run), work.job.call
        try:
            await asyncio.wait((running, work.stop), timeout=work.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            stop = work.stop.result() if work.stop.done() else Stop(TimedOut(_timeout_failure(call)), GRACE_SECONDS)
            own_doing = await self._stop(child, work.job, running, stop.grace_seconds)
            if isinstance(stop.ending, Preempted) and (report := _value_in_time(running)):
                return report
            # Of several on a loop that does not listen, nobody knows who blocks it: each runs alone next.
            return stop.ending if own_doing or not isinstance(stop.ending, TimedOut) else Disturbed(suspect=True)
        except ChildDied as exc:
            if exc.astray and not work.stop.done() and await set_within(self._told, WORD_SECONDS):
                return Preempted()  # by a SIGTERM to all processes of the worker, which the child could not take for a stray one
            return work.stop.result().ending if work.stop.done() else _after_death(call, exc)
        finally:
            await cancel_and_wait(running)

    async def _stop(self, child: Child, job: Job | Chunk, running: asyncio.Task[Report], grace_seconds: float) -> bool:
        """Stop one job: where it is not alone, by cancelling it, and only if that does not help with its whole process.

        Returns whether it was surely this job's own doing that it had to be stopped.
        """
        give_up = boottime() + grace_seconds
        if self._setup.capacity > 1:
            child.cancel(job)
            done, _ = await asyncio.wait({running}, timeout=grace_seconds)
            if done:
                return running.exception() is None
        was_alone = child.load == 1
        await child.kill(max(0.0, give_up - boottime()))
        return was_alone

    async def _acquire(self, outfit: Outfit) -> Child:
        """A child with room, taken: one that is there, one that is being started, or one that is started now."""
        while True:
            child = self._with_room(outfit)
            if child is not None:
                return self._given(child)
            start = self._start_to_join(outfit) or self._new_start(outfit)
            if start is not None:
                return await self._join(start)
            self._changed.clear()
            await self._changed.wait()

    def _given(self, child: Child) -> Child:
        child.load += 1
        child.given += 1
        self._retire_worn()
        return child

    def _with_room(self, outfit: Outfit) -> Child | None:
        self._part_with_the_dead()
        fits = (child for child in self._children if child.outfit == outfit and child.load < self._setup.capacity)
        return next(fits, None)

    def _part_with_the_dead(self) -> None:
        """Forget those that have ended; one that is being killed holds its devices, and no place, until its job is over."""
        self._worn += [child for child in self._children if not child.alive]
        self._children = [child for child in self._children if child.alive]
        self._worn = [child for child in self._worn if child.alive or child.load]

    def _start_to_join(self, outfit: Outfit) -> _Start | None:
        room = min(self._setup.capacity, self._limits.calls or self._setup.capacity)
        fits = (start for start in self._starts if start.outfit == outfit and start.load < room)
        return next(fits, None)

    async def _join(self, start: _Start) -> Child:
        start.load += 1
        try:
            return await asyncio.shield(start.child)
        except asyncio.CancelledError:
            # The child may have come at the same moment, with a place for this job.
            came = start.child.done() and start.child.exception() is None
            (start.child.result() if came else start).load -= 1
            self._changed.set()
            raise

    def _new_start(self, outfit: Outfit) -> _Start | None:
        """Have another child started; None if there is no place for it."""
        leaving = self._place_for_another(outfit)
        if leaving is None:
            return None
        start = _Start(outfit, leaving)
        self._starts.append(start)
        start.making = asyncio.create_task(self._make(start))
        return start

    async def _make(self, start: _Start) -> None:
        """Start a child once those that leave for it are gone; all that have joined by then get it, or the error."""
        try:
            for old in start.leaving:
                await old.retire()
            child, _ = await self._start(start.outfit)
        except BaseException as exc:
            start.child.set_exception(exc if isinstance(exc, ConfigurationError) else ConfigurationError(f"No child: {exc!r}"))
            start.child.exception()  # perhaps nobody joined
            if not isinstance(exc, ConfigurationError):
                raise
        else:
            child.load = child.given = start.load
            self._children.append(child)
            self._retire_worn()
            start.child.set_result(child)
        finally:
            self._starts.remove(start)
            self._changed.set()

    def _place_for_another(self, outfit: Outfit) -> list[Child] | None:
        """Which idle children go before one is started: those that are worn, have its devices, or another; None for no place.

        Worn ones that still run something take no place: it may go on for hours, and others must not wait for it.
        """
        in_the_way = self._in_the_way(outfit)
        if in_the_way is None:
            return None
        leaving = [*(child for child in self._worn if not child.load), *in_the_way]
        staying = [child for child in self._children if child not in leaving]
        if len(staying) + len(self._starts) >= self._size:
            other = next((child for child in staying if not child.load), None)
            if other is None:
                return None
            leaving.append(other)
        self._worn = [child for child in self._worn if child not in leaving]
        self._children = [child for child in self._children if child not in leaving]
        return leaving

    def _in_the_way(self, outfit: Outfit) -> list[Child] | None:
        """Idle children that have the devices of one that is to be started; None while others have them."""
        if self._setup.pool is not Pool.PROCESS:
            return []  # these see all devices, and have none
        idle = [child for child in self._children if not child.load]
        busy = [child for start in self._starts for child in start.leaving] + self.busy
        kept = [*(child.outfit for child in busy), *(start.outfit for start in self._starts)]
        return displaced(outfit, {child: child.outfit for child in idle}, kept, self._hardware.calls_per_gpu)

    async def _start(self, outfit: Outfit) -> tuple[Child, Ready]:
        environ, setup = read_settings().environ, replace(self._setup, **outfit._asdict())
        try:
            child, ready = await Child.start(setup, {**environ, **self._hardware.variables(outfit, environ)})
        except OSError as exc:  # no memory, no descriptors, no processes left
            raise ConfigurationError(f"This machine cannot start a process: {exc}") from exc
        if ready.problem is not None:
            await child.kill(0)
            raise ConfigurationError(ready.problem)
        if self._told.is_set():
            child.tell(Notice(preempted=True))
        return child, ready


class Executors:
    """The crews of a worker: `concurrency` processes for plain functions, loops with room for `async_concurrency` coroutines."""

    def __init__(
        self,
        setup: ChildSetup,
        limits: ChildLimits,
        *,
        concurrency: int,
        async_concurrency: int,
        hardware: Hardware = Hardware(),  # noqa: B008  # frozen
    ) -> None:
        self.sizes = {Pool.PROCESS: concurrency, Pool.THREAD: concurrency, Pool.ASYNC: async_concurrency}
        self._processes = Crew(replace(setup, pool=Pool.PROCESS, capacity=1), concurrency, limits, hardware)
        # Threads run in the loops' children, which have room for both.
        self._alone = Crew(replace(setup, pool=Pool.ASYNC, capacity=1), LOOP_CHILDREN, limits, hardware)
        loops = replace(setup, pool=Pool.ASYNC, capacity=concurrency + async_concurrency)
        self._loops = Crew(loops, LOOP_CHILDREN, limits, hardware)
        self._limits, self._hardware = limits, hardware
        self._threads = hardware.threads_each(concurrency)

    async def first(self) -> Ready:
        """Start the first child and return what it serves. Raises ConfigurationError if it cannot start."""
        devices = self._hardware.devices
        return await self._processes.first(Outfit((), None if devices is None else devices[:1], self._threads))

    async def run(self, work: Work) -> Ending:
        """Run a job in the kind of child that its pool names."""
        call = work.job.call
        crew = self._processes if call.pool is Pool.PROCESS else self._alone if call.alone else self._loops
        return await crew.run(work, self._outfit(work))

    def _outfit(self, work: Work) -> Outfit:
        """With what the work's child was started; one that many share sees all devices, and starts what threads it likes."""
        if work.job.call.pool is not Pool.PROCESS:
            return Outfit(work.shipped, self._hardware.devices)
        return Outfit(work.shipped, work.share.devices, self._threads and (work.share.cpus or self._threads))

    @property
    def most_calls_a_chunk(self) -> int | None:
        """How many calls a child may get at once; one at a time where they are counted."""
        return None if self._limits.calls is None else 1

    def recall(self, number: int) -> None:
        """Have the chunk of this number, wherever it runs, give back what has not begun."""
        for crew in (self._processes, self._loops, self._alone):
            crew.recall(number)

    def tell(self, notice: Notice) -> None:
        """Have all children know whether the worker is about to end."""
        for crew in (self._processes, self._loops, self._alone):
            crew.tell(notice)

    async def watch(self) -> None:
        """End children that hold too much memory, for ever."""
        crews = (self._processes, self._loops, self._alone)
        while (allowed := self._limits.memory_bytes) is not None:
            busy = [child.pid for crew in crews for child in crew.busy]
            held = await asyncio.to_thread(held_by_trees, busy) if busy else {}
            for crew in crews:
                crew.end_greedy(held, allowed)
            await asyncio.sleep(WATCH_SECONDS)

    async def close(self, *, at_once: bool = False) -> None:
        """End all children; `at_once` may be asked for while this is still at it."""
        await asyncio.gather(*(crew.close(at_once=at_once) for crew in (self._processes, self._loops, self._alone)))


def _value_in_time(running: asyncio.Task[Report]) -> Report | None:
    """The report of a job that returned its value while it was being stopped."""
    if not running.done() or running.cancelled() or running.exception() is not None:
        return None
    return running.result() if running.result().kind is Kind.RETURNED else None


def _after_death(call: Call, exc: ChildDied) -> Ending:
    if exc.on_purpose or exc.jobs > 1:
        return Disturbed(suspect=exc.jobs > 1)
    return Died(_death(call, exc))


def _timeout_failure(call: Call) -> Failure:
    return Failure(Cause.TIMED_OUT, "", f"It ran longer than its timeout of {call.timeout_seconds:g} s and was stopped.")


def _death(call: Call, exc: ChildDied) -> Failure:
    return Failure(Cause.DIED, "", f"The process that ran attempt {call.attempt} ended without an answer: {exc}.")
