"""The processes of a model: workers whose children do as they are told, and producers, with everything else the real thing.

Next: `model_stage.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from failure_points import QUEUE, Crash, Process, ThroughTransport, WorkerProcess, World
from model_world import Execution, Fate, Gate, ModelWorld, Promise, Received

from ai4s.jobq import layout
from ai4s.jobq.client import Client
from ai4s.jobq.dead_letters import DeadLetters
from ai4s.jobq.errors import NotFinished, ResultGone, Unreachable
from ai4s.jobq.handle import Handle
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.lifecycle import Died, Disturbed, Hindered, Preempted, TimedOut
from ai4s.jobq.message import Cause, Failure, Form, State
from ai4s.jobq.signing import Keyring
from ai4s.jobq.submission import Order, submit
from ai4s.jobq.transports.base import Queue
from ai4s.jobq.worker.executors import Ending, Work
from ai4s.jobq.worker.jobs import Kind, Load, Report, Save
from ai4s.jobq.worker.lease import FIRST_LEASE_SECONDS, Lease


class InOrder(dict[Lease, asyncio.Task[Any] | None]):
    """A set that keeps its order, so that a history can be repeated, and whose each lease is."""

    def add(self, lease: Lease) -> None:
        self[lease] = asyncio.current_task()

    def discard(self, lease: Lease) -> None:
        self.pop(lease, None)


class Slow(Process):
    """A process whose answers may be late."""

    late = False

    async def request(self, operation: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().request(operation, *args, **kwargs)
        finally:
            if self.late:
                self.late = False
                await self.points.reach(self, "answer")


class ModelWorker(Slow, WorkerProcess):
    """A worker whose children do as they are told at the gate."""

    def __init__(self, gate: Gate, world: ModelWorld) -> None:
        super().__init__(gate, world, cast("Any", None))
        self.gate, self.model = gate, world
        self.keeper._leases = cast("Any", InOrder())
        self.frozen = False
        self.disturbances = 0
        self.at_work: list[Received] = []
        self.tasks: list[asyncio.Task[Any]] = []

    def clock(self) -> float:
        return self.model.loop.time()

    async def deliver(self, queue: Queue) -> None:
        """Receive one message and work on it."""
        disturbances = self.disturbances
        try:
            deliveries = await queue.receive(1, lease_seconds=FIRST_LEASE_SECONDS)
        except Unreachable:
            return
        for delivery in deliveries:
            received = self.model.received(self, delivery)
            if disturbances != self.disturbances:
                self.model.disturb(received)  # it comes late
            self.at_work.append(received)
            try:
                await self.attempts.run(queue, QUEUE, delivery)
            finally:
                self.at_work.remove(received)

    def lease_of(self, received: Received) -> Lease | None:
        """The lease of this delivery; a worker may have lost one on the same message before."""
        leases = cast("InOrder", self.keeper._leases)
        return next((lease for lease, task in leases.items() if task is received.task), None)

    async def run(self, work: Work) -> Ending:
        """One execution."""
        received = next(each for each in self.at_work if each.task is asyncio.current_task())
        execution = self.model.begin(received, work.job.call)
        await self._load(work, execution)
        while True:
            fate = Fate.STOPPED if work.stop.done() else await self.gate.run(self, work.stop)
            if fate is not Fate.SAVES:
                execution.fate = fate
                self.model.history(received.run).fates[fate] += 1
                return work.stop.result().ending if fate is Fate.STOPPED else ending(fate, execution, work)
            await self._save(work, execution)

    async def _load(self, work: Work, execution: Execution) -> None:
        """Go on from the last checkpoint, which is no older than the last one that was surely kept."""
        received, last = execution.received, execution.call.checkpoint
        answer = await work.serve(Load(work.job.number, 1))
        if answer.done:
            execution.progress = int(Path(work.job.checkpoint_path).read_text("ascii"))  # noqa: ASYNC240  # a few bytes
        if answer.done or last is None:
            self.model.claim(execution.progress >= received.kept, "an attempt goes on from an old checkpoint")

    async def _save(self, work: Work, execution: Execution) -> None:
        execution.progress += 1
        Path(work.job.checkpoint_path).write_text(str(execution.progress), "ascii")  # noqa: ASYNC240  # a few bytes
        message_id = execution.received.message_id
        if (await work.serve(Save(work.job.number, 1, Form.VALUE))).done:
            self.model.claim(execution.progress >= self.model.kept[message_id], "a checkpoint replaces a newer one")
            self.model.kept[message_id] = execution.progress

    def _check_failure_is_ours_to_write(self, world: World, name: str, data: bytes) -> None:
        outcome = world.read_outcome(name, data)
        if outcome is not None and outcome.state is not State.SUCCEEDED:
            of_call = [each for each in self.at_work if each.run == (outcome.call, outcome.run)]
            leases = [self.lease_of(each) for each in of_call]
            held = any(lease is not None and lease.held for lease in leases)
            self.model.claim(held, f"{outcome.state} is written under a lost lease")


def ending(fate: Fate, execution: Execution, work: Work) -> Ending:
    """What the executors would say."""
    number = str(execution.number)
    said: dict[Fate, Ending] = {
        Fate.TIMES_OUT: TimedOut(Failure(Cause.TIMED_OUT, "", number)),
        Fate.DIES: Died(Failure(Cause.DIED, "", number)),
        Fate.PREEMPTED: Preempted(),
        Fate.GIVEN_BACK: Report(work.job.number, Kind.GIVEN_BACK),
        Fate.DISTURBED: Disturbed(suspect=False),
        Fate.SUSPECTED: Disturbed(suspect=True),
        Fate.HINDERED: Hindered(),
    }
    if fate is Fate.RETURNS:
        return _returned(execution, work)
    if fate in said:
        return said[fate]
    return Report(
        work.job.number,
        Kind.RAISED,
        failure=Failure(Cause.RAISED, "ValueError", number),
        retryable=fate is not Fate.RAISES_FOR_GOOD,
        delay_seconds=30.0 if fate is Fate.ASKS_AGAIN else None,
    )


def _returned(execution: Execution, work: Work) -> Report:
    """A value of its own; every fourth one is large, and goes by way of a file."""
    if execution.number % 4 < 3:
        return Report(work.job.number, Kind.RETURNED, execution.value)
    Path(work.job.value_path).write_bytes(execution.value)
    return Report(work.job.number, Kind.RETURNED)


class Producer(Slow):
    """A process that submits, cancels and forgets with the real handles, as far as it lives."""

    def __init__(self, gate: Gate, world: ModelWorld) -> None:
        super().__init__(gate, world)
        self.model, self.name, self.queues, self.instead = world, world.app, {QUEUE}, None
        self.frozen = False
        self.ledger = Ledger(ThroughTransport(world.transport, self), world.app, Keyring())
        self.tasks: list[asyncio.Task[Any]] = []
        self.handles: dict[str, Handle[Any]] = {}
        self.unsure = 0

    async def start(self) -> None:
        """Make queue and container, undisturbed."""
        self.starting = True
        await asyncio.gather(self.ledger.queue(QUEUE), self.ledger.store())
        self.starting = False

    # what it is to its handles: their client

    async def arun(self, work: Callable[[Ledger], Awaitable[Any]]) -> Any:
        return await work(self.ledger)

    async def publish(self, ledger: Ledger, payloads: tuple[bytes, ...]) -> tuple[str, ...]:
        return ()

    # what it does

    def handle(self, call: str) -> Handle[Any]:
        return self.handles.get(call) or Handle(cast("Client", self), call)

    async def submit(self, order: Order, promise: Promise) -> None:
        with suppress(Unreachable):
            handle = await submit(cast("Client", self), order, self.ledger)
            self.handles[handle.id] = handle
            promise((handle.id, handle.run))

    async def retry(self, call: str, promise: Promise) -> None:
        with suppress(Unreachable):
            done = await DeadLetters(cast("Client", self)).aretry(call)
            for handle in done.handles:
                promise((handle.id, handle.run))

    async def purge(self, call: str) -> None:
        with suppress(Unreachable):
            await DeadLetters(cast("Client", self)).apurge(call)

    async def read(self, call: str) -> None:
        """See by a new handle how the call has ended: as its newest run."""
        runs = [run for name, run in self.model.histories | self.model.sent if name == call]
        name = layout.result(call, max(runs))
        state = await Handle(cast("Client", self), call).astatus()
        self.model.claim(state == self.model._state(name, self.model.seen[name]), f"{call} is said to have {state}")

    async def cancel(self, call: str) -> None:
        with suppress(Unreachable, ResultGone):
            await self.handle(call).acancel()

    async def forget(self, call: str) -> None:
        with suppress(Unreachable, ResultGone, NotFinished):
            await self.handle(call).aforget()


def crashed(exc: BaseException | None) -> bool:
    """Whether this is only the death of a process, however wrapped."""
    if isinstance(exc, BaseExceptionGroup):
        return all(crashed(each) for each in exc.exceptions)
    return exc is None or isinstance(exc, Crash | asyncio.CancelledError)
