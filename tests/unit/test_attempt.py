"""One call, whatever goes wrong at whichever request: one outcome, a dead letter only for a failure, and nothing lost.

Each scenario is first played undisturbed, which counts its requests; then once for each request and fault, and once for each
fault with a death of the next worker after it. `World.look` checks what must hold at every moment, `play` what holds at the end.

Next: `failure_points.py`; for real processes that are killed, `acceptance/test_deaths.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from failure_points import (
    CLIENT,
    QUEUE,
    TASK,
    Crash,
    Fault,
    Numbered,
    Points,
    Process,
    Task,
    ThroughTransport,
    WorkerProcess,
    World,
    drain,
    opened,
)

from ai4s.jobq import App, Handle, layout
from ai4s.jobq import client as client_module
from ai4s.jobq.client import Client
from ai4s.jobq.errors import AlreadyExists, KeyConflict, ResultGone, Unreachable
from ai4s.jobq.handle import Sent
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.lifecycle import UNFIT_AGE_SECONDS, UNFIT_DELIVERIES, Died, Disturbed, Preempted, TimedOut
from ai4s.jobq.message import Call, Cause, Failure, Outcome, Spill, State
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.local.store import LocalStore
from ai4s.jobq.worker import attempt as attempt_module
from ai4s.jobq.worker.attempt import Attempt, Attempts
from ai4s.jobq.worker.executors import Ending
from ai4s.jobq.worker.jobs import Job, Kind, Report

VALUE = b"value"
LARGE = b"0123456789" * 7_000
RAISED = Failure(Cause.RAISED, "ValueError", "no")
DIED = Failure(Cause.DIED, "", "it is gone")
LATE = Failure(Cause.TIMED_OUT, "", "too long")
CALL = Call(id=layout.call_id(CLIENT, 7), task=TASK, queue=QUEUE, arguments=b"arguments", sent=1.0)
THEIRS = Outcome(CALL.id, 1, State.SUCCEEDED, "b" * 16, task=TASK, queue=QUEUE, value=b"theirs", attempts=1, started=2.0, ended=3.0)
THEIR_FAILURE = replace(THEIRS, state=State.FAILED, value=None, failure=RAISED)
DAY_SECONDS = 24 * 3600.0

FOLLOWED = {Fault.CRASH_AFTER, Fault.ANSWER_LOST, Fault.TAKEN}
"""Faults that a worker, or the next one, goes on from in ways of their own; after the others a death is as a death alone."""

every_fault = pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are tried again are tried at once."""
    real_sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real_sleep(0))


# What tasks come to.


def returned(value: bytes = VALUE) -> Report:
    """The report of a success."""
    return Report(1, Kind.RETURNED, value=value)


def raised(*, retryable: bool, delay_seconds: float | None = None) -> Report:
    """The report of an error."""
    return Report(1, Kind.RAISED, failure=RAISED, retryable=retryable, delay_seconds=delay_seconds)


def comes_to(*endings: Ending | type[Crash], by: Callable[[Call], int] = lambda call: call.attempt - 1) -> Task:
    """A task whose attempts end in these ways, the last one for ever; `by` says which of them a call is at."""

    async def task(process: WorkerProcess, job: Job) -> Ending:
        ending = endings[min(by(job.call), len(endings) - 1)]
        if isinstance(ending, type):
            process.die()
            raise ending
        return ending

    return task


async def writes_a_large_value(process: WorkerProcess, job: Job) -> Ending:
    """A task whose value does not fit a frame, and lies in the file of the job."""
    Path(job.value_path).write_bytes(LARGE)
    return Report(1, Kind.RETURNED)


def meanwhile(event: Callable[[World], Awaitable[None]], ending: Ending) -> Task:
    """A task during which something happens elsewhere."""

    async def task(process: WorkerProcess, job: Job) -> Ending:
        await event(process.here)
        return ending

    return task


# What happens to a call.


async def just_sent(world: World, call: Call) -> None:
    """The call is sent, and nothing else."""
    await world.send(call)


