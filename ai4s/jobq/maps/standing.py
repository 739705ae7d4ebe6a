"""How a batch stands, reckoned from a listing of what lies there for it: whether all has ended, and how much of it failed.

The log's entries say in their metadata how many outcomes they hold, and an index stands in one entry of a run: so counts are
enough, and no outcome is read. What cannot be read, or does not add up, has not ended.

Next: `removal.py` and `letters.py`, which ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

from .. import layout
from ..batches import BatchLedger
from ..errors import MessageError
from ..ledger import Ledger
from ..message import BatchTotal
from ..ranges import from_text
from ..transports.base import BlobInfo


@dataclass(frozen=True, slots=True)
class Standing:
    """A batch and the blobs under its name."""

    batch: str
    blobs: list[BlobInfo]

    @property
    def meta(self) -> BlobInfo | None:
        """What its calls have in common; empty once it was removed."""
        return self.of(layout.batch_meta(self.batch))

    @property
    def total(self) -> BlobInfo | None:
        """How many calls it has; empty once its removal has begun."""
        return self.of(layout.batch_total(self.batch))

    @property
    def is_going(self) -> bool:
        """Whether somebody has begun to remove it."""
        return any(info is not None and info.size == 0 for info in (self.meta, self.total))

    @property
    def inputs(self) -> list[BlobInfo]:
        """The inputs of its packs."""
        return self._under(layout.pack_inputs(self.batch))

    @property
    def entries(self) -> list[BlobInfo]:
        """The entries of its log."""
        return self._under(layout.log_entries(self.batch))

    @property
    def retries(self) -> int:
        """How many times its failures were to be run again."""
        return len(self._under(layout.batch_retries(self.batch)))

    @property
    def modified(self) -> float:
        """When the last of it was written."""
        return max((info.modified for info in self.blobs), default=0.0)

    def of(self, name: str) -> BlobInfo | None:
        """The blob of this name, if it is there."""
        return next((info for info in self.blobs if info.name == name), None)

    def _under(self, prefix: str) -> list[BlobInfo]:
        return [info for info in self.blobs if info.name.startswith(prefix)]


async def standings(listing: AsyncIterator[BlobInfo]) -> AsyncIterator[Standing]:
    """The batches of a listing, one after the other."""
    batch, blobs = "", list[BlobInfo]()
    async for info in listing:
        owner = info.name.removeprefix(layout.BATCHES).partition("/")[0]
        if not layout.BATCH_ID.fullmatch(owner) or len(owner) > layout.MAX_BATCH_LENGTH:
            continue  # what somebody else has put there
        if owner != batch:
            if blobs:
                yield Standing(batch, blobs)
            batch, blobs = owner, []
        blobs.append(info)
    if blobs:
        yield Standing(batch, blobs)


async def standing_of(ledger: Ledger, batch: str) -> Standing:
    """How one batch stands now."""
    store = await ledger.store()
    return Standing(batch, [info async for info in store.list(layout.batch(batch), with_metadata=True)])


class Reckoned(NamedTuple):
    """Whether every call has ended, in all the runs that were asked for; how many calls there are, and stand as failed now; the
    newest run; the etag of the total that says so."""

    has_ended: bool
    calls: int
    failures: int
    ever_failed: bool
    run: int
    total_etag: str


async def reckon(ledger: Ledger, standing: Standing) -> Reckoned:
    """How the batch stands; a read for its total, and one for each retry. Raises ResultGone if it is being removed."""
    batch = BatchLedger(ledger, standing.batch)
    ended, failed = _sums(standing.entries)
    calls = sum(_count(info, "count") for info in standing.inputs)
    try:
        found = await batch.said_total()
        wanted = [await _asked(batch, number, calls) for number in range(1, standing.retries + 1)]
    except MessageError:
        found, wanted = None, []
    total, etag = found or (BatchTotal(0, 0), "")
    is_whole = total.ended and (total.packs, total.calls) == (len(standing.inputs), calls)
    due = [calls, *wanted]
    return Reckoned(
        has_ended=is_whole and len(wanted) == standing.retries and all(ended[k] == count for k, count in enumerate(due)),
        calls=calls,
        # What is run again is no failure any more, and may be one anew.
        failures=failed - sum(wanted),
        ever_failed=bool(failed),
        run=1 + standing.retries,
        total_etag=etag,
    )


async def _asked(batch: BatchLedger, number: int, calls: int) -> int:
    """How many calls the n-th retry is of."""
    order = await batch.retry(number)
    return len(from_text(order.todo, range(calls))) if order else 0


def _sums(entries: list[BlobInfo]) -> tuple[Counter[int], int]:
    """How many calls have ended in the first run (0) and in each retry, and how many of all these failed."""
    ended, failed = Counter[int](), 0
    for info in entries:
        retry = layout.retry_of_entry(info.name)
        if retry is not None:
            ended[retry] += _count(info, "done")
            failed += _count(info, "failed")
    return ended, failed


def _count(info: BlobInfo, name: str) -> int:
    """A number in a blob's metadata; none that could make up for others where it is nonsense."""
    text = info.metadata.get(name, "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else 0
