"""gc: removing what is old and no longer needed, under conditions; what a crash leaves is found by the next one.

One walk over the outcomes; other folders, whose names are in the same order, are read along beside it, so that it costs
listings and deletions and no reads. A call's last outcome goes after everything that is found by way of it. What has no
outcome is not touched: its call may be waiting, or running. Batches go whole.

Next: `maps/removal.py` for batches; `worker/tidying.py`, which does all this in small steps.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import layout
from .errors import AlreadyExists, ConditionFailed, NotFound
from .ledger import Ledger, remove_if_unchanged
from .maps.removal import GoOn, remove_old
from .maps.standing import Standing, standings
from .message import State
from .transports.base import MAX_PAGE, BlobInfo, Store

DAY_SECONDS = 24 * 3600.0
"""Younger than this nothing is removed: a late duplicate of a message must still find that its call has ended."""

AT_A_TIME = 16
"""Calls whose blobs are removed side by side."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How much a `gc` has removed: calls with all that lay there for them, forgotten ones among them, whole batches, and
    other things."""

    calls: int = 0
    dead_letters: int = 0
    keys: int = 0
    workers: int = 0
    payloads: int = 0
    batches: int = 0
    probes: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Moments by the server's clock: what is not younger than they are may go."""

    outcomes: float
    tombstones: float

    @classmethod
    def at(cls, now: float, older_than_seconds: float) -> Limits:
        """The limits of a sweep that begins now."""
        return cls(now - max(older_than_seconds, DAY_SECONDS), now - DAY_SECONDS)


@dataclass(frozen=True, slots=True)
class Ended:
    """A call, and the outcomes of its runs that have ended."""

    call: str
    outcomes: Mapping[int, BlobInfo]

    @property
    def last(self) -> BlobInfo:
        """The outcome of the last run."""
        return self.outcomes[max(self.outcomes)]

    @property
    def is_forgotten(self) -> bool:
        """Whether there are only tombstones."""
        return all(info.size == 0 for info in self.outcomes.values())

    def is_due(self, limits: Limits) -> bool:
        """Whether all outcomes are old enough."""
        limit = limits.tombstones if self.is_forgotten else limits.outcomes
        return max(info.modified for info in self.outcomes.values()) <= limit


async def ended_calls(outcomes: AsyncIterator[BlobInfo]) -> AsyncIterator[Ended]:
    """The calls of a listing of outcomes, in the order of their ids."""
    call, found = "", dict[int, BlobInfo]()
    async for info in outcomes:
        owner = layout.run_of(info.name)
        if owner is None:
            continue
        if owner[0] != call:
            if found:
                yield Ended(call, found)
            call, found = owner[0], {}
        found[owner[1]] = info
    if found:
        yield Ended(call, found)


class _Along:
    """One folder, read along with a walk over calls in the order of their ids."""

    def __init__(self, folder: str, listing: AsyncIterator[BlobInfo]) -> None:
        self._folder, self._listing = folder, listing
        self._next: BlobInfo | None = None

    async def of(self, call: str) -> list[BlobInfo]:
        """What lies there for a call, which comes after all that were asked for before."""
        found = []
        while (info := self._next or await anext(self._listing, None)) is not None:
            self._next = info
            owner = layout.call_of(info.name, self._folder)
            if owner is not None and owner > call:
                break
            if owner == call:
                found.append(info)
            self._next = None
        return found


@dataclass(frozen=True, slots=True)
class Belongings:
    """What lies in storage for a call that has ended, beside its outcomes."""

    spilled: list[BlobInfo]
    retries: list[BlobInfo]
    letters: list[BlobInfo]
    key: BlobInfo | None


