"""Streams: outcomes are read while items are still being submitted, with so many in between at most. Calls run inline here."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from storage_spy import between, blobs

from ai4s.jobq import App, DeclarationError, MapInterrupted, State, Unreachable, WouldDeadlock
from ai4s.jobq.maps.streaming import AsyncStream

app = App("streams")


@app.task
def square(x: int) -> int:
    return x * x


@app.task
def invert(x: int) -> float:
    return 1 / x


@app.task
def stream_within(x: int) -> None:
    square.stream(range(x))


@pytest.fixture(autouse=True)
def place(jobq_inline: Callable[[App], App]) -> App:
    """The app of this file on an empty store, inline."""
    return jobq_inline(app)


class Source:
    """Numbers that count how many were asked for, and say when so many were."""

    def __init__(self, stop: int | None = None) -> None:
        self.given = 0
        self._stop = stop
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count() if self._stop is None else range(self._stop):
            with self._changed:
                self.given += 1
                self._changed.notify_all()
            yield number

    async def items(self) -> AsyncIterator[int]:
        """The same numbers, asynchronously."""
        for number in self:
            await asyncio.sleep(0)
            yield number

    def until(self, count: int) -> None:
        """Wait until so many were asked for."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.given >= count, timeout=60)


# What comes out.


@pytest.mark.parametrize("ahead", [1, 2, 7, 10_000])
def test_every_outcome_comes_once(ahead: int) -> None:
    """However few may be on their way."""
    with square.stream(range(100), ahead=ahead) as outcomes:
        found = {outcome.index: outcome.value for outcome in outcomes}
    assert found == {number: number**2 for number in range(100)}
    assert outcomes.batch.progress().is_whole


@pytest.mark.parametrize("ahead", [1, 7, 10_000])
async def test_an_async_stream_gives_the_same(ahead: int) -> None:
    """Of an async source, with `async for`."""
    async with square.astream(Source(100).items(), ahead=ahead) as outcomes:
        found = {outcome.index: await outcome.avalue() async for outcome in outcomes}
    assert found == {number: number**2 for number in range(100)}


async def test_an_async_stream_takes_plain_iterables() -> None:
    """And several, until the shortest ends."""

    @app.task(name="add")
    async def add(x: int, y: int) -> int:
        return x + y

    async with add.astream(range(10), Source(3).items()) as outcomes:
        assert sorted([outcome.value async for outcome in outcomes]) == [0, 2, 4]


def test_an_empty_source_gives_nothing() -> None:
    """Its batch is there, and whole."""
    with square.stream([]) as outcomes:
        assert list(outcomes) == []
    assert list(app.batch(outcomes.batch.id)) == []


def test_a_failure_is_an_outcome() -> None:
    """It ends nothing."""
    with invert.stream([1, 0, 2]) as outcomes:
        found = {outcome.index: outcome for outcome in outcomes}
    assert [found[index].state for index in range(3)] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    assert isinstance(found[1].error, ZeroDivisionError)


def test_the_batch_can_be_read_again_afterwards() -> None:
    """In order, from its id: what was streamed is a batch like others."""
    with square.stream(range(20), batch="streamed") as outcomes:
        for _ in outcomes:
            pass
    assert list(app.batch("streamed")) == [number**2 for number in range(20)]


# How much lies in between.


def test_a_slow_reader_keeps_the_source_waiting() -> None:
    """Of an endless source no more is taken than may be on its way."""
    source = Source()
    with square.stream(source, ahead=20) as outcomes:
        source.until(21)  # the one that waits at the gate has been made
        for count, _ in enumerate(outcomes, 1):
            assert source.given <= 20 + count + 1
            if count == 50:
                break
    assert source.given <= 20 + 50 + 1


async def test_a_slow_async_reader_does_too() -> None:
    """While its loop goes on."""
    source = Source()
    async with square.astream(source.items(), ahead=20) as outcomes:
        count = 0
        async for _ in outcomes:
            count += 1
            assert source.given <= 20 + count + 1
            if count == 50:
                break


def test_skipped_items_make_room() -> None:
    """Else a source of which most is done already would stop for ever."""
    with square.stream(range(200), ahead=40, skip=lambda x: x % 10 != 0) as outcomes:
        assert sorted(outcome.value for outcome in outcomes) == [number**2 for number in range(0, 200, 10)]


def test_items_with_known_keys_make_room() -> None:
    """Those of the same stream, and those of an earlier one; whose outcomes come as well."""
    with square.stream([1, 1, 1, 1, 1, 2], ahead=2, batch="keyed", key=str) as outcomes:
        assert sorted(outcome.value for outcome in outcomes) == [1, 4]
    source = Source(40)
    with square.stream(source, ahead=2, batch="keyed", key=str) as outcomes:
        found = {}
        for outcome in outcomes:
            found[outcome.key] = outcome.value
            assert source.given <= len(found) + 2 + 2 + 1  # those that were there, the ones on their way, and the next
    assert found == {str(number): number**2 for number in range(40)}


