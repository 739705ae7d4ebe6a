"""Workers that vanish between a failed call's outcome and its dead letter, for which the storage has no time just then.

The message must still be there: its next delivery finds the outcome, buries the call and only then deletes.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from between import proxy_before
from fault_proxy import Fault, Plan, Request, no_faults
from harness import Experiment, Lab, Row, kill_machine, trial
from projects import until


@dataclass(frozen=True)
class Size:
    """So many failing calls; in each of so many rounds, workers bury some of them at the same time and are killed."""

    calls: int = 100
    rounds: int = 10
    slots: int = 5
    lease_seconds: float = 5  # the shorter, the sooner over; nothing here depends on it


def no_burials(refused: set[str]) -> Plan:
    """Refuse every dead letter, and note which."""

    def plan(request: Request) -> Fault:
        path = unquote("/".join(request.path))
        if request.kind != "put" or "/failed/" not in path:
            return Fault.NONE
        refused.add(path)
        return Fault.BUSY

    return plan


def run(lab: Lab, place: str, size: Size) -> Row:
    killed = 0
    with (
        proxy_before(lab.azurite()) as between,
        trial(lab, "killed before the dead letter", place, url=between.url, lease_seconds=size.lease_seconds) as it,
        it.watched(),
    ):
        for number in range(size.rounds):
            numbers = range(number * size.calls // size.rounds, (number + 1) * size.calls // size.rounds)
            refused: set[str] = set()
            between.follow(no_burials(refused))
            for n in numbers:
                it.submit(n, kind="failing")
            worker = it.worker("--concurrency", str(size.slots))
            due = min(size.slots, len(numbers))
            until(lambda refused=refused, due=due: len(refused) >= due, 120, "dead letters that were refused")
            kill_machine(worker)
            killed += len(refused)
            between.follow(no_faults)
            it.worker("--concurrency", str(size.slots), "--until-empty", ready=False).wait(300)
        it.until_empty()
        # An outcome whose put the kill overtook is not there, and its call runs again.
        return it.row(faults=killed, most_duplicates=size.rounds * size.slots, remark=f"{between.spoiled.total()} refusals")


EXPERIMENTS = [
    Experiment("burials", run, full=[Size()], short=Size(calls=4, rounds=1, slots=2, lease_seconds=4), places=("azurite",)),
]
