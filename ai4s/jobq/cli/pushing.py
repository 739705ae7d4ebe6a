"""One `push`: a message for each call, up to some dozens on their way at a time; or one `map`, with --batch or --pack.

Either way what has been read of stdin is gone from memory once it is submitted, and whoever is interrupted hears how to go on.

Next: `lines.py` for what is read, `submitting.py` for single calls; on the other side, `worker/attempt.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import BatchConflict, ConfigurationError, DeclarationError, JobQError, MapInterrupted
from ..gathering import as_completed
from ..layout import DEFAULT_QUEUE
from ..maps.fed import Fed
from ..maps.progress_bar import Line, progress_bar
from ..version3 import message_call_id
from . import call_options
from .lines import Item, Lines, stdin_lines
from .output import note
from .results import await_batch
from .showing import Shower
from .submitting import Submitter
from .tasks import columns, task_of

if TYPE_CHECKING:
    from ..app import App
    from ..handle import Handle
    from ..ledger import Ledger
    from ..maps.batch import Batch

FEW = 20
"""So many ids are shown on a terminal."""


@dataclass(slots=True)
class Push:
    """One `push`: where its lines come from, and how far it is. `given` are the options of the command line."""

    app: App
    given: dict[str, Any]
    fed: Fed = field(default_factory=Fed)
    count: int = 0
    last_line: int = 0
    waits: bool = False

    def run(self) -> int:
        """Submit, and wait if that is wanted; returns the exit code."""
        if self.given["batch"] is not None or self.given["pack"] > 1:
            return self._in_batch()
        return self._one_by_one()

    def interrupted(self) -> str:
        """What somebody who has interrupted this is to know."""
        if self.waits:
            return "Interrupted. The calls go on; `result` and `batch` say what comes of them."
        said = f"Interrupted: {_calls(self.count)} submitted, up to line {self.last_line}. " if self.count else "Interrupted. "
        if self.given["key"] is not None:
            return f"{said}To go on, run the same again: what was submitted does not run twice."
        return f"{said}To go on, leave out those lines: tail -n +{self.last_line + 1}." if self.count else said

    def _items(self) -> Iterator[Item]:
        shell = not self.given["task"]
        lines = Lines(shell, dict(self.given["env"]), self.given["bg_dirsync_to"])
        return lines.items(self.given["commands"] or stdin_lines())

    @property
    def _where(self) -> str:
        return f"{self.app.name} at {self.app.client.place.label}"

    @property
    def _exits(self) -> dict[str, Any]:
        return {name: self.given[name] for name in ("retry_exit", "fail_exit") if self.given[name]}

    # one by one

    def _one_by_one(self) -> int:
        handles: list[Handle[Any]] = []
        ids = Ids(as_json=self.given["as_json"], silent=self.given["wait"])

        def told(item: Item, made: tuple[str, Handle[Any] | None]) -> None:
            self.count, self.last_line = self.count + 1, item.number
            ids.show(made[0])
            if self.given["wait"] and made[1] is not None:
                handles.append(made[1])
            bar.show(self.count, None)

        try:
            with progress_bar("submitted") as bar:
                Submitter(self._sender(), told).run(self._items())
        except ConfigurationError as exc:
            raise ConfigurationError(f"{exc} ({_calls(self.count)} submitted before.)" if self.count else str(exc)) from exc
        ids.close()
        note(f"Submitted {_calls(self.count)} to {self._where}.")
        return self._await(handles) if self.given["wait"] else 0

    def _sender(self) -> Any:
        if self.given["version"] == "v3":
            return self._send_v3
        changes = call_options.changes(self.given)
        if self.given["task"]:
            task = task_of(self.app, self.given["task"], codec=self.given["codec"]).options(**changes)
            return lambda item: _named(self._keyed(task, item).delay(**item.kwargs))
        shell = self.app.shell.options(**changes)

        def send(item: Item) -> tuple[str, Handle[Any]]:
            settings = {**self._exits, **item.kwargs}
            return _named(self._keyed(shell, item).delay(settings.pop("cmd"), **settings))

        return send

    def _keyed(self, what: Any, item: Item) -> Any:
        """A task or the shell with this item's key, if there is one."""
        key = self.given["key"]
        if key is None:
            return what
        return what.options(key=key if len(self.given["commands"]) == 1 else f"{key}-{_digest(item.kwargs)}")

    def _send_v3(self, item: Item) -> tuple[str, None]:
        from .. import version3

        kwargs = {"cmd": item.kwargs["cmd"], "bg_dirsync_to": self.given["bg_dirsync_to"], "env": {}, **item.kwargs}
        text = version3.text(kwargs, self.given["num_retries"] or 0)

        name = self.given["queue"] or DEFAULT_QUEUE

        async def send(ledger: Ledger) -> str:
            queue = await ledger.queue(name)
            return (await queue.send(text, delay_seconds=self.given["delay"] or 0)).message_id

        # What the call is called where one of this version's workers runs it.
        return message_call_id(self.app.client.run(send), self.app.name, name), None

    def _await(self, handles: list[Handle[Any]]) -> int:
        self.waits = True
        shower = Shower(as_json=self.given["as_json"], several=len(handles) > 1)
        for handle in as_completed(handles):
            shower.show(handle.id, handle.exception, handle.result)
        return 1 if shower.failed else 0

    # as one batch

    def _in_batch(self) -> int:
        line = Line("push")

        def report(fed: Fed) -> None:
            self.fed, self.count = fed, fed.queued
            line.show(fed)

        try:
            batch = self._map(report)
        except MapInterrupted as exc:
            if not isinstance(exc.__cause__, ConfigurationError | DeclarationError):
                raise
            before = f" ({_calls(self.count)} submitted before, as batch {exc.batch.id}.)" if self.count else ""
            raise ConfigurationError(f"{exc.__cause__}{before}") from exc
        except BatchConflict as exc:
            raise JobQError(f"{exc} On the command line, that is --key.") from exc
        finally:
            line.close()
        self._tell(batch)
        return self._await_batch(batch) if self.given["wait"] else 0

    def _map(self, report: Any) -> Batch[Any]:
        chosen = {"batch": self.given["batch"], "pack": self.given["pack"], "report": report}
        if self.given["key"] is not None:
            chosen["key"] = lambda *row: f"{self.given['key']}-{_digest(row)}"
        chosen = {name: value for name, value in chosen.items() if value is not None}
        changes = call_options.changes(self.given)
        if self.given["task"]:
            task = task_of(self.app, self.given["task"], codec=self.given["codec"]).options(**changes)
            return task.map(*columns(task, self._noted()), **chosen)
        common = {"env": dict(self.given["env"]), "bg_dirsync_to": self.given["bg_dirsync_to"]}
        common = {name: value for name, value in common.items() if value}
        rows = (_without(item.kwargs, common) for item in self._noted())
        shell = cast("Any", self.app.shell.options(**changes))
        return cast("Batch[Any]", shell.map(rows, **common, **self._exits, **chosen))

    def _noted(self) -> Iterator[Item]:
        for item in self._items():
            yield item
            self.last_line = item.number

    def _tell(self, batch: Batch[Any]) -> None:
        queued, skipped = self.fed.queued, self.fed.skipped
        if self.given["as_json"] and not self.given["wait"]:
            click.echo(json.dumps({"batch": batch.id, "submitted": queued, "skipped": skipped}))
        elif not self.given["wait"]:
            click.echo(batch.id)
        there = f"; {skipped:,} were there before" if skipped else ""
        note(f"Submitted {_calls(queued)} to {self._where}, as batch {batch.id}{there}.")

    def _await_batch(self, batch: Batch[Any]) -> int:
        self.waits = True
        as_json = self.given["as_json"]
        return await_batch(batch, None, Shower(as_json=as_json, several=True), as_json=as_json)


