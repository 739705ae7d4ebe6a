"""App: the name under which tasks, a container and queues belong together; where users begin.

Making an App opens nothing and asks nobody: a module that declares tasks can be imported anywhere.

Next: `task.py` for what a decorated function can do; `client.py` for where the app lies.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from datetime import timedelta
from types import ModuleType
from typing import Any, Literal, Never, ParamSpec, Protocol, TypeVar, overload

from . import control, layout, stored, sweeping
from .background import BackgroundWorker
from .blobs.blobs import Blobs, blobs_of
from .client import Client
from .codec import codec_named
from .cost.costs import Cost
from .cost.of_app import cost_of_app
from .dead_letters import DeadLetters
from .declaration import Declaration, declaration_of, place_of
from .errors import DeclarationError, Malformed
from .handle import Handle
from .ledger import Ledger
from .maps.batch import Batch
from .maps.feeding import check_batch_name
from .message import Backoff
from .options import seconds, task_options
from .overview.queues import Queues
from .payload import check_shipped, is_importable
from .resource import Resource
from .retry import whole_number
from .shell.calls import Shell, shell_task
from .stored import Stored
from .submission import refuse_handles
from .sweeping import DAY_SECONDS, Swept
from .task import Shipment, Task, check_function
from .version3 import MESSAGE_ID, message_call_id

P = ParamSpec("P")
R = TypeVar("R")
Order = Callable[[Ledger, str], Coroutine[Any, Any, None]]


class TaskDecorator(Protocol):
    """What `@app.task(...)` returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, Coroutine[object, Never, R], R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, R]: ...


class VectorDecorator(Protocol):
    """What `@app.task(vector=…)` returns: of a function of lists, a task whose calls are of single items."""

    def __call__(self, function: Callable[P, Iterable[R]], /) -> Task[P, Iterable[R], R]: ...


