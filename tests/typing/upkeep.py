"""What a type checker knows of checkpoints, dead letters and upkeep: `mypy` reads this file, nobody runs it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

from ai4s.jobq import App, Handle, current, preempted
from ai4s.jobq.dead_letters import Letter
from ai4s.jobq.sweeping import Swept

app = App("typing", result_ttl=timedelta(days=30))
App("typing", result_ttl="30d")  # type: ignore[arg-type]


@app.task
def square(x: int) -> int:
    return x * x


def in_a_task(folder: Path) -> None:
    """Saving says whether it is kept; what is loaded may be anything."""
    checkpoint = current().checkpoint
    assert_type(preempted(), bool)
    assert_type(checkpoint.save({"step": 1}), bool)
    assert_type(checkpoint.load(default=0), Any)
    assert_type(checkpoint.save_dir(folder), bool)
    assert_type(checkpoint.restore_dir(str(folder)), bool)


async def in_an_async_task(folder: Path) -> None:
    """The twins' answers are the same."""
    checkpoint = current().checkpoint
    assert_type(await checkpoint.asave(1), bool)
    assert_type(await checkpoint.asave_dir(folder), bool)
    assert_type(await checkpoint.arestore_dir(folder), bool)


def dead_letters() -> None:
    """Filters are checked by name and type."""
    letters = app.dead_letters
    assert_type(letters.list(task="step", older_than=timedelta(hours=1)), list[Letter])
    assert_type(letters.get("key-0"), Letter | None)
    assert_type(letters.retry(everything=True).handles, list[Handle[Any]])
    assert_type(letters.purge("a", "b"), list[str])
    letters.list(tasks="step")  # type: ignore[call-arg]
    letters.retry(older_than="1h")  # type: ignore[arg-type]


def upkeep() -> None:
    """Of the app's queues, and of what lies there."""
    app.pause()
    app.resume("gpu")
    app.drain(queue="gpu")
    assert_type(app.gc(older_than=timedelta(days=7)), Swept)
    assert_type(square.options(key="k", rerun_failed=True).delay(1), Handle[int])
    square.options(rerun="k")  # type: ignore[call-arg]
