"""How a batch stands by one listing: numbers, states, errors, times and requests, of new entries, old ones and spoilt ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from logged import CANCELLED, log_entry
from storage_spy import between, counted

from ai4s.jobq import App, Batch, JobQError, ResultGone, layout
from ai4s.jobq.entry_notes import Written, notes
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.maps.standing import Standing
from ai4s.jobq.maps.tally import tally_of
from ai4s.jobq.message import BatchMeta, Call, Cause, Failure
from ai4s.jobq.packing import Code, Packed, failed
from ai4s.jobq.transports.base import BlobInfo

declared = App("tally-unit")
FAILURE = Failure(Cause.RAISED, "ValueError", "no")


@declared.task
def square(x: int) -> int:
    return x * x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's tasks, on an empty store, without a worker."""
    return jobq_place(declared)


def ended(app: App, values: dict[int, object], *, count: int) -> Batch[int]:
    """A batch of one pack, of which these calls have ended."""
    made = square.map(range(count), batch="b", pack=4096)
    log_entry(app, "b", values)
    return made


def test_a_tally_tells_numbers_and_states(app: App) -> None:
    """What is in no run of neighbours waits."""
    tally = ended(app, {0: 0, 1: 1, 2: ValueError("two"), 4: CANCELLED}, count=6).tally()
    assert (tally.calls, tally.submitted_all, tally.done, tally.waiting) == (6, True, 4, 2)
    assert (tally.succeeded, tally.failed, tally.cancelled, tally.expired) == (2, 1, 1, 0)
    assert tally.states == [(0, 1, "succeeded"), (2, 2, "failed"), (4, 4, "cancelled")]
    assert (tally.errors, tally.entries, tally.run_times.total) == ({"ValueError": 1}, 1, 3)
    assert [done for _, done in tally.ended_points] == [4]
    assert tally.task.endswith("square")
    assert tally.rate > 0
    assert tally.seconds_left is not None


def test_a_tally_is_one_listing(app: App) -> None:
    """What the calls have in common was read before; the cost is by the same listing."""
    batch = ended(app, {0: 0}, count=2)
    batch.tally()
    with counted(app) as requests:
        batch.tally()
        batch.cost()
    assert requests == {"list": 2}


def test_what_runs_again_waits_and_then_stands_anew(app: App) -> None:
    """Failures that were to run again are none; those of the later run are."""
    batch = ended(app, {0: 0, 1: ValueError("one"), 2: ValueError("two"), 3: KeyError("three")}, count=4)
    assert batch.retry_failures() == 3
    tally = batch.tally()
    assert (tally.succeeded, tally.failed, tally.waiting, tally.retries) == (1, 0, 3, 1)
    assert (tally.states, tally.errors) == ([(0, 0, "succeeded")], {})
    log_entry(app, "b", {1: 1, 2: OSError("again")}, log="000000.r1")
    tally = batch.tally()
    assert (tally.succeeded, tally.failed, tally.waiting) == (2, 1, 1)
    assert tally.states == [(0, 1, "succeeded"), (2, 2, "failed")]
    assert tally.errors == {"OSError": 1}


def test_entries_of_earlier_versions_count(app: App) -> None:
    """Their calls' states are not known; nor is which failures ran again, as long as these have not ended."""
    batch = square.map(range(4), batch="b", pack=4096)
    put(app, layout.log_entry("b", "000000", 0), {"done": "3", "failed": "1"})
    tally = batch.tally()
    assert (tally.succeeded, tally.failed, tally.waiting, tally.states) == (2, 1, 1, [])
    put(app, layout.batch_retry("b", 1), {"sent": "yes"})
    put(app, layout.log_entry("b", "000000.r1", 0), {"done": "1"})
    tally = batch.tally()
    assert (tally.succeeded, tally.failed, tally.waiting) == (3, 0, 1)


def test_nonsense_counts_as_nothing(app: App) -> None:
    """Of an entry that somebody spoilt, of a name that is none, of a total that is another's."""
    batch = ended(app, {0: 0}, count=3)
    put(app, layout.log_entry("b", "000000", 1), {"done": "x", "ok": "7-9", "at": "1e9", "runs": "99:1", "slow": "1:nan"})
    put(app, layout.log_entry("b", "000777", 0), {"ok": "0-2", "bad": "0", "requests": "bp:-1"})
    put(app, "batches/b/log/strange", {"done": "5"})
    put(app, "batches/b/retries/strange", {"calls": "5"})
    tally = batch.tally()
    assert (tally.calls, tally.done, tally.states) == (3, 1, [(0, 0, "succeeded")])


def put(app: App, name: str, metadata: dict[str, str]) -> None:
    async def do(ledger: Ledger) -> None:
        await (await ledger.store()).put(name, b"x", metadata=metadata)

    app.client.run(do)


def test_what_is_not_there_is_said(app: App) -> None:
    """A name that was mistyped, a batch that was removed."""
    with pytest.raises(JobQError, match="There is no batch"):
        app.batch("none").tally()
    batch = ended(app, {0: 0}, count=1)
    batch.forget()
    with pytest.raises(ResultGone):
        batch.tally()


def test_the_producers_requests_are_the_batches(app: App) -> None:
    """What submitting took is told by its total, to the request."""
    made: Counter[str] = Counter()

    def count(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made[found.__name__] += 1
        return found(*args, **kwargs)

    square.map(range(1))  # makes container and queue
    with between(app, count):
        batch = square.map(range(500), batch="b")
    told = batch.tally().requests
    assert told["blob_put"] == made["put"]
    assert told["queue_send"] == made["send"]
    assert told["blob_get"] == made["get"]
    assert batch.cost().requests == told


def test_a_hundred_thousand_calls_are_reckoned_within_moments() -> None:
    """In 400 entries of several gaps each; the bound is ten times what it takes."""
    made = [BlobInfo(layout.batch_meta("b"), 1, "", 0.0), BlobInfo(layout.batch_total("b"), 1, "", 0.0)]
    made += [pack_input(pack) for pack in range(25)]
    made += [entry(place * 250) for place in range(400)]
    meta = BatchMeta(Call("b.0", "t", "default", b"", 0.0))
    began = time.process_time()
    tally = tally_of(Standing("b", made), meta, 2000.0)
    took = time.process_time() - began
    assert (tally.calls, tally.done, tally.failed, tally.waiting) == (100_000, 100_000, 2_000, 0)
    assert sum(last + 1 - first for first, last, _ in tally.states) == 100_000
    assert took < 1.0


def pack_input(pack: int) -> BlobInfo:
    return BlobInfo(layout.pack_input("b", pack), 1, "", 0.0, {"first": str(pack * 4000), "count": "4000"})


def entry(start: int) -> BlobInfo:
    outcomes = [
        failed(at, 1, 0.5, FAILURE) if at % 50 == 0 else Packed(at, Code.VALUE, 1, 0.1, b"") for at in range(start, start + 250)
    ]
    name = layout.log_entry("b", layout.root_log(start // 4000), start % 4000 // 250)
    return BlobInfo(name, 1, "", 1000.0, notes(outcomes, 0, Written("w-1-a", 1000.0, {"blob_put": 1})))
