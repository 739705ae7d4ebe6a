"""What a worker takes of its machine: the processor time and the memory of its supervisor, its children, and what tasks started.

Looked at once for each word of the status, on a thread, since it reads a file for each process.

Next: `status.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from ..clock import boottime

LEAST_SECONDS = 1.0
"""An average over less than this says nothing; the one before stands."""


@dataclass(frozen=True, slots=True)
class Consumed:
    """Processor time as percent of one core, on the average since the look before, None at the first; and resident memory in bytes.

    Memory that processes share counts for each of them.
    """

    cpu_percent: float | None
    memory_bytes: int


class Consumption:
    """Measures this process and all below it."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._since, self._seconds = float("-inf"), 0.0
        self._percent: float | None = None

    def measure(self) -> Consumed:
        """What it takes now."""
        own = psutil.Process()
        tree = [own, *own.children(recursive=True)]
        now, seconds = self._clock(), sum(map(_cpu_seconds, tree))
        elapsed = now - self._since
        if elapsed >= LEAST_SECONDS:
            # It may have become less: what a process has used goes with it if nobody waited for its end.
            self._percent = None if elapsed == math.inf else 100 * max(0.0, seconds - self._seconds) / elapsed
            self._since, self._seconds = now, seconds
        return Consumed(self._percent, sum(map(_memory_bytes, tree)))


def _cpu_seconds(process: psutil.Process) -> float:
    """What a process has used, and what those have of its children for whose end it has waited."""
    with suppress(psutil.Error):
        used = process.cpu_times()
        return float(used.user + used.system + used.children_user + used.children_system)
    return 0.0


def _memory_bytes(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0
