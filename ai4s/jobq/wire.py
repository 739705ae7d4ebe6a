"""Records to bytes and back: one frame for all that is stored, sealed for its purpose, verified before it is read.

A frame is `JQ`, a version, flags, a MAC if signed, and a msgpack map, compressed where that helps. The MAC is bound
to the app, the kind of record and its subject (a message's queue, an outcome's run), so that none can stand in for another.
Whatever the bytes are, unsealing ends in a record or in Malformed, SignatureInvalid or Unfit, having run no code
and allocated no more than the bounds below. A message's text is the frame in base64, which no queue can mangle.
The map leaves out defaults; names that this version does not know make a record Unfit, so that nothing is silently ignored.
`successors` and `trace` of a call are spoken for.

Next: `ledger.py`, which stores what is sealed here; for messages, `transports/base.py`.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import TypeVar

import msgpack

from . import layout, version3
from .errors import Malformed, MessageError, SignatureInvalid, Unfit
from .fields import from_map, to_map
from .message import (
    BatchMeta,
    BatchOrder,
    BatchTotal,
    Call,
    Checkpoint,
    Control,
    DeadLetter,
    EntryHead,
    KeyRecord,
    Outcome,
    PackHeader,
    RetryRecord,
    Spill,
)
from .ranges import from_text
from .signing import MAC_BYTES, Keyring
from .transports.base import Delivery

MAGIC = b"JQ"
VERSION = 1
COMPRESSED, SIGNED, PACK = 1, 2, 4
"""Flags. A message says by the last one that it holds a pack's header, since what it is must be known before it is verified."""

HEADER_BYTES = 4

MAX_MESSAGE_BYTES = 48 * 1024
"""A frame of this size is 64 KiB in base64: the most that an Azure queue takes."""

ROOM_BYTES = 1024
"""What a new message leaves free for the marks and counts of later attempts."""

MAX_INLINE_ARGUMENTS = 256 * 1024
"""Encoded arguments that may fit a message once compressed; larger ones are spilled without trying."""

MAX_INLINE_VALUE = 64 * 1024
"""Encoded values that stay within the outcome."""

MAX_UNPACKED_BYTES = 1024 * 1024
"""What a frame may grow to when decompressed: far above every honest record, harmless if it is a bomb."""

MAX_RECORD_BYTES = 2 * MAX_UNPACKED_BYTES
"""What is read of a record's blob at most: no honest one comes near it."""

MAX_CONTAINERS = 10_000
"""Lists and maps of a record: a pack's header may say of each of its calls what that has used up."""

MAX_PACK_CALLS = 4096
"""Calls of a pack: what fits one message's header, and one worker for a while."""

MAX_INDEX = 10**14
MAX_ENTRIES = 10**9
"""What names of entries, and texts of indices, have room for."""

WORTH_COMPRESSING_BYTES = 512

Record = TypeVar(
    "Record", Call, PackHeader, Outcome, DeadLetter, KeyRecord, RetryRecord, Control, BatchMeta, BatchTotal, BatchOrder, EntryHead
)
Named = DeadLetter | KeyRecord | RetryRecord | Control | BatchMeta | BatchTotal | BatchOrder | EntryHead
"""Records that are bound to the name of their blob."""

_KINDS: dict[type, str] = {
    Call: "call",
    Outcome: "outcome",
    DeadLetter: "dead letter",
    KeyRecord: "key",
    RetryRecord: "retry",
    Control: "control",
    PackHeader: "pack",
    BatchMeta: "batch",
    BatchTotal: "total",
    BatchOrder: "order",
    EntryHead: "entry",
}


