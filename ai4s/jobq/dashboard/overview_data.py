"""What the first page shows: queues, how fast, how well, how long still, what it costs, and the open batches.

Next: `worker_data.py`, `batch_data.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..cost.costs import cost_of
from ..overview import fleet
from .batch_sums import BatchSums
from .history import WINDOW_SECONDS
from .refresh import QueueSeen, Refresh, Seen
from .worker_data import environments, times

MOST_BATCHES = 1000
"""That are told of, the open ones and then the newest."""


def overview_data(refresh: Refresh) -> dict[str, Any]:
    """See the module."""
    seen, app = refresh.seen, refresh.app
    queues = [_queue(seen, queue, refresh.now) for queue in seen.queues.values()]
    live = [worker for worker in seen.workers if worker.is_live]
    succeeded, failed = (sum(getattr(worker, name) for worker in seen.workers) for name in ("succeeded", "failed"))
    per_second = seen.history.per_second()
    window = None if per_second is None else WINDOW_SECONDS
    if per_second is None:  # just opened: what workers say themselves, and the logs of batches
        rates = sum(worker.rate for worker in live), sum(batch.rate for batch in seen.batches.values())
        per_second = max(rates)
    running = sum(worker.running for worker in live)
    counts = [queue["calls"] for queue in queues]
    left = None if None in counts else sum(counts)
    return {
        "app": app.name,
        "place": app.client.place.label,
        "queues": queues,
        "throughput": {"per_second": per_second, "window_seconds": window, "points": seen.history.points()},
        "success": {"succeeded": succeeded, "failed": failed, "rate": _share(succeeded, succeeded + failed)},
        "calls_left": left,
        "seconds_left": seconds_left(left, running, per_second) if live or not left else None,
        "workers": {"live": len(live), "all": len(seen.workers), "slots": sum(worker.slots for worker in live)},
        "running": running,
        "dead_letters": {"total": seen.letters.total, "as_of": seen.letters_as_of},
        "cost": cost_data(_requests(seen), refresh),
        "environments": environments(seen.workers),
        "run_times": times(worker.run_times for worker in seen.workers),
        "wait_times": times(worker.wait_times for worker in seen.workers),
        "batches": batch_rows(refresh, (batch for batch in seen.batches.values() if batch.is_open)),
    }


def cost_data(requests: Mapping[str, int], refresh: Refresh) -> dict[str, Any]:
    """What requests come to, the day of the prices, and the requests by kind."""
    cost = cost_of(requests, refresh.prices)
    said = {"amount": cost.amount, "currency": cost.currency, "as_of": cost.as_of, "by_kind": dict(cost.by_kind)}
    return {**said, "requests": dict(cost.requests), "total": cost.total}


def _requests(seen: Seen) -> Counter[str]:
    """What the workers that are listed, and this process, have asked."""
    asked = Counter(seen.requests)
    for worker in seen.workers:
        asked.update(worker.requests)
    return asked


def batches_data(refresh: Refresh) -> dict[str, Any]:
    """The batches, at most MOST_BATCHES. The data are as old as what was read of any of them."""
    rows = batch_rows(refresh, refresh.seen.batches.values())
    as_of = min((row["as_of"] for row in rows), default=None)
    return {"batches": rows, "total": len(refresh.seen.batches), **({} if as_of is None else {"as_of": as_of})}


def batch_rows(refresh: Refresh, found: Iterable[BatchSums]) -> list[dict[str, Any]]:
    """Batches as rows, those that are open first, and the newest first."""
    running = fleet.running_calls(refresh.seen.workers)
    chosen = sorted(found, key=lambda batch: (not batch.is_open, -batch.sent))[:MOST_BATCHES]
    return [_batch(batch, min(batch.waiting, running[batch.id])) for batch in chosen]


def _batch(batch: BatchSums, running: int) -> dict[str, Any]:
    return {
        "id": batch.id,
        "task": batch.task,
        "queue": batch.queue,
        "sent": batch.sent,
        "calls": batch.calls,
        "running": running,
        "waiting": batch.waiting - running,
        "succeeded": batch.succeeded,
        "failed": batch.failed,
        "cancelled": batch.cancelled,
        "rate": batch.rate,
        "seconds_left": seconds_left(batch.waiting, running, batch.rate),
        "is_open": batch.is_open,
        "is_cancelled": batch.is_cancelled,
        "as_of": batch.as_of,
    }


def _queue(seen: Seen, queue: QueueSeen, now: float) -> dict[str, Any]:
    return {
        "name": queue.name,
        "messages": queue.messages,
        "calls": seen.calls_in(queue),
        "oldest_seconds": None if queue.oldest_sent is None else max(0.0, now - queue.oldest_sent),
        "paused": queue.orders.paused,
        "drained_at": queue.orders.drained_at,
        "as_of": queue.as_of,
    }


def seconds_left(calls: int | None, running: int, per_second: float) -> float | None:
    """Until so many calls have ended, at this speed; None where that is not known, nothing ends, nobody works, or all of them run:
    how long the last ones take, those before them do not tell."""
    if not calls:
        return None if calls is None else 0.0
    return calls / per_second if per_second and calls > running else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
