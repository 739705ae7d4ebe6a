"""Workers that come back from the dead: frozen past their leases, they go on when others have their calls.

In one order the successor commits first, and nothing of the zombie may show. In the other the zombie is faster: its successes
count, since nobody has committed yet, and its failures do not, since its lease is lost. Either way, what could be read stays.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

from harness import TASKS, Expected, Experiment, Lab, Row, Trial, machine, trial
from projects import WorkerProcess, until

MEETING = """
@app.task
async def meet(n, meeting, zombie_fails):
    executed(n)
    role = os.environ["ROLE"]
    note(f"begun-{role}-{meeting}", n)
    while not (HERE / f"go-{role}-{meeting}").exists():
        await asyncio.sleep(0.05)
    note(f"done-{role}-{meeting}", n)
    if zombie_fails and role == "zombie":
        raise ValueError("the zombie fails")
    return role
"""


@dataclass(frozen=True)
class Size:
    """So many calls, of which `together` run on one zombie at a time."""

    calls: int = 100
    together: int = 25
    lease_seconds: float = 5  # the shorter, the sooner over; nothing here depends on it


@dataclass(frozen=True)
class Meeting:
    """A zombie and its successor over the same calls."""

    trial: Trial
    name: str
    zombie: WorkerProcess
    calls: int

    def until(self, what: str, role: str) -> None:
        """Wait until all calls have begun, or are done, there."""
        until(lambda: len(self.trial.project.lines(f"{what}-{role}-{self.name}")) >= self.calls, 120, f"all {what} by the {role}")

    def go(self, role: str) -> None:
        """Let the calls end there."""
        (self.trial.project.folder / f"go-{role}-{self.name}").touch()

    def freeze(self) -> list[int]:
        """Stop the zombie's processes as they are, its supervisor first.

        Again if need be: on the local store it may be in the middle of a transaction, and nobody else could do anything.
        """
        frozen = machine(self.zombie)
        while True:
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            if self.trial.is_writable():
                return frozen
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)

    def successor(self) -> WorkerProcess:
        """Another worker, once it runs all the calls."""
        worker = self.trial.worker(ROLE="successor")
        self.until("begun", "successor")
        return worker

    def come_back(self, frozen: list[int]) -> int:
        """Thaw the zombie, have it settle what it can, and stop it; how many of its calls had ended before."""
        self.go("zombie")
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        self.until("done", "zombie")
        return fenced(self.zombie)


def fenced(worker: WorkerProcess) -> int:
    """Stop a worker in good order; how many of its attempts came to an outcome that was there already."""
    worker.signal(signal.SIGTERM)
    worker.wait()
    found = re.search(r"(\d+) fenced", worker.log)
    assert found, worker.log
    return int(found[1])


def run_successor_first(lab: Lab, place: str, size: Size) -> Row:
    return run(lab, place, size, "zombie: successor first", successor_first)


def run_zombie_first(lab: Lab, place: str, size: Size) -> Row:
    return run(lab, place, size, "zombie: zombie first", zombie_first)


def run(lab: Lab, place: str, size: Size, fault: str, order: Callable[[Trial, range], int]) -> Row:
    late = 0
    with trial(lab, fault, place, lease_seconds=size.lease_seconds, source=TASKS + MEETING) as it, it.watched():
        for first in range(0, size.calls, size.together):
            numbers = range(first, min(size.calls, first + size.together))
            late += order(it, numbers)
        row = it.row(faults=size.calls, remark=f"{late} came too late")
    due = size.calls if order is successor_first else len(range(0, size.calls, 2))
    return row if late == due else row.but(f"{late} attempts found an outcome, not {due}")


def meeting(it: Trial, numbers: range, expected: dict[int, str], zombie_fails: set[int]) -> Meeting:
    """Calls that have begun on a worker which is about to freeze."""
    name = str(numbers.start)
    for n in numbers:
        it.expect(it.project.task("meet").delay(n, name, n in zombie_fails), n, Expected(value=expected[n], executions=2))
    met = Meeting(it, name, it.worker(ROLE="zombie"), len(numbers))
    met.until("begun", "zombie")
    return met


def successor_first(it: Trial, numbers: range) -> int:
    """The successor commits everything while the zombie is frozen."""
    met = meeting(it, numbers, dict.fromkeys(numbers, "successor"), set())
    frozen = met.freeze()
    successor = met.successor()
    met.go("successor")
    it.until_empty(120)
    it.look()
    late = met.come_back(frozen)
    it.look()
    fenced(successor)
    return late


def zombie_first(it: Trial, numbers: range) -> int:
    """The zombie ends every call while its successor runs it too; every other call fails there."""
    failing = {n for n in numbers if n % 2}
    met = meeting(it, numbers, {n: "successor" if n in failing else "zombie" for n in numbers}, failing)
    frozen = met.freeze()
    successor = met.successor()
    met.come_back(frozen)
    it.look()
    met.go("successor")
    it.until_empty(120)
    return fenced(successor)


SHORT = Size(calls=6, together=6, lease_seconds=4)
EXPERIMENTS = [
    Experiment("zombies-late", run_successor_first, full=[Size()], short=SHORT, short_places=("local",)),
    Experiment("zombies-early", run_zombie_first, full=[Size()], short=SHORT, short_places=("local",)),
]
