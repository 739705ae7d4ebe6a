"""`amlt`: runs the program of that name, and tells the jobs that it starts where their calls are.

The variables are those of ai4s-jobq 3.x, which our workers read too. Of each configuration on the command line a copy is made,
beside it since its paths count from there, with the variables in its environment; it is removed whatever happens. The copy says
what the original says, word for word: scalars are never interpreted here.

Next: `target.py`, which reads the variables at the other end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ..config import read_settings
from ..errors import ConfigurationError
from ..transports.place import AzurePlace, Place, parse_place
from .target import Chosen
from .values import Duration

if TYPE_CHECKING:
    import yaml

KILLED_BY = 128
"""As a shell has it: the exit code of a program that a signal ended is 128 and its number."""


@click.command("amlt", epilog="Exit codes: that of amlt, 2 wrong usage or setup.")
@click.option(
    "--time-limit",
    "-t",
    type=Duration(),
    default="24h",
    show_default=True,
    help="Workers end in good order after so long: what runs is told, and goes back.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[--] ARGUMENTS OF AMLT")
@click.pass_obj
def verb(chosen: Chosen, time_limit: float, arguments: tuple[str, ...]) -> int:
    """Run amlt with JOBQ_STORAGE, JOBQ_QUEUE and JOBQ_TIME_LIMIT set, also in the environment of the YAML files that it is given.

    The files themselves are left as they are: amlt gets copies. Options of amlt stand after `--`.

    \b
    Examples:
      jobq myaccount/myproj amlt run config.yaml
      jobq myaccount/myproj amlt --time-limit 4h -- run config.yaml --yes
    A job's command in the configuration may then be:
      command:
        - jobq-worker --grace 2m & trap "kill -15 $!" TERM; wait $!
    """
    program = shutil.which("amlt")
    if program is None:
        raise ConfigurationError("There is no program amlt on the PATH: install it, or run `jobq TARGET worker` where the work is.")
    variables = _variables(chosen, time_limit)
    with _Signals() as signals, ExitStack() as copies:
        given = [copies.enter_context(_copy(argument, variables)) for argument in arguments]
        signals.receiver = subprocess.Popen([program, *given], env={**read_settings().environ, **variables})
        code = signals.receiver.wait()
    return code if code >= 0 else KILLED_BY - code


def _variables(chosen: Chosen, time_limit: float) -> dict[str, str]:
    target = chosen.target()
    if target.module is None:
        app, place = target.app, parse_place(target.url)
    else:
        client = chosen.open(create=False).client
        app, place = client.name, client.place
    limit = f"{max(1, int(time_limit))}s"
    return {"JOBQ_STORAGE": _account(place), "JOBQ_QUEUE": app, "JOBQ_TIME_LIMIT": limit}


def _account(place: Place) -> str:
    if not isinstance(place, AzurePlace) or not place.label.startswith("azure://"):
        raise ConfigurationError(f"{place.label} is only there for this machine: jobs need a storage account, as in ACCOUNT/APP.")
    return place.account


@contextmanager
def _copy(argument: str, variables: Mapping[str, str]) -> Iterator[str]:
    """The name of a copy with the variables, while the block lasts; the argument itself, if it is no configuration."""
    path = Path(argument)
    text = _with_environment(path, variables) if path.suffix in (".yaml", ".yml") and path.is_file() else None
    if text is None:
        yield argument
        return
    number, name = tempfile.mkstemp(prefix=f"{path.stem}-jobq-", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        yield str(path.with_name(Path(name).name))
    finally:
        Path(name).unlink(missing_ok=True)


def _with_environment(path: Path, variables: Mapping[str, str]) -> str | None:
    """A configuration with the variables in `environment: env:`; None for another YAML file, which has no `environment`."""
    import yaml

    try:
        top = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        environment = _entry(top, "environment")
        if environment is None:
            return None
        _set(_mapping(environment, "env"), variables)
        return str(yaml.serialize(top, Dumper=yaml.SafeDumper, allow_unicode=True))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as exc:
        raise ConfigurationError(f"{path} cannot be given the variables: {' '.join(str(exc).split())}") from exc


def _entry(node: yaml.Node | None, name: str) -> yaml.Node | None:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


def _mapping(environment: yaml.Node, name: str) -> yaml.MappingNode:
    """The mapping under `name`, made if there is none; raises ValueError if there is something else."""
    import yaml

    if not isinstance(environment, yaml.MappingNode):
        raise ValueError("`environment` is no mapping.")
    found = _entry(environment, name)
    if isinstance(found, yaml.MappingNode):
        return found
    if found is not None and found.tag != "tag:yaml.org,2002:null":
        raise ValueError(f"`environment: {name}:` is no mapping.")
    made = yaml.MappingNode("tag:yaml.org,2002:map", [], flow_style=False)
    environment.value = [pair for pair in environment.value if pair[0].value != name]
    environment.value.append((_text(name), made))
    return made


def _set(node: yaml.MappingNode, variables: Mapping[str, str]) -> None:
    kept = [pair for pair in node.value if pair[0].value not in variables]
    node.value = kept + [(_text(name), _text(value, style='"')) for name, value in variables.items()]


def _text(text: str, style: str | None = None) -> yaml.ScalarNode:
    import yaml

    return yaml.ScalarNode("tag:yaml.org,2002:str", text, style=style)


class _Signals:
    """While it lasts, signals end nothing here: they go on to the program, once it runs; before that they raise Exit."""

    def __init__(self) -> None:
        self.receiver: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self.receiver is None:
            raise click.exceptions.Exit(KILLED_BY + number)
        if number != signal.SIGINT:  # which a terminal sends to both
            self.receiver.send_signal(number)
