"""Dealing a pack's calls to the free slots of its worker, in chunks of some 200 ms, and taking in what becomes of them.

A chunk's calls run one after the other in one child; what they come to is read from its journal. A call that ends its
child, or its time, is the only one charged: those before it have their outcomes, those after it are dealt again. Chunks
are called back when a slot is free and nothing else is left, so that what was short before and is long now spreads out.

Next: `chunks.py`, where they run; `pack.py`, which logs the outcomes.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import layout
from ..errors import AccessDenied, LeaseLost, MessageError, Unreachable
from ..lifecycle import HINDERED_DELAY_SECONDS, Hindered, Raised, Release, TimedOut
from ..message import Call, Cause, Failure, Spill, State
from ..packing import packed
from ..printable import printable
from .call_logs import ChunkLogs
from .child_process import GRACE_SECONDS
from .executors import Ending, Work
from .gates import Share
from .interruptions import Stop
from .jobs import Chunk
from .pack_calls import UNCHARGED
from .reckoning import Dealt, Reckoner, RunningChunk
from .scratch import JobFiles
from .slots import Closed
from .workshop import Workshop

log = logging.getLogger("ai4s.jobq.worker")

CHUNK_SECONDS = 0.2
"""What a chunk should take: long beside what handing it over costs, short beside what anybody notices."""

MAX_CHUNK_CALLS = 4096
OVERDUE_SECONDS = 0.1
"""A chunk that has run for so long, while a slot is idle, gives back what it has not begun."""

TICK_SECONDS, IDLE_TICK_SECONDS = 0.05, 0.5
PATIENCE_SECONDS = 1.0
"""A pack whose only calls are to be retried sooner than this waits for them; else it goes back to the queue."""

FLUSH_BYTES = 64 * 1024


class Dealer:
    """Deals one delivery's calls until none can be run any more."""

    def __init__(self, workshop: Workshop, dealt: Dealt, call: Call) -> None:
        self._shop, self._dealt, self._calls = workshop, dealt, dealt.calls
        self._call, self._pool, self._needs = call, call.pool, workshop.slots.needs(call)
        self._width = workshop.slots.width(call.pool, self._needs)
        self._clock = workshop.leases.clock
        self._chunks: dict[int, RunningChunk] = {}
        self._under_way = 0  # chunks that were dealt, those whose task has not begun included
        self._changed = asyncio.Event()
        self._stopped = False
        self._reckoner = Reckoner(workshop.ledger, self._clock, dealt)

    # the loop

    async def run(self) -> None:
        """Deal and run; returns when nothing is left to run now, or it was stopped and what ran has ended."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            try:
                while await self._has_work():
                    await self._deal_one(group)
            except Closed:
                self.stop()
            while self._under_way:
                self._changed.clear()
                await self._changed.wait()
            watching.cancel()

    def stop(self) -> None:
        """Deal no more, and take back what has not begun."""
        self._stopped = True
        self.recall()
        self._changed.set()

    def cancel(self, why: Stop) -> None:
        """Deal no more, and stop what runs."""
        self.stop()
        for running in self._chunks.values():
            if not running.stop.done():
                running.stop.set_result(why)

    def recall(self) -> None:
        """Have chunks give back what they have not begun."""
        for running in self._chunks.values():
            if len(running.left) > 1 and not running.recalling:
                running.recalling = True
                self._shop.executors.recall(running.number)

    @property
    def flush_wanted(self) -> asyncio.Event:
        """Set when much waits to be logged."""
        return self._reckoner.flush_wanted

    @property
    def put_aside(self) -> Release | None:
        """What to do with the pack if this worker turned out to be unable to run it."""
        return self._reckoner.put_aside

    @property
    def rest_seconds(self) -> float:
        """How long the calls that are left have to wait, once nothing runs any more."""
        if self._reckoner.is_hindered:
            return HINDERED_DELAY_SECONDS
        due = self._calls.next_due
        return 0.0 if due is None or self._calls.waiting else max(0.0, due - self._clock())

    @property
    def waiting(self) -> int:
        """How many calls could run now and do not."""
        return self._calls.waiting

    @property
    def running(self) -> int:
        """How many calls run now: of a chunk one at a time, of a vector's slice all."""
        left = [len(running.left) for running in self._chunks.values()]
        return sum(min(count, self._dealt.meta.vector or 1) for count in left)

    @property
    def estimate_seconds(self) -> float:
        """How long the calls that have not begun will keep all that can run them here busy, as far as is known."""
        waiting = self._calls.waiting + sum(max(0, len(running.left) - 1) for running in self._chunks.values())
        mean = self._calls.times.mean_seconds
        if mean is None:
            # Those that run are as good a sign as any: as long as none has ended, they take at least so long.
            mean = max((self._clock() - running.began for running in self._chunks.values()), default=0.0) or float("inf")
        return waiting * mean / self._width if waiting else 0.0

    async def _has_work(self) -> bool:
        while not self._stopped:
            now = self._clock()
            self._calls.wake(now)
            if self._calls.waiting:
                return True
            due = self._calls.next_due
            wait = None if due is None else due - now
            if not self._under_way and (wait is None or wait > PATIENCE_SECONDS):
                return False
            self._changed.clear()
            with suppress(TimeoutError):
                # Not wait_for, which in Python 3.11 forgets a cancellation that comes together with the change.
                async with asyncio.timeout(wait):
                    await self._changed.wait()
        return False

    async def _deal_one(self, group: asyncio.TaskGroup) -> None:
        async with AsyncExitStack() as slot:
            share = await slot.enter_async_context(self._shop.slots.take(self._pool, self._needs))
            if self._is_expired():
                self._reckoner.end_all(State.EXPIRED)  # none of them is dealt any more
            indices = [] if self._stopped else self._calls.deal(self._most())
            if indices:
                self._under_way += 1
                group.create_task(self._run_in(slot.pop_all(), share, indices))

    def _is_expired(self) -> bool:
        """Whether no attempt may begin any more, by the server's clock."""
        delivery, expires = self._dealt.delivery, self._call.expires
        return expires is not None and delivery.server_time + self._clock() - delivery.received_at >= expires

    def _most(self) -> int:
        """How many calls the next chunk may have."""
        mean, at_once = self._calls.times.mean_seconds, self._dealt.meta.vector or 1
        fits = 1 if mean is None else int(CHUNK_SECONDS / max(mean, CHUNK_SECONDS / MAX_CHUNK_CALLS))
        share = -(-self._calls.waiting // self._width)
        # Of a vector as many whole slices as fit, and one in any case.
        return max(1, min(fits, share, self._shop.executors.most_calls_a_chunk or fits) // at_once) * at_once

    # a chunk

    async def _run_in(self, slot: AsyncExitStack, share: Share, indices: list[int]) -> None:
        async with slot:
            try:
                with self._shop.scratch.job_files() as files:
                    await self._run_chunk(indices, share, files)
            finally:
                self._under_way -= 1
                self._changed.set()

    async def _run_chunk(self, indices: list[int], share: Share, files: JobFiles) -> None:
        watched = self._shop.interruptions.watched(self._call)
        with watched as stop:
            running = RunningChunk.of(files, indices, stop, self._clock())
            running.logs = ChunkLogs(self._shop.logs, self._call_at, self._dealt.token)
            self._chunks[files.number] = running
            try:
                ending = await self._ending(running, share, files)
                await self._reckoner.take_in(running)
                if not self._reckoner.conclude(running, ending):
                    self.stop()
            except (Unreachable, AccessDenied, LeaseLost) as exc:
                log.warning("Calls of batch %s cannot begin: %s", self._dealt.header.batch, printable(str(exc)))
                self._calls.take_back(running.left)
                self.stop()
            finally:
                running.logs.end()
                del self._chunks[files.number]

    def _call_at(self, place: int) -> Call:
        """The call at this place of the pack."""
        index = self._dealt.header.first + place
        name = layout.packed_call_id(self._dealt.header.batch, index)
        return replace(self._calls.call(self._dealt.meta, name, index), run=self._call.run)

    async def _ending(self, running: RunningChunk, share: Share, files: JobFiles) -> Ending | Raised:
        try:
            chunk = await self._chunk(running.indices, files)
            shipped = [str(await self._patiently_fetched(sha256)) for sha256 in self._call.ship]
        except MessageError as exc:
            return Raised(Failure(Cause.REFUSED, type(exc).__name__, str(exc)), retryable=False)
        except OSError as exc:
            log.error(
                "Calls of batch %s go back, since the scratch folder failed: %s", self._dealt.header.batch, printable(str(exc))
            )
            return Hindered()
        keep = partial(self._dealt.checkpoints.serve, files.checkpoint)
        serve = self._shop.scratch.serving(keep, self._dealt.lease.patiently)
        recalled = partial(self._recalled, running)
        self._reckoner.note_begun(running)
        work = Work(chunk, tuple(shipped), running.stop, serve, recalled, share, running.progressed)
        work = work if running.logs is None else replace(work, said=running.logs.hear)
        with self._shop.current.told_by(partial(running.current, self._dealt)):
            return await self._shop.executors.run(work)

    async def _chunk(self, indices: list[int], files: JobFiles) -> Chunk:
        header, calls = self._dealt.header, self._calls
        places = [index - header.first for index in indices]
        call, arguments = self._call, None
        if (large := self._dealt.input.spilled.get(places[0])) is not None:
            name = layout.batch_arguments(header.batch, large.sha256)
            await self._dealt.lease.patiently(partial(self._shop.ledger.spilled_to, name, large, files.arguments))
            arguments = str(files.arguments)
        common = None
        if isinstance(call.arguments, Spill):
            fetch = partial(self._shop.scratch.common_arguments, header.batch, call.arguments)
            common = str(await self._dealt.lease.patiently(fetch))
        function = None if call.function is None else str(await self._patiently_fetched(call.function))
        charges = [calls.charge_of(index) for index in indices] if calls.charges else [UNCHARGED] * len(indices)
        return Chunk(
            files.number,
            call if len(indices) > 1 or not charges[0].alone else calls.call(self._dealt.meta, call.id, indices[0]),
            first=header.first,
            places=packed(places),
            attempts=packed([1 + each.errors + each.deaths + each.preemptions for each in charges]),
            pieces=() if arguments else tuple(self._dealt.input.pieces(places)),
            journal_path=str(files.journal),
            value_path=str(files.value),
            checkpoint_path=str(files.checkpoint),
            vector=self._dealt.meta.vector,
            arguments_path=arguments,
            common_path=common,
            function_path=function,
        )

    async def _patiently_fetched(self, sha256: str) -> Path:
        return await self._dealt.lease.patiently(partial(self._shop.scratch.payload, sha256))

    def _recalled(self, running: RunningChunk, count: int) -> None:
        returned = running.indices[len(running.indices) - count :]
        running.indices = running.indices[: len(running.indices) - count]
        self._calls.take_back(returned)
        self._changed.set()

    # while chunks run

    async def take_in(self) -> None:
        """Take in what has ended in chunks that still run."""
        for running in list(self._chunks.values()):
            await self._reckoner.take_in(running)

    async def _watch(self) -> None:
        """Call chunks back that keep others waiting, and stop calls whose time is up, for ever."""
        while True:
            several = any(len(running.left) > 1 for running in self._chunks.values())
            await asyncio.sleep(TICK_SECONDS if several or self._call.timeout_seconds else IDLE_TICK_SECONDS)
            if not self._calls.waiting and self._shop.slots.is_free(self._pool, self._needs):
                self._recall_overdue()
            if self._call.timeout_seconds is not None:
                for running in list(self._chunks.values()):
                    await self._check_time(running, self._call.timeout_seconds)

    def _recall_overdue(self) -> None:
        now = self._clock()
        if any(now - running.began > OVERDUE_SECONDS for running in self._chunks.values()):
            self.recall()

    async def _check_time(self, running: RunningChunk, timeout_seconds: float) -> None:
        """Stop a chunk whose first call without an outcome was that, and had begun, for too long."""
        await self._reckoner.take_in(running)
        now = self._clock()
        if running.since is None:
            running.since = now if running.journal.path.exists() else None
        elif now - running.since > timeout_seconds and running.left and not running.stop.done():
            failure = Failure(Cause.TIMED_OUT, "", f"It ran longer than its timeout of {timeout_seconds:g} s and was stopped.")
            running.overdue = running.left[0]
            # A task may end in good order when it is told to; nothing should begin after it then.
            self._shop.executors.recall(running.number)
            running.stop.set_result(Stop(TimedOut(failure), GRACE_SECONDS))
