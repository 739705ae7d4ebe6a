"""What the dashboard and `top` know of an app, and what is read when: all workers, and one thing more, at each refresh.

A refresh is one listing of `workers/` (a request for each 5,000) and one request of another kind: whichever is most overdue. Only
the first one asks for everything once. Nothing is read while nobody looks.

Next: `shared.py` for how a refresh is shared; `overview_data.py` for what is made of it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .. import layout
from ..app import App
from ..batches import BatchLedger
from ..config import read_settings
from ..cost.prices import read_prices
from ..errors import JobQError, MessageError, NotFound, ResultGone, Unreachable
from ..ledger import Ledger
from ..message import Control
from ..overview import fleet
from ..overview.fleet import WorkerStatus
from ..overview.glance import peeked
from ..printable import printable
from .batch_sums import BatchRound, BatchSums
from .history import History
from .letter_groups import LetterRound, Letters
from .listing import Listing, Page
from .shared import Shared

REFRESH_SECONDS = 2.0

NAMES_SECONDS, DEPTH_SECONDS, ORDERS_SECONDS, OLDEST_SECONDS = 300.0, 4.0, 10.0, 10.0
BATCHES_SECONDS, LETTERS_SECONDS, RECORD_SECONDS = 4.0, 10.0, 6.0
"""How often each is read where there is time for all; what is overdue in proportion to this is next."""

TROUBLED_SECONDS = 6.0
LONG_AGO = 1e9
"""Seconds; before everything that was ever read."""

MOST_AT_FIRST = 60
"""Requests of the first refresh, beside the listing of workers."""

MOST_UNNAMED = 20
"""Batches whose task only a read tells; those that are open come first."""


@dataclass(frozen=True, slots=True)
class QueueSeen:
    """A queue: `messages` with those that workers hold, when its oldest visible one was sent, and what its workers are told.

    `as_of` is when it was counted, in epoch seconds by the server's clock; None before.
    """

    name: str
    messages: int | None = None
    oldest_sent: float | None = None
    orders: Control = field(default_factory=Control)
    as_of: float | None = None


@dataclass(slots=True)
class Seen:
    """All that is known. Moments are in epoch seconds by the server's clock; `as_of` is that of the workers, 0 before the first."""

    workers: list[WorkerStatus] = field(default_factory=list)
    queues: dict[str, QueueSeen] = field(default_factory=dict)
    batches: dict[str, BatchSums] = field(default_factory=dict)
    letters: Letters = field(default_factory=Letters)
    letters_as_of: float | None = None
    history: History = field(default_factory=History)
    requests: Mapping[str, int] = field(default_factory=dict)
    """By kind: those that this process has made itself."""
    as_of: float = 0.0

    def calls_in(self, queue: QueueSeen) -> int | None:
        """About how many calls lie in a queue, None if it was not counted: a pack's message counts as what is left of its batch."""
        if not queue.messages:
            return queue.messages
        here = [batch for batch in self.batches.values() if batch.is_open and batch.queue == queue.name]
        packs = sum(batch.messages for batch in here)
        return sum(batch.waiting for batch in here) + max(0, queue.messages - packs)


@dataclass(slots=True, eq=False)
class Errand:
    """Something to be read now and then: `read` for the portal's loop, `keep` what is to be done with it here.

    `trouble` says why the last try failed, if it did, and `since` from when on.
    """

    every_seconds: float
    read: Callable[[Ledger], Awaitable[Any]]
    keep: Callable[[Any], None]
    done_at: float = float("-inf")
    trouble: str = ""
    since: float = 0.0

    @property
    def pause_seconds(self) -> float:
        """After which it is due; what failed is tried again soon."""
        return min(self.every_seconds, TROUBLED_SECONDS) if self.trouble else self.every_seconds


