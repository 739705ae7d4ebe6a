"""Behind an app's back: what lies in its storage, which requests it makes, and a crash at a chosen one."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ai4s.jobq import App
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call

Around = Callable[..., Any]


def depth(app: App, queue: str = "default") -> int:
    """How many messages lie on a queue, invisible ones included."""

    async def ask(ledger: Ledger) -> int:
        return await (await ledger.queue(queue)).depth()

    return app.client.run(ask)


def calls(app: App, queue: str = "default") -> list[Call]:
    """The calls whose messages are visible."""

    async def ask(ledger: Ledger) -> list[Call]:
        return [ledger.wire.unseal_call(text, queue) for text in await (await ledger.queue(queue)).peek(32)]

    return app.client.run(ask)


def blobs(app: App, prefix: str = "") -> list[str]:
    """The names in the app's container."""

    async def ask(ledger: Ledger) -> list[str]:
        return [info.name async for info in (await ledger.store()).list(prefix)]

    return app.client.run(ask)


@contextlib.contextmanager
def between(app: App, around: Around) -> Iterator[None]:
    """Each request to the store and to the default queue goes through `around(method, *args, **kwargs)`, for this block."""

    async def step_in(ledger: Ledger) -> tuple[Any, Any]:
        queue, store = await ledger.queue("default"), await ledger.store()
        ledger._queues["default"], ledger._store = _Between(queue, around), _Between(store, around)  # type: ignore[assignment]
        return queue, store

    async def step_out(ledger: Ledger) -> None:
        ledger._queues["default"], ledger._store = real

    real = app.client.run(step_in)
    try:
        yield
    finally:
        app.client.run(step_out)


class _Between:
    def __init__(self, real: Any, around: Around) -> None:
        self._real, self._around = real, around

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return functools.partial(self._around, found) if callable(found) else found


@contextlib.contextmanager
def counted(app: App) -> Iterator[Counter[str]]:
    """The requests of this block by method; a listing counts once, however many names it gives."""
    requests: Counter[str] = Counter()

    def count(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        requests[method.__name__] += 1
        return method(*args, **kwargs)

    with between(app, count):
        yield requests


class Crash(BaseException):
    """Stands for the end of the process: nothing that follows is done."""


def crash_before(app: App, method: str, about: str = "") -> contextlib.AbstractContextManager[None]:
    """The process dies just before this request; `about` is the beginning of a blob's name."""

    def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if _meant(found, args, method, about):
            raise Crash
        return found(*args, **kwargs)

    return between(app, around)


def crash_after(app: App, method: str, about: str = "") -> contextlib.AbstractContextManager[None]:
    """The process dies just after this request, before it knows that it was done."""

    async def do_and_crash(found: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        await found(*args, **kwargs)
        raise Crash

    def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return (do_and_crash if _meant(found, args, method, about) else _plainly)(found, *args, **kwargs)

    return between(app, around)


def _plainly(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return found(*args, **kwargs)


def _meant(found: Callable[..., Any], args: tuple[Any, ...], method: str, about: str) -> bool:
    return found.__name__ == method and str(args[0] if args else "").startswith(about)
