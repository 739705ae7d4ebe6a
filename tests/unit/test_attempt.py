"""One call, whatever goes wrong at whichever request: one outcome, a dead letter only for a failure, and nothing lost.

Each scenario is first played undisturbed, which counts its requests; then once for each request and fault, and deaths
also in pairs. `World.look` checks what must hold at every moment, `play` what holds at the end.

Next: `failure_points.py`; for real processes that are killed, `acceptance/test_deaths.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from failure_points import (
    QUEUE,
    TASK,
    Crash,
    Fault,
    Numbered,
    Points,
    Process,
    ThroughTransport,
    Turns,
    WorkerProcess,
    World,
    drain,
    opened,
)
from scenarios import (
    CALL,
    DAY_SECONDS,
    DIED,
    LARGE,
    LATE,
    RAISED,
    THEIR_FAILURE,
    THEIRS,
    VALUE,
    Scenario,
    comes_to,
    every_fault,
    explore,
    meanwhile,
    play,
    raised,
    returned,
    writes_a_large_value,
)

from ai4s.jobq import App, Handle, layout
from ai4s.jobq.client import Client
from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import KeyConflict, ResultGone, Unreachable
from ai4s.jobq.handle import Sent
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.lifecycle import UNFIT_AGE_SECONDS, UNFIT_DELIVERIES, Died, Disturbed, Hindered, Preempted, TimedOut
from ai4s.jobq.message import Call, Outcome, State
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.local.store import LocalStore
from ai4s.jobq.worker.attempt import Attempts
from ai4s.jobq.worker.executors import Ending
from ai4s.jobq.worker.jobs import Job, Kind, Report
from ai4s.jobq.worker.lease import Lease, _renew
from ai4s.jobq.worker.settlement import Attempt, Settlement

pytestmark = pytest.mark.usefixtures("without_pauses", "without_waiting_for_the_disk")


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
    await explore(tmp_path, Scenario(comes_to(Crash), State.FAILED, 3, 2, replace(CALL, max_deaths=2)), fault)


async def test_the_last_death_counts_as_an_attempt(tmp_path: Path) -> None:
    """A call whose marked attempts 1 and 2 killed their workers has had two attempts, as if two children had died."""
    async with opened(tmp_path / "place") as transport:
        endings: list[tuple[Ending | type[Crash], int]] = [(Died(DIED), 2), (Crash, 3)]
        for ending, executions in endings:
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


@every_fault
async def test_a_hindered_attempt_goes_back_uncharged(tmp_path: Path, fault: Fault) -> None:
    """What a machine could not begin for reasons of its own costs the call nothing."""

    async def hindered_at_first(process: WorkerProcess, job: Job) -> Ending:
        return Hindered() if len(process.here.executed) == 1 else returned()

    await explore(tmp_path, Scenario(hindered_at_first, State.SUCCEEDED, 2, 1, replace(CALL, max_deaths=5)), fault)


async def test_a_value_whose_file_cannot_be_read_does_not_run_for_ever(tmp_path: Path) -> None:
    """A task whose value never reaches the worker has run, each time, and so it cannot be free."""
    async with opened(tmp_path / "place") as transport:
        scenario = Scenario(comes_to(Report(1, Kind.RETURNED)), State.FAILED, 3, 3)
        await play(transport, tmp_path, scenario, {})


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


async def broken(process: WorkerProcess, job: Job) -> Ending:
    """A defect of the supervisor's that each delivery of this call meets."""
    raise RuntimeError("broken")


