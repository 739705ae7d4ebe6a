"""How long the dashboard takes to answer where there is much to show, and what it asks for: 1,000 workers, 100,000 calls.

The workers and the batch never were: what they would have left in storage is put there. Each answer is asked for when a refresh is
due, so that nothing is served from what is known already. Requests are counted where they are made, repeats included.

Next: `report.py`.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from typing import Any

from figures import Figure, Options, Result, report
from storage import on_azurite
from tasks import app

# By way of `storage`, which has made the tests' modules importable.
from dashboards import Visitor, visited  # isort: skip
from simulated import make, put_batch, put_letters, put_workers  # isort: skip

from ai4s.jobq.ledger import Ledger

TITLE = "The dashboard"
BATCH, ROUNDS = "simulated", 9
PATHS = ("overview", "batches", "workers", "failed", f"batch/{BATCH}")


async def requests() -> Counter[str]:
    """What this process has asked of the storage so far, by kind."""

    async def ask(ledger: Ledger) -> Counter[str]:
        return Counter(ledger.transport.requests.snapshot())

    return await app.client.arun(ask)


async def answers(visitor: Visitor) -> tuple[dict[str, list[float]], list[Counter[str]]]:
    """How long each answer took, in seconds, and what was asked of the storage for it."""
    took: dict[str, list[float]] = {path: [] for path in PATHS}
    asked = []
    for _ in range(ROUNDS):
        for path in PATHS:
            before, began = await requests(), time.perf_counter()
            await visitor.get(f"/api/{path}")
            took[path].append(time.perf_counter() - began)
            await asyncio.sleep(0.5)  # a refresh that the answer did not wait for ends meanwhile
            asked.append(await requests() - before)
    return took, asked


async def looked_at(options: Options) -> list[Figure]:
    workers, calls, letters = (100, 10_000, 50) if options.short else (1000, 100_000, 500)
    await app.client.arun(lambda ledger: put_workers(ledger, workers, batch=BATCH))
    await app.client.arun(lambda ledger: put_batch(ledger, BATCH, calls))
    await app.client.arun(lambda ledger: put_letters(ledger, letters))
    async with visited(app, seconds=0.1) as visitor:
        await visitor.dashboard.refresh.look(60)  # the first one, which asks for everything
        took, asked = await answers(visitor)
    size = f"{workers:,} workers, a batch of {calls:,} calls in 400 log entries, {letters:,} dead letters"
    slowest = {path: max(seconds) for path, seconds in took.items()}
    return [
        *(_time(path, slowest[path], statistics.median(took[path])) for path in PATHS),
        _most("requests of a refresh and of the batch that is looked at, at most", [each.total() for each in asked], 3, note=size),
        _most("listings among them, at most", [each["blob_list"] for each in asked], 3),
    ]


def _time(path: str, slowest: float, median: float) -> Figure:
    name = f"the slowest answer of `/api/{path.partition('/')[0]}`"
    return Figure(name, slowest, "s", at_most=1.0, note=f"half of them took less than {median:.3f} s")


def _most(name: str, counts: list[int], at_most: int, *, note: str = "") -> Figure:
    return Figure(name, max(counts), "requests", at_most=at_most, note=note)


def measure(options: Options) -> Result:
    with on_azurite():
        make(app)
        found: list[Any] = asyncio.run(looked_at(options))
    return Result("dashboard", TITLE, found, short=options.short)


if __name__ == "__main__":
    report("dashboard", TITLE, measure)
