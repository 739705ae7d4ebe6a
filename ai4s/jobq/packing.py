"""The two large things of a pack as bytes: its input, with the calls' arguments, and an entry of its log, with outcomes.

Both hold many small values side by side, so that a call costs no record of its own. An input is bound by the digest in its
pack's message; an entry begins with a sealed head that binds what follows. What is read was bound before, and is checked
all the same: damaged bytes are Malformed, never a wrong value.

Next: `batches.py`, which stores them.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from itertools import accumulate, pairwise, repeat
from typing import Any, NamedTuple

import msgpack

from . import layout
from .errors import Malformed
from .fields import from_map, to_map
from .message import EntryHead, Failure, Spill, State
from .ranges import from_text
from .wire import MAX_PACK_CALLS, Wire

SLICE_CALLS = 256
"""Calls whose arguments are encoded together, where nothing in them could be shared or fail alone."""

SLICE_BYTES = 16 * 1024
"""A slice travels whole to whoever runs a part of it."""

MAX_INPUT_BYTES = 1024 * 1024
"""A pack takes no further call once its input is as large as this."""

MAX_ITEM_BYTES = 256 * 1024
"""Arguments of one call above this lie in a blob of their own."""

MAX_SPILLED_BYTES = 2**50
"""A number that is larger is no size of anything."""

MAX_UNPACKED_INPUT_BYTES = 8 * MAX_INPUT_BYTES
"""Far above every honest input, harmless if it is a bomb."""

MAX_ENTRY_BYTES = 4 * 1024 * 1024
KEY_BYTES = 16
"""So much of a key's hash is remembered: that two of a billion keys share it has a chance of one in 10^20."""

_LENGTH = struct.Struct("<I")


class Layout(StrEnum):
    """How the arguments of a slice lie: each call's alone, or all in one list, of single arguments or of rows of several."""

    ALONE = "alone"
    SINGLE = "single"
    ROWS = "rows"


@dataclass(frozen=True, slots=True)
class Piece:
    """Arguments of some calls, in the calls' order, as a child gets them.

    In a list (`SINGLE`, `ROWS`), `places` says which ones of it; else `sizes` says how `data` is divided. Both are packed numbers.
    """

    layout: Layout
    data: bytes
    places: bytes = b""
    sizes: bytes = b""

    @property
    def count(self) -> int:
        """How many calls these are."""
        return len(self.places or self.sizes) // _LENGTH.size

    def items(self) -> Iterator[bytes]:
        """Each call's arguments, where they lie alone."""
        ends = [0, *accumulate(numbers(self.sizes))]
        return (self.data[start:stop] for start, stop in pairwise(ends))


def packed(values: Sequence[int]) -> bytes:
    """Numbers below 2^32 as bytes."""
    return struct.pack(f"<{len(values)}I", *values)


def numbers(data: bytes) -> tuple[int, ...]:
    """The numbers that `packed` made bytes of."""
    return struct.unpack(f"<{len(data) // _LENGTH.size}I", data)