@dataclass(frozen=True)
class Scenario:
    """A call, what its attempts come to, and what it must come to; a state of None means a tombstone.

    `knows` says which worker, in order of birth, knows the task. Between two deliveries `round_seconds` pass at the server.
    A `cold` worker has not used the container before.
    """

    task: Task
    state: State | None
    executions: int
    attempts: int
    call: Call = CALL
    value: bytes | None = None
    prepare: Callable[[World, Call], Awaitable[object]] = just_sent
    knows: Callable[[int], bool] = lambda worker: True
    round_seconds: float = 0
    counts_attempts: bool = True
    cold: bool = False


@dataclass(frozen=True)
class Played:
    """What came of a scenario."""

    world: World
    asked: list[str]


async def play(transport: LocalTransport, folder: Path, scenario: Scenario, faults: dict[int, Fault]) -> Played:
    """Play a scenario to its end, with these faults, and check the end."""
    world, points, born = World(transport, folder), Numbered(faults), iter(range(1000))
    world.cold = scenario.cold
    try:
        await scenario.prepare(world, scenario.call)
        await drain(
            world,
            lambda: WorkerProcess(points, world, scenario.task, knows=scenario.knows(next(born))),
            round_seconds=scenario.round_seconds,
        )
        await world.look()
        await check_end(world, scenario, faults)
    except AssertionError as exc:
        told = ", ".join(f"at request {number} {fault.value}" for number, fault in faults.items())
        exc.add_note(f"With {told or 'no fault'}; requests: {list(enumerate(points.asked))}")
        raise
    return Played(world, points.asked)


async def check_end(world: World, scenario: Scenario, faults: dict[int, Fault]) -> None:
    """The outcome is the right one, and says how many attempts there were; nothing ran more often than it had to."""
    assert len(world.executed) <= scenario.executions + len(faults), "it ran more often than it was disturbed"
    for call in world.executed:
        assert call.errors <= call.retries
        assert call.deaths < call.max_deaths
    outcome = world.outcome(scenario.call)
    assert (outcome.state if outcome else None) is scenario.state
    if outcome is None:
        assert world.seen[layout.result(scenario.call.id, 1)][1] == b"", "a forgotten outcome has come back"
        return
    if scenario.value is not None:
        assert await world.ledger.value(outcome) == scenario.value
    if scenario.counts_attempts:
        assert outcome.attempts == max(world.begun, default=scenario.attempts)
    if outcome.state is State.FAILED:
        letter = await world.letter(scenario.call)
        assert letter.outcome == outcome
        assert letter.call is not None
        assert letter.call.id == scenario.call.id


async def explore(folder: Path, scenario: Scenario, fault: Fault) -> None:
    """Play the scenario with the fault at each request in turn: alone, and if it is `FOLLOWED` also with a later death at each."""
    async with opened(folder / "place") as transport:
        whole = await play(transport, folder, scenario, {})
        assert len(whole.world.executed) == scenario.executions
        outcome = whole.world.outcome(scenario.call)
        assert outcome is None or outcome.attempts == scenario.attempts
        for first in range(len(whole.asked)):
            disturbed = await play(transport, folder, scenario, {first: fault})
            for second in range(first + 1, len(disturbed.asked) if fault in FOLLOWED else 0):
                await play(transport, folder, scenario, {first: fault, second: Fault.CRASH_AFTER})


# Outcomes.


@every_fault
async def test_a_success_has_one_outcome(tmp_path: Path, fault: Fault) -> None:
    """A call that returns succeeds once, with its value, whatever fails on the way."""
    await explore(tmp_path, Scenario(comes_to(returned()), State.SUCCEEDED, 1, 1, value=VALUE), fault)


@every_fault
async def test_a_spilled_value_is_there_when_its_outcome_is(tmp_path: Path, fault: Fault) -> None:
    """A value that lies in a blob of its own can be read once the outcome can."""
    await explore(tmp_path, Scenario(writes_a_large_value, State.SUCCEEDED, 1, 1, value=LARGE), fault)


