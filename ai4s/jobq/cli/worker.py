"""The worker's command: its options, checked, and the worker that they describe.

Next: `worker/runtime.py`, which does the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..config import read_settings
from ..errors import ConfigurationError
from .output import logged
from .target import Chosen, Target
from .values import Duration, Size

F = TypeVar("F", bound=Callable[..., Any])
PREEMPTED = 75
"""Exit code after SIGTERM, a time limit or a notice: sysexits.h calls it EX_TEMPFAIL, "start me again later"."""

USUAL_LEASE = "45s"
EPILOG = "Exit codes: 0 done, 1 no storage at the start, or --max-consecutive-failures, 2 wrong usage or setup, 75 preempted."


def _usual_time_limit() -> float | None:
    said = read_settings().time_limit
    try:
        return None if said is None else Duration().convert(said, None, None)
    except click.BadParameter as exc:
        raise ConfigurationError(f"JOBQ_TIME_LIMIT: {exc.message}") from exc


def _usual_log_format() -> str:
    from ..log_formats import checked_format

    try:
        return checked_format(read_settings().log_format or "text")
    except ConfigurationError as exc:
        raise ConfigurationError(f"JOBQ_LOG_FORMAT: {exc}") from exc


COMMON_OPTIONS = (
    click.option("--queue", "queues", multiple=True, metavar="NAMES",
                 help="a,b: in turn; a:3,b: by weight; given again: strict order. Unless given, all that the tasks name."),
    click.option("--lease", "--visibility-timeout", type=Duration(), show_default=USUAL_LEASE,
                 help="For how long a call is nobody else's at first; renewed at a third of it."),
    click.option("--time-limit", type=Duration(), default=_usual_time_limit, show_default="$JOBQ_TIME_LIMIT",
                 help="End in good order after so long; what runs gets SIGTERM."),
    click.option("--grace", type=Duration(), default="25s", show_default=True,
                 help="Be gone so long after SIGTERM; what runs has most of it to finish."),
    click.option("--max-memory-per-child", type=Size(), help="End a child process, and what it runs, that holds more."),
    click.option("--gpus", metavar="auto|N", help="Give each child process a device of its own: of all there are, or of N."),
    click.option("--calls-per-gpu", type=click.IntRange(1), default=1, show_default=True, help="Children that share a device."),
    click.option("--cpus", type=click.IntRange(1), show_default="cores", help="Cores that tasks with cpus=... share."),
    click.option("--memory", type=Size(), show_default="the machine's", help="Memory that tasks with memory=... share."),
    click.option("--threads", type=click.IntRange(0), show_default="cores per slot",
                 help="OMP_NUM_THREADS and the like of each child; 0 leaves them alone."),
    click.option("--by-value/--no-by-value", default=True, show_default=True, help="Run calls that bring their code along."),
    click.option("--emulate-tty", is_flag=True, help="Give shell commands a terminal, so that they write line by line."),
    click.option("--logs/--no-logs", "keeps_logs", default=lambda: read_settings().logs, show_default="$JOBQ_LOGS, or --logs",
                 help="Keep what calls print and log, for `jobq TARGET logs ID`."),
    click.option("--log-format", type=click.Choice(["text", "json"]), default=_usual_log_format,
                 show_default="$JOBQ_LOG_FORMAT, or text", help="One JSON object a line, for what collects logs."),
    click.option("--verbose", "-v", count=True, help="Log more, and show tracebacks."),
    click.option("--quiet", "-q", count=True, help="Log less."),
    click.option("--proc", hidden=True, expose_value=False, callback=lambda context, option, value: _check_processor(value)),
)  # fmt: skip
"""Of `worker` and `pull`."""

OPTIONS = (
    click.option("--concurrency", "-n", type=click.IntRange(1), show_default="cores; 1 for PLACE/APP; with --gpus, devices",
                 help="Sync calls side by side, each in a process of its own."),
    click.option("--num-workers", type=click.IntRange(1), hidden=True),
    click.option("--async-concurrency", type=click.IntRange(1), default=200, show_default=True,
                 help="`async def` calls side by side on one event loop."),
    click.option("--until-empty/--no-until-empty", " /--forever", default=None, show_default="for PLACE/APP",
                 help="End when the queues are empty."),
    click.option("--until-idle", type=Duration(), help="End after so long without work."),
    click.option("--heartbeat/--no-heartbeat", default=True, show_default=True,
                 help="Renew leases; without, a call that takes longer than --lease runs a second time."),
    click.option("--max-consecutive-failures", type=click.IntRange(0), default=0, show_default="off",
                 help="End with an error once more than so many attempts in a row have failed."),
    click.option("--max-calls-per-child", type=click.IntRange(1), help="Replace a child process after so many calls."),
    click.option("--metrics-port", type=click.IntRange(0, 65535), default=lambda: read_settings().metrics_port,
                 show_default="$JOBQ_METRICS_PORT", help="Serve metrics for Prometheus there; 0 picks a free port."),
    click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Where --metrics-port listens."),
    *COMMON_OPTIONS,
)  # fmt: skip


def options(command: F) -> F:
    """Put the worker's options on a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def run(target: Target, given: dict[str, Any]) -> int:
    """Run the worker that TARGET and the options describe; returns its exit code. Raises what `run_worker` does."""
    from ..call_records import call_records
    from ..log_formats import formatter
    from ..worker.runtime import run_worker
    from ..worker.shutdown import Shutdown, Why, exit_soon

    plan = _plan(target, given)

    def exit_code(shutdown: Shutdown) -> int:
        return PREEMPTED if shutdown.why is Why.PREEMPTED else 0

    async def work() -> int:
        patience_seconds = read_settings().preemption_timeout_seconds
        shutdown = Shutdown(given["grace"], lambda: exit_soon(exit_code(shutdown)), patience_seconds=patience_seconds)
        await run_worker(plan, ready=lambda: None, shutdown=shutdown)
        return exit_code(shutdown)

    log_format = formatter(given["log_format"])
    with call_records(plan.setup.worker), logged(given["verbose"] - given["quiet"], logging.INFO, log_format):
        return asyncio.run(work())


