"""The workers as the pages show them: what each last said, and what all of them come to.

Next: `overview_data.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..distribution import BOUNDS, Distribution
from ..overview.fleet import CurrentCall, WorkerStatus
from .refresh import Refresh

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
PLAIN = (
    "id", "host", "environment", "state", "slots", "running", "heard_seconds", "version", "pid", "cpu_percent", "memory_bytes",
    "begun", "succeeded", "failed", "retried", "dead", "preempted", "deaths", "lost", "fenced", "rate", "trouble",
)  # fmt: skip
"""Fields of a status that are shown as they are."""

MOST_WORKERS, MOST_CALLS = 5000, 8
"""Workers that are told of one by one, and calls of each: some 5 MB every few seconds, by a browser that shows fewer."""


def workers_data(refresh: Refresh, most: int | None = MOST_WORKERS) -> dict[str, Any]:
    """Workers, at most so many: those at work first, then by id; `total` is how many there are."""
    found = sorted(refresh.seen.workers, key=lambda worker: (not worker.is_live, worker.id))
    return {"workers": [_worker(worker, refresh) for worker in found[:most]], "total": len(found)}


def _worker(worker: WorkerStatus, refresh: Refresh) -> dict[str, Any]:
    heard_at = refresh.seen.as_of - worker.heard_seconds
    return {
        **{name: getattr(worker, name) for name in PLAIN},
        "is_live": worker.is_live,
        "started": None if worker.up_seconds is None else round(heard_at - worker.up_seconds, 1),
        "queues": list(worker.queues),
        "calls": [call_now(call, refresh.now) for call in worker.calls[:MOST_CALLS]],
        "more_calls": worker.more_calls + max(0, len(worker.calls) - MOST_CALLS),
    }


def call_now(call: CurrentCall, now: float) -> dict[str, Any]:
    """A call that runs: since when, and how far it is."""
    progress = call.progress
    return {
        "id": call.id,
        "task": call.task,
        "seconds": round(max(0.0, now - call.started), 1),
        "progress": progress and {"done": progress.done, "total": progress.total, "message": progress.message},
    }


def running_calls(refresh: Refresh) -> Iterator[tuple[WorkerStatus, CurrentCall]]:
    """The calls that workers at work say to run."""
    return ((worker, call) for worker in refresh.seen.workers if worker.is_live for call in worker.calls)


def environments(workers: Iterable[WorkerStatus]) -> list[dict[str, Any]]:
    """The workers at work by environment, the largest one first."""
    sums: dict[str, Counter[str]] = {}
    for worker in workers:
        if worker.is_live:
            mine = sums.setdefault(worker.environment, Counter())
            mine.update(workers=1, slots=worker.slots, running=worker.running)
    in_order = sorted(sums.items(), key=lambda named: (-named[1]["workers"], named[0]))
    return [{"name": name, **{each: counts[each] for each in ("workers", "slots", "running")}} for name, counts in in_order]


def times(found: Iterable[Distribution]) -> dict[str, Any]:
    """Distributions as one: buckets, and quantiles in seconds."""
    merged = Distribution()
    for each in found:
        merged.merge(each)
    quantiles = {name: merged.quantile(share) for name, share in QUANTILES.items()}
    return {"bounds": list(BOUNDS), "counts": list(merged.counts), "total": merged.total, **quantiles}
