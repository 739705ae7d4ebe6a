"""Tasks by name, as people write them on a command line: the whole name, or its end.

Next: `call.py`, `pushing.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import partial
from inspect import Parameter, signature
from itertools import tee
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigurationError
from ..named_task import NamedTask, task_named
from .lines import Item

if TYPE_CHECKING:
    from ..app import App
    from ..task import Task

MOST_NAMED = 10


def known_task(app: App, name: str) -> Task[..., Any, Any]:
    """The app's task of this name, or whose name ends in it. Raises ConfigurationError that lists close ones."""
    if name in app.tasks:
        return app.tasks[name]
    ending = [task for known, task in app.tasks.items() if known.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    close = [task.name for task in ending] or difflib.get_close_matches(name, _short(app), n=3)
    what = f"is the end of several: {', '.join(close)}" if ending else "is no task of this app"
    known = f"Did you mean {' or '.join(close)}?" if close and not ending else _listed(app)
    raise ConfigurationError(f"{name!r} {what}. {known}".rstrip())


def task_of(app: App, name: str, *, codec: Literal["cloudpickle", "msgpack"]) -> Task[..., Any, Any]:
    """As `known_task` where the app has tasks; else the task of this very name, wherever it is."""
    return known_task(app, name) if app.tasks else task_named(app, name, codec=codec)


def columns(task: Task[..., Any, Any], items: Iterator[Item]) -> list[Iterator[Any]]:
    """The items' arguments as `map` takes them: an iterable for each position. They are read together, and kept for one row.

    Raises ConfigurationError, and while they are read for an item that does not fit.
    """
    if isinstance(task, NamedTask):
        raise ConfigurationError(
            f"What {task.name} takes is not known here, and so cannot be batched: name its module, as in myproj.tasks:app, or "
            "leave out --batch and --pack."
        )
    parameters = signature(task.function).parameters.values()
    if any(each.kind is not Parameter.POSITIONAL_OR_KEYWORD for each in parameters):
        raise ConfigurationError(
            f"{task.name} has arguments that go only by keyword, or any number of them, which a batch cannot give: leave out "
            "--batch and --pack."
        )
    copies = tee(map(partial(_row, task), items), len(parameters))
    return [map(itemgetter(place), copy) for place, copy in enumerate(copies)]


def _row(task: Task[..., Any, Any], item: Item) -> tuple[Any, ...]:
    try:
        bound = signature(task.function).bind(**item.kwargs)
    except TypeError as exc:
        raise ConfigurationError(f"Line {item.number}: {task.name}: {exc}") from exc
    bound.apply_defaults()
    return bound.args


def _short(app: App) -> list[str]:
    return [*app.tasks, *(name.rpartition(".")[2] for name in app.tasks)]


def _listed(app: App) -> str:
    names = sorted(app.tasks)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"There are: {', '.join(names[:MOST_NAMED])}{more}." if names else "It has none."
