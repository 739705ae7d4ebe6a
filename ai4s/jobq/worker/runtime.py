"""A worker put together: one ledger, its children, its leases, and the loop that fetches until it is told to stop.

Every task here belongs to a task group that awaits it. Whatever ends the loop, what has not begun goes back to the queue,
children end, and connections are closed, in that order.

Next: `poller.py`, then `attempt.py`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..clock import boottime
from ..config import read_settings
from ..errors import ConfigurationError, JobQError, TransportError
from ..ledger import Ledger
from ..message import Pool
from ..requests_made import Requests, charged_to
from ..signing import Keyring
from ..telemetry.working import Port, Telemetry
from ..transports import open_transport
from ..transports.base import Delivery
from ..transports.place import parse_place
from .attempt import Attempts
from .call_logs import CallLogs
from .counts import Counts
from .devices import Hardware, machine
from .duties import Duties
from .executors import Executors
from .interruptions import Interruptions
from .jobs import ChildSetup, Notice, Ready, Served
from .lease import USUAL_TERMS, LeaseKeeper, Terms
from .limits import ChildLimits
from .memory import use_one_heap
from .metering import keep_metered, metered
from .orders import Orders, Ways
from .poller import Line, Poller, parse_queues
from .preemption import follow_notices, metadata_url
from .scratch import Scratch, scratch_folder
from .shutdown import Shutdown, Why
from .slots import Slots
from .status import Status
from .tidying import Tidying
from .workshop import Workshop

log = logging.getLogger("ai4s.jobq.worker")

YOUNG_OBJECTS = 20_000
"""Between two looks of the garbage collector; Python's default is 700. Some MiB at most."""

MOST_HINDRANCES = 5
"""So many attempts in a row that this machine could not begin, and the worker ends: it would only keep calls from others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a worker is to work. Seconds; None means for ever.

    `until_idle_seconds` ends it after so long without work; `until_empty` when its queues are empty, invisible messages included.
    `most_messages` ends it after so many, or as soon as there is none to be had. More than `max_failures_in_a_row` attempts that
    fail one after the other end it as broken: a machine that fails fast takes most of the work. `terms` is how leases are.
    """

    setup: ChildSetup
    queues: tuple[str, ...]
    concurrency: int
    async_concurrency: int
    until_empty: bool = False
    until_idle_seconds: float | None = None
    time_limit_seconds: float | None = None
    by_value: bool = True
    limits: ChildLimits = ChildLimits()  # noqa: RUF009  # frozen
    terms: Terms = USUAL_TERMS
    most_messages: int | None = None
    max_failures_in_a_row: int | None = None
    hardware: Hardware = field(default_factory=machine)
    metrics: Port | None = None


