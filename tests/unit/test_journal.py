"""What a child writes down as the calls of a chunk end, and what is believed of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ai4s.jobq.errors import Malformed
from ai4s.jobq.message import Cause, Failure
from ai4s.jobq.worker.jobs import Kind, Report
from ai4s.jobq.worker.journal import Frame, Journal, Mark, report_frame, to_frame

FAILED = Report(1, Kind.RAISED, failure=Failure(Cause.RAISED, "ValueError", "no"), seconds=0.5)
GOOD = to_frame(Mark.VALUE, 0.5, b"value") + to_frame(Mark.FILE, 1.0, b"") + report_frame(FAILED)


@pytest.mark.parametrize("cut", range(len(GOOD) + 1))
def test_frames_are_read_once_they_are_whole(tmp_path: Path, cut: int) -> None:
    """Wherever the writer is, or died: what is whole counts, the rest is awaited."""
    path = tmp_path / "journal"
    journal = Journal(path)
    assert journal.read() == []
    path.write_bytes(GOOD[:cut])
    first = journal.read()
    path.write_bytes(GOOD)
    frames = first + journal.read()
    assert [frame.mark for frame in frames] == [Mark.VALUE, Mark.FILE, Mark.REPORT]
    assert frames[0] == Frame(Mark.VALUE, 0.5, b"value")
    assert frames[2].report == FAILED
    assert journal.read() == []
    assert not journal.is_damaged


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 20,
        b"\x00" + b"\xff" * 20,
        to_frame(Mark.VALUE, -1.0, b""),
        to_frame(Mark.SLICE, 0.0, b"\0\0\0\0"),
        b"text of a task\n" * 3,
    ],
)
def test_what_stands_before_garbage_counts(tmp_path: Path, garbage: bytes) -> None:
    """Garbage ends what is believed, and does not take with it what is sound."""
    path = tmp_path / "journal"
    path.write_bytes(GOOD + garbage)
    journal = Journal(path)
    assert len(journal.read()) == 3
    assert journal.is_damaged


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x80", b"\xff"])
def test_a_report_that_is_none_is_refused(data: bytes) -> None:
    """A frame of the right form with something else in it."""
    with pytest.raises(Malformed):
        _ = Frame(Mark.REPORT, 0.0, data).report
