"""Where the items of a map come from: iterables side by side, or listings of several seeds at a time.

A listing is one run of the caller's generator for one seed. Plain generators run on threads, so that blocking ones overlap; async
ones on an event loop: the caller's for `amap`, the portal's for `map`. What is listed waits in a bounded buffer; the first error
stops all listings, and is raised once what was listed before it is taken. Who takes no more ends them, and waits for the items that
are being made.

Next: `feeding.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from ..client import Client
from ..errors import DeclarationError
from ..ledger import Ledger
from ..retry import whole_number
from .pack_maker import Row

T = TypeVar("T")

SEEDS_AT_ONCE = 8
"""Listings that run at a time, unless told otherwise: what hides the latency of a storage's pages, and no crowd."""

AHEAD = 10_000
"""Items that are listed and not taken yet, at most."""

Lister = Callable[[Any], Iterable[Any] | AsyncIterable[Any]]
"""Gives the items of one seed: a generator function, plain or async."""

Source = Iterable[Any] | AsyncIterable[Any] | Lister


@dataclass(frozen=True, slots=True)
class Listing:
    """A function that lists, what it is called with, and how many of its runs there may be at a time."""

    lister: Lister
    seeds: Iterable[Any]
    at_once: int


def listing_of(sources: tuple[Source, ...], seeds: Iterable[Any] | None, at_once: int) -> Listing | None:
    """What `map` was given, if there are seeds; raises DeclarationError for what cannot be."""
    at_once = whole_number("seeds_at_once", at_once, least=1)
    if seeds is None:
        return None
    if len(sources) != 1 or not callable(sources[0]):
        raise DeclarationError("seeds= wants one function that lists the items of a seed, as in task.map(list_items, seeds=[...]).")
    if isinstance(seeds, str | bytes) or not isinstance(seeds, Iterable):
        raise DeclarationError(f"seeds= wants an iterable, each item of which the function gets in turn; got {seeds!r}.")
    return Listing(sources[0], seeds, at_once)


def rows(client: Client, sources: tuple[Any, ...], listing: Listing | None) -> Iterator[Row]:
    """The arguments of each call, until the shortest source ends."""
    return rows_of(sources) if listing is None else _listed(client, listing)


def arows(sources: tuple[Any, ...], listing: Listing | None) -> AsyncGenerator[Row, None]:
    """As `rows`, of sources of which some or all are asynchronous."""
    return arows_of(sources) if listing is None else _alisted(listing)


def rows_of(iterables: tuple[Iterable[Any], ...]) -> Iterator[Row]:
    """One item of each, until the shortest ends."""
    return iter(zip(*iterables, strict=False))


async def arows_of(iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...]) -> AsyncGenerator[Row, None]:
    """As `rows_of`."""
    async with AsyncExitStack() as stack:
        sources = [await stack.enter_async_context(aclosing(_aiter(source))) for source in iterables]
        while (row := await _row_of(sources)) is not None:
            yield row


async def _row_of(sources: list[AsyncGenerator[Any, None]]) -> Row | None:
    row = []
    for source in sources:
        try:
            row.append(await anext(source))
        except StopAsyncIteration:
            return None
    return tuple(row)


