"""Single calls end to end, beside bare SDK loops that make the same requests in the same run.

    python benchmarks/single_calls.py [--calls 500] [--output FILE]

What is claimed is the ratio: Azurite's speed is not Azure's. Each figure comes from several rounds in which ours and the bare loops
take turns, and the median counts, so that a machine whose speed drifts wrongs neither.

Next: `bare_loops.py`, the reference.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import bare_loops

from ai4s.jobq import App, gather
from ai4s.jobq.version import __version__

# The emulator is installed and started by what the tests use; a second way to do so would be one too many.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from azurite import running_azurite

WORKER_SLOTS = 2


@dataclass(frozen=True)
class Figure:
    """One quantity: ours, the reference's, and their ratio (above 1 is better for rates, below 1 for times)."""

    name: str
    ours: float
    bare: float | None
    unit: str

    @property
    def ratio(self) -> float | None:
        return None if self.bare is None else self.ours / self.bare


def no_op(x: int) -> int:
    return x


def throughput(app: App, calls: int) -> float:
    """Calls per second, from the first `delay` to the last value, with a worker that waits already."""
    task = app.task(no_op)
    began = time.perf_counter()
    values = gather(*[task.delay(x) for x in range(calls)])
    seconds = time.perf_counter() - began
    assert values == list(range(calls))
    return calls / seconds


def latencies(app: App, calls: int) -> list[float]:
    """Seconds from `delay` to its value, one call at a time."""
    task = app.task(no_op)
    measured = []
    for x in range(calls):
        began = time.perf_counter()
        assert task.delay(x).result() == x
        measured.append(time.perf_counter() - began)
    return measured


def take_turns(rounds: int, ours: Callable[[], float], bare: Callable[[], float]) -> tuple[float, float]:
    """The medians of both."""
    pairs = [(ours(), bare()) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


@contextmanager
def bare_worker(url: str, queue: str) -> Iterator[None]:
    """The reference's worker, in a process of its own, as ours is."""
    process = multiprocessing.get_context("spawn").Process(target=bare_loops.work, args=(url, queue, WORKER_SLOTS), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def on_azurite(calls: int, rounds: int) -> list[Figure]:
    """Ours and the bare loops, on one Azurite."""
    with running_azurite() as url:
        app = App("bench", url)
        asyncio.run(bare_loops.prepare(url, "bare"))
        with app.worker(WORKER_SLOTS), bare_worker(url, "bare"):
            throughput(app, 20)
            asyncio.run(bare_loops.produce(url, "bare", 20))
            rate, bare_rate = take_turns(
                rounds, lambda: throughput(app, calls), lambda: calls / asyncio.run(bare_loops.produce(url, "bare", calls))
            )
            one, bare_one = take_turns(
                rounds,
                lambda: statistics.median(latencies(app, 30)),
                lambda: statistics.median(asyncio.run(bare_loops.one_after_the_other(url, 30))),
            )
            slowest = sorted(latencies(app, 100))[-2]
        app.close()
    return [
        Figure("calls end to end, Azurite", rate, bare_rate, "calls/s"),
        Figure("median from delay to result, Azurite", 1000 * one, 1000 * bare_one, "ms"),
        Figure("99th percentile from delay to result, Azurite", 1000 * slowest, 1000 * bare_one, "ms"),
    ]


def on_local_store(calls: int, rounds: int) -> list[Figure]:
    """Ours on the embedded store; there is nothing to put beside it yet."""
    with tempfile.TemporaryDirectory() as folder:
        app = App("bench", f"local://{folder}")
        with app.worker(WORKER_SLOTS):
            throughput(app, 20)
            rate = statistics.median(throughput(app, calls) for _ in range(rounds))
            one = statistics.median(latencies(app, 100))
        app.close()
    return [
        Figure("calls end to end, local store", rate, None, "calls/s"),
        Figure("median from delay to result, local store", 1000 * one, None, "ms"),
    ]


def show(figures: list[Figure]) -> None:
    print(f"{'figure':48} {'ours':>10} {'bare SDK':>10} {'ratio':>7}")
    for figure in figures:
        bare = "" if figure.bare is None else f"{figure.bare:.1f}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        print(f"{figure.name + ', ' + figure.unit:48} {figure.ours:10.1f} {bare:>10} {ratio:>7}")


def save(figures: list[Figure], path: Path, calls: int) -> None:
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    rows = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
    content = {"version": __version__, "machine": machine, "calls": calls, "worker_slots": WORKER_SLOTS, "figures": rows}
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=500, help="at a time; fewer than 1,000, since Azurite slows with depth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "single_calls.json")
    given = parser.parse_args()
    figures = on_azurite(given.calls, given.rounds) + on_local_store(given.calls, given.rounds)
    show(figures)
    save(figures, given.output, given.calls)


if __name__ == "__main__":
    main()
