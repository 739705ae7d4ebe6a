"""Many handles at once: `as_completed`, `wait`, `gather`, with one look for thousands.

The handles may belong to several apps and places; each is asked once a round.

Next: `waiting.py` for the looks and their pace.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Generic, Literal, NamedTuple, TypeVar

from .client import Client
from .errors import DeclarationError, MessageError, ResultTimeout
from .handle import Ending, Handle
from .ledger import Ledger
from .running import refuse_to_wait
from .waiting import Pace, ended, retried

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

VALUES_IN_FLIGHT = 16
"""Outcomes read at a time: enough to hide a request's latency, few enough to leave connections for others."""


Runs = dict[tuple[str, int], list[Handle[R]]]


class _Rounds(Generic[R]):
    """The handles that have not been seen to end, by client and run."""

    def __init__(self, handles: Iterable[Handle[R]], timeout: float | None, *, until_newest: bool) -> None:
        self._until_newest = until_newest
        self.pending: dict[Client, Runs[R]] = defaultdict(lambda: defaultdict(list))
        if isinstance(handles, Handle):
            raise TypeError(f"This takes several handles, as in wait([handle]); got {handles!r} alone.")
        for handle in handles:
            if not isinstance(handle, Handle):
                raise TypeError(f"This takes handles, as in gather(*handles) or wait(handles); got {handle!r}.")
            refuse_to_wait(handle.id)
            self.pending[handle.client][handle.id, handle.run].append(handle)
        self._pace = Pace(timeout)

    def left(self) -> list[Handle[R]]:
        return [handle for runs in self.pending.values() for group in runs.values() for handle in group]

    def rest_seconds(self) -> float | None:
        return self._pace.rest_seconds()

    def pause_seconds(self) -> float:
        left = len(self.left())
        return self._pace.pause_seconds(f"{left} call(s)", left)

    def take(self, client: Client, found: set[tuple[str, int]]) -> list[Handle[R]]:
        """Remove what has ended from the pending ones; within a round the order is that of submission."""
        runs = self.pending[client]
        taken = [handle for run in sorted(found) for handle in runs.pop(run)]
        if not runs:
            del self.pending[client]
        if taken:
            self._pace.news(len(taken))
        return taken

    async def look(self, client: Client, ledger: Ledger) -> set[tuple[str, int]]:
        runs = self.pending[client]
        looked_at: set[tuple[str, int]] = set()

        async def look(run: tuple[str, int]) -> bool:
            looked_at.add(run)
            return await _have_ended(ledger, runs[run])

        with self._pace.look():
            found = await ended(ledger, runs, look)
        if not found:
            await client.note_silence(ledger, self._pace.started)
        if self._until_newest:
            found -= await _run_again(ledger, runs, found - looked_at)
        _follow(runs, found)
        return found

    def round(self) -> list[Handle[R]]:
        """Look once at every place."""
        return [h for client in list(self.pending) for h in self.take(client, client.run(partial(self.look, client)))]

    async def around(self) -> list[Handle[R]]:
        """As `round`."""
        return [h for client in list(self.pending) for h in self.take(client, await client.arun(partial(self.look, client)))]

    async def endings(self, client: Client, ledger: Ledger) -> dict[Handle[R], Ending[R]]:
        """Wait for all calls of one client; each is read while the others are still to come."""
        room = asyncio.Semaphore(VALUES_IN_FLIGHT)
        reads: dict[Handle[R], asyncio.Task[Ending[R]]] = {}

        async def read(handle: Handle[R]) -> Ending[R]:
            async with room:
                # Not without end: somebody may have retried what failed since it was seen to end.
                return await handle.ending(ledger, self.rest_seconds())

        try:
            while client in self.pending:
                found = dict.fromkeys(self.take(client, await self.look(client, ledger)))
                reads.update((handle, asyncio.create_task(read(handle))) for handle in found if handle not in reads)
                if client in self.pending:
                    await asyncio.sleep(self.pause_seconds())
            return dict(zip(reads, await asyncio.gather(*reads.values()), strict=True))
        finally:
            for task in reads.values():
                task.cancel()
            await asyncio.gather(*reads.values(), return_exceptions=True)