def _plan(target: Target, given: dict[str, Any]) -> Any:
    from ..worker.devices import hardware_for
    from ..worker.jobs import ChildSetup, Served
    from ..worker.limits import ChildLimits
    from ..worker.runtime import Plan
    from ..worker.status import new_worker_id

    until_empty, until_idle = given.get("until_empty"), given.get("until_idle")
    names = ("gpus", "calls_per_gpu", "cpus", "memory", "threads")
    hardware = hardware_for(read_settings().environ, **{name: given[name] for name in names if given.get(name) is not None})
    served = None if target.module else Served(target.app, target.url, read_settings().signing_keys)
    return Plan(
        # A child must find the module where the user sees it: in the current folder.
        ChildSetup(
            new_worker_id(),
            target=target.module,
            served=served,
            search_path=(str(Path.cwd()),),
            emulate_tty=given["emulate_tty"],
            log_format=given["log_format"],
            logs=given["keeps_logs"],
        ),
        queues=tuple(given["queues"]),
        concurrency=given.get("num_workers") or given["concurrency"] or hardware.places or (hardware.cpus if target.module else 1),
        async_concurrency=given["async_concurrency"],
        until_empty=target.module is None and until_idle is None if until_empty is None else until_empty,
        until_idle_seconds=until_idle,
        time_limit_seconds=given["time_limit"],
        by_value=given["by_value"],
        limits=ChildLimits(given.get("max_calls_per_child"), given["max_memory_per_child"]),
        hardware=hardware,
        terms=_terms(given["lease"], renewed=given.get("heartbeat", True)),
        most_messages=given.get("most_messages"),
        max_failures_in_a_row=given.get("max_consecutive_failures") or None,
        metrics=_port(given),
    )


def _port(given: dict[str, Any]) -> Any:
    from ..telemetry.working import Port

    number = given.get("metrics_port")  # which who takes one call has not
    return None if number is None else Port(number, given["metrics_host"])


def _terms(lease_seconds: float | None, *, renewed: bool) -> Any:
    from ..worker.lease import LEAST_LEASE_SECONDS, MOST_LEASE_SECONDS, Terms

    if lease_seconds is None:
        if not renewed:
            raise ConfigurationError("--no-heartbeat goes with --lease, which says how long a call may take, as in --lease 2h.")
    elif not LEAST_LEASE_SECONDS <= lease_seconds <= MOST_LEASE_SECONDS:
        raise ConfigurationError(f"--lease is from {LEAST_LEASE_SECONDS:g}s to {MOST_LEASE_SECONDS / 86400:g}d.")
    return Terms(lease_seconds, renewed)


def _check_processor(name: str | None) -> None:
    if name not in (None, "shell"):
        raise ConfigurationError(
            f"--proc {name} is of ai4s-jobq 3.x. Declare a task instead, as in @app.task(name='jobq.v3', codec='msgpack'), and "
            "name its app as TARGET, as in myproj.tasks:app."
        )


@click.command("worker", epilog=EPILOG)
@options
@click.pass_obj
def verb(chosen: Chosen, /, **given: Any) -> int:
    """Run a worker until it is told to stop; for PLACE/APP one call at a time, and until the queues are empty.

    \b
    Examples:
      jobq myaccount/myproj worker -n 4
      jobq myaccount/myproj worker --forever --time-limit 24h
      jobq myproj.tasks:app worker --queue urgent --queue default,gpu:3 --until-idle 10m
    """
    given["verbose"] += chosen.louder
    return run(chosen.target(), given)


def _common_options(command: F) -> F:
    for option in reversed(COMMON_OPTIONS):
        command = option(command)
    return command


@click.command("pull", epilog=EPILOG)
@_common_options
@click.pass_obj
def pull(chosen: Chosen, /, **given: Any) -> int:
    """Take one call, run it, and exit; if there is none, exit at once.

    What travels as one message is taken as one: of a batch with --pack, all calls of a pack.

    \b
    Examples:
      jobq myaccount/myproj pull
      jobq myproj.tasks:app pull --queue gpu
    """
    given["verbose"] += chosen.louder
    return run(chosen.target(), {**given, "concurrency": 1, "async_concurrency": 1, "most_messages": 1})
