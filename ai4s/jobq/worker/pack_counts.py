"""Counting the calls of a pack's delivery, as chunks of them run. The counterpart of `counts.Watched` for many calls.

What costs something a call is done only where somebody listens: there may be a hundred thousand in a second.

Next: `reckoning.py`, which knows what became of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import layout
from ..lifecycle import Died, Raised, TimedOut
from ..message import BatchMeta, PackHeader
from ..transports.base import Delivery
from .counts import CallSeen, Counts, How
from .pack_calls import UNCHARGED, PackCalls


class PackCounts:
    """Counts for one delivery."""

    def __init__(self, counts: Counts, header: PackHeader, meta: BatchMeta, *, calls: PackCalls, delivery: Delivery) -> None:
        self._counts, self._header, self._meta, self._calls = counts, header, meta, calls
        self._to_server_time = delivery.server_time - delivery.received_at
        self._halved: set[int] = set()

    def began(self, indices: Sequence[int], chunk_began: float) -> None:
        """These run, or have run, in a chunk that began at this moment of the worker's clock. What they waited for ended then."""
        calls, due = self._calls, max(self._meta.call.eta or 0.0, self._header.sent)
        first = len(indices)
        if calls.charges or self._halved:
            first = sum(index not in self._halved and calls.charge_of(index) == UNCHARGED for index in indices)
        waited = max(0.0, chunk_began + self._to_server_time - due)
        self._counts.began_many(self._seen(indices[0], waited), len(indices), first)

    def succeeded(self, indices: Sequence[int], seconds: Sequence[float]) -> None:
        """These gave a value each, after so long."""
        self._counts.succeeded_many(self._seen(indices[0]), seconds)

    def ended(self, indices: Sequence[int], how: How, seconds: float | None, error: str = "") -> None:
        """These ended in another way; None where no attempt ran."""
        if seconds is None and not self._counts.watchers:
            return
        for index in indices:
            self._counts.ended(self._seen(index), how, seconds, error)

    def halved(self, indices: Sequence[int], happening: Raised | Died | TimedOut, seconds: float) -> None:
        """A slice of these failed as a whole after so long a call, and they run again in smaller ones: uncharged, but not anew."""
        self._halved.update(indices)
        failure = happening.failure
        self.ended(indices, "died" if isinstance(happening, Died) else "retried", seconds, failure.type or str(failure.cause))

    def given_back(self, indices: Sequence[int]) -> None:
        """These had begun, or were about to, and nothing came of it that counts."""
        self.ended(indices, "given_back", None)

    def _seen(self, index: int, waited_seconds: float | None = None) -> CallSeen:
        batch, call = self._header.batch, self._meta.call
        return CallSeen(layout.packed_call_id(batch, index), call.task, self._header.queue, batch, waited_seconds)