@every_fault
async def test_spilled_arguments_and_payloads_are_fetched_again(tmp_path: Path, fault: Fault) -> None:
    """A fault on the way from the store to the worker's disk is no death and no failure."""

    async def prepare(world: World, call: Call) -> None:
        function, module = await world.ledger.publish(b"function"), await world.ledger.publish(b"module")
        await world.send(replace(call, arguments=random.Random(1).randbytes(70_000), function=function, ship=(module,)))

    await explore(tmp_path, Scenario(comes_to(returned()), State.SUCCEEDED, 1, 1, prepare=prepare), fault)


@every_fault
async def test_a_failure_for_good_has_an_outcome_and_a_dead_letter(tmp_path: Path, fault: Fault) -> None:
    """A call that raises and may not be retried fails, and its dead letter holds the outcome that stands."""
    await explore(tmp_path, Scenario(comes_to(raised(retryable=False)), State.FAILED, 1, 1), fault)


async def test_a_failure_is_written_outcome_first_and_message_last(tmp_path: Path) -> None:
    """The order is outcome, dead letter, deletion, so that whoever dies in between leaves the message to say so."""
    async with opened(tmp_path / "place") as transport:
        played = await play(transport, tmp_path, Scenario(comes_to(raised(retryable=False)), State.FAILED, 1, 1), {})
        assert played.asked == ["receive", "put results", "put failed", "delete"]


async def test_a_success_takes_three_requests(tmp_path: Path) -> None:
    """A first delivery that succeeds pays for its receipt, its outcome and its deletion, and nothing else."""
    async with opened(tmp_path / "place") as transport:
        played = await play(transport, tmp_path, Scenario(comes_to(returned()), State.SUCCEEDED, 1, 1), {})
        assert played.asked == ["receive", "put results", "delete"]


@every_fault
async def test_the_first_use_of_the_container_may_fail(tmp_path: Path, fault: Fault) -> None:
    """A worker that finds the container only when it settles its first call settles it as any other."""
    await explore(tmp_path, Scenario(comes_to(returned()), State.SUCCEEDED, 1, 1, cold=True), fault)
    if fault is not Fault.OVERDUE:  # finding the container may take as long as the put itself, in which no look at the lease helps
        await explore(tmp_path, Scenario(comes_to(raised(retryable=False)), State.FAILED, 1, 1, cold=True), fault)


# Budgets.


def by_errors(call: Call) -> int:
    """Deaths on the way do not change what the task does next."""
    return call.errors


@every_fault
async def test_a_retry_in_place_goes_on_with_the_next_attempt(tmp_path: Path, fault: Fault) -> None:
    """An error that may be retried costs one error of the budget, and the next attempt succeeds."""
    task = comes_to(raised(retryable=True), returned(), by=by_errors)
    await explore(tmp_path, Scenario(task, State.SUCCEEDED, 2, 2, replace(CALL, retries=1), value=VALUE), fault)


@every_fault
async def test_errors_beyond_the_budget_fail_for_good(tmp_path: Path, fault: Fault) -> None:
    """A call that raises whenever it runs fails after its last retry."""
    task = comes_to(raised(retryable=True))
    await explore(tmp_path, Scenario(task, State.FAILED, 2, 2, replace(CALL, retries=1)), fault)


@every_fault
async def test_a_timeout_is_an_error_of_the_budget(tmp_path: Path, fault: Fault) -> None:
    """An attempt that was stopped for its timeout is retried as an error would be."""
    task = comes_to(TimedOut(LATE), returned(), by=by_errors)
    await explore(tmp_path, Scenario(task, State.SUCCEEDED, 2, 2, replace(CALL, retries=1)), fault)


@every_fault
async def test_a_retry_far_away_waits_in_hops(tmp_path: Path, fault: Fault) -> None:
    """A retry that is due later than a queue can hide a message is put off again until it is due."""
    task = comes_to(raised(retryable=True, delay_seconds=12 * DAY_SECONDS), returned(), by=by_errors)
    scenario = Scenario(task, State.SUCCEEDED, 2, 2, replace(CALL, retries=1), round_seconds=5 * DAY_SECONDS)
    await explore(tmp_path, scenario, fault)


