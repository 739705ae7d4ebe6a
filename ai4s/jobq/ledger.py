"""An app's records at an opened place: outcomes, dead letters, keys, payloads, spilled bytes, and its messages.

Joins the names (`layout`), the bytes (`wire`, `spill`) and the transport, for producers and workers alike. It keeps the
write-once rules: an outcome is put if absent and never replaced but by a tombstone; what refers to a blob is written after it.
It decides nothing.

Next: producers, `client.py`; workers, `worker/attempt.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from . import layout, spill
from .clock import boottime
from .errors import AccessDenied, AlreadyExists, ConditionFailed, Malformed, NotFound, ResultGone, SignatureInvalid, Unreachable
from .letter_notes import letter_notes
from .merging import Merged
from .message import Call, Checkpoint, Control, DeadLetter, KeyRecord, Outcome, PackHeader, Spill
from .outcome_notes import outcome_notes
from .parts import Parts
from .signing import Keyring
from .transports.base import MAX_DELAY_SECONDS, Blob, BlobInfo, Queue, Receipt, Source, Store, Transport
from .wire import MAX_INLINE_ARGUMENTS, MAX_INLINE_VALUE, MAX_RECORD_BYTES, ROOM_BYTES, Wire

log = logging.getLogger("ai4s.jobq")

SEND_BUDGET_SECONDS = 30.0
"""How long a send is tried again before its caller is told."""

FIRST_CONFLICT_SECONDS, LONGEST_CONFLICT_SECONDS = 0.1, 3.2
"""How long a change waits, at most, that found another one made meanwhile; twice as long each time."""

STREAMS = 2
"""Blobs on their way to files at a time; each holds some 28 MiB of blocks, in a supervisor that must stay small."""


class Ledger:
    """Reads and writes the records of `app` at `transport`.

    Queues and container are made on first use, or only checked if `create` is off.
    """

    def __init__(self, transport: Transport, app: str, keyring: Keyring, *, create: bool = True) -> None:
        self.app = app
        self.wire = Wire(app, keyring)
        self.transport = transport
        self._create = create
        self._store = transport.store(layout.container_name(app))
        self._ready: dict[str, asyncio.Future[None]] = {}
        self._queues: dict[str, Queue] = {}
        self._streams = asyncio.Semaphore(STREAMS)
        self._controls: dict[str, Merged[Control]] = {}

    async def queue(self, name: str) -> Queue:
        """The app's queue of this name, there and surely this app's."""
        if name not in self._queues:
            self._queues[name] = self.transport.queue(layout.queue_name(self.app, name), app=self.app)
        await self._once(f"queue {name}", self._queues[name])
        return self._queues[name]

    async def store(self) -> Store:
        """The app's container, there."""
        await self._once("container", self._store)
        return self._store

    async def _once(self, what: str, made: Queue | Store) -> None:
        """Make it on its first use; whoever comes meanwhile waits for the same request, and a failure is tried anew."""
        made_before = self._ready.get(what)
        if made_before is None or (made_before.done() and (made_before.cancelled() or made_before.exception())):
            self._ready[what] = asyncio.ensure_future(_create(made) if self._create else made.check())
        await asyncio.shield(self._ready[what])

    # messages

    async def send(self, call: Call, delay_seconds: float = 0) -> Receipt | None:
        """Put the call's message; its arguments are spilled first if they are too large for it.

        A send whose answer was lost is repeated with the mark `resent`, so that the first worker looks whether the run has ended.
        Returns the message's receipt; None where it may lie there twice, one of which it would not take back.
        """
        queue = await self.queue(call.queue)
        call, text = await self.sealed(call, ROOM_BYTES)

        async def marked() -> str:
            return (await self.sealed(replace(call, resent=True), ROOM_BYTES))[1]

        return await _send(queue, text, marked, min(delay_seconds, MAX_DELAY_SECONDS))

    async def send_pack(self, pack: PackHeader, delay_seconds: float = 0) -> None:
        """Put the message of a pack, whose input is there; repeated like that of a call. Raises ValueError if it does not fit."""
        queue = await self.queue(pack.queue)

        async def marked() -> str:
            return self.sealed_pack(replace(pack, resent=True))

        await _send(queue, self.sealed_pack(pack), marked, min(delay_seconds, MAX_DELAY_SECONDS))

    def sealed_pack(self, pack: PackHeader) -> str:
        """The text of a pack's message; raises ValueError if it does not fit."""
        text = self.wire.seal_pack(pack)
        if text is None:
            raise ValueError(f"The header of pack {pack.log} of batch {pack.batch} does not fit into a message.")
        return text

    async def sealed(self, call: Call, room_bytes: int = 0) -> tuple[Call, str]:
        """A call and its message's text; arguments that are too large for it are spilled first, and the call says so."""
        fits = isinstance(call.arguments, Spill) or len(call.arguments) <= MAX_INLINE_ARGUMENTS
        text = self.wire.seal_call(call, room_bytes=room_bytes) if fits else None
        if text is None and isinstance(call.arguments, bytes):
            call = replace(call, arguments=await self._spill(layout.arguments(call.id), call.arguments), version3=None)
            text = self.wire.seal_call(call, room_bytes=room_bytes)
        if text is None:
            raise ValueError(f"The options of call {call.id} do not fit into a message.")
        return call, text

    async def keep_arguments(self, call: Call, arguments: Parts) -> Call:
        """The call with its arguments spilled."""
        return replace(call, arguments=await self._spill(layout.arguments(call.id), arguments))

    async def arguments_to(self, call: Call, path: Path) -> None:
        """Spilled arguments, to a file."""
        if isinstance(call.arguments, Spill):
            async with self._streams:
                await spill.fetch_to(await self.store(), layout.arguments(call.id), call.arguments, path)

    async def spilled_to(self, name: str, spilled: Spill, path: Path) -> None:
        """Bytes that were spilled under this name, to a file."""
        async with self._streams:
            await spill.fetch_to(await self.store(), name, spilled, path)

    # outcomes

    async def record(self, name: str, *, if_none_match: str | None = None) -> Blob | None:
        """The blob of a record; None if there is none, or nothing new since that etag. Raises Malformed for one that is too large.

        Anybody who may write to the place can put a blob of any size there: no more of it is read than a record can have.
        """
        try:
            blob = await (await self.store()).get(name, length=MAX_RECORD_BYTES, if_none_match=if_none_match)
        except NotFound:
            return None
        if blob is not None and blob.info.size > MAX_RECORD_BYTES:
            raise Malformed(f"The blob {name!r} is larger than a record can be ({blob.info.size} bytes).")
        return blob

    async def outcome(self, call: str, run: int) -> Outcome | None:
        """The outcome of a run, or None if it has not ended; raises ResultGone if it was forgotten."""
        blob = await self.record(layout.result(call, run))
        if blob is None:
            return None
        if not blob.data:
            raise ResultGone(f"The outcome of call {call} was forgotten.", call_id=call)
        return self.wire.unseal_outcome(blob.data, call, run)

    async def commit(self, outcome: Outcome) -> Outcome:
        """End the run with `outcome` unless it has ended; returns the outcome that stands. Raises ResultGone if it was forgotten.

        Putting it again after a lost answer is harmless: the token tells whose it is.
        """
        store, name = await self.store(), layout.result(outcome.call, outcome.run)
        try:
            await store.put(name, self.wire.seal_outcome(outcome), metadata=outcome_notes(outcome), if_absent=True)
        except AlreadyExists:
            standing = await self.outcome(outcome.call, outcome.run)
            # Nobody deletes an outcome: gone between the two requests means that its container was removed by hand.
            return standing or outcome
        return outcome

    async def value(self, outcome: Outcome) -> bytes | bytearray:
        """The encoded value of a success, wherever it lies."""
        if isinstance(outcome.value, Spill):
            return await spill.fetch_large(await self.store(), layout.value(outcome.call, outcome.token), outcome.value)
        return outcome.value or b""

    async def keep_value(self, call: str, token: str, data: bytes | Path) -> bytes | Spill:
        """What an outcome should hold for this value: the bytes, or where they were spilled to."""
        if isinstance(data, bytes) and len(data) <= MAX_INLINE_VALUE:
            return data
        return await self._spill(layout.value(call, token), data)

    async def spilled_from(self, name: str, data: Path | Parts) -> Spill:
        """What refers to these bytes, once they are under this name."""
        return await self._spill(name, data)

    # checkpoints

    async def keep_checkpoint(self, call: str, token: str, number: int, path: Path) -> Spill:
        """Upload an attempt's checkpoint, which no message names yet."""
        return await self._spill(layout.checkpoint(call, token, number), path)

    async def checkpoint_to(self, call: str, checkpoint: Checkpoint, path: Path) -> None:
        """A checkpoint, to a file; raises Malformed if it is missing or not what the message says."""
        name = layout.checkpoint(call, checkpoint.token, checkpoint.number)
        async with self._streams:
            await spill.fetch_to(await self.store(), name, checkpoint.spill, path)

    async def drop_checkpoint(self, call: str, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint, if it is there."""
        await _delete_if_there(await self.store(), layout.checkpoint(call, checkpoint.token, checkpoint.number))

    # forgetting

    async def forget(self, call: str, run: int) -> None:
        """Replace the outcome by a tombstone and remove what was spilled for the call."""
        store = await self.store()
        await store.put(layout.result(call, run), b"")
        spilled = (layout.values(call), layout.checkpoints(call), layout.call_logs(call))
        names = [layout.arguments(call), layout.key(call)]
        names += [info.name for prefix in spilled async for info in store.list(prefix)]
        for name in names:
            await _delete_if_there(store, name)

    # dead letters

    async def bury(self, letter: DeadLetter, queue: str, subject: str, run: int) -> None:
        """Keep a dead letter; the one that is there already stays."""
        name = layout.dead_letter(queue, subject, run)
        with suppress(AlreadyExists):
            await (await self.store()).put(name, self.wire.seal(letter, name), metadata=letter_notes(letter), if_absent=True)

    # keys

    async def claim_key(self, call: str, arguments_sha256: str) -> KeyRecord:
        """The record of a key, made with these arguments if there is none yet."""
        store, name = await self.store(), layout.key(call)
        mine = KeyRecord(arguments_sha256)
        condition: dict[str, Any] = {"if_absent": True}
        while True:
            try:
                await store.put(name, self.wire.seal(mine, name), **condition)
                return mine
            except (AlreadyExists, ConditionFailed):
                standing = await self.record(name)
            if standing is not None and standing.data:
                return self.wire.unseal(KeyRecord, standing.data, name)
            condition = {"if_match": standing.info.etag} if standing else {"if_absent": True}
            if standing is not None:
                await self._remove_former_life(call, standing.info.etag)

    async def _remove_former_life(self, call: str, tombstone: str) -> None:
        """What `gc` was about to remove, and may have died over, as long as the key's tombstone is still this one.

        While it stands nobody sends the call; so what was found before it was looked at again is not of a later life.
        """
        store = await self.store()
        prefixes = (layout.result(call, 1), layout.arguments(call), layout.retries(call))
        found = [info for prefix in prefixes async for info in store.list(prefix, with_metadata=True)]
        standing = await self.record(layout.key(call))
        if standing is not None and standing.info.etag == tombstone:
            for info in found:
                await remove_if_unchanged(store, info)

    async def mark_key_sent(self, call: str, arguments_sha256: str) -> None:
        """Note that the key's message is surely on the queue."""
        name = layout.key(call)
        await (await self.store()).put(name, self.wire.seal(KeyRecord(arguments_sha256, sent=True), name))

    # control

    async def control(self, queue: str, *, if_none_match: str | None = None) -> tuple[Control, str] | None:
        """What the workers of a queue are told, and its etag; None if there is nothing, or nothing new since that etag."""
        name = layout.control(queue)
        blob = await self.record(name, if_none_match=if_none_match)
        return None if blob is None else (self.wire.unseal(Control, blob.data, name), blob.info.etag)

    async def change_control(self, queue: str, change: Callable[[Control], Control]) -> Control:
        """Tell the workers of a queue something else; two changes at a time both take effect, in some order.

        Those of this process that wait for each other are put as one: hundreds of calls may be cancelled at once.
        """
        if queue not in self._controls:
            self._controls[queue] = Merged(partial(self._change_control, queue))
        return await self._controls[queue].change(change)

    async def _change_control(self, queue: str, change: Callable[[Control], Control]) -> Control:
        store, name = await self.store(), layout.control(queue)
        wait = FIRST_CONFLICT_SECONDS
        while True:
            standing, condition = await self._standing_control(name)
            changed = change(standing)
            try:
                await store.put(name, self.wire.seal(changed, name), **condition)
            except (AlreadyExists, ConditionFailed):
                # Somebody else was faster, or this was done and its answer lost: a change may be made twice.
                await asyncio.sleep(wait * random.random())
                wait = min(2 * wait, LONGEST_CONFLICT_SECONDS)
            else:
                return changed

    async def _standing_control(self, name: str) -> tuple[Control, dict[str, Any]]:
        """What is to be changed, and under which condition: nothing, where a key was introduced since, or somebody spoilt it."""
        blob = await self.record(name)
        if blob is None:
            return Control(), {"if_absent": True}
        condition = {"if_match": blob.info.etag}
        try:
            return self.wire.unseal(Control, blob.data, name), condition
        except (Malformed, SignatureInvalid) as exc:
            log.warning("%s cannot be read and is written anew, without what it said before: %s", name, exc)
            return Control(), condition

    # payloads

    async def publish(self, data: bytes) -> str:
        """Upload a function or module by value unless it is there; returns its SHA-256, by which messages name it."""
        sha256 = layout.sha256_of(data)
        try:
            await (await self.store()).put(layout.payload(sha256), data, if_absent=True)
        except AlreadyExists:
            return sha256
        return sha256

    async def publish_large(self, data: Parts) -> Spill:
        """Upload an object unless it is there, which is seen before anything is sent."""
        found = await spill.digest(data)
        store, name = await self.store(), layout.payload(found.sha256)
        with suppress(AlreadyExists):
            there = 0 if data.size <= MAX_INLINE_VALUE else await _size(store, name)
            if there != data.size:  # what has another size is damaged
                await store.put(name, data, if_absent=not there)
        return found

    async def payload(self, found: Spill) -> bytearray:
        """A payload in memory; raises Malformed if it is missing or not what its name says."""
        return await spill.fetch_large(await self.store(), layout.payload(found.sha256), found)

    async def payload_to(self, sha256: str, path: Path, size: int | None = None) -> None:
        """A payload, to a file; raises Malformed if it is missing or not what its name says. To know its size spares a request."""
        store, name = await self.store(), layout.payload(sha256)
        size = await _size(store, name) if size is None else size
        async with self._streams:
            await spill.fetch_to(store, name, Spill(size, sha256), path)

    async def _spill(self, name: str, source: Source) -> Spill:
        return await spill.keep(await self.store(), name, source)


async def _send(queue: Queue, text: str, marked: Callable[[], Awaitable[str]], delay_seconds: float) -> Receipt | None:
    """Send until it is done or the time for that is up; from the first answer that was lost on, what `marked` gives."""
    give_up, wait, maybe_done = boottime() + SEND_BUDGET_SECONDS, 0.1, False
    while True:
        try:
            receipt = await queue.send(text, delay_seconds=delay_seconds)
        except Unreachable as exc:
            if exc.maybe_done and not maybe_done:
                text = await marked()
            maybe_done = maybe_done or exc.maybe_done
            if boottime() + wait > give_up:
                raise Unreachable(str(exc), maybe_done=maybe_done) from exc
        else:
            return None if maybe_done else receipt
        await asyncio.sleep(wait * (0.5 + random.random() / 2))
        wait = min(2 * wait, 5)


async def _size(store: Store, name: str) -> int:
    """How long a blob is; 0 if it is not there."""
    try:
        return (await store.head(name)).size
    except NotFound:
        return 0


async def _create(made: Queue | Store) -> None:
    """Make it, or, without the right to, see that it is there; without the right to that either, what is done next tells."""
    try:
        await made.create()
    except AccessDenied as exc:
        if exc.unknown:
            raise
        with suppress(AccessDenied):
            await made.check()


async def remove_if_unchanged(store: Store, info: BlobInfo) -> bool:
    """Remove a blob unless it is another now, or gone: then False."""
    try:
        await store.delete(info.name, if_match=info.etag)
    except (NotFound, ConditionFailed):
        return False
    return True


async def _delete_if_there(store: Store, name: str) -> None:
    try:
        await store.delete(name)
    except (NotFound, ConditionFailed):
        return