class Ids:
    """Prints the ids of calls: all as they come where they are piped, else a few at the end."""

    def __init__(self, *, as_json: bool, silent: bool) -> None:
        self._as_json, self._silent = as_json, silent
        self._waits = sys.stdout.isatty()
        self._held: list[str] = []
        self._count = 0

    def show(self, call: str) -> None:
        """Print one, or keep it for the end."""
        self._count += 1
        if self._silent:
            return
        line = json.dumps({"id": call}) if self._as_json else call
        if not self._waits:
            self._echo(line)
        elif self._count <= FEW + 1:
            self._held.append(line)

    def _echo(self, line: str) -> None:
        try:
            click.echo(line)
        except BrokenPipeError:
            # Whoever wanted to see the first ones does not want the others to be lost.
            self._silent = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def close(self) -> None:
        """Print what was kept, unless it would be many."""
        if len(self._held) <= FEW:
            for line in self._held:
                click.echo(line)


def _named(handle: Handle[Any]) -> tuple[str, Handle[Any]]:
    return handle.id, handle


def _digest(arguments: object) -> str:
    """The same for the same arguments, in whatever order they were written."""
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:32]


def _without(kwargs: dict[str, Any], common: dict[str, Any]) -> str | dict[str, Any]:
    """A command with the settings that not all have in common."""
    own = {name: value for name, value in kwargs.items() if name not in common or common[name] != value}
    command = own["cmd"]
    assert isinstance(command, str)
    return own if len(own) > 1 else command


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"
