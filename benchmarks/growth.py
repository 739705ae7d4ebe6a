"""What a call costs as a `map` grows from a thousand to a million, and what memory a million takes.

Each size is queued while nobody works and then worked off, again and again for a minute, always to its end. Memory is that of the
process which maps over a generator and reads the values, and of the supervisor of the worker, looked at while they work.

Next: `report.py`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
from figures import Figure, Options, Result, Series, report
from storage import on_azurite
from tasks import app, no_op

TITLE = "Growth"
PROCESSES = 2
MEBIBYTE = 2**20
LOOKS_PER_SECOND = 5


@dataclass(frozen=True)
class Cost:
    """Of one call, in microseconds: by the clock, and of processor time in all processes of ours together."""

    clock: float
    processor: float


def processor_seconds(pids: list[int]) -> float:
    """What these processes and their children have used so far."""
    found = [psutil.Process(pid) for pid in pids]
    everyone = {one.pid: one for parent in found for one in (parent, *parent.children(recursive=True))}
    return sum(times.user + times.system for times in (one.cpu_times() for one in everyone.values()))


def cost(size: int, at_least_seconds: float) -> Cost:
    """Queue `size` calls while nobody works, then have them run and read their values; again and again for so long."""
    done, seconds, used, over_at = 0, 0.0, 0.0, time.perf_counter() + at_least_seconds
    while time.perf_counter() < over_at:
        with stopwatch([os.getpid()]) as mapping:
            batch = no_op.map(range(size))
        with app.worker(PROCESSES) as worker, stopwatch([os.getpid(), worker.pid]) as running:
            done += sum(1 for _ in batch)
        seconds += mapping.seconds + running.seconds
        used += mapping.used + running.used
    assert done % size == 0
    return Cost(1e6 * seconds / done, 1e6 * used / done)


@dataclass
class Stopwatch:
    """How long a block took, and the processor time of some processes in it."""

    seconds: float = 0.0
    used: float = 0.0


@contextlib.contextmanager
def stopwatch(pids: list[int]) -> Iterator[Stopwatch]:
    watch, used, began = Stopwatch(), processor_seconds(pids), time.perf_counter()
    yield watch
    watch.seconds, watch.used = time.perf_counter() - began, processor_seconds(pids) - used


@dataclass
class Memory:
    """Resident memory of one process over time, in MiB."""

    pid: int
    seconds: list[float] = field(default_factory=list)
    mebibytes: list[float] = field(default_factory=list)

    def look(self, second: float) -> None:
        self.seconds.append(round(second, 2))
        self.mebibytes.append(round(psutil.Process(self.pid).memory_info().rss / MEBIBYTE, 1))

    @property
    def peak(self) -> float:
        return max(self.mebibytes)

    def growth(self) -> float:
        """The most of the last quarter over the most of the second: beyond 1, it grows with the number of calls."""
        quarter = len(self.mebibytes) // 4
        return max(self.mebibytes[-quarter:]) / max(self.mebibytes[quarter : 2 * quarter])

    def series(self, name: str) -> Series:
        every = max(1, len(self.seconds) // 200)
        return Series(name, self.seconds[::every], self.mebibytes[::every], "s", "MiB")


@contextlib.contextmanager
def watched(*memories: Memory) -> Iterator[None]:
    """Look at these processes again and again during the block."""
    over, began = threading.Event(), time.perf_counter()

    def watch() -> None:
        while not over.wait(1 / LOOKS_PER_SECOND):
            for memory in memories:
                memory.look(time.perf_counter() - began)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def memory_of(calls: int, supervisor: int, own_pid: int) -> tuple[Memory, Memory]:
    """Memory while a generator of so many is mapped, and then read."""
    producer, worker = Memory(own_pid), Memory(supervisor)
    with watched(producer, worker):
        batch = no_op.map(x for x in range(calls))
        for index, value in enumerate(batch):
            assert value == index
        # So that there are four quarters to compare, however small the size.
        while len(producer.seconds) < LOOKS_PER_SECOND:
            time.sleep(1 / LOOKS_PER_SECOND)
    return producer, worker


def memory_figures(calls: int, producer: Memory, supervisor: Memory) -> list[Figure]:
    name = f"map over a generator of {calls:,}"
    return [
        Figure(f"{name}: producer at most", producer.peak, "MiB", at_most=200),
        Figure(f"{name}: supervisor at most", supervisor.peak, "MiB", at_most=150),
        Figure(f"{name}: producer, last quarter over second", producer.growth(), "x", at_most=1.2),
        Figure(f"{name}: supervisor, last quarter over second", supervisor.growth(), "x", at_most=1.2),
    ]


def cost_figures(costs: dict[int, Cost]) -> list[Figure]:
    """The largest size beside the smallest, in time and processor time; then each beside the one before."""
    small, *_, last, large = sorted(costs)
    name = f"cost per call, {large:,} queued by one map"
    clock = Figure(name, costs[large].clock, "us", costs[small].clock, f"{small:,} queued", at_most=1.2)
    used = Figure(f"{name}, processor time", costs[large].processor, "us", costs[small].processor, f"{small:,} queued", at_most=1.2)
    step = Figure(name, costs[large].clock, "us", costs[last].clock, f"{last:,} queued", at_most=1.2)
    return [clock, used, step]


def cost_series(costs: dict[int, Cost]) -> list[Series]:
    x_unit, y_unit = "calls queued", "us per call"
    return [
        Series("time", list(costs), [one.clock for one in costs.values()], x_unit, y_unit),
        Series("processor time", list(costs), [one.processor for one in costs.values()], x_unit, y_unit),
    ]


def measure(options: Options) -> Result:
    sizes = [10**2, 10**3, 10**4] if options.short else [10**3, 10**4, 10**5, 10**6]
    with on_azurite():
        with app.worker(PROCESSES) as worker:
            list(no_op.map(range(20)))
            memories = memory_of(sizes[-1], worker.pid, os.getpid())
        costs = {size: cost(size, 2 if options.short else 60) for size in sizes}
    figures = [*cost_figures(costs), *memory_figures(sizes[-1], *memories)]
    series = [*cost_series(costs), memories[0].series("producer"), memories[1].series("supervisor")]
    return Result("growth", TITLE, figures, "a few hundred, each of up to 4,096 calls", series, options.short)


if __name__ == "__main__":
    report("growth", TITLE, measure)
