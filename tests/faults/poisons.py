"""Calls that kill their process, fill its memory, start processes without end, or never come back, mixed with good ones.

Each poison is to be found out by itself: a dead letter with its cause, and no good call runs twice, since a plain function has its
process for itself. Coroutines share one: those beside a poison run once more, uncharged, and then alone; how often is the column
`duplicated`.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from harness import MIX, TASKS, Expected, Experiment, Lab, Row, Trial, trial
from projects import WorkerProcess, alive, until

from ai4s.jobq.message import Cause, Outcome, State

POISONS = """
import ctypes

@app.task(backoff=0.05, max_deaths=2)
def segfault(n):
    executed(n)
    ctypes.string_at(0)

@app.task(backoff=0.05, max_deaths=2)
def leave(n):
    executed(n)
    os._exit(7)

@app.task(backoff=0.05, max_deaths=2)
def fill_memory(n):
    executed(n)
    held = []
    while True:
        held.append(b"x" * 2**24)
        time.sleep(0.005)

@app.task(timeout=2)
def start_many(n):
    executed(n)
    for _ in range(40):
        note("started", subprocess.Popen(["sleep", "1000"]).pid)
    time.sleep(1000)

@app.task(timeout=2)
def hold_the_gil(n):
    executed(n)
    sum(range(10**12))

@app.task
async def awork(n, seconds):
    executed(n)
    await asyncio.sleep(seconds)
    return n

@app.task(backoff=0.05, max_deaths=2)
async def asegfault(n):
    executed(n)
    await asyncio.sleep(0.05)
    ctypes.string_at(0)

@app.task(backoff=0.05, max_deaths=2)
async def aleave(n):
    executed(n)
    await asyncio.sleep(0.05)
    os._exit(7)

@app.task(timeout=2)
async def ablock(n):
    executed(n)
    sum(range(10**12))
"""

MEMORY = "400m"
SLOTS, ROOM = 3, 16


@dataclass(frozen=True, slots=True)
class Poison:
    """A task, how often it runs until it is given up, and what its failure says."""

    task: str
    executions: int
    cause: Cause
    says: str


SYNC = (
    Poison("segfault", 2, Cause.DIED, "signal SIGSEGV"),
    Poison("leave", 2, Cause.DIED, "exit code 7"),
    Poison("fill_memory", 2, Cause.DIED, "memory"),
    Poison("start_many", 1, Cause.TIMED_OUT, "timeout of 2 s"),
    Poison("hold_the_gil", 1, Cause.TIMED_OUT, "timeout of 2 s"),
)
ASYNC = (
    # Among others on its loop, one death more: that which nobody can be charged with.
    Poison("asegfault", 3, Cause.DIED, "signal SIGSEGV"),
    Poison("aleave", 3, Cause.DIED, "exit code 7"),
    Poison("ablock", 1, Cause.TIMED_OUT, "timeout of 2 s"),
)


@dataclass(frozen=True)
class Size:
    """So many calls, of which so many are poison."""

    calls: int = 1000
    faults: int = 50
    seconds: float = 0.02
    seed: int = 1


def run_sync(lab: Lab, place: str, size: Size) -> Row:
    with trial(lab, "poison", place, source=TASKS + POISONS) as it:
        worker = it.worker("--concurrency", str(SLOTS), "--max-memory-per-child", MEMORY, ready=False)
        poisoned = submit(it, size, SYNC)
        with it.watched():
            it.until_empty()
        until(lambda: not any(alive(int(pid)) for pid in it.project.lines("started")), 30, "the end of all that was started")
        row = it.row(faults=size.faults, remark=f"{len(it.project.lines('started'))} processes started, all gone")
        return row.but(*complaints(it, worker, poisoned))


def run_async(lab: Lab, place: str, size: Size) -> Row:
    with trial(lab, "poison: async", place, source=TASKS + POISONS) as it:
        worker = it.worker("--concurrency", "1", "--async-concurrency", str(ROOM), ready=False)
        poisoned = submit(it, size, ASYNC)
        with it.watched():
            it.until_empty()
        # Whatever is on the loop with a poison that dies there runs again, then alone, where only its own death can end it.
        row = it.row(faults=size.faults, most_duplicates=size.faults * (ROOM + 1))
        return row.but(*complaints(it, worker, poisoned))


def submit(it: Trial, size: Size, poisons: tuple[Poison, ...]) -> dict[str, Poison]:
    """Submit good calls and poisons in a row; the poisons by their calls."""
    dice, poisoned = random.Random(size.seed), {}
    where = dict(zip(dice.sample(range(size.calls), size.faults), itertools.cycle(poisons), strict=False))
    for n in range(size.calls):
        if n in where:
            poison = where[n]
            handle = it.expect(it.project.task(poison.task).delay(n), n, Expected(State.FAILED, executions=poison.executions))
            poisoned[handle.id] = poison
        elif poisons is SYNC:
            it.submit(n, kind=MIX.get(n % 20, "plain"), seconds=size.seconds)
        else:
            it.expect(it.project.task("awork").delay(n, size.seconds), n, Expected(value=n))
    return poisoned


def complaints(it: Trial, worker: WorkerProcess, poisoned: dict[str, Poison]) -> list[str]:
    """Wrong causes, and a worker that is not what it was."""
    outcomes = it.outcomes()
    wrong = [f"{poison.task}: {outcomes.get(call)}" for call, poison in poisoned.items() if not fits(outcomes.get(call), poison)]
    dead = [] if worker.process.poll() is None else [f"the worker ended with {worker.process.returncode}"]
    return [*wrong[:5], *dead]


def fits(outcome: Outcome | str | None, poison: Poison) -> bool:
    """Whether a failure has the cause that it should have."""
    failure = outcome.failure if isinstance(outcome, Outcome) else None
    return failure is not None and failure.cause is poison.cause and poison.says in failure.message


EXPERIMENTS = [
    Experiment("poison", run_sync, full=[Size()], short=Size(calls=60, faults=5), short_places=("local",)),
    Experiment("poison-async", run_async, full=[Size()], short=Size(calls=40, faults=2), places=("local",)),
]
