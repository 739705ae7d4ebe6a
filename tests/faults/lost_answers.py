"""A network that loses answers: each kind of request is carried out, and of every ten one answer never arrives.

Producers and workers go through the proxy, the judge does not. What was carried out cannot be told from what was not.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from between import proxy_before
from fault_proxy import Fault, Plan, Request
from harness import Experiment, Lab, Row, trial

KINDS = {"send", "receive", "update", "delete message", "put", "get"}
"""What must have been hit, or the experiment has shown less than it says."""


@dataclass(frozen=True)
class Size:
    """How many calls, on how many workers; this share of all answers is lost."""

    calls: int = 2000
    seconds: float = 0.05
    workers: int = 4
    share: float = 0.1
    seed: int = 1
    lease_seconds: float | None = None  # the real one: each lost answer to a receive hides messages for as long


def losing(share: float, seed: int) -> Plan:
    """Lose this share of the answers to each kind of request, by dice of its own: rare kinds get theirs too."""
    dice: dict[str, random.Random] = defaultdict(lambda: random.Random(seed + len(dice)))
    return lambda request: Fault.LOSE_ANSWER if dice[request.kind].random() < share else Fault.NONE


def surely_each(plan: Plan) -> Plan:
    """As `plan`, but the second request of each kind always loses its answer, so that no kind is spared."""
    seen: dict[str, int] = defaultdict(int)

    def spoil(request: Request) -> Fault:
        seen[request.kind] += 1
        return Fault.LOSE_ANSWER if seen[request.kind] == 2 else plan(request)

    return spoil


def run(lab: Lab, place: str, size: Size) -> Row:
    with (
        proxy_before(lab.azurite()) as between,
        trial(lab, "lost answers", place, url=between.url, lease_seconds=size.lease_seconds) as it,
    ):
        between.follow(surely_each(losing(size.share, size.seed)))
        it.submit_mix(range(size.calls), seconds=size.seconds)
        workers = [it.worker("--concurrency", "2", ready=False) for _ in range(size.workers)]
        with it.watched():
            it.until_empty()
        spoiled = between.spoiled
        remark = ", ".join(f"{kind} {number}" for kind, number in spoiled.most_common() if number)
        row = it.row(faults=spoiled.total(), most_duplicates=spoiled["send"] + spoiled["update"], remark=remark)
        ended = [worker.process.returncode for worker in workers if worker.process.poll() is not None]
    spared = {kind for kind in KINDS if not spoiled[kind]}
    return row.but(*[f"a worker ended with {code}" for code in ended], *[f"no answer to {kind!r} was lost" for kind in spared])


EXPERIMENTS = [
    Experiment(
        "lost-answers", run, full=[Size()], short=Size(calls=20, seconds=0, workers=2, lease_seconds=4), places=("azurite",)
    ),
]
