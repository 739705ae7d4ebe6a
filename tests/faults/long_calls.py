"""Calls that take longer than a lease, and nothing goes wrong: each runs exactly once, since its lease is renewed.

No fault is made here. It is the ground on which the others stand, and what a worker without renewal fails at.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness import Experiment, Lab, Row, trial


@dataclass(frozen=True)
class Size:
    """So many calls, each as long as so many leases, all on two workers at the same time."""

    calls: int = 20
    leases: float = 2.2
    lease_seconds: float | None = None  # the real one
    real_lease_seconds: float = 45


def run(lab: Lab, place: str, size: Size) -> Row:
    seconds = size.leases * (size.lease_seconds or size.real_lease_seconds)
    with trial(lab, "calls longer than a lease", place, lease_seconds=size.lease_seconds) as it:
        workers = [it.worker("--concurrency", str(size.calls // 2), ready=False) for _ in range(2)]
        for worker in workers:
            worker.until_ready()
        for n in range(size.calls):
            it.submit(n, seconds=seconds)
        with it.watched():
            it.until_empty()
        return it.row(remark=f"{seconds:.0f} s each")


EXPERIMENTS = [
    Experiment("long-calls", run, full=[Size()], short=Size(calls=4, leases=2, lease_seconds=4), short_places=("local",))
]
