"""SIGKILL of workers while calls run: now the supervisor alone, now with its children, as when a machine vanishes.

A kill may cost one more execution for each slot that was running, and what ran there runs again soon, if a slot is free elsewhere.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from harness import TASKS, Expected, Experiment, Lab, Row, kill_machine, trial
from projects import until

SLOTS = 2
AGAIN_SECONDS = 60 + 6
"""Until a killed worker's call runs again: what is promised, and an idle worker's longest pause, which varies by a quarter."""

LINGERING = """
@app.task
def linger(n):
    executed(n)
    give_up = time.time() + 600
    while not (HERE / "hurry").exists() and time.time() < give_up:
        time.sleep(0.1)
"""


@dataclass(frozen=True)
class Size:
    """How many calls, of how many seconds, on how many workers, of which so many are killed."""

    calls: int = 2000
    seconds: float = 0.05
    workers: int = 4
    faults: int = 40
    seed: int = 1
    lease_seconds: float | None = None  # the real one


def run(lab: Lab, place: str, size: Size) -> Row:
    dice = random.Random(size.seed)
    with trial(lab, "SIGKILL", place, lease_seconds=size.lease_seconds) as it:
        it.submit_mix(range(size.calls), seconds=size.seconds)
        workers = [it.worker("--concurrency", str(SLOTS), ready=False) for _ in range(size.workers)]
        with it.watched():
            for number in range(1, size.faults + 1):
                # Up to nine tenths, so that there is still work for the last to be killed at.
                due = 0.9 * size.calls * number / size.faults
                until(lambda due=due: len(it.executions()) >= due, 300, f"{due:.0f} executions")
                victim = dice.choice([worker for worker in workers if worker.until_ready()])
                victim.kill() if dice.random() < 0.5 else kill_machine(victim)
                workers[workers.index(victim)] = it.worker("--concurrency", str(SLOTS), ready=False)
            it.until_empty()
        return it.row(faults=size.faults, most_duplicates=size.faults * SLOTS, remark=f"seed {size.seed}")


@dataclass(frozen=True)
class Revival:
    """So many workers with so many calls each, killed one after the other, so long apart; another one is idle."""

    faults: int = 4
    slots: int = 5
    apart_seconds: float = 9
    lease_seconds: float | None = None  # the real one


def run_revival(lab: Lab, place: str, size: Revival) -> Row:
    with trial(lab, "SIGKILL beside an idle worker", place, lease_seconds=size.lease_seconds, source=TASKS + LINGERING) as it:
        for n in range(size.faults * size.slots):
            it.expect(it.project.task("linger").delay(n), n, Expected(executions=2))
        victims = [it.worker("--concurrency", str(size.slots), ready=False) for _ in range(size.faults)]
        until(lambda: len(it.executions()) == len(it.expected), 120, "all calls begun")
        spare = it.worker("--concurrency", str(len(it.expected)))
        began = {n: victim for n, _, pid in it.executions() for victim in victims if pid in victim.children}
        killed = {}
        for victim in victims:
            time.sleep(size.apart_seconds)
            kill_machine(victim)
            killed[victim.pid] = time.time()
        until(lambda: len(it.executions()) == 2 * len(it.expected), 200, "all calls running again")
        longest = max(at - killed[began[n].pid] for n, at, pid in it.executions() if pid in spare.children)
        (it.project.folder / "hurry").touch()
        it.until_empty()
        row = it.row(faults=size.faults, remark=f"again within {longest:.1f} s")
    return row if longest <= AGAIN_SECONDS else row.but(f"a call ran again only after {longest:.1f} s")


EXPERIMENTS = [
    Experiment(
        "kills",
        run,
        full=[Size(seed=seed) for seed in (1, 2, 3)],
        short=Size(calls=60, seconds=0.02, workers=2, faults=2, lease_seconds=4),
        short_places=("azurite",),
    ),
    Experiment(
        "revival",
        run_revival,
        full=[Revival()],
        short=Revival(faults=1, slots=2, apart_seconds=1, lease_seconds=4),
        short_places=("local",),
    ),
]
