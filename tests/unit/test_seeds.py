"""Maps over listings: several seeds at a time, on threads or on a loop; what is taken when one fails, and what is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from itertools import pairwise
from typing import Any

import pytest
from logged import headers

from ai4s.jobq import App, DeclarationError, Fed, MapInterrupted
from ai4s.jobq.maps import fed, progress_bar, sources

declared = App("seeds-unit")


@declared.task
def step(x: Any) -> Any:
    return x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's task, on an empty store, without a worker."""
    return jobq_place(declared)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Fed]:
    """What was reported, at every opportunity."""
    monkeypatch.setattr(fed, "TELL_SECONDS", 0.0)
    return []


def queued(app: App) -> int:
    """How many calls were sent."""
    return sum(header.count for header in headers(app))


def tens(seed: int) -> Iterator[int]:
    """The three items of a seed."""
    yield from range(10 * seed, 10 * seed + 3)


async def atens(seed: int) -> AsyncIterator[int]:
    """As `tens`."""
    for item in tens(seed):
        await asyncio.sleep(0)
        yield item


def mapped(lister: Any, *, is_async: bool, **given: Any) -> Any:
    """What `map` gives, or `amap`."""
    return asyncio.run(step.amap(lister, **given)) if is_async else step.map(lister, **given)


both_ways = pytest.mark.parametrize("is_async", [False, True], ids=["map", "amap"])


def listed(seed: int) -> list[int]:
    """As `tens`, all at once."""
    return list(tens(seed))


def alisted(seed: int) -> AsyncIterator[int]:
    """As `atens`, of which nobody sees beforehand that it is async."""
    return atens(seed)


