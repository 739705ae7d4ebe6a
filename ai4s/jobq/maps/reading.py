"""Reading a batch's outcomes as they come: in order or not, of the newest run of each call, with flat memory.

Only a few packs are read ahead of what was handed out, so that a million outcomes never lie here at once. A failure that
somebody has had run again is held back until that run has ended.

Next: `frontier.py` for what is read, `batch.py` for who asks.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

from .. import layout
from ..batches import BatchLedger, PackInfo
from ..errors import JobQError
from ..packing import Code, Entry, Packed
from ..ranges import from_text
from ..waiting import Pace
from .frontier import MUCH_BYTES, Frontier, Read

PACKS_AHEAD = 8
"""Packs that are read at a time, from the first incomplete one on."""

LONGEST_INDEX = 2**53


class Found(NamedTuple):
    """One call's outcome, and the entry in which it stands; `run` is that of the call."""

    entry: Entry
    outcome: Packed
    run: int = 1


@dataclass(slots=True)
class Extent:
    """How large a batch is, as far as is known: its packs, and whether these are all."""

    infos: dict[int, PackInfo] = field(default_factory=dict)
    is_whole: bool = False
    _recent: PackInfo | None = None

    async def look(self, batch: BatchLedger) -> None:
        """Find out more, until it is whole: who submits says when no more packs are to come."""
        if self.is_whole:
            return
        total = await batch.total()
        async for info in batch.packs():
            self.infos[info.pack] = info
        self.is_whole = total is not None and total.ended and len(self.infos) >= total.packs

    @property
    def calls(self) -> int:
        """Calls that are known of."""
        return sum(len(info.indices) for info in self.infos.values())

    def pack_of(self, index: int) -> PackInfo | None:
        """The pack in which this call's arguments lie, if it is known of."""
        if self._recent is None or index not in self._recent.indices:
            # Who asks for one call asks for its neighbours next.
            self._recent = next((info for info in self.infos.values() if index in info.indices), None)
        return self._recent


class Reruns:
    """The requests to run a batch's failures again, and what became of them."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._frontiers: dict[int, Frontier] = {}
        self._found: dict[int, Found] = {}

    async def look(self, batch: BatchLedger, extent: Extent) -> None:
        """Find requests that are new, and read what came of all."""
        while (order := await batch.retry(len(self._frontiers) + 1)) is not None:
            number = len(self._frontiers) + 1
            frontier = self._frontiers[number] = Frontier(number)
            wanted = from_text(order.todo, range(LONGEST_INDEX))
            for info in extent.infos.values():
                if chosen := within(wanted, info.indices):
                    frontier.expect(info, len(chosen))
            self._numbers.update(dict.fromkeys(wanted, number))
        for number, frontier in self._frontiers.items():
            if not frontier.is_complete:
                self._keep(number, await frontier.read(batch, range(LONGEST_INDEX)))

    def _keep(self, number: int, reads: list[Read]) -> None:
        for read in reads:
            for outcome in read.entry.outcomes:
                if self._numbers.get(outcome.at) == number:
                    self._found[outcome.at] = Found(read.entry, outcome, run=number + 1)

    def newest(self, index: int, first: Found) -> Found | None:
        """The outcome of a call's newest run, given that of its first; None if that has not ended."""
        return first if index not in self._numbers else self._found.get(index)


