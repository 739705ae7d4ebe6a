"""`result`, `cancel` and `batch`: what became of calls, from any machine, days later.

Next: `handle.py` and `maps/batch.py`, which know.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigurationError, DeclarationError, JobQError, ResultGone
from .looking import complete, opened
from .output import json_option, note, show, show_fields
from .showing import Shower
from .target import Chosen
from .values import Duration

if TYPE_CHECKING:
    from ..handle import Handle
    from ..maps.batch import Batch
    from ..maps.outcomes import Outcome

PACKED = re.compile(r"(?P<batch>.+)\.\d+")
CANCELLED, ENDED, ASKED = "cancelled", "had ended", "asked to stop"


@click.command("result", epilog="Exit codes: 0 it succeeded, 1 it failed, was cancelled, or has not ended in time; 2 wrong usage.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--timeout", type=Duration(), help="Wait so long at most; 0s for one look. For ever, unless given.")
@json_option
@click.pass_obj
def result(chosen: Chosen, ids: tuple[str, ...], timeout: float | None, *, as_json: bool) -> int:
    """Print what a call returned, once it has: a command's output, a text as it is, other values as Python shows them.

    ID is what `push` and `call` print; BATCH.NUMBER for a call of a batch.

    \b
    Examples:
      jobq myaccount/myproj result abcdefghijklmnop-000000000000
      jobq myaccount/myproj result nightly.17 --timeout 10m --json
    """
    shower = Shower(as_json=as_json, several=len(ids) > 1)
    with opened(chosen) as app:
        for handle in [app.handle(each) for each in ids]:
            shower.show(handle.id, partial(handle.exception, timeout), handle.result, handle.progress)
    return 1 if shower.failed else 0


@click.command("cancel", epilog="Exit codes: 0 none of them counts any more, 1 one had ended before, 2 wrong usage.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--queue", help="The calls' queue, whose workers are told. All that the tasks name, unless given.")
@json_option
@click.pass_obj
def cancel(chosen: Chosen, ids: tuple[str, ...], queue: str | None, *, as_json: bool) -> int:
    """Cancel calls, or batches. What runs is stopped within 10 s.

    Says of each which it was: "cancelled" (no value of it counts from now on), "had ended", or, of a batch, "asked to stop"
    (its workers end what has not ended).

    \b
    Examples:
      jobq myaccount/myproj cancel abcdefghijklmnop-000000000000
      jobq myaccount/myproj cancel nightly
    """
    with opened(chosen) as app:
        named = [_handle_or_batch(app, each, queue) for each in ids]
        complete(app)
        rows = [{"id": each, **_cancelled(what)} for each, what in zip(ids, named, strict=True)]
    show(rows, ("id", "result", "state"), as_json=as_json)
    return 1 if any(row["result"] == ENDED for row in rows) else 0


def _handle_or_batch(app: Any, name: str, queue: str | None) -> Handle[Any] | Batch[Any]:
    if packed := PACKED.fullmatch(name):
        raise ConfigurationError(f"{name} belongs to a batch, which is cancelled as a whole: cancel {packed['batch']}.")
    try:
        handle: Handle[Any] = app.handle(name, queue=queue)
    except DeclarationError:
        batch: Batch[Any] = app.batch(name)
        return batch
    return handle


def _cancelled(what: Handle[Any] | Batch[Any]) -> dict[str, str]:
    from ..maps.batch import Batch

    if isinstance(what, Batch):
        what.cancel()
        return {"result": ASKED, "state": ""}
    try:
        return {"result": CANCELLED if what.cancel() else ENDED, "state": str(what.status())}
    except ResultGone:
        return {"result": ENDED, "state": "forgotten"}


@click.command("batch", epilog="Exit codes: 0 done, 1 the storage failed, or with --wait: a call has no value; 2 wrong usage.")
@click.argument("name", metavar="BATCH")
@click.option("--failures", is_flag=True, help="List the calls that have failed.")
@click.option("--results", is_flag=True, help="Print each result as calls end.")
@click.option("--wait", is_flag=True, help="Wait until all calls have ended.")
@click.option("--timeout", type=Duration(), help="Wait so long at most.")
@click.option("--cancel", "is_to_end", is_flag=True, help="End all calls as cancelled that have not ended.")
@click.option("--retry", is_flag=True, help="Run all calls again that have failed.")
@json_option
@click.pass_obj
def batch(chosen: Chosen, /, name: str, *, timeout: float | None, as_json: bool, **wanted: bool) -> int:
    """Say how far a batch is: how many calls have ended, failed, run, and how long the rest will take.

    \b
    Examples:
      jobq myaccount/myproj batch nightly
      jobq myaccount/myproj batch nightly --wait
      jobq myaccount/myproj batch nightly --failures --json
      jobq myaccount/myproj batch nightly --retry
    """
    if wanted["is_to_end"] and wanted["retry"]:
        raise click.UsageError("--cancel and --retry do not go together.")
    with opened(chosen) as app:
        return _work_on(app.batch(name), timeout, wanted, as_json=as_json)


def _work_on(found: Batch[Any], timeout: float | None, wanted: dict[str, bool], *, as_json: bool) -> int:
    if wanted["is_to_end"]:
        found.cancel()
        note(f"Batch {found.id} is asked to stop: workers end what has not ended.")
    if wanted["retry"]:
        count = found.retry_failures()
        note(f"{count:,} {'call' if count == 1 else 'calls'} of batch {found.id} to run again.")
    if wanted["failures"]:
        _show_failures(found, as_json=as_json)
    if wanted["results"] or wanted["wait"]:
        return await_batch(found, timeout, Shower(as_json=as_json, several=True) if wanted["results"] else None, as_json=as_json)
    if not wanted["failures"]:
        show_fields(_fields(found), as_json=as_json)
    return 0


def await_batch(found: Batch[Any], timeout: float | None, shower: Shower | None, *, as_json: bool) -> int:
    """Wait for a batch's calls, and show what came of each or how far it is at the end; the exit code."""
    without_value = 0
    for outcome in found.as_completed(timeout):
        without_value += not outcome.ok
        if shower is not None:
            show_outcome(found, outcome, shower)
    if shower is None:
        show_fields(_fields(found), as_json=as_json)
    return 1 if without_value else 0


def show_outcome(found: Batch[Any], outcome: Outcome[Any], shower: Shower) -> None:
    """Show what came of one call of a batch."""
    shower.show(f"{found.id}.{outcome.index}", lambda: outcome.error, lambda: outcome.value)


def _fields(found: Batch[Any]) -> dict[str, Any]:
    at = found.progress()
    return {
        "batch": found.id,
        "calls": at.total,
        "complete": at.is_whole,
        "succeeded": at.done - at.failed - at.cancelled,
        "failed": at.failed,
        "cancelled": at.cancelled,
        "running": at.running,
        "waiting": max(0, at.total - at.done - at.running),
        "per_second": round(at.rate, 3),
        "seconds_left": None if at.seconds_left is None else round(at.seconds_left, 1),
    }


def _show_failures(found: Batch[Any], *, as_json: bool) -> None:
    def row(outcome: Any) -> dict[str, Any]:
        error = outcome.error
        said = str(error).partition("\n")[0] if isinstance(error, JobQError) else f"{type(error).__name__}: {error}"
        return {"id": f"{found.id}.{outcome.index}", "attempts": outcome.attempts, "worker": outcome.worker, "error": said}

    show(map(row, found.failures()), ("id", "attempts", "error"), as_json=as_json)
