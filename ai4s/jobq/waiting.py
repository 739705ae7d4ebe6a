"""Waiting for outcomes without a server that tells: how often to look, and how to look for thousands at once.

Few calls are looked up one by one; many that share a page are found by listing that page, one request for up to 4,096.
The pause grows with the time waited, so a wait costs a number of requests that grows with its logarithm, up to one each 2 s.

Next: `handle.py`, which waits.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from . import layout
from .clock import boottime
from .errors import NotFound, ResultTimeout
from .ledger import Ledger

FIRST_PAUSE_SECONDS = 0.001
LONGEST_PAUSE_SECONDS = 2.0
GROWTH = 0.25
"""A pause as a part of the time waited: an outcome is seen at most this much later than it could have been."""

GROWTH_OF_BATCHES = 0.1
"""The same for a batch, where one look tells of thousands of calls, and comes a few seconds after the last news at the rarest."""

PAUSE_AFTER_LOOK = 2.0
"""A pause as a part of the time that the last look took, at least: a listing of thousands keeps a processor busy for a while."""

LISTING_PAYS_FROM = 8
"""Handles on one page from which a listing (priced like a write, ten reads) is cheaper than looking at each."""

LOOKS_IN_FLIGHT = 16


class Pace:
    """When to look next, and when to give up."""

    def __init__(self, timeout_seconds: float | None, growth: float = GROWTH) -> None:
        self._growth = growth
        self.started = self._last_news = boottime()
        self._deadline = None if timeout_seconds is None else self.started + timeout_seconds
        self._came = 0
        self._look_seconds = 0.0

    @contextmanager
    def look(self) -> Iterator[None]:
        """Note how long a look takes."""
        began = boottime()
        yield
        self._look_seconds = boottime() - began

    def news(self, count: int = 1) -> None:
        """So many came: look often again."""
        self._came += count
        self._last_news = boottime()

    def rest_seconds(self) -> float | None:
        """Until time is up; None for never."""
        return None if self._deadline is None else max(0.0, self._deadline - boottime())

    def pause_seconds(self, what: str, left: int = 0) -> float:
        """How long to sleep before the next look; raises ResultTimeout once time is up.

        Of `left` that come one after the other at the rate so far, it leaves at least half to come, unless that is long.
        """
        now = boottime()
        half_seconds = left * (now - self.started) / self._came / 2 if self._came else 0.0
        patience_seconds = max(self._growth * (now - self._last_news), min(half_seconds, self._growth * (now - self.started)))
        pause = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, PAUSE_AFTER_LOOK * self._look_seconds, patience_seconds))
        if self._deadline is None:
            return pause
        if now >= self._deadline:
            waited = self._deadline - self.started
            raise ResultTimeout(f"No outcome of {what} within {waited:g} s; it goes on, and can be waited for again.")
        return min(pause, self._deadline - now)


Look = Callable[[tuple[str, int]], Awaitable[bool]]


async def ended(ledger: Ledger, runs: Iterable[tuple[str, int]], look: Look | None = None) -> set[tuple[str, int]]:
    """Which of these runs (call id, run) have an outcome now; `look` tells it of a single one, in place of a plain look."""
    pages: dict[str | None, list[tuple[str, int]]] = defaultdict(list)
    for call, run in runs:
        pages[layout.result_page(call)].append((call, run))
    singles = [each for page, group in pages.items() if page is None or len(group) < LISTING_PAYS_FROM for each in group]
    listed = [page for page, group in pages.items() if page is not None and len(group) >= LISTING_PAYS_FROM]
    room = asyncio.Semaphore(LOOKS_IN_FLIGHT)
    looks = [_look(look or partial(_is_there, ledger), each, room) for each in singles]
    lists = [_list(ledger, pages[page], room) for page in listed]
    tasks = [asyncio.ensure_future(look) for look in (*looks, *lists)]
    try:
        return set().union(*await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()  # those that one failure leaves behind; the others are done
        await asyncio.gather(*tasks, return_exceptions=True)


async def retried(ledger: Ledger, runs: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of these ended runs that may have been retried: few are all suspect, to be read one by one; of many a listing tells."""
    beside: dict[str, list[tuple[str, int]]] = defaultdict(list)
    found: set[tuple[str, int]] = set()
    for call, run in runs:
        if layout.batch_of(call):
            found.add((call, run))
            continue
        beside[layout.retries_beside(call)].append((call, run))
    for prefix, group in beside.items():
        if len(group) < LISTING_PAYS_FROM:
            found.update(group)
        else:
            asked = {info.name async for info in (await ledger.store()).list(prefix)}
            found.update((call, run) for call, run in group if layout.retry(call, run + 1) in asked)
    return found


async def _look(look: Look, run: tuple[str, int], room: asyncio.Semaphore) -> set[tuple[str, int]]:
    async with room:
        return {run} if await look(run) else set()


async def _is_there(ledger: Ledger, run: tuple[str, int]) -> bool:
    try:
        await (await ledger.store()).head(layout.result(*run))
    except NotFound:
        return False
    return True


async def _list(ledger: Ledger, runs: list[tuple[str, int]], room: asyncio.Semaphore) -> set[tuple[str, int]]:
    """Which of these runs, whose outcomes lie on one page, have ended; of the names before and after them few are listed."""
    wanted = {layout.result(*run): run for run in runs}
    prefix = common_beginning(min(wanted), max(wanted))
    async with room:
        return {wanted[info.name] async for info in (await ledger.store()).list(prefix) if info.name in wanted}


def common_beginning(first: str, last: str) -> str:
    """What two names begin with, and so all names between them.

    >>> common_beginning("results/0017", "results/0020")
    'results/00'
    """
    same = next((length for length, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]
