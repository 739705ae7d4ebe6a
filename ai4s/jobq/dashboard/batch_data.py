"""One batch as its page shows it: a map of its calls by state, the slowest, failures by kind, what runs, how fast, what it cost.

Next: `../maps/tally.py`, which reads it with one listing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from .. import layout
from ..batches import BatchLedger
from ..ledger import Ledger
from ..maps.feeding import check_batch_name
from ..maps.tally import BatchTally, tally
from ..message import BatchMeta
from ..overview import fleet
from ..printable import printable
from .looks import Looks
from .overview_data import cost_data, seconds_left
from .refresh import Refresh
from .shared import Shared
from .state_map import state_map
from .worker_data import call_now, running_calls, times

SAMPLE = 20
"""Ids of calls that failed, to go on from."""


class BatchLooks:
    """The batches that somebody looks at."""

    def __init__(self, refresh: Refresh, seconds: float) -> None:
        self._refresh, self._seconds = refresh, seconds
        self._looks = Looks(self._begin)

    async def data(self, batch_id: str) -> dict[str, Any]:
        """See the module. Raises DeclarationError for what is no id of a batch."""
        check_batch_name(batch_id)
        looked = await self._looks.at(batch_id)
        said = {"problem": looked.problem, "problem_since": looked.problem_since} if looked.problem else {}
        if looked.value is None or looked.read_at is None:
            return {"id": batch_id, "calls": None, **said}
        found, lasting = looked.value
        now = _now(found, self._refresh)
        return {**lasting, **now, "as_of": self._refresh.server_time(looked.read_at), **said}

    def expire(self) -> None:
        """Have all looked at anew."""
        self._looks.expire()

    async def close(self) -> None:
        """End what is being read."""
        await self._looks.close()

    def _begin(self, batch_id: str) -> Shared[tuple[BatchTally, dict[str, Any]]]:
        meta: list[BatchMeta] = []

        async def read(ledger: Ledger) -> BatchTally:
            if not meta and (found := await BatchLedger(ledger, batch_id).meta()) is not None:
                meta.append(found)
            return await tally(ledger, batch_id, meta=meta[0] if meta else None)

        async def shown() -> tuple[BatchTally, dict[str, Any]]:
            found = await self._refresh.app.client.arun(read)
            # Of a million calls the map takes a while, and others are to be answered meanwhile.
            return found, await asyncio.to_thread(_lasting, found, self._refresh)

        return Shared(shown, seconds=self._seconds)


def _lasting(found: BatchTally, refresh: Refresh) -> dict[str, Any]:
    """What is shown of a batch as long as it is not read anew; made once for all who look, since a map may be large."""
    states, is_exact = state_map(found.states, found.calls)
    failed = [layout.packed_call_id(found.id, index) for index in _first(found, "failed")]
    kinds = [(printable(name), count) for name, count in found.errors.most_common()]
    return {
        "id": found.id,
        "task": printable(found.task),
        "queue": found.queue,
        "sent": found.sent,
        "calls": found.calls,
        "is_whole": found.submitted_all,
        "done": found.done,
        "succeeded": found.succeeded,
        "failed": found.failed,
        "cancelled": found.cancelled,
        "expired": found.expired,
        "is_cancelled": found.is_cancelled,
        "retries": found.retries,
        "entries": found.entries,
        "rate": found.rate,
        "states": states,
        "states_are_exact": is_exact,
        "slowest": [{"index": index, "id": layout.packed_call_id(found.id, index), "seconds": s} for index, s in found.slowest],
        "errors": [{"type": name, "count": count, "sample_ids": failed if len(kinds) == 1 else []} for name, count in kinds],
        "failed_ids": failed,
        "run_times": times([found.run_times]),
        "points": [list(point) for point in found.ended_points],
        "cost": cost_data(found.requests, refresh),
    }


def _now(found: BatchTally, refresh: Refresh) -> dict[str, Any]:
    """What workers say of it."""
    running = min(found.waiting, fleet.running_calls(refresh.seen.workers)[found.id])
    left = seconds_left(found.waiting, running, found.rate)
    calls = {"running": running, "waiting": found.waiting - running, "running_calls": list(_running(found.id, refresh))}
    return {**calls, "seconds_left": left}


def _first(found: BatchTally, state: str) -> list[int]:
    """The first calls that stand so."""
    indices: list[int] = []
    for first, last, of in found.states:
        if of == state:
            indices += range(first, min(last + 1, first + SAMPLE - len(indices)))
        if len(indices) >= SAMPLE:
            break
    return indices


def _running(batch_id: str, refresh: Refresh) -> Iterator[dict[str, Any]]:
    for worker, call in running_calls(refresh):
        match = layout.PACKED_ID.fullmatch(call.id)
        if match is not None and match["batch"] == batch_id:
            yield {"index": int(match["index"]), "worker": worker.id, **call_now(call, refresh.now)}
