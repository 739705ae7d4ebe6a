"""A worker put together: one ledger, its children, its leases, and the loop that fetches until it is told to stop.

Every task here belongs to a task group that awaits it. Whatever ends the loop, what has not begun goes back to the queue,
children end, and connections are closed, in that order.

Next: `poller.py`, then `attempt.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from ..clock import boottime
from ..config import read_settings
from ..errors import ConfigurationError, TransportError
from ..ledger import Ledger
from ..message import Pool
from ..signing import Keyring
from ..transports import open_transport
from ..transports.base import Delivery
from ..transports.place import parse_place
from .attempt import Attempts, Workshop
from .duties import Duties
from .executors import Executors
from .jobs import ChildSetup, Ready, Served
from .lease import LeaseKeeper
from .poller import Line, Poller, parse_queues
from .scratch import Scratch, scratch_folder
from .shutdown import Shutdown
from .slots import Slots
from .status import Status

log = logging.getLogger("ai4s.jobq.worker")

MOST_HINDRANCES = 5
"""So many attempts in a row that this machine could not begin, and the worker ends: it would only keep calls from others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a worker is to work. Seconds; None means for ever.

    `until_idle_seconds` ends it after so long without work; `until_empty` when its queues are empty, invisible messages included.
    """

    setup: ChildSetup
    queues: tuple[str, ...]
    concurrency: int
    async_concurrency: int
    until_empty: bool = False
    until_idle_seconds: float | None = None
    time_limit_seconds: float | None = None
    grace_seconds: float = 30.0
    by_value: bool = True


class Worker:
    """A running worker; made ready by `run_worker`."""

    def __init__(self, plan: Plan, poller: Poller, attempts: Attempts, slots: Slots, *, shutdown: Shutdown) -> None:
        self._plan, self._poller, self._attempts, self._slots = plan, poller, attempts, slots
        self._shutdown = shutdown
        self._last_work = boottime()
        self._empty_looks = 0
        self.gave_up = False

    def numbers(self) -> Mapping[str, int]:
        """Counts for the status."""
        counts = self._attempts.counts
        return {
            "slots": self._slots.total,
            "running": self._slots.running,
            "succeeded": counts.succeeded,
            "failed": counts.failed,
            "retried": counts.retried,
            "lost": counts.lost,
        }

    async def work(self) -> None:
        """Fetch and run until told to stop; returns when everything is settled or given back."""
        async with asyncio.TaskGroup() as group:
            limit = self._plan.time_limit_seconds
            if limit is not None:
                asyncio.get_running_loop().call_later(limit, self._shutdown.drain, "The time limit is reached")
            group.create_task(self._fetch(group))
            await self._shutdown.draining.wait()
            self._slots.close()

    async def _fetch(self, group: asyncio.TaskGroup) -> None:
        while not self._shutdown.draining.is_set():
            await self._shutdown.unless_draining(self._slots.until_room())
            if self._shutdown.draining.is_set():
                return
            # Not to be cancelled: messages that were received and not given back would be hidden until their lease ends.
            found = await self._poller.fetch(self._slots.room())
            if found is not None:
                for delivery in found[1]:
                    group.create_task(self._run(found[0], delivery))
                self._last_work = boottime()
                # The attempts must count themselves before the next fetch asks for room.
                await asyncio.sleep(0)
            elif await self._is_over():
                self._shutdown.drain("There is nothing left to do")
            else:
                await self._shutdown.unless_draining(self._poller.rest())

    async def _run(self, line: Line, delivery: Delivery) -> None:
        try:
            await self._attempts.run(line.queue, line.name, delivery)
        except Exception:  # a defect of ours in one attempt must not end the others: its message comes again
            log.exception("Message %s hit a defect of the worker; it will be delivered again.", delivery.receipt.message_id)
        self._last_work = boottime()
        if self._attempts.counts.hindered >= MOST_HINDRANCES:
            self.gave_up = True
            self._shutdown.drain(f"{MOST_HINDRANCES} attempts in a row could not even begin on this machine")

    async def _is_over(self) -> bool:
        if self._slots.busy:
            return False
        idle_seconds = self._plan.until_idle_seconds
        if idle_seconds is not None and boottime() - self._last_work > idle_seconds:
            return True
        return self._plan.until_empty and await self._is_empty_again()

    async def _is_empty_again(self) -> bool:
        """Whether the queues hold nothing but what this worker refused, twice in a row: Azure's count is approximate."""
        refused = self._attempts.counts.refused
        now = boottime()
        for message in [message for message, until in refused.items() if until < now]:
            del refused[message]
        try:
            depth = await self._poller.depth()
        except TransportError as exc:
            log.warning("The depth of the queues is not known: %s", exc)
            return False
        self._empty_looks = self._empty_looks + 1 if depth <= len(refused) else 0
        return self._empty_looks >= 2


