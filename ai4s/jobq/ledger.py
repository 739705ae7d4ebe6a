"""An app's records at an opened place: outcomes, dead letters, keys, payloads, spilled bytes, and its messages.

Joins the names (`layout`), the bytes (`wire`, `spill`) and the transport, for producers and workers alike. It keeps the
write-once rules: an outcome is put if absent and never replaced but by a tombstone; what refers to a blob is written after it.
It decides nothing.

Next: producers, `client.py`; workers, `worker/attempt.py`.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from . import layout, spill
from .clock import boottime
from .errors import AccessDenied, AlreadyExists, ConditionFailed, NotFound, ResultGone, Unreachable
from .message import Call, DeadLetter, KeyRecord, Outcome, Spill
from .signing import Keyring
from .transports.base import MAX_DELAY_SECONDS, Queue, Receipt, Store, Transport
from .wire import MAX_INLINE_ARGUMENTS, MAX_INLINE_VALUE, ROOM_BYTES, Wire

SEND_BUDGET_SECONDS = 30.0
"""How long a send is tried again before its caller is told."""

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

    async def send(self, call: Call, delay_seconds: float = 0) -> Receipt:
        """Put the call's message; its arguments are spilled first if they are too large for it.

        A send whose answer was lost is repeated with the mark `resent`, so that the first worker looks whether the run has ended.
        """
        queue = await self.queue(call.queue)
        call, text = await self.sealed(call, ROOM_BYTES)
        give_up, wait, maybe_done = boottime() + SEND_BUDGET_SECONDS, 0.1, False
        while True:
            try:
                return await queue.send(text, delay_seconds=min(delay_seconds, MAX_DELAY_SECONDS))
            except Unreachable as exc:
                maybe_done = maybe_done or exc.maybe_done
                if boottime() + wait > give_up:
                    raise Unreachable(str(exc), maybe_done=maybe_done) from exc
                if exc.maybe_done and not call.resent:
                    call, text = await self.sealed(replace(call, resent=True), ROOM_BYTES)
            await asyncio.sleep(wait * (0.5 + random.random() / 2))
            wait = min(2 * wait, 5)

    async def sealed(self, call: Call, room_bytes: int = 0) -> tuple[Call, str]:
        """A call and its message's text; arguments that are too large for it are spilled first, and the call says so."""
        fits = isinstance(call.arguments, Spill) or len(call.arguments) <= MAX_INLINE_ARGUMENTS
        text = self.wire.seal_call(call, room_bytes=room_bytes) if fits else None
        if text is None and isinstance(call.arguments, bytes):
            call = replace(call, arguments=await self._spill(layout.arguments(call.id), call.arguments))
            text = self.wire.seal_call(call, room_bytes=room_bytes)
        if text is None:
            raise ValueError(f"The options of call {call.id} do not fit into a message.")
        return call, text

    async def arguments_to(self, call: Call, path: Path) -> None:
        """Spilled arguments, to a file."""
        if isinstance(call.arguments, Spill):
            async with self._streams:
                await spill.fetch_to(await self.store(), layout.arguments(call.id), call.arguments, path)

    # outcomes

    async def outcome(self, call: str, run: int) -> Outcome | None:
        """The outcome of a run, or None if it has not ended; raises ResultGone if it was forgotten."""
        try:
            blob = await (await self.store()).get(layout.result(call, run))
        except NotFound:
            return None
        if blob is None or not blob.data:
            raise ResultGone(f"The outcome of call {call} was forgotten.", call_id=call)
        return self.wire.unseal_outcome(blob.data, call, run)

    async def commit(self, outcome: Outcome) -> Outcome:
        """End the run with `outcome` unless it has ended; returns the outcome that stands. Raises ResultGone if it was forgotten.

        Putting it again after a lost answer is harmless: the token tells whose it is.
        """
        store, name = await self.store(), layout.result(outcome.call, outcome.run)
        try:
            await store.put(name, self.wire.seal_outcome(outcome), if_absent=True)
        except AlreadyExists:
            standing = await self.outcome(outcome.call, outcome.run)
            # Nobody deletes an outcome: gone between the two requests means that its container was removed by hand.
            return standing or outcome
        return outcome

    async def value(self, outcome: Outcome) -> bytes:
        """The encoded value of a success, wherever it lies."""
        if isinstance(outcome.value, Spill):
            return await spill.fetch(await self.store(), layout.value(outcome.call, outcome.token), outcome.value)
        return outcome.value or b""

    async def keep_value(self, call: str, token: str, data: bytes | Path) -> bytes | Spill:
        """What an outcome should hold for this value: the bytes, or where they were spilled to."""
        if isinstance(data, bytes) and len(data) <= MAX_INLINE_VALUE:
            return data
        return await self._spill(layout.value(call, token), data)

    async def forget(self, call: str, run: int) -> None:
        """Replace the outcome by a tombstone and remove what was spilled for the call."""
        store = await self.store()
        await store.put(layout.result(call, run), b"")
        names = [layout.arguments(call), layout.key(call), *[info.name async for info in store.list(layout.values(call))]]
        for name in names:
            await _delete_if_there(store, name)

    # dead letters

    async def bury(self, letter: DeadLetter, queue: str, subject: str, run: int) -> None:
        """Keep a dead letter; the one that is there already stays."""
        name = layout.dead_letter(queue, subject, run)
        try:
            await (await self.store()).put(name, self.wire.seal(letter, name), if_absent=True)
        except AlreadyExists:
            return

    # keys

    async def claim_key(self, call: str, arguments_sha256: str) -> KeyRecord:
        """The record of a key, made with these arguments if there is none yet."""
        store, name = await self.store(), layout.key(call)
        mine = KeyRecord(arguments_sha256)
        try:
            await store.put(name, self.wire.seal(mine, name), if_absent=True)
        except AlreadyExists:
            blob = await store.get(name)
            return self.wire.unseal(KeyRecord, blob.data, name) if blob else mine
        return mine

    async def mark_key_sent(self, call: str, arguments_sha256: str) -> None:
        """Note that the key's message is surely on the queue."""
        name = layout.key(call)
        await (await self.store()).put(name, self.wire.seal(KeyRecord(arguments_sha256, sent=True), name))

    # payloads

    async def publish(self, data: bytes) -> str:
        """Upload a function or module by value unless it is there; returns its SHA-256, by which messages name it."""
        sha256 = layout.sha256_of(data)
        try:
            await (await self.store()).put(layout.payload(sha256), data, if_absent=True)
        except AlreadyExists:
            return sha256
        return sha256

    async def payload_to(self, sha256: str, path: Path) -> None:
        """A payload, to a file; raises Malformed if it is missing or not what its name says."""
        store, name = await self.store(), layout.payload(sha256)
        try:
            size = (await store.head(name)).size
        except NotFound:
            size = 0
        async with self._streams:
            await spill.fetch_to(store, name, Spill(size, sha256), path)

    async def _spill(self, name: str, data: bytes | Path) -> Spill:
        """Write bytes whose reader will compare length and digest: so a blob that is there already does no harm."""
        found = await spill.digest(data)
        try:
            await (await self.store()).put(name, data, if_absent=True)
        except AlreadyExists:
            return found
        return found


async def _create(made: Queue | Store) -> None:
    """Make it, or, without the right to, see that it is there; without the right to that either, what is done next tells."""
    try:
        await made.create()
    except AccessDenied as exc:
        if exc.unknown:
            raise
        with suppress(AccessDenied):
            await made.check()


async def _delete_if_there(store: Store, name: str) -> None:
    try:
        await store.delete(name)
    except (NotFound, ConditionFailed):
        return
