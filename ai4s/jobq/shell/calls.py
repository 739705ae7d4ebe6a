"""Submitting shell commands: `app.shell("make results", timeout=3600)`, and `app.shell.map` for many.

All of it is the built-in task `jobq.shell` with its arguments checked: what a worker would refuse is refused here.

Next: `running.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack

from ..client import Client
from ..codec import SHELL_CODEC
from ..errors import DeclarationError
from ..handle import Handle
from ..maps.batch import Batch
from ..maps.feeding import Key, Skip
from ..maps.streaming import AsyncStream, Stream
from ..message import SHELL_TASK
from ..options import CallChanges, CallOptions, task_options
from ..retry import RetryPolicy
from ..shell_result import ShellResult
from ..task import Shipment, Task
from .running import Runner

P = ParamSpec("P")
D = TypeVar("D")
R = TypeVar("R")

MAX_COMMAND_BYTES = 100 * 1024
"""What Linux takes as one argument of a process is 128 KiB; a longer script belongs in a file."""


class CommandSettings(TypedDict, total=False):
    """How a command runs. `app.shell` says what each means."""

    env: Mapping[str, str | int | float | os.PathLike[str]]
    cwd: str | os.PathLike[str]
    bg_dirsync_to: str | os.PathLike[str]
    retry_exit: Iterable[int]
    fail_exit: Iterable[int]
    timeout: float | timedelta | None
    retries: int


class StreamSettings(CommandSettings, total=False):
    """How the commands of a stream run; see `Task.stream`."""

    batch: str
    key: Key
    skip: Skip
    ahead: int


class MapSettings(CommandSettings, total=False):
    """How the commands of a batch run, and how they travel; see `Task.map`."""

    batch: str
    key: Key
    skip: Skip
    pack: int


Commands = Iterable[str | Mapping[str, Any]]
AsyncCommands = AsyncIterable[str | Mapping[str, Any]]


class BuiltInTask(Task[P, D, R]):
    """A task that every worker has: its function never travels."""

    @property
    def importable(self) -> bool:
        return True

    def configured(self, chosen: CallOptions) -> Task[P, D, R]:
        return BuiltInTask(self.client, self.function, declared=self.declared, shipment=self._shipment, chosen=chosen)


def shell_task(client: Client, *, emulate_tty: bool = False) -> Task[..., ShellResult, ShellResult]:
    """The task `jobq.shell` of this client's app."""
    declared = replace(
        task_options(client.name, {}, is_async=False),
        name=SHELL_TASK,
        codec=SHELL_CODEC,
        # Which exit codes are tried again is the command's to say: the runner raises Retry for those.
        policy=RetryPolicy(retry_on=()),
    )
    return BuiltInTask(client, Runner(client, emulate_tty=emulate_tty).run, declared=declared, shipment=Shipment())