async def test_a_call_that_meets_a_defect_comes_again(tmp_path: Path) -> None:
    """It may be the worker's, and another one may be sound."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        await world.send(CALL)
        with pytest.raises(RuntimeError, match="broken"):
            await WorkerProcess(Numbered({}), world, broken, knows=True).live()
        assert len(await world.bodies()) == 1


@every_fault
async def test_a_call_that_meets_a_defect_for_a_day_is_given_up(tmp_path: Path, fault: Fault) -> None:
    """It fails, and is kept as a dead letter: nothing is lost, and nothing comes for ever."""
    scenario = Scenario(broken, State.FAILED, 1, 0, prepare=received_often, counts_attempts=False)
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
    "hindrance": Hindered(),
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


async def attempt_lease_renewal(lease: Lease) -> None:
    """What the keeper does when a renewal is due."""
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
async def test_a_failure_is_not_tried_again_under_a_lost_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
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

        monkeypatch.setattr(asyncio, "sleep", long_pause)
        await process.live()
        await world.look()
        assert world.seen == {}
        assert world.letters == set()


# Handles: what a caller's process does before it dies.


def handle_of(world: World, call: Call, sent: Sent | None = None) -> Handle[Any]:
    """A handle of the call, as its caller holds it."""
    return Handle[Any](Client(world.app, f"local://{world.transport.place.folder}", ()), call.id, message=sent)


def callers_ledger(world: World, points: Points) -> Ledger:
    """The ledger of a caller whose requests may fail."""
    return Ledger(ThroughTransport(world.transport, Process(points, world)), world.app, world.ledger.wire.keyring)


caller_faults = pytest.mark.parametrize(
    "fault",
    [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ANSWER_LOST, Fault.NOT_DONE],
    ids=lambda fault: fault.name.lower(),
)


async def disturbed(step: Callable[[Ledger], Awaitable[object]], ledger: Ledger) -> None:
    """A step of a caller that dies in it, or is told that it failed."""
    try:
        await step(ledger)
    except (Crash, Unreachable):
        return


@caller_faults
async def test_a_cancel_that_was_cut_short_can_be_repeated(tmp_path: Path, fault: Fault) -> None:
    """Its second try makes the call cancelled for good; the message goes, and nothing runs."""
    async with opened(tmp_path / "place") as transport:
        for number in range(9):
            world, points = World(transport, tmp_path), Numbered({number: fault})
            sent = Sent(QUEUE, await world.send(CALL))
            await disturbed(handle_of(world, CALL, sent)._cancel, callers_ledger(world, points))
            assert await handle_of(world, CALL, sent)._cancel(world.ledger)
            await drain(world, partial(WorkerProcess, Numbered(), world, comes_to(returned())))
            outcome = world.outcome(CALL)
            assert outcome is not None
            assert outcome.state is State.CANCELLED
            assert len(world.executed) == 0
            if number >= len(points.asked):
                return
    raise AssertionError("it makes more requests than were thought of")


@caller_faults
async def test_a_cancel_that_was_cut_short_loses_nothing(tmp_path: Path, fault: Fault) -> None:
    """The call ends as cancelled or as what it came to, once, and runs once at most."""
    async with opened(tmp_path / "place") as transport:
        for number in range(6):
            world, points = World(transport, tmp_path), Numbered({number: fault})
            sent = Sent(QUEUE, await world.send(CALL))
            await disturbed(handle_of(world, CALL, sent)._cancel, callers_ledger(world, points))
            await drain(world, partial(WorkerProcess, Numbered(), world, comes_to(returned())))
            outcome = world.outcome(CALL)
            assert outcome is not None
            assert outcome.state in (State.SUCCEEDED, State.CANCELLED)
            assert len(world.executed) <= 1


@caller_faults
async def test_a_forget_that_was_cut_short_can_be_finished(tmp_path: Path, fault: Fault) -> None:
    """Asking again removes what was left: arguments, values, and the record of the key."""
    call = replace(CALL, id=layout.keyed_call_id("ab" * 32))
    async with opened(tmp_path / "place") as transport:
        for number in range(9):
            world, points = World(transport, tmp_path), Numbered({number: fault})
            await world.ledger.claim_key(call.id, "0" * 64)
            await world.send(replace(call, arguments=random.Random(1).randbytes(70_000)))
            await drain(world, partial(WorkerProcess, Numbered(), world, writes_a_large_value))
            world.may_forget = True
            await disturbed(handle_of(world, call)._forget, callers_ledger(world, points))
            with suppress(ResultGone):  # it may say so, once there is nothing left
                await handle_of(world, call)._forget(world.ledger)
            left = [info.name async for info in world.store.list("")]
            assert left == [layout.result(call.id, 1)], f"with {fault.value} at request {number} of {points.asked}"


# Submissions.

declared = App("failure-points")


@declared.task(name=TASK)
def step(argument: bytes) -> bytes:
    return argument


def by_value(argument: bytes) -> bytes:
    """Declared nowhere: its code travels along."""
    return argument


SMALL, INCOMPRESSIBLE = b"argument", random.Random(2).randbytes(70_000)
SUBMISSIONS: dict[str, tuple[bytes, Callable[..., Any]]] = {
    "inline": (SMALL, step.options),
    "spilled": (INCOMPRESSIBLE, step.options),
    "by value": (SMALL, declared.task(by_value).options),
    "by value, spilled": (INCOMPRESSIBLE, declared.task(by_value).options),
}
submissions = pytest.mark.parametrize("submission", SUBMISSIONS)


def submit(folder: Path, submission: str, points: Points, **options: Any) -> Handle[Any] | None:
    """Submit from a new process; None if it died, or was told that it failed."""
    argument, configured = SUBMISSIONS[submission]
    declared.client.move(declared.client.origin._replace(url=f"local://{folder}", create=True))

    async def step_between(ledger: Ledger) -> None:
        ledger.transport = ThroughTransport(ledger.transport, Process(points))
        ledger._store = ledger.transport.store(layout.container_name(ledger.app))

    try:
        declared.client.run(step_between)
        return configured(**options).delay(argument)  # type: ignore[no-any-return]  # a handle
    except (Crash, Unreachable):
        return None
    finally:
        declared.client.close()


async def work_off(
    folder: Path, submission: str, faults: dict[int, Fault], *, ended: tuple[Call, ...] = ()
) -> tuple[World, list[Call]]:
    """Have workers empty the queue; returns what they leave, and the calls that were there, one for each message.

    `ended` are calls of which there are outcomes already.
    """

    async def task(process: WorkerProcess, job: Job) -> Ending:
        call = job.call
        spilled, function = [Path(path or os.devnull) for path in (job.arguments_path, job.function_path)]
        data = call.arguments if isinstance(call.arguments, bytes) else await asyncio.to_thread(spilled.read_bytes)
        assert codec_named(call.codec).loads(data) == ((SUBMISSIONS[submission][0],), {})
        if call.function is not None:
            assert layout.sha256_of(await asyncio.to_thread(function.read_bytes)) == call.function
        return returned()

    async with opened(folder) as transport:
        world, points = World(transport, folder, declared.name), Numbered(faults)
        await world.ledger.store()
        await world.ledger.queue(QUEUE)
        calls = [world.ledger.wire.unseal_call(text, QUEUE) for text in await world.bodies()]
        world.calls = {layout.result(call.id, call.run): call for call in (*ended, *calls)}
        await drain(world, partial(WorkerProcess, points, world, task))
        return world, calls


@pytest.fixture
def moved_back() -> Iterator[None]:
    """The app of this file belongs nowhere again after the test."""
    before = declared.client.origin
    yield
    declared.client.move(before)


@caller_faults
@submissions
@pytest.mark.usefixtures("moved_back")
def test_a_key_makes_a_submission_repeatable(tmp_path: Path, submission: str, fault: Fault) -> None:
    """Wherever it was cut short, repeating it with the same key ends in one call that runs once and has one outcome."""
    for number in itertools.count():
        folder, points = tmp_path / str(number), Numbered({number: fault})
        first = submit(folder, submission, points, key="one")
        second = submit(folder, submission, Numbered(), key="one")
        third = submit(folder, submission, Numbered(), key="one")
        assert second is not None
        assert third is not None
        assert {second.id, third.id} == {second.id, *([first.id] if first else [])}
        world, calls = asyncio.run(work_off(folder, submission, {}))
        assert {call.id for call in calls} == {second.id}
        assert [call.id for call in world.executed] == [second.id], f"with {fault.value} at request {number} of {points.asked}"
        outcome = world.outcome(calls[0])
        assert outcome is not None
        assert outcome.state is State.SUCCEEDED
        again = submit(folder, submission, Numbered(), key="one")
        assert again is not None
        assert again.id == second.id
        assert asyncio.run(work_off(folder, submission, {}, ended=tuple(calls)))[1] == []
        if number >= len(points.asked):
            assert first is not None
            break


@caller_faults
@submissions
@pytest.mark.usefixtures("moved_back")
def test_a_submission_is_whole_or_not_there(tmp_path: Path, submission: str, fault: Fault) -> None:
    """A message that lies there has all that it refers to, a handle that was returned has its message, and one call has one id."""
    for number in itertools.count():
        folder, points = tmp_path / str(number), Numbered({number: fault})
        handle = submit(folder, submission, points)
        world, calls = asyncio.run(work_off(folder, submission, {1: Fault.CRASH_AFTER}))
        assert len({call.id for call in calls}) <= 1
        assert handle is None or handle.id in {call.id for call in calls}
        assert len(world.executed) <= len(calls) + 1
        for call in calls[:1]:
            outcome = world.outcome(call)
            assert outcome is not None
            assert outcome.state is State.SUCCEEDED
        if number >= len(points.asked):
            assert handle is not None
            break


@pytest.mark.usefixtures("moved_back")
def test_a_send_whose_answer_was_lost_runs_once(tmp_path: Path) -> None:
    """Of the two copies that lie there the second one says so, and its first delivery finds the outcome."""
    points = Numbered()
    submit(tmp_path / "whole", "inline", points)
    handle = submit(tmp_path / "lost", "inline", Numbered({points.asked.index("send"): Fault.ANSWER_LOST}))
    assert handle is not None
    world, calls = asyncio.run(work_off(tmp_path / "lost", "inline", {}))
    assert [(call.id, call.resent) for call in calls] == [(handle.id, False), (handle.id, True)]
    assert [call.id for call in world.executed] == [handle.id]


@pytest.mark.usefixtures("moved_back")
def test_a_key_whose_claimant_died_is_still_a_claim(tmp_path: Path) -> None:
    """Other arguments under that key are refused, though nothing had been sent."""
    points = Numbered()
    submit(tmp_path / "whole", "inline", points, key="one")
    submit(tmp_path / "cut", "inline", Numbered({points.asked.index("put keys"): Fault.CRASH_AFTER}), key="one")
    with pytest.raises(KeyConflict):
        submit(tmp_path / "cut", "spilled", Numbered(), key="one")
    assert submit(tmp_path / "cut", "inline", Numbered(), key="one") is not None


# Several workers at a time.


class Interleaving:
    """Two or three workers on copies of one message; `rng` says who goes on, and what goes wrong."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng, self.turns = world, rng, Turns()
        self.workers: dict[WorkerProcess, asyncio.Task[None]] = {}
        self.faults_left = rng.randrange(6)
        self.values: set[bytes] = set()
        world.one_at_a_time = False

    async def task(self, process: WorkerProcess, job: Job) -> Ending:
        """One execution, with what may happen while it lasts."""
        await process.suffer(await self.turns.reach(process, "run"))
        endings: list[Ending] = [TimedOut(LATE), Died(DIED), Preempted(), Disturbed(suspect=True)]
        endings += [raised(retryable=True), raised(retryable=False)] * 2
        value = self.rng.randbytes(4)
        self.values.add(value)
        return returned(value) if self.rng.random() < 0.4 else self.rng.choice(endings)

    async def play(self, call: Call) -> None:
        """Send up to three copies, let the workers run into each other for a while, and then the rest be worked off."""
        for copy in range(self.rng.randint(1, 3)):
            await self.world.send(replace(call, resent=copy > 0 and self.rng.random() < 0.5))
        for _ in range(self.rng.randint(10, 80)):
            await self._step()
        while self.turns.waiting:
            await self._go_on(next(iter(self.turns.waiting)), None)
        await drain(self.world, partial(WorkerProcess, Numbered(), self.world, self._last))

    async def end(self) -> None:
        """Leave nothing running, even if a check has failed."""
        for work in self.workers.values():
            work.cancel()
        await asyncio.gather(*self.workers.values(), return_exceptions=True)

    async def _last(self, process: WorkerProcess, job: Job) -> Ending:
        self.values.add(b"last")
        return returned(b"last")

    async def _step(self) -> None:
        alive = list(self.turns.waiting)
        if len(alive) < 3 and (not alive or self.rng.random() < 0.15):
            if self.rng.random() < 0.5:
                await self.world.make_visible()
            await self._born()
            return
        process = self.rng.choice(alive)
        fault = self.rng.choice(list(Fault)) if self.faults_left and self.rng.random() < 0.2 else None
        self.faults_left -= fault is not None
        if self.turns.waiting[process][0] == "run" and self.rng.random() < 0.3:
            await self._renew(process, fault)
        else:
            await self._go_on(process, fault)

    async def _born(self) -> None:
        process = WorkerProcess(self.turns, self.world, self.task)
        self.workers[process] = asyncio.create_task(process.live())
        await self.turns.until_still(process, self.workers[process])

    async def _go_on(self, process: Any, fault: Fault | None) -> None:
        self.turns.let_go(process, fault)
        await self.turns.until_still(process, self.workers[process])

    async def _renew(self, process: Any, fault: Fault | None) -> None:
        """What the keeper does while the task runs."""
        for lease in list(process.keeper._leases):
            waiting = self.turns.waiting.pop(process)
            renewal = asyncio.create_task(attempt_lease_renewal(lease))
            await self.turns.until_still(process, renewal)
            if process in self.turns.waiting:
                self.turns.let_go(process, fault if fault in (Fault.ANSWER_LOST, Fault.NOT_DONE, Fault.TAKEN) else None)
            await renewal
            self.turns.waiting[process] = waiting


