"""Reading a batch's outcomes: in order with flat memory, newest runs only, and one call found without reading the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from logged import log_entry
from storage_spy import counted

from ai4s.jobq import App, ResultTimeout
from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.maps import reading
from ai4s.jobq.maps.reading import Extent, Found, Reading, Search, within
from ai4s.jobq.waiting import Pace

declared = App("reading-unit")
PACKS, SIZE = 20, 5


@declared.task
def square(x: int) -> int:
    return x * x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's tasks, on an empty store, without a worker; its batch `b` has twenty packs."""
    app = jobq_place(declared)
    square.map(range(PACKS * SIZE), batch="b", pack=SIZE)
    return app


def end_pack(app: App, number: int) -> None:
    """All calls of a pack end."""
    log_entry(app, "b", {n: n for n in range(SIZE * number, SIZE * (number + 1))}, log=f"{number:06d}")


async def no_wait(since: float) -> None:
    """Nothing is said while nothing comes."""


def more(app: App, one: Reading) -> list[int]:
    """The indices of the outcomes that are new; raises ResultTimeout if there are none."""

    async def read(ledger: Ledger) -> list[Found]:
        return await one.more(BatchLedger(ledger, "b"), no_wait)

    return [found.outcome.at for found in app.client.run(read)]


def test_in_order_only_some_packs_are_read_ahead(app: App) -> None:
    """A million outcomes that wait for the first one must not lie here."""
    for number in range(1, PACKS):
        end_pack(app, number)
    one = Reading(Extent(), in_order=True, pace=Pace(0))
    with counted(app) as requests, pytest.raises(ResultTimeout):
        more(app, one)
    assert requests["get"] <= 2 * reading.PACKS_AHEAD
    end_pack(app, 0)
    assert more(app, one) == list(range(SIZE * reading.PACKS_AHEAD))


def test_values_of_many_bytes_are_read_ahead_of_one_pack_only(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once much is held, nothing is read but what everybody waits for."""
    monkeypatch.setattr(reading, "MUCH_BYTES", 1)
    for number in range(1, PACKS):
        end_pack(app, number)
    one = Reading(Extent(), in_order=True, pace=Pace(0))
    with pytest.raises(ResultTimeout):
        more(app, one)
    with counted(app) as requests, pytest.raises(ResultTimeout):
        more(app, one)
    assert requests["get"] <= 3, requests


def test_as_they_come_all_packs_are_read(app: App) -> None:
    """Nothing waits for anything."""
    for number in (17, 3):
        end_pack(app, number)
    one = Reading(Extent(), in_order=False, pace=Pace(0))
    assert sorted(more(app, one)) == [*range(15, 20), *range(85, 90)]
    with pytest.raises(ResultTimeout):
        more(app, one)


def test_a_reading_ends_when_all_was_handed_out(app: App) -> None:
    """By an answer without outcomes, again and again."""
    for number in range(PACKS):
        end_pack(app, number)
    one, seen = Reading(Extent(), in_order=True, pace=Pace(5)), []
    while found := more(app, one):
        seen += found
    assert seen == list(range(PACKS * SIZE))
    assert (one.done, one.total, more(app, one)) == (100, 100, [])


def test_one_call_is_found_in_the_log_of_its_pack(app: App) -> None:
    """Nothing else is read, and the next look goes on where the last one ended."""
    extent, search = Extent(), Search(42)

    async def look(ledger: Ledger) -> Found | None:
        return await search.look(BatchLedger(ledger, "b"), extent)

    assert app.client.run(look) is None
    log_entry(app, "b", {40: 0, 41: 1}, log="000008")
    with counted(app) as requests:
        assert app.client.run(look) is None
    assert requests == {"get": 2}
    log_entry(app, "b", {42: 2}, log="000008", seq=1)
    with counted(app) as requests:
        found = app.client.run(look)
        assert found is not None
        assert found.outcome.at == 42
    assert requests == {"get": 2}
    with counted(app) as requests:
        assert app.client.run(look) is found
    assert requests == {}


def test_indices_within_a_range() -> None:
    """At both ends."""
    assert within([], range(5)) == []
    assert within([1, 4, 5, 8, 9], range(4, 9)) == [4, 5, 8]
    assert within([1, 20], range(4, 9)) == []