class Shell:
    """`app.shell`: commands that a worker runs with bash.

    Safe to use from any thread, and picklable.
    """

    def __init__(self, task: Task[..., ShellResult, ShellResult]) -> None:
        self._task = task

    def __call__(self, cmd: str, /, **settings: Unpack[CommandSettings]) -> Handle[ShellResult]:
        """Submit a command; returns when it is durable.

        Args:
            cmd: as bash would read it; at most 100 KiB.
            env: variables of its environment, beside the worker's own.
            cwd: the folder where it starts; the worker's own unless given.
            bg_dirsync_to: what it writes in the folder `$AMLT_DIRSYNC_DIR` is copied there: while it runs, and at its end.
            retry_exit: the exit codes after which it is tried again; all but 0, unless given.
            fail_exit: the exit codes after which it never is.
            timeout: seconds (or a timedelta) that one attempt may take.
            retries: further attempts after a failure or a timeout; 0 unless given.

        `handle.result()` is a ShellResult, or raises CommandFailed, or what `Handle.result` says. Other options, such as `key` and
        `countdown`, are for `app.shell.options(...)`.

        Raises:
            DeclarationError: a command or a setting that cannot be.
            KeyConflict, TransportError: as Task.delay.
        """
        task, kwargs = self._split(dict(settings))
        return task.delay(_checked_command(cmd), **kwargs)

    delay = __call__

    async def adelay(self, cmd: str, /, **settings: Unpack[CommandSettings]) -> Handle[ShellResult]:
        """As `delay`, which is the call itself."""
        task, kwargs = self._split(dict(settings))
        return await task.adelay(_checked_command(cmd), **kwargs)

    def options(self, **changes: Unpack[CallChanges]) -> Shell:
        """The same with other options for the calls made through it; see `Task.options`."""
        return Shell(self._task.options(**changes))

    def map(self, commands: Commands, /, **settings: Unpack[MapSettings]) -> Batch[ShellResult]:
        """Submit a command for each item, as `Task.map` does; returns when all are durable.

        An item is a command, or a dict of `cmd` and settings of its own (`env`, `cwd`, …, but no `timeout` and no `retries`), which
        go before those that are given for all.
        """
        task, kwargs, batching = self._split_map(settings)
        return task.map(_each_checked(commands), kwargs=kwargs, **batching)

    async def amap(self, commands: Commands | AsyncCommands, /, **settings: Unpack[MapSettings]) -> Batch[ShellResult]:
        """As `map`, of a plain or async iterable."""
        task, kwargs, batching = self._split_map(settings)
        return await task.amap(_either_checked(commands), kwargs=kwargs, **batching)

    def stream(self, commands: Commands, /, **settings: Unpack[StreamSettings]) -> Stream[ShellResult]:
        """Map, and read outcomes as they come; see `Task.stream`."""
        task, kwargs, batching = self._split_map(settings)
        return task.stream(_each_checked(commands), kwargs=kwargs, **batching)

    def astream(self, commands: Commands | AsyncCommands, /, **settings: Unpack[StreamSettings]) -> AsyncStream[ShellResult]:
        """As `stream`, with `async with` and `async for`."""
        task, kwargs, batching = self._split_map(settings)
        return task.astream(_either_checked(commands), kwargs=kwargs, **batching)

    def _split(self, settings: dict[str, Any]) -> tuple[Task[..., ShellResult, ShellResult], dict[str, Any]]:
        """The task with the options among these settings, and what is left as arguments of the command."""
        options = {name: settings.pop(name) for name in ("timeout", "retries") if name in settings}
        return self._task.options(**options), checked_settings(settings)

    def _split_map(self, settings: Mapping[str, Any]) -> tuple[Task[..., ShellResult, ShellResult], dict[str, Any], dict[str, Any]]:
        own = {name: value for name, value in settings.items() if name in CommandSettings.__annotations__}
        batching = {name: value for name, value in settings.items() if name not in own}
        return *self._split(own), batching


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A command's settings as they travel; raises DeclarationError that says what would be right."""
    for name in settings:
        if name not in _CHECKS:
            raise DeclarationError(f"{name!r} is no setting of a command. There are: {', '.join(_CHECKS)}.")
    return {name: _CHECKS[name](name, value) for name, value in settings.items() if value is not None}


def _checked_command(cmd: object) -> str:
    if not isinstance(cmd, str) or "\0" in cmd:
        raise DeclarationError(f"A command is a text for bash, as in 'python train.py --seed 1'; got {cmd!r:.200}.")
    if (size := len(cmd.encode("utf-8", "replace"))) > MAX_COMMAND_BYTES:
        raise DeclarationError(f"A command has at most {MAX_COMMAND_BYTES} bytes; this one has {size}. Put it in a script.")
    return cmd


def _checked_item(item: object) -> str | dict[str, Any]:
    if not isinstance(item, Mapping):
        return _checked_command(item)
    settings = dict(item)
    return {"cmd": _checked_command(settings.pop("cmd", None)), **checked_settings(settings)}


def _each_checked(commands: Any) -> Iterator[Any]:
    if isinstance(commands, str):
        raise DeclarationError("map takes many commands, as in app.shell.map(['echo 1', 'echo 2']); for one, app.shell('echo 1').")
    return map(_checked_item, commands)


def _either_checked(commands: Any) -> Iterator[Any] | AsyncIterator[Any]:
    return _aeach_checked(commands) if isinstance(commands, AsyncIterable) else _each_checked(commands)


async def _aeach_checked(commands: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for item in commands:
        yield _checked_item(item)


def _env(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise DeclarationError(f"{name} is a dict of variables, as in {{'SEED': '1'}}; got {value!r:.200}.")
    return {_variable(variable): _text(f"{name}[{variable!r}]", each) for variable, each in value.items()}


def _variable(name: object) -> str:
    if not isinstance(name, str) or not name or "=" in name or "\0" in name:
        raise DeclarationError(f"An environment variable's name is a text without '='; got {name!r:.200}.")
    return name


def _text(name: str, value: object) -> str:
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(plain, bool) or not isinstance(plain, str | int | float) or "\0" in str(plain):
        raise DeclarationError(f"{name} must be a text or a number; got {value!r:.200}.")
    return str(plain)


def _folder(name: str, value: object) -> str:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise DeclarationError(f"{name} must be the path of a folder; got {value!r:.200}.")
    return str(value)


def _exit_codes(name: str, value: Any) -> list[int]:
    codes = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    if not all(type(code) is int and 1 <= code <= 255 for code in codes):
        raise DeclarationError(f"{name} must be exit codes from 1 to 255, as in (75, 137); got {value!r:.200}.")
    return codes


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "env": _env,
    "cwd": _folder,
    "bg_dirsync_to": _folder,
    "retry_exit": _exit_codes,
    "fail_exit": _exit_codes,
}