async def run_worker(plan: Plan, *, ready: Callable[[], None], shutdown: Shutdown) -> None:
    """Work as planned until told to stop; calls `ready` once messages can be taken.

    Raises ConfigurationError if the target cannot be imported or the place cannot be used, TransportError if it cannot be
    reached at the start; from then on faults of the storage are waited out.
    """
    with scratch_folder() as folder:
        async with shutdown.listening(), AsyncExitStack() as stack:
            executors = Executors(plan.setup, concurrency=plan.concurrency, async_concurrency=plan.async_concurrency)
            stack.push_async_callback(executors.close)
            first = await shutdown.unless_draining(executors.first())
            if first is None:
                return
            assert first.served is not None
            ledger = await _open_ledger(first.served, stack)
            groups = parse_queues(ledger.app, plan.queues or [",".join(first.queues)])
            poller = await Poller.open(ledger, groups)
            place = parse_place(first.served.url).label
            await _serve(plan, _Parts(executors, ledger, poller, _tasks(first), place, folder), shutdown, ready)


async def _open_ledger(served: Served, stack: AsyncExitStack) -> Ledger:
    transport = await open_transport(parse_place(served.url), environ=read_settings().environ)
    stack.push_async_callback(transport.close)
    return Ledger(transport, served.app, Keyring(served.signing_keys), create=served.create)


def _tasks(first: Ready) -> dict[str, Pool]:
    pairs = (entry.rpartition("=") for entry in first.tasks)
    return {name: Pool(pool) for name, _, pool in pairs}


@dataclass(frozen=True, slots=True)
class _Parts:
    """What was opened, and what it serves."""

    executors: Executors
    ledger: Ledger
    poller: Poller
    tasks: Mapping[str, Pool]
    place: str
    folder: Path


async def _serve(plan: Plan, parts: _Parts, shutdown: Shutdown, ready: Callable[[], None]) -> None:
    slots = Slots(parts.executors.sizes, set(parts.tasks.values()))
    keeper = LeaseKeeper(boottime)
    duties = Duties(plan.setup.worker, parts.tasks, shutdown.leaving, plan.by_value)
    workshop = Workshop(parts.ledger, parts.executors, slots, Scratch(parts.folder, parts.ledger), keeper)
    attempts = Attempts(workshop, duties)
    worker = Worker(plan, parts.poller, attempts, slots, shutdown=shutdown)
    status = Status(parts.ledger, plan.setup.worker, worker.numbers)
    _announce(plan, parts)
    async with asyncio.TaskGroup() as upkeep:
        keeping = [upkeep.create_task(keeper.keep()), upkeep.create_task(status.keep())]
        ready()
        try:
            await worker.work()
        finally:
            for task in keeping:
                task.cancel()
    await status.write("stopped")
    told = ", ".join(f"{number} {name}" for name, number in worker.numbers().items() if name not in ("slots", "running"))
    log.info("Worker %s ends: %s", plan.setup.worker, told)
    if worker.gave_up:
        raise ConfigurationError("The worker could not begin calls any more; the log says why. They went back to their queues.")


def _announce(plan: Plan, parts: _Parts) -> None:
    ledger, place = parts.ledger, parts.place
    names = ", ".join(sorted(parts.tasks)) or "only calls that bring their code along"
    queues = ", ".join(line.name for line in parts.poller.lines)
    log.info("Worker %s serves app %s at %s, queues %s: %s", plan.setup.worker, ledger.app, place, queues, names)
    if not ledger.wire.keyring:
        log.info("No signing key is set: whoever may write to this place can run code here. JOBQ_SIGNING_KEYS changes that.")