async def interleave(transport: LocalTransport, folder: Path, seed: int) -> None:
    """One random history, and what must hold at its end."""
    rng = random.Random(seed)
    world = World(transport, folder)
    expires = 2.0 if rng.random() < 0.05 else None
    call = replace(CALL, retries=rng.randrange(3), max_deaths=rng.randint(1, 3), expires=expires)
    history = Interleaving(world, rng)
    try:
        await history.play(call)
        outcome = world.outcome(call)
        assert outcome is not None
        assert (outcome.state is State.FAILED) is (len(world.letters) == 1)
        assert outcome.state is not State.SUCCEEDED or outcome.value in history.values
        assert outcome.attempts <= len(world.begun)
        for executed in world.executed:
            assert executed.errors <= executed.retries
            assert executed.deaths < executed.max_deaths
    except AssertionError as exc:
        exc.add_note(f"With seed {seed}; done: {world.done}")
        raise
    finally:
        await history.end()


async def interleave_all(transport: LocalTransport, folder: Path, seeds: range) -> None:
    """Many random histories."""
    for seed in seeds:
        await interleave(transport, folder, seed)


@pytest.mark.parametrize("hundred", range(3))
async def test_workers_that_run_into_each_other_end_in_one_outcome(tmp_path: Path, hundred: int) -> None:
    """Copies of a message, frozen and dying workers, lost answers: one outcome that never changes, and nothing lost."""
    async with opened(tmp_path / "place") as transport:
        await interleave_all(transport, tmp_path, range(100 * hundred, 100 * (hundred + 1)))


