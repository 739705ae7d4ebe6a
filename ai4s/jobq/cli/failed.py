"""Dead letters: `failed list`, `show`, `retry`, `purge`; and those that ai4s-jobq 3.x left in queues of their own.

Next: `../dead_letters.py` and `../old_letters.py`, which do the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ..errors import DeclarationError, JobQError, NotFound
from ..layout import DEFAULT_QUEUE, batch_of
from .looking import EXIT_CODES, ask, lasting, opened, yes_option
from .output import json_option, note, show, show_fields, told, told_lines
from .target import Chosen
from .values import Duration, Regex

if TYPE_CHECKING:
    from ..app import App
    from ..dead_letters import Filters, Letter

F = TypeVar("F", bound=Callable[..., Any])

COLUMNS = ("id", "queue", "task", "cause", "error", "attempts", "ended", "message")
SPARE_COLUMNS = ("queue", "attempts", "cause")
"""What a narrow terminal goes without."""

CAUSES = ("raised", "timed out", "died", "refused", "never fits", "unreadable")

NAMES = frozenset({"queue", "task", "cause", "matching", "older_than", "newer_than"})
"""Of the library's filters."""

FILTERS = (
    click.option("--queue", metavar="NAME", help="Of this queue; of all queues unless given."),
    click.option("--task", metavar="NAME", help="Of this task; the last part of its name will do."),
    click.option("--cause", type=click.Choice(CAUSES), help="That failed in this way."),
    click.option("--error", "matching", metavar="REGEX", type=Regex(), help='Where this is found in "ErrorType: message".'),
    click.option("--older-than", type=Duration(), help="That ended so long ago or longer."),
    click.option("--newer-than", type=Duration(), help="That ended within this time."),
    click.option("--batch", metavar="ID", help="Of this batch."),
)


def filters(command: F) -> F:
    """Put the options that choose letters on a command."""
    for option in reversed(FILTERS):
        command = option(command)
    return command


@click.group("failed", short_help="Look at calls that failed; run them again.", epilog=EXIT_CODES)
def failed() -> None:
    """Look at calls that failed, run them again, or lay them aside.

    A batch with failures is one of them, by the batch's id, however many of its calls have failed.

    \b
    Examples:
      jobq myaccount/myproj failed list --newer-than 24h
      jobq myaccount/myproj failed show ID
      jobq myaccount/myproj failed retry --error 'FileNotFound|Timeout'
    """


@failed.command("list", epilog=EXIT_CODES)
@filters
@click.option("--limit", "-n", type=click.IntRange(1), help="At most so many.")
@json_option
@click.pass_obj
def list_(chosen: Chosen, /, *, limit: int | None, as_json: bool, **given: Any) -> None:
    """List dead letters, by queue and id.

    \b
    Examples:
      jobq myaccount/myproj failed list --task train --error 'out of memory'
      jobq myaccount/myproj failed list --json | jq -r .id
    """
    with opened(chosen, given["queue"]) as app:
        found = _found(app, given, limit)
        old = _old_letters(app, given["queue"])
    if found:
        show((_row(letter, as_json=as_json) for letter in found), COLUMNS, as_json=as_json, spare=SPARE_COLUMNS)
    else:
        note("There is no dead letter" + (" to which all these filters apply." if any(given.values()) else "."))
    for queue, count in old.items():
        note(f"Of ai4s-jobq 3.x there are {count:,} more, of the queue {queue}: `failed retry --v3` sends them back.")


def _found(app: App, given: dict[str, Any], limit: int | None = None) -> list[Letter]:
    batch, chosen = given["batch"], {name: value for name, value in given.items() if name in NAMES}
    try:
        found = app.dead_letters.list(limit=None if batch else limit, **cast("Filters", chosen))
    except NotFound:
        app.queues.depth()  # where there is a queue and no container yet, nothing has failed
        return []
    return [letter for letter in found if batch in (None, letter.id)][:limit]


def _old_letters(app: App, queue: str | None) -> dict[str, int]:
    """How many letters ai4s-jobq 3.x left, by queue. A help: where it cannot be found out, nothing is said."""
    from ..old_letters import OldLetters

    try:
        names = [queue] if queue else list(app.client.queues | {DEFAULT_QUEUE})
        counts = {name: OldLetters(app.client, name).count() for name in sorted(names)}
    except JobQError:
        return {}
    return {name: count for name, count in counts.items() if count}


def _row(letter: Letter, *, as_json: bool) -> dict[str, Any]:
    if as_json:
        return _as_json(letter)
    ended = f"{lasting(time.time() - letter.ended)} ago"
    error = letter.error.rpartition(".")[2]
    return {**asdict(letter), "ended": ended, "error": error, "message": letter.message.partition("\n")[0]}


def _as_json(letter: Letter) -> dict[str, Any]:
    return {name: value for name, value in asdict(letter).items() if value not in (None, "", {})}


@failed.command("show", epilog=EXIT_CODES)
@click.argument("id")
@json_option
@click.pass_obj
def show_(chosen: Chosen, id: str, *, as_json: bool) -> None:
    """Show all that is known of one dead letter. Arguments are shown where that runs no code.

    \b
    Example:
      jobq myaccount/myproj failed show abcdefgh234567ab-000000000017
    """
    with opened(chosen) as app:
        letter = app.dead_letters.get(id)
    if letter is None:
        batch = batch_of(id)
        where = f" It belongs to a batch: `failed show {batch}`, or `result {id}`." if batch else ""
        raise JobQError(f"There is no dead letter {id!r} of {app.name}.{where}")
    if as_json:
        show_fields(_as_json(letter), as_json=True)
        return
    show_fields(_fields(letter))
    for text in (letter.traceback or letter.message.partition("\n")[2], letter.raw):
        if text:
            click.echo(f"\n{told_lines(text.rstrip())}")