class Reading:
    """One pass over a batch's outcomes; `more` gives those that are new. For the portal's loop."""

    def __init__(self, extent: Extent, *, in_order: bool, pace: Pace) -> None:
        self.extent, self._in_order, self._pace = extent, in_order, pace
        self._frontier = Frontier()
        self._reruns = Reruns()
        self._waiting: dict[int, Found] = {}
        self._held_bytes = 0
        self._has_failures = False
        self._next = 0
        self.done = 0
        """Outcomes that were handed out."""

    @property
    def total(self) -> int | None:
        """Calls of the batch; None while more may come."""
        return self.extent.calls if self.extent.is_whole else None

    async def more(self, batch: BatchLedger, wait: Callable[[float], Awaitable[None]]) -> list[Found]:
        """Outcomes that are new; waits for some. None at all once every call has been handed out. Raises ResultTimeout.

        `wait` is told, each time that there is nothing, since when this pass has lasted.
        """
        while True:
            await self.extent.look(batch)
            for info in self.extent.infos.values():
                self._frontier.expect(info)
            if self._is_over():
                return []
            for read in await self._frontier.read(batch, self._window()):
                self._keep(read)
            if ready := await self._ready(batch):
                self.done += len(ready)
                self._pace.news()
                return ready
            await wait(self._pace.started)
            await asyncio.sleep(self._pace.pause_seconds(f"batch {batch.batch}"))

    def _is_over(self) -> bool:
        return self.extent.is_whole and self._frontier.is_complete and not self._waiting

    def _window(self) -> range:
        """The packs to read of: all, unless what is read has to wait for an earlier call, which must not become too much."""
        if not self._in_order:
            return range(LONGEST_INDEX)
        start = self._frontier.first_incomplete() or 0
        return range(start, start + (1 if self._held_bytes > MUCH_BYTES else PACKS_AHEAD))

    def _keep(self, read: Read) -> None:
        outcomes = read.entry.outcomes
        found = map(tuple.__new__, repeat(Found), zip(repeat(read.entry), outcomes, repeat(1), strict=False))
        self._waiting.update(zip((outcome.at for outcome in outcomes), found, strict=False))
        self._held_bytes += sum(len(outcome.data) for outcome in outcomes)
        self._has_failures = self._has_failures or read.entry.has_failures

    async def _ready(self, batch: BatchLedger) -> list[Found]:
        """What can be handed out now of what waits."""
        candidates = self._in_turn() if self._in_order else list(self._waiting)
        if not self._has_failures:  # by far the most common, and outcomes are many
            plain = list(map(self._waiting.pop, candidates))
            self._held_bytes -= sum(len(found.outcome.data) for found in plain)
            self._next += len(candidates) if self._in_order else 0
            return plain
        await self._reruns.look(batch, self.extent)
        ready: list[Found] = []
        for index in candidates:
            newest = self._reruns.newest(index, self._waiting[index])
            if newest is not None:
                ready.append(newest)
                self._held_bytes -= len(self._waiting.pop(index).outcome.data)
                self._next = index + 1 if self._in_order else self._next
            elif self._in_order:
                break
        return ready

    def _in_turn(self) -> list[int]:
        """The indices that come next, without a gap."""
        last = self._next
        while last in self._waiting:
            last += 1
        return list(range(self._next, last))


class Search:
    """Looks for one call's outcome in the log of its pack, each time from where the last look ended. For the portal's loop."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._frontier: Frontier | None = None
        self._first: Found | None = None
        self._reruns = Reruns()
        self._turn = asyncio.Lock()

    async def look(self, batch: BatchLedger, extent: Extent) -> Found | None:
        """The outcome of the newest run, if that has ended. Raises JobQError for a call that the batch does not have."""
        async with self._turn:
            if self._first is None:
                await self._look_for_first(batch, extent)
            if self._first is None or self._first.outcome.code != Code.FAILED:
                return self._first
            await self._reruns.look(batch, extent)
            return self._reruns.newest(self._index, self._first)

    async def _look_for_first(self, batch: BatchLedger, extent: Extent) -> None:
        info = extent.pack_of(self._index)
        if info is None:
            await extent.look(batch)
            info = extent.pack_of(self._index)
        if info is None and extent.is_whole:
            raise JobQError(f"The batch {batch.batch} has {extent.calls} calls, and none of index {self._index}.")
        if info is not None:
            self._frontier = self._frontier or Frontier()
            self._frontier.expect(info)
            for read in await self._frontier.read(batch, range(info.pack, info.pack + 1)):
                found = (Found(read.entry, outcome) for outcome in read.entry.outcomes if outcome.at == self._index)
                self._first = next(found, self._first)


def within(wanted: list[int], indices: range) -> list[int]:
    """Those of the indices, which are in order, that lie in the range.

    >>> within([1, 4, 5, 9], range(4, 9))
    [4, 5]
    """
    return wanted[bisect_left(wanted, indices.start) : bisect_left(wanted, indices.stop)]


async def failed(batch: BatchLedger, extent: Extent, *, most_entries: int | None = None) -> list[Found]:
    """The failures of all calls' newest runs, by index; only entries that hold some are read, and no more than `most_entries`."""
    store, reruns = await batch.ledger.store(), Reruns()
    await reruns.look(batch, extent)
    found: list[Found] = []
    entries = 0
    async for info in store.list(layout.log_entries(batch.batch), with_metadata=True):
        if entries == most_entries:
            break
        parts = layout.entry_parts(info.name)
        if parts is None or info.metadata.get("failed", "0") == "0":
            continue
        log, seq = parts
        known = extent.infos.get(int(log.partition(".")[0]))
        entry = await batch.entry(log, seq, known.indices) if known else None
        if entry is not None:
            entries += 1
            found += [Found(entry, outcome) for outcome in entry.outcomes if ".r" not in log]
    newest = (reruns.newest(each.outcome.at, each) for each in found)
    return sorted((each for each in newest if each and each.outcome.code == Code.FAILED), key=lambda each: each.outcome.at)
