"""Reading a call's log: attempts in order, the outcome's lines after those of the blob, and whatever bytes a stranger put there.

Next: `test_call_logs.py` for who writes it; `../acceptance/test_logs.py` for real workers.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_transport import MemoryPlace, MemoryTransport

from ai4s.jobq import layout, logs
from ai4s.jobq.errors import ResultGone
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.log_lines import CUT, FULL, MAX_TAIL_BYTES, LogLine, last_lines, parsed, plain, split, to_line
from ai4s.jobq.logs import LogReader
from ai4s.jobq.message import Outcome, State
from ai4s.jobq.signing import Keyring

ID = "abcdefgh234567ab-000000000007"


def lines(*texts: str) -> str:
    return "".join(to_line(number, "o", text) for number, text in enumerate(texts, 1))


class Bench:
    """A call's log on a place in memory, and the outcome that a reader is to find."""

    def __init__(self) -> None:
        self.ledger = Ledger(MemoryTransport(MemoryPlace()), "proj", Keyring())
        self.outcome: Outcome | None = None
        self.looks = 0

    async def look(self, ledger: Ledger) -> Outcome | None:
        self.looks += 1
        return self.outcome

    async def put(self, text: str | bytes, *, attempt: int = 1, run: int = 1, at: int = 0, began: float = 5.0) -> None:
        store = await self.ledger.store()
        data = text.encode() if isinstance(text, str) else text
        await store.append(layout.call_log(ID, (run, attempt, began), f"ab{attempt}"), data, at=at)

    def end(self, tail: str, *, attempts: int = 1, **known: Any) -> None:
        self.outcome = Outcome(ID, 1, State.FAILED, f"ab{attempts}", attempts=attempts, worker="w", tail=tail, **known)

    def reader(self, *, follow: bool = False) -> LogReader:
        return LogReader(ID, self.look, follow=follow)

    async def all(self) -> list[LogLine]:
        reader, found = self.reader(), []
        while (more := await reader.more(self.ledger)) is not None:
            assert more, "it waits for what will not come"
            found += more
        return found

    async def texts(self) -> list[str]:
        return [line.text for line in await self.all()]


async def test_what_is_short_lies_in_the_outcome_alone() -> None:
    """It begins with the same line of ours as what lies in a blob."""
    bench = Bench()
    bench.end(lines("one", "two"), started=5.0)
    assert await bench.all() == [
        LogLine(5.0, "jobq", "Attempt 1, by worker w", 1),
        LogLine(1.0, "stdout", "one", 1),
        LogLine(2.0, "stdout", "two", 1),
    ]


async def test_a_call_that_said_nothing_has_no_lines() -> None:
    """Nor has one that has not begun."""
    bench = Bench()
    assert await bench.all() == []
    bench.end("")
    assert await bench.all() == []


@pytest.mark.parametrize("stored", range(1, 6))
@pytest.mark.parametrize("kept", range(1, 6))
async def test_the_end_is_taken_from_the_outcome_where_the_blob_has_none(stored: int, kept: int) -> None:
    """Each line once, however much of it lies in both."""
    bench, said = Bench(), ["a", "b", "b", "b", "c"]
    every = split(lines(*said))
    if stored + kept < len(said):
        return
    await bench.put("".join(f"{line}\n" for line in every[:stored]))
    bench.end("".join(f"{line}\n" for line in every[-kept:]))
    assert await bench.texts() == said


async def test_what_is_stored_just_after_the_outcome_is_waited_for() -> None:
    """The outcome says that its lines are not all; so the others must come, unless their worker has died."""
    bench, said = Bench(), [f"line {number}" for number in range(200)]
    whole, cut = lines(*said), to_line(1, "j", CUT)
    bench.end(cut + last_lines(whole, 500))
    reader = bench.reader()
    assert await reader.more(bench.ledger) == []
    await bench.put(whole)
    found = await reader.more(bench.ledger)
    assert [line.text for line in found or []] == said
    assert await reader.more(bench.ledger) is None
    lost = Bench()
    lost.end(cut + last_lines(whole, 500))
    reader = lost.reader()
    for _ in range(logs.LATE_LOOKS):
        assert await reader.more(lost.ledger) == []
    found = await reader.more(lost.ledger)
    assert [line.text for line in found or []][1:] == [CUT, *plain(last_lines(whole, 500)).split("\n")]


async def test_of_a_log_that_has_reached_its_bound_the_last_lines_follow() -> None:
    """Without a wait for what was left out."""
    bench = Bench()
    await bench.put(lines("early") + to_line(5, "j", FULL))
    bench.end(to_line(1, "j", CUT) + lines("late", "last"))
    assert await bench.texts() == ["early", FULL, "late", "last"]


async def test_a_last_line_that_the_outcome_holds_in_part_is_not_shown_twice() -> None:
    """It is too long for the outcome."""
    bench = Bench()
    await bench.put(lines("early", "x" * 8000))
    bench.end(to_line(1, "j", CUT) + last_lines(lines("early", "x" * 8000), 4000))
    assert await bench.texts() == ["early", "x" * 8000]