# Ends.


def test_leaving_early_submits_nothing_more_and_cancels() -> None:
    """The batch is whole, and somebody has asked for its end."""
    source = Source()
    with square.stream(source, ahead=10) as outcomes:
        for outcome in outcomes:
            assert outcome.ok
            break
    given = source.given
    assert outcomes.batch.progress().is_whole
    assert blobs(app, f"batches/{outcomes.batch.id}/cancelled")
    assert source.given == given


def test_leaving_without_reading_ends_it_too() -> None:
    """Also by an error of the block's own, which is what is raised."""
    with pytest.raises(KeyError, match="mine"), square.stream(itertools.count(), ahead=10) as outcomes:
        raise KeyError("mine")
    assert outcomes.batch.id


async def test_leaving_an_async_stream_cancels_a_source_that_waits() -> None:
    """For something that never comes."""
    left = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            left.set()

    async with square.astream(source()) as outcomes:
        async for outcome in outcomes:
            assert outcome.value == 1
            break
    await asyncio.wait_for(left.wait(), timeout=60)


def test_reading_to_the_end_cancels_nothing() -> None:
    """Neither then nor afterwards."""
    with square.stream(range(5)) as outcomes:
        assert len(list(outcomes)) == 5
    assert not blobs(app, f"batches/{outcomes.batch.id}/cancelled")


async def read(outcomes: AsyncStream[int], found: list[int]) -> None:
    """Take what comes."""
    async for outcome in outcomes:
        found.append(outcome.value)  # noqa: PERF401  # to be there when the next one raises


def broken(count: int) -> Iterator[int]:
    """Numbers, and then an error."""
    yield from range(count)
    raise ConnectionError("the source is gone")


@pytest.mark.parametrize("count", [0, 1, 50])
def test_what_the_source_raises_comes_after_the_outcomes_before_it(count: int) -> None:
    """As MapInterrupted, which knows the batch."""
    found: list[int] = []
    with square.stream(broken(count), ahead=5) as outcomes, pytest.raises(MapInterrupted, match="the source is gone") as caught:
        found.extend(outcome.value for outcome in outcomes)
    assert sorted(found) == [number**2 for number in range(count)]
    assert caught.value.batch == outcomes.batch
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_what_an_async_source_raises_comes_likewise() -> None:
    """After all outcomes before it."""

    async def source() -> AsyncIterator[int]:
        for number in broken(7):
            yield number

    found: list[int] = []
    async with square.astream(source(), ahead=2) as outcomes:
        with pytest.raises(MapInterrupted, match="the source is gone"):
            await read(outcomes, found)
    assert sorted(found) == [number**2 for number in range(7)]


def test_an_item_that_cannot_travel_ends_the_stream() -> None:
    """What came before it is read."""
    found: list[int] = []
    with square.stream([1, 2, threading.Lock(), 3]) as outcomes, pytest.raises(MapInterrupted, match="lock"):
        found.extend(outcome.value for outcome in outcomes)
    assert sorted(found) == [1, 4]


def failing(about: str) -> Callable[..., Any]:
    """Requests, of which those that put something under this name fail."""

    async def fail() -> None:
        raise Unreachable("no answer", maybe_done=False)

    def around(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if method.__name__ == "put" and about in str(args[0]):
            return fail()
        return method(*args, **kwargs)

    return around


@pytest.mark.parametrize("about", ["/meta", "/in/000000", "/in/000003", "/total"])
def test_a_storage_that_fails_is_heard_of(about: str) -> None:
    """At once, and not waited for: messages may be missing of what was put."""
    with between(app, failing(about)), pytest.raises(Unreachable), square.stream(range(100), ahead=8) as outcomes:
        list(outcomes)


async def test_a_storage_that_fails_is_heard_of_asynchronously() -> None:
    """The same."""
    with between(app, failing("/in/000003")):
        async with square.astream(range(100), ahead=8) as outcomes:
            with pytest.raises(Unreachable):
                await read(outcomes, [])


# What is wrong with it.


def test_a_stream_is_read_in_its_block() -> None:
    """Outside of it nobody submits anything."""
    with pytest.raises(DeclarationError, match="inside its block"):
        next(iter(square.stream(range(3))))


async def test_an_async_stream_is_read_in_its_block() -> None:
    """Likewise."""
    with pytest.raises(DeclarationError, match="inside its block"):
        await anext(aiter(square.astream(range(3))))


@pytest.mark.parametrize("ahead", [0, -1, 1.5, True])
def test_ahead_is_a_number_of_calls(ahead: Any) -> None:
    """Said when the stream is made."""
    with pytest.raises(DeclarationError, match="ahead"):
        square.stream(range(3), ahead=ahead)


def test_a_task_cannot_read_a_stream() -> None:
    """It would hold a slot for calls that may need it."""
    with pytest.raises(WouldDeadlock):
        stream_within.delay(3).result()
