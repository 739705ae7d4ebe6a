"""`logs`: what a call has printed and logged, as it comes if that is wanted.

What the task wrote goes to stdout, and our notes (which attempt begins, what was left out) to stderr: what is piped is the task's.

Next: `logs.py`, which reads.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

from ..log_lines import NOTE, STREAMS, LogLine
from ..logs import LogReader
from .looking import opened
from .output import json_option, note, told, told_lines
from .target import Chosen

if TYPE_CHECKING:
    from ..app import App


@click.command("logs", epilog="Exit codes: 0 done, 1 the storage failed, or the call was forgotten; 2 wrong usage; 130 Ctrl-C.")
@click.argument("call", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on until the call has ended; also before it begins.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Of what is there, only the last N lines.")
@click.option("--timestamps", "-t", is_flag=True, help="The time before each line, by the worker's clock.")
@json_option
@click.pass_obj
def logs(chosen: Chosen, /, call: str, tail: int | None, *, follow: bool, **form: bool) -> int:
    """Print what a call has printed and logged, all its attempts in order.

    Of a call of a batch, BATCH.NUMBER, only what was asked for with logs=True is there, and the last lines of a failure.
    On a terminal control characters are spelled out; what is piped is as the task wrote it.

    \b
    Examples:
      jobq myaccount/myproj logs abcdefghijklmnop-000000000000
      jobq myaccount/myproj logs abcdefghijklmnop-000000000000 -f --tail 20
      jobq myaccount/myproj logs nightly.17 --json
    """
    shown = 0
    with opened(chosen) as app:
        for line in _lines(app, call, tail, follow=follow):
            _show(line, **form)
            shown += 1
    if not shown and tail != 0:
        note(f"Call {call} has said nothing that is kept; `result` tells how it ended.")
    return 0


def _lines(app: App, call: str, tail: int | None, *, follow: bool) -> Iterator[LogLine]:
    """The lines to show: all, or the last ones of what is there by now, and what comes after."""
    handle = app.handle(call)
    lines = _as_they_come(app, LogReader(handle.id, handle.look, follow=follow))
    if tail is not None:
        yield from _last(lines, tail)
    for line in lines:
        if line is not None:
            yield line


def _as_they_come(app: App, reader: LogReader) -> Iterator[LogLine | None]:
    """The lines, and None where there is no more for now."""
    from asyncio import sleep

    while (lines := app.client.run(reader.more)) is not None:
        yield from lines
        if not lines:
            yield None
            app.client.run(lambda ledger: sleep(reader.pause_seconds))


def _last(lines: Iterable[LogLine | None], count: int) -> Iterable[LogLine]:
    """The last of those that are there."""
    kept: deque[LogLine] = deque(maxlen=count)
    for line in lines:
        if line is None:
            break
        kept.append(line)
    return kept


def _show(line: LogLine, *, timestamps: bool, as_json: bool) -> None:
    if as_json:
        fields = {"at": line.at or None, "stream": line.stream, "text": line.text, "attempt": line.attempt}
        click.echo(json.dumps(fields))
        return
    time = f"{_time(line.at)} " if timestamps else ""
    if line.stream == STREAMS[NOTE]:
        note(f"{time}-- {told(line.text)}")
    else:
        # Not without its colours, where it is piped.
        click.echo(f"{time}{told_lines(line.text)}", color=True)


def _time(at: float) -> str:
    if not 0 < at < 1e11:  # year 5138; who can write to the place can write any number
        return "-" * 23
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="milliseconds")[:23]