@dataclass(frozen=True, slots=True)
class Slice:
    """Arguments of neighbouring calls; `sizes` where each lies alone."""

    layout: Layout
    count: int
    data: bytes
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PackInput:
    """The arguments of a pack's calls, by their place in it; `spilled` says which of them lie in blobs of their own."""

    slices: tuple[Slice, ...]
    keys: tuple[str, ...] = ()
    spilled: Mapping[int, Spill] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many calls there are."""
        return sum(each.count for each in self.slices)

    def to_bytes(self) -> bytes:
        """As it lies in its blob."""
        data = b"".join(each.data for each in self.slices)
        head = {
            "slices": [[str(each.layout), each.count, len(each.data)] for each in self.slices],
            "sizes": packed([size for each in self.slices for size in each.sizes]),
            "keys": list(self.keys),
            "spilled": [[place, spill.size, spill.sha256] for place, spill in self.spilled.items()],
        }
        # Level 1: half the bytes at a third of what encoding them has cost.
        packed_head = zlib.compress(msgpack.packb(head), 1)
        return _LENGTH.pack(len(packed_head)) + packed_head + zlib.compress(data, 1)

    def pieces(self, places: Sequence[int]) -> list[Piece]:
        """The arguments of the calls at these places, which are in order."""
        made, start, at = [], 0, 0
        for each in self.slices:
            stop, first = start + each.count, at
            while at < len(places) and places[at] < stop:
                at += 1
            if at > first:
                made.append(_piece(each, [place - start for place in places[first:at]]))
            start = stop
        return made


def _piece(whole: Slice, places: list[int]) -> Piece:
    if whole.layout is not Layout.ALONE:
        return Piece(whole.layout, whole.data, places=packed(places))
    starts = [0, *accumulate(whole.sizes)]
    data = b"".join(whole.data[starts[place] : starts[place + 1]] for place in places)
    return Piece(whole.layout, data, sizes=packed([whole.sizes[place] for place in places]))


def read_input(data: bytes, count: int) -> PackInput:
    """The input of a pack of `count` calls; raises Malformed."""
    try:
        head, at = _head(data)
        rest, sizes = memoryview(_inflated(data[at:])), iter(numbers(head["sizes"]))
        made, start = [], 0
        for layout, calls, size in head["slices"]:
            own = tuple(next(sizes) for _ in range(calls)) if layout == Layout.ALONE else ()
            if size < 0:
                raise ValueError("a slice of less than nothing")
            made.append(Slice(Layout(layout), calls, bytes(rest[start : start + size]), own))
            start += size
        spilled = {_within(place, count): _spill(size, sha256) for place, size, sha256 in head["spilled"]}
        found = PackInput(tuple(made), tuple(map(str, head["keys"])), spilled)
    except (ValueError, TypeError, LookupError, StopIteration, RuntimeError, struct.error, msgpack.UnpackException) as exc:
        raise Malformed(f"These {len(data)} bytes are no pack's input ({type(exc).__name__}).") from exc
    is_whole = start == len(rest) and all(each.count > 0 for each in made) and next(sizes, None) is None
    if found.count != count or not is_whole or any(sum(each.sizes) != len(each.data) for each in made if each.sizes):
        raise Malformed(f"The input holds {found.count} calls and not {count}, or its parts do not fit together.")
    return found


def _spill(size: int, sha256: str) -> Spill:
    layout.payload(sha256)
    return Spill(_within(size, MAX_SPILLED_BYTES), sha256)


def _within(number: int, bound: int) -> int:
    if not 0 <= number < bound:
        raise ValueError("a number out of bounds")
    return number


def head_bytes(data: bytes) -> int:
    """How long the first part of an input is, which holds the keys."""
    return _LENGTH.size + int(_LENGTH.unpack_from(data)[0])


def read_keys(beginning: bytes) -> tuple[str, ...]:
    """The keys, from the first part of an input or more; raises Malformed."""
    try:
        return tuple(map(str, _head(beginning)[0]["keys"]))
    except (ValueError, TypeError, KeyError, struct.error, msgpack.UnpackException) as exc:
        raise Malformed("This is no pack's input.") from exc


def key_digest(key: str) -> bytes:
    """What a producer remembers of a key, of which there may be millions."""
    return hashlib.sha256(key.encode()).digest()[:KEY_BYTES]


def _head(data: bytes) -> tuple[dict[str, Any], int]:
    stop = head_bytes(data)
    head = msgpack.unpackb(_inflated(data[_LENGTH.size : stop]))
    if sum(calls for _, calls, _ in head["slices"]) > MAX_PACK_CALLS:
        raise ValueError("more calls than a pack can have")
    return head, stop


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, MAX_UNPACKED_INPUT_BYTES)
    except zlib.error as exc:
        raise ValueError("damaged") from exc
    if inflater.unconsumed_tail or not inflater.eof:
        raise ValueError("too large, or cut off")
    return inflated


class Code(IntEnum):
    """What an outcome's data are: an encoded value, where one was spilled to, a failure, or nothing."""

    VALUE = 0
    SPILLED = 1
    FAILED = 2
    CANCELLED = 3
    EXPIRED = 4

    @property
    def state(self) -> State:
        """The state of a call that ended so."""
        return _STATES[self]


_STATES = (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED)


class Packed(NamedTuple):
    """How one of a pack's calls ended: its index (`at`), what its data are, how many attempts it took, seconds of the last one."""

    at: int
    code: int
    attempts: int
    seconds: float
    data: bytes

    @property
    def failure(self) -> Failure:
        """Why it failed; raises Malformed."""
        return from_map(Failure, _unpacked(self.data))

    @property
    def spilled(self) -> tuple[Spill, str]:
        """Where its value lies: the bytes, and the token in the blob's name; raises Malformed."""
        found = _unpacked(self.data)
        token = found.pop("token", "")
        return from_map(Spill, found), str(token)