class AsyncBarrier:
    """So many coroutines wait here for each other, once."""

    def __init__(self, count: int) -> None:
        self._missing, self._all_there = count, asyncio.Event()

    async def wait(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._all_there.set()
        await asyncio.wait_for(self._all_there.wait(), 30)


@both_ways
@pytest.mark.parametrize("lister", [tens, atens, listed, alisted])
def test_every_item_of_every_seed_is_queued(app: App, reports: list[Fed], lister: Any, is_async: bool) -> None:
    """Whatever kind of function lists, and whoever maps."""
    mapped(lister, is_async=is_async, seeds=iter(range(20)), key=str, report=reports.append)
    assert reports[-1] == Fed(60, 0, 60)
    assert queued(app) == 60


@both_ways
def test_blocking_listings_overlap(app: App, is_async: bool) -> None:
    """As many as were asked for run at a time: each waits until all are there."""
    all_there, running, most = threading.Barrier(3), 0, 0

    def lister(seed: int) -> Iterator[int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        all_there.wait(30)
        yield seed
        running -= 1

    mapped(lister, is_async=is_async, seeds=range(6), seeds_at_once=3)
    assert most == 3
    assert queued(app) == 6


@both_ways
def test_async_listings_overlap(app: App, is_async: bool) -> None:
    """On one loop."""
    all_there, running, most = AsyncBarrier(3), 0, 0

    async def lister(seed: int) -> AsyncIterator[int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await all_there.wait()
        yield seed
        running -= 1

    mapped(lister, is_async=is_async, seeds=range(6), seeds_at_once=3)
    assert most == 3


@both_ways
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_what_was_listed_before_an_error_is_submitted(app: App, is_async: bool, kind: str) -> None:
    """The other listings end where they are, and their generators are closed."""
    listed, closed, all_there, all_here = [], [], threading.Barrier(3), AsyncBarrier(3)

    def lister(seed: int) -> Iterator[int]:
        try:
            all_there.wait(30)
            for item in range(100_000):
                if seed == 1 and item == 5:
                    raise LookupError("the page is gone")
                listed.append(item)
                yield item
        finally:
            closed.append(seed)

    async def alister(seed: int) -> AsyncIterator[int]:
        try:
            await all_here.wait()
            for item in range(100_000):
                if seed == 1 and item == 5:
                    raise LookupError("the page is gone")
                listed.append(item)
                yield item
                await asyncio.sleep(0)
        finally:
            closed.append(seed)

    with pytest.raises(MapInterrupted, match=r"LookupError after .* the page is gone") as caught:
        mapped(lister if kind == "plain" else alister, is_async=is_async, seeds=range(3), seeds_at_once=3)
    assert isinstance(caught.value.__cause__, LookupError)
    assert sorted(closed) == [0, 1, 2]
    assert 5 <= queued(app) <= len(listed) < 300_000
    assert caught.value.batch is not None


def stopped(seed: int) -> Iterator[int]:
    """No generator: nobody makes an error of it."""
    if seed:
        raise StopIteration
    return tens(seed)


def given_up(seed: int) -> Iterator[int]:
    """Its own threads were told to end."""
    yield from tens(seed)
    raise CancelledError


async def agiven_up(seed: int) -> AsyncIterator[int]:
    """Its own task was cancelled."""
    for item in tens(seed):
        yield item
    raise asyncio.CancelledError


@both_ways
@pytest.mark.parametrize("lister", [stopped, given_up, agiven_up])
def test_a_listing_that_gives_up_is_not_taken_for_done(app: App, is_async: bool, lister: Any) -> None:
    """What it raised means something else to futures and task groups: the rest would be missing, or waited for in vain."""
    with pytest.raises(MapInterrupted, match="A listing") as caught:
        mapped(lister, is_async=is_async, seeds=range(2), seeds_at_once=1)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert queued(app) == 3


@both_ways
def test_an_error_of_the_seeds_is_one_of_the_source(app: App, is_async: bool) -> None:
    """They may be a listing themselves."""

    def seeds() -> Iterator[int]:
        yield 1
        raise LookupError("no more seeds")

    with pytest.raises(MapInterrupted, match="no more seeds"):
        mapped(tens, is_async=is_async, seeds=seeds())
    assert queued(app) <= 3


@both_ways
def test_listings_wait_while_nobody_takes(app: App, is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are ahead by the buffer's room, and not by the whole listing."""
    monkeypatch.setattr(sources, "AHEAD", 10)
    listed, ahead = 0, []

    def lister(seed: int) -> Iterator[int]:
        nonlocal listed
        for item in range(500):
            listed += 1
            yield item

    taken = 0

    def key(item: int) -> str:
        nonlocal taken
        taken += 1
        ahead.append(listed - taken)
        return str(item)

    mapped(lister, is_async=is_async, seeds=range(2), key=key)
    # What lies in the buffer, what was taken from it at a time, and one item in each listing's hand.
    assert max(ahead) <= 2 * 10 + 2


@both_ways
def test_an_interrupted_map_ends_its_listings(app: App, is_async: bool) -> None:
    """What `skip` raises is an error of the map; the generators are closed when it comes out."""
    closed, all_there = [], threading.Barrier(2)

    def lister(seed: int) -> Iterator[int]:
        all_there.wait(30)
        try:
            yield from range(10_000)
        finally:
            closed.append(seed)

    def skip(item: int) -> bool:
        raise LookupError("no answer")

    with pytest.raises(MapInterrupted, match="no answer"):
        mapped(lister, is_async=is_async, seeds=range(2), skip=skip)
    assert sorted(closed) == [0, 1]


@both_ways
def test_resuming_skips_the_keys_that_are_there(app: App, reports: list[Fed], is_async: bool) -> None:
    """A batch that is mapped again with seeds goes on, in whatever order the listings come."""
    mapped(tens, is_async=is_async, seeds=[1, 2], batch="b", key=str)
    mapped(tens, is_async=is_async, seeds=[3, 2, 1], batch="b", key=str, skip=lambda x: x == 30, report=reports.append)
    assert reports[-1] == Fed(considered=9, skipped=7, queued=2)
    assert queued(app) == 8


def test_counts_grow_while_the_map_goes_on(app: App, reports: list[Fed]) -> None:
    """Considered first, then skipped or queued."""
    step.map(range(1000), skip=lambda x: x % 2 == 0, report=reports.append)
    assert reports[-1] == Fed(1000, 500, 500)
    assert len(reports) > 100
    assert all(one.considered >= one.skipped + one.queued for one in reports)
    assert all(before.considered <= after.considered for before, after in pairwise(reports))
    assert str(reports[-1]) == "1,000 considered, 500 skipped, 500 queued"


@both_ways
def test_what_a_listener_raises_is_raised_once_all_before_is_safe(app: App, reports: list[Fed], is_async: bool) -> None:
    """As what the source raises."""

    def listen(told: Fed) -> None:
        if told.considered == 3:
            raise LookupError("nobody listens")

    with pytest.raises(MapInterrupted, match="nobody listens"):
        mapped(range(10), is_async=is_async, report=listen)
    assert queued(app) == 3


def test_a_stream_takes_seeds(app: App, jobq_worker: Callable[..., Any], reports: list[Fed]) -> None:
    """Its outcomes are those of all listed items."""
    jobq_worker(app)
    with step.stream(tens, seeds=range(4), report=reports.append) as outcomes:
        assert sorted(outcome.value for outcome in outcomes) == sorted(x for seed in range(4) for x in tens(seed))
    assert reports[-1] == Fed(12, 0, 12)


async def test_leaving_an_async_stream_ends_its_listings(app: App) -> None:
    """Also those that would go on for ever."""
    all_there, closed = AsyncBarrier(3), []

    async def lister(seed: int) -> AsyncIterator[int]:
        await all_there.wait()
        try:
            while True:
                yield seed
                await asyncio.sleep(0)
        finally:
            closed.append(seed)

    async with step.astream(lister, seeds=range(2), ahead=10):
        await all_there.wait()
    assert sorted(closed) == [0, 1]


def test_a_line_on_a_terminal_tells_the_counts(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody asked to be told, and somebody looks on."""
    monkeypatch.setattr(fed, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(progress_bar, "SHOWN_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress_bar, "_is_watched", lambda: True)
    said: list[str] = []
    stopped: list[bool] = []

    class Screen:
        def update(self, line: int, *, description: str) -> None:
            said.append(description)

        def stop(self) -> None:
            stopped.append(True)

    monkeypatch.setattr(progress_bar, "_open", lambda name, is_bar: (Screen(), 0))
    step.map(range(3))
    assert said[-1] == "map: 3 considered, 0 skipped, 3 queued"
    assert stopped == [True]
    said.clear()
    step.map(range(3), report=lambda told: None)
    assert not said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: step.map([1], seeds=[1]), "seeds= wants one function that lists the items of a seed"),
        (lambda: step.map(tens, [1], seeds=[1]), "seeds= wants one function"),
        (lambda: step.map(tens, seeds="abc"), "seeds= wants an iterable, .* got 'abc'"),
        (lambda: step.map(tens, seeds=3), "seeds= wants an iterable"),
        (lambda: step.map(tens, seeds=[1], seeds_at_once=0), "seeds_at_once must be a whole number from 1"),
        (lambda: step.map([1], report=3), "report is a function of a Fed; got 3"),
    ],
)
def test_wrong_seeds_are_refused(app: App, wrong: Callable[[], Any], said: str) -> None:
    """Before anything is listed or sent."""
    with pytest.raises(DeclarationError, match=said):
        wrong()
