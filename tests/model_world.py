"""One app in memory with workers and producers whose every storage request waits to be let go, and what must hold at each of them.

The attempts, leases, checkpoints, submissions and handles are the real ones; only children, network and time are made up.
A `Gate` holds requests and executions; who lets them go is in `model_machine.py`.

Next: `model_machine.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from failure_points import QUEUE, Fault, Process, World
from memory_transport import MemoryPlace, MemoryTransport
from virtual_time import EPOCH_SECONDS, VirtualLoop

from ai4s.jobq import layout
from ai4s.jobq.lifecycle import MAX_IDLE_PREEMPTIONS
from ai4s.jobq.message import Call, Cause, Outcome, State
from ai4s.jobq.transports.base import Delivery

Run = tuple[str, int]
Promise = Callable[[Run], None]


class Fate(StrEnum):
    """What an execution comes to, as far as its worker can tell."""

    RETURNS = "returns"
    RAISES = "raises"
    RAISES_FOR_GOOD = "raises what is not retried"
    ASKS_AGAIN = "raises Retry with a delay"
    TIMES_OUT = "is stopped at its timeout"
    DIES = "takes its process with it"
    PREEMPTED = "is preempted"
    GIVEN_BACK = "gives itself back"
    DISTURBED = "is ended on purpose with its process"
    SUSPECTED = "shared a process that died"
    HINDERED = "cannot begin"
    SAVES = "saves a checkpoint, and goes on"
    STOPPED = "is stopped by an order"


ERRORS = {Fate.RAISES, Fate.RAISES_FOR_GOOD, Fate.ASKS_AGAIN, Fate.TIMES_OUT}
PREEMPTIONS = {Fate.PREEMPTED, Fate.GIVEN_BACK}


@dataclass(eq=False)
class Turn:
    """Something that waits to be let go: a request (or its answer, if that is late), or an execution."""

    process: Process
    label: str
    to_go: asyncio.Future[Any]


class Gate:
    """Where everything waits, in the order in which it came."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []

    async def reach(self, process: Process, label: str) -> Fault | None:
        """A request."""
        return cast("Fault | None", await self._wait(Turn(process, label, asyncio.get_running_loop().create_future())))

    async def run(self, process: Process, stop: asyncio.Future[Any]) -> Fate:
        """An execution, which an order may end as well."""
        turn = Turn(process, "run", asyncio.get_running_loop().create_future())

        def end(_: object) -> None:
            if not turn.to_go.done():
                turn.to_go.set_result(Fate.STOPPED)

        stop.add_done_callback(end)
        try:
            return cast("Fate", await self._wait(turn))
        finally:
            stop.remove_done_callback(end)

    async def _wait(self, turn: Turn) -> Any:
        self.turns.append(turn)
        try:
            return await turn.to_go
        finally:
            self.turns.remove(turn)


@dataclass(eq=False)
class Received:
    """One delivery as the world saw it. `disturbed`: something went wrong with its worker, or with time, while it lasted."""

    worker: Process
    delivery: Delivery
    call: Call
    had_ended: bool
    kept: int
    task: asyncio.Task[Any] | None
    disturbed: bool = False
    executed: bool = False

    @property
    def run(self) -> Run:
        return self.call.id, self.call.run

    @property
    def message_id(self) -> str:
        return self.delivery.receipt.message_id

    @property
    def came_again(self) -> bool:
        return self.delivery.dequeue_count > 1 or self.call.resent


@dataclass(eq=False)
class Execution:
    """One execution; `progress` counts the checkpoints that led to it, its own included."""

    number: int
    call: Call
    received: Received
    progress: int = 0
    fate: Fate | None = None

    @property
    def value(self) -> bytes:
        return b"%d" % self.number


@dataclass
class History:
    """What has happened to one run, beside what lies in storage."""

    executions: int = 0
    fates: Counter[Fate] = field(default_factory=Counter)
    disturbed: int = 0

    def count(self, fates: set[Fate]) -> int:
        return sum(self.fates[fate] for fate in fates)