async def test_attempts_come_in_order() -> None:
    """Also the tenth after the second; the last one may have its lines in the outcome only."""
    bench = Bench()
    for attempt in (10, 2, 1):
        await bench.put(lines(f"by {attempt}"), attempt=attempt)
    bench.end(lines("by 11"), attempts=11)
    found = await bench.all()
    assert [(line.attempt, line.text) for line in found if line.stream != "jobq"] == [
        (1, "by 1"), (2, "by 2"), (10, "by 10"), (11, "by 11"),
    ]  # fmt: skip


async def test_an_attempt_whose_worker_vanished_comes_before_the_one_that_took_its_number() -> None:
    """A first delivery that never settles is not charged; each of the two has a line of ours before it."""
    bench = Bench()
    store = await bench.ledger.store()
    for token, began in (("zz", 5.0), ("aa", 9.0)):
        await store.append(layout.call_log(ID, (1, 1, began), token), lines(token).encode(), at=0)
    assert await bench.texts() == ["zz", "aa"]
    bench.end(lines("other"))
    assert await bench.texts() == ["zz", "aa", "Attempt 1, by worker w", "other"]


async def test_earlier_runs_come_first() -> None:
    """A retry of a failed call leaves what its earlier runs said."""
    bench = Bench()
    await bench.put(lines("again"), run=2)
    await bench.put(lines("first"), run=1, attempt=3)
    assert await bench.texts() == ["first", "again"]


async def test_following_waits_for_more_and_ends_with_the_call() -> None:
    """From before it begins, across an attempt that died, to the last lines in the outcome."""
    bench = Bench()
    reader = bench.reader(follow=True)

    async def more() -> list[str] | None:
        found = await reader.more(bench.ledger)
        return None if found is None else [line.text for line in found if line.stream != "jobq"]

    assert await more() == []
    assert await more() == []
    await bench.put(lines("one"))
    assert await more() == ["one"]
    assert await more() == []
    await bench.put(lines("two"), at=len(lines("one")))
    assert await more() == ["two"]
    await bench.put(lines("other"), attempt=2)
    heard = [await more() for _ in range(logs.LISTED_EVERY)]
    assert ["other"] in heard
    bench.end(lines("other", "last"), attempts=2)
    rest = [await more() for _ in range(4)]
    assert [text for texts in rest for text in texts or []] == ["last"]
    assert rest[-1] is None


async def test_following_looks_less_often_while_nothing_is_new() -> None:
    """From every 2 s to every 10 s, and often again once there is news."""
    bench = Bench()
    reader, pauses = bench.reader(follow=True), []
    for _ in range(6):
        assert await reader.more(bench.ledger) == []
        pauses.append(reader.pause_seconds)
    assert pauses == [2, 4, 8, 10, 10, 10]
    await bench.put(lines("one"))
    assert await reader.more(bench.ledger)
    await reader.more(bench.ledger)
    assert reader.pause_seconds == 2


async def test_a_forgotten_call_says_so() -> None:
    """Instead of having no lines."""
    bench = Bench()

    async def look(ledger: Ledger) -> Outcome | None:
        raise ResultGone("forgotten", call_id=ID)

    with pytest.raises(ResultGone):
        await LogReader(ID, look).more(bench.ledger)


async def test_large_logs_are_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line may lie in two of them, and so may a character."""
    monkeypatch.setattr(logs, "READ_BYTES", 7)
    bench, said = Bench(), [f"größer {number}" for number in range(20)]
    await bench.put(lines(*said))
    assert await bench.texts() == said


async def test_what_a_stranger_put_there_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes without a line's end, lines without a time, times that are none."""
    monkeypatch.setattr(logs, "READ_BYTES", 1000)
    bench = Bench()
    await bench.put(b"\xff\xfe\n1e999 o huge\nnan o none\n12 x odd\n\n1.0 e fine\n" + b"y" * 200_000)
    found = await bench.all()
    assert [line.text for line in found[:6]] == ["\ufffd\ufffd", "1e999 o huge", "nan o none", "12 x odd", "", "fine"]
    assert {line.stream for line in found[:5]} == {"jobq"}
    assert all(len(line.text) <= logs.MAX_LINE_BYTES for line in found)


@given(st.text(max_size=200), st.integers(1, 9))
def test_any_text_is_a_line(text: str, attempt: int) -> None:
    """What lies in storage may be anything."""
    assert parsed(text, attempt).attempt == attempt


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=60), max_size=50))
def test_last_lines_are_whole_and_bounded(texts: list[str]) -> None:
    """The end of what was said, from the beginning of a line on."""
    whole = lines(*texts)
    assert plain(whole).split("\n") == (texts or [""])
    cut = last_lines(whole, 200)
    assert len(cut.encode()) <= 200
    assert whole.endswith(cut)
    assert not cut or whole[: len(whole) - len(cut)].endswith("\n") or cut == whole


def test_a_last_line_that_is_too_long_alone_is_cut_at_its_end() -> None:
    """Its beginning says more than nothing."""
    cut = last_lines(lines("early", "x" * 10_000), MAX_TAIL_BYTES)
    assert len(cut) == MAX_TAIL_BYTES
    assert parsed(split(cut)[0]).text.startswith("xxx")
