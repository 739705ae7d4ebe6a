"""How far a batch is, from two listings: of its log, whose entries count what they hold, and of the workers.

Next: `batch.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import layout
from ..batches import BatchLedger
from ..ranges import from_text
from .reading import LONGEST_INDEX, Extent

RATE_SECONDS = 60.0
"""The rate is that of the last minute."""

WORKER_SEEN_SECONDS = 180.0
MAX_NAMED = 10
"""Batches that a worker's status names."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is. `total` is what was submitted so far; `is_whole` says that no more is to come.

    `done` counts all that has ended, `failed` and `cancelled` (with the expired ones) what of it has no value. `running` is what
    workers said last, up to 15 s ago. `rate` is in calls/s, over the last minute; `seconds_left` is None where there is none.
    """

    done: int
    failed: int
    cancelled: int
    running: int
    total: int
    is_whole: bool
    rate: float
    seconds_left: float | None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {self.seconds_left:.0f} s left"
        of = f"{self.total:,}" if self.is_whole else f"{self.total:,} and more"
        return f"{self.done:,} of {of} done ({self.failed:,} failed), {self.running:,} running, {self.rate:.3g}/s{left}"


async def read_progress(batch: BatchLedger, extent: Extent, sent: float) -> Progress:
    """How far it is now; `sent` is when its submission began."""
    store, now = await batch.ledger.store(), await batch.ledger.transport.server_time()
    sums = dict.fromkeys(("done", "failed", "cancelled", "expired", "lately"), 0)
    async for info in store.list(layout.log_entries(batch.batch), with_metadata=True):
        for name in ("done", "failed", "cancelled", "expired"):
            sums[name] += int(info.metadata.get(name, "0"))
        ended = int(info.metadata.get("done", "0"))
        sums["lately"] += ended if now - info.modified < RATE_SECONDS else 0
    # What runs again had ended before, as a failure.
    rerun = await _asked_to_run_again(batch) if sums["failed"] else 0
    done, failed = sums["done"] - rerun, sums["failed"] - rerun
    rate = sums["lately"] / max(1.0, min(RATE_SECONDS, now - sent))
    left = extent.calls - done
    return Progress(
        done=done,
        failed=failed,
        cancelled=sums["cancelled"] + sums["expired"],
        running=min(left, await _running(batch, now)),
        total=extent.calls,
        is_whole=extent.is_whole,
        rate=rate,
        seconds_left=0.0 if not left else left / rate if rate else None,
    )


async def _asked_to_run_again(batch: BatchLedger) -> int:
    """How many failures, of all runs, were to run again."""
    calls, number = 0, 1
    while (order := await batch.retry(number)) is not None:
        calls += len(from_text(order.todo, range(LONGEST_INDEX)))
        number += 1
    return calls


async def _running(batch: BatchLedger, now: float) -> int:
    """What the workers that live said to run of this batch."""
    running = 0
    async for info in (await batch.ledger.store()).list(layout.WORKERS, with_metadata=True):
        if info.metadata.get("state") != "stopped" and now - info.modified < WORKER_SEEN_SECONDS:
            named = (pair.partition("=") for pair in info.metadata.get("batches", "").split())
            running += sum(int(count) for name, _, count in named if name == batch.batch)
    return running
