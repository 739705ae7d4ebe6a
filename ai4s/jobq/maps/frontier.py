"""Which log entries of a batch have been read, and where the next ones will be: what a reader of outcomes knows.

A log has no holes, so the next entry of each is known by name; and what an entry gave away goes on in a log of its own. Counts tell
when a log is complete, since an index stands in one entry of a run for ever: so nothing is kept for each call. Few logs are
looked at one by one; of many a listing tells, which costs as much as ten looks.

Next: `batch.py`, which hands out what is read here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from .. import layout
from ..batches import BatchLedger, PackInfo
from ..packing import Entry

LISTING_PAYS_FROM = 8
"""Logs from which a listing is cheaper than a look at each."""

READS_IN_FLIGHT = 16
NAMES_A_PAGE = 5000
MUCH_BYTES = 32 * 1024 * 1024
"""Values that are read before they are handed on."""


@dataclass(slots=True)
class _Log:
    """A log that is not complete: how many calls are still to come, and the next entry's number."""

    indices: range
    left: int
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """An entry that was read, and the pack it belongs to."""

    pack: int
    entry: Entry


class Frontier:
    """What has been read of one run of a batch's calls: the first, or the n-th retry of failures."""

    def __init__(self, retry: int = 0) -> None:
        self.retry = retry
        self._logs: dict[str, _Log] = {}
        self._indices: dict[int, range] = {}
        self._entries_read = 0
        self.calls = 0

    def expect(self, info: PackInfo, count: int | None = None) -> None:
        """There is such a pack; `count` of its calls are in this run, all unless given."""
        if info.pack not in self._indices:
            left = len(info.indices) if count is None else count
            self._indices[info.pack] = info.indices
            self._logs[layout.root_log(info.pack, self.retry)] = _Log(info.indices, left)
            self.calls += left

    @property
    def is_complete(self) -> bool:
        """Whether every call that is expected has its outcome."""
        return not self._logs

    @property
    def packs(self) -> int:
        """How many packs are expected or complete."""
        return len(self._indices)

    def first_incomplete(self) -> int | None:
        """The first pack of which something is still to come."""
        return min((_pack(log) for log in self._logs), default=None)

    async def read(self, batch: BatchLedger, packs: range) -> list[Read]:
        """Read what is new of these packs: one look at each of their logs, and on from those that had something.

        Ends early, with more to be read, once there is much.
        """
        found: list[Read] = []
        wanted = {log: known for log, known in self._logs.items() if _pack(log) in packs}
        there = deque(await self._listed(batch, wanted, packs) if self._listing_pays(wanted) else wanted)
        size = 0
        while there and size < MUCH_BYTES:
            logs = [there.popleft() for _ in range(min(READS_IN_FLIGHT, len(there)))]
            entries = await asyncio.gather(*(batch.entry(log, self._logs[log].seq, self._logs[log].indices) for log in logs))
            for log, entry in zip(logs, entries, strict=True):
                if entry is not None:
                    read, more = self._take(log, entry)
                    size += sum(len(outcome.data) for outcome in entry.outcomes)
                    found.append(read)
                    there.extend(each for each in more if each in self._logs)
        return found

    def _listing_pays(self, logs: dict[str, _Log]) -> bool:
        pages = 1 + self._entries_read // NAMES_A_PAGE
        return len(logs) >= LISTING_PAYS_FROM * pages

    async def _listed(self, batch: BatchLedger, wanted: dict[str, _Log], packs: range) -> list[str]:
        """Those of the logs whose next entry is there."""
        store = await batch.ledger.store()
        prefix = layout.log_entries(batch.batch)
        if len(packs) == 1:
            prefix += layout.root_log(packs.start)
        names = {info.name async for info in store.list(prefix)}
        return [log for log, known in wanted.items() if layout.log_entry(batch.batch, log, known.seq) in names]

    def _take(self, log: str, entry: Entry) -> tuple[Read, list[str]]:
        """Note an entry of a log; returns the logs to look at next."""
        known = self._logs[log]
        self._entries_read += 1
        pack, more = _pack(log), [log]
        if entry.gives:
            child = layout.child_log(log, known.seq)
            self._logs[child] = _Log(known.indices, len(entry.gives))
            more.append(child)
        known.left -= len(entry.outcomes) + len(entry.gives)
        known.seq += 1
        if known.left <= 0:
            del self._logs[log]
        return Read(pack, entry), more


def _pack(log: str) -> int:
    return int(log.partition(".")[0])
