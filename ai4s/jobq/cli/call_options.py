"""The options that say how a call is to run, alike for `push` and `call`; and what they come to for the library.

Next: `push.py`, `call.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from .output import json_option
from .values import Duration

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    click.option("--queue", help="Another of the app's queues."),
    click.option("--num-retries", type=click.IntRange(0), help="Further attempts after a failure."),
    click.option("--timeout", type=Duration(), help="What one attempt may take."),
    click.option("--expires", type=Duration(), help="From then on no attempt begins any more."),
    click.option("--delay", type=Duration(), help="Not before so long from now."),
    click.option("--key", help="Run once, however often it is submitted with this key."),
    click.option("--wait", is_flag=True, help="Wait, and print what comes of it; exit code 1 if a call failed."),
    json_option,
)


def options(command: F) -> F:
    """Put these options on a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def changes(given: dict[str, Any]) -> dict[str, Any]:
    """What `Task.options` is to be given."""
    names = {"queue": "queue", "num_retries": "retries", "timeout": "timeout", "expires": "expires", "delay": "countdown"}
    return {theirs: given[ours] for ours, theirs in names.items() if given[ours] is not None}
