"""The worker's command: its options, checked, and the worker that they describe.

Next: `worker/runtime.py`, which does the work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..config import read_settings
from .target import Target, parse_target

F = TypeVar("F", bound=Callable[..., Any])
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[float]):
    """Seconds, from `90s`, `10m`, `24h` or `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if not match:
            self.fail(f"{value!r} is no duration; write 90s, 10m, 24h or 7d.", param, ctx)
        return float(match[1]) * UNITS[match[2]]


OPTIONS = (
    click.option("--concurrency", "-n", type=click.IntRange(1), default=os.cpu_count() or 1, show_default="cores",
                 help="Sync calls side by side, each in a process of its own."),
    click.option("--async-concurrency", type=click.IntRange(1), default=200, show_default=True,
                 help="`async def` calls side by side on one event loop."),
    click.option("--queue", "queues", multiple=True, metavar="NAMES",
                 help="a,b: in turn; a:3,b: by weight; given again: strict order. Unless given, all that the tasks name."),
    click.option("--until-empty", is_flag=True, help="End when the queues are empty."),
    click.option("--until-idle", type=Duration(), help="End after so long without work."),
    click.option("--time-limit", type=Duration(), help="End in good order after so long."),
    click.option("--grace", type=Duration(), default="30s", show_default=True,
                 help="What runs may take so long to finish after SIGTERM."),
    click.option("--by-value/--no-by-value", default=True, show_default=True, help="Run calls that bring their code along."),
    click.option("--verbose", "-v", is_flag=True, help="Log more, and show tracebacks."),
)  # fmt: skip


def options(command: F) -> F:
    """Put the worker's options on a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def run(target: str, given: dict[str, Any]) -> None:
    """Run the worker that TARGET and the options describe; returns when it has ended. Raises what `run_worker` does."""
    from ..worker.runtime import run_worker
    from ..worker.shutdown import Shutdown

    _log_to_stderr(verbose=given["verbose"])
    plan = _plan(parse_target(target), given)

    async def work() -> None:
        await run_worker(plan, ready=lambda: None, shutdown=Shutdown(given["grace"]))

    asyncio.run(work())


def _plan(target: Target, given: dict[str, Any]) -> Any:
    from ..worker.jobs import ChildSetup, Served
    from ..worker.runtime import Plan
    from ..worker.status import new_worker_id

    served = None if target.module else Served(target.app, target.url, read_settings().signing_keys)
    return Plan(
        # A child must find the module where the user sees it: in the current folder.
        ChildSetup(new_worker_id(), target=target.module, served=served, search_path=(str(Path.cwd()),)),
        queues=tuple(given["queues"]),
        concurrency=given["concurrency"],
        async_concurrency=given["async_concurrency"],
        until_empty=given["until_empty"],
        until_idle_seconds=given["until_idle"],
        time_limit_seconds=given["time_limit"],
        grace_seconds=given["grace"],
        by_value=given["by_value"],
    )


def _log_to_stderr(*, verbose: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s")
    logging.getLogger("ai4s.jobq").setLevel(logging.DEBUG if verbose else logging.INFO)
