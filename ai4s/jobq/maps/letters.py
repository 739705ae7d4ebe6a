"""The dead letter of a batch: an empty blob that says that its log holds failures. What they are is read from there.

So one letter stands for any number of failed calls. It may say so when there are none any more: then it is no letter. Of very many
failures a part is read, which is enough for a person to see what is wrong.

Next: `letters.py`, which shows it among the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .. import layout
from ..batches import BatchLedger
from ..errors import ResultGone
from ..ledger import Ledger
from ..message import BatchMeta, Failure
from ..transports.base import BlobInfo
from .reading import Extent, Found, failed
from .standing import Reckoned, reckon, standing_of

MOST_ENTRIES = 32
"""Entries of a log that are read for what its failures are."""


@dataclass(frozen=True, slots=True)
class BatchLetter:
    """What is known of a batch with failures: those that were read, each with its call's outcome."""

    info: BlobInfo
    queue: str
    batch: str
    meta: BatchMeta
    reckoned: Reckoned
    found: list[tuple[Found, Failure]]
    ended: float

    @property
    def first(self) -> tuple[Found, Failure]:
        """The first failure that was read."""
        return self.found[0]

    @property
    def causes(self) -> dict[str, int]:
        """How many of those that were read failed in which way, the most frequent first."""
        counted = Counter(f"{failure.cause} {failure.type}".strip() for _, failure in self.found)
        return dict(counted.most_common())

    @property
    def message(self) -> str:
        """What a person should know first."""
        found, failure = self.first
        of = f"{self.reckoned.failures:,} of {self.reckoned.calls:,} calls failed"
        return f"{of}; call {found.outcome.at}: {failure.message}"


async def open_letter(ledger: Ledger, info: BlobInfo) -> BatchLetter | None:
    """The dead letter of a batch; None if nothing stands as failed. Raises MessageError for a log that cannot be read."""
    parts = layout.batch_letter_parts(info.name)
    if parts is None or info.metadata.get("fate"):
        return None
    batch = BatchLedger(ledger, parts[1])
    try:
        meta, standing = await batch.meta(), await standing_of(ledger, parts[1])
        reckoned = await reckon(ledger, standing)
        if meta is None or reckoned.failures <= 0:
            return None
        extent = Extent()
        await extent.look(batch)
        failures = await failed(batch, extent, most_entries=MOST_ENTRIES)
    except ResultGone:
        return None
    found = [(each, each.outcome.failure) for each in failures]
    if not found:
        return None
    return BatchLetter(info, *parts, meta, reckoned, found, max(each.entry.ended for each in failures))


async def purge(ledger: Ledger, letter: BatchLetter) -> bool:
    """Lay the letter down for good; not while calls of the batch run, which may fail yet."""
    if not letter.reckoned.has_ended:
        return False
    return await BatchLedger(ledger, letter.batch).lay_down(letter.info, "purged", letter.reckoned.run)
