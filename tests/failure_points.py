"""Storage requests as numbered failure points, and a witness that looks at the storage after each of them.

A `Process` is a worker, or a producer, whose requests may kill it, lose their answers, or come too late. A `World` is one app
on a real local place: it counts executions, and after every request it compares what lies there with what must always hold.
Nothing is made up but faults, clocks and what tasks come to.

Next: `unit/test_attempt.py`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

from ai4s.jobq import layout
from ai4s.jobq.clock import boottime
from ai4s.jobq.errors import MessageError, Unreachable
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import V3_TASK, Call, DeadLetter, Outcome, Pool, State
from ai4s.jobq.requests_made import Requests
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.base import Delivery, Queue, Receipt, Store, Transport
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.local.database import Transaction
from ai4s.jobq.transports.place import LocalPlace
from ai4s.jobq.worker.attempt import Attempts
from ai4s.jobq.worker.child_process import Serve
from ai4s.jobq.worker.duties import Duties
from ai4s.jobq.worker.executors import Ending, Executors, Work
from ai4s.jobq.worker.interruptions import Interruptions
from ai4s.jobq.worker.jobs import Job
from ai4s.jobq.worker.lease import FIRST_LEASE_SECONDS, LeaseKeeper
from ai4s.jobq.worker.orders import Orders, Ways
from ai4s.jobq.worker.poller import Line
from ai4s.jobq.worker.scratch import Scratch
from ai4s.jobq.worker.shutdown import Shutdown
from ai4s.jobq.worker.slots import Slots
from ai4s.jobq.worker.workshop import Workshop

TASK = "proj.step"
QUEUE = "default"
CLIENT = "abcdefgh234567ab"
MOST_ROUNDS = 60
"""Deliveries after which a message is taken to come again for ever."""

FAR_SECONDS = 100_000.0
"""More than any lease lasts."""

READS = {"get", "head", "peek", "depth", "check"}
"""After these nothing lies there that did not lie there before."""

_APPS = count()


class Crash(BaseException):
    """The process is gone: nothing that follows is done."""


class Fault(StrEnum):
    """What goes wrong at a request."""

    CRASH_BEFORE = "the process dies before it"
    CRASH_AFTER = "the process dies after it"
    ANSWER_LOST = "it is done, and its answer is lost"
    NOT_DONE = "it does not get through"
    TAKEN = "another worker has got the message before it, and vanished"
    OVERDUE = "the lease has run out on this machine before it"


class Points(Protocol):
    """Where requests come by before they go out."""

    async def reach(self, process: Process, label: str) -> Fault | None:
        """What is to go wrong at this one."""


class Numbered:
    """Requests of all processes in one row; `faults` says what goes wrong at which."""

    def __init__(self, faults: dict[int, Fault] | None = None) -> None:
        self.faults = faults or {}
        self.asked: list[str] = []

    async def reach(self, process: Process, label: str) -> Fault | None:
        self.asked.append(label)
        return self.faults.get(len(self.asked) - 1)


class Turns:
    """Requests wait here, of several processes, until they are let go, each with what is to go wrong at it."""

    def __init__(self) -> None:
        self.waiting: dict[Process, tuple[str, asyncio.Future[Fault | None]]] = {}
        self._changed = asyncio.Event()

    async def reach(self, process: Process, label: str) -> Fault | None:
        turn: asyncio.Future[Fault | None] = asyncio.get_running_loop().create_future()
        before = self.waiting.get(process)  # its task, which has come to "run", while its lease is renewed
        self.waiting[process] = (label, turn)
        self._changed.set()
        try:
            return await turn
        finally:
            del self.waiting[process]
            if before is not None:
                self.waiting[process] = before

    def let_go(self, process: Process, fault: Fault | None) -> None:
        """Let the request go on."""
        self.waiting[process][1].set_result(fault)

    async def until_still(self, process: Process, work: asyncio.Task[None]) -> None:
        """Wait until the process has come to its next request, or the work is over."""
        work.add_done_callback(lambda _: self._changed.set())
        while not work.done() and (process not in self.waiting or self.waiting[process][1].done()):
            self._changed.clear()
            await self._changed.wait()
        if work.done():
            work.result()


class Process:
    """One process on one machine: its requests, its clock, and whether it is still alive."""

    def __init__(self, points: Points, world: World | None = None) -> None:
        self.points, self.world = points, world
        self.alive, self.starting = True, False
        self.lead_seconds = 0.0
        self.keeper = LeaseKeeper(self.clock)

    def clock(self) -> float:
        """This machine's clock for leases."""
        return boottime() + self.lead_seconds

    def die(self) -> None:
        """End here."""
        self.alive = False
        raise Crash

    async def request(self, operation: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Do it, or what the failure point has in store."""
        if not self.alive:
            raise Crash
        if self.starting:
            return await operation(*args, **kwargs)
        label = _label(operation, args)
        if self.world is not None and label == "put results":
            self._check_failure_is_ours_to_write(self.world, *args)
        fault = await self.points.reach(self, label)
        await self._before(fault)
        try:
            answer = await operation(*args, **kwargs)
            if self.world is not None:
                self.world.took(label, kwargs.get("body"))
        finally:
            if self.world is not None and operation.__name__ not in READS:
                await self.world.look()
            if fault is Fault.CRASH_AFTER:
                self.die()
            if fault is Fault.ANSWER_LOST:
                raise Unreachable("The answer was lost.", maybe_done=True)
        return answer

    async def suffer(self, fault: Fault | None) -> None:
        """Have a fault elsewhere than at a request: while the task runs."""
        if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER) or not self.alive:
            self.die()
        if fault in (Fault.TAKEN, Fault.OVERDUE):
            await self._before(fault)

    async def _before(self, fault: Fault | None) -> None:
        match fault:
            case Fault.CRASH_BEFORE:
                self.die()
            case Fault.NOT_DONE:
                raise Unreachable("It did not get through.", maybe_done=False)
            case Fault.TAKEN if self.world is not None:
                await self.world.take_away()
            case Fault.OVERDUE:
                self.lead_seconds += FAR_SECONDS

    def _check_failure_is_ours_to_write(self, world: World, name: str, data: bytes) -> None:
        outcome = world.read_outcome(name, data)
        if outcome is not None and outcome.state is State.FAILED:
            assert all(lease.held for lease in self.keeper._leases), "a failure is written under a lost lease"


class Through:
    """A queue or a store whose requests are those of a process."""

    def __init__(self, behind: Any, process: Process) -> None:
        self._behind, self._process = behind, process

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._behind, name)
        return partial(self._process.request, found) if inspect.iscoroutinefunction(found) else found


class ThroughTransport:
    """A transport as one process has it."""

    def __init__(self, behind: Transport, process: Process) -> None:
        self._behind, self._process = behind, process

    def queue(self, name: str, *, app: str) -> Queue:
        return cast("Queue", Through(self._behind.queue(name, app=app), self._process))

    def store(self, container: str) -> Store:
        return cast("Store", Through(self._behind.store(container), self._process))

    @property
    def requests(self) -> Requests:
        return self._behind.requests

    @property
    def credential(self) -> str:
        return self._behind.credential

    async def queues(self, prefix: str) -> dict[str, str]:
        return cast("dict[str, str]", await self._process.request(self._behind.queues, prefix))

    async def server_time(self) -> float:
        return cast("float", await self._process.request(self._behind.server_time))

    async def close(self) -> None:
        await self._behind.close()


def _label(operation: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What a request does, and in which folder of the container."""
    what, first = operation.__name__, args[0] if args else None
    # A message's text may look like a name.
    return f"{what} {first.partition('/')[0]}" if isinstance(first, str) and what != "send" else what


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[LocalTransport]:
    """A local place, open for a block. Many worlds fit into it, each with an app of its own."""
    transport = await LocalTransport.open(LocalPlace(folder))
    try:
        yield transport
    finally:
        await transport.close()


Snapshot = tuple[dict[str, tuple[str, bytes]], set[str], int]


class World:
    """One app's storage, as it really is, and what has happened there."""

    def __init__(self, transport: Transport, folder: Path, app: str | None = None) -> None:
        self.folder = folder
        self.app = app or f"app-{next(_APPS)}"
        self.ledger = Ledger(transport, self.app, Keyring())
        self.store: Any = transport.store(layout.container_name(self.app))
        self.queue: Any = transport.queue(layout.queue_name(self.app, QUEUE), app=self.app)
        self.transport: Any = transport
        self.later_seconds = 0.0
        self.one_at_a_time, self.cold, self.may_forget = True, False, False
        self.calls: dict[str, Call] = {}
        self.executed: list[Call] = []
        self.begun: list[int] = []
        self.done: list[str] = []
        self.seen: dict[str, tuple[str, bytes]] = {}
        self.letters: set[str] = set()
        self.unreadable = 0
        self.depth = 0

    # what tests do to it

    async def send(self, call: Call) -> Receipt:
        """Send a call as a producer does."""
        self.calls[layout.result(call.id, call.run)] = call
        await asyncio.gather(self.ledger.store(), self.ledger.queue(QUEUE))
        return await self.ledger.send(call)

    async def send_text(self, text: str) -> None:
        """Send a message that nobody can read."""
        self.unreadable += 1
        await self.ledger.store()
        await (await self.ledger.queue(QUEUE)).send(text)

    async def make_visible(self) -> None:
        """Let all leases and delays end, and look."""
        self._check(await self.transport.database.write(self._visible_snapshot))

    async def take_away(self) -> None:
        """Have another worker receive the messages and vanish."""
        await self.make_visible()
        await self.queue.receive(32, lease_seconds=FIRST_LEASE_SECONDS)

    async def bodies(self) -> list[str]:
        """The texts of the messages, all of which are visible from now on."""
        await self.transport.database.write(self._visible_snapshot)
        return await self.queue.peek(32)

    async def forget(self, call: Call) -> None:
        """Put a tombstone where the outcome is."""
        await self.ledger.forget(call.id, call.run)
        self.may_forget = True
        await self.look()
        self.may_forget = False

    # what it sees

    def took(self, label: str, body: str | None) -> None:
        """Note a request that was done."""
        self.done.append(label)
        if label == "renew" and body is not None:
            self.begun.append(self.read_call(body).attempt)

    def read_call(self, body: str) -> Call:
        """The call in a message, which may be one of ai4s-jobq 3.x that says which call it is."""
        found = self.ledger.wire.unseal_delivery(Delivery(Receipt("", ""), body, 1, 0, 0, 0), QUEUE)
        assert isinstance(found, Call)
        return found

    def read_outcome(self, name: str, data: bytes) -> Outcome | None:
        """The outcome in these bytes; None for a tombstone, and for what cannot be read."""
        call = self.calls.get(name)
        if call is None or not data:
            return None
        try:
            return self.ledger.wire.unseal_outcome(data, call.id, call.run)
        except MessageError:  # what a test has damaged; where it has not, it asks for what the outcome says
            return None

    async def look(self) -> None:
        """Check what must hold at every moment."""
        self._check(await self.transport.database.read(self._snapshot))

    def _check(self, snapshot: Snapshot) -> None:
        outcomes, self.letters, self.depth = snapshot
        for name, found in self.seen.items():
            is_forgotten = self.may_forget and outcomes.get(name, ("", None))[1] == b""
            assert is_forgotten or outcomes.get(name) == found, f"the outcome {name} has changed after it could be read"
        self.seen = outcomes
        assert outcomes.keys() <= self.calls.keys(), "an outcome of a call that nobody made"
        failed = {name for name, found in outcomes.items() if self._state(name, found) is State.FAILED}
        due = {self._letter(name) for name in failed}
        if not self.unreadable:
            assert self.letters <= due, "a dead letter of a call that has not failed"
        if self.depth == 0:
            assert outcomes.keys() == self.calls.keys(), "a message is gone, and its call has no outcome"
            assert due <= self.letters, "a message is gone, and its failed call has no dead letter"
            assert len(self.letters) == len(due) + self.unreadable, "an unreadable message is gone without a dead letter"

    def _visible_snapshot(self, transaction: Transaction) -> Snapshot:
        transaction.execute("UPDATE messages SET visible_at = 0 WHERE queue = ?", (self.queue.name,))
        return self._snapshot(transaction)

    def _snapshot(self, transaction: Transaction) -> Snapshot:
        """Outcomes with etags and bytes, dead letters, and the number of messages, all as of one moment."""
        container, queue = self.store.container, self.queue.name
        outcomes = transaction.execute(
            "SELECT blobs.name, etag, data FROM blobs LEFT JOIN parts ON parts.blob = blobs.id "
            "WHERE container = ? AND name LIKE 'results/%'",
            (container,),
        ).fetchall()
        letters = transaction.execute(
            "SELECT name FROM blobs WHERE container = ? AND name LIKE 'failed/%'", (container,)
        ).fetchall()
        (depth,) = transaction.execute("SELECT count(*) FROM messages WHERE queue = ?", (queue,)).fetchone()
        return {name: (etag, bytes(data or b"")) for name, etag, data in outcomes}, {name for (name,) in letters}, depth

    def _state(self, name: str, found: tuple[str, bytes]) -> State | None:
        outcome = self.read_outcome(name, found[1])
        return outcome.state if outcome else None

    def _letter(self, name: str) -> str:
        call = self.calls[name]
        return layout.dead_letter(call.queue, call.id, call.run)

    def outcome(self, call: Call) -> Outcome | None:
        """The outcome as it was last seen; None for a tombstone."""
        name = layout.result(call.id, call.run)
        return self.read_outcome(name, self.seen[name][1])

    async def letter(self, call: Call) -> DeadLetter:
        """The dead letter of a call."""
        name = layout.dead_letter(call.queue, call.id, call.run)
        blob = await self.store.get(name)
        assert blob is not None
        return self.ledger.wire.unseal(DeadLetter, blob.data, name)


Task = Callable[["WorkerProcess", Job], Coroutine[Any, Any, Ending]]
"""What running a job comes to. It may raise Crash: then the whole worker was killed."""


class WorkerProcess(Process):
    """A worker with the real attempts, and children that end as they are told."""

    def __init__(self, points: Points, world: World, task: Task, *, knows: bool = True) -> None:
        super().__init__(points, world)
        self.here = world
        self._task = task
        self.delivery: Delivery | None = None
        self.serve: Serve | None = None
        ledger = Ledger(ThroughTransport(world.transport, self), world.app, Keyring(), create=False)
        folder = world.folder / f"worker-{next(_APPS)}"
        folder.mkdir()
        slots = Slots({Pool.PROCESS: 2, Pool.ASYNC: 2, Pool.THREAD: 2}, {Pool.PROCESS})
        duties = Duties("worker", {TASK: Pool.PROCESS, V3_TASK: Pool.PROCESS} if knows else {})
        interruptions = Interruptions()
        orders = Orders(ledger, [Line(QUEUE, world.queue)], ways=Ways(interruptions, Shutdown(1)))
        executors = cast("Executors", self)
        workshop = Workshop(ledger, duties, executors, slots, Scratch(folder, ledger), self.keeper, interruptions, orders)
        self.ledger, self.attempts = ledger, Attempts(workshop)

    async def run(self, work: Work) -> Ending:
        """Stands for the executors: one execution."""
        job, self.serve = work.job, work.serve
        if self.here.one_at_a_time and self.redelivered:
            name = layout.result(job.call.id, job.call.run)
            assert name not in self.here.seen, "a message that came again runs although its call has ended"
        self.here.executed.append(job.call)
        self.here.begun.append(job.call.attempt)
        return await self._task(self, job)

    @property
    def redelivered(self) -> bool:
        """Whether the message that is worked on may have been worked on before."""
        assert self.delivery is not None
        return self.delivery.dequeue_count > 1 or self.here.read_call(self.delivery.body).resent

    async def live(self) -> None:
        """Receive one message and work on it, to its end or to one's own."""
        with suppress(Crash):
            await self._deliver()

    async def start(self, *, cold: bool = False) -> Queue:
        """Open what a worker opens before its first receive, undisturbed; the container too, unless it is to be `cold`."""
        self.starting = True
        try:
            if cold:
                return await self.ledger.queue(QUEUE)
            return (await asyncio.gather(self.ledger.queue(QUEUE), self.ledger.store()))[0]
        finally:
            self.starting = False

    async def _deliver(self) -> None:
        queue = await self.start(cold=self.here.cold)
        with suppress(Unreachable):  # as the poller has it: it asks again
            for delivery in await queue.receive(1, lease_seconds=FIRST_LEASE_SECONDS):
                self.delivery = replace(delivery, server_time=delivery.server_time + self.here.later_seconds)
                await self.attempts.run(queue, QUEUE, self.delivery)


async def drain(world: World, worker: Callable[[], WorkerProcess], *, round_seconds: float = 0) -> None:
    """Deliver again and again, each time to a new worker and after all leases have ended, until no message is left."""
    for _ in range(MOST_ROUNDS):
        await world.make_visible()
        if world.depth == 0:
            return
        await worker().live()
        world.later_seconds += round_seconds
    raise AssertionError("a message comes again for ever")
