"""Waiting costs a number of looks that grows with the logarithm of the time, and thousands of calls are looked up by listing."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ai4s.jobq import layout, waiting
from ai4s.jobq.errors import JobQError, ResultTimeout, Unreachable
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Outcome, State
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.base import BlobInfo, Store
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.place import LocalPlace
from ai4s.jobq.waiting import LISTING_PAYS_FROM, LONGEST_PAUSE_SECONDS, LOOKS_IN_FLIGHT, Pace, ended

CLIENT, OTHER_CLIENT = "abcdefgh234567ab", "zzzzzzzzzzzzzzzz"
PAGE = layout.CALLS_PER_PAGE
Run = tuple[str, int]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that a pace looks at."""
    clock = Clock()
    monkeypatch.setattr(waiting, "boottime", clock)
    return clock


def looks_within(clock: Clock, seconds: float, pace: Pace) -> list[float]:
    """The moments of all looks while nothing comes, for so long."""
    start, moments = clock.now, []
    while clock.now - start < seconds:
        moments.append(clock.now - start)
        clock.now += pace.pause_seconds("x")
    return moments


# How often.


def test_the_number_of_looks_grows_with_the_logarithm_of_the_time(clock: Clock) -> None:
    """Ten times the wait costs about ten looks more, until looks are two seconds apart."""
    counts = [len(looks_within(clock, seconds, Pace(None))) for seconds in (0.01, 0.1, 1.0, 8.0)]
    steps = [later - earlier for earlier, later in itertools.pairwise(counts)]
    assert all(7 <= step <= 13 for step in steps)
    assert counts[-1] < 45


def test_many_that_come_in_turn_are_looked_for_when_half_of_them_are_there(clock: Clock) -> None:
    """A thousand that come one each 10 ms are found in few looks, and the last one no later than any that was waited for."""
    pace, came, looks = Pace(None), 0, 0
    while came < 1_000:
        clock.now += pace.pause_seconds("x", 1_000 - came)
        now_there = min(1_000, int((clock.now - pace.started) / 0.01))
        if now_there > came:
            pace.news(now_there - came)
        came, looks = now_there, looks + 1
    assert looks < 50
    assert clock.now - pace.started < 10 + LONGEST_PAUSE_SECONDS


def test_no_more_than_a_third_of_the_time_is_spent_looking(clock: Clock) -> None:
    """However much comes with each look: what takes a sixteenth of a second is followed by a pause of an eighth."""
    pace = Pace(None)
    with pace.look():
        clock.now += 0.0625
    pace.news()
    assert pace.pause_seconds("x") >= 0.125


def test_a_long_wait_costs_one_look_each_two_seconds(clock: Clock) -> None:
    """And no more, for hours."""
    assert 1_700 < len(looks_within(clock, 3_600, Pace(None))) < 1_900


def test_an_outcome_is_seen_soon_after_it_came(clock: Clock) -> None:
    """Whenever it comes, it is seen within a quarter of the time waited, at most two seconds, and a millisecond at first."""
    moments = looks_within(clock, 100, Pace(None))
    for earlier, later in itertools.pairwise(moments):
        assert later - earlier <= max(0.0011, min(LONGEST_PAUSE_SECONDS, 0.2501 * later))
    assert moments[1] <= 0.0011


def test_news_makes_looks_frequent_again(clock: Clock) -> None:
    """Where many are waited for, one that came promises the next."""
    pace = Pace(None)
    clock.now += 500
    assert pace.pause_seconds("x") == LONGEST_PAUSE_SECONDS
    pace.news()
    assert pace.pause_seconds("x") <= 0.001
    clock.now += 1
    assert pace.pause_seconds("x") == pytest.approx(0.25)


# How long.


def test_time_runs_out(clock: Clock) -> None:
    """The error is a TimeoutError as well, says what was waited for and that it goes on."""
    pace = Pace(10)
    clock.now += 9.999
    assert pace.pause_seconds("call 7") == pytest.approx(0.001)
    clock.now += 0.001
    with pytest.raises(ResultTimeout, match=r"call 7 within 10 s; it goes on") as caught:
        pace.pause_seconds("call 7")
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, JobQError)


