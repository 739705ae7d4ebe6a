"""The worker's command: its options, checked, and the worker that they describe.

Next: `worker/runtime.py`, which does the work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..config import read_settings
from ..printable import PlainFormatter
from .target import Chosen, Target
from .values import Duration, Size

F = TypeVar("F", bound=Callable[..., Any])
PREEMPTED = 75
"""Exit code after SIGTERM, a time limit or a notice: sysexits.h calls it EX_TEMPFAIL, "start me again later"."""

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
    click.option("--grace", type=Duration(), default="25s", show_default=True,
                 help="Be gone so long after SIGTERM; what runs has most of it to finish."),
    click.option("--max-calls-per-child", type=click.IntRange(1), help="Replace a child process after so many calls."),
    click.option("--max-memory-per-child", type=Size(), help="End a child process, and what it runs, that holds more."),
    click.option("--by-value/--no-by-value", default=True, show_default=True, help="Run calls that bring their code along."),
    click.option("--verbose", "-v", is_flag=True, help="Log more, and show tracebacks."),
)  # fmt: skip


def options(command: F) -> F:
    """Put the worker's options on a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def run(target: Target, given: dict[str, Any]) -> int:
    """Run the worker that TARGET and the options describe; returns its exit code. Raises what `run_worker` does."""
    from ..worker.runtime import run_worker
    from ..worker.shutdown import Shutdown, Why, exit_soon

    _log_to_stderr(verbose=given["verbose"])
    plan = _plan(target, given)

    def exit_code(shutdown: Shutdown) -> int:
        return PREEMPTED if shutdown.why is Why.PREEMPTED else 0

    async def work() -> int:
        shutdown = Shutdown(given["grace"], at_last=lambda: exit_soon(exit_code(shutdown)))
        await run_worker(plan, ready=lambda: None, shutdown=shutdown)
        return exit_code(shutdown)

    return asyncio.run(work())


def _plan(target: Target, given: dict[str, Any]) -> Any:
    from ..worker.executors import ChildLimits
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
        by_value=given["by_value"],
        limits=ChildLimits(given["max_calls_per_child"], given["max_memory_per_child"]),
    )


def _log_to_stderr(*, verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ai4s.jobq").setLevel(logging.DEBUG if verbose else logging.INFO)


@click.command("worker", epilog="Exit codes: 0 done, 1 the storage failed at the start, 2 wrong usage or setup, 75 preempted.")
@options
@click.pass_obj
def verb(chosen: Chosen, /, **given: Any) -> None:
    """Run a worker until it is told to stop."""
    given["verbose"] |= chosen.verbose
    sys.exit(run(chosen.target(), given))
