"""What waits and who works: `size`, `peek`, `clear`, `status`.

Next: `../queues.py`, which does the work.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..distribution import BOUNDS, Distribution
from ..errors import NotFound
from .looking import EXIT_CODES, ask, check_queues, lasting, opened, queue_option, yes_option
from .output import json_option, note, show, told
from .target import Chosen

if TYPE_CHECKING:
    from ..app import App
    from ..overview.queues import OpenBatch, Peeked, QueueStatus, WorkerStatus

QUEUE_COLUMNS = ("queue", "messages", "calls", "state")
BATCH_COLUMNS = ("batch", "queue", "task", "waiting", "calls", "running", "failed", "state")
WORKER_COLUMNS = (
    "worker",
    "state",
    "running",
    "slots",
    "succeeded",
    "failed",
    "retried",
    "rate",
    "progress",
    "up",
    "heard",
    "queues",
    "trouble",
)
SPARE_COLUMNS = ("retried", "up", "queues", "slots", "rate")
"""Of workers: what a narrow terminal goes without."""

MESSAGE_COLUMNS = ("kind", "id", "task", "calls", "attempt", "age", "arguments")


@click.command("size", short_help="Say how many calls and messages there are.", epilog=EXIT_CODES)
@click.option("--queue", metavar="NAME", help="One of the app's queues; all of them unless given.")
@click.option("--messages", is_flag=True, help="Only the number of messages, which takes the fewest requests.")
@json_option
@click.pass_obj
def size(chosen: Chosen, queue: str | None, *, messages: bool, as_json: bool) -> None:
    """Say how many calls wait or run, and in how many messages they lie.

    Piped, it is the number of calls and nothing else; with --messages that of messages. Both are about right: the storage counts
    approximately.

    \b
    Examples:
      jobq myaccount/myproj size
      jobq myaccount/myproj size --messages
    """
    with opened(chosen, queue) as app:
        if messages and not as_json:
            click.echo(app.queues.depth(queue))
            return
        found = _wanted(app.queues.list(), queue)
    if as_json:
        show(({"queue": each.name, "messages": each.messages, "calls": each.calls} for each in found), (), as_json=True)
    elif sys.stdout.isatty():
        for each in found:
            click.echo(f"{each.name}: about {each.calls:,} calls in {each.messages:,} messages{_state_in_words(each)}")
    else:
        click.echo(sum(each.calls for each in found))


def _wanted(found: list[QueueStatus], queue: str | None) -> list[QueueStatus]:
    wanted = [each for each in found if queue in (None, each.name)]
    if not wanted:
        raise NotFound(f"There is no queue {queue!r}.")
    return wanted


def _state_in_words(queue: QueueStatus) -> str:
    return " (paused)" if queue.paused else ""


@click.command("peek", short_help="Show messages that wait.", epilog=EXIT_CODES)
@click.option("-n", "count", type=click.IntRange(1, 32), default=1, show_default=True, help="How many messages, at most 32.")
@queue_option
@json_option
@click.pass_obj
def peek(chosen: Chosen, count: int, queue: str, *, as_json: bool) -> None:
    """Show messages that a worker could take now; they stay as they are. Arguments are shown where that runs no code.

    \b
    Examples:
      jobq myaccount/myproj peek -n 5
      jobq myaccount/myproj peek -n 32 --queue gpu --json
    """
    with opened(chosen, queue) as app:
        found = app.queues.peek(count, queue)
    if not found:
        note("There is no message that a worker could take now.")
    else:
        show((_message(each) for each in found), MESSAGE_COLUMNS, as_json=as_json)


def _message(found: Peeked) -> dict[str, Any]:
    kind = f"{found.kind} (3.x)" if found.version3 else found.kind
    age = lasting(time.time() - found.sent) if found.sent else ""
    return {**asdict(found), "kind": kind, "age": age, "arguments": found.why or found.arguments}


@click.command("clear", short_help="Cancel all calls that wait.", epilog=EXIT_CODES)
@queue_option
@click.option(
    "--force", is_flag=True, help="Remove all messages at once and write no outcomes: who waits for these calls waits in vain."
)
@yes_option
@click.pass_obj
def clear(chosen: Chosen, queue: str, *, force: bool, yes: bool) -> None:
    """Cancel all calls that wait in a queue; batches are asked to stop. What runs goes on.

    \b
    Examples:
      jobq myaccount/myproj clear
      jobq myaccount/myproj clear --queue gpu --yes
    """
    with opened(chosen, queue) as app:
        messages = check_queues(app, queue)
        what, vain = ("Remove", " Who waits for these calls will wait in vain.") if force else ("Cancel what waits in", "")
        ask(f"{what} the {messages:,} messages of queue {queue} of {app.name}?{vain}", yes=yes)
        done = app.queues.clear(queue, force=force)
    if force:
        click.echo(f"Removed {done.dropped:,} messages. Who waits for their calls waits in vain.")
        return
    click.echo(f"Cancelled {done.calls:,} calls.")
    if done.batches:
        click.echo(f"Asked {len(done.batches):,} batches to stop; the next worker ends their calls: {', '.join(done.batches)}")
    if done.unreadable:
        click.echo(f"Left {done.unreadable:,} messages that cannot be read here alone; --force removes them, with all others.")
    if done.left:
        click.echo(
            f"There are {done.left:,} messages in the queue now: packs that wait for a worker, calls that run or are delayed."
        )


@click.command("status", short_help="Show queues, open batches and workers.", epilog=EXIT_CODES)
@click.option("--all", "everything", is_flag=True, help="Workers that have ended or fallen silent too, for a day.")
@json_option
@click.pass_obj
def status(chosen: Chosen, *, everything: bool, as_json: bool) -> None:
    """Show queues, batches that are not done, and workers, as these last said of themselves.

    \b
    Examples:
      jobq myaccount/myproj status
      jobq myaccount/myproj status --json | jq 'select(.kind == "worker")'
    """
    with opened(chosen) as app:
        queues = app.queues.list()
        batches, workers = _batches_and_workers(app)
    shown = [worker for worker in workers if everything or worker.is_live]
    tables = (
        ("queue", [_queue(each) for each in queues], QUEUE_COLUMNS),
        ("batch", [_batch(each) for each in batches], BATCH_COLUMNS),
        ("worker", [_worker(each, as_json=as_json) for each in shown], WORKER_COLUMNS),
    )
    for number, (kind, rows, columns) in enumerate(table for table in tables if table[1]):
        if number and not as_json:
            click.echo()
        show(({"kind": kind, **row} for row in rows), columns, as_json=as_json, spare=SPARE_COLUMNS)
    if not as_json:
        note(_summary(workers))


def _batches_and_workers(app: App) -> tuple[list[OpenBatch], list[WorkerStatus]]:
    try:
        return app.queues.batches(), app.queues.workers()
    except NotFound:  # queues that ai4s-jobq 3.x made have no container beside them
        return [], []


def _queue(found: QueueStatus) -> dict[str, Any]:
    return {**asdict(found), "queue": found.name, "state": "paused" if found.paused else "open"}


def _batch(found: OpenBatch) -> dict[str, Any]:
    return {**asdict(found), "batch": found.id, "state": "stopping" if found.is_cancelled else "open"}


def _worker(found: WorkerStatus, *, as_json: bool) -> dict[str, Any]:
    progress = next((str(call.progress) for call in found.calls if call.progress is not None), "")
    row = {**asdict(found), "worker": found.id, "progress": progress}
    if as_json:
        return {**row, "run_times": _times(found.run_times), "wait_times": _times(found.wait_times)}
    up = found.up_seconds and found.up_seconds + found.heard_seconds * found.is_live
    words = {"up": lasting(up), "heard": f"{lasting(found.heard_seconds)} ago", "queues": ",".join(found.queues)}
    return {**row, **words, "rate": f"{found.rate:.3g}/s" if found.up_seconds else ""}


def _times(found: Distribution) -> dict[str, Any]:
    """A distribution as counts by bucket, the buckets' upper ends in seconds, and quantiles."""
    quantiles = {f"p{percent}": found.quantile(percent / 100) for percent in (50, 90, 99)}
    return {"total": found.total, "counts": found.counts, "bounds": list(BOUNDS), **quantiles}


def _summary(workers: list[WorkerStatus]) -> str:
    live = [worker for worker in workers if worker.is_live]
    silent = sum(worker.state == "silent" for worker in workers)
    lost = f"; {silent} fell silent (see --all)" if silent else ""
    if not live:
        return told(f"No worker is at work{lost}.")
    running, slots = sum(worker.running for worker in live), sum(worker.slots for worker in live)
    rate = sum(worker.rate for worker in live)
    return told(f"{len(live)} workers, {running} calls running in {slots} slots, {rate:.3g} calls/s{lost}.")
