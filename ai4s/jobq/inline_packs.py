"""The packs of inline mode: run at once, on the thread of whoever maps, through the real input, log and dead letters.

What a worker does around a pack is left out, for there is no message: leases, splits, marks. Its calls have the budgets of a
worker's, and follow each other without delay.

Next: `worker/chunks.py`, which runs the calls; `worker/reckoning.py`, which draws the consequences.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from . import layout
from .batches import BatchLedger
from .client import Client
from .errors import JobQError, Malformed
from .ledger import Ledger
from .message import BatchMeta, Call, PackHeader, Pool, Spill
from .packing import PackInput, packed
from .running import running_kept
from .transports.base import Delivery, Queue, Receipt
from .worker.chunks import ChunkRun
from .worker.counts import Counts
from .worker.execution import Execution
from .worker.jobs import Chunk, Kind, Report
from .worker.lease import Lease
from .worker.pack_calls import PackCalls
from .worker.pack_checkpoints import PackCheckpoints
from .worker.pack_log import PackLog, Writer
from .worker.reckoning import Dealt, Reckoner, RunningChunk
from .worker.scratch import JobFiles

T = TypeVar("T")

CALLS_A_CHUNK = 256
NEVER_LATE = float("inf")


class _NoLease(Lease):
    """Of a pack that has no message: nobody can take it, and what fails is for whoever runs the test to see."""

    def __init__(self, queue: Queue, delivery: Delivery) -> None:
        super().__init__(queue, delivery, clock=lambda: delivery.received_at)

    async def patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        return await step()


@dataclass(frozen=True, slots=True)
class InlinePack:
    """A pack on its way, and what it needs."""

    header: PackHeader
    meta: BatchMeta
    input: PackInput
    calls: PackCalls
    log: PackLog
    reckoner: Reckoner

    @property
    def call(self) -> Call:
        """What its calls have in common."""
        header = self.header
        return replace(self.meta.call, python=header.python, sent=header.sent, run=header.run)


@dataclass(frozen=True, slots=True)
class InlinePacks:
    """Runs packs with `execution`, one after the other; `folder` is for files."""

    client: Client
    folder: Path
    execution: Execution
    worker: str
    numbers: Callable[[], int]
    _taken: deque[PackHeader] = field(default_factory=deque)

    async def take(self, ledger: Ledger, pack: PackHeader, /, delay_seconds: float = 0) -> None:
        """Take a pack in place of its queue, by way of its message's text."""
        taken = ledger.wire.unseal_message(ledger.sealed_pack(pack), pack.queue)
        assert isinstance(taken, PackHeader)
        self._taken.append(taken)

    def run_taken(self) -> None:
        """Run what was taken. Several threads share the packs; each pack is run by one."""
        while self._taken:
            try:
                header = self._taken.popleft()
            except IndexError:  # taken by another thread between the two
                return
            self._run(header)

    def _run(self, header: PackHeader) -> None:
        pack, number = self.client.run(partial(self._opened, header)), self.numbers()
        while indices := pack.calls.deal(pack.meta.vector or CALLS_A_CHUNK):
            files = JobFiles(number, self.folder)
            files.remove()  # those of the chunk before
            chunk = self.client.run(partial(self._chunk, pack, indices, files))
            running = self.client.run(partial(_begun, files, indices))
            with running_kept():
                report = self._report(ChunkRun(chunk, self.execution), pack.call.pool)
            self.client.run(partial(_settled, pack, running, report))

    def _report(self, run: ChunkRun, pool: Pool) -> Report:
        if pool is not Pool.ASYNC:
            return run.run()
        reports: list[Report] = []
        # A thread of its own: there may be a running loop on this one, as in a notebook.
        thread = threading.Thread(target=lambda: reports.append(asyncio.run(run.arun())))
        thread.start()
        thread.join()
        return reports[0]

    async def _opened(self, header: PackHeader, ledger: Ledger) -> InlinePack:
        batch, calls, counts = BatchLedger(ledger, header.batch), PackCalls.of(header), Counts()
        now = await ledger.transport.server_time()
        meta = await batch.meta()
        if meta is None:
            raise Malformed(f"There is no batch {header.batch!r}.")
        delivery = Delivery(Receipt("", ""), "", dequeue_count=1, inserted=now, server_time=now, received_at=now)
        lease, token = _NoLease(await ledger.queue(header.queue), delivery), secrets.token_hex(8)
        log = PackLog(batch, header, calls, lease=lease, writer=Writer(self.worker, counts, lambda: now, 0.0))
        if header.resent:
            await log.catch_up()
        found = await batch.input(header)
        calls.single = frozenset(header.first + place for place in found.spilled)
        checkpoints = PackCheckpoints(ledger, header, calls, lease=lease, token=token)
        dealt = Dealt(header, meta, found, calls, checkpoints, delivery, lease, token, counts)
        return InlinePack(header, meta, found, calls, log, Reckoner(ledger, lambda: now, dealt))

    async def _chunk(self, pack: InlinePack, indices: list[int], files: JobFiles, ledger: Ledger) -> Chunk:
        call, places = pack.call, [index - pack.header.first for index in indices]
        large = pack.input.spilled.get(places[0])
        if large is not None:
            await self._fetch(ledger, pack, large, files.arguments)
        common = None
        if isinstance(call.arguments, Spill):
            common = self.folder / f"common-{call.arguments.sha256}"
            if not common.exists():
                await self._fetch(ledger, pack, call.arguments, common)
        function = None if call.function is None else self.folder / call.function
        if call.function is not None and function is not None and not function.exists():
            await ledger.payload_to(call.function, function)
        return Chunk(
            files.number,
            call,
            first=pack.header.first,
            places=packed(places),
            attempts=packed(_attempts(pack.calls, indices)),
            pieces=() if large else tuple(pack.input.pieces(places)),
            journal_path=str(files.journal),
            value_path=str(files.value),
            checkpoint_path=str(files.checkpoint),
            vector=bool(pack.meta.vector),
            arguments_path=str(files.arguments) if large else None,
            common_path=None if common is None else str(common),
            function_path=None if function is None else str(function),
        )

    async def _fetch(self, ledger: Ledger, pack: InlinePack, spilled: Spill, path: Path) -> None:
        await ledger.spilled_to(layout.batch_arguments(pack.header.batch, spilled.sha256), spilled, path)


def _attempts(calls: PackCalls, indices: Iterable[int]) -> list[int]:
    charges = map(calls.charge_of, indices)
    return [1 + each.errors + each.deaths + each.preemptions for each in charges]


async def _begun(files: JobFiles, indices: list[int], ledger: Ledger) -> RunningChunk:
    return RunningChunk.of(files, indices, asyncio.get_running_loop().create_future(), 0.0)


async def _settled(pack: InlinePack, running: RunningChunk, report: Report, ledger: Ledger) -> None:
    """Keep what came of a chunk, and have its retries follow."""
    if report.kind is Kind.HINDERED and report.failure is not None:
        raise OSError(report.failure.message)
    await pack.reckoner.take_in(running)
    pack.reckoner.conclude(running, report)
    if pack.reckoner.put_aside is not None:
        raise JobQError(f"Batch {pack.header.batch} of {pack.call.task} cannot be run inline: the app has no such task.")
    pack.calls.wake(NEVER_LATE)
    await pack.log.append()