@every_fault
async def test_a_death_of_a_child_is_charged_at_once(tmp_path: Path, fault: Fault) -> None:
    """A child that died costs one death, and the next attempt succeeds."""
    task = comes_to(Died(DIED), returned(), by=lambda call: call.deaths)
    await explore(tmp_path, Scenario(task, State.SUCCEEDED, 2, 2, replace(CALL, max_deaths=5)), fault)


@every_fault
async def test_a_death_of_a_worker_is_charged_on_redelivery(tmp_path: Path, fault: Fault) -> None:
    """A second delivery leaves its mark; a worker that dies under it is charged by the third one, which succeeds."""
    task = comes_to(Crash, returned(), by=lambda call: call.deaths)
    await explore(tmp_path, Scenario(task, State.SUCCEEDED, 3, 2, replace(CALL, max_deaths=5)), fault)


@every_fault
async def test_deaths_of_workers_beyond_the_budget_fail_for_good(tmp_path: Path, fault: Fault) -> None:
    """A call that kills whoever runs it fails after as many marked deaths as it may have."""
    call = replace(CALL, max_deaths=2)
    await explore(tmp_path, Scenario(comes_to(Crash), State.FAILED, 3, 1, call, counts_attempts=False), fault)


async def test_the_last_death_counts_as_an_attempt(tmp_path: Path) -> None:
    """A call whose marked attempts 1 and 2 killed their workers has had two attempts, as if two children had died."""
    async with opened(tmp_path / "place") as transport:
        for ending, executions in [(Died(DIED), 2), (Crash, 3)]:
            scenario = Scenario(comes_to(ending), State.FAILED, executions, 2, replace(CALL, max_deaths=2))
            await play(transport, tmp_path, scenario, {})


@every_fault
async def test_a_preemption_is_free(tmp_path: Path, fault: Fault) -> None:
    """An attempt that had to go for its machine's sake costs neither an error nor a death."""
    task = comes_to(Preempted(), returned(), by=lambda call: call.preemptions)
    await explore(tmp_path, Scenario(task, State.SUCCEEDED, 2, 2, replace(CALL, max_deaths=3)), fault)


async def test_preemptions_without_progress_end_it(tmp_path: Path) -> None:
    """A call that is preempted whenever it runs never fits, at each request that a worker may die after."""
    async with opened(tmp_path / "place") as transport:
        scenario = Scenario(comes_to(Preempted()), State.FAILED, 5, 5)
        whole = await play(transport, tmp_path, scenario, {})
        for number in range(len(whole.asked)):
            await play(transport, tmp_path, scenario, {number: Fault.CRASH_AFTER})


@every_fault
async def test_a_disturbed_attempt_runs_alone_next(tmp_path: Path, fault: Fault) -> None:
    """Who shared a process that died is not charged, and shares none from then on."""
    task = comes_to(Disturbed(suspect=True), returned(), by=lambda call: int(call.alone))
    await explore(tmp_path, Scenario(task, State.SUCCEEDED, 2, 1), fault)


# Calls that are not run.


@every_fault
async def test_an_expired_call_ends_without_a_dead_letter(tmp_path: Path, fault: Fault) -> None:
    """What is delivered after its time is expired, runs nothing, and is nobody's failure."""
    await explore(tmp_path, Scenario(comes_to(returned()), State.EXPIRED, 0, 0, replace(CALL, expires=2.0)), fault)


@every_fault
async def test_a_call_before_its_time_waits(tmp_path: Path, fault: Fault) -> None:
    """What is delivered before its time goes back until then, at most seven days at once."""

    async def prepare(world: World, call: Call) -> None:
        now = await world.transport.server_time()
        await world.send(replace(call, eta=now + 12 * DAY_SECONDS))

    scenario = Scenario(comes_to(returned()), State.SUCCEEDED, 1, 1, prepare=prepare, round_seconds=5 * DAY_SECONDS)
    await explore(tmp_path, scenario, fault)