class ModelWorld(World):
    """The storage in memory, and the checks that are made at every request."""

    def __init__(self, loop: VirtualLoop, folder: Path) -> None:
        self.loop = loop
        self.place = MemoryPlace(server_clock=loop.server_time, clock=loop.time)
        super().__init__(MemoryTransport(self.place), folder, "model")
        self.histories: dict[Run, History] = {}
        self.executions: list[Execution] = []
        self.messages: dict[str, str] = {}
        self.sent: Counter[Run] = Counter()
        self.kept: Counter[str] = Counter()
        """By message: the progress of the last checkpoint that its task knows to be kept."""
        self.violations: list[str] = []
        self.cancelled: set[str] = set()
        self.forgotten: set[str] = set()
        self.purged: set[str] = set()
        """Calls of which somebody asked that."""

    @property
    def blobs(self) -> dict[str, Any]:
        return self.place.containers[layout.container_name(self.app)]

    @property
    def box(self) -> Any:
        return self.place.queues[layout.queue_name(self.app, QUEUE)]

    @property
    def true_server_time(self) -> float:
        """With its fractions."""
        return EPOCH_SECONDS + self.loop.now

    def claim(self, holds: object, what: str) -> None:
        """Note a promise that is broken; raising here might be taken for a fault by who is tested."""
        if not holds:
            self.violations.append(what)

    def history(self, run: Run) -> History:
        return self.histories.setdefault(run, History())

    def took(self, label: str, body: str | None) -> None:
        self.done.append(label)

    # after every request that may have changed something

    async def look(self) -> None:
        self.check()

    def check(self) -> None:
        """Compare what lies there with what lay there before."""
        changed, self.place.changed[:] = list(dict.fromkeys(self.place.changed)), []
        checks = {"results": self._check_outcome, "failed": self._check_letter, "checkpoints": self._check_checkpoints}
        for name in changed:
            if check := checks.get(name.partition("/")[0]):
                check(name)
        messages = {message_id: message.body for message_id, message in self.box.messages.items()}
        before, self.messages = self.messages, messages
        for message_id, body in before.items():
            if message_id not in messages:
                self._check_gone(self.call_in(body))
        for message_id, body in messages.items():
            if before.get(message_id) != body:
                self._check_body(self.call_in(body), is_new=message_id not in before)

    def call_in(self, body: str) -> Call:
        return self.ledger.wire.unseal_call(body, QUEUE)

    def ended(self, call: Call) -> bool:
        """Whether there is an outcome of the run, or a tombstone in its place."""
        return layout.result(call.id, call.run) in self.seen

    def _check_outcome(self, name: str) -> None:
        kept, before = self.blobs.get(name), self.seen.get(name)
        self.claim(kept is not None, f"{name} has vanished")
        self.claim(name in self.calls, f"{name} is the outcome of a call that nobody made")
        if kept is None or name not in self.calls:
            return
        found = (kept.info.etag, kept.data)
        call = self.calls[name]
        if before is not None and before != found:
            self.claim(call.id in self.forgotten and not kept.data, f"{name} has changed after it could be read")
        # Who forgets a call again, after he was cut short, forgets the run as well that somebody asked for in between.
        forgotten_on_the_way = call.run > 1 and call.id in self.forgotten
        self.claim(kept.data or before or forgotten_on_the_way, f"{name} was never anything but a tombstone")
        self.seen[name] = found

    def _check_letter(self, name: str) -> None:
        self.claim(name in self.blobs, f"the dead letter {name} has vanished")
        self.letters.add(name)
        of = {self._letter(other): other for other, found in self.seen.items() if self._state(other, found) in (State.FAILED, None)}
        self.claim(name in of, f"{name} is the dead letter of a run that has not failed")
        if name in of and name in self.blobs and not self.blobs[name].data:
            call = self.calls[of[name]]
            laid_down = self.sent[call.id, call.run + 1] or call.id in self.purged | self.forgotten
            self.claim(laid_down, f"{name} is laid down, and neither was it purged nor its next run sent")

    def _check_gone(self, call: Call) -> None:
        """A message may go only when all that follows from its run is durable."""
        name = layout.result(call.id, call.run)
        self.claim(name in self.seen, f"a message is gone, and {name} is not there")
        if name in self.seen and self._state(name, self.seen[name]) is State.FAILED:
            self.claim(self._letter(name) in self.letters, f"a message is gone, and {name} has no dead letter")

    def _check_body(self, call: Call, *, is_new: bool) -> None:
        if is_new:
            self._check_sent(call)
            return
        self._check_budgets(call)
        self._check_checkpoint(call)

    def _check_sent(self, call: Call) -> None:
        """A later run may be sent only after the one before it has failed."""
        self.claim(call.resent or not self.sent[call.id, call.run], f"a copy of {call.id} does not say that it is one")
        self.sent[call.id, call.run] += 1
        if call.run > 1:
            self.calls.setdefault(layout.result(call.id, call.run), call)
            before = self.seen.get(layout.result(call.id, call.run - 1))
            state = None if before is None else self._state(layout.result(call.id, call.run - 1), before)
            fine = before is not None and (state is State.FAILED or call.id in self.forgotten)
            self.claim(fine, f"run {call.run} of {call.id} is sent, and run {call.run - 1} has not failed")
            self._check_checkpoint(call)

    def _check_checkpoints(self, _: str) -> None:
        for body in self.messages.values():
            self._check_checkpoint(self.call_in(body))

    def _check_checkpoint(self, call: Call) -> None:
        """What a message says a call may go on from must be there as long as the call may go on."""
        last = call.checkpoint
        if last is not None and not self.ended(call):
            name = layout.checkpoint(call.id, last.token, last.number)
            self.claim(name in self.blobs, f"{name} is named in a message, and is gone")

    def _check_budgets(self, call: Call) -> None:
        history = self.history((call.id, call.run))
        since = call.checkpoint
        self.claim(call.errors <= call.retries, "more errors than retries allow")
        self.claim(call.errors <= history.count(ERRORS), "errors that never happened are charged")
        self.claim(call.deaths - (since.deaths if since else 0) < call.max_deaths, "more deaths than allowed")
        self.claim(call.deaths <= history.fates[Fate.DIES] + history.disturbed, "deaths that never happened are charged")
        idle_preemptions = call.preemptions - (since.preemptions if since else 0)
        self.claim(idle_preemptions < MAX_IDLE_PREEMPTIONS, "more preemptions than allowed")
        self.claim(call.preemptions <= history.count(PREEMPTIONS), "preemptions that never happened are charged")

    # deliveries and executions

    def received(self, worker: Process, delivery: Delivery) -> Received:
        """Note a delivery as it begins."""
        call = self.call_in(delivery.body)
        return Received(worker, delivery, call, self.ended(call), self.kept[delivery.receipt.message_id], asyncio.current_task())

    def disturb(self, received: Received) -> None:
        """Note that something goes wrong while a delivery lasts."""
        if not received.disturbed:
            received.disturbed = True
            self.history(received.run).disturbed += 1

    def begin(self, received: Received, call: Call) -> Execution:
        """Note an execution, and check that there is a reason for it."""
        run, delivery = received.run, received.delivery
        history = self.history(run)
        had_ended = received.came_again and received.had_ended
        self.claim(not had_ended, f"{run} is executed although it had ended when its message came again")
        self.claim(self._killed(received) < call.max_deaths, f"{run} is executed after it has died too often")
        execution = Execution(len(self.executions), call, received)
        self.executions.append(execution)
        self.claim(not received.executed, f"{run} is executed twice in one delivery")
        received.executed = True
        history.executions += 1
        self._check_budgets(call)
        # An execution has a reason: its message, the way an earlier one ended, or a delivery that went wrong.
        ends = sum(count for fate, count in history.fates.items() if fate is not Fate.RETURNS)
        most = self.sent[run] + ends + history.disturbed
        self.claim(history.executions <= most, f"{run} is executed {history.executions} times, and there are {most} reasons")
        now = self.true_server_time
        self.claim(call.eta is None or now >= call.eta - 1, f"{run} is executed before its time")
        self.claim(call.expires is None or delivery.server_time < call.expires, f"{run} is executed after it expired")
        return execution

    def _killed(self, received: Received) -> int:
        """How often the worker that ran this message was killed meanwhile; without the first time, and none after progress."""
        of_message = [each for each in self.executions if each.received.message_id == received.message_id]
        if any(each.progress for each in of_message):
            return 0
        return sum(each.received.came_again and each.fate is None and not each.received.worker.alive for each in of_message)


def cause_is_real(outcome: Outcome, world: ModelWorld) -> bool:
    """Whether a failure says what has happened."""
    history, failure = world.history((outcome.call, outcome.run)), outcome.failure
    call = world.calls[layout.result(outcome.call, outcome.run)]
    if failure is None:
        return False
    if failure.cause is Cause.NEVER_FITS:
        return history.count(PREEMPTIONS) >= MAX_IDLE_PREEMPTIONS
    if failure.message.isdigit():
        execution = world.executions[int(failure.message)]
        if execution.received.run != (outcome.call, outcome.run):
            return False
        if failure.cause is not Cause.DIED:
            return execution.fate is Fate.RAISES_FOR_GOOD or (execution.fate in ERRORS and execution.call.errors == call.retries)
    return failure.cause is Cause.DIED and history.fates[Fate.DIES] + history.disturbed >= call.max_deaths
