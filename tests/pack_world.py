"""One batch in memory, worked on by real pack code under faults, and what must hold after every request.

Only children, network and time are made up: a child writes a real journal, but what its calls come to is told by a test, call by
call. After each request that may change something, all log entries are read and compared with what was seen before.

Next: `unit/test_pack.py`, with faults at every request; `pack_machine.py`, with faults at random.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from failure_points import QUEUE, TASK, Crash, Points, Process, WorkerProcess, World
from memory_transport import MemoryPlace, MemoryTransport
from virtual_time import VirtualLoop

from ai4s.jobq import layout
from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.errors import Unreachable
from ai4s.jobq.lifecycle import Died, Preempted, TimedOut
from ai4s.jobq.message import BatchMeta, Call, Cause, Failure, PackHeader
from ai4s.jobq.packing import Code, Entry, Layout, PackInput, Slice, numbers, read_entry
from ai4s.jobq.ranges import to_text
from ai4s.jobq.transports.base import Delivery
from ai4s.jobq.worker.executors import Ending, Work
from ai4s.jobq.worker.jobs import Chunk, Kind, Report
from ai4s.jobq.worker.journal import Mark, report_frame, slice_frame, to_frame

BATCH = "batch-1"
CALL = Call(layout.packed_call_id(BATCH, 0), TASK, QUEUE, b"", sent=1.0, retries=2)
MOST_ROUNDS = 100
STEP_SECONDS = 0.01
"""How long a call takes at least, so that what watches has its turn."""


class HastyLoop(VirtualLoop):
    """A loop whose time jumps to the next moment at which anything is due."""

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None:
            raise AssertionError("everybody waits, and for nothing that could come")
        self.now += max(timeout, 0.0) + 1e-6  # no two moments are the same
        return ()


@dataclass(frozen=True)
class Ran:
    """One execution: which call, which attempt, in which process."""

    index: int
    attempt: int
    process: Process


Result = bytes | Report | TimedOut | Died | Preempted
Doing = Callable[["PackWorker", int, int], Awaitable[Result]]
"""What call of this index comes to in this attempt: a value, a failure, or the end of its child. It may raise Crash."""


class PackWorld(World):
    """The batch as it really is."""

    def __init__(self, loop: VirtualLoop, folder: Path) -> None:
        self.loop = loop
        self.place = MemoryPlace(loop.server_time, loop.time)
        super().__init__(MemoryTransport(self.place), folder, "app")
        self.batch = BatchLedger(self.ledger, BATCH)
        self.count = 0
        self.entries: dict[tuple[str, int], Entry] = {}
        self._etags: dict[str, str] = {}
        self.ended: dict[tuple[int, int], tuple[str, int]] = {}
        self.ran: list[Ran] = []
        self.own: Counter[int] = Counter()
        self.deaths: Counter[int] = Counter()
        self.crashes, self.disturbed = 0, 0
        self.requests: list[str] = []

    # what tests do

    async def submit(self, count: int, call: Call = CALL, *, vector: int = 0, first: int = 0, pack: int = 0) -> PackHeader:
        """Put a pack of so many calls, undisturbed."""
        await asyncio.gather(self.ledger.store(), self.ledger.queue(QUEUE))
        await self.batch.put_meta(BatchMeta(call, vector))
        made = PackInput((Slice(Layout.SINGLE, count, pickle.dumps(list(range(first, first + count)))),))
        info = await self.batch.put_input(pack, first, made)
        assert info is not None
        self.count += count
        header = PackHeader(
            BATCH, pack, QUEUE, 1.0, info.input, first, count, to_text(info.indices), layout.root_log(pack), python=call.python
        )
        await self.batch.send(header)
        return header

    async def make_visible(self) -> None:
        for message in self.messages.values():
            message.visible_at = 0.0

    async def take_away(self) -> None:
        await self.make_visible()
        await self.queue.receive(32, lease_seconds=45)

    def header_of(self, body: str) -> PackHeader:
        """What a message says."""
        return cast("PackHeader", self.ledger.wire.unseal_message(body, QUEUE))

    @property
    def messages(self) -> dict[str, Any]:
        """What lies on the queue."""
        box = self.place.queues.get(self.queue.name)
        return box.messages if box else {}

    # what it sees

    def took(self, label: str, body: str | None) -> None:
        self.requests.append(label)

    async def look(self) -> None:
        self.check()

    def check(self) -> None:
        """What must hold at every moment."""
        changed, self.place.changed[:] = list(self.place.changed), []
        blobs = self.place.containers.get(self.store.container, {})
        for name in changed:
            parts = layout.entry_parts(name)
            if parts is not None:
                assert name not in self._etags, f"{name} was written twice"
                self._etags[name] = blobs[name].info.etag
                self._take_entry(parts, self._entry(name, blobs[name].data))
        if not self.messages and self.count:
            self.check_is_whole()

    def _entry(self, name: str, data: bytes) -> Entry:
        return read_entry(self.ledger.wire, name, data, range(self.count))

    def _take_entry(self, where: tuple[str, int], entry: Entry) -> None:
        log, seq = where
        assert seq == 0 or (log, seq - 1) in self.entries, f"the log {log} has a hole before {seq}"
        of_log = [self.entries[log, n] for n in range(seq)]
        before = {index for each in of_log for index in (*each.gives, *(o.at for o in each.outcomes))}
        now = [*entry.gives, *(outcome.at for outcome in entry.outcomes)]
        assert before.isdisjoint(now), f"an index stands in two entries of the log {log}"
        assert len(set(now)) == len(now)
        self.entries[where] = entry
        run = int(log.partition(".r")[2].partition(".")[0] or 0) + 1
        for outcome in entry.outcomes:
            assert (outcome.at, run) not in self.ended, f"call {outcome.at} has ended twice: {self.ended[outcome.at, run]}, {where}"
            self.ended[outcome.at, run] = where
            self._check_outcome(outcome)

    def _check_outcome(self, outcome: Any) -> None:
        if outcome.code == Code.VALUE:
            number = int(pickle.loads(outcome.data))  # ours
            assert self.ran[number].index == outcome.at, "a value of another call"
            assert self.ran[number].attempt == outcome.attempts
        if outcome.code == Code.FAILED and outcome.failure.cause is Cause.DIED and not outcome.failure.message.startswith("own"):
            reasons = self.crashes + self.disturbed + self.deaths[outcome.at]
            assert reasons >= CALL.max_deaths, f"call {outcome.at} is charged with deaths that were none of its own"

    def check_is_whole(self) -> None:
        """With no message left every call has ended, and a batch with failures has its dead letter."""
        missing = set(range(self.count)) - {index for index, run in self.ended if run == 1}
        assert not missing, f"no message is left, and calls {to_text(missing)} have no outcome"
        failed = any(each.has_failures for each in self.entries.values())
        letter = layout.batch_letter(QUEUE, BATCH) in self.place.containers[self.store.container]
        assert letter or not failed, "a batch has failures, no message is left, and there is no dead letter"

    def outcome_of(self, index: int) -> Any:
        """The outcome of a call's first run."""
        entry = self.entries[self.ended[index, 1]]
        return next(outcome for outcome in entry.outcomes if outcome.at == index)

    def executions(self) -> Counter[int]:
        """How often each call has run."""
        return Counter(each.index for each in self.ran)


