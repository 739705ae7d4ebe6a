"""What the verbs that look after an app have in common: they make nothing, and say when nothing is there.

Next: `overview/queues.py`, `failed.py`, `orders.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from ..errors import JobQError, NotFound
from ..layout import DEFAULT_QUEUE
from .target import Chosen

if TYPE_CHECKING:
    from ..app import App

EXIT_CODES = "Exit codes: 0 done, 1 the storage failed or nothing is there, 2 wrong usage or setup, 130 Ctrl-C."

queue_option = click.option("--queue", default=DEFAULT_QUEUE, show_default=True, metavar="NAME", help="One of the app's queues.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@contextmanager
def opened(chosen: Chosen, *queues: str | None) -> Iterator[App]:
    """The app, of which nothing is made; what is not there, these queues of it for example, is an error that says what to do."""
    app = chosen.open(create=False)
    try:
        yield app
    except NotFound as exc:
        raise NotFound(f"{_missing(app, queues)} Check the names; what is pushed first makes it.") from exc
    finally:
        app.close()


def _missing(app: App, queues: tuple[str | None, ...]) -> str:
    """What is not there: the storage has said no more than which of its own things it misses."""
    place = app.client.place.label
    try:
        there = app.client.run(app.queues.names)
    except NotFound:
        return f"There is no app {app.name!r} at {place}."
    unknown = [queue for queue in queues if queue and queue not in there]
    if unknown:
        return f"The app {app.name!r} at {place} has no queue {unknown[0]!r}; it has: {', '.join(there)}."
    return f"The app {app.name!r} at {place} has no container for results yet."


def check_queues(app: App, *queues: str) -> int:
    """See that these are there, and how many messages are in them. From then on the container may be made: to push takes none."""
    messages = sum(map(app.queues.depth, queues))
    app.client.move(app.client.origin._replace(create=True))
    return messages


def complete(app: App) -> None:
    """If a queue of the app is there, the container may be made from now on: to push takes none."""
    with suppress(NotFound):
        app.queues.list()
        app.client.move(app.client.origin._replace(create=True))


def ask(question: str, *, yes: bool) -> None:
    """Have it confirmed where somebody sits at a terminal; ends the command if it is not. Where nobody does, it counts as meant."""
    if yes or not at_terminal():
        return
    try:
        is_meant = click.confirm(question, err=True)
    except click.Abort as exc:  # click's for Ctrl-C and Ctrl-D alike
        if isinstance(exc.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exc
        is_meant = False
    if not is_meant:
        raise JobQError("Nothing was done, since that was not confirmed.")


def at_terminal() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty()


def lasting(seconds: float | None) -> str:
    """A time as people say it: 45s, 12m, 3h, 9d."""
    if seconds is None:
        return ""
    for unit, size, least in (("d", 86400, 172800), ("h", 3600, 7200), ("m", 60, 120)):
        if seconds >= least:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
