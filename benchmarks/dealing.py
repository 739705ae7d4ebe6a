"""How well `map` keeps every slot busy, whatever its calls take: beside the time that a perfect dealer would need.

Calls hold their slots and no processor, so that two cores can stand for many. Nothing is tuned: default packs, default everything.

Next: `growth.py`.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from figures import Figure, Options, Result, report
from storage import on_azurite
from tasks import app, wait

TITLE = "Dealing calls to slots"


@dataclass(frozen=True)
class Case:
    """Workers that wait already, and what one `map` gives them."""

    name: str
    workers: int
    slots: int
    seconds: Sequence[float]
    at_least: float
    idle_seconds: float = 0.0  # so long the workers have waited before; otherwise they come from work, with all their children


def greedy_makespan(seconds: Sequence[float], slots: int) -> float:
    """The time if each call, in order of index, goes to the slot that is free first."""
    free_at = [0.0] * slots
    for one in seconds:
        heapq.heapreplace(free_at, free_at[0] + one)
    return max(free_at)


def cases(*, short: bool) -> list[Case]:
    size = 10 if short else 1
    long, tiny = [5.0 / size] * 10, [0.001] * (10_000 // size)
    return [
        Case("1,000 calls of 50 ms, one worker of 8 slots", 1, 8, [0.05] * (1000 // size), 0.9),
        # The first delivery of a map goes to one of them; the others find it only if it is shared out.
        Case("1,000 calls of 0.5 s, 4 idle workers of 2 slots", 4, 2, [0.5] * (1000 // size), 0.8, idle_seconds=10.0 / size),
        Case("10 calls of 5 s, then 10,000 of 1 ms, 4 slots", 1, 4, long + tiny, 0.8),
        Case("10,000 calls of 1 ms, then 10 of 5 s, 4 slots", 1, 4, tiny + long, 0.8),
    ]


def took(case: Case) -> float:
    """Seconds from the first call to the last value."""
    with ExitStack() as stack:
        for _ in range(case.workers):
            stack.enter_context(app.worker(case.slots))
        if case.idle_seconds:
            time.sleep(case.idle_seconds)
        else:
            list(wait.map([0.5] * case.slots, pack=1))
        began = time.perf_counter()
        assert list(wait.map(case.seconds)) == list(case.seconds)
        return time.perf_counter() - began


def measure(options: Options) -> Result:
    found = []
    with on_azurite():
        for case in cases(short=options.short):
            ideal, seconds = greedy_makespan(case.seconds, case.workers * case.slots), took(case)
            note = f"{seconds:.1f} s, {ideal:.1f} s at best"
            rates = len(case.seconds) / seconds, len(case.seconds) / ideal
            found.append(Figure(case.name, rates[0], "calls/s", rates[1], "a perfect dealer", at_least=case.at_least, note=note))
    return Result("dealing", TITLE, found, "a few dozen", short=options.short)


if __name__ == "__main__":
    report("dealing", TITLE, measure)