@dataclass(frozen=True, slots=True)
class Wire:
    """Seals and unseals the records of one app with its keys."""

    app: str
    keyring: Keyring = Keyring()

    def seal_call(self, call: Call, *, room_bytes: int = 0) -> str | None:
        """The text of a call's message, or None if it leaves no such room: then its arguments must be spilled.

        Raises ValueError for a call that `unseal_call` would refuse.
        """
        fields = to_map(call)
        try:
            _check_names(from_map(Call, dict(fields)))
        except MessageError as exc:
            raise ValueError(f"No worker would take this call: {exc}") from exc
        if call.version3 is not None:
            return version3.seal(call)
        frame = self._seal("call", call.queue, fields)
        return None if len(frame) > MAX_MESSAGE_BYTES - room_bytes else base64.b64encode(frame).decode("ascii")

    def seal_pack(self, pack: PackHeader) -> str | None:
        """The text of a pack's message, or None if it does not fit into one."""
        frame = self._seal("pack", pack.queue, to_map(pack))
        return None if len(frame) > MAX_MESSAGE_BYTES else base64.b64encode(frame).decode("ascii")

    def unseal_delivery(self, delivery: Delivery, queue: str) -> Call | PackHeader:
        """As `unseal_message`, of what a queue has delivered: also what ai4s-jobq 3.x had sent, which says less of itself."""
        if not version3.is_version3(delivery.body):
            return self.unseal_message(delivery.body, queue)
        if self.keyring:
            raise SignatureInvalid("It is a message of ai4s-jobq 3.x, which nobody has signed, and this app has a signing key.")
        call = version3.unseal(delivery, app=self.app, queue=queue)
        _check_names(call)
        return call

    def unseal_message(self, text: str, queue: str) -> Call | PackHeader:
        """The call, or the header of a pack, in a message that came from `queue`."""
        frame = _decode_text(text)
        if _check_header(frame) & PACK:
            return self._unseal(PackHeader, queue, frame)
        return self._unseal(Call, queue, frame)

    def unseal_call(self, text: str, queue: str) -> Call:
        """The call in a message that came from `queue`; raises Malformed for a pack's."""
        return self._unseal(Call, queue, _decode_text(text))

    def seal_outcome(self, outcome: Outcome) -> bytes:
        """The bytes of an outcome's blob."""
        return self._seal("outcome", layout.run_id(outcome.call, outcome.run), to_map(outcome))

    def unseal_outcome(self, data: bytes, call: str, run: int) -> Outcome:
        """The outcome of this run of this call; raises Malformed if it speaks of another."""
        outcome = self._unseal(Outcome, layout.run_id(call, run), data)
        if (outcome.call, outcome.run) != (call, run):
            raise Malformed(f"The outcome of {layout.run_id(call, run)} speaks of another run.")
        layout.value(outcome.call, outcome.token)
        return outcome

    def seal(self, record: Named, name: str) -> bytes:
        """The bytes of a record that is bound to its blob's name."""
        return self._seal(_KINDS[type(record)], name, to_map(record))

    def unseal(self, record: type[Record], data: bytes, name: str) -> Record:
        """The record that lies under `name`."""
        return self._unseal(record, name, data)

    def _context(self, kind: str, subject: str) -> str:
        return "\0".join((kind, self.app, subject))

    def _seal(self, kind: str, subject: str, fields: dict[str, object]) -> bytes:
        body: bytes = msgpack.packb({"kind": kind, **fields})
        flags = (SIGNED if self.keyring else 0) | (PACK if kind == "pack" else 0)
        if len(body) > WORTH_COMPRESSING_BYTES and len(packed := zlib.compress(body, 1)) < 0.9 * len(body):
            body, flags = packed, flags | COMPRESSED
        header = MAGIC + bytes((VERSION, flags))
        mac = self.keyring.sign(self._context(kind, subject), header + body) if self.keyring else b""
        return header + mac + body

    def _unseal(self, record: type[Record], subject: str, frame: bytes) -> Record:
        kind = _KINDS[record]
        flags = _check_header(frame)
        body = self._verified(self._context(kind, subject), flags, frame)
        fields = _unpack(_decompress(body) if flags & COMPRESSED else body)
        if fields.pop("kind", None) != kind:
            raise Malformed(f"This is not the record of a {kind}.")
        made = from_map(record, fields)
        _check_record(made)
        return made

    def _verified(self, context: str, flags: int, frame: bytes) -> bytes:
        header, rest = frame[:HEADER_BYTES], frame[HEADER_BYTES:]
        mac, body = (rest[:MAC_BYTES], rest[MAC_BYTES:]) if flags & SIGNED else (b"", rest)
        if not self.keyring:
            if flags & SIGNED:
                raise Unfit("It is signed, and this process has no key: set JOBQ_SIGNING_KEYS.")
            return body
        if not flags & SIGNED:
            raise SignatureInvalid("It is not signed, and this app has a signing key.")
        if not self.keyring.verifies(context, header + body, mac):
            raise SignatureInvalid("Its signature is not by a key of this app, or not for this place.")
        return body


