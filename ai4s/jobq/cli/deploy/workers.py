"""What a file for workers elsewhere must know: whom they serve, where it lies, and their command line, checked here and now.

The place is a storage account that other machines reach. Of the right to use it only its kind is known here.

Next: `keda.py`, `slurm.py`, `docker.py`.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...config import read_settings
from ...errors import ConfigurationError
from ...layout import DEFAULT_QUEUE, queue_name
from ...transports.place import AzurePlace, Place, parse_place
from ..target import MODULE_AND_APP, Chosen
from ..values import Duration

if TYPE_CHECKING:
    from ...app import App

F = TypeVar("F", bound=Callable[..., Any])

IMAGE = r"(?=.{1,500}$)[A-Za-z0-9][\w./:@-]*"
MIB = 1024**2

AFTER_GRACE_SECONDS = 5
"""What a worker may take beyond its `--grace`: connections and children are closed within two seconds; more for a slow machine."""

OPTIONS = (
    click.option("--module", metavar="MODULE:APP", help="What the workers serve, if TARGET is ACCOUNT/APP and they shall not only "
                 "run commands and calls that bring their code along; --queue then says which queues."),
    click.option("--queue", "queues", multiple=True, metavar="NAMES", help="As for `worker`."),
    click.option("--concurrency", "-n", type=click.IntRange(1), show_default="1, or GPUs",
                 help="Calls side by side in one worker; it is also given so many cores."),
    click.option("--grace", type=Duration(), default="25s", show_default=True, help="A worker is gone so long after SIGTERM."),
    click.argument("worker_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF THE WORKER]"),
)  # fmt: skip


def options(command: F) -> F:
    """Put on a command what all three have."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers that are to run elsewhere.

    `serves` is their target. `queues` are the names in storage. `signed`: they need the keys of this environment. `has_right`:
    the right to use the place came with its URL, so that it must come with theirs.
    """

    serves: str
    app: str
    place: AzurePlace
    queues: tuple[str, ...]
    concurrency: int
    grace_seconds: float
    options: tuple[str, ...]
    signed: bool

    @property
    def command(self) -> list[str]:
        """The command line of one worker."""
        return ["jobq-worker", self.serves, *self.options]

    @property
    def gone_seconds(self) -> int:
        """How long after SIGTERM a worker is surely gone."""
        return math.ceil(self.grace_seconds) + AFTER_GRACE_SECONDS

    @property
    def has_right(self) -> bool:
        """Whether the right to use the place came with its URL, as a key or a SAS."""
        return bool(self.place.key or self.place.sas)


def planned(chosen: Chosen, given: dict[str, Any], *extra: str) -> Workers:
    """Workers as the options in `given` describe them, and `extra` ones, checked as a worker would.

    Raises ConfigurationError for a place that other machines do not reach, and what a worker would raise for its options.
    """
    app, place, serves = _served(chosen, given["module"])
    line = (*_own_options(given), *extra, *given["worker_options"])
    parsed = _parsed(line)
    return Workers(
        serves=serves,
        app=app,
        place=_reachable(place),
        queues=_queues(app, parsed["queues"] or (",".join(_named(chosen)),)),
        concurrency=parsed["concurrency"],
        grace_seconds=parsed["grace"],
        options=line,
        signed=bool(read_settings().signing_keys),
    )


def _own_options(given: dict[str, Any]) -> list[str]:
    queues = given["queues"] or ([DEFAULT_QUEUE] if given["module"] else [])
    gpus = given.get("gpus")
    calls = given["concurrency"] or gpus or 1
    return [
        *(option for queue in queues for option in ("--queue", queue)),
        *("--concurrency", str(calls)),
        # Not what the machine has: a container, or a job, may see more cores than are its own.
        *("--cpus", str(calls)),
        *(("--gpus", "auto") if gpus else ()),
        *("--grace", told(given["grace"])),
    ]


def told(seconds: float) -> str:
    """A duration as options take it.

    >>> told(90.0), told(0.5)
    ('90s', '0.5s')
    """
    return f"{int(seconds) if seconds.is_integer() else seconds}s"


def checked(pattern: str, what: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A callback for a text that is put where it could be taken for something else: it must match, as a whole."""

    def check(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(pattern, text, re.ASCII):
            raise click.BadParameter(f"{text!r} is no {what}.")
        return text

    return check


def shown(command: list[str]) -> str:
    """A command line for a shell, whatever is in it."""
    return " ".join(map(shlex.quote, command))


def _served(chosen: Chosen, module: str | None) -> tuple[str, Place, str]:
    """The app's name, its place, and the target of its workers."""
    target = chosen.target()
    if target.module is not None:
        if module is not None:
            raise click.UsageError("--module is for a TARGET of the form ACCOUNT/APP.")
        client = _opened(chosen).client
        return client.name, client.place, target.module
    if module is not None and not MODULE_AND_APP.fullmatch(module):
        raise click.BadParameter(f"{module!r} is no MODULE:APP, as in myproj.tasks:app.", param_hint="--module")
    place = parse_place(target.url)
    return target.app, place, module or f"{place.label}/{target.app}"


def _named(chosen: Chosen) -> list[str]:
    """The queues that a worker serves unless told: all that the tasks name; a module that is only named is not asked."""
    return sorted(_opened(chosen).client.queues)


def _opened(chosen: Chosen) -> App:
    # The module may print, and standard output is for the file.
    with contextlib.redirect_stdout(sys.stderr):
        return chosen.open(create=False)


def _queues(app: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    from ...worker.poller import parse_queues

    turns = [turn for group in parse_queues(app, texts) for turn in group]
    return tuple(dict.fromkeys(queue_name(app, turn.queue) for turn in turns))


def _reachable(place: Place) -> AzurePlace:
    if not isinstance(place, AzurePlace) or not place.label.startswith("azure://"):
        raise ConfigurationError(
            f"{place.label} is only there for this machine: name a storage account, as ACCOUNT/APP or in JOBQ_URL=azure://ACCOUNT."
        )
    return place


def _parsed(line: tuple[str, ...]) -> dict[str, Any]:
    """The worker's options as the worker will read them."""
    from ..worker import verb

    with verb.make_context("worker", list(line)) as context:
        return context.params
