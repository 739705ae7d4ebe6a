"""A death before and after every storage request of a call's life, by whoever makes it, and something else that goes wrong later.

A life is the way of one call from a producer to its end: plain, with a key, cancelled, retried as a dead letter, going on from
checkpoints. It is lived once undisturbed, which counts its requests; then with a death at each. Real code on a real local store, in
this process: deaths are exceptions that nobody catches, and no time passes. `World` looks at the storage after every request.

Next: `../failure_points.py` and `../scenarios.py`; `unit/test_attempt.py` has more lives, each with single faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from failure_points import (
    QUEUE,
    Crash,
    Fault,
    Numbered,
    Process,
    Task,
    ThroughTransport,
    WorkerProcess,
    World,
    drain,
    opened,
)
from harness import Experiment, Lab, Row
from scenarios import CALL, DIED, LARGE, LATE, Scenario, comes_to, play, raised, returned, writes_a_large_value

from ai4s.jobq import Handle, layout, reruns
from ai4s.jobq.client import Client
from ai4s.jobq.dead_letters import DeadLetters
from ai4s.jobq.errors import Unreachable
from ai4s.jobq.handle import Sent
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.letters import make_choice
from ai4s.jobq.lifecycle import Died, Preempted, TimedOut
from ai4s.jobq.message import Call, Form, State
from ai4s.jobq.options import CallOptions
from ai4s.jobq.submission import Order, _submit_keyed
from ai4s.jobq.transports.local import LocalTransport, schema
from ai4s.jobq.worker.executors import Ending
from ai4s.jobq.worker.jobs import Job, Load, Save

DEATHS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
CALLERS_FAULTS = (*DEATHS, Fault.ANSWER_LOST, Fault.NOT_DONE)
MOST_TRIES = 10
SOON = 6
"""Within so many requests after the first fault the second one comes, if there is one."""

KEYED = replace(CALL, id=layout.keyed_call_id("0" * 40))
FAILS, RETURNS = raised(retryable=False), returned()


@dataclass(frozen=True)
class Size:
    """How often there is a death at each request; all but the first have company, by the dice."""

    rounds: int = 20
    seed: int = 1


@dataclass
class Life:
    """One call, with faults at some requests of whoever works on it, in the order in which they are made."""

    transport: LocalTransport
    folder: Path
    faults: dict[int, Fault]
    points: Numbered = field(init=False)
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.points, self.world = Numbered(self.faults), World(self.transport, self.folder)

    @property
    def caller(self) -> Ledger:
        """The ledger of another caller."""
        process = Process(self.points, self.world)
        return Ledger(ThroughTransport(self.transport, process), self.world.app, self.world.ledger.wire.keyring)

    @property
    def client(self) -> Client:
        """The client of a caller."""
        return Client(self.world.app, f"local://{self.transport.place.folder}", ())

    async def open(self) -> None:
        """Have the app's container and queue."""
        await asyncio.gather(self.world.ledger.store(), self.world.ledger.queue(QUEUE))

    async def attempt(self, step: Callable[[Ledger], Awaitable[Any]]) -> Any:
        """A step of a caller; None if it died, or was told that it failed."""
        with contextlib.suppress(Crash, Unreachable):
            return await step(self.caller)
        return None

    async def until_done(self, step: Callable[[Ledger], Awaitable[Any]]) -> Any:
        """The step, by one caller after the other, until one has done it."""
        for _ in range(MOST_TRIES):
            done = await self.attempt(step)
            if done is not None:
                return done
        raise AssertionError("it cannot be done")

    async def work_off(self, task: Task, *known: Call) -> None:
        """Have workers empty the queue, where the calls are those that are known and those whose messages lie there."""
        there = [self.world.ledger.wire.unseal_call(text, QUEUE) for text in await self.world.bodies()]
        self.world.calls.update({layout.result(call.id, call.run): call for call in (*known, *there)})
        await drain(self.world, partial(WorkerProcess, self.points, self.world, task))

    def ran(self) -> list[tuple[str, int]]:
        """What was executed: call and run."""
        return [(call.id, call.run) for call in self.world.executed]

    def ended(self, call: Call, *states: State) -> None:
        """Check that a run has ended in one of these states."""
        outcome = self.world.outcome(call)
        assert outcome is not None
        assert outcome.state in states
        assert len(self.world.executed) <= 1 + len(self.faults) + (call.run - 1)


Live = Callable[[Life], Awaitable[None]]


# Callers' lives.


async def produced(life: Life) -> None:
    """A call that is sent once, with arguments that must be spilled: whole or not there, and surely there if it was said to be."""
    await life.open()
    call = replace(CALL, arguments=random.Random(1).randbytes(70_000))

    async def send(ledger: Ledger) -> bool:
        await ledger.send(call)
        return True

    sent = await life.attempt(send)
    there = bool(await life.world.bodies())
    await life.work_off(comes_to(RETURNS))
    assert there or not sent, "it was said to be sent, and is not there"
    if there:
        life.ended(call, State.SUCCEEDED)


