"""Single calls: what one costs in time, in requests and in processor time, each beside what it could cost at best.

    python benchmarks/single_calls.py [--short] [--output FOLDER]

On Azurite the reference is bare SDK loops that make the same requests; on the local store it is huey with SQLite. What is claimed
are ratios and numbers of requests. Ours and the reference take turns, and the median counts, so that a machine whose speed drifts
wrongs neither.

Next: `bare_loops.py`, the reference; `counting.py` for the requests.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import bare_loops
import outside
from counting import Counting, in_silence, told
from figures import Figure, Options, Result, report
from outside import Reference, started
from storage import in_a_folder, on_azurite, requests_counted
from tasks import app, no_op

from ai4s.jobq import gather

SLOTS = 2
WARM_UP_CALLS = 50
BARE_QUEUE = "bare"
TITLE = "Single calls"
BARE = "bare SDK loops"

IDLE_SINCE_SECONDS = 60.0
"""After how long without work a worker counts as idle."""


@dataclass(frozen=True)
class Sizes:
    """How many calls at a time (fewer than 1,000, since Azurite slows with depth), and how often."""

    calls: int = 500
    local_calls: int = 2_000
    alone: int = 100
    rounds: int = 5
    idle_since_seconds: float = IDLE_SINCE_SECONDS
    idle_seconds: float = 120.0


SHORT = Sizes(calls=50, local_calls=100, alone=5, rounds=1, idle_since_seconds=1.0, idle_seconds=2.0)


# Ours.


def end_to_end(calls: int) -> float:
    """Seconds from the first `delay` to the last value."""
    began = time.perf_counter()
    assert gather(*[no_op.delay(x) for x in range(calls)]) == list(range(calls))
    return time.perf_counter() - began


def alone(calls: int) -> list[float]:
    """Seconds from `delay` to its value, one call right after the other."""
    measured = []
    for x in range(calls):
        began = time.perf_counter()
        assert no_op.delay(x).result() == x
        measured.append(time.perf_counter() - began)
    return measured


@dataclass(frozen=True)
class Cost:
    """Milliseconds of processor time for each call."""

    producer: float
    supervisor: float


def processor_cost(calls: int, supervisor: int) -> Cost:
    """What `calls` calls cost this process and the worker with this process id; its children, where tasks run, not counted."""
    own, theirs = time.process_time(), cpu_seconds(supervisor)
    end_to_end(calls)
    return Cost(1000 * (time.process_time() - own) / calls, 1000 * (cpu_seconds(supervisor) - theirs) / calls)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, in steps of 10 ms."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


# The references.


@contextmanager
def bare_worker(url: str) -> Iterator[None]:
    """The bare loops' worker, in a process of its own, as ours is."""
    asyncio.run(bare_loops.prepare(url, BARE_QUEUE))
    process = multiprocessing.get_context("spawn").Process(target=bare_loops.work, args=(url, BARE_QUEUE, SLOTS), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def take_turns(rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """The medians of both."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def percentile(measured: list[float], share: float) -> float:
    return sorted(measured)[min(len(measured) - 1, int(share * len(measured)))]


# The figures.


def measure_throughput(url: str, sizes: Sizes) -> list[Figure]:
    """Calls per second beside bare loops, both on this account, and what they cost in processor time."""
    with app.worker(SLOTS) as worker, bare_worker(url):
        end_to_end(WARM_UP_CALLS)
        asyncio.run(bare_loops.produce(url, BARE_QUEUE, WARM_UP_CALLS))
        seconds, bare_seconds = take_turns(
            sizes.rounds,
            lambda: end_to_end(sizes.calls),
            lambda: asyncio.run(bare_loops.produce(url, BARE_QUEUE, sizes.calls)),
        )
        cost = processor_cost(sizes.calls, worker.pid)
    rate, bare_rate = sizes.calls / seconds, sizes.calls / bare_seconds
    return [
        Figure(f"{sizes.calls} single calls and their results", rate, "calls/s", bare_rate, BARE, at_least=0.8),
        Figure("processor time of the producer per single call", cost.producer, "ms", at_most=3),
        Figure("processor time of the supervisor per single call", cost.supervisor, "ms", at_most=3),
    ]


def measure_latency(url: str, sizes: Sizes) -> list[Figure]:
    """From `delay` to the value, one call at a time, beside the sum of the bare requests that it needs."""
    with app.worker(SLOTS):
        end_to_end(WARM_UP_CALLS)
        own, bare = [], []
        for _ in range(sizes.rounds):
            own += alone(sizes.alone)
            bare += asyncio.run(bare_loops.one_after_the_other(url, sizes.alone))
    reference, name = 1000 * statistics.median(bare), "the bare requests in turn"
    return [
        Figure("median from delay to result", 1000 * statistics.median(own), "ms", reference, name, at_most=3),
        Figure("99th percentile from delay to result", 1000 * percentile(own, 0.99), "ms", 1000 * percentile(bare, 0.99), name),
    ]


def measure_requests(url: str, sizes: Sizes) -> list[Figure]:
    """Requests per call with a backlog, its results read after completion; and what a worker asks for that has nothing to do."""
    with requests_counted(url) as account:
        with app.worker(SLOTS):
            end_to_end(WARM_UP_CALLS)
        counting = Counting.of(account)
        handles = [no_op.delay(x) for x in range(sizes.calls)]
        with app.worker(SLOTS):
            while counting.so_far()["delete message"] < sizes.calls:
                time.sleep(0.1)
            gather(*handles)
            kinds = counting.so_far()
        per_call = kinds.total() / sizes.calls
        with app.worker(SLOTS):
            time.sleep(sizes.idle_since_seconds)
            idle = in_silence(account, sizes.idle_seconds)
    rate = idle.total() / sizes.idle_seconds
    asked = "storage requests per single call, with a backlog"
    return [
        Figure(asked, per_call, "requests", at_most=4.2, requests=per_call, note=told(kinds, sizes.calls)),
        Figure("storage requests of an idle worker", rate, "requests/s", at_most=0.5, note=f"in all: {told(idle)}"),
    ]


def measure_local(sizes: Sizes) -> list[Figure]:
    """Calls on a folder beside huey, which keeps its calls in SQLite as well; both with two workers that run calls."""
    same, usual = (beside_huey(huey, sizes) for huey in (outside.HUEY, outside.HUEY_AS_IT_COMES))
    return [
        replace(figure, at_least=1 if figure.unit == "calls/s" else None, at_most=1 if figure.unit == "ms" else None)
        for figure in same
    ] + usual


def beside_huey(huey: Reference, sizes: Sizes) -> list[Figure]:
    with in_a_folder() as folder, app.worker(SLOTS), started(huey, folder, SLOTS) as reference:
        end_to_end(WARM_UP_CALLS)
        seconds, huey_seconds = take_turns(
            sizes.rounds, lambda: end_to_end(sizes.local_calls), lambda: reference.seconds(sizes.local_calls)[0]
        )
        one, huey_one = take_turns(
            sizes.rounds,
            lambda: statistics.median(alone(sizes.alone)),
            lambda: statistics.median(reference.seconds(1, sizes.alone)),
        )
    rate, huey_rate, name = sizes.local_calls / seconds, sizes.local_calls / huey_seconds, huey.name
    return [
        Figure("single calls and their results, local store", rate, "calls/s", huey_rate, name, note=huey.note),
        Figure("median from delay to result, local store", 1000 * one, "ms", 1000 * huey_one, name, note=huey.note),
    ]


def measure_start(sizes: Sizes) -> list[Figure]:
    """What it takes before anything happens."""
    help_command = [sys.executable, "-c", "import sys; sys.argv[1:] = ['--help']; from ai4s.jobq.cli import main; main()"]
    plain, loaded = take_turns(5 * sizes.rounds, lambda: run_time("pass"), lambda: run_time("import ai4s.jobq"))
    helped = statistics.median(timed(help_command) for _ in range(5 * sizes.rounds))
    return [
        Figure("import ai4s.jobq, over bare Python", 1000 * (loaded - plain), "ms", at_most=60),
        Figure("jobq --help", 1000 * helped, "ms", at_most=250),
    ]


def run_time(code: str) -> float:
    return timed([sys.executable, "-c", code])


def timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(options: Options) -> Result:
    sizes = SHORT if options.short else Sizes()
    found = measure_start(sizes) + measure_local(sizes)
    with on_azurite() as url:
        found += measure_throughput(url, sizes) + measure_latency(url, sizes) + measure_requests(url, sizes)
    return Result("single_calls", TITLE, found, f"at most {sizes.calls} on Azurite", short=options.short)


if __name__ == "__main__":
    report("single_calls", TITLE, measure)
