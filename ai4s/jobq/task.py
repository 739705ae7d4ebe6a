"""A task: a function that can be called here, or later and elsewhere.

`f(...)` just calls. `f.delay(...)` checks the arguments against the signature, sends, and returns a handle. `f.options(...)`
is the same task with other options for its calls. The types follow the function throughout.

Next: `submission.py`, which sends.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, cast

from .client import Client
from .errors import DeclarationError
from .handle import Handle
from .options import CallChanges, CallOptions, TaskOptions, call_options
from .payload import is_importable, module_payload
from .submission import Invocation, Order, encode_arguments, make_order, submit

P = ParamSpec("P")
D = TypeVar("D")
R = TypeVar("R")


class Shipment:
    """The modules that an app sends along; read from disk when the first call needs them."""

    def __init__(self, modules: tuple[ModuleType, ...] = ()) -> None:
        self._modules = modules
        self.names = frozenset(module.__name__ for module in modules)

    @functools.cached_property
    def payloads(self) -> tuple[bytes, ...]:
        """Each module as bytes."""
        return tuple(module_payload(module) for module in self._modules)

    def __reduce__(self) -> tuple[object, ...]:
        return (Shipment, (self._modules,))


class Task(Generic[P, D, R]):
    """A function of an app. `D` is what a direct call gives (a coroutine, for `async def`), `R` the value of its result.

    Made by `@app.task`. Safe to use from any thread, and picklable: by reference where it can be imported, else by value.
    """

    def __init__(
        self,
        client: Client,
        function: Callable[P, D],
        *,
        declared: TaskOptions,
        shipment: Shipment,
        chosen: CallOptions = CallOptions(),  # noqa: B008  # frozen
    ) -> None:
        functools.update_wrapper(self, function)
        self.client, self.function, self.declared = client, function, declared
        self._shipment, self._chosen = shipment, chosen
        self.name = declared.name or default_name(function)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> D:
        """Call the function here and now, as if it were no task."""
        return self.function(*args, **kwargs)

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Submit a call; returns when it is durable.

        Raises:
            TypeError: the arguments do not fit the signature.
            NotSerializable: they cannot travel. HandleAsArgument: a handle is among them.
            KeyConflict: the key was used with other arguments.
            TransportError: the storage could not be reached or refused; the call may run nevertheless.
        """
        work = partial(submit, self.client, self._order(args, kwargs))
        if self.client.instead is not None:
            return cast("Handle[R]", self.client.instead(work))
        return cast("Handle[R]", self.client.run(work))

    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """As `delay`."""
        work = partial(submit, self.client, self._order(args, kwargs))
        if self.client.instead is not None:
            return cast("Handle[R]", await asyncio.to_thread(self.client.instead, work))
        return cast("Handle[R]", await self.client.arun(work))

    def options(self, **changes: Unpack[CallChanges]) -> Task[P, D, R]:
        """The same task with other options for the calls made through it.

        Args:
            countdown: seconds (or a timedelta) until the call may run; `eta`: the moment, a datetime with a time zone.
            expires: seconds (or a timedelta) from submission, or a moment, after which no attempt begins any more.
            queue, retries, timeout: as for the task.
            key: a text that makes the call idempotent: the same key and arguments give the same call.
            rerun_failed: with a key: if the call has failed, run it again, as its next run, with the options given now.

        Raises DeclarationError for anything else, and for values that cannot be.
        """
        chosen = call_options(self.client.name, self._chosen, changes, self.declared.pool)
        if chosen.queue is not None:
            self.client.queues.add(chosen.queue)
        return self.configured(chosen)

    @property
    def importable(self) -> bool:
        """Whether a worker finds this task by importing its module; if not, its function travels with each call."""
        return self._importable() is not None

    def _importable(self) -> Task[P, D, R] | None:
        """The task that importing this function's module and looking up its name gives, if it is of the same function."""
        if not is_importable(self.function, self._shipment.names):
            return None
        found: Any = sys.modules.get(self.function.__module__)
        for part in self.function.__qualname__.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, Task) and found.function is self.function else None

    def __repr__(self) -> str:
        return f"<Task {self.name} of {self.client.name}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        found = self._importable()
        if found is None:
            return super().__reduce_ex__(protocol)
        if found is not self:
            return (_configured, (found, self._chosen))
        # Pickle takes a string as "import this"; whatever else pickles code (cloudpickle) then finds it likewise.
        return self.function.__qualname__

    def configured(self, chosen: CallOptions) -> Task[P, D, R]:
        """The same task with these options."""
        return Task(self.client, self.function, declared=self.declared, shipment=self._shipment, chosen=chosen)

    def _order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Order:
        args, kwargs = self._bound(args, kwargs)
        invocation = Invocation(
            name=self.name,
            task=self.declared,
            options=self._chosen,
            arguments=encode_arguments(self.declared, args, kwargs),
            by_value=None if self.importable else self.function,
            shipped=self._shipment.payloads,
        )
        return make_order(self.client, invocation)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments if they fit; for a call with a key in one form, so that the same arguments are the same bytes."""
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # some built-in functions have none; they check when they are called
            return args, kwargs
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{self.name}{_plain(signature)}: {exc}") from None
        if self._chosen.key is None:
            return args, kwargs
        bound.apply_defaults()
        return bound.args, dict(sorted(bound.kwargs.items()))


def _configured(task: Task[Any, Any, Any], chosen: CallOptions) -> Task[Any, Any, Any]:
    return task.configured(chosen)


def _plain(signature: inspect.Signature) -> inspect.Signature:
    """The signature without annotations, which may be long, or texts in quotes."""
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)


def default_name(function: Callable[..., Any]) -> str:
    """`<module>.<qualname>`, of the class for a callable object."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__ or 'builtins'}.{named.__qualname__}"


def check_function(function: object) -> Callable[..., Any]:
    """`function` if it can be a task; raises DeclarationError."""
    if isinstance(function, Task):
        raise DeclarationError(f"{function!r} is a task already. For other options on a call write task.options(...).")
    if not callable(function):
        raise DeclarationError(f"A task is a function; got {function!r}. For options write @app.task(retries=3).")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise DeclarationError(f"A task returns one value; {function!r} is a generator. Return a list.")
    return function
