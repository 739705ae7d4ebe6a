"""What `push` is given, one call at a time: commands by -c or one a line, or JSON objects of keyword arguments.

Nothing is kept of a line once the next one is read.

Next: `push.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigurationError, DeclarationError
from ..shell.calls import checked_settings
from .output import note

SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|PRIVATE|CONNECTION_?STRING|(^|[_-])(SAS|PASS)$|[_-]PWD$|KEYS?$", re.IGNORECASE)
"""Names of variables whose values are likely to open something; `PWD` alone is a folder."""


@dataclass(frozen=True, slots=True)
class Item:
    """One call to be made: its keyword arguments, of a shell command `cmd` among them; and the number of its line, from 1."""

    number: int
    kwargs: dict[str, Any]


@dataclass(slots=True)
class Lines:
    """How lines are read: `is_shell` takes commands, and checks the settings in JSON; `env` goes before what a line says."""

    is_shell: bool = True
    env: dict[str, str] = field(default_factory=dict)
    bg_dirsync_to: str | None = None
    has_warned: bool = False

    def items(self, lines: Iterable[str]) -> Iterator[Item]:
        """A call for each line that is not empty. Raises ConfigurationError that names the line."""
        for number, raw in enumerate(lines, 1):
            line = raw.rstrip("\r\n")
            if not line.strip():
                continue
            try:
                yield Item(number, self._kwargs(line))
            except (ValueError, RecursionError, DeclarationError) as exc:
                raise ConfigurationError(f"Line {number}: {exc}") from exc

    def _kwargs(self, line: str) -> dict[str, Any]:
        if not self.is_shell:
            return _object(line)
        if not line.startswith("{"):
            return self._with_settings({"cmd": _checked(line)})
        said = _object(line, " For bash to read a command that begins with a brace, put a space before it.")
        if not isinstance(said.get("cmd"), str):
            raise ValueError('a shell command is {"cmd": "…"}, with "env" and others if need be; for a task there is --task NAME')
        cmd, settings = _checked(said.pop("cmd")), checked_settings(said)
        if not self.has_warned:
            self.has_warned = warn_of_secrets(name for name in settings.get("env", {}) if name not in self.env)
        return self._with_settings({"cmd": cmd, **settings})

    def _with_settings(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.env:
            kwargs["env"] = {**kwargs.get("env", {}), **self.env}
        if self.bg_dirsync_to is not None:
            kwargs.setdefault("bg_dirsync_to", self.bg_dirsync_to)
        return kwargs


def stdin_lines() -> Iterator[str]:
    """The lines of stdin, as they come. Raises ConfigurationError for what is no UTF-8."""
    if sys.stdin is None:
        raise ConfigurationError("There are no commands: give them by -c, or one a line on stdin.")
    if sys.stdin.isatty():
        note("Reading commands from stdin, one a line, up to Ctrl-D.")
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as exc:
            raise ConfigurationError(f"Line {number}: it is no UTF-8 ({exc.reason}, byte {exc.start + 1}).") from exc


def warn_of_secrets(names: Iterable[str]) -> bool:
    """Say of variables that look like secrets who will be able to read them; whether there were some."""
    if found := sorted(name for name in names if SECRET.search(name)):
        note(
            f"Warning: {', '.join(map(ascii, found))} will lie in the storage, where whoever may read the queue reads it too. "
            "Better have workers get it from their own environment."
        )
    return bool(found)


def _checked(cmd: str) -> str:
    if "\0" in cmd:
        raise ValueError("no command has a zero byte")
    return cmd


def _object(line: str, hint: str = "") -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as exc:
        raise ValueError(f"it is no JSON ({exc}).{hint}") from exc
    if not isinstance(found, dict):
        raise ValueError('keyword arguments are a JSON object, as in {"x": 3}')
    return found
