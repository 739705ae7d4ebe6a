"""A batch's records at an opened place: what its calls share, the inputs of its packs, their log, requests to cancel or retry.

It keeps the write-once rules: everything is put if absent, and a blob is there before what refers to it. It decides nothing; who
appends to a log, and when, is in `worker/pack_log.py`.

Next: producers, `maps/mapping.py`; workers, `worker/pack.py`; readers, `maps/frontier.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import layout, requests_made, spill
from .entry_notes import asked_again, encoded
from .errors import AlreadyExists, ConditionFailed, Malformed, NotFound, ResultGone
from .ledger import Ledger
from .message import BatchMeta, BatchOrder, BatchTotal, Call, Outcome, PackHeader, Spill
from .packing import (
    MAX_ENTRY_BYTES,
    MAX_UNPACKED_INPUT_BYTES,
    Code,
    Entry,
    Packed,
    PackInput,
    head_bytes,
    read_entry,
    read_input,
    read_keys,
)
from .parts import Parts
from .ranges import to_text
from .requests_made import account
from .transports.base import Blob, BlobInfo

MAX_ENTRY_BLOB_BYTES = 4 * MAX_ENTRY_BYTES
"""What is read of an entry's blob at most; a last outcome may lie above the bound of an entry."""


MOST_TASK_CHARS = 200
"""Of a task's name in a batch's metadata, which is for lists."""


@dataclass(frozen=True, slots=True)
class PackInfo:
    """What a listing tells of a pack: its number, the indices of its calls, what binds its input, how long the head of that is.

    The messages of all packs below `sent` were on the queue when it was put.
    """

    pack: int
    indices: range
    input: Spill
    head: int = 0
    sent: int = 0


def first_header(batch: str, info: PackInfo, call: Call) -> PackHeader:
    """The message of a pack of which all calls are still to be done; `call` is what they have in common."""
    return PackHeader(
        batch=batch,
        pack=info.pack,
        queue=call.queue,
        sent=call.sent,
        input=info.input,
        first=info.indices.start,
        count=len(info.indices),
        todo=to_text(info.indices),
        log=layout.root_log(info.pack),
        python=call.python,
    )