@every_fault
@pytest.mark.parametrize("text", ["", "no base64 !", "Sm9iIQ=="])
async def test_an_unreadable_message_is_a_dead_letter(tmp_path: Path, fault: Fault, text: str) -> None:
    """A message that holds no call is kept whole, under its own id, and taken off the queue."""
    async with opened(tmp_path / "place") as transport:
        for number in range(3):
            world, points = World(transport, tmp_path), Numbered({number: fault})
            await world.send_text(text)
            await drain(world, lambda: WorkerProcess(points, world, comes_to(returned())))  # noqa: B023  # ends in here
            await world.look()
            assert world.executed == []
            assert len(world.letters) == 1


@every_fault
@pytest.mark.parametrize("refused_by", ["worker", "child"])
async def test_an_unfit_message_waits_for_a_worker_that_knows_its_task(tmp_path: Path, fault: Fault, refused_by: str) -> None:
    """A worker that cannot run a call puts it aside, uncharged, and another one runs it."""
    if refused_by == "worker":
        scenario = Scenario(comes_to(returned()), State.SUCCEEDED, 1, 1, knows=lambda worker: worker > 0)
    else:

        async def unfit_at_first(process: WorkerProcess, job: Job) -> Ending:
            return Report(1, Kind.UNFIT, failure=RAISED) if len(process.here.executed) == 1 else returned()

        scenario = Scenario(unfit_at_first, State.SUCCEEDED, 2, 1)
    await explore(tmp_path, scenario, fault)


async def received_often(world: World, call: Call) -> None:
    """The call was delivered, and given back, for a day."""
    await world.send(call)
    for _ in range(UNFIT_DELIVERIES - 1):
        (delivery,) = await world.queue.receive(1, lease_seconds=45)
        await world.queue.release(delivery.receipt)
    world.later_seconds = UNFIT_AGE_SECONDS


@every_fault
async def test_an_unfit_message_is_given_up_after_a_day(tmp_path: Path, fault: Fault) -> None:
    """What no worker could run for a day fails as refused, with a dead letter, having had no attempt."""
    scenario = Scenario(comes_to(returned()), State.FAILED, 0, 0, prepare=received_often, knows=lambda worker: False)
    await explore(tmp_path, scenario, fault)


# Outcomes that are there already.


def ended_before(outcome: Outcome) -> Callable[[World, Call], Awaitable[None]]:
    """Another worker wrote this outcome and died; its message comes again."""

    async def prepare(world: World, call: Call) -> None:
        await world.send(call)
        await world.queue.receive(1, lease_seconds=45)
        await world.ledger.commit(outcome)
        await world.look()

    return prepare


@every_fault
@pytest.mark.parametrize("outcome", [THEIRS, THEIR_FAILURE], ids=["succeeded", "failed"])
async def test_a_redelivery_after_the_outcome_runs_nothing(tmp_path: Path, fault: Fault, outcome: Outcome) -> None:
    """It finishes what the outcome's writer left undone, the dead letter of a failure, and takes the message away."""
    scenario = Scenario(comes_to(returned()), outcome.state, 0, 1, value=outcome.value or None, prepare=ended_before(outcome))  # type: ignore[arg-type]  # bytes
    await explore(tmp_path, scenario, fault)


@every_fault
@pytest.mark.parametrize("changes", [{"expires": 2.0}, {"deaths": 2, "mark": "c" * 16}], ids=["expired", "last death"])
async def test_what_stands_counts_more_than_what_came_later(tmp_path: Path, fault: Fault, changes: dict[str, Any]) -> None:
    """A call that ended in time is neither expired nor dead because its message was found again too late."""
    scenario = Scenario(
        comes_to(returned()), State.SUCCEEDED, 0, 1, replace(CALL, **changes), value=b"theirs", prepare=ended_before(THEIRS)
    )
    await explore(tmp_path, scenario, fault)


@every_fault
async def test_a_redelivery_after_the_outcome_was_forgotten_runs_nothing(tmp_path: Path, fault: Fault) -> None:
    """A tombstone is an end as well: the message goes, and nothing is written."""

    async def prepare(world: World, call: Call) -> None:
        await ended_before(THEIRS)(world, call)
        await world.forget(call)

    await explore(tmp_path, Scenario(comes_to(returned()), None, 0, 0, prepare=prepare), fault)