class PackWorker(WorkerProcess):
    """A worker whose children run calls as they are told."""

    def __init__(self, points: Points, world: PackWorld, doing: Doing) -> None:
        self.model, self.doing = world, doing
        self.recalled: set[int] = set()
        self.must_know: frozenset[tuple[int, int]] = frozenset()
        self.most_calls_a_chunk: int | None = None
        super().__init__(points, world, cast("Any", None))
        self.attempts._slots._clock = world.loop.time

    def clock(self) -> float:
        return self.model.loop.time() + self.lead_seconds

    def die(self) -> None:
        if self.alive:
            self.model.crashes += 1
        super().die()

    def recall(self, number: int) -> None:
        """Have a chunk give back what has not begun."""
        self.recalled.add(number)

    def _check_failure_is_ours_to_write(self, world: World, name: str, data: bytes) -> None: ...

    async def request(self, operation: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        if operation.__name__ == "put" and args and (parts := layout.entry_parts(args[0])) and self.alive:
            entry = self.model._entry(args[0], args[1])
            others = [o for o in entry.outcomes if o.code not in (Code.VALUE, Code.SPILLED)]
            if others or entry.gives:
                assert any(lease.held for lease in self.keeper._leases), f"more than values is put to {parts} under a lost lease"
        return await super().request(operation, *args, **kwargs)

    async def run(self, work: Work) -> Ending:
        """Stands for the executors: one chunk."""
        chunk = cast("Chunk", work.job)
        places, attempts = numbers(chunk.places), numbers(chunk.attempts)
        if chunk.vector:
            return await self._run_slice(chunk, places, attempts)
        for n, (place, attempt) in enumerate(zip(places, attempts, strict=True)):
            if chunk.number in self.recalled:
                work.recalled(len(places) - n)
                break
            if work.stop.done():
                return work.stop.result().ending
            coming = asyncio.ensure_future(self.come_to(chunk.first + place, attempt))
            await asyncio.wait((coming, work.stop), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                return work.stop.result().ending
            result = coming.result()
            if not isinstance(result, bytes | Report):
                return result
            frame = report_frame(result) if isinstance(result, Report) else to_frame(Mark.VALUE, STEP_SECONDS, result)
            _append(Path(chunk.journal_path), frame)
        return Report(chunk.number, Kind.DONE)

    async def come_to(self, index: int, attempt: int) -> Result:
        """One execution."""
        if not self.alive:
            raise Crash
        number = len(self.model.ran)
        self.model.ran.append(Ran(index, attempt, self))
        assert (index, 1) not in self.must_know, f"call {index} runs again, whose outcome stood in the log before"
        await asyncio.sleep(STEP_SECONDS)
        result = await self.doing(self, index, attempt)
        if not self.alive:
            raise Crash
        if not isinstance(result, bytes):
            self.model.own[index] += 1
            self.model.deaths[index] += isinstance(result, Died)
        return pickle.dumps(number) if isinstance(result, bytes) else result

    async def _run_slice(self, chunk: Chunk, places: tuple[int, ...], attempts: tuple[int, ...]) -> Ending:
        calls, frames = list(zip(places, attempts, strict=True)), b""
        for start in range(0, len(calls), chunk.vector):
            some = calls[start : start + chunk.vector]
            results = [await self.come_to(chunk.first + place, attempt) for place, attempt in some]
            reports = [result for result in results if isinstance(result, Report)]
            ending = next((result for result in results if not isinstance(result, bytes | Report)), None)
            if ending is None:
                values = [to_frame(Mark.VALUE, STEP_SECONDS, result) for result in results if isinstance(result, bytes)]
                frames += slice_frame(reports[0], len(some)) if reports else b"".join(values)
            Path(chunk.journal_path).write_bytes(frames)  # noqa: ASYNC240  # some bytes
            if ending is not None:
                return ending
        return Report(chunk.number, Kind.DONE)

    async def deliver(self, delivery: Delivery) -> None:
        """Work on one delivery, with leases that are kept, to its end or to one's own."""
        keeping = asyncio.create_task(self.keeper.keep())
        try:
            await self.attempts.run(await self.start(), QUEUE, delivery)
        except Crash:
            self.alive = False
        except BaseExceptionGroup:
            if self.alive:
                raise  # else one of several tasks has died, and the others have noticed
        finally:
            keeping.cancel()
            found = (await asyncio.gather(keeping, return_exceptions=True))[0]
            if isinstance(found, Exception):
                raise found

    async def live(self) -> None:
        """Receive one message and work on it."""
        with suppress(Unreachable, Crash):
            queue = await self.start()
            logged = frozenset(self.model.ended)
            for delivery in await queue.receive(1, lease_seconds=45):
                header = self.model.header_of(delivery.body)
                knows = delivery.dequeue_count > 1 or header.resent or header.suspect
                self.must_know = logged if knows else frozenset()
                await self.deliver(delivery)


def _append(path: Path, frame: bytes) -> None:
    with path.open("ab") as file:
        file.write(frame)


async def returns(worker: PackWorker, index: int, attempt: int) -> Result:
    """A call that succeeds."""
    return b""


def raises(*, retryable: bool = True, delay_seconds: float | None = None) -> Report:
    """The report of an error."""
    return Report(
        0, Kind.RAISED, failure=Failure(Cause.RAISED, "ValueError", "no"), retryable=retryable, delay_seconds=delay_seconds
    )


DIES = Died(Failure(Cause.DIED, "", "own: it is gone"))
LATE = TimedOut(Failure(Cause.TIMED_OUT, "", "own: too long"))


async def drain(world: PackWorld, worker: Callable[[], PackWorker]) -> None:
    """Deliver again and again, each time to a new worker and after all leases have ended, until no message is left."""
    for _ in range(MOST_ROUNDS):
        if not world.messages:
            return
        due = min(message.visible_at for message in world.messages.values()) - world.loop.server_time()
        await asyncio.sleep(max(0.0, due) + 1)
        await worker().live()
    raise AssertionError("a message comes again for ever")


def play(folder: Path, work: Callable[[PackWorld], Awaitable[None]]) -> PackWorld:
    """Run this with a world of its own, on a loop whose time flies."""
    loop = HastyLoop()
    asyncio.set_event_loop(loop)
    try:
        world = PackWorld(loop, folder)
        loop.run_until_complete(asyncio.wait_for(work(world), 3600 * 24 * 30))
        world.check()
        return world
    finally:
        left = asyncio.all_tasks(loop)  # of processes that have died
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=60) if left else asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()