class BatchLedger:
    """The records of one batch."""

    def __init__(self, ledger: Ledger, batch: str) -> None:
        self.ledger, self.batch = ledger, layout.check_batch_id(batch)

    # what all calls share

    async def put_meta(self, meta: BatchMeta) -> bool:
        """Say what the calls of this batch have in common; False if somebody has said so before."""
        name = layout.batch_meta(self.batch)
        told = {"task": encoded(meta.call.task, MOST_TASK_CHARS), "queue": meta.call.queue}
        return await self._put_new(name, self.ledger.wire.seal(meta, name), told)

    async def meta(self) -> BatchMeta | None:
        """What the calls have in common; None if there is no such batch. Raises ResultGone for one that was removed."""
        name = layout.batch_meta(self.batch)
        blob = await self.ledger.record(name)
        if blob is None:
            return None
        if not blob.data:
            raise ResultGone(f"Batch {self.batch} was removed.", call_id=self.batch)
        return self.ledger.wire.unseal(BatchMeta, blob.data, name)

    async def total(self) -> BatchTotal | None:
        """How many calls were submitted for sure, if that was said."""
        found = await self.said_total()
        return found[0] if found else None

    async def said_total(self) -> tuple[BatchTotal, str] | None:
        """As `total`, with the blob's etag. Raises ResultGone once the batch's removal has begun."""
        found = await self._standing_total()
        return (found[0], found[1].etag) if found else None

    async def _standing_total(self) -> tuple[BatchTotal, BlobInfo] | None:
        name = layout.batch_total(self.batch)
        blob = await self.ledger.record(name)
        if blob is not None and not blob.data:
            raise ResultGone(f"Batch {self.batch} was removed.", call_id=self.batch)
        return (self.ledger.wire.unseal(BatchTotal, blob.data, name), blob.info) if blob else None

    async def say_total(self, total: BatchTotal) -> None:
        """Say how many calls there are. What was said before only grows; an end stays one unless there are more calls now.

        With it goes, for onlookers, what the storage was asked on the account that is bound here, and by earlier producers.
        """
        store, name, before = await self.ledger.store(), layout.batch_total(self.batch), dict[str, int]()
        while True:
            standing = await self._standing_total()
            if standing is not None:
                said, info = standing
                if (said.packs, said.ended) >= (total.packs, total.ended):
                    return
                before = requests_made.from_text(info.metadata.get("requests", ""))
            asked = Counter(before) + Counter(account().snapshot()) + Counter(blob_put=1)
            metadata = {"calls": str(total.calls), "requests": requests_made.to_text(asked)}
            condition: dict[str, Any] = {"if_absent": True} if standing is None else {"if_match": standing[1].etag}
            try:
                await store.put(name, self.ledger.wire.seal(total, name), metadata=metadata, **condition)
            except (AlreadyExists, ConditionFailed):
                continue
            return

    # packs

    async def put_input(self, pack: int, first: int, made: PackInput, *, sent: int = 0, token: str = "") -> PackInfo | None:
        """Put a pack's input; returns what a listing would tell, or None if there is somebody else's of that number.

        `token` says whose it is; all packs below `sent` have their messages.
        """
        data = made.to_bytes()
        bound = Spill(len(data), hashlib.sha256(data).hexdigest())
        metadata = {"first": str(first), "count": str(made.count), "sha256": bound.sha256, "head": str(head_bytes(data))}
        metadata |= {"sent": str(sent), "token": token}
        name = layout.pack_input(self.batch, pack)
        info = PackInfo(pack, range(first, first + made.count), bound, head_bytes(data), sent)
        store = await self.ledger.store()
        try:
            await store.put(name, data, metadata=metadata, if_absent=True)
        except AlreadyExists:
            standing = await store.head(name)
            is_mine = (standing.metadata.get("sha256"), standing.metadata.get("token", "")) == (bound.sha256, token)
            return info if is_mine else None
        return info

    async def input(self, header: PackHeader) -> PackInput:
        """A pack's input; raises Malformed if it is missing or not the one that its message says."""
        if header.input.size > MAX_UNPACKED_INPUT_BYTES:
            raise Malformed(f"A pack's input of {header.input.size} bytes is larger than one can be.")
        name = layout.pack_input(header.batch, header.pack)
        return read_input(await spill.fetch(await self.ledger.store(), name, header.input), header.count)

    async def keys(self, info: PackInfo) -> tuple[str, ...]:
        """The keys of a pack's calls, in their order; raises Malformed."""
        blob = await (await self.ledger.store()).get(layout.pack_input(self.batch, info.pack), start=0, length=info.head)
        return read_keys(blob.data if blob else b"")

    async def packs(self) -> AsyncIterator[PackInfo]:
        """The packs whose input is there, in their order."""
        store = await self.ledger.store()
        async for info in store.list(layout.pack_inputs(self.batch), with_metadata=True):
            match = layout.INPUT.fullmatch(info.name)
            try:
                first, count = int(info.metadata["first"]), int(info.metadata["count"])
            except (KeyError, ValueError) as exc:
                raise Malformed(f"The blob {info.name!r} does not say which calls it holds.") from exc
            if match:
                bound = Spill(info.size, info.metadata.get("sha256", ""))
                head, sent = (int(info.metadata.get(name, "0")) for name in ("head", "sent"))
                yield PackInfo(int(match["pack"]), range(first, first + count), bound, head, sent)

    async def send(self, header: PackHeader, delay_seconds: float = 0) -> None:
        """Put a pack's message."""
        await self.ledger.send_pack(header, delay_seconds)

    # the log

    async def put_entry(self, log: str, seq: int, data: bytes, metadata: Mapping[str, str]) -> bool:
        """Append an entry; False if there is one of that number."""
        return await self._put_new(layout.log_entry(self.batch, log, seq), data, metadata)

    async def entry(self, log: str, seq: int, within: range) -> Entry | None:
        """An entry of a log; None if it is not there. Raises MessageError."""
        name = layout.log_entry(self.batch, log, seq)
        try:
            blob = await (await self.ledger.store()).get(name, length=MAX_ENTRY_BLOB_BYTES)
        except NotFound:
            return None
        assert blob is not None
        return read_entry(self.ledger.wire, name, _whole(name, blob), within)

    # requests

    async def request_cancel(self) -> None:
        """Ask for the batch to be cancelled."""
        name = layout.batch_cancelled(self.batch)
        await self._put_new(name, self.ledger.wire.seal(BatchOrder(await self.ledger.transport.server_time()), name))

    async def put_arguments(self, arguments: Parts) -> Spill:
        """Put large arguments, of one call or those that all have in common."""
        found = await spill.digest(arguments)
        return await self.ledger.spilled_from(layout.batch_arguments(self.batch, found.sha256), arguments)

    async def is_cancelled(self) -> bool:
        """Whether somebody has asked for that. Raises MessageError for a record that is not this app's."""
        return await self._order(layout.batch_cancelled(self.batch)) is not None

    async def request_retry(self, number: int, order: BatchOrder) -> bool:
        """Ask for another run of what has failed; False if there is a request of that number."""
        name = layout.batch_retry(self.batch, number)
        return await self._put_new(name, self.ledger.wire.seal(order, name), asked_again(order))

    async def retry(self, number: int) -> BatchOrder | None:
        """The n-th request to run failures again, from 1 on."""
        return await self._order(layout.batch_retry(self.batch, number))

    async def retry_was_sent(self, number: int) -> bool:
        """Whether all messages of that retry were sent."""
        head = await (await self.ledger.store()).head(layout.batch_retry(self.batch, number))
        return head.metadata.get("sent") == "yes"

    async def note_retry_sent(self, number: int, order: BatchOrder) -> None:
        """Say that all messages of that retry were sent."""
        name = layout.batch_retry(self.batch, number)
        metadata = {"sent": "yes", **asked_again(order)}
        await (await self.ledger.store()).put(name, self.ledger.wire.seal(order, name), metadata=metadata)

    async def _order(self, name: str) -> BatchOrder | None:
        blob = await self.ledger.record(name)
        return self.ledger.wire.unseal(BatchOrder, blob.data, name) if blob else None

    # the dead letter

    async def bury(self, queue: str, run: int = 1) -> None:
        """Leave a dead letter for the whole batch, which says that its log holds failures of this run.

        One that was laid down comes back, unless a person has purged it since this run was asked for.
        """
        store, name = await self.ledger.store(), layout.batch_letter(queue, self.batch)
        condition: dict[str, Any] = {"if_absent": True}
        while True:
            try:
                await store.put(name, b"", metadata={"run": str(run)}, **condition)
            except (AlreadyExists, ConditionFailed):
                standing = await self.letter(queue)
                if standing is not None and _stands(standing, run):
                    return
                condition = {"if_match": standing.etag} if standing else {"if_absent": True}
            else:
                return

    async def letter(self, queue: str) -> BlobInfo | None:
        """The batch's dead letter, or its tombstone: one whose metadata tell its `fate`."""
        try:
            return await (await self.ledger.store()).head(layout.batch_letter(queue, self.batch))
        except NotFound:
            return None

    async def lay_down(self, letter: BlobInfo, fate: str, run: int) -> bool:
        """Put a tombstone in a dead letter's place, for failures up to this run; False if there were new ones since."""
        try:
            await (await self.ledger.store()).put(letter.name, b"", metadata={"fate": fate, "run": str(run)}, if_match=letter.etag)
        except (ConditionFailed, NotFound):
            return False
        return True

    async def _put_new(self, name: str, data: bytes, metadata: Mapping[str, str] | None = None) -> bool:
        try:
            await (await self.ledger.store()).put(name, data, metadata=metadata or {}, if_absent=True)
        except AlreadyExists:
            return False
        return True


