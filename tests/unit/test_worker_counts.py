"""What a worker counts, what it takes of its machine, and what its status says of both."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ai4s.jobq import App
from ai4s.jobq.call_progress import CallProgress
from ai4s.jobq.config import read_settings
from ai4s.jobq.errors import LeaseLost
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.lifecycle import Cancelled, Died, Expired, Happening, Preempted, Raised, Succeeded, TimedOut, decide
from ai4s.jobq.message import Call, Cause, Failure
from ai4s.jobq.overview.fleet import WorkerStatus, find_call
from ai4s.jobq.worker import status
from ai4s.jobq.worker.consumption import Consumption
from ai4s.jobq.worker.counts import Counts, Watched, how_ended, seen
from ai4s.jobq.worker.current_calls import Current, CurrentCalls
from ai4s.jobq.worker.status import Status

FAILURE = Failure(Cause.RAISED, "ValueError", "no")
CALL = Call("c-1", "proj.task", "default", b"", 100.0, retries=1)


class Heard:
    """A watcher that keeps what it hears."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def began(self, call: Any, number: int = 1, first: int = 1) -> None:
        self.said.append(("began", call.id, number, first))

    def succeeded(self, call: Any, seconds: Sequence[float]) -> None:
        self.said.append(("succeeded", call.id, list(seconds)))

    def ended(self, call: Any, how: str, seconds: float, error: str = "") -> None:
        self.said.append((how, call.id, seconds, error))


@pytest.mark.parametrize(
    ("happening", "how", "error"),
    [
        (Succeeded(b""), "succeeded", ""),
        (Raised(FAILURE, retryable=True), "retried", "ValueError"),
        (Raised(FAILURE, retryable=False), "failed", "ValueError"),
        (TimedOut(Failure(Cause.TIMED_OUT, "", "late")), "retried", str(Cause.TIMED_OUT)),
        (Died(Failure(Cause.DIED, "", "gone")), "died", str(Cause.DIED)),
        (Preempted(), "given_back", ""),
        (Cancelled(), "cancelled", ""),
        (Expired(), "expired", ""),
    ],
)
def test_how_an_attempt_ended_is_one_word(happening: Happening, how: str, error: str) -> None:
    """What ends a call, and what lets it go on, have words of their own; an error has its type."""
    assert how_ended(happening, decide(happening, CALL, jitter=0)) == (how, error)


def test_an_attempt_is_heard_of_once_and_what_came_first_counts() -> None:
    """A duplicate that finds the call ended is fenced, and then settled as if it counted."""
    heard = Heard()
    counts = Counts(watchers=(heard,))
    watched = Watched(counts, seen(CALL, 103.0))
    watched.begin()
    watched.seconds = 0.5
    watched.end("fenced")
    watched.end("succeeded")
    assert heard.said == [("began", "c-1", 1, 1), ("fenced", "c-1", 0.5, "")]
    assert (counts.begun, counts.run_times.total, counts.wait_times.quantile(1)) == (1, 1, 3.0)


def test_an_attempt_whose_lease_is_lost_is_heard_of_as_lost() -> None:
    """Unless it had not begun: then there was none."""
    for begins in (False, True):
        heard = Heard()
        watched = Watched(Counts(watchers=(heard,)), seen(CALL, 103.0))
        if begins:
            watched.begin()
        with pytest.raises(LeaseLost), watched.unless_lost():
            raise LeaseLost
        assert [said[0] for said in heard.said] == ["began", "lost"] * begins


def test_only_a_first_attempt_has_waited() -> None:
    """From when it was sent, or was to run; a clock that differs makes no negative time."""
    later = Call("c-2", "t", "default", b"", 100.0, eta=200.0)
    retried = Call("c-3", "t", "default", b"", 100.0, errors=1)
    assert [seen(call, 203.0).waited_seconds for call in (CALL, later, retried)] == [103.0, 3.0, None]
    assert seen(CALL, 99.0).waited_seconds == 0.0


def test_many_calls_are_counted_at_once() -> None:
    """As a pack's are: a watcher hears of all of them in one word."""
    heard = Heard()
    counts = Counts(watchers=(heard,), failures_in_a_row=3)
    counts.began_many(seen(CALL, 101.0), 1000, 900)
    counts.succeeded_many(seen(CALL), [0.001] * 1000)
    assert (counts.begun, counts.wait_times.total, counts.run_times.total, counts.failures_in_a_row) == (1000, 900, 1000, 0)
    assert [said[0] for said in heard.said] == ["began", "succeeded"]


