"""What a worker is told of leases and failures: how long the first lease is, whether it is renewed, and when enough has failed."""

from __future__ import annotations

import pytest

from ai4s.jobq.lifecycle import Died, Preempted, Raised, Succeeded, TimedOut
from ai4s.jobq.message import Cause, Failure
from ai4s.jobq.transports.base import Delivery, Receipt
from ai4s.jobq.worker.counts import Counts
from ai4s.jobq.worker.lease import FIRST_LEASE_SECONDS, LONGEST_LEASE_SECONDS, Lease, Terms

WRONG = Failure(Cause.RAISED, "ValueError", "wrong")


class Queue:
    """Notes for how long it is asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def renew(self, receipt: Receipt, *, lease_seconds: float, body: str | None = None) -> Receipt:
        self.asked.append(lease_seconds)
        return receipt


def lease_of(terms: Terms, times: list[float]) -> tuple[Lease, Queue]:
    """A lease that began at 0, on a clock that says what stands in `times` last."""
    queue = Queue()
    delivery = Delivery(Receipt("1", "r"), "", 1, 0.0, 0.0, 0.0)
    return Lease(queue, delivery, lambda: times[-1], terms), queue  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [10.0, 600.0, 7200.0])
async def test_a_first_lease_of_another_length_is_renewed_for_as_long(first: float) -> None:
    """At a third of it; no later one is shorter, and one that grows with age does so up to the usual longest."""
    times = [0.0]
    lease, queue = lease_of(Terms(first), times)
    times.append(first / 3 - 0.1)
    assert not lease.due
    times.append(first / 3)
    assert lease.due
    await lease.renew()
    times.append(first)
    assert lease.held
    assert queue.asked == [first]
    for age in (first, 1.3 * first, 1.6 * first):
        times.append(age)
        await lease.renew()
    assert all(first <= seconds <= max(first, LONGEST_LEASE_SECONDS) for seconds in queue.asked)


async def test_without_a_heartbeat_a_lease_runs_out() -> None:
    """It is never due, and over when its time is."""
    times = [0.0]
    lease, queue = lease_of(Terms(60, renewed=False), times)
    times.append(59.0)
    assert not lease.due
    assert lease.held
    times.append(60.0)
    assert not lease.held
    assert queue.asked == []


def test_usual_terms_follow_the_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever shortens the first lease for an experiment shortens it for all."""
    assert Terms().seconds == FIRST_LEASE_SECONDS
    monkeypatch.setattr("ai4s.jobq.worker.lease.FIRST_LEASE_SECONDS", 3.0)
    assert Terms().seconds == 3.0


def test_failures_in_a_row_end_with_a_success() -> None:
    """Errors, timeouts and deaths count; what was given back is neither a failure nor a success."""
    told: list[int] = []
    counts = Counts()
    counts.on_failure = lambda: told.append(counts.failures_in_a_row)
    for happening in (Raised(WRONG, retryable=True), TimedOut(WRONG), Preempted(), Died(WRONG)):
        counts.note(happening)
    assert (counts.failures_in_a_row, told) == (3, [1, 2, 3])
    counts.note(Succeeded(b""))
    assert counts.failures_in_a_row == 0