def test_the_last_look_is_at_the_end(clock: Clock) -> None:
    """No pause is longer than what is left, so an outcome that came in time is seen."""
    pace, start = Pace(7.3), clock.now
    with pytest.raises(ResultTimeout):
        looks_within(clock, 100, pace)
    assert clock.now - start == pytest.approx(7.3)


def test_news_does_not_prolong_a_wait(clock: Clock) -> None:
    """The timeout is for all of them together."""
    pace = Pace(10)
    clock.now += 9
    pace.news()
    clock.now += 1
    with pytest.raises(ResultTimeout):
        pace.pause_seconds("x")


@pytest.mark.parametrize("timeout", [0, -1])
def test_no_time_at_all_means_one_look(timeout: float, clock: Clock) -> None:
    """The look comes before the pause, and the pause says that time is up."""
    assert clock.now
    with pytest.raises(ResultTimeout):
        Pace(timeout).pause_seconds("x")


# Many at once.


class Counting:
    """A store that counts what is asked of it, and how much at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.heads = 0
        self.lists: list[str] = []
        self.at_once = self.most_at_once = 0
        self.fail: Exception | None = None
        self.failed = asyncio.Event()

    async def create(self) -> None:
        await self._store.create()

    async def head(self, name: str) -> BlobInfo:
        self.heads += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if self.fail is not None and self.heads > 3:
                raise self.fail
            return await self._store.head(name)
        finally:
            self.at_once -= 1

    async def list(self, prefix: str, *, with_metadata: bool = False) -> AsyncIterator[BlobInfo]:
        self.lists.append(prefix)
        async for info in self._store.list(prefix, with_metadata=with_metadata):
            yield info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Ledger, Counting]]:
    """A ledger on a place in this folder, and the counts of what it asks."""
    transport = await LocalTransport.open(LocalPlace(folder / "place"))
    try:
        ledger = Ledger(transport, "proj", Keyring())
        counting: Any = Counting(transport.store(layout.container_name("proj")))
        ledger._store = counting
        yield ledger, counting
    finally:
        await transport.close()


async def end(ledger: Ledger, *runs: Run) -> None:
    """Let these runs end."""
    await asyncio.gather(*(ledger.commit(Outcome(call, run, State.SUCCEEDED, "f" * 16)) for call, run in runs))


def call(n: int, client: str = CLIENT) -> str:
    """The id of a call."""
    return layout.call_id(client, n)


async def test_nothing_to_look_for_costs_nothing(tmp_path: Path) -> None:
    """No runs, no requests."""
    async with opened(tmp_path) as (ledger, store):
        assert await ended(ledger, []) == set()
        assert (store.heads, store.lists) == (0, [])


async def test_few_are_looked_up_one_by_one(tmp_path: Path) -> None:
    """Below eight on a page, a read each is cheaper than a listing."""
    runs = [(call(n), 1) for n in range(LISTING_PAYS_FROM - 1)]
    async with opened(tmp_path) as (ledger, store):
        await end(ledger, runs[2], runs[5])
        assert await ended(ledger, runs) == {runs[2], runs[5]}
        assert (store.heads, store.lists) == (len(runs), [])


async def test_many_are_found_by_one_listing(tmp_path: Path) -> None:
    """From eight on, one request tells of all."""
    runs = [(call(n), 1) for n in range(LISTING_PAYS_FROM)]
    async with opened(tmp_path) as (ledger, store):
        await end(ledger, runs[2], runs[5])
        assert await ended(ledger, runs) == {runs[2], runs[5]}
        assert (store.heads, store.lists) == (0, [f"{layout.result_page(call(0))}00000000000"])


async def test_a_listing_spares_what_has_ended_before(tmp_path: Path) -> None:
    """Only names with the beginning that all wanted ones share are listed, and what is wanted is found among them."""
    runs = [(call(n), 1) for n in range(1_390, 1_500)]
    async with opened(tmp_path) as (ledger, store):
        await end(ledger, (call(7), 1), runs[50], runs[109], (call(1_500), 1))
        assert await ended(ledger, runs) == {runs[50], runs[109]}
        assert await ended(ledger, runs[20:]) == {runs[50], runs[109]}
        page = layout.result_page(call(0))
        assert store.lists == [f"{page}000000001", f"{page}0000000014"]


async def test_each_page_is_looked_up_as_it_pays(tmp_path: Path) -> None:
    """Thousands over several pages and clients, some with keys: full pages by listing, the rest one by one."""
    full = [(call(n), 1) for n in range(PAGE - 50, PAGE + 60)]
    theirs = [(call(n, OTHER_CLIENT), 1) for n in range(20)]
    few = [(call(5 * PAGE + n), 1) for n in range(3)]
    keyed = [(layout.keyed_call_id(f"{n:064x}"[::-1]), 1) for n in range(12)]
    later_runs = [(call(n), 2) for n in range(PAGE, PAGE + 10)]
    everything = full + theirs + few + keyed + later_runs
    over = set(full[::3] + theirs[::2] + few[:1] + keyed[:5] + later_runs[:4])
    async with opened(tmp_path) as (ledger, store):
        await end(ledger, *over)
        assert await ended(ledger, everything) == over
        assert Counter(f"{prefix.rpartition('/')[0]}/" for prefix in store.lists) == Counter(
            [f"results/{CLIENT}/000000000/", f"results/{CLIENT}/000000001/", f"results/{OTHER_CLIENT}/000000000/"]
        )
        assert store.heads == len(few) + len(keyed)


async def test_a_neighbours_outcome_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """Other calls and other runs on a listed page are not among those asked for."""
    runs = [(call(n), 1) for n in range(10)]
    async with opened(tmp_path) as (ledger, _):
        await end(ledger, (call(10), 1), (call(3), 2), (call(100), 1))
        assert await ended(ledger, runs) == set()


async def test_forgotten_calls_have_ended(tmp_path: Path) -> None:
    """A tombstone ends the waiting; reading it says that the outcome is gone."""
    runs = [(call(n), 1) for n in range(10)]
    async with opened(tmp_path) as (ledger, _):
        await end(ledger, runs[4])
        await ledger.forget(*runs[4])
        assert await ended(ledger, runs) == {runs[4]}
        assert await ended(ledger, runs[4:5]) == {runs[4]}


async def test_single_looks_leave_connections_for_others(tmp_path: Path) -> None:
    """Many single looks go out side by side, but only so many at a time."""
    runs = [(layout.keyed_call_id(f"{n:064x}"[::-1]), 1) for n in range(100)]
    async with opened(tmp_path) as (ledger, store):
        await ended(ledger, runs)
        assert store.heads == 100
        assert 1 < store.most_at_once <= LOOKS_IN_FLIGHT


async def test_a_failed_look_fails_the_round_and_leaves_none_behind(tmp_path: Path) -> None:
    """The storage's error comes through, and no look goes on that nobody waits for."""
    runs = [(layout.keyed_call_id(f"{n:064x}"[::-1]), 1) for n in range(100)]
    async with opened(tmp_path) as (ledger, store):
        store.fail = Unreachable()
        with pytest.raises(Unreachable):
            await ended(ledger, runs)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        looked = store.heads
        for _ in range(20):
            await asyncio.sleep(0)
        assert store.heads == looked < 100


async def test_a_cancelled_round_leaves_no_look_behind(tmp_path: Path) -> None:
    """Whoever stops waiting takes the looks along."""
    runs = [(layout.keyed_call_id(f"{n:064x}"[::-1]), 1) for n in range(50)]
    async with opened(tmp_path) as (ledger, _):
        await ledger.store()
        looking = asyncio.create_task(ended(ledger, runs))
        for _ in range(3):
            await asyncio.sleep(0)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
