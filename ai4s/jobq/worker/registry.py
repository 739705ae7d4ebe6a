"""What a worker is told to serve, and the tasks that this makes available in a child.

`module:app` is imported in children only. Modules named by a background worker are searched for tasks of its app.

Next: `child.py`.
"""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..app import App
from ..client import Client, Origin
from ..errors import ConfigurationError
from ..layout import DEFAULT_QUEUE
from ..message import SHELL_TASK
from ..running import importing
from ..shell.calls import shell_task
from ..task import Task
from .jobs import ChildSetup, Ready, Served


def load(setup: ChildSetup) -> tuple[Client, Mapping[str, Task[..., Any, Any]]]:
    """Import what the setup names; returns the process's client of the app, and the tasks by name, the built-in one among them.

    Raises ConfigurationError that says which part of the target is wrong. What the user's modules raise passes through.
    """
    _extend_search_path(setup)
    with importing(setup.target or ", ".join(setup.modules)):
        client, tasks = _loaded(setup)
    return client, {**tasks, SHELL_TASK: shell_task(client, emulate_tty=setup.emulate_tty)}


def _loaded(setup: ChildSetup) -> tuple[Client, Mapping[str, Task[..., Any, Any]]]:
    if setup.target is not None:
        app = import_app(setup.target)
        client, tasks = app.client, dict(app.tasks)
    else:
        assert setup.served is not None
        served = setup.served
        client = Client(served.app, served.url, served.signing_keys, create=served.create)
        client.result_ttl_seconds = served.result_ttl_seconds
        tasks = _tasks_in(served.app, setup.modules)
        for task in tasks.values():
            # What these tasks submit must go where this worker looks, whatever their module says of its app's place.
            task.client.move(Origin(served.url, served.signing_keys, served.create))
    _ = client.place  # from now on known to whatever is unpickled here
    return client, tasks


def ready(client: Client, tasks: Mapping[str, Task[..., Any, Any]]) -> Ready:
    """What a child answers once it has loaded these."""
    return Ready(
        served=Served(client.name, client.url, client.keyring.keys, client.create, client.result_ttl_seconds),
        tasks=tuple(f"{name}={task.declared.pool}" for name, task in tasks.items()),
        queues=tuple(dict.fromkeys([DEFAULT_QUEUE, *(task.declared.queue for task in tasks.values())])),
    )


def _extend_search_path(setup: ChildSetup) -> None:
    known = set(sys.path)
    sys.path.extend(folder for folder in setup.search_path if folder not in known)
    for archive in setup.shipped:
        sys.path.insert(0, _unpacked(Path(archive)))


def _unpacked(archive: Path) -> str:
    """The folder of a shipped module's files; each child unpacks for itself, so that none sees another's half."""
    folder = archive.with_name(f"{archive.name}.{os.getpid()}")
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder)
    return str(folder)


def import_app(target: str) -> App:
    """The App that `module:attribute` names; raises ConfigurationError that says which part is wrong."""
    module_name, _, attribute = target.partition(":")
    module = _import(module_name, target)
    found = getattr(module, attribute, None)
    if isinstance(found, App):
        return found
    apps = sorted(name for name, value in vars(module).items() if isinstance(value, App))
    hint = f"There is {', '.join(f'{module_name}:{name}' for name in apps)}." if apps else "It has no App."
    what = "is no App" if hasattr(module, attribute) else "does not exist"
    raise ConfigurationError(f"{target}: the module was imported, but its attribute {attribute!r} {what}. {hint}")


def _import(module_name: str, target: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (module_name == exc.name or module_name.startswith(f"{exc.name}.")):
            raise
        raise ConfigurationError(
            f"{target}: there is no module {exc.name!r} on the path. Run this where the module lies, or install it."
        ) from exc


def _tasks_in(app: str, modules: tuple[str, ...]) -> dict[str, Task[..., Any, Any]]:
    found = [task for name in modules for task in _tasks_of(importlib.import_module(name), name)]
    return {task.name: task for task in found if task.client.name == app}


def _tasks_of(room: Any, module: str) -> Iterator[Task[..., Any, Any]]:
    """The tasks in a module, and those in the bodies of its classes."""
    for value in list(vars(room).values()):
        inner = value.__func__ if isinstance(value, staticmethod) else value
        if isinstance(inner, Task):
            yield inner
        elif isinstance(inner, type) and inner.__module__ == module:
            yield from _tasks_of(inner, module)