async def keyed(life: Life) -> None:
    """A call that is submitted with a key until that is done, and once more when it has ended: one call, one outcome."""
    await life.open()

    async def submit(ledger: Ledger) -> Handle[Any]:
        order = Order(KEYED, (), CallOptions(), None)
        return await _submit_keyed(life.client, ledger, KEYED, ledger.send, order=order)

    assert (await life.until_done(submit)).id == KEYED.id
    await life.work_off(comes_to(RETURNS))
    life.ended(KEYED, State.SUCCEEDED)
    assert (await life.until_done(submit)).id == KEYED.id
    await life.work_off(comes_to(RETURNS), KEYED)
    life.ended(KEYED, State.SUCCEEDED)


async def cancelled(life: Life) -> None:
    """A call that is cancelled until that is done: it never runs."""
    handle = await sent_handle(life)
    assert await life.until_done(handle._cancel) is True
    await life.work_off(comes_to(RETURNS), CALL)
    life.ended(CALL, State.CANCELLED)
    assert life.ran() == []


async def cancelled_once(life: Life) -> None:
    """A call that is cancelled, and whoever did so may be gone: it ends as that, or as what it came to."""
    handle = await sent_handle(life)
    told = await life.attempt(handle._cancel)
    await life.work_off(comes_to(RETURNS), CALL)
    life.ended(CALL, State.CANCELLED, *([] if told else [State.SUCCEEDED]))


async def sent_handle(life: Life) -> Handle[Any]:
    """The handle of a call that was sent, as its sender has it."""
    return Handle(life.client, CALL.id, message=Sent(QUEUE, await life.world.send(CALL)))


async def retried(life: Life) -> None:
    """A call that fails and is retried until that is done: the next run ends once, and the letter is gone."""
    await life.world.send(CALL)
    await life.work_off(fails_once)
    life.ended(CALL, State.FAILED)
    letters = DeadLetters(life.client)
    asked = await life.until_done(partial(letters._retry, make_choice(life.world.app, (CALL.id,), {})))
    assert [handle.id for handle in asked.handles] == [CALL.id]
    await next_run_ends(life, CALL)
    assert await letters._list(make_choice(life.world.app, (), {}), None, life.world.ledger) == []


async def run_again_by_key(life: Life) -> None:
    """A keyed call that fails, and whose key asks for it to run again until that is done."""
    await life.open()

    async def submit(ledger: Ledger) -> Handle[Any]:
        order = Order(KEYED, (), CallOptions(key="k", rerun_failed=True), None)
        return await _submit_keyed(life.client, ledger, KEYED, ledger.send, order=order)

    await submit(life.world.ledger)
    await life.work_off(fails_once)
    life.ended(KEYED, State.FAILED)
    assert (await life.until_done(submit)).run == 2
    await next_run_ends(life, KEYED)


async def next_run_ends(life: Life, call: Call) -> None:
    """Check that the second run ends once, as it should, and is what every handle means."""
    await life.work_off(fails_once, replace(call, run=2))
    life.ended(replace(call, run=2), State.SUCCEEDED)
    outcome = await Handle[Any](life.client, call.id).look(life.world.ledger)
    assert outcome is not None
    assert (outcome.run, outcome.state) == (2, State.SUCCEEDED)


async def fails_once(process: WorkerProcess, job: Job) -> Ending:
    """A task whose first run fails."""
    return FAILS if job.call.run == 1 else RETURNS


# Workers' lives.


class Steps:
    """A task of some steps, each of which it saves, and after each of which its process ends in this way."""

    def __init__(self, steps: int, ending: Ending | type[Crash]) -> None:
        self._steps, self._ending = steps, ending
        self._kept: dict[str, int] = {}

    async def __call__(self, process: WorkerProcess, job: Job) -> Ending:
        path, app = Path(job.checkpoint_path), process.here.app
        assert process.serve is not None
        found = await process.serve(Load(job.number, 1))
        reached = int(path.read_text()) if found.done else 0  # noqa: ASYNC240  # some bytes
        assert reached >= self._kept.get(app, 0), "a checkpoint that was surely kept is lost"
        if reached < self._steps:
            reached += 1
            path.write_text(str(reached))  # noqa: ASYNC240  # some bytes
            if (await process.serve(Save(job.number, 1, Form.VALUE))).done:
                self._kept[app] = reached
        if reached == self._steps:
            return returned(str(reached).encode())
        if isinstance(self._ending, type):
            process.die()
            raise self._ending
        return self._ending