# Whether these tests would notice.

FAILS = Scenario(comes_to(raised(retryable=False)), State.FAILED, 1, 1)
SUCCEEDS = Scenario(comes_to(returned()), State.SUCCEEDED, 1, 1)
CANCELLED = Scenario(meanwhile(cancel, returned()), State.CANCELLED, 1, 0, counts_attempts=False)
KILLS = Scenario(comes_to(Crash), State.FAILED, 3, 2, replace(CALL, max_deaths=2))
RETRIES = Scenario(comes_to(raised(retryable=True), returned(), by=by_errors), State.SUCCEEDED, 2, 2, replace(CALL, retries=1))


def plain_puts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome replaces the one that stands."""
    put = LocalStore.put

    async def plain(store: LocalStore, name: str, data: Any, **options: Any) -> str:
        return await put(store, name, data)

    monkeypatch.setattr(LocalStore, "put", plain)


def deletes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message goes before the dead letter is there."""
    finish = Settlement._finish

    async def hasty(attempts: Attempts, attempt: Attempt, standing: Outcome) -> None:
        await attempt.lease.delete()
        await finish(attempts, attempt, standing)

    monkeypatch.setattr(Settlement, "_finish", hasty)


def deletes_before_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message goes before the outcome is there."""
    end = Settlement._end

    async def hasty(attempts: Attempts, attempt: Attempt, outcome: Outcome) -> None:
        await attempt.lease.delete()
        await end(attempts, attempt, outcome)

    monkeypatch.setattr(Settlement, "_end", hasty)


def looks_for_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redelivery runs whatever there is."""

    async def never(attempts: Attempts, attempt: Attempt) -> bool:
        return False

    monkeypatch.setattr(Settlement, "ended_before", never)


