"""What a chunk's end means for its calls: who has an outcome, who is charged, who runs again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from failure_points import QUEUE, TASK

from ai4s.jobq.call_progress import CallProgress
from ai4s.jobq.layout import sha256_of
from ai4s.jobq.lifecycle import Cancelled, Died, Disturbed, Hindered, Preempted, Raised, TimedOut
from ai4s.jobq.message import BatchMeta, Call, Cause, Failure, PackHeader, Spill
from ai4s.jobq.packing import Code, PackInput
from ai4s.jobq.transports.base import Delivery, Receipt
from ai4s.jobq.worker.counts import Counts
from ai4s.jobq.worker.jobs import Kind, Report
from ai4s.jobq.worker.journal import Journal, Mark, report_frame, slice_frame, to_frame
from ai4s.jobq.worker.pack_calls import PackCalls
from ai4s.jobq.worker.reckoning import Dealt, Reckoner, RunningChunk

HEADER = PackHeader("b", 0, QUEUE, 1.0, Spill(1, sha256_of(b"")), 0, 8, "0-7", "000000")
CALL = Call("b.0", TASK, QUEUE, b"", 1.0, retries=1)
FAILURE = Failure(Cause.RAISED, "ValueError", "no")
DONE = Report(1, Kind.DONE)
FAILED = Report(1, Kind.RAISED, failure=FAILURE, retryable=False)
VALUE = to_frame(Mark.VALUE, 0.1, b"v")


class Case:
    """A pack of eight calls, the first five of which run in a chunk."""

    def __init__(self, folder: Path, *, vector: int = 0) -> None:
        self.calls, self.counts = PackCalls.of(HEADER), Counts()
        delivery = Delivery(Receipt("m", "r"), "", 1, 0.0, 0.0, 0.0)
        self.dealt = dealt = Dealt(
            HEADER,
            BatchMeta(CALL, vector),
            PackInput(()),
            self.calls,
            cast("Any", None),
            delivery,
            cast("Any", None),
            "t",
            self.counts,
        )
        self.reckoner = Reckoner(cast("Any", None), lambda: 100.0, dealt)
        self.path = folder / "journal"
        stop: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.running = RunningChunk(1, self.calls.deal(5), Journal(self.path), folder / "value", stop, 99.0)

    async def end(self, journal: bytes, ending: Any) -> bool:
        """The chunk's end: what its child wrote down, and what its executor says."""
        self.path.write_bytes(journal)
        await self.reckoner.take_in(self.running)
        return self.reckoner.conclude(self.running, ending)

    @property
    def ended(self) -> dict[int, int]:
        """How calls have ended, that have."""
        return {index: outcome.code for index, outcome in self.calls.pending.items()}

    @property
    def charged(self) -> dict[int, int]:
        """How many attempts calls have behind them, that are charged."""
        return {index: each.errors + each.deaths + each.preemptions for index, each in self.calls.charges.items()}


VALUES_OF_TWO = {0: Code.VALUE, 1: Code.VALUE}


@pytest.mark.parametrize(
    ("ending", "charged", "goes_on"),
    [
        (Died(FAILURE), {2: 1}, True),
        (TimedOut(FAILURE), {2: 1}, True),
        (Preempted(), {2: 1}, False),
        (Disturbed(suspect=False), {}, True),
        (Hindered(), {}, False),
        (Raised(FAILURE, retryable=True), {2: 1}, True),
    ],
)
async def test_the_first_call_without_an_outcome_pays(tmp_path: Path, ending: Any, charged: dict[int, int], goes_on: bool) -> None:
    """Those before it have ended, those after it have not begun."""
    case = Case(tmp_path)
    assert await case.end(VALUE + VALUE, ending) is goes_on
    assert case.ended == VALUES_OF_TWO
    assert case.charged == charged
    assert not case.calls.running
    assert {3, 4} <= set(case.calls.deal(16))


async def test_what_ended_when_its_time_was_up_does_not_cost_the_next_call(tmp_path: Path) -> None:
    """The call that was stopped returned all the same; the one that had begun then is dealt again, uncharged."""
    case = Case(tmp_path)
    case.running.overdue = 1
    await case.end(VALUE + VALUE, TimedOut(FAILURE))
    assert case.ended == VALUES_OF_TWO
    assert case.charged == {}
    assert case.calls.deal(16) == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("garbage", [b"\xff" * 50, to_frame(Mark.REPORT, 0.0, b"\xc1"), report_frame(Report(1, Kind.RAISED)), b""])