class Folders:
    """The belongings of calls, asked for in the order of their ids, all of which begin with `prefix`; so many names a request."""

    def __init__(self, store: Store, prefix: str = "", *, page: int = MAX_PAGE) -> None:
        self._store, self._prefix, self._page = store, prefix, page
        self._along: dict[str, _Along] = {}

    async def of(self, ended: Ended) -> Belongings:
        """All that lies there for a call."""
        folders = (layout.VALUES, layout.CHECKPOINTS, layout.ARGUMENTS, layout.LOGS)
        spilled = [await self._in(folder, ended.call) for folder in folders]
        queues = {info.metadata["queue"] for info in ended.outcomes.values() if "queue" in info.metadata}
        letters = [await self._in(f"{layout.DEAD_LETTERS}{queue}/", ended.call) for queue in sorted(queues)]
        keys = await self._in(layout.KEYS, ended.call) if layout.is_keyed(ended.call) else []
        return Belongings(_flat(spilled), await self._retries_of(ended), _flat(letters), keys[0] if keys else None)

    async def _retries_of(self, ended: Ended) -> list[BlobInfo]:
        if ended.last.metadata.get("state") != State.FAILED:
            return await self._in(layout.RETRIES, ended.call)
        # A failure may be retried at any time. Asked for now, after its dead letter was, this tells of each retry that took that.
        return [info async for info in self._store.list(layout.retries(ended.call), with_metadata=True)]

    async def _in(self, folder: str, call: str) -> list[BlobInfo]:
        if folder not in self._along:
            listing = self._store.list(folder + self._prefix, with_metadata=True, page=self._page)
            self._along[folder] = _Along(folder, listing)
        return await self._along[folder].of(call)


def _flat(lists: Iterable[list[BlobInfo]]) -> list[BlobInfo]:
    return [info for infos in lists for info in infos]


def may_go(ended: Ended, belongings: Belongings, limits: Limits) -> bool:
    """Whether nobody needs the call any more: no run is under way, no dead letter stands, no key was used lately."""
    last_run = max(ended.outcomes)
    if any(_run_in(info.name) > last_run for info in belongings.retries):
        return False
    if any(info.size for info in belongings.letters):
        return False
    key = belongings.key
    if key is not None and key.size and key.modified > limits.outcomes:
        return False
    return _is_settled(ended.last, last_run, belongings)


def _is_settled(last: BlobInfo, run: int, belongings: Belongings) -> bool:
    """Whether the last run's end is complete. A failure without even a tombstone of a dead letter will get one yet."""
    if last.size == 0:
        return True
    if last.metadata.get("state") == State.FAILED:
        return any(_run_in(info.name) == run for info in belongings.letters)
    return "state" in last.metadata


def _run_in(name: str) -> int:
    """The run in a name that ends in it; 0 if there is none."""
    number = name.rpartition(".r")[2]
    return int(number) if number.isdecimal() else 0