class Worker:
    """A running worker; made ready by `run_worker`."""

    def __init__(self, plan: Plan, poller: Poller, attempts: Attempts, *, workshop: Workshop, shutdown: Shutdown) -> None:
        self._plan, self._poller, self._attempts, self._shutdown = plan, poller, attempts, shutdown
        self._slots, self._tell, self.counts = workshop.slots, workshop.executors.tell, workshop.counts
        self.calls = workshop.current.longest_first
        self._last_work = boottime()
        self._taking = False
        self._runs: set[asyncio.Task[None]] = set()
        self._empty_looks = 0
        self._taken = 0
        self.gave_up: JobQError | None = None
        """Why this machine is not to go on."""
        self.counts.on_failure = self._give_up_if_broken

    def numbers(self) -> Mapping[str, int]:
        """Counts for the status."""
        return {"slots": self._slots.total, "running": self._slots.running, **self.counts.numbers()}

    def queues(self) -> Sequence[str]:
        """The queues that it serves."""
        return list(dict.fromkeys(line.name for line in self._poller.lines))

    def batches(self) -> Mapping[str, int]:
        """How many calls of each batch run now."""
        return self._attempts.running_batches()

    def trouble(self) -> str:
        """What keeps it from its queues."""
        return "; ".join(dict.fromkeys(line.trouble for line in self._poller.lines if line.trouble))

    async def work(self) -> None:
        """Fetch and run until told to stop; returns when everything is settled or given back."""
        limit, shutdown = self._plan.time_limit_seconds, self._shutdown
        if limit is not None:
            asyncio.get_running_loop().call_later(limit, shutdown.drain, "The time limit is reached", Why.PREEMPTED)
        async with asyncio.TaskGroup() as group:
            while not shutdown.ending.is_set():
                self._slots.open()
                self._taking, self._last_work = True, boottime()
                fetching = group.create_task(self._fetch(group))
                await shutdown.draining.wait()
                # Not asked of the event by those who fetch: a notice may be withdrawn before they look.
                self._taking = False
                self._slots.close()
                self._tell(Notice(preempted=True))
                await asyncio.gather(fetching, shutdown.until_turned())
                self._tell(Notice(preempted=shutdown.ending.is_set()))

    async def cut_short(self) -> None:
        """Once the worker is out of time, wait for no attempt any more."""
        await self._shutdown.over.wait()
        if self._runs:
            log.error("%d messages could not be settled in time and will be delivered again.", len(self._runs))
        for run in self._runs:
            run.cancel()

    async def _fetch(self, group: asyncio.TaskGroup) -> None:
        while self._taking:
            if self._slots.room() == 0 or self._shutdown.draining.is_set():
                await self._shutdown.unless_draining(self._slots.until_room())
            if not self._taking or self._shutdown.draining.is_set():
                continue
            # Not to be cancelled before: messages that were received and not given back would be hidden until their lease ends.
            found = await self._shutdown.unless_over(self._poller.fetch(self._room()))
            if found is not None:
                self._begin(group, *found)
                # The attempts must count themselves before the next fetch asks for room.
                await asyncio.sleep(0)
                await self._end_if_all_taken()
            elif await self._shutdown.unless_draining(self._is_over()):
                self._shutdown.drain("There is nothing left to do")
            else:
                await self._shutdown.unless_draining(self._poller.rest())

    def _begin(self, group: asyncio.TaskGroup, line: Line, deliveries: Sequence[Delivery]) -> None:
        self._taken += len(deliveries)
        for place, delivery in enumerate(deliveries):
            # The receive is charged to the first of those that it brought.
            with charged_to(Requests({"queue_receive": 1} if place == 0 else {})):
                run = group.create_task(self._run(line, delivery))
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)
        self._last_work = boottime()

    async def _run(self, line: Line, delivery: Delivery) -> None:
        try:
            await self._attempts.run(line.queue, line.name, delivery)
        except Exception:  # a defect of ours in one attempt must not end the others: its message comes again
            log.exception("Message %s hit a defect of the worker; it will be delivered again.", delivery.receipt.message_id)
        self._last_work = boottime()
        self._give_up_if_broken()

    def _give_up_if_broken(self) -> None:
        counts, most_failures = self._attempts.counts, self._plan.max_failures_in_a_row
        if self.gave_up is not None:
            return
        if counts.hindered >= MOST_HINDRANCES:
            self.gave_up = ConfigurationError(
                "The worker could not begin calls any more; the log says why. They went back to their queues."
            )
            self._shutdown.drain(f"{MOST_HINDRANCES} attempts in a row could not even begin on this machine")
        elif most_failures is not None and counts.failures_in_a_row > most_failures:
            self._slots.close()  # now: the next one waits for the slot of this one
            failures = f"{counts.failures_in_a_row} attempts in a row failed"
            self.gave_up = JobQError(f"{failures}, which --max-consecutive-failures takes for a broken machine; the log says why.")
            self._shutdown.drain(failures)

    def _room(self) -> int:
        """How many messages may be fetched now."""
        room, most = self._slots.room(), self._plan.most_messages
        return room if most is None else min(room, most - self._taken)

    async def _end_if_all_taken(self) -> None:
        if self._plan.most_messages is not None and self._taken >= self._plan.most_messages:
            # Not at once: who ends gives back what has not begun.
            await self._shutdown.unless_draining(self._until_settled())
            self._shutdown.drain("That is all it was to take")

    async def _until_settled(self) -> None:
        await asyncio.wait(set(self._runs))

    async def _is_over(self) -> bool:
        if self._plan.most_messages is not None:
            log.info("No message is to be had now.")
            return True
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
        # A queue that may not be received from is not known to be worked off.
        is_empty = depth <= len(refused) and not self.trouble()
        self._empty_looks = self._empty_looks + 1 if is_empty else 0
        return self._empty_looks >= 2


async def run_worker(plan: Plan, *, ready: Callable[[], None], shutdown: Shutdown) -> None:
    """Work as planned until told to stop; calls `ready` once messages can be taken.

    Raises ConfigurationError if the target cannot be imported or the place cannot be used, TransportError if it cannot be
    reached at the start; from then on faults of the storage are waited out.
    """
    use_one_heap()
    _calm_collector()
    with scratch_folder() as folder:
        async with shutdown.listening(), AsyncExitStack() as stack:
            sizes = {"concurrency": plan.concurrency, "async_concurrency": plan.async_concurrency}
            executors = Executors(plan.setup, plan.limits, **sizes, hardware=plan.hardware)
            stack.push_async_callback(_end_children, executors, shutdown)
            first = await shutdown.unless_draining(executors.first())
            if first is None:
                return
            assert first.served is not None
            ledger = await shutdown.unless_draining(_open_ledger(first.served, stack, shutdown))
            if ledger is None:
                return
            groups = parse_queues(ledger.app, plan.queues or [",".join(first.queues)])
            metering = metered(ledger.app, plan.setup.worker, plan.metrics, settings=read_settings(), shutdown=shutdown)
            telemetry = await stack.enter_async_context(metering)
            poller = await shutdown.unless_draining(Poller.open(ledger, groups, plan.terms, telemetry=telemetry))
            if poller is None:
                return
            place, ttl = parse_place(first.served.url).label, first.served.result_ttl_seconds
            await _serve(plan, _Parts(executors, ledger, poller, _tasks(first), place, folder, ttl, telemetry), shutdown, ready)