RETRYABLE, MORTAL = replace(CALL, retries=2), replace(CALL, max_deaths=9)
SCENARIOS = {
    "worker: success": Scenario(comes_to(RETURNS), State.SUCCEEDED, 1, 1),
    "worker: large value": Scenario(writes_a_large_value, State.SUCCEEDED, 1, 1, value=LARGE),
    "worker: large arguments": Scenario(
        comes_to(RETURNS), State.SUCCEEDED, 1, 1, replace(CALL, arguments=random.Random(1).randbytes(70_000))
    ),
    "worker: failure": Scenario(comes_to(FAILS), State.FAILED, 1, 1),
    "worker: retries": Scenario(comes_to(raised(retryable=True), RETURNS), State.SUCCEEDED, 2, 2, RETRYABLE),
    "worker: retries spent": Scenario(comes_to(raised(retryable=True)), State.FAILED, 3, 3, RETRYABLE),
    "worker: timeout": Scenario(comes_to(TimedOut(LATE), RETURNS), State.SUCCEEDED, 2, 2, RETRYABLE),
    "worker: deaths of children": Scenario(comes_to(Died(DIED), Died(DIED), RETURNS), State.SUCCEEDED, 3, 3, MORTAL),
    "worker: preemption": Scenario(comes_to(Preempted(), RETURNS), State.SUCCEEDED, 2, 2),
    "checkpoints: deaths": Scenario(Steps(3, Crash), State.SUCCEEDED, 3, 3, MORTAL, value=b"3", counts_attempts=False),
    "checkpoints: preemptions": Scenario(Steps(3, Preempted()), State.SUCCEEDED, 3, 3, MORTAL, value=b"3", counts_attempts=False),
}
LIVES: dict[str, Live] = {
    "producer": produced,
    "key": keyed,
    "cancel": cancelled,
    "cancel once": cancelled_once,
    "retry of a dead letter": retried,
    "run again by key": run_again_by_key,
}
Play = Callable[[LocalTransport, Path, dict[int, Fault]], Awaitable[list[str]]]


def plays() -> dict[str, tuple[Play, tuple[Fault, ...]]]:
    """All lives as functions of the faults in them, which return the requests; and the faults that may come second."""

    def worker(scenario: Scenario) -> Play:
        async def one(transport: LocalTransport, folder: Path, faults: dict[int, Fault]) -> list[str]:
            return (await play(transport, folder, scenario, faults)).asked

        return one

    def caller(live: Live) -> Play:
        async def one(transport: LocalTransport, folder: Path, faults: dict[int, Fault]) -> list[str]:
            life = Life(transport, folder, faults)
            await live(life)
            return life.points.asked

        return one

    workers: dict[str, tuple[Play, tuple[Fault, ...]]] = {name: (worker(each), tuple(Fault)) for name, each in SCENARIOS.items()}
    return workers | {name: (caller(live), CALLERS_FAULTS) for name, live in LIVES.items()}


@dataclass
class Tally:
    """What came of all lives."""

    lives: int = 0
    faults: int = 0
    points: int = 0
    wrong: list[str] = field(default_factory=list)


async def live_all(folder: Path, size: Size) -> Tally:
    """Every life, with a death at each of its requests, so many times."""
    dice, tally = random.Random(size.seed), Tally()
    for name, (one, second) in plays().items():
        async with opened(folder / name.replace(" ", "-").replace(":", "")) as transport:
            asked = await one(transport, folder, {})
            tally.points += 2 * len(asked)
            for at in range(len(asked)):
                for death in DEATHS:
                    for number in range(size.rounds):
                        faults = {at: death}
                        if number:
                            faults[at + dice.randint(1, SOON)] = dice.choice(second)
                        await note(tally, name, one(transport, folder, faults), faults)
    return tally


async def note(tally: Tally, name: str, life: Awaitable[list[str]], faults: dict[int, Fault]) -> None:
    """Live this life, and note what came of it."""
    tally.lives += 1
    tally.faults += len(faults)
    try:
        await life
    except AssertionError as exc:
        told = ", ".join(f"at request {at} {fault.value}" for at, fault in faults.items())
        tally.wrong.append(f"{name}: {told}: {exc}"[:600])


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """No pause takes time, and no write waits for the disk: processes die here, machines do not."""
    sleep, connect = asyncio.sleep, schema.connect

    def hasty(folder: Path, *, patience_seconds: float) -> sqlite3.Connection:
        connection = connect(folder, patience_seconds=patience_seconds)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    async def no_time(seconds: float) -> None:
        await sleep(0)

    pauses, claims = mock.patch.object(asyncio, "sleep", no_time), mock.patch.object(reruns, "CLAIM_SECONDS", 0)
    with pauses, claims, mock.patch.object(schema, "connect", hasty):
        yield


def run(lab: Lab, place: str, size: Size) -> Row:
    began = time.monotonic()
    with at_once():
        tally = asyncio.run(live_all(lab.new_folder("steps"), size))
    seconds = round(time.monotonic() - began, 1)
    remark = f"{tally.points} points in {len(plays())} kinds of lives, {size.rounds} times each"
    wrong = len(tally.wrong)
    row = Row("death at every step", place, tally.lives, tally.faults, unexpected=wrong, seconds=seconds, remark=remark)
    return row.but(*tally.wrong[:5])


EXPERIMENTS = [Experiment("steps", run, full=[Size()], short=Size(rounds=1), places=("local",))]