def leaves_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deaths of workers are not noticed."""

    async def nothing(attempts: Attempts, attempt: Attempt) -> None:
        return

    monkeypatch.setattr(Attempts, "_mark", nothing)


def forgets_the_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds a failure that another wrote does not look after its dead letter."""
    bury = Ledger.bury

    async def only_my_own(ledger: Ledger, letter: Any, *where: Any) -> None:
        if letter.outcome is None or letter.outcome.token != THEIR_FAILURE.token:
            await bury(ledger, letter, *where)

    monkeypatch.setattr(Ledger, "bury", only_my_own)


def charges_every_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry is counted as two errors, so that the budget is spent too early."""
    retry = Settlement._retry

    async def twice(attempts: Attempts, attempt: Attempt, call: Call, delay_seconds: float) -> None:
        await retry(attempts, attempt, replace(call, errors=call.errors + 1), delay_seconds)

    monkeypatch.setattr(Settlement, "_retry", twice)


MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], Scenario, Fault]] = [
    (plain_puts, CANCELLED, Fault.CRASH_AFTER),
    (plain_puts, replace(SUCCEEDS, prepare=ended_before(THEIRS), executions=0, call=replace(CALL, expires=2.0)), Fault.CRASH_AFTER),
    (deletes_first, FAILS, Fault.CRASH_AFTER),
    (deletes_before_the_outcome, SUCCEEDS, Fault.CRASH_AFTER),
    (looks_for_no_outcome, SUCCEEDS, Fault.CRASH_AFTER),
    (looks_for_no_outcome, SUCCEEDS, Fault.TAKEN),
    (leaves_no_mark, KILLS, Fault.CRASH_AFTER),
    (forgets_the_dead_letter, replace(FAILS, prepare=ended_before(THEIR_FAILURE), executions=0), Fault.CRASH_BEFORE),
    (charges_every_delivery, RETRIES, Fault.CRASH_BEFORE),
]


@pytest.mark.parametrize(("mistake", "scenario", "fault"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_mistake_in_the_protocol_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None], scenario: Scenario, fault: Fault
) -> None:
    """The same scenario that passes with the real code fails with this mistake in it."""
    await explore(tmp_path / "right", scenario, fault)
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        await explore(tmp_path / "wrong", scenario, fault)


@pytest.mark.parametrize("mistake", [plain_puts, deletes_first, deletes_before_the_outcome], ids=lambda mistake: mistake.__name__)
async def test_a_mistake_is_noticed_among_several_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """A hundred random histories suffice for each of these."""
    mistake(monkeypatch)
    async with opened(tmp_path / "place") as transport:
        with pytest.raises(AssertionError):
            await interleave_all(transport, tmp_path, range(100))