def _stands(letter: BlobInfo, run: int) -> bool:
    """Whether a dead letter of a batch tells of failures of this run already, or is to tell of none."""
    # One that was retried always comes back: calls of an earlier run may have failed since. Who looks at it sees what is so.
    told = letter.metadata.get("run", "1")
    return letter.metadata.get("fate") != "retried" and told.isdecimal() and int(told) >= run


def _whole(name: str, blob: Blob) -> bytes:
    if blob.info.size > len(blob.data):
        raise Malformed(f"The blob {name!r} is larger than a log entry can be.")
    return blob.data


def outcome_of(meta: BatchMeta, batch: str, entry: Entry, found: Packed, *, run: int = 1) -> Outcome:
    """The outcome of a batch's call as the record that a single call has."""
    value: bytes | Spill | None = None
    token, failure = entry.token, None
    match Code(found.code):
        case Code.VALUE:
            value = found.data
        case Code.SPILLED:
            value, token = found.spilled
        case Code.FAILED:
            failure = found.failure
    return Outcome(
        call=layout.packed_call_id(batch, found.at),
        run=run,
        state=Code(found.code).state,
        token=token,
        task=meta.call.task,
        queue=meta.call.queue,
        codec=meta.call.codec,
        value=value,
        failure=failure,
        attempts=found.attempts,
        worker=entry.worker,
        started=max(0.0, entry.ended - found.seconds) if found.attempts else None,
        ended=entry.ended,
        tail=failure.tail if failure else "",
    )
