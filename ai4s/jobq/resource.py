"""Things that are expensive to make and that many calls share: a model, a connection, a table.

`@app.resource` stands on a generator function that yields the thing once; `thing()` in a task returns it. It is made on first
use, once in each process (a worker's child, or the program itself where a task is called directly), and what
stands after the `yield` runs when that process ends in good order.

Next: `worker/child.py`, which closes the resources of a child.
"""

from __future__ import annotations

import atexit
import hashlib
import inspect
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import cloudpickle

from .errors import DeclarationError, JobQError

T = TypeVar("T")


class Shelf:
    """The resources of one process, by name and content, so that two tasks that travel by value share one."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Any, Generator[Any, None, None]]] = {}
        self._lock = threading.RLock()
        self._closing_registered = False

    def get(self, key: str, make: Callable[[], Iterator[T]]) -> T:
        """The thing under `key`, made now if need be; threads that come meanwhile wait for it."""
        with self._lock:
            if key not in self._made:
                self._made[key] = _started(key, make)
                self._close_at_exit()
            value: T = self._made[key][0]
            return value

    def _close_at_exit(self) -> None:
        if not self._closing_registered:
            self._closing_registered = True
            atexit.register(self.close)

    def close(self) -> None:
        """Run what stands after each `yield`, the last made first, all of them; then raise what went wrong, if anything did."""
        errors: list[Exception] = []
        with self._lock:
            while self._made:
                _, (_, generator) = self._made.popitem()
                try:
                    _finish(generator)
                except Exception as exc:  # noqa: BLE001  # user code; it is raised once the others are closed
                    errors.append(exc)
        if errors:
            raise errors[0] if len(errors) == 1 else ExceptionGroup("Several resources could not be closed", errors)


def _started(key: str, make: Callable[[], Iterator[T]]) -> tuple[T, Generator[T, None, None]]:
    generator = make()
    for value in generator:
        return value, generator  # type: ignore[return-value]  # checked to be a generator at declaration
    raise JobQError(f"The resource {key.split('@')[0]} yielded nothing.")


def _finish(generator: Generator[Any, None, None]) -> None:
    for _ in generator:
        generator.close()


# One shelf for each process: which process it is cannot be injected into a function that was unpickled in it.
_SHELF = Shelf()


class Resource(Generic[T]):
    """A shared thing; calling it returns the thing."""

    def __init__(self, function: Callable[[], Iterator[T]]) -> None:
        if not inspect.isgeneratorfunction(function):
            raise DeclarationError(f"@app.resource stands on a function with one `yield`; {function!r} has none.")
        self._function = function
        self._key = ""
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__

    def __call__(self) -> T:
        made: T = _SHELF.get(self._identity(), self._function)
        return made

    def _identity(self) -> str:
        if not self._key:
            code = hashlib.sha256(cloudpickle.dumps(self._function)).hexdigest()
            self._key = f"{self._function.__module__}.{self._function.__qualname__}@{code[:16]}"
        return self._key

    def __getstate__(self) -> dict[str, Any]:
        self._identity()  # by content as it is where it was declared: an unpickled function may pickle otherwise
        return self.__dict__