def _fields(letter: Letter) -> dict[str, Any]:
    said = {name: value for name, value in _as_json(letter).items() if name not in ("traceback", "raw", "causes", "retrying")}
    said["message"] = letter.message.partition("\n")[0]
    for moment in ("sent", "started", "ended"):
        if moment in said:
            said[moment] = _moment(said[moment])
    if not letter.failures:
        said.pop("failures", None)
    if letter.causes:
        said["causes"] = ", ".join(f"{count} {cause}" for cause, count in letter.causes.items())
    if letter.retrying:
        said["retrying"] = "a retry goes on, or was cut short: ask for it again"
    return said


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC ({lasting(time.time() - seconds)} ago)"


everything_option = click.option("--all", "everything", is_flag=True, help="All dead letters.")


@failed.command("retry", short_help="Run calls again.", epilog=EXIT_CODES)
@click.argument("ids", nargs=-1)
@filters
@everything_option
@click.option("--v3", is_flag=True, help="What ai4s-jobq 3.x left in NAME-failed: send it back to its queue.")
@yes_option
@json_option
@click.pass_obj
def retry(chosen: Chosen, /, ids: tuple[str, ...], *, v3: bool, **given: Any) -> int:
    """Run calls again: as the next run of the same call, with full budgets, from its last checkpoint on.

    Which: by ids, by filters (all of them must apply), or --all.

    \b
    Examples:
      jobq myaccount/myproj failed retry abcdefgh234567ab-000000000017
      jobq myaccount/myproj failed retry --task train --error 'CUDA out of memory' --newer-than 24h --yes
    """
    yes, as_json = given.pop("yes"), given.pop("as_json")
    if v3:
        _check_alone(ids, given)
    with opened(chosen, given["queue"]) as app:
        if v3:
            return _retry_old(app, given["queue"] or DEFAULT_QUEUE, yes=yes, as_json=as_json)
        wanted, said = _chosen(app, "Run {} again", ids, given, yes=yes)
        again = app.dead_letters.retry(*wanted, **said)
        rows = [
            *({"id": handle.id, "retry": f"run {handle.run}"} for handle in again.handles),
            *({"id": batch.id, "retry": "all failures of the batch"} for batch in again.batches),
            *({"id": each, "retry": "put back as it was"} for each in again.put_back),
            *({"id": each, "retry": "left alone", "why": why} for each, why in again.left.items()),
        ]
    if rows:
        show(rows, ("id", "retry", "why"), as_json=as_json)
    note(f"{len(rows) - len(again.left):,} run again, {len(again.left):,} were left alone.")
    return 1 if again.left and ids else 0


def _check_alone(ids: tuple[str, ...], given: dict[str, Any]) -> None:
    """Letters of 3.x tell nothing by which to choose: with a filter, all would go back where only some are meant."""
    if ids or any(value for name, value in given.items() if name not in ("queue", "everything")):
        raise DeclarationError("--v3 sends back all that 3.x left of one queue: only --queue goes with it.")


def _retry_old(app: App, queue: str, *, yes: bool, as_json: bool) -> int:
    from ..old_letters import OldLetters

    letters = OldLetters(app.client, queue)
    app.queues.depth(queue)  # a mistyped name is no queue from which nothing is to be sent back
    count = letters.count()
    if count:
        ask(f"Send about {count:,} tasks that ai4s-jobq 3.x gave up back to the queue {queue} of {app.name}?", yes=yes)
    resent = letters.retry()
    if as_json:
        show_fields({"queue": queue, "sent": len(resent.handles), "left": resent.left}, as_json=True)
    else:
        click.echo(f"Sent {len(resent.handles):,} back to the queue {queue}; left {resent.left:,} that cannot be read.")
    return 0


@failed.command("purge", short_help="Remove dead letters.", epilog=EXIT_CODES)
@click.argument("ids", nargs=-1)
@filters
@everything_option
@yes_option
@json_option
@click.pass_obj
def purge(chosen: Chosen, /, ids: tuple[str, ...], **given: Any) -> int:
    """Remove dead letters; the calls stay as failed as they are, and cannot be retried any more.

    \b
    Example:
      jobq myaccount/myproj failed purge --older-than 30d
    """
    yes, as_json = given.pop("yes"), given.pop("as_json")
    with opened(chosen) as app:
        wanted, said = _chosen(app, "Remove {}", ids, given, yes=yes)
        gone = app.dead_letters.purge(*wanted, **said)
    if gone:
        show(({"id": each} for each in gone), ("id",), as_json=as_json)
    missing = set(ids).difference(gone)
    note(f"{len(gone):,} were removed." + (f" Left alone: {', '.join(sorted(map(told, missing)))}." if missing else ""))
    return 1 if missing else 0


def _chosen(
    app: App, what: str, ids: tuple[str, ...], given: dict[str, Any], *, yes: bool
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Which letters are meant, once that is confirmed: ids, and filters. Those that were named one by one are meant."""
    batch = given.pop("batch")
    named = (*ids, *([batch] if batch else []))
    if not (named or given["everything"] or any(given.values())):
        raise DeclarationError("Say which: ids, filters such as --task or --error, or --all.")
    if ids and given["everything"]:
        raise DeclarationError("Either ids or --all.")
    if not ids and not yes:
        count = len(_found(app, {**given, "batch": batch}))
        if count > 1:
            ask(f"{what.format(f'{count:,} dead letters of {app.name}')}?", yes=yes)
    return named, given
