"""What can be seen of a batch from outside without reading an outcome: how far it is, how it stands, what it cost.

Each is a listing or two, whose cost grows with the entries of the log, of which each holds many outcomes.

Next: `progress.py` and `tally.py`, which reckon it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..batches import BatchLedger
from ..client import Client
from ..config import read_settings
from ..cost.costs import Cost, cost_of
from ..cost.prices import read_prices
from ..errors import JobQError
from ..ledger import Ledger
from ..message import BatchMeta
from ..printable import describe
from .html import batch_html, problem_html
from .progress import Progress, read_progress
from .reading import Extent
from .tally import BatchTally, tally


class Onlooking(ABC):
    """The part of a batch for onlookers."""

    id: str
    client: Client

    @abstractmethod
    async def meta(self, ledger: Ledger) -> BatchMeta:
        """What its calls have in common."""

    def progress(self) -> Progress:
        """How far it is: two listings, whose cost grows with the entries of the log, of which each holds many outcomes."""
        return self.client.run(self._progress)

    async def aprogress(self) -> Progress:
        """As `progress`."""
        return await self.client.arun(self._progress)

    def tally(self) -> BatchTally:
        """How it stands: which calls ended how, what failed, how long they took, what the storage was asked. One listing."""
        return self.client.run(self._tally)

    async def atally(self) -> BatchTally:
        """As `tally`."""
        return await self.client.arun(self._tally)

    def cost(self) -> Cost:
        """What the storage was asked for this batch so far, and what that comes to; one listing, the same as `tally`.

        The producer's requests are in it once it has submitted everything, the workers' up to their last entry of the log; those
        of readers, and of workers that found nothing to do, are not. Prices are those of $JOBQ_PRICES, or else the package's.
        Raises ConfigurationError for a file that holds none.
        """
        return self.client.run(self._cost)

    async def acost(self) -> Cost:
        """As `cost`."""
        return await self.client.arun(self._cost)

    def _repr_html_(self) -> str:
        """How it stands, for a notebook: one listing, and no waiting for calls; where that is not known, why."""
        name = f"Batch {self.id} of {self.client.name}"
        try:
            return batch_html(name, self.tally())
        except JobQError as exc:
            return problem_html(name, f"How it stands is not known: {describe(exc)}")

    async def _progress(self, ledger: Ledger) -> Progress:
        meta, batch, extent = await self.meta(ledger), BatchLedger(ledger, self.id), Extent()
        await extent.look(batch)
        return await read_progress(batch, extent, meta.call.sent)

    async def _tally(self, ledger: Ledger) -> BatchTally:
        return await tally(ledger, self.id, meta=await self.meta(ledger))

    async def _cost(self, ledger: Ledger) -> Cost:
        prices = read_prices(read_settings().prices_file)
        return cost_of((await self._tally(ledger)).requests, prices)
