"""A task: a function that can be called here, or later and elsewhere.

`f(...)` just calls. `f.delay(...)` checks the arguments against the signature, sends, and returns a handle. `f.options(...)`
is the same task with other options for its calls. The types follow the function throughout.

Next: `submission.py`, which sends.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import secrets
import sys
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, cast

from .client import Client
from .codec import Encoded
from .errors import DeclarationError
from .handle import Handle
from .maps.batch import Batch
from .maps.fed import Report, Tally
from .maps.feeding import Feed, Key, MapOptions, Skip, check_map
from .maps.mapping import MapPlan
from .maps.sources import SEEDS_AT_ONCE, Lister, arows, listing_of, rows
from .maps.streaming import AHEAD, AsyncStream, Stream
from .options import CallChanges, CallOptions, TaskOptions, call_options
from .parts import Parts
from .payload import is_importable, module_payload
from .retry import whole_number
from .running import current_or_none
from .submission import Invocation, Order, encode_arguments, guard, make_order, submit

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

    def map(  # noqa: PLR0913  # what users write here, by name
        self,
        /,
        *iterables: Iterable[Any] | Lister,
        kwargs: Mapping[str, Any] | None = None,
        batch: str | None = None,
        key: Key | None = None,
        skip: Skip | None = None,
        pack: int | None = None,
        seeds: Iterable[Any] | None = None,
        seeds_at_once: int = SEEDS_AT_ONCE,
        report: Report | None = None,
    ) -> Batch[R]:
        """Submit a call for each item, as `map` and `Executor.map` do; returns when all are durable.

        Args:
            iterables: one for each positional argument, until the shortest ends; generators of millions will do.
            kwargs: keyword arguments of all calls.
            batch: a name, by which `app.batch(name)` finds it; with `key`, mapping again goes on with the batch of that name.
            key: gives each item's key, a text; of several items with a key the first counts. It gets what the task gets.
            skip: says of an item that there is nothing to do; a plain or an async function, asked of many items at a time.
            pack: calls that travel together, at most; they grow from a few to thousands unless given.
            seeds: instead of an iterable there is a function, a plain or async generator, which lists the items of a seed; it runs
                for each of these, for `seeds_at_once` at a time.
            report: is told how many items were considered, skipped and queued (a Fed), a few times a second and at the end; without
                it a line on a terminal says so.

        Raises:
            MapInterrupted: the source raised, or gave what cannot travel; `.batch` is what was submitted until then.
            TypeError: the arguments do not fit the signature. DeclarationError: an option that cannot be.
            BatchConflict: the batch's name was used for something else.
            TransportError: the storage could not be reached or refused; what was submitted may run nevertheless.
        """
        listing = listing_of(iterables, seeds, seeds_at_once)
        feed = self._feed(MapOptions(len(iterables), kwargs, batch, key, skip, pack, report=report))
        return cast("Batch[R]", feed.run(rows(self.client, iterables, listing)))

    async def amap(  # noqa: PLR0913  # what users write here, by name
        self,
        /,
        *iterables: Iterable[Any] | AsyncIterable[Any] | Lister,
        kwargs: Mapping[str, Any] | None = None,
        batch: str | None = None,
        key: Key | None = None,
        skip: Skip | None = None,
        pack: int | None = None,
        seeds: Iterable[Any] | None = None,
        seeds_at_once: int = SEEDS_AT_ONCE,
        report: Report | None = None,
    ) -> Batch[R]:
        """As `map`, of plain or async iterables."""
        listing = listing_of(iterables, seeds, seeds_at_once)
        feed = self._feed(MapOptions(len(iterables), kwargs, batch, key, skip, pack, report=report))
        return cast("Batch[R]", await feed.arun(arows(iterables, listing)))

    def stream(  # noqa: PLR0913  # what users write here, by name
        self,
        /,
        *iterables: Iterable[Any] | Lister,
        kwargs: Mapping[str, Any] | None = None,
        batch: str | None = None,
        key: Key | None = None,
        skip: Skip | None = None,
        ahead: int = AHEAD,
        seeds: Iterable[Any] | None = None,
        seeds_at_once: int = SEEDS_AT_ONCE,
        report: Report | None = None,
    ) -> Stream[R]:
        """Map, and read outcomes as they come while items are still being submitted: `with f.stream(source) as outcomes: ...`.

        Args:
            iterables, kwargs, batch, key, skip, seeds, report: as for `map`. The iterables, on their own thread, may be endless.
            ahead: calls that are submitted and not read yet, at most; then the source waits.

        Leaving the block early submits nothing more and cancels what has not ended. What the source raises is raised, as
        MapInterrupted, once all outcomes before it were read.
        """
        listing = listing_of(iterables, seeds, seeds_at_once)
        ahead = whole_number("ahead", ahead, least=1)
        options = MapOptions(len(iterables), kwargs, batch, key, skip, ahead=ahead, report=report)
        return Stream(self._feed(options), ahead, rows(self.client, iterables, listing))

    def astream(  # noqa: PLR0913  # what users write here, by name
        self,
        /,
        *iterables: Iterable[Any] | AsyncIterable[Any] | Lister,
        kwargs: Mapping[str, Any] | None = None,
        batch: str | None = None,
        key: Key | None = None,
        skip: Skip | None = None,
        ahead: int = AHEAD,
        seeds: Iterable[Any] | None = None,
        seeds_at_once: int = SEEDS_AT_ONCE,
        report: Report | None = None,
    ) -> AsyncStream[R]:
        """As `stream`, with `async with` and `async for`; the iterables are gone through on the caller's loop."""
        listing = listing_of(iterables, seeds, seeds_at_once)
        ahead = whole_number("ahead", ahead, least=1)
        options = MapOptions(len(iterables), kwargs, batch, key, skip, ahead=ahead, report=report)
        return AsyncStream(self._feed(options), ahead, arows(iterables, listing))

    def options(self, **changes: Unpack[CallChanges]) -> Task[P, D, R]:
        """The same task with other options for the calls made through it.

        Args:
            countdown: seconds (or a timedelta) until the call may run; `eta`: the moment, a datetime with a time zone.
            expires: seconds (or a timedelta) from submission, or a moment, after which no attempt begins any more.
            queue, retries, timeout, gpus, cpus, memory, logs: as for the task.
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
        if self.declared.vector:
            raise DeclarationError(
                f"{self.name} takes a list of items at a time: give it items by map, as in {self.name}.map([item])."
            )
        args, kwargs = self._bound(args, kwargs)
        return make_order(self.client, self._invocation(encode_arguments(self.declared, args, kwargs)))

    def _invocation(self, arguments: Encoded) -> Invocation:
        return Invocation(
            name=self.name,
            task=self.declared,
            options=self._chosen,
            arguments=arguments,
            by_value=None if self.importable else self.function,
            shipped=self._shipment.payloads,
        )

    def _feed(self, chosen: MapOptions) -> Feed:
        """What submits a batch of this task's calls; raises what is wrong with it."""
        kwargs = check_map(self.name, chosen, self._chosen)
        if self.declared.vector and chosen.arity > 1:
            raise DeclarationError(
                f"{self.name} takes a list of items: give it one iterable, as in {self.name}.map(zip(a, b)), whose items are pairs."
            )
        self._bound((None,) * chosen.arity, kwargs)
        arguments = self.declared.codec.dumps(kwargs, guard(self.declared.codec)) if kwargs else Encoded(Parts.of(b""))
        keyed = chosen.key is not None
        batch = chosen.batch or secrets.token_hex(10)
        order = make_order(self.client, self._invocation(arguments), batch)
        plan = MapPlan(
            batch, order, self.declared.codec, vector=self.declared.vector, limit=chosen.pack, most=chosen.most, keyed=keyed
        )
        feed = Feed(self.client, plan, skip=chosen.skip, key=chosen.key)
        # Who reads a stream, and who looks on where tasks run, sees other things.
        feed.tally = Tally(chosen.report, shown=chosen.ahead is None and current_or_none() is None)
        return feed

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