async def forget_meanwhile(world: World) -> None:
    """A copy ends elsewhere, and its outcome is forgotten."""
    if not world.seen:
        await world.ledger.commit(THEIRS)
        await world.forget(CALL)


@every_fault
@pytest.mark.parametrize(
    "ending", [returned(), raised(retryable=True), raised(retryable=False)], ids=["success", "retry", "failure"]
)
async def test_an_outcome_that_was_forgotten_meanwhile_does_not_come_back(tmp_path: Path, fault: Fault, ending: Ending) -> None:
    """What an attempt comes to after a tombstone was put is dropped, and its message goes."""
    scenario = Scenario(meanwhile(forget_meanwhile, ending), None, 1, 0, replace(CALL, retries=1))
    await explore(tmp_path, scenario, fault)


async def cancel(world: World) -> None:
    """A handle from elsewhere cancels the call."""
    client = Client(world.app, f"local://{world.transport.place.folder}", ())
    await Handle[Any](client, CALL.id)._cancel(world.ledger)


@every_fault
@pytest.mark.parametrize(
    "ending", [returned(), raised(retryable=True), raised(retryable=False)], ids=["success", "retry", "failure"]
)
async def test_a_call_that_was_cancelled_meanwhile_stays_cancelled(tmp_path: Path, fault: Fault, ending: Ending) -> None:
    """Whatever the attempt comes to, the call counts as cancelled, without a dead letter, and runs no more."""
    scenario = Scenario(meanwhile(cancel, ending), State.CANCELLED, 1, 0, replace(CALL, retries=1), counts_attempts=False)
    await explore(tmp_path, scenario, fault)


@every_fault
@pytest.mark.parametrize("standing", [THEIRS, THEIR_FAILURE], ids=["succeeded", "failed"])
@pytest.mark.parametrize("ending", [returned(), raised(retryable=False)], ids=["success", "failure"])
async def test_an_outcome_by_another_worker_stands(tmp_path: Path, fault: Fault, standing: Outcome, ending: Ending) -> None:
    """Who comes second finishes for the first: a failure's missing dead letter is written, and the message goes."""

    async def end_it(world: World) -> None:
        await world.ledger.commit(standing)

    scenario = Scenario(
        meanwhile(end_it, ending), standing.state, 1, 1, value=standing.value or None, counts_attempts=False  # type: ignore[arg-type]  # bytes
    )  # fmt: skip
    await explore(tmp_path, scenario, fault)


async def put_outcome(world: World, data: bytes) -> None:
    """Somebody puts these bytes where the outcome belongs."""
    await world.store.put(layout.result(CALL.id, 1), data)
    await world.look()


@pytest.mark.parametrize(
    "changes",
    [{}, {"expires": 2.0}, {"deaths": 2, "mark": "c" * 16}],
    ids=["to run", "expired", "last death"],
)
@pytest.mark.parametrize("deliveries", [0, 1])
async def test_an_outcome_that_cannot_be_read_ends_the_message(tmp_path: Path, changes: dict[str, Any], deliveries: int) -> None:
    """However the call would be admitted, a damaged outcome makes its message a dead letter, and no defect."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        world.unreadable = 1
        await world.send(replace(CALL, **changes))
        for _ in range(deliveries):
            await world.queue.receive(1, lease_seconds=45)
        await put_outcome(world, b"damaged")
        await drain(world, lambda: WorkerProcess(Numbered(), world, comes_to(returned())))
        assert len(world.letters) == 1
        assert world.seen[layout.result(CALL.id, 1)][1] == b"damaged"


async def test_an_outcome_of_a_later_version_is_no_dead_letter(tmp_path: Path) -> None:
    """An older worker that meets it on a redelivery leaves the message to newer ones, or takes it away; the call has ended well."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        await world.send(CALL)
        await world.queue.receive(1, lease_seconds=45)
        frame = bytearray(world.ledger.wire.seal_outcome(THEIRS))
        frame[2] += 1
        await put_outcome(world, bytes(frame))
        await world.make_visible()
        await WorkerProcess(Numbered(), world, comes_to(returned())).live()
        assert world.executed == []
        assert world.letters == set()