class App:
    """A set of tasks and the place where their calls, messages and outcomes lie.

    Args:
        name: 3 to 56 lower-case letters, digits and single hyphens. Container and queues are named after it.
        url: the place: azure://ACCOUNT (Entra ID), a connection string or SAS URL, azurite://, or local:///FOLDER.
            Without it $JOBQ_URL; without that, the nearest `.jobq` folder upward, else `./.jobq`, which the log names.
        ship: local modules that travel with each call that needs them, for workers that lack them.
        signing_keys: keys that sign and verify everything, newest first; without it $JOBQ_SIGNING_KEYS.
        create: make queues and container on first use; off where the right to do so is missing.
        result_ttl: seconds (or a timedelta), a day at least, after which workers that have nothing to do remove outcomes, with all
            that was kept for their calls; None keeps them until `forget` or `gc`.

    Raises DeclarationError for a bad name or module. A place that cannot be used raises ConfigurationError at first use.
    """

    def __init__(  # noqa: PLR0913  # what users write here, by name
        self,
        name: str,
        url: str | None = None,
        *,
        ship: Iterable[ModuleType] = (),
        signing_keys: Iterable[str] | None = None,
        create: bool = True,
        result_ttl: float | timedelta | None = None,
    ) -> None:
        keys = None if signing_keys is None else tuple(signing_keys)
        self.name = layout.check_app_name(name)
        self.client = Client(self.name, url, keys, create=create)
        if result_ttl is not None:
            self.client.result_ttl_seconds = seconds("result_ttl", result_ttl, least=DAY_SECONDS)
        self.tasks: dict[str, Task[..., Any, Any]] = {}
        self._shipment = Shipment(check_shipped(ship))
        self._declarations: dict[str, Declaration] = {}

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, Coroutine[object, Never, R], R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = ...,
        retries: int = ...,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = ...,
        backoff: float | Backoff = ...,
        max_deaths: int = ...,
        timeout: float | timedelta | None = ...,
        expires: float | timedelta | None = ...,
        queue: str = ...,
        codec: Literal["cloudpickle", "msgpack"] = ...,
        pool: Literal["process", "async", "thread"] | None = ...,
        gpus: int | None = ...,
        cpus: int | None = ...,
        memory: int | str | None = ...,
        logs: bool | None = ...,
    ) -> TaskDecorator: ...
    @overload
    def task(
        self,
        *,
        vector: int,
        name: str | None = ...,
        retries: int = ...,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = ...,
        backoff: float | Backoff = ...,
        max_deaths: int = ...,
        timeout: float | timedelta | None = ...,
        expires: float | timedelta | None = ...,
        queue: str = ...,
        codec: Literal["cloudpickle", "msgpack"] = ...,
        pool: Literal["process", "thread"] | None = ...,
        gpus: int | None = ...,
        cpus: int | None = ...,
        memory: int | str | None = ...,
        logs: bool | None = ...,
    ) -> VectorDecorator: ...
    def task(self, *function: Any, **given: Any) -> Any:
        """Declare a function as a task; bare, or with options.

        Args:
            name: how workers find it; `<module>.<qualname>` unless given.
            retries: further attempts after an error or a timeout; 0 unless given.
            retry_on: exception classes that earn a retry; every `Exception` unless given.
            backoff: seconds between attempts, or a Backoff; it doubles from 1 s to 10 min, with jitter, unless given.
            max_deaths: deaths of its process after which a call ends as failed; 3 unless given.
            timeout: seconds (or a timedelta) that one attempt may take.
            expires: seconds (or a timedelta) after submission from which no attempt begins any more.
            queue: which of the app's queues its calls go to.
            codec: "cloudpickle" (nearly any value) or "msgpack" (plain data, safe to decode).
            vector: the function takes a list of up to so many items and returns a list of as many results, or exceptions; calls
                are submitted by `map`, item by item, and each has an outcome of its own.
            pool: "process" for plain functions, "async" for `async def`, each the default there; or "thread".
            gpus, cpus, memory: what a call takes of its worker's devices, cores and memory (bytes, or a text such as "8G") while it
                runs, and so what may run beside it.
            logs: whether what it prints and logs is kept. Unless given: of single calls, and the last lines of a `map`'s failures.

        Raises DeclarationError for an unknown option, a value that cannot be, or a name that another task has.
        """
        if function:
            return self._declare(*function, given=given)
        return lambda function: self._declare(function, given=given)

    def _declare(self, function: Any, *, given: dict[str, Any]) -> Task[..., Any, Any]:
        made = self._make(function, given)
        if is_importable(made.function, self._shipment.names):
            declaration = declaration_of(made.function)
            self._refuse_duplicate(made, declaration)
            self.tasks[made.name], self._declarations[made.name] = made, declaration
            self.client.modules.add(made.function.__module__)
        return made

    def _make(self, function: Any, given: dict[str, Any]) -> Task[..., Any, Any]:
        checked = check_function(function)
        options = task_options(self.name, given, is_async=inspect.iscoroutinefunction(checked))
        self.client.queues.add(options.queue)
        return Task(self.client, checked, declared=options, shipment=self._shipment)

    def _refuse_duplicate(self, made: Task[..., Any, Any], declaration: Declaration) -> None:
        other = self.tasks.get(made.name)
        if other is not None and not declaration.replaces(self._declarations[made.name]):
            raise DeclarationError(
                f"The app {self.name!r} has a task {made.name!r} already ({place_of(other.function)}); "
                f"give this one ({place_of(made.function)}) a name of its own, as in @app.task(name='{made.name}-2')."
            )

    @overload
    def submit(self, function: Task[P, Any, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    def submit(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Call any function elsewhere: `app.task(function).delay(*args, **kwargs)`. Raises what those raise."""
        return self._as_task(function).delay(*args, **kwargs)

    @overload
    async def asubmit(self, function: Task[P, Any, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    async def asubmit(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    async def asubmit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    async def asubmit(self, function: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """As `submit`."""
        return await self._as_task(function).adelay(*args, **kwargs)

    def _as_task(self, function: Any) -> Task[..., Any, Any]:
        return function if isinstance(function, Task) else self._make(function, {})

    def resource(self, function: Callable[[], Iterator[R]]) -> Resource[R]:
        """Declare something that is expensive to make, as a function with one `yield`; calling it gives what it yields.

        Made on first use, once in each process; what follows the `yield` runs when the process ends in good order.
        """
        return Resource(function)

    def put(self, value: R) -> Stored[R]:
        """Store an object once, for any number of calls: `ref = app.put(table); f.delay(ref)`. Returns when it is durable.

        A task that gets `ref` anywhere in its arguments receives the object itself, which each machine fetches once and each child
        process decodes once; it must not change it. An object that is there already is not uploaded again. It stays until
        `app.gc(…, payloads=[ref.sha256])`.

        Raises NotSerializable for what cannot travel, HandleAsArgument for a handle in it, TransportError.
        """
        return self.client.run(self._put(value))

    async def aput(self, value: R) -> Stored[R]:
        """As `put`."""
        return await self.client.arun(self._put(value))

    def _put(self, value: Any) -> Callable[[Ledger], Coroutine[Any, Any, Stored[Any]]]:
        encoded = codec_named("cloudpickle").dumps(value, refuse_handles)
        return lambda ledger: stored.put(self.client, encoded, ledger)

    def handle(self, call_id: str, *, queue: str | None = None) -> Handle[Any]:
        """A handle of the call with this id, from any process, days later; no request. Raises DeclarationError for no id.

        The id of a call of a batch is `<batch>.<index>`: then it is what `app.batch(batch).handle(index)` gives.
        For a message of ai4s-jobq 3.x, the id is `msg-…`, or what Azure calls the message, which 3.x's `push` returned.
        `queue` is the call's, whose workers `cancel` tells; without it, those of all queues that tasks of this app name.
        """
        if not isinstance(call_id, str):
            raise DeclarationError(f"A call's id is a string, which is what handle.id says; got {type(call_id).__name__}.")
        if queue is not None:
            layout.check_queue_name(self.name, queue)
        if packed := layout.PACKED_ID.fullmatch(call_id):
            return self.batch(packed["batch"]).handle(int(packed["index"]))
        call_id = message_call_id(call_id) if MESSAGE_ID.fullmatch(call_id) else call_id
        try:
            layout.check_call_id(call_id)
        except Malformed as exc:
            raise DeclarationError(
                f"{exc} It is what handle.id says: 16 letters and digits, a hyphen and 12 digits; "
                "'key-' and 40 hex digits for a call with a key; '<batch>.<index>' for one of a batch."
            ) from exc
        return Handle(self.client, call_id, queue=queue)

    def batch(self, batch_id: str) -> Batch[Any]:
        """The batch of this name or id, from any process, days later; no request. Raises DeclarationError for what is no id."""
        return Batch(self.client, check_batch_name(batch_id))

    @property
    def shell(self) -> Shell:
        """Shell commands as calls: `app.shell("make results").result().output`, and `app.shell.map(commands)`."""
        return Shell(shell_task(self.client))

    def blobs(self, container: str, *, create: bool = False) -> Blobs:
        """The blobs of a container at this place, or of `"account/container"` by Entra ID, as tasks get from `current().blobs(…)`.

        No request; with `create` the container is made at first use. Raises DeclarationError for what is no container's name.
        """
        return blobs_of(self.client, container, create=create)

    @property
    def dead_letters(self) -> DeadLetters:
        """The calls that failed, with their causes: to be listed, retried and purged."""
        return DeadLetters(self.client)

    @property
    def queues(self) -> Queues:
        """The app's queues: how full they are, who works, what waits there; to be looked at and cleared."""
        return Queues(self.client)

    def worker(self, concurrency: int = 2, *, async_concurrency: int = 200, queues: Iterable[str] = ()) -> BackgroundWorker:
        """A worker process for the length of a `with` block: for a notebook, a test or a program of one file.

        Args:
            concurrency: sync calls that run side by side, each in a child process.
            async_concurrency: `async def` calls that run side by side on one event loop.
            queues: which of the app's queues; all that its tasks name, unless given.

        It ends in good order with the block (what has not begun goes back), and with this process, however that ends.
        Raises ConfigurationError if it cannot start.
        """
        for name, size in (("concurrency", concurrency), ("async_concurrency", async_concurrency)):
            whole_number(name, size, least=1)
        named = tuple(layout.check_queue_name(self.name, queue) for queue in queues)
        used = dict.fromkeys([layout.DEFAULT_QUEUE, *(task.declared.queue for task in self.tasks.values())])
        modules = dict.fromkeys(task.function.__module__ for task in self.tasks.values() if task.importable)
        return BackgroundWorker(
            self.client,
            queues=named or tuple(used),
            modules=tuple(modules),
            concurrency=concurrency,
            async_concurrency=async_concurrency,
        )

    def pause(self, queue: str = layout.DEFAULT_QUEUE) -> None:
        """Have the workers of a queue begin nothing new, within 10 s, until `resume`. What runs goes on."""
        self.client.run(self._order(control.pause, queue))

    async def apause(self, queue: str = layout.DEFAULT_QUEUE) -> None:
        """As `pause`."""
        await self.client.arun(self._order(control.pause, queue))

    def resume(self, queue: str = layout.DEFAULT_QUEUE) -> None:
        """Have the workers of a paused queue go on, within 10 s."""
        self.client.run(self._order(control.resume, queue))

    async def aresume(self, queue: str = layout.DEFAULT_QUEUE) -> None:
        """As `resume`."""
        await self.client.arun(self._order(control.resume, queue))

    def drain(self, queue: str = layout.DEFAULT_QUEUE) -> None:
        """Have the workers that serve a queue now begin nothing new, finish what they run, and end with code 0.

        Those that serve other queues too end as well. Workers that start from now on work as ever.
        """
        self.client.run(self._order(control.drain, queue))

    async def adrain(self, queue: str = layout.DEFAULT_QUEUE) -> None:
        """As `drain`."""
        await self.client.arun(self._order(control.drain, queue))

    def _order(self, what: Order, queue: str) -> Callable[[Ledger], Coroutine[Any, Any, None]]:
        checked = layout.check_queue_name(self.name, queue)
        return lambda ledger: what(ledger, checked)

    def cost(self) -> Cost:
        """What this app's workers have asked of the storage since they started, and this process, and what that comes to.

        One listing. Workers count for as long as their statuses are there, a day or more after they ended. Prices are those of
        $JOBQ_PRICES, or else the package's. Raises ConfigurationError for a file that holds none.
        """
        return self.client.run(cost_of_app)

    async def acost(self) -> Cost:
        """As `cost`."""
        return await self.client.arun(cost_of_app)

    def gc(self, older_than: float | timedelta, *, payloads: Iterable[str] = ()) -> Swept:
        """Remove what is old and no longer needed.

        Args:
            older_than: seconds (or a timedelta), a day at least. Calls whose last outcome is older go, with all that lies there for
                them: outcomes of all runs, arguments, values, checkpoints, the record of a key. Batches go whole, by the age of
                the last thing that was written for them.
            payloads: SHA-256 digests of functions and modules sent by value, and of what was put, that no call will need any more.

        Removed too are tombstones, and the statuses of workers that were not heard of for a day. Kept are calls without an
        outcome, batches that have not ended, and failures whose dead letter nobody has retried or purged. May be repeated,
        interrupted, and done by several at a time. Returns what was removed. Raises DeclarationError for less than a day, or for
        what is no digest.
        """
        return self.client.run(self._gc(older_than, payloads))

    async def agc(self, older_than: float | timedelta, *, payloads: Iterable[str] = ()) -> Swept:
        """As `gc`."""
        return await self.client.arun(self._gc(older_than, payloads))

    def _gc(self, older_than: float | timedelta, payloads: Iterable[str]) -> Callable[[Ledger], Coroutine[Any, Any, Swept]]:
        older_than_seconds = seconds("older_than", older_than, least=DAY_SECONDS)
        if isinstance(payloads, str) or not isinstance(payloads, Iterable):
            raise DeclarationError(f"payloads must be a list of SHA-256 digests; got {payloads!r}.")
        named = tuple(payloads)
        try:
            for sha256 in named:
                layout.payload(sha256 if isinstance(sha256, str) else repr(sha256))
        except Malformed as exc:
            raise DeclarationError(str(exc)) from exc
        return lambda ledger: sweeping.gc(ledger, older_than_seconds, named)

    def close(self) -> None:
        """Close connections; the next use opens them again. Not needed at the end of a program."""
        self.client.close()

    def __repr__(self) -> str:
        return f"<App {self.name}>"