def _calm_collector() -> None:
    """Have the garbage collector look at what is new, more rarely: outcomes come by the thousand, and hold no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


async def _end_children(executors: Executors, shutdown: Shutdown) -> None:
    """In good order while there is time, and then at once."""
    await shutdown.unless_over(executors.close())
    if shutdown.over.is_set():
        await executors.close(at_once=True)


async def _open_ledger(served: Served, stack: AsyncExitStack, shutdown: Shutdown) -> Ledger:
    transport = await open_transport(parse_place(served.url), environ=read_settings().environ)
    stack.push_async_callback(lambda: shutdown.unless_over(transport.close()))
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
    result_ttl_seconds: float | None
    telemetry: Telemetry


async def _serve(plan: Plan, parts: _Parts, shutdown: Shutdown, ready: Callable[[], None]) -> None:
    notices_url = metadata_url(read_settings().metadata_url)
    workshop = await shutdown.unless_draining(_workshop(plan, parts, shutdown))
    if workshop is None:
        return
    attempts = Attempts(workshop)
    worker = Worker(plan, parts.poller, attempts, workshop=workshop, shutdown=shutdown)
    status = Status(parts.ledger, plan.setup.worker, worker, environment=read_settings().environment_name)
    tidying = Tidying(parts.ledger, parts.result_ttl_seconds, lambda: not (workshop.slots.busy or shutdown.draining.is_set()))
    _announce(plan, parts)
    async with asyncio.TaskGroup() as upkeep:
        duties = (
            workshop.leases.keep(),
            workshop.orders.keep(),
            workshop.executors.watch(),
            status.keep(shutdown.draining),
            _leave(shutdown, workshop.interruptions),
            follow_notices(notices_url, shutdown),
            worker.cut_short(),
            tidying.keep(),
            keep_metered(workshop, parts.poller),
            workshop.logs.keep(),
        )
        keeping = [upkeep.create_task(duty) for duty in duties]
        ready()
        try:
            await worker.work()
        finally:
            for task in keeping:
                task.cancel()
    await shutdown.unless_over(workshop.logs.finish())
    await shutdown.unless_over(status.write("stopped"))
    told = ", ".join(f"{number} {name}" for name, number in worker.numbers().items() if name not in ("slots", "running"))
    log.info("Worker %s ends: %s", plan.setup.worker, told)
    if worker.gave_up is not None:
        raise worker.gave_up


async def _workshop(plan: Plan, parts: _Parts, shutdown: Shutdown) -> Workshop:
    interruptions = Interruptions()
    orders = Orders(parts.ledger, parts.poller.lines, ways=Ways(interruptions, shutdown))
    await orders.read()
    return Workshop(
        parts.ledger,
        Duties(plan.setup.worker, parts.tasks, plan.by_value, plan.hardware),
        parts.executors,
        Slots(parts.executors.sizes, set(parts.tasks.values()), hardware=plan.hardware),
        Scratch(parts.folder, parts.ledger, cache_bytes=read_settings().cache_bytes),
        LeaseKeeper(boottime, plan.terms),
        interruptions,
        orders,
        counts=Counts(watchers=(parts.telemetry,) if parts.telemetry.is_on else ()),
        telemetry=parts.telemetry,
        logs=CallLogs(parts.ledger, plan.setup.worker),
    )


async def _leave(shutdown: Shutdown, interruptions: Interruptions) -> None:
    while True:
        await shutdown.leaving.wait()
        interruptions.leave()
        await shutdown.until_turned()
        if shutdown.ending.is_set():
            return
        interruptions.stay()


def _announce(plan: Plan, parts: _Parts) -> None:
    ledger, place = parts.ledger, parts.place
    names = ", ".join(sorted(parts.tasks))
    queues = ", ".join(line.name for line in parts.poller.lines)
    log.info("Worker %s serves app %s at %s, queues %s: %s", plan.setup.worker, ledger.app, place, queues, names)
    log.info("Its calls share %s.", plan.hardware)
    if not ledger.wire.keyring:
        log.info("No signing key is set: whoever may write to this place can run code here. JOBQ_SIGNING_KEYS changes that.")
