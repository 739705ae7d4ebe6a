"""Which entries a reader asks for: each once, by name, and a listing where that is cheaper than a look at every log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from logged import write
from test_waiting import Counting

from ai4s.jobq import layout
from ai4s.jobq.batches import BatchLedger, PackInfo
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.maps import frontier
from ai4s.jobq.maps.frontier import LISTING_PAYS_FROM, Frontier
from ai4s.jobq.message import Spill
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.place import LocalPlace

ALL = range(10**6)
SIZE = 10  # calls of a pack


class Gets(Counting):
    """A store that counts reads of entries, too."""

    async def get(self, name: str, **options: object) -> object:
        self.heads += 1
        return await self._store.get(name, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[BatchLedger, Gets]]:
    """A batch on a place in this folder, and the counts of what is asked."""
    transport = await LocalTransport.open(LocalPlace(folder / "place"))
    try:
        ledger = Ledger(transport, "proj", Keyring())
        counting = Gets(transport.store(layout.container_name("proj")))
        ledger._store = counting  # type: ignore[assignment]
        await ledger.store()
        yield BatchLedger(ledger, "b"), counting
    finally:
        await transport.close()


def pack(number: int) -> PackInfo:
    """The n-th pack of the batch."""
    return PackInfo(number, range(SIZE * number, SIZE * (number + 1)), Spill(0, ""))


def calls(number: int) -> dict[int, object]:
    """Outcomes of all calls of a pack."""
    return dict.fromkeys(pack(number).indices, 0)


def reader(packs: int) -> Frontier:
    """What a reader knows that has read nothing."""
    made = Frontier()
    for number in range(packs):
        made.expect(pack(number))
    return made


async def test_a_complete_log_is_not_looked_at_again(tmp_path: Path) -> None:
    """Counts tell that nothing is to come, so not even its end is looked for."""
    async with opened(tmp_path) as (batch, store):
        await write(batch.ledger, "b", "000000", 0, calls(0))
        made = reader(1)
        (read,) = await made.read(batch, ALL)
        assert (read.pack, len(read.entry.outcomes), made.is_complete) == (0, SIZE, True)
        assert (store.heads, store.lists) == (1, [])
        assert await made.read(batch, ALL) == []
        assert store.heads == 1


async def test_a_log_is_read_up_to_its_end(tmp_path: Path) -> None:
    """One look more than there are entries; the next time from there on."""
    async with opened(tmp_path) as (batch, store):
        for seq in range(3):
            await write(batch.ledger, "b", "000000", seq, {seq: seq})
        made = reader(1)
        assert len(await made.read(batch, ALL)) == 3
        assert store.heads == 4
        await write(batch.ledger, "b", "000000", 3, {3: 3})
        assert len(await made.read(batch, ALL)) == 1
        assert store.heads == 6


async def test_what_is_given_away_is_expected_there(tmp_path: Path) -> None:
    """A log whose calls were all given away is complete itself, and its child is not."""
    async with opened(tmp_path) as (batch, _):
        await write(batch.ledger, "b", "000000", 0, {0: 0}, gives=tuple(range(1, SIZE)))
        made = reader(1)
        assert len(await made.read(batch, ALL)) == 1
        assert (made.is_complete, made.first_incomplete()) == (False, 0)
        await write(batch.ledger, "b", "000000.000000", 0, {n: n for n in range(1, SIZE)})
        assert len(await made.read(batch, ALL)) == 1
        assert made.is_complete


async def test_few_logs_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """A listing is priced like ten looks."""
    async with opened(tmp_path) as (batch, store):
        await reader(LISTING_PAYS_FROM - 1).read(batch, ALL)
        assert (store.heads, store.lists) == (LISTING_PAYS_FROM - 1, [])


async def test_of_many_logs_a_listing_tells(tmp_path: Path) -> None:
    """Then only what is there is read."""
    async with opened(tmp_path) as (batch, store):
        await write(batch.ledger, "b", "000003", 0, calls(3))
        (read,) = await reader(20).read(batch, ALL)
        assert read.pack == 3
        assert (store.heads, store.lists) == (1, ["batches/b/log/"])


async def test_only_the_packs_that_were_asked_for_are_read(tmp_path: Path) -> None:
    """So that what has to wait for its turn does not pile up."""
    async with opened(tmp_path) as (batch, _):
        for number in range(4):
            await write(batch.ledger, "b", f"{number:06d}", 0, calls(number))
        made = reader(4)
        assert [read.pack for read in await made.read(batch, range(1, 3))] == [1, 2]
        assert made.first_incomplete() == 0


async def test_reading_ends_early_once_there_is_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is read the next time."""
    monkeypatch.setattr(frontier, "MUCH_BYTES", 1)
    monkeypatch.setattr(frontier, "READS_IN_FLIGHT", 2)
    async with opened(tmp_path) as (batch, _):
        for number in range(6):
            await write(batch.ledger, "b", f"{number:06d}", 0, calls(number))
        made = reader(6)
        assert [len(await made.read(batch, ALL)) for _ in range(4)] == [2, 2, 2, 0]
        assert made.is_complete


async def test_a_retry_has_logs_of_its_own(tmp_path: Path) -> None:
    """Of each pack, so many calls are expected there as run again."""
    async with opened(tmp_path) as (batch, _):
        await write(batch.ledger, "b", "000000", 0, calls(0))
        await write(batch.ledger, "b", "000000.r1", 0, {3: 3})
        made = Frontier(retry=1)
        made.expect(pack(0), 1)
        (read,) = await made.read(batch, ALL)
        assert [outcome.at for outcome in read.entry.outcomes] == [3]
        assert made.is_complete


async def test_two_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each knows what it has read."""
    async with opened(tmp_path) as (batch, _):
        for number in range(3):
            await write(batch.ledger, "b", f"{number:06d}", 0, calls(number))
        one, other = await asyncio.gather(*(reader(3).read(batch, ALL) for _ in range(2)))
        assert [read.pack for read in one] == [read.pack for read in other] == [0, 1, 2]
