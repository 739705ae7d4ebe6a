"""Which batches have calls that are still to be done, how many, and how many messages those lie in: from one listing.

The log's entries say how many calls they end and how many they give away to a log of its own; so each log's rest is known without
reading one, and a log with a rest has one message. Read are only the batches' common parts, of those that have a rest.

Next: `queues.py`, which adds up what waits in a queue.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from .. import layout
from ..batches import BatchLedger
from ..errors import MessageError, ResultGone
from ..ledger import Ledger
from ..maps.reading import LONGEST_INDEX, within
from ..maps.standing import Standing, standings
from ..message import BatchMeta
from ..ranges import from_text
from ..transports.base import BlobInfo

READ_AT_A_TIME = 32


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch of which calls are still to be done: `waiting` of `calls`, in some `messages`; `failed` stand as failed.

    `running` is what workers said last, `sent` when its submission began, in epoch seconds by the server's clock.
    """

    id: str
    queue: str
    task: str
    calls: int
    waiting: int
    failed: int
    messages: int
    sent: float
    is_cancelled: bool = False
    running: int = 0


@dataclass(frozen=True, slots=True)
class _Rest:
    standing: Standing
    logs: Counter[str]
    asked_again: int

    @property
    def waiting(self) -> int:
        return sum(count for count in self.logs.values() if count > 0)

    @property
    def messages(self) -> int:
        return sum(count > 0 for count in self.logs.values())


async def open_batches(ledger: Ledger) -> list[OpenBatch]:
    """All batches with calls that are still to be done."""
    found = [rest async for rest in _rests(ledger) if rest.waiting]
    room = asyncio.Semaphore(READ_AT_A_TIME)

    async def read(rest: _Rest) -> OpenBatch | None:
        async with room:
            return await _open(ledger, rest)

    return [batch for batch in await asyncio.gather(*map(read, found)) if batch is not None]


async def _rests(ledger: Ledger) -> AsyncIterator[_Rest]:
    listing = (await ledger.store()).list(layout.BATCHES, with_metadata=True)
    async for standing in standings(listing):
        if standing.meta is not None and not standing.is_going:
            yield await _rest(ledger, standing)


async def _rest(ledger: Ledger, standing: Standing) -> _Rest:
    """What each log of a batch has still to tell; only what was asked to run again must be read."""
    logs = Counter[str]()
    for info in standing.inputs:
        logs[info.name.rpartition("/")[2]] += _number(info, "count")
    asked_again = 0
    for number in range(1, standing.retries + 1):
        with suppress(MessageError):
            order = await BatchLedger(ledger, standing.batch).retry(number)
            wanted = from_text(order.todo, range(LONGEST_INDEX)) if order else []
            asked_again += len(wanted)
            for info in standing.inputs:
                first = _number(info, "first")
                here = within(wanted, range(first, first + _number(info, "count")))
                logs[f"{info.name.rpartition('/')[2]}.r{number}"] += len(here)
    for info in standing.entries:
        if (parts := layout.entry_parts(info.name)) is not None:
            given = _number(info, "gives")
            logs[parts[0]] -= _number(info, "done") + given
            logs[layout.child_log(*parts)] += given
    return _Rest(standing, logs, asked_again)


async def _open(ledger: Ledger, rest: _Rest) -> OpenBatch | None:
    standing = rest.standing
    try:
        meta: BatchMeta | None = await BatchLedger(ledger, standing.batch).meta()
    except ResultGone:
        return None
    except MessageError:  # signed by somebody else, say: its messages lie in a queue all the same, whichever it is
        meta = None
    return OpenBatch(
        id=standing.batch,
        queue=meta.call.queue if meta else "",
        task=meta.call.task if meta else "",
        calls=sum(_number(info, "count") for info in standing.inputs),
        waiting=rest.waiting,
        failed=max(0, sum(_number(info, "failed") for info in standing.entries) - rest.asked_again),
        messages=rest.messages,
        sent=meta.call.sent if meta else standing.modified,
        is_cancelled=any(info.name == layout.batch_cancelled(standing.batch) for info in standing.blobs),
    )


def _number(info: BlobInfo, name: str) -> int:
    text = info.metadata.get(name, "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else 0
