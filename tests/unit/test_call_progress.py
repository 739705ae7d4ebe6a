"""What a task says of its progress: checked where it is said, bounded, and never in its way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai4s.jobq import JobQError, current
from ai4s.jobq.call_progress import MAX_MESSAGE_CHARS, CallProgress
from ai4s.jobq.overview.current import MOST_CHARS, CurrentCall, from_body, from_text, to_body, to_text
from ai4s.jobq.recent import Recent
from ai4s.jobq.running import RunningCall, Support, running
from ai4s.jobq.worker.jobs import Progressed, to_frame
from ai4s.jobq.worker.jobs import from_body as frame_of
from ai4s.jobq.worker.progress_sender import ProgressSender

CALL = RunningCall("c-1", 1, 1, "proj.task", "default", "w", "c-1")
NUMBERS = st.floats(0, 10**9)
PROGRESS = st.builds(CallProgress, NUMBERS, st.none() | NUMBERS, st.text(max_size=20))
CALLS = st.lists(st.builds(CurrentCall, st.text(min_size=1, max_size=30), st.text(max_size=30), NUMBERS, st.none() | PROGRESS))


def said_by(say: Callable[[RunningCall], None]) -> list[CallProgress]:
    """What is heard of a running call that does this."""
    heard: list[CallProgress] = []
    support = Support(None, threading.Event(), None, heard.append)  # type: ignore[arg-type]  # it keeps no checkpoint
    with running(CALL, support):
        say(current())
    return heard


@pytest.mark.parametrize("done", ["3", None, True, 1j, [1]])
def test_what_is_no_number_is_a_type_error(done: Any) -> None:
    """The task hears of it at once, with what to give instead."""
    with pytest.raises(TypeError, match="takes a number"):
        said_by(lambda call: call.progress(done))


@pytest.mark.parametrize("done", [-1, float("nan"), float("inf"), -0.5, 10**400, Fraction(-(10**400))])
def test_what_cannot_be_counted_with_is_a_value_error(done: Any) -> None:
    """Neither below 0 nor without an end, as `done` or as `total`."""
    for arguments in ((done, 1), (1, done)):
        with pytest.raises(ValueError, match="finite number of at least 0"):
            said_by(lambda call, said=arguments: call.progress(*said))  # type: ignore[misc]


def test_a_message_is_a_text_and_is_cut() -> None:
    """200 characters that can be shown, whatever was said."""
    with pytest.raises(TypeError, match="takes a text"):
        said_by(lambda call: call.progress(1, message=b"x"))  # type: ignore[arg-type]
    (said,) = said_by(lambda call: call.progress(Fraction(1, 2), 4, "\x1b[2J" + "x" * 10_000))
    assert (said.done, said.total, len(said.message)) == (0.5, 4, MAX_MESSAGE_CHARS)
    assert "\x1b" not in said.message


def test_progress_is_readable() -> None:
    """For lists: numbers, a share, and the words."""
    assert str(CallProgress(3, 4, "training")) == "3 of 4 (75%): training"
    assert str(CallProgress(1234567)) == "1,234,567"


def test_without_anybody_to_tell_nothing_comes_of_it() -> None:
    """In inline mode, and for a call that does not run any more, it is checked and dropped."""
    kept: list[RunningCall] = []
    with running(CALL):
        current().progress(1, 2)
        kept.append(current())
    kept[0].progress(1, 2)
    with pytest.raises(JobQError, match="inside a running task"):
        current()


def test_the_last_word_arrives_and_few_of_those_before() -> None:
    """However often a task says something, its process sends the newest from time to time, and the last one surely."""
    heard, last = [], threading.Event()

    def send(said: Progressed) -> None:
        heard.append(said)
        if said.done == 9_999:
            last.set()

    sender = ProgressSender(send, pause_seconds=0.05)
    for done in range(10_000):
        sender.say(7, 0, CallProgress(done, 10_000))
    assert last.wait(30)
    assert len(heard) < 1_000
    assert {said.number for said in heard} == {7}


def test_a_frame_of_progress_comes_back_as_it_was() -> None:
    """As every frame between child and supervisor."""
    said = Progressed(3, 2, 0.5, None, "épochs")
    assert frame_of(to_frame(said)[4:]) == said


@given(CALLS)
def test_running_calls_are_told_in_ascii_as_many_as_fit(calls: list[CurrentCall]) -> None:
    """What fits into the metadata is read as it was, but for the precision of numbers and for what cannot be shown."""
    text, fit = to_text(calls)
    assert text.isascii()
    assert len(text) <= MOST_CHARS
    assert len(from_text(text)) == fit


def test_names_may_hold_what_separates() -> None:
    """Tildes, spaces, percent signs and escapes of a task's name and message confuse nobody."""
    call = CurrentCall("a~b%7E c", "täsk ~ %20", 12.0, CallProgress(1, None, "~ 50% of é"))
    assert from_text(to_text([call])[0]) == (call,)
    assert from_body(to_body([call])) == (call,)


def test_a_listing_shows_the_longest_and_the_body_all() -> None:
    """Thousands of calls do not fit in a blob's metadata."""
    calls = [CurrentCall(f"call-{n}", "proj.task", float(n), CallProgress(n, 5000, "x" * 200)) for n in range(2000)]
    text, fit = to_text(calls)
    assert 10 < fit < 100
    assert [call.id for call in from_text(text)] == [call.id for call in calls[:fit]]
    assert from_body(to_body(calls)) == tuple(calls)


@given(st.text() | st.text("~%a1 ", max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    """A status that somebody spoilt hides no other."""
    for call in from_text(text):
        assert call.id


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"[]", b'{"calls": 3}', b'{"calls": [1, {}, {"id": 3}, {"id": "a", "task": "t", "started": "NaN"}]}', b"\xff"],
)
def test_any_body_can_be_read(body: bytes) -> None:
    """None of these tells of a call."""
    assert from_body(body) == ()


async def test_who_asks_often_costs_one_look() -> None:
    """An answer is kept for some seconds; a look that failed is not."""
    now, looks = [0.0], []

    async def look() -> int:
        looks.append(now[0])
        if len(looks) == 1:
            raise OSError
        return len(looks)

    recent = Recent[int](lambda: now[0])
    with pytest.raises(OSError):  # noqa: PT011  # it has no text
        await recent.get(2, look)
    assert [await recent.get(2, look) for _ in range(3)] == [2, 2, 2]
    now[0] = 2.0
    assert await recent.get(2, look) == 3
