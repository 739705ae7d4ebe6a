"""Workers that have to make room, by SIGTERM and by a notice that their machine goes, again and again over the same work.

Of a worker that is told so, all slots are busy with calls that will not end in time, and more calls wait behind them. Others must
see these at once; what runs is stopped and given back; nobody is charged; and the worker is gone when it said it would be.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from harness import TASKS, Expected, Experiment, Lab, Row, Trial, trial
from metadata_server import MetadataServer, metadata_server
from projects import WorkerProcess, until

from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call

HOLD = """
@app.task
def hold(n, name):
    executed(n)
    while not (HERE / name).exists():
        time.sleep(0.02)
    return n

@app.task
async def ahold(n, name):
    executed(n)
    while not (HERE / name).exists():
        await asyncio.sleep(0.02)
    return n
"""

HELD = ("hold", "hold", "ahold", "ahold")
SLOTS = HELD.count("hold")
PREEMPTED = 75


@dataclass(frozen=True)
class Size:
    """So many preemptions, each with so many calls that wait; others must see these within the limit.

    `late_seconds` is what closing the process may take on a busy machine, beyond the grace period.
    """

    faults: int = 50
    waiting: int = 20
    grace_seconds: float = 6
    limit_seconds: float = 2
    late_seconds: float = 0.5


Preempt = Callable[[WorkerProcess], Any]


def sigterm(worker: WorkerProcess) -> None:
    """What a machine that is shut down tells its processes."""
    os.kill(worker.pid, signal.SIGTERM)


@dataclass(frozen=True)
class Way:
    """How a worker is told to go, whether it is ended only when it has given everything back, and what is done when it is gone."""

    preempt: Preempt
    ended_later: bool = False
    over: Callable[[], None] = lambda: None


def run_sigterm(lab: Lab, place: str, size: Size) -> Row:
    with trial(lab, "preemption: SIGTERM", place, source=TASKS + HOLD) as it:
        return run(it, size, Way(sigterm), {})


def run_notice(lab: Lab, place: str, size: Size) -> Row:
    with ExitStack() as stack:
        azure: MetadataServer = stack.enter_context(metadata_server())
        it = stack.enter_context(trial(lab, "preemption: notice", place, source=TASKS + HOLD))

        def preempt(worker: WorkerProcess) -> None:
            azure.events.clear()
            # A date has whole seconds: half of one more, on average, so that the worker has what it is promised.
            azure.announce(seconds=size.grace_seconds + 0.5)

        return run(it, size, Way(preempt, ended_later=True, over=azure.events.clear), {"JOBQ_METADATA_URL": azure.url})


def run(it: Trial, size: Size, way: Way, variables: dict[str, str]) -> Row:
    """Preempt one worker after the other."""
    complaints: list[str] = []
    seen, gone = [], []
    worker = start(it, size, variables)
    with it.watched():
        for number in range(size.faults):
            held = submit(it, size, number)
            began = time.monotonic()
            way.preempt(worker)
            until(lambda: it.project.visible() >= size.waiting, 60, "what waited, visible to others")
            seen.append(time.monotonic() - began)
            if way.ended_later:
                until(lambda: it.project.visible() >= size.waiting + len(HELD), 60, "what ran, visible to others")
                sigterm(worker)
            code = worker.wait(60)
            gone.append(time.monotonic() - began)
            complaints += [f"it ended with {code}:\n{worker.log}"] if code != PREEMPTED else []
            complaints += charged(it, held, size)
            way.over()
            (it.project.folder / f"go-{number}").touch()
            worker = start(it, size, variables)
            it.until_empty()
    row = it.row(faults=size.faults, remark=f"seen after {max(seen):.2f} s, gone after {max(gone):.1f} s, at most")
    complaints += [f"others saw it after {seconds:.2f} s" for seconds in seen if seconds > size.limit_seconds]
    complaints += [
        f"gone after {seconds:.1f} s of {size.grace_seconds:g}"
        for seconds in gone
        if seconds > size.grace_seconds + size.late_seconds
    ]
    return row.but(*complaints[:5])


def start(it: Trial, size: Size, variables: dict[str, str]) -> WorkerProcess:
    """A worker that knows how long the calls take that will wait."""
    options = ("--concurrency", str(SLOTS), "--async-concurrency", str(SLOTS), "--grace", f"{size.grace_seconds:g}s")
    worker = it.worker(*options, ready=True, **variables)
    known = len(it.numbers)
    for n in range(known, known + 4 * SLOTS):
        it.submit(n).result(timeout=60)
    return worker


def submit(it: Trial, size: Size, number: int) -> set[str]:
    """Calls that hold every slot, and others that the worker has taken, and that wait behind them; those that hold."""
    known, held = len(it.numbers), set()
    for n, name in enumerate(HELD, known):
        handle = it.project.task(name).delay(n, f"go-{number}")
        held.add(it.expect(handle, n, Expected(value=n, executions=2)).id)
    until(lambda: {n for n, _, _ in it.executions()} >= set(range(known, known + len(HELD))), 60, "all slots held")
    for n in range(known + len(HELD), known + len(HELD) + size.waiting):
        it.submit(n)
    until(lambda: it.project.visible() == 0, 60, "everything taken")
    return held


def charged(it: Trial, held: set[str], size: Size) -> list[str]:
    """What the messages say that the worker left: each call is there once, and charged with a preemption at most."""

    async def peek(ledger: Ledger) -> list[Call]:
        queue = await ledger.queue("default")
        return [ledger.wire.unseal_call(text, "default") for text in await queue.peek(32)]

    calls = it.judge.client.run(peek)
    wrong = [f"charged: {call}" for call in calls if (call.errors, call.deaths, call.mark) != (0, 0, None)]
    wrong += [f"{call.preemptions} preemptions: {call}" for call in calls if call.preemptions != (call.id in held)]
    expected = len(HELD) + size.waiting
    return (
        wrong if len({call.id for call in calls}) == len(calls) == expected else [*wrong, f"{len(calls)} messages, not {expected}"]
    )


SHORT = Size(faults=1, waiting=10, grace_seconds=3, limit_seconds=60, late_seconds=60)
EXPERIMENTS = [
    Experiment("preemption-sigterm", run_sigterm, full=[Size()], short=SHORT, short_places=("azurite",)),
    Experiment("preemption-notice", run_notice, full=[Size()], short=SHORT, places=("local",)),
]
