"""Calls by `map` and single calls, end to end, beside Celery, bare packs and others on the same storage.

Everything is measured on one emulator, one after the other, with two worker processes each. The many calls of a `map` travel in a
few dozen messages; the others, which need a message for each call, get 500 calls, so that the queue is never deep.

Next: `outside.py`, which runs the others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import outside
from figures import Figure, Options, Result, report
from outside import Reference, started
from storage import on_azurite, requests_counted
from tasks import app, no_op

from ai4s.jobq import gather

PROCESSES = 2
TITLE = "Calls by `map`, and single calls"


@dataclass(frozen=True)
class Sizes:
    """How many calls of each kind."""

    mapped: int = 100_000
    singles: int = 500
    latencies: int = 30
    rounds: int = 3


def mapped(calls: int) -> None:
    assert list(no_op.map(range(calls))) == list(range(calls))


def singly(calls: int) -> None:
    assert gather(*[no_op.delay(x) for x in range(calls)]) == list(range(calls))


def seconds(run: Callable[[int], None], calls: int, rounds: int) -> float:
    """The median time of a round."""
    measured = []
    for _ in range(rounds):
        began = time.perf_counter()
        run(calls)
        measured.append(time.perf_counter() - began)
    return statistics.median(measured)


@dataclass(frozen=True)
class Speed:
    """What can be said of anybody: calls per second, and seconds for one call alone."""

    rate: float
    one: float


def ours(run: Callable[[int], None], calls: int, sizes: Sizes) -> Speed:
    with app.worker(PROCESSES):
        run(outside.WARM_UP_CALLS)
        return Speed(calls / seconds(run, calls, sizes.rounds), seconds(run, 1, sizes.latencies))


def theirs(reference: Reference, url: str, calls: int, sizes: Sizes) -> Speed:
    with started(reference, url, PROCESSES) as running:
        rate = calls / statistics.median(running.seconds(calls, sizes.rounds))
        return Speed(rate, statistics.median(running.seconds(1, sizes.latencies)))


def requests_per_call(url: str, calls: int) -> float:
    """Storage requests of producer and worker together, per mapped call; the worker waits already."""
    with requests_counted(url) as account, app.worker(PROCESSES):
        mapped(outside.WARM_UP_CALLS)
        before = len(account.requests)
        mapped(calls)
        return (len(account.requests) - before) / calls


def their_requests_per_call(reference: Reference, url: str, calls: int) -> float:
    with requests_counted(url) as account, started(reference, account.url, PROCESSES) as running:
        before = len(account.requests)
        running.seconds(calls)
        return (len(account.requests) - before) / calls


def mapped_figures(url: str, sizes: Sizes, celery: Speed) -> list[Figure]:
    own = ours(mapped, sizes.mapped, sizes)
    bare, pool = (theirs(other, url, sizes.mapped, sizes) for other in (outside.BARE_PACKS, outside.PROCESS_POOL))
    requests = requests_per_call(url, sizes.mapped)
    celery_requests = their_requests_per_call(outside.CELERY, url, sizes.singles)
    name, unit, fewer = f"{sizes.mapped:,} no-op calls by map, results in order", "calls/s", f"of {sizes.singles} calls"
    asked = "storage requests per call by map"
    return [
        Figure(name, own.rate, unit, celery.rate, outside.CELERY.name, at_least=400, note=fewer),
        Figure(name, own.rate, unit, bare.rate, outside.BARE_PACKS.name, at_least=0.6),
        Figure(name, own.rate, unit, pool.rate, outside.PROCESS_POOL.name, note=outside.PROCESS_POOL.note),
        Figure(asked, requests, "requests", at_most=0.02, requests=requests),
        Figure(asked, requests, "requests", celery_requests, outside.CELERY.name, requests=requests, note=fewer),
    ]


def single_figures(url: str, sizes: Sizes, celery: Speed) -> list[Figure]:
    own = ours(singly, sizes.singles, sizes)
    quick = theirs(outside.QUICK_CELERY, url, sizes.singles, sizes)
    name, alone = f"{sizes.singles:,} single no-op calls and their results", "median from delay to result"
    found = [
        Figure(name, own.rate, "calls/s", celery.rate, outside.CELERY.name, at_least=3),
        Figure(name, own.rate, "calls/s", quick.rate, outside.QUICK_CELERY.name),
        Figure(alone, 1000 * own.one, "ms", 1000 * celery.one, outside.CELERY.name, at_most=1 / 30),
        Figure(alone, 1000 * own.one, "ms", 1000 * quick.one, outside.QUICK_CELERY.name),
    ]
    for other in (outside.OLD_JOBQ, outside.DRAMATIQ):
        rate = theirs(other, url, sizes.singles, sizes).rate
        found.append(Figure(name, own.rate, "calls/s", rate, other.name, note=other.note))
    return found


def measure(options: Options) -> Result:
    sizes = Sizes(mapped=5_000, singles=50, latencies=5, rounds=1) if options.short else Sizes()
    with on_azurite() as url:
        celery = theirs(outside.CELERY, url, sizes.singles, sizes)
        found = single_figures(url, sizes, celery)
    with on_azurite() as url:  # a fresh one, since it slows with what lies in it
        found = [*mapped_figures(url, sizes, celery), *found]
    return Result("throughput", TITLE, found, f"at most {sizes.singles}", short=options.short)


if __name__ == "__main__":
    report("throughput", TITLE, measure)
