"""What workers are told beside the messages: `pause`, `resume`, `drain`; and `gc`, which removes what is old.

Next: `../control.py` and `../sweeping.py`, which do it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..layout import DEFAULT_QUEUE
from .looking import EXIT_CODES, check_queues, opened
from .output import json_option, show_fields
from .target import Chosen
from .values import Duration

if TYPE_CHECKING:
    from ..app import App

queues_option = click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help=f"One of the app's queues, may be given again; {DEFAULT_QUEUE!r} unless given.",
)
DAY_SECONDS = 86400
all_option = click.option("--all-queues", is_flag=True, help="All queues that the app has.")


def _each(chosen: Chosen, queues: tuple[str, ...], *, everywhere: bool, order: Callable[[App, str], None], told: str) -> None:
    """Give an order to queues that are there, one after the other."""
    with opened(chosen, *queues) as app:
        names = [queue.name for queue in app.queues.list()] if everywhere else [*dict.fromkeys(queues or (DEFAULT_QUEUE,))]
        check_queues(app, *names)  # an order to a queue that is not there would be for nobody
        for name in names:
            order(app, name)
            click.echo(f"Queue {name} of {app.name} {told}")


@click.command("pause", short_help="Have workers begin nothing new.", epilog=EXIT_CODES)
@queues_option
@all_option
@click.pass_obj
def pause(chosen: Chosen, queues: tuple[str, ...], *, all_queues: bool) -> None:
    """Have workers begin nothing new of a queue, until `resume`; what runs goes on.

    \b
    Examples:
      jobq myaccount/myproj pause
      jobq myaccount/myproj pause --queue gpu
    """
    told = "is paused: within 10 s workers begin nothing new, and what runs goes on. `resume` ends it."
    _each(chosen, queues, everywhere=all_queues, order=lambda app, name: app.pause(name), told=told)


@click.command("resume", short_help="Have workers of a paused queue go on.", epilog=EXIT_CODES)
@queues_option
@all_option
@click.pass_obj
def resume(chosen: Chosen, queues: tuple[str, ...], *, all_queues: bool) -> None:
    """Have the workers of a paused queue go on.

    \b
    Example:
      jobq myaccount/myproj resume --all-queues
    """
    told = "is open: workers that wait go on within 10 s."
    _each(chosen, queues, everywhere=all_queues, order=lambda app, name: app.resume(name), told=told)


@click.command("drain", short_help="Have the workers of now finish and end.", epilog=EXIT_CODES)
@queues_option
@all_option
@click.pass_obj
def drain(chosen: Chosen, queues: tuple[str, ...], *, all_queues: bool) -> None:
    """Have the workers that serve a queue now finish what they run, and end; later ones work as ever.

    \b
    Example:
      jobq myaccount/myproj drain --queue gpu
    """
    told = "is drained: within 10 s the workers that serve it now begin nothing new; they end with what they run."
    _each(chosen, queues, everywhere=all_queues, order=lambda app, name: app.drain(name), told=told)


@click.command("gc", short_help="Remove what is old.", epilog=EXIT_CODES)
@click.option("--older-than", type=Duration(), required=True, help="How old what goes is at least; a day or more, as in 7d.")
@click.option(
    "--payload",
    "payloads",
    multiple=True,
    metavar="SHA256",
    help="A stored object or function that no call needs; may be given again.",
)
@json_option
@click.pass_obj
def gc(chosen: Chosen, older_than: float, payloads: tuple[str, ...], *, as_json: bool) -> None:
    """Remove outcomes, with all that was kept for their calls, and whole batches that ended that long ago.

    What waits or runs stays, and so do failures that nobody has retried or purged. It may be interrupted and repeated.

    \b
    Example:
      jobq myaccount/myproj gc --older-than 30d
    """
    if older_than < DAY_SECONDS:
        raise click.BadParameter("Nothing younger than a day is removed: write 1d or more.", param_hint="--older-than")
    with opened(chosen) as app:
        swept = app.gc(older_than, payloads=payloads)
    show_fields({name.replace("_", " "): number for name, number in asdict(swept).items()}, as_json=as_json)