async def test_a_child_that_says_it_is_done_and_does_not_say_how_is_charged(tmp_path: Path, garbage: bytes) -> None:
    """What stands before the garbage counts; without a charge the calls would run for ever."""
    case = Case(tmp_path)
    await case.end(VALUE + VALUE + garbage + VALUE * bool(garbage), DONE)
    assert case.ended == VALUES_OF_TWO
    assert case.charged == {2: 1}


async def test_calls_that_were_called_back_cost_nothing(tmp_path: Path) -> None:
    """A child says that it is done, before it is heard what it gave back."""
    case = Case(tmp_path)
    case.running.recalling = True
    await case.end(VALUE + VALUE, DONE)
    assert case.charged == {}
    assert case.calls.deal(16) == [2, 3, 4, 5, 6, 7]


async def test_a_cancelled_batch_ends_all_that_does_not_run(tmp_path: Path) -> None:
    """One chunk is stopped: what it had not begun and what waits are cancelled; another chunk's calls are its own to end."""
    case = Case(tmp_path)
    assert case.calls.deal(1) == [5]
    await case.end(VALUE + VALUE, Cancelled())
    assert case.ended == {**VALUES_OF_TWO, **dict.fromkeys((2, 3, 4, 6, 7), Code.CANCELLED)}
    assert case.calls.running == {5}
    assert case.calls.deal(16) == []


async def test_a_failed_slice_charges_nobody_until_it_is_one_item(tmp_path: Path) -> None:
    """It is halved; the last one standing is charged."""
    case = Case(tmp_path, vector=8)
    await case.end(slice_frame(FAILED, 5), DONE)
    assert case.ended == {}
    assert case.charged == {}
    assert [case.calls.deal(8), case.calls.deal(8)] == [[0, 1], [2, 3, 4]]
    case.calls.bisect([0, 1])
    case.running = RunningChunk(2, [0], Journal(case.path), case.path, case.running.stop, 99.0)
    await case.end(slice_frame(FAILED, 1), DONE)
    assert case.ended == {0: Code.FAILED}


async def test_calls_are_counted_as_they_begin_and_end(tmp_path: Path) -> None:
    """Those that have an outcome and the one that ran; what had not begun has not, and runs later."""
    case = Case(tmp_path)
    case.reckoner.note_begun(case.running)
    assert case.counts.begun == 1
    await case.end(VALUE + VALUE, Died(FAILURE))
    assert (case.counts.begun, case.counts.deaths, case.counts.wait_times.total, case.counts.run_times.total) == (3, 1, 3, 3)


class Told:
    """Adds up what a watcher hears."""

    def __init__(self) -> None:
        self.begun = self.first = self.ended_ones = 0

    def began(self, call: object, number: int = 1, first: int = 1) -> None:
        self.begun, self.first = self.begun + number, self.first + first

    def succeeded(self, call: object, seconds: Sequence[float]) -> None:
        self.ended_ones += len(seconds)

    def ended(self, call: object, how: str, seconds: float, error: str = "") -> None:
        self.ended_ones += 1


@pytest.mark.parametrize("vector", [0, 3])
@pytest.mark.parametrize("ending", [Died(FAILURE), TimedOut(FAILURE), Preempted(), Hindered(), DONE])
async def test_as_many_attempts_end_as_have_begun(tmp_path: Path, ending: Any, vector: int) -> None:
    """However a chunk ends, and whether or not a slice of it is halved; a call that begins again has not waited again."""
    case, told = Case(tmp_path, vector=vector), Told()
    case.counts.watchers = (told,)
    case.reckoner.note_begun(case.running)
    case.running.recalling = ending is DONE
    journal = VALUE + VALUE if vector == 0 else slice_frame(FAILED, 3)
    await case.end(journal, ending)
    assert told.begun == told.ended_ones == case.counts.begun == (5 if vector else 3)
    began = told.first
    again = RunningChunk(2, case.calls.deal(1), Journal(tmp_path / "2"), tmp_path, case.running.stop, 99.0)
    case.reckoner.note_begun(again)
    assert told.first == began + (not vector)


async def test_what_runs_in_a_chunk_is_known_by_what_it_says(tmp_path: Path) -> None:
    """The journal is read from time to time; a later call that says how far it is runs, and not the one after the last outcome."""
    case = Case(tmp_path)
    dealt = case.dealt
    first = case.running.current(dealt)
    case.running.progressed(3, CallProgress(1, 2))
    later = case.running.current(dealt)
    assert first is not None
    assert later is not None
    assert (first.id, first.progress) == ("b.0", None)
    assert (later.id, later.progress) == ("b.3", CallProgress(1, 2))
    case.running.ended = 5
    assert case.running.current(dealt) is None