def _unpacked(data: bytes) -> dict[str, object]:
    try:
        found = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as exc:
        raise Malformed("An outcome in a log entry is damaged.") from exc
    if not isinstance(found, dict):
        raise Malformed("An outcome in a log entry is damaged.")
    return found


def failure_type(data: bytes) -> str:
    """The type of what a failed call raised, or else how it ended; "" if that cannot be read. Thousands are asked."""
    try:
        found = _unpacked(data)
    except Malformed:
        return ""
    return str(found.get("type") or found.get("cause") or "")


def failed(index: int, attempts: int, seconds: float, failure: Failure) -> Packed:
    """The outcome of a call that failed for good."""
    return Packed(index, Code.FAILED, attempts, seconds, msgpack.packb(to_map(failure)))


def spilled(index: int, attempts: int, seconds: float, value: tuple[Spill, str]) -> Packed:
    """The outcome of a call whose value lies in a blob of its own, named by a token."""
    return Packed(index, Code.SPILLED, attempts, seconds, msgpack.packb({**to_map(value[0]), "token": value[1]}))


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a log, read and verified."""

    token: str
    worker: str
    ended: float
    gives: tuple[int, ...]
    outcomes: tuple[Packed, ...]

    @property
    def has_failures(self) -> bool:
        """Whether a call failed for good."""
        return any(outcome.code == Code.FAILED for outcome in self.outcomes)


_COLUMNS = "<{0}Q{0}I{0}f{0}B{0}H"
MAX_ATTEMPTS = 65535


def entry_bytes(wire: Wire, name: str, *, head: EntryHead, outcomes: Sequence[Packed]) -> bytes:
    """A log entry as it lies in its blob; `head` needs only what is not reckoned from the outcomes."""
    body = b"".join([outcome.data for outcome in outcomes])
    ats, codes, attempts, seconds, data = zip(*outcomes, strict=True) if outcomes else ((),) * len(Packed._fields)
    sizes, bounded = map(len, data), map(min, attempts, repeat(MAX_ATTEMPTS))
    columns = struct.pack(_COLUMNS.format(len(outcomes)), *ats, *sizes, *seconds, *codes, *bounded)
    bound = EntryHead(
        head.token,
        head.worker,
        head.ended,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        count=len(outcomes),
        columns=columns,
        gives=head.gives,
    )
    frame = wire.seal(bound, name)
    return b"".join((_LENGTH.pack(len(frame)), frame, body))


def read_entry(wire: Wire, name: str, data: bytes, within: range) -> Entry:
    """The entry in this blob, whose indices lie `within`; raises MessageError."""
    if len(data) < _LENGTH.size:
        raise Malformed(f"The blob {name!r} is no log entry.")
    stop = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    head, body = wire.unseal(EntryHead, data[_LENGTH.size : stop], name), data[stop:]
    if (len(body), hashlib.sha256(body).hexdigest()) != (head.size, head.sha256):
        raise Malformed(f"The values in {name!r} are not those that its head says.")
    try:
        outcomes = tuple(_outcomes(head, body))
    except (struct.error, ValueError) as exc:
        raise Malformed(f"The outcomes in {name!r} do not fit together.") from exc
    if any(outcome.at not in within for outcome in outcomes):
        raise Malformed(f"An outcome in {name!r} is of a call that is not in its pack.")
    gives = tuple(from_text(head.gives, within))
    if not {outcome.at for outcome in outcomes}.isdisjoint(gives):
        raise Malformed(f"A call has an outcome in {name!r}, and is given away there.")
    return Entry(head.token, head.worker, head.ended, gives, outcomes)


def _outcomes(head: EntryHead, body: bytes) -> Iterable[Packed]:
    n = head.count
    flat = struct.unpack(_COLUMNS.format(n), head.columns)
    indices, sizes, seconds, codes, attempts = (flat[column * n : (column + 1) * n] for column in range(5))
    if sum(sizes) != len(body) or max(codes, default=0) >= len(_STATES) or len(set(indices)) != n:
        raise ValueError("sizes, states or indices")
    ends = [0, *accumulate(sizes)]
    values = [body[start:stop] for start, stop in pairwise(ends)]
    return map(tuple.__new__, repeat(Packed), zip(indices, codes, attempts, seconds, values, strict=True))