class Refresh:
    """One reading of an app for all who look. For one event loop.

    Args:
        app: whose storage is read; nothing is made there.
        seconds: how old what is known may be at most when somebody asks.

    Raises ConfigurationError where the environment names a file of prices that holds none.
    """

    def __init__(self, app: App, *, seconds: float = REFRESH_SECONDS) -> None:
        self.app, self.seen = app, Seen()
        self.prices = read_prices(read_settings().prices_file)
        self._shared = Shared(self._read, seconds=seconds)
        self._ahead = 0.0
        self._tasks: dict[str, tuple[str, str]] = {}
        self._batches, self._batch_round = Listing(layout.BATCHES), BatchRound()
        self._batch_ids: set[str] = set()
        self._letters, self._letter_round = Listing(layout.DEAD_LETTERS), LetterRound()
        self._workers = Errand(0.0, _workers, self._keep_workers)
        self._names = Errand(NAMES_SECONDS, app.queues.names, self._keep_names)
        self._records = Errand(RECORD_SECONDS, self._read_record, self._keep_record)
        self._of_queues: dict[str, list[Errand]] = {}
        self._page_of_batches = Errand(BATCHES_SECONDS, self._batches.page, self._keep_batches)
        self._page_of_letters = Errand(LETTERS_SECONDS, self._letters.page, self._keep_letters)

    async def look(self, patience_seconds: float | None = None) -> Seen:
        """What is known, with a refresh if one is due, for which this waits a moment."""
        await self._shared.get(patience_seconds)
        return self.seen

    @property
    def now(self) -> float:
        """The server's time, about."""
        return self.server_time(time.time())

    def server_time(self, moment: float) -> float:
        """The server's time at a moment of this machine's clock."""
        return moment + self._ahead

    @property
    def problem(self) -> str:
        """Why what is known is old, or not all; empty if all is well."""
        if said := self._shared.problem:
            return said
        return next((errand.trouble for errand in self._errands() if errand.trouble), "")

    @property
    def problem_since(self) -> float | None:
        """When that began, in epoch seconds."""
        if self._shared.problem:
            return self._shared.problem_since
        return next((errand.since for errand in self._errands() if errand.trouble), None)

    def changed_orders(self, queue: str) -> None:
        """Have what the workers of a queue are told read next, and its messages after that."""
        self._read_next(*reversed(self._of_queues.get(queue, [])[:2]))

    def changed_letters(self) -> None:
        """Have dead letters read next, from the first on, and batches after that."""
        self._letters.restart()
        self._read_next(self._page_of_letters, self._page_of_batches)

    def changed_batches(self) -> None:
        """Have batches read next, from the first on, and dead letters after that."""
        self._batches.restart()
        self._read_next(self._page_of_batches, self._page_of_letters)

    def _read_next(self, *errands: Errand) -> None:
        """Put these first in the rotation, at once: what somebody has just changed they want to see, at no more requests."""
        for place, errand in enumerate(reversed(errands)):
            errand.done_at = -LONG_AGO * 1000**place
        self._shared.expire()

    async def close(self) -> None:
        """End a refresh that goes on."""
        await self._shared.close()

    # reading

    async def _read(self) -> Seen:
        is_first = not self.seen.as_of
        await self._do(self._workers)
        now, self.seen.requests = await self.app.client.arun(_clock_and_requests)
        self._ahead = now - time.time()
        self.seen.as_of = now
        for _ in range(MOST_AT_FIRST if is_first else 1):
            errand = self._most_overdue()
            if is_first and errand.done_at != float("-inf"):
                break
            await self._do(errand)
        return self.seen

    async def _do(self, errand: Errand) -> None:
        """Do it; what is wrong with this one alone is no reason to leave out the others."""
        try:
            found = await self.app.client.arun(lambda ledger: _awaited(errand.read(ledger)))
        except Unreachable:
            raise
        except JobQError as exc:
            errand.since = errand.since if errand.trouble else time.time()
            nothing_there = isinstance(exc, NotFound) and errand is self._names
            errand.trouble = self._nothing_there if nothing_there else printable(str(exc))
        else:
            errand.trouble = ""
            errand.keep(found)
        errand.done_at = time.monotonic()

    @property
    def _nothing_there(self) -> str:
        return f"There is no app {self.app.name!r} at {self.app.client.place.label} yet. What is submitted first makes it."

    def _errands(self) -> Iterator[Errand]:
        yield self._names
        yield from (self._workers, self._page_of_batches, self._page_of_letters)
        for several in self._of_queues.values():
            yield from several

    def _most_overdue(self) -> Errand:
        now, errands = time.monotonic(), [self._names, self._page_of_batches, self._page_of_letters]
        for several in self._of_queues.values():
            errands += several
        if self._unnamed():
            errands.append(self._records)
        return max(errands, key=lambda errand: (now - errand.done_at) / errand.pause_seconds)

    # workers

    def _keep_workers(self, found: list[WorkerStatus]) -> None:
        self.seen.workers = found
        self.seen.history.note({worker.id: worker.succeeded + worker.failed for worker in found}, self.now)

    # queues

    def _keep_names(self, names: list[str]) -> None:
        before = self.seen.queues
        self.seen.queues = {name: before.get(name, QueueSeen(name)) for name in names}
        self._of_queues = {name: self._of_queues.get(name) or self._errands_of(name) for name in names}

    def _errands_of(self, name: str) -> list[Errand]:
        return [
            Errand(DEPTH_SECONDS, partial(_depth, name), partial(self._keep_depth, name)),
            Errand(ORDERS_SECONDS, partial(_orders, name), partial(self._keep_queue, name, "orders")),
            Errand(OLDEST_SECONDS, partial(_oldest, name), partial(self._keep_queue, name, "oldest_sent")),
        ]

    def _keep_depth(self, name: str, messages: int) -> None:
        self._keep_queue(name, "messages", messages)
        self._keep_queue(name, "as_of", self.now)

    def _keep_queue(self, name: str, what: str, value: object) -> None:
        self.seen.queues[name] = replace(self.seen.queues[name], **{what: value})  # type: ignore[arg-type]  # by its field's name

    # batches

    def _keep_batches(self, page: Page) -> None:
        if page.is_first:
            self._batch_round, self._batch_ids = BatchRound(), set()
        found = self._batch_round.add(page.infos, self.now, is_last=page.is_last)
        for batch in found:
            batch.task, batch.queue = self._tasks.get(batch.id, (batch.task, batch.queue))
        self.seen.batches.update({batch.id: batch for batch in found})
        self._batch_ids |= {batch.id for batch in found}
        if page.is_last:
            for gone in self.seen.batches.keys() - self._batch_ids:
                del self.seen.batches[gone]

    def _unnamed(self) -> list[str]:
        """Batches of which the listing tells no task, those that are open first, and the newest of them."""
        known = [each for each in self.seen.batches.values() if not each.queue and each.id not in self._tasks]
        known.sort(key=lambda batch: (not batch.is_open, -batch.sent))
        return [batch.id for batch in known[:MOST_UNNAMED]]

    async def _read_record(self, ledger: Ledger) -> tuple[str, str, str]:
        batch = self._unnamed()[0]
        try:
            meta = await BatchLedger(ledger, batch).meta()
        except (MessageError, ResultGone):  # or signed by somebody else: its counts are shown all the same
            meta = None
        return (batch, printable(meta.call.task), meta.call.queue) if meta else (batch, "", "")

    def _keep_record(self, found: tuple[str, str, str]) -> None:
        batch, *named = found
        self._tasks[batch] = (named[0], named[1])
        if (known := self.seen.batches.get(batch)) is not None:
            known.task, known.queue = self._tasks[batch]

    # dead letters

    def _keep_letters(self, page: Page) -> None:
        if page.is_first:
            self._letter_round = LetterRound()
        self._letter_round.add(page.infos, is_last=page.is_last)
        if page.is_last or self.seen.letters_as_of is None:
            self.seen.letters = self._letter_round.found
        if page.is_last:
            self.seen.letters_as_of = self.now


async def _clock_and_requests(ledger: Ledger) -> tuple[float, dict[str, int]]:
    return await ledger.transport.server_time(), ledger.transport.requests.snapshot()


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def _workers(ledger: Ledger) -> list[WorkerStatus]:
    try:
        return await fleet.workers(ledger)
    except NotFound:  # queues that ai4s-jobq 3.x made have no container beside them
        return []


async def _depth(name: str, ledger: Ledger) -> int:
    return await (await ledger.queue(name)).depth()


async def _orders(name: str, ledger: Ledger) -> Control:
    try:
        found = await ledger.control(name)
    except (NotFound, MessageError):
        return Control()
    return found[0] if found else Control()


async def _oldest(name: str, ledger: Ledger) -> float | None:
    """When the message was sent, or is due, that would be received next."""
    texts = await (await ledger.queue(name)).peek(1)
    found = [peeked(text, name, ledger.wire) for text in texts]
    return next((each.eta or each.sent for each in found), None)