# Lost leases.


async def lose_receipt(process: WorkerProcess) -> None:
    """Another worker gets the message."""
    await process.here.take_away()


async def lose_time(process: WorkerProcess) -> None:
    """This machine was frozen for longer than the lease."""
    process.lead_seconds += 100_000


async def lose_both(process: WorkerProcess) -> None:
    """It was frozen, and another worker got the message."""
    await lose_receipt(process)
    await lose_time(process)


LOSSES = {"receipt": lose_receipt, "time": lose_time, "both": lose_both}
ENDINGS: dict[str, Ending] = {
    "failure": raised(retryable=False),
    "retry": raised(retryable=True),
    "timeout": TimedOut(LATE),
    "death": Died(DIED),
    "last death": Died(DIED),
    "preemption": Preempted(),
    "disturbance": Disturbed(suspect=True),
    "unfit": Report(1, Kind.UNFIT, failure=RAISED),
}


async def deliver_and_lose(world: World, lose: Callable[[WorkerProcess], Awaitable[None]], ending: Ending) -> WorkerProcess:
    """One delivery whose lease is lost, and noticed to be lost, while the task runs."""

    async def task(process: WorkerProcess, job: Job) -> Ending:
        await lose(process)
        for lease in list(process.keeper._leases):
            await attempt_lease_renewal(lease)
        return ending

    process = WorkerProcess(Numbered(), world, task)
    await process.live()
    return process


async def attempt_lease_renewal(lease: Any) -> None:
    """What the keeper does when a renewal is due."""
    from ai4s.jobq.worker.lease import _renew

    await _renew(lease)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("deliveries", [0, 1])
async def test_a_success_counts_under_a_lost_lease(tmp_path: Path, loss: str, deliveries: int) -> None:
    """What was reckoned is not thrown away: the success is put if nobody else's was."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        await world.send(CALL)
        for _ in range(deliveries):
            await world.take_away()
        await world.make_visible()
        await deliver_and_lose(world, LOSSES[loss], returned())
        outcome = world.outcome(CALL)
        assert outcome is not None
        assert outcome.value == VALUE
        await drain(world, lambda: WorkerProcess(Numbered(), world, comes_to(raised(retryable=False))))
        assert len(world.executed) == 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("deliveries", [0, 1])
async def test_nothing_but_a_success_counts_under_a_lost_lease(tmp_path: Path, loss: str, ending: str, deliveries: int) -> None:
    """Neither a failure nor a retry is written: outcome, dead letter and message are left to whoever has the message."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        await world.send(replace(CALL, retries=1 if ending == "retry" else 0, max_deaths=1 if ending == "last death" else 3))
        for _ in range(deliveries):
            await world.take_away()
        await world.make_visible()
        texts: list[str] = []

        async def lose(process: WorkerProcess) -> None:
            texts.extend(await world.bodies())
            await LOSSES[loss](process)

        process = await deliver_and_lose(world, lose, ENDINGS[ending])
        await world.look()
        assert world.seen == {}
        assert world.letters == set()
        assert await world.bodies() == texts
        assert process.attempts.counts.lost == 1


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_failure_is_not_tried_again_under_a_lost_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """A lease that is lost in the pause before the second try of a failure's outcome forbids that try as it forbids the first."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        await world.send(CALL)
        process = WorkerProcess(Numbered({1: Fault.NOT_DONE}), world, comes_to(raised(retryable=False)))

        real_sleep = asyncio.sleep

        async def long_pause(seconds: float) -> None:
            await LOSSES[loss](process)
            for lease in list(process.keeper._leases):
                await attempt_lease_renewal(lease)
            await real_sleep(0)

        monkeypatch.setattr(attempt_module.asyncio, "sleep", long_pause)
        await process.live()
        await world.look()
        assert world.seen == {}
        assert world.letters == set()