def _check_record(made: object) -> None:
    """Raise Malformed unless everything in a record that becomes part of a name has the form of one."""
    if isinstance(made, Call):
        _check_names(made)
        if made.version3 is not None:
            raise Malformed("It says that it came as a message of ai4s-jobq 3.x, and it did not.")
    elif isinstance(made, PackHeader):
        _check_pack(made)
    elif isinstance(made, BatchMeta):
        layout.check_owner(made.call.id)
        _check_parts(made.call)


def _check_pack(pack: PackHeader) -> None:
    layout.check_batch_id(pack.batch)
    layout.payload(pack.input.sha256)
    # Entries of other logs, or under other numbers, would not be seen by those who read the batch.
    if layout.check_log(pack.log).partition(".")[0] != layout.root_log(pack.pack) or pack.pos >= MAX_ENTRIES:
        raise Malformed(f"Entry {pack.pos} of the log {pack.log!r} is none of pack {pack.pack}.")
    if not 0 < pack.count <= MAX_PACK_CALLS or pack.first >= MAX_INDEX or pack.run < 1:
        raise Malformed(f"A pack holds 1 to {MAX_PACK_CALLS} calls from an index of 0 on, not {pack.count} from {pack.first} on.")
    for calls in (pack.todo, *(charged.calls for charged in pack.charged)):
        from_text(calls, pack.indices)
    for held in pack.checkpoints:
        from_text(str(held.index), pack.indices)
        _check_checkpoint(layout.packed_call_id(pack.batch, held.index), held.checkpoint)


def _check_checkpoint(call: str, checkpoint: Checkpoint) -> None:
    layout.checkpoint(call, checkpoint.token, checkpoint.number)


def _check_names(call: Call) -> None:
    layout.check_call_id(call.id)
    _check_parts(call)


def _check_parts(call: Call) -> None:
    for relative in (call.root, call.parent):
        if relative is not None and not layout.RELATIVE.fullmatch(relative):
            raise Malformed(f"{relative[:80]!r} is not the id of a call, or of a call in a batch.")
    if call.checkpoint is not None:
        _check_checkpoint(call.id, call.checkpoint)
    spilled = (call.arguments.sha256,) if isinstance(call.arguments, Spill) else ()
    functions = () if call.function is None else (call.function,)
    for sha256 in (*functions, *call.ship, *spilled):
        layout.payload(sha256)


def _decode_text(text: str) -> bytes:
    if not text:
        raise Malformed("The message is empty.")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise Malformed("The message is not base64.") from exc


def _check_header(frame: bytes) -> int:
    if frame[:2] != MAGIC or len(frame) <= HEADER_BYTES:
        raise Malformed("The bytes are not a record of ai4s.jobq.")
    version, flags = frame[2], frame[3]
    if version != VERSION or flags & ~(COMPRESSED | SIGNED | PACK):
        raise Unfit(f"It is of format version {version}, flags {flags}; this process knows version {VERSION}. Update ai4s-jobq.")
    return flags


def _decompress(body: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(body, MAX_UNPACKED_BYTES)
    except zlib.error as exc:
        raise Malformed("The compressed record is damaged.") from exc
    if inflater.unconsumed_tail:
        raise Malformed(f"The record would be larger than {MAX_UNPACKED_BYTES} bytes.")
    if not inflater.eof or inflater.unused_data:
        raise Malformed("The compressed record is cut off, or something follows it.")
    return data


def _unpack(data: bytes) -> dict[str, object]:
    limits = _Limits()
    try:
        fields = msgpack.unpackb(data, object_pairs_hook=limits.pairs, list_hook=limits.items)
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise Malformed(f"The record is not sound msgpack ({type(exc).__name__}).") from exc
    if not isinstance(fields, dict):
        raise Malformed("The record is not a map.")
    return fields


class _Limits:
    """Counts the containers of a record while it is unpacked: empty ones cost a byte there and a hundred here."""

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def items(self, items: list[object]) -> list[object]:
        self._left -= 1
        if self._left < 0:
            raise ValueError("more lists and maps than any record has")
        return items

    def pairs(self, pairs: list[tuple[object, object]]) -> dict[object, object]:
        self.items([])
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a name stands twice")
        return fields
