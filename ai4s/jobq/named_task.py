"""Tasks that are called by their name alone, where the module that declares them is not at hand.

What the function takes is known to workers only: arguments that do not fit fail there. So do calls in another codec than the
task's, which workers put aside.

Next: `task.py`.
"""

from __future__ import annotations

from typing import Any, Literal, Never, ParamSpec, TypeVar

from .app import App
from .client import Client
from .errors import ConfigurationError
from .options import CallOptions, TaskOptions, task_options
from .task import Shipment, Task

P = ParamSpec("P")
D = TypeVar("D")
R = TypeVar("R")


class NamedTask(Task[P, D, R]):
    """A task whose function only workers have."""

    @property
    def importable(self) -> bool:
        return True

    def configured(self, chosen: CallOptions) -> Task[P, D, R]:
        return NamedTask(self.client, self.function, declared=self.declared, shipment=self._shipment, chosen=chosen)

    def __reduce__(self) -> tuple[object, ...]:
        return (_made, (self.client, self.declared, self._chosen))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()


def task_named(app: App, name: str, *, codec: Literal["cloudpickle", "msgpack"] = "cloudpickle") -> Task[..., Any, Any]:
    """The task of this name, for calls from where its module cannot be imported: `task_named(app, "proj.square").delay(3)`.

    Args:
        app: whose workers have the task.
        name: as `@app.task(name=...)` says, or `<module>.<function>`.
        codec: as the task declares.

    Arguments are not checked, and the task's own options do not apply (retries, timeout, queue): say them by `options(...)`. A call
    of a name that no worker knows waits until one does. Raises DeclarationError for what is no name.
    """
    known = app.tasks.get(name)
    return known or _made(app.client, task_options(app.name, {"name": name, "codec": codec}, is_async=False), CallOptions())


def _made(client: Client, declared: TaskOptions, chosen: CallOptions) -> Task[..., Any, Any]:
    def elsewhere(*args: Any, **kwargs: Any) -> Never:
        raise ConfigurationError(f"The task {declared.name} is known by its name only, so it cannot be run here.")

    return NamedTask(client, elsewhere, declared=declared, shipment=Shipment(), chosen=chosen)
