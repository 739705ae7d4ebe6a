"""One call under faults: what its attempts come to, what must come of it, and the play of both at every request.

A `Scenario` is first played undisturbed, which counts its requests; `explore` then plays it once for each request and fault,
and deaths also in pairs.

Next: `failure_points.py`, which holds the faults; `unit/test_attempt.py`, which holds most scenarios.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from failure_points import (
    CLIENT,
    QUEUE,
    TASK,
    Crash,
    Fault,
    Numbered,
    Task,
    WorkerProcess,
    World,
    drain,
    opened,
)

from ai4s.jobq import layout
from ai4s.jobq.message import Call, Cause, Failure, Outcome, State
from ai4s.jobq.transports.local import LocalTransport
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

SOON = 4
"""Requests after a death at which a second one is tried: as many as the next worker makes for a delivery."""

every_fault = pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())


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
    await asyncio.to_thread(Path(job.value_path).write_bytes, LARGE)
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
        assert call.deaths - (call.checkpoint.deaths if call.checkpoint else 0) < call.max_deaths
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
    """Play the scenario with the fault at each request in turn: alone, and a death also with another soon after."""
    async with opened(folder / "place") as transport:
        whole = await play(transport, folder, scenario, {})
        assert len(whole.world.executed) == scenario.executions
        outcome = whole.world.outcome(scenario.call)
        assert outcome is None or outcome.attempts == scenario.attempts
        for first in range(len(whole.asked)):
            disturbed = await play(transport, folder, scenario, {first: fault})
            last = min(first + SOON, len(disturbed.asked) - 1) if fault is Fault.CRASH_AFTER else first
            for second in range(first + 1, last + 1):
                await play(transport, folder, scenario, {first: fault, second: Fault.CRASH_AFTER})