async def _aiter(source: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
        return
    for item in source:
        yield item


# seeds


def _listed(client: Client, listing: Listing) -> Iterator[Row]:
    listings = _Listings(listing)
    client.run(listings.begin)
    try:
        while rows := listings.buffer.take():
            yield from rows
    finally:
        client.run(listings.end)


async def _alisted(listing: Listing) -> AsyncGenerator[Row, None]:
    listings = _Listings(listing)
    await listings.begin()
    try:
        while rows := await listings.taken():
            for row in rows:
                yield row
    finally:
        await listings.end()


class _Buffer:
    """Rows on their way from the listings to who takes them. Safe to use from any thread."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._error: BaseException | None = None

    def put(self, row: Row) -> bool:
        """Put a row, once there is room for it; False if no more is wanted."""
        with self._changed:
            self._changed.wait_for(self._has_room)
            return self._put(row)

    def put_at_once(self, row: Row) -> bool | None:
        """As `put`; None if there is no room now."""
        with self._changed:
            return self._put(row) if self._has_room() else None

    def _has_room(self) -> bool:
        return self._is_closed or len(self._rows) < self._room

    def _put(self, row: Row) -> bool:
        if self._is_closed:
            return False
        self._rows.append(row)
        if len(self._rows) == 1:
            self._changed.notify_all()
        return True

    def take(self) -> list[Row]:
        """All rows that are there, once there are any; none at the end. Raises what a listing raised, after the rows before it."""
        with self._changed:
            self._changed.wait_for(self._has_news)
            taken = list(self._rows)
            self._rows.clear()
            self._changed.notify_all()
            if not taken and self._error is not None:
                raise self._error
            return taken

    def _has_news(self) -> bool:
        return self._is_closed or bool(self._rows)

    def close(self, error: BaseException | None = None) -> None:
        """Take nothing more, as all is listed, nobody wants more, or a listing raised this; the first to say so counts."""
        with self._changed:
            if not self._is_closed:
                self._is_closed, self._error = True, error
            self._changed.notify_all()


class _Failed(Exception):
    """A listing has raised; the others end."""


class _Listings:
    """The listings of one map; they belong to the loop on which they begin."""

    def __init__(self, listing: Listing) -> None:
        self._listing, self._context = listing, copy_context()
        self._seeds = iter(listing.seeds)
        self._seeds_lock = asyncio.Lock()
        self.buffer = _Buffer(AHEAD)
        # Each listing takes one at most, and who takes the rows another one.
        self._threads = ThreadPoolExecutor(listing.at_once + 1, "jobq-listing")
        self._running: asyncio.Task[None]

    async def begin(self, _: Ledger | None = None) -> None:
        """List all seeds, so many at a time; what comes of it lies in the buffer."""
        self._running = asyncio.create_task(self._run(), context=self._context.copy())

    async def end(self, _: Ledger | None = None) -> None:
        """List no more, and wait for the items that are being made."""
        self.buffer.close()
        self._running.cancel()
        await asyncio.wait({self._running})
        await asyncio.to_thread(self._threads.shutdown)

    async def taken(self) -> list[Row]:
        """What `buffer.take` gives, for a loop that goes on meanwhile."""
        rows: list[Row] = await self._on_thread(self.buffer.take)
        return rows

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._listing.at_once):
                    group.create_task(self._take_seeds())
        except* _Failed:
            pass  # who takes the rows is told
        finally:
            self.buffer.close()

    async def _take_seeds(self) -> None:
        try:
            while found := await self._next_seed():
                await self._list(*found)
        except asyncio.CancelledError as exc:
            if _is_being_ended():
                raise
            # Something of the listing's own was cancelled. A task group would take it for the end of this listing.
            self.buffer.close(_caused(RuntimeError("A listing was cancelled from within."), exc))
            raise _Failed from exc
        except BaseException as exc:
            self.buffer.close(exc)
            raise _Failed from exc

    async def _next_seed(self) -> tuple[Any, ...]:
        """A seed, or nothing at their end; on a thread, since they may be a listing themselves."""
        async with self._seeds_lock:
            found: tuple[Any, ...] = await self._on_thread(lambda: tuple(islice(self._seeds, 1)))
            return found

    async def _list(self, seed: Any) -> None:
        lister: Any = self._listing.lister
        found = lister(seed) if inspect.isasyncgenfunction(lister) else await self._on_thread(partial(self._list_here, seed))
        if found is None:
            return
        try:
            async for item in found:
                if not await self._put((item,)):
                    return
        finally:
            if inspect.isasyncgen(found):
                await found.aclose()

    def _list_here(self, seed: Any) -> AsyncIterable[Any] | None:
        """List one seed on this thread; what turns out to be asynchronous is returned."""
        found: Any = self._listing.lister(seed)
        if isinstance(found, AsyncIterable):
            return found
        items = iter(found)
        try:
            for item in items:
                if not self.buffer.put((item,)):
                    break
        finally:
            if inspect.isgenerator(items):
                items.close()
        return None

    async def _put(self, row: Row) -> bool:
        is_wanted = self.buffer.put_at_once(row)
        return await self._on_thread(partial(self.buffer.put, row)) if is_wanted is None else is_wanted

    async def _on_thread(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._context.copy().run, _answered, function)


def _answered(function: Callable[[], T]) -> T:
    """What a function returns. A future does not take its StopIteration, and who awaits it would wait for ever."""
    try:
        return function()
    except StopIteration as exc:
        raise RuntimeError("A listing raised StopIteration.") from exc


def _is_being_ended() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error
