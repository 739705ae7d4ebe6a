"""Running a batch's failures again: a request that names them, a message for each of their packs, then word that all were sent.

Each step may be the last one of whoever asks: the next one to ask finds the request, and sends what may not have been sent, marked.
Of several who ask at a time one has the request.

Next: `reading.py`, which follows what runs again; `worker/pack.py`, which runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import layout
from ..batches import BatchLedger, PackInfo, first_header
from ..client import Client
from ..entry_notes import ERROR_CHARACTERS, encoded
from ..errors import NotFinished
from ..ledger import Ledger
from ..message import BatchMeta, BatchOrder, PackHeader
from ..ranges import from_text, to_text
from ..reruns import Fate
from .reading import LONGEST_INDEX, Extent, Found, failed, within
from .standing import reckon, standing_of

RETRIED_AT_A_TIME = 50_000
"""Failures that one request names: a record holds a megabyte."""


async def run_failures(client: Client, ledger: Ledger, batch_id: str, meta: BatchMeta, *, error: str = "") -> int:
    """Have all calls run again that have failed, or those whose exception is of the type `error`; returns how many.

    Raises NotFinished if somebody else asks at the same moment.
    """
    batch, extent = BatchLedger(ledger, batch_id), Extent()
    await extent.look(batch)
    sender = _Sender(client, batch, meta, extent)
    # As it is now: whatever fails from here on changes it, and keeps it from being laid down.
    letter = await batch.letter(meta.call.queue)
    number = 1
    while (order := await batch.retry(number)) is not None:
        if not await batch.retry_was_sent(number):
            await sender.send(number, order)
        number += 1
    again = [found.outcome.at for found in await failed(batch, extent) if not error or _is_of(found, error)]
    reckoned = await reckon(ledger, await standing_of(ledger, batch_id)) if again and letter is not None else None
    asked = await ledger.transport.server_time()
    for start in range(0, len(again), RETRIED_AT_A_TIME):
        order = BatchOrder(asked, run=number + 1, todo=to_text(again[start : start + RETRIED_AT_A_TIME]))
        if not await batch.request_retry(number, order):
            raise NotFinished(f"Somebody else is just having failures of batch {batch_id} run again: ask again in a moment.")
        await sender.send(number, order)
        number += 1
    # Where calls of an earlier run may fail yet, it stays: their pack may have said so once, and says it no more.
    is_all = reckoned is not None and reckoned.has_ended and reckoned.failures == len(again)
    if is_all and letter is not None and not letter.metadata.get("fate"):
        await batch.lay_down(letter, Fate.RETRIED, run=number - 1)
    return len(again)


def _is_of(found: Found, error: str) -> bool:
    """Whether a call failed with an exception of this type, as a listing names it: long names are cut there."""
    told = found.outcome.failure.type
    return told == error or encoded(told, ERROR_CHARACTERS) == encoded(error, ERROR_CHARACTERS)


@dataclass(frozen=True, slots=True)
class _Sender:
    """Sends what runs again of one batch."""

    client: Client
    batch: BatchLedger
    meta: BatchMeta
    extent: Extent

    async def send(self, number: int, order: BatchOrder) -> None:
        """Send the messages of a retry, but for those of which a log says that they were sent, and note that all are."""
        store = await self.batch.ledger.store()
        wanted = from_text(order.todo, range(LONGEST_INDEX))
        for info in self.extent.infos.values():
            todo, log = within(wanted, info.indices), layout.root_log(info.pack, number)
            entries = f"{layout.log_entries(self.batch.batch)}{log}/"
            if todo and not [name async for name in store.list(entries, page=1)]:
                header = self._header(info, order, todo=to_text(todo), log=log)
                await self.client.send_pack(self.batch.ledger, header)
        await self.batch.note_retry_sent(number, order)

    def _header(self, info: PackInfo, order: BatchOrder, *, todo: str, log: str) -> PackHeader:
        header = first_header(self.batch.batch, info, self.meta.call)
        return replace(header, sent=order.asked, todo=todo, log=log, run=order.run, resent=True)
