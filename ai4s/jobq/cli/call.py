"""`call`: one call of a task, with arguments in JSON.

Next: `task.py`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ..errors import ConfigurationError
from . import call_options
from .completion import tasks
from .output import note
from .showing import Shower
from .target import Chosen
from .tasks import known_task

LIKE_JSON = frozenset('{["-0123456789')
"""What begins so was meant as JSON."""


@click.command(
    "call", epilog="Exit codes: 0 done, 1 the storage failed, or with --wait: the call failed; 2 wrong usage; 130 Ctrl-C."
)
@click.argument("task", shell_complete=tasks)
@click.argument("arguments", nargs=-1, metavar="[JSON...]")
@call_options.options
@click.pass_obj
def verb(chosen: Chosen, /, task: str, arguments: tuple[str, ...], **given: Any) -> int:
    """Call a task of MODULE:APP and print the call's id; with --wait, what it returned.

    Arguments are JSON, by position; a single JSON object gives them by name, a single list by position. What cannot be meant as
    JSON is a text. TASK is its whole name, or the end of it.

    \b
    Examples:
      jobq myproj.tasks:app call square 3 --wait
      jobq myproj.tasks:app call train '{"lr": 0.1, "seed": 3}' --timeout 2h
    """
    if chosen.target().module is None:
        raise ConfigurationError(
            "call needs the module that has the task, as in jobq myproj.tasks:app call square 3. For shell commands there is "
            "push -c; for a task whose module is elsewhere, push --task NAME with JSON objects on stdin."
        )
    app = chosen.open()
    made = known_task(app, task).options(
        **call_options.changes(given), **({"key": given["key"]} if given["key"] is not None else {})
    )
    args, kwargs = _arguments(arguments)
    try:
        handle = made.delay(*args, **kwargs)
    except TypeError as exc:
        raise ConfigurationError(str(exc)) from exc
    if not given["wait"]:
        click.echo(json.dumps({"id": handle.id}) if given["as_json"] else handle.id)
        return 0
    if sys.stderr.isatty():
        note(f"Waiting for call {handle.id}.")
    shower = Shower(as_json=given["as_json"])
    shower.show(handle.id, handle.exception, handle.result)
    return 1 if shower.failed else 0


def _arguments(words: tuple[str, ...]) -> tuple[list[Any], dict[str, Any]]:
    values = [_value(word) for word in words]
    if len(values) == 1 and isinstance(values[0], dict):
        return [], values[0]
    if len(values) == 1 and isinstance(values[0], list):
        return values[0], {}
    return values, {}


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError as exc:
        if word[:1] in LIKE_JSON:
            raise ConfigurationError(f"{word!r} is no JSON: {exc}") from exc
        return word
