"""The log of one delivery of a pack: outcomes are appended, other workers' entries are folded in, calls are given away.

An entry is put if absent under the next number, so the log has no holes and an index stands in at most one entry. Whoever finds the
number taken folds what stands there and tries the next one. `pos` passes an entry only once its effects are durable: the
messages of what it gave away, and the dead letter that points to a batch with failures.

Next: `packing.py` for an entry's bytes; `pack.py`, which says when.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TypeVar

from .. import layout
from ..batches import BatchLedger
from ..entry_notes import Spending, Written, notes
from ..message import EntryHead, PackHeader
from ..packing import Code, Entry, Packed, entry_bytes
from ..ranges import to_text
from ..requests_made import account
from .counts import Counts
from .lease import Clock, Lease
from .pack_calls import PackCalls
from .settlement import drop_checkpoint

T = TypeVar("T")
_VALUES = (Code.VALUE, Code.SPILLED)
_code = attrgetter("code")

MOST_GENERATIONS = 60
"""A log's name grows with each gift of a gift. Beyond this a pack is only divided after a death."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: the worker, what it has counted, and what tells the server's time from its clock."""

    worker: str
    counts: Counts
    clock: Clock
    to_server_time: float


@dataclass(frozen=True, slots=True)
class _Owed:
    """What follows from the entry at `pos` and is not known to be durable yet."""

    has_failures: bool
    given: Sequence[int]
    resent: bool


class PackLog:
    """The log of one delivery. Appends are made one after the other, whoever asks for them."""

    def __init__(self, batch: BatchLedger, header: PackHeader, calls: PackCalls, *, lease: Lease, writer: Writer) -> None:
        self._batch, self._header, self._calls = batch, header, calls
        self._lease, self._writer, self._counts = lease, writer, writer.counts
        self._spending = Spending(account())
        self._turn = asyncio.Lock()
        self._owed: _Owed | None = None
        self._buried = False
        self.pos = header.pos

    async def catch_up(self) -> None:
        """Fold the entries that are there from `pos` on, as after every delivery but the first. Raises MessageError."""
        async with self._taking_turns():
            while (entry := await self._patiently(self._read)) is not None:
                await self._fold(entry)

    async def append(self) -> None:
        """Log all outcomes that wait for it; under a lost lease only values, and never over another's entry of the same call.

        Once it returns, all that was ever put here has had its effects. Raises MessageError for an entry in its way.
        """
        async with self._taking_turns():
            while outcomes := self._loggable():
                await self._put(outcomes, [])

    async def give(self, most: int) -> int:
        """Give up to `most` calls that wait to other workers, with a message of their own; returns how many."""
        async with self._taking_turns():
            return 0 if self._header.log.count(".") >= MOST_GENERATIONS else await self._give(self._calls.spare(most))

    async def give_all(self, groups: Sequence[Sequence[int]]) -> None:
        """Give the calls away in these groups, each with a message of its own."""
        async with self._taking_turns():
            for group in groups:
                await self._give(group)

    @asynccontextmanager
    async def _taking_turns(self) -> AsyncIterator[None]:
        """One at a time; and first what the last one has left undone, when the storage did not take it."""
        async with self._turn:
            await self._follow()
            yield

    async def _give(self, wanted: Sequence[int]) -> int:
        while self._lease.held and (given := [index for index in wanted if index in self._calls.open]):
            if await self._put(self._loggable(), given):
                return len(given)
        return 0

    def _loggable(self) -> list[Packed]:
        outcomes = self._calls.loggable()
        if self._lease.held:
            return outcomes
        return [outcome for outcome in outcomes if outcome.code in _VALUES]

    async def _put(self, outcomes: list[Packed], given: list[int]) -> bool:
        """Put an entry, or fold the one that stands in its place; whether it was put."""
        token = secrets.token_hex(8)
        head = EntryHead(token, self._writer.worker, self._server_time(), 0, "", gives=to_text(given))
        asked = self._spending.untold(self._coming(outcomes, given))
        written = Written(head.worker, head.ended, asked)
        data, metadata = await asyncio.to_thread(self._entry, head, outcomes, given, written)
        needs_lease = bool(given) or max(map(_code, outcomes), default=Code.VALUE) not in _VALUES

        async def put() -> bool | None:
            # Looked at before each try: the lease may run out between two of them.
            if needs_lease and not self._lease.held:
                return None
            return await self._batch.put_entry(self._header.log, self.pos, data, metadata)

        is_new = await self._patiently(put)
        if is_new is None:
            return False
        if not is_new:
            standing = await self._patiently(self._read)
            # None: removed by hand between the two requests; then nobody will ask for it.
            if standing is not None and standing.token != token:
                await self._fold(standing)
                return False
        self._spending.tell(asked)
        await self._take_note(outcomes, given)
        return True

    def _entry(
        self, head: EntryHead, outcomes: list[Packed], given: list[int], written: Written
    ) -> tuple[bytes, Mapping[str, str]]:
        """An entry's bytes and metadata; on a thread, as thousands of outcomes take their time."""
        name = layout.log_entry(self._header.batch, self._header.log, self.pos)
        return entry_bytes(self._batch.ledger.wire, name, head=head, outcomes=outcomes), notes(outcomes, len(given), written)

    def _coming(self, outcomes: list[Packed], given: list[int]) -> Mapping[str, int]:
        """What surely is asked of the storage with an entry and after it: the entry, the dead letter, the message of what was
        given away; and the removal of this one, if nothing is left."""
        buries = not self._buried and Code.FAILED in map(_code, outcomes)
        is_last = len(self._calls.open) == len(outcomes) + len(given)
        return {"blob_put": 1 + buries, "queue_send": bool(given), "queue_delete": is_last}

    async def _take_note(self, outcomes: list[Packed], given: list[int]) -> None:
        """An entry of ours stands."""
        codes = Counter(outcome.code for outcome in outcomes)
        self._counts.succeeded += sum(codes[code] for code in _VALUES)
        self._counts.failed += codes[Code.FAILED]
        self._counts.dead += codes[Code.FAILED]
        held = self._calls.checkpoints
        stale = [(outcome.at, held[outcome.at]) for outcome in outcomes if outcome.at in held] if held else []
        self._owed = _Owed(codes[Code.FAILED] > 0, given, resent=False)
        self._calls.remove([outcome.at for outcome in outcomes], given)
        await self._follow()
        for index, checkpoint in stale:
            await drop_checkpoint(self._batch.ledger, layout.packed_call_id(self._header.batch, index), checkpoint)

    async def _fold(self, entry: Entry) -> None:
        """Take over what another delivery has logged, and see that what follows from it is done."""
        self._counts.fenced += sum(outcome.at in self._calls.pending for outcome in entry.outcomes)
        self._owed = _Owed(entry.has_failures, entry.gives, resent=True)
        self._calls.remove([outcome.at for outcome in entry.outcomes], entry.gives)
        await self._follow()

    async def _follow(self) -> None:
        """The effects of the entry at `pos`, and then `pos` passes it. Raises Unreachable without a lease: they are owed then."""
        if (owed := self._owed) is None:
            return
        if owed.has_failures and not self._buried:
            await self._patiently(lambda: self._batch.bury(self._header.queue, self._header.run))
            self._buried = True
        if owed.given:
            child = self._child(owed)
            await self._patiently(lambda: self._batch.send(child))
        self._calls.part_from(owed.given)
        self._owed = None
        self.pos += 1

    def _child(self, owed: _Owed) -> PackHeader:
        """The message of what the entry at `pos` gives away, with what it has used up."""
        header = self._header
        return replace(
            header,
            log=layout.child_log(header.log, self.pos),
            pos=0,
            mark=None,
            not_before=None,
            resent=owed.resent,
            suspect=header.suspect or header.mark is not None,
            **self._calls.part(owed.given),  # type: ignore[arg-type]
        )

    async def _read(self) -> Entry | None:
        return await self._batch.entry(self._header.log, self.pos, self._header.indices)

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        return await self._lease.patiently(step)

    def _server_time(self) -> float:
        return self._writer.clock() + self._writer.to_server_time
