"""Removing a batch, whole, in an order in which each step may be the last: whoever comes by next goes on.

First its total is replaced by an empty blob, under the condition that it is still the one that was looked at: from then on nobody
adds to the batch, and whoever was about to hears of it. Then `meta`, by which readers and workers know; then what it held. The
empty total goes last, so that what is left is found; the empty `meta` a day later, as late messages must find it.

Next: `sweeping.py`, which removes what is old; `batch.py` for `forget`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

from .. import layout
from ..batches import BatchLedger
from ..errors import ConditionFailed, JobQError, MessageError, NotFinished, ResultGone
from ..ledger import Ledger, remove_if_unchanged
from ..message import BatchMeta
from ..transports.base import BlobInfo, Store
from .standing import Reckoned, Standing, reckon, standing_of

AT_A_TIME = 16
"""Blobs removed side by side."""

GoOn = Callable[[], bool]


async def remove_old(ledger: Ledger, standing: Standing, tombstones: float, go_on: GoOn = lambda: True) -> bool:
    """Remove a batch that is old enough, if nobody needs it; go on with a removal that was begun. Whether one began here.

    `tombstones` is the moment before which an empty `meta` must have been written to go as well.
    """
    meta, total = standing.meta, standing.total
    if meta is not None and meta.size == 0:
        is_last, is_old = len(standing.blobs) == 1, meta.modified <= tombstones
        if is_old or not is_last:
            await _clear(ledger, standing, go_on)
        if is_old and is_last:
            await remove_if_unchanged(await ledger.store(), meta)
        return False
    if total is not None and total.size == 0:
        return await _bury(ledger, standing, go_on)
    if meta is None:
        await _clear_nameless(ledger, standing)
        return False
    try:
        reckoned = await reckon(ledger, standing)
        return await _may_go(ledger, standing.batch, reckoned) and await _remove(ledger, standing, reckoned, go_on)
    except (MessageError, ResultGone):
        return False  # written by somebody else, or being removed by somebody else


async def forget(ledger: Ledger, batch: str) -> None:
    """Remove a batch now. Raises NotFinished unless all its calls have ended, ResultGone if it was removed, JobQError for none."""
    standing = await standing_of(ledger, batch)
    meta, total = standing.meta, standing.total
    if meta is None:
        raise JobQError(f"There is no batch {batch!r}.")
    if meta.size == 0 or (total is not None and total.size == 0):
        await (_clear(ledger, standing) if meta.size == 0 else _bury(ledger, standing))
        raise ResultGone(f"Batch {batch} was removed.", call_id=batch)
    reckoned = await reckon(ledger, standing)
    if not reckoned.has_ended or not await _remove(ledger, standing, reckoned):
        raise NotFinished(f"Batch {batch} has not ended: wait for it, or cancel it first, which a worker has to come by for.")


async def _may_go(ledger: Ledger, batch: str, reckoned: Reckoned) -> bool:
    """Whether nobody will need it: all has ended, and somebody has seen to the failures."""
    if not reckoned.has_ended or not reckoned.ever_failed:
        return reckoned.has_ended
    meta = await BatchLedger(ledger, batch).meta()
    letter = await BatchLedger(ledger, batch).letter(meta.call.queue) if meta else None
    # Without any, its worker is just about to write one.
    return letter is not None and (bool(letter.metadata.get("fate")) or reckoned.failures <= 0)


async def _remove(ledger: Ledger, standing: Standing, reckoned: Reckoned, go_on: GoOn = lambda: True) -> bool:
    """Remove it unless somebody has added to it since it was looked at; whether it is removed."""
    try:
        await (await ledger.store()).put(layout.batch_total(standing.batch), b"", if_match=reckoned.total_etag)
    except ConditionFailed:
        return False
    return await _bury(ledger, await standing_of(ledger, standing.batch), go_on)


async def _bury(ledger: Ledger, standing: Standing, go_on: GoOn = lambda: True) -> bool:
    """Put a tombstone in the place of `meta`, and remove the rest."""
    store, meta = await ledger.store(), standing.meta
    if meta is not None:
        queue = await _queue(ledger, standing.batch)
        try:
            await store.put(meta.name, b"", metadata={"queue": queue} if queue else {}, if_match=meta.etag)
        except ConditionFailed:
            return False
    await _clear(ledger, await standing_of(ledger, standing.batch), go_on)
    return True


async def _queue(ledger: Ledger, batch: str) -> str | None:
    """The queue of a batch, whose dead letter has to be found."""
    try:
        meta: BatchMeta | None = await BatchLedger(ledger, batch).meta()
    except (MessageError, ResultGone):
        return None
    return meta.call.queue if meta else None


async def _clear(ledger: Ledger, standing: Standing, go_on: GoOn = lambda: True) -> None:
    """Remove what lies there for a batch that has a tombstone, but for that."""
    store, batch, meta, total = await ledger.store(), standing.batch, standing.meta, standing.total
    inputs, entries = standing.inputs, standing.entries
    done = {info.name for info in (*inputs, *entries, *filter(None, (meta, total)))}
    rest = [info for info in standing.blobs if info.name not in done]
    letter = await _letter(ledger, batch, meta)
    if not (standing.blobs and go_on()):
        return
    folders = (layout.VALUES, layout.CHECKPOINTS, layout.ARGUMENTS, layout.LOGS)
    spilled = [info for folder in folders async for info in store.list(f"{folder}{batch}.", with_metadata=True)]
    for stage in (inputs, entries, [*rest, *spilled, *letter], [total] if total else []):
        if not await _remove_all(store, stage, go_on):
            return


async def _letter(ledger: Ledger, batch: str, meta: BlobInfo | None) -> list[BlobInfo]:
    queue = meta.metadata.get("queue") if meta else None
    letter = await BatchLedger(ledger, batch).letter(queue) if queue else None
    return [letter] if letter else []


async def _clear_nameless(ledger: Ledger, standing: Standing) -> None:
    """Large keyword arguments whose producer died before it could say what they belong to."""
    if not standing.inputs and not standing.entries and standing.total is None:
        await _remove_all(await ledger.store(), standing.blobs)


async def _remove_all(store: Store, infos: Iterable[BlobInfo], go_on: GoOn = lambda: True) -> bool:
    """Remove these blobs; False if it was to stop before."""
    left = iter(infos)
    while group := list(islice(left, AT_A_TIME)):
        if not go_on():
            return False
        await asyncio.gather(*(remove_if_unchanged(store, info) for info in group))
    return True