class Sweeper:
    """Removes old things of one app, and counts them."""

    def __init__(self, ledger: Ledger, store: Store, limits: Limits) -> None:
        self._ledger, self._store, self._limits = ledger, store, limits
        self.counts: Counter[str] = Counter()

    async def sweep_calls(self, due: AsyncIterator[Ended], folders: Folders) -> None:
        """Remove those of these calls that may go."""
        await _side_by_side(self._removals(due, folders))

    async def _removals(self, due: AsyncIterator[Ended], folders: Folders) -> AsyncIterator[Coroutine[Any, Any, None]]:
        async for ended in due:
            belongings = await folders.of(ended)
            if may_go(ended, belongings, self._limits):
                yield self._remove(ended, belongings)

    async def _remove(self, ended: Ended, belongings: Belongings) -> None:
        key = None
        if layout.is_keyed(ended.call):
            key = await self._close_key(ended.call, belongings.key)
            if key is None:
                return  # somebody uses it
        runs = sorted(ended.outcomes)
        *earlier, last = (ended.outcomes[run] for run in runs)
        # Run 1 before the records of retries: without those it would look like the call's last word.
        for info in (*belongings.spilled, *earlier, *belongings.retries, last, *belongings.letters):
            await remove_if_unchanged(self._store, info)
        if key is not None:
            await remove_if_unchanged(self._store, key)
        self.counts["calls"] += 1

    async def _close_key(self, call: str, standing: BlobInfo | None) -> BlobInfo | None:
        """Put a tombstone in the place of a key's record, if nobody has used the key since it was listed.

        Whoever uses the key from now on removes what is left of its former life before sending (`Ledger.claim_key`). Were the
        outcome or the record removed first, a call sent in between would find an outcome that goes, or an old one.
        """
        name = layout.key(call)
        condition: dict[str, Any] = {"if_match": standing.etag} if standing else {"if_absent": True}
        try:
            return BlobInfo(name, 0, await self._store.put(name, b"", **condition), 0)
        except (AlreadyExists, ConditionFailed):
            return None

    async def sweep(self, what: str, prefix: str, is_old: Callable[[BlobInfo], bool]) -> None:
        """Remove the blobs of a prefix for which `is_old` is true."""
        found = self._store.list(prefix, with_metadata=True)
        await _side_by_side(self._remove_counted(what, info) async for info in found if is_old(info))

    async def _remove_counted(self, what: str, info: BlobInfo) -> None:
        self.counts[what] += await remove_if_unchanged(self._store, info)

    async def sweep_batches(self, found: AsyncIterator[Standing], go_on: GoOn = lambda: True) -> None:
        """Remove those of these batches that are old enough, have ended, and are needed by nobody."""
        async for standing in found:
            if standing.is_going or standing.modified <= self._limits.outcomes:
                self.counts["batches"] += await remove_old(self._ledger, standing, self._limits.tombstones, go_on)

    async def sweep_workers(self) -> None:
        """Remove the statuses of workers that have not been heard of for a day."""
        await self.sweep("workers", layout.WORKERS, lambda info: info.modified <= self._limits.tombstones)

    async def sweep_probes(self) -> None:
        """Remove what a `doctor` that was killed has left."""
        await self.sweep("probes", layout.PROBES, lambda info: info.modified <= self._limits.tombstones)

    async def sweep_tombstones(self) -> None:
        """Remove tombstones of dead letters and of keys that belong to no call any more.

        To be done after the calls: those that are left then belong to none, or their calls need them.
        """
        await self.sweep("keys", layout.KEYS, self._is_old_tombstone)
        letters = self._store.list(layout.DEAD_LETTERS, with_metadata=True)
        await _side_by_side(self._remove_orphan(info) async for info in letters if self._is_old_tombstone(info))

    def _is_old_tombstone(self, info: BlobInfo) -> bool:
        return info.size == 0 and info.modified <= self._limits.outcomes

    async def _remove_orphan(self, letter: BlobInfo) -> None:
        subject = letter.name.rpartition("/")[2]
        if (parts := layout.batch_letter_parts(letter.name)) is not None:
            if not await self._is_there(layout.batch_meta(parts[1])):
                await self._remove_counted("dead_letters", letter)
            return
        call = layout.call_of(subject, "")
        if call is None or not await self._has_ended(call, _run_in(subject)):
            await self._remove_counted("dead_letters", letter)

    async def _has_ended(self, call: str, run: int) -> bool:
        return await self._is_there(layout.result(call, run))

    async def _is_there(self, name: str) -> bool:
        try:
            await self._store.head(name)
        except NotFound:
            return False
        return True

    async def sweep_payloads(self, payloads: Iterable[str]) -> None:
        """Remove these payloads, if they are there."""
        for sha256 in payloads:
            try:
                await self._store.delete(layout.payload(sha256))
            except NotFound:
                continue
            self.counts["payloads"] += 1


async def gc(ledger: Ledger, older_than_seconds: float, payloads: Iterable[str] = ()) -> Swept:
    """Remove what is older; see `App.gc`."""
    store, now = await ledger.store(), await ledger.transport.server_time()
    limits = Limits.at(now, older_than_seconds)
    sweeper = Sweeper(ledger, store, limits)
    outcomes = store.list(layout.RESULTS, with_metadata=True)
    due = (ended async for ended in ended_calls(outcomes) if ended.is_due(limits))
    await sweeper.sweep_calls(due, Folders(store))
    await sweeper.sweep_batches(standings(store.list(layout.BATCHES, with_metadata=True)))
    await sweeper.sweep_tombstones()
    await sweeper.sweep_workers()
    await sweeper.sweep_probes()
    await sweeper.sweep_payloads(payloads)
    return Swept(**sweeper.counts)


async def _side_by_side(works: AsyncIterator[Coroutine[Any, Any, None]]) -> None:
    """Do these, some at a time; the first error ends the others."""
    running: set[asyncio.Task[None]] = set()
    try:
        async for work in works:
            running.add(asyncio.create_task(work))
            if len(running) >= AT_A_TIME:
                running -= await _some_of(running)
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _some_of(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait until some have ended, and return those; raises what they raise."""
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return done
