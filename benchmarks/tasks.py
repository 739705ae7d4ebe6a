"""The tasks of the benchmarks, in a module that workers import, as a project's would be.

Next: `throughput.py`.
"""

from __future__ import annotations

import time

from ai4s.jobq import App

app = App("bench")


@app.task
def no_op(x: int) -> int:
    return x


@app.task
def wait(seconds: float) -> float:
    """Hold a slot for so long, and no processor: what is measured is how calls are dealt out, not how they share two cores."""
    time.sleep(seconds)
    return seconds


@app.task(vector=256)
def no_ops(xs: list[int]) -> list[int]:
    return xs
