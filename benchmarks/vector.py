"""A vector task, which takes lists and is mapped over items like any other, beside the plain `map` of the same run.

Next: `dealing.py`.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from figures import Figure, Options, Result, report
from storage import on_azurite
from tasks import app, no_op, no_ops

TITLE = "Vector tasks"
PROCESSES = 2
ROUNDS = 3


def rate(task: Any, items: int) -> float:
    began = time.perf_counter()
    assert list(task.map(range(items))) == list(range(items))
    return items / (time.perf_counter() - began)


def measure(options: Options) -> Result:
    items = 5_000 if options.short else 100_000
    with on_azurite(), app.worker(PROCESSES):
        rate(no_op, 20), rate(no_ops, 20)
        # They take turns, so that a machine whose speed drifts wrongs neither.
        pairs = [(rate(no_ops, items), rate(no_op, items)) for _ in range(ROUNDS)]
    vector, plain = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    name = f"{items:,} items by map, lists of 256"
    figure = Figure(name, vector, "items/s", plain, "one item at a time", at_least=2)
    return Result("vector", TITLE, [figure], "a few dozen", short=options.short)


if __name__ == "__main__":
    report("vector", TITLE, measure)