async def _run_again(ledger: Ledger, runs: Runs[R], found: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Which of the runs that were found to have ended are failures of calls that run again."""
    suspects = sorted(await retried(ledger, found))
    have_ended = await _each([runs[run] for run in suspects], partial(_have_ended, ledger))
    return {run for run, over in zip(suspects, have_ended, strict=True) if not over}


def _follow(runs: Runs[R], found: set[tuple[str, int]]) -> None:
    """Of calls that run again, wait for the newest run from now on."""
    for run in [run for run, handles in runs.items() if run not in found and handles[0].run != run[1]]:
        for handle in runs.pop(run):
            runs[handle.id, handle.run].append(handle)


async def _have_ended(ledger: Ledger, handles: list[Handle[R]]) -> bool:
    """Of handles of one call: whether its newest run has ended; what cannot be read has, and `result` says why."""
    try:
        return all([await handle.has_ended(ledger) for handle in handles])
    except MessageError:
        return True


class Completed(Generic[R]):
    """Handles in the order in which their calls end, by `for` or by `async for`, once."""

    def __init__(self, handles: Iterable[Handle[R]], timeout: float | None = None) -> None:
        self._rounds = _Rounds(handles, timeout, until_newest=True)

    def __iter__(self) -> Iterator[Handle[R]]:
        while self._rounds.pending:
            found = self._rounds.round()
            yield from found
            if self._rounds.pending and not found:
                time.sleep(self._rounds.pause_seconds())

    async def __aiter__(self) -> AsyncIterator[Handle[R]]:
        while self._rounds.pending:
            found = await self._rounds.around()
            for handle in found:
                yield handle
            if self._rounds.pending and not found:
                await asyncio.sleep(self._rounds.pause_seconds())

    def left(self) -> list[Handle[R]]:
        """What has not been seen to end."""
        return self._rounds.left()


def as_completed(handles: Iterable[Handle[R]], timeout: float | None = None) -> Completed[R]:
    """The handles as their calls end, in whatever way; `for` and `async for` both work.

    Args:
        handles: any number, of any apps.
        timeout: seconds for all of them together; None waits for ever.

    Raises:
        ResultTimeout: while iterating, when time is up.
    """
    return Completed(handles, timeout)


class Waited(NamedTuple, Generic[R]):
    """What `wait` returns, as in `concurrent.futures`."""

    done: set[Handle[R]]
    not_done: set[Handle[R]]


When = Literal["all", "first"]


def wait(handles: Iterable[Handle[R]], timeout: float | None = None, *, return_when: When = "all") -> Waited[R]:
    """Wait until all calls have ended, or the first of them, or `timeout` seconds are over; never raises for time.

    Returns the sets of handles that have ended and that have not.
    """
    completed = Completed(handles, timeout)
    done: set[Handle[R]] = set()
    _check_when(return_when)
    try:
        for handle in completed:
            done.add(handle)
            if return_when == "first":
                break
    except ResultTimeout:
        pass
    return Waited(done, set(completed.left()) - done)


async def await_(handles: Iterable[Handle[R]], timeout: float | None = None, *, return_when: When = "all") -> Waited[R]:
    """As `wait`. (`await` itself is a keyword.)"""
    completed = Completed(handles, timeout)
    done: set[Handle[R]] = set()
    _check_when(return_when)
    try:
        async for handle in completed:
            done.add(handle)
            if return_when == "first":
                break
    except ResultTimeout:
        pass
    return Waited(done, set(completed.left()) - done)


def _check_when(return_when: str) -> None:
    if return_when not in ("all", "first"):
        raise DeclarationError(f"return_when must be 'all' or 'first'; got {return_when!r}.")


def gather(*handles: Handle[R], timeout: float | None = None) -> list[R]:
    """The values of all calls, in the order of the handles.

    Args:
        handles: any number, of any apps.
        timeout: seconds for all of them together; None waits for ever.

    Raises:
        ResultTimeout: when time is up.
        what `Handle.result` raises for the first of the handles, in their order, that did not succeed.
    """
    # Failures that run again are found when they are read.
    rounds = _Rounds(handles, timeout, until_newest=False)
    endings: dict[Handle[R], Ending[R]] = {}
    for client in list(rounds.pending):
        endings.update(client.run(partial(rounds.endings, client)))
    return [endings[handle].unwrap() for handle in handles]


async def agather(*handles: Handle[R], timeout: float | None = None) -> list[R]:
    """As `gather`."""
    rounds = _Rounds(handles, timeout, until_newest=False)
    endings: dict[Handle[R], Ending[R]] = {}
    for client in list(rounds.pending):
        endings.update(await client.arun(partial(rounds.endings, client)))
    return [endings[handle].unwrap() for handle in handles]


async def _each(items: Iterable[T], read: Callable[[T], Awaitable[S]]) -> list[S]:
    """`read` of all items, some at a time."""
    room = asyncio.Semaphore(VALUES_IN_FLIGHT)

    async def one(item: T) -> S:
        async with room:
            return await read(item)

    return await asyncio.gather(*map(one, items))