def test_what_runs_longest_is_told_first() -> None:
    """Whoever runs something is asked when somebody wants to know; one that runs nothing now says so."""
    calls = CurrentCalls()
    late, early = Current("late", "t", 5.0), Current("early", "t", 1.0)
    with calls.told_by(lambda: late), calls.told_by(lambda: None), calls.told_by(lambda: early):
        assert [call.id for call in calls.longest_first()] == ["early", "late"]
    assert calls.longest_first() == []


def test_processor_time_is_that_between_two_looks() -> None:
    """The first look has nothing to compare with, and one soon after it neither: no share of nothing."""
    now = [100.0]
    consumption = Consumption(lambda: now[0])
    assert consumption.measure().cpu_percent is None
    now[0] = 100.5
    assert consumption.measure().cpu_percent is None
    sum(range(3_000_000))
    now[0] = 110.0
    found = consumption.measure()
    assert found.cpu_percent is not None
    assert found.cpu_percent > 0
    assert found.memory_bytes > 2**20


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "local"),
        ({"SLURM_JOB_ID": "1"}, "slurm"),
        ({"AZUREML_RUN_ID": "1"}, "azureml"),
        ({"KUBERNETES_SERVICE_HOST": "1"}, "kubernetes"),
        ({"SLURM_JOB_ID": "1", "JOBQ_ENVIRONMENT_NAME": "cluster-b"}, "cluster-b"),
    ],
)
def test_an_environment_has_a_name(variables: dict[str, str], name: str) -> None:
    """As told, or by the cluster that it is."""
    assert read_settings(variables).environment_name == name


class Worker:
    """What a worker would tell of itself, with so many calls."""

    def __init__(self, calls: int) -> None:
        self.running = [Current(f"call-{n}", "proj.task", float(n), CallProgress(n, 500, "x" * 200)) for n in range(calls)]
        self.counts = Counts(begun=7, succeeded=5, failed=1, dead=1, preempted=2, deaths=3)
        self.counts.run_times.add_all([0.5, 2.0])

    def numbers(self) -> Mapping[str, int]:
        return {"slots": 400, "running": len(self.running), **self.counts.numbers()}

    def queues(self) -> Sequence[str]:
        return [f"queue-{n}" for n in range(400)]

    def batches(self) -> Mapping[str, int]:
        return {f"batch-{n}": 1 for n in range(20)}

    def calls(self) -> Sequence[Current]:
        return self.running

    def trouble(self) -> str:
        return "no rights " * 100


async def test_what_has_ended_is_told_of_before_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 15 s, whether the word before told of it as running or not at all; only where nothing is new it takes a minute."""
    now, worker = [0.0], Worker(1)
    words: list[tuple[float, int, int]] = []

    async def write(self: Status, state: str) -> None:
        words.append((now[0], worker.numbers()["running"], worker.counts.succeeded))
        worker.running.clear()

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        worker.counts.succeeded += now[0] == 40
        if now[0] > 140:
            raise asyncio.CancelledError

    def clock() -> float:
        return now[0]

    monkeypatch.setattr(Status, "write", write)
    monkeypatch.setattr(status, "boottime", clock)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await Status(None, "w", worker).keep(asyncio.Event())  # type: ignore[arg-type]
    assert words == [(0, 1, 5), (15, 0, 5), (40, 0, 6), (100, 0, 6)]


def test_a_status_tells_all_that_lists_need_and_its_body_every_call(tmp_path: Any) -> None:
    """The metadata stays below 7 KiB, whatever a worker runs and serves; a call that a listing leaves out is found in the body."""
    app = App("status", url=f"local://{tmp_path}")

    async def tell(ledger: Ledger) -> int:
        await Status(ledger, "node-1-1-aaaa", Worker(300), environment="cluster é").write("working")
        blob = await (await ledger.store()).get("workers/node-1-1-aaaa")
        assert blob is not None
        return sum(len(name) + len(text) for name, text in blob.info.metadata.items())

    assert app.client.run(tell) < 7 * 1024
    (found,) = app.queues.workers()
    assert (found.begun, found.dead, found.preempted, found.deaths, found.environment) == (7, 1, 2, 3, "cluster ?")
    assert (found.run_times.total, found.memory_bytes > 0, found.running) == (2, True, 300)
    assert len(found.calls) + found.more_calls == 300
    asked: list[WorkerStatus] = [found]
    for name, progress in (("call-0", 0), ("call-299", 299)):
        call = app.client.run(lambda ledger, name=name: find_call(ledger, asked, name))
        assert call is not None
        assert call.progress is not None
        assert call.progress.done == progress
    assert app.client.run(lambda ledger: find_call(ledger, asked, "call-300")) is None
    app.close()
