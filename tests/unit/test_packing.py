"""A pack's input and the entries of its log as bytes, honest, damaged and forged."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai4s.jobq.errors import Malformed, MessageError, SignatureInvalid
from ai4s.jobq.layout import sha256_of
from ai4s.jobq.message import Cause, EntryHead, Failure, Spill
from ai4s.jobq.packing import (
    MAX_UNPACKED_INPUT_BYTES,
    Code,
    Layout,
    Packed,
    PackInput,
    Slice,
    entry_bytes,
    failed,
    head_bytes,
    numbers,
    read_entry,
    read_input,
    read_keys,
    spilled,
)
from ai4s.jobq.signing import Keyring
from ai4s.jobq.wire import Wire

NAME = "batches/b/log/000000/000000"
INDICES = range(100, 108)
WIRE, SIGNED = Wire("myproj"), Wire("myproj", Keyring(("k" * 32,)))
DIGEST = sha256_of(b"")

# Inputs.

INPUT = PackInput(
    (Slice(Layout.SINGLE, 3, b"abc"), Slice(Layout.ALONE, 2, b"defg", (1, 3)), Slice(Layout.ROWS, 1, b"h")),
    tuple("uvwxyz"),
    {4: Spill(10, DIGEST)},
)


def test_an_input_comes_back_as_it_was() -> None:
    """Slices, keys and spilled arguments; the keys also from the first part alone."""
    data = INPUT.to_bytes()
    assert read_input(data, 6) == INPUT
    assert read_keys(data[: head_bytes(data)]) == INPUT.keys


@given(st.sets(st.integers(0, 5), min_size=1))
def test_pieces_hold_what_was_asked_for(places: set[int]) -> None:
    """Any places, in order: each call has its own arguments."""
    pieces = INPUT.pieces(sorted(places))
    assert sum(piece.count for piece in pieces) == len(places)
    for piece in pieces:
        if piece.layout is Layout.ALONE:
            assert list(piece.items()) == [b"d" if place == 3 else b"efg" for place in sorted(places & {3, 4})]
        else:
            start = {Layout.SINGLE: 0, Layout.ROWS: 5}[piece.layout]
            assert {start + place for place in numbers(piece.places)} <= places


def forged(**changes: Any) -> bytes:
    """An input's bytes whose head says something else."""
    data = INPUT.to_bytes()
    stop = head_bytes(data)
    head = {**msgpack.unpackb(zlib.decompress(data[4:stop])), **changes}
    packed = zlib.compress(msgpack.packb(head))
    return struct.pack("<I", len(packed)) + packed + data[stop:]


def numbers_of(*values: int) -> bytes:
    """Numbers as the head holds them."""
    return struct.pack(f"<{len(values)}I", *values)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        struct.pack("<I", 2**32 - 1),
        b"garbage" * 9,
        INPUT.to_bytes()[:-1],
        INPUT.to_bytes()[:10] + b"x" + INPUT.to_bytes()[11:],
        forged(slices=[["single", -3, 3], ["single", 9, 5]]),
        forged(slices=[["single", 6, -8]]),
        forged(slices=[["single", 6, 10**18]]),
        forged(slices=[["single", 10**12, 8]]),
        forged(slices=[["alone", 6, 8]]),
        forged(slices=[["nothing", 6, 8]]),
        forged(slices=[["single", "6", 8]]),
        forged(slices=[[]]),
        forged(slices=7),
        forged(sizes=numbers_of(1, 3, 7)),
        forged(sizes=numbers_of(2**32 - 1, 3)),
        forged(sizes=b"123"),
        forged(sizes=None),
        forged(keys=7),
        forged(spilled=[[6, 10, DIGEST]]),
        forged(spilled=[[-1, 10, DIGEST]]),
        forged(spilled=[[0, -1, DIGEST]]),
        forged(spilled=[[0, 10, "../../other"]]),
        forged(spilled=[[0, 10, 7]]),
        forged(spilled=[0]),
        INPUT.to_bytes()[: head_bytes(INPUT.to_bytes())] + zlib.compress(bytes(MAX_UNPACKED_INPUT_BYTES + 1)),
        struct.pack("<I", 9000) + zlib.compress(bytes(MAX_UNPACKED_INPUT_BYTES + 1))[:9000],
    ],
)
def test_a_damaged_or_forged_input_is_refused(data: bytes) -> None:
    """Whatever the bytes are: a clear end, and nothing large is made of them."""
    with pytest.raises(Malformed):
        read_input(data, 6)


def test_an_input_of_another_count_is_refused() -> None:
    """The message says how many calls there are."""
    with pytest.raises(Malformed):
        read_input(INPUT.to_bytes(), 5)


# Entries.

FAILURE = Failure(Cause.RAISED, "ValueError", "no")
OUTCOMES = (
    Packed(100, Code.VALUE, 1, 0.5, b"value"),
    failed(101, 2, 1.0, FAILURE),
    spilled(102, 1, 2.0, (Spill(10, DIGEST), "token")),
    Packed(103, Code.CANCELLED, 0, 0.0, b""),
)
HEAD = EntryHead("token", "worker", 5.0, 0, "", gives="104-105")


@pytest.mark.parametrize("wire", [WIRE, SIGNED])
def test_an_entry_comes_back_as_it_was(wire: Wire) -> None:
    """Outcomes of every kind, and what was given away."""
    entry = read_entry(wire, NAME, entry_bytes(wire, NAME, head=HEAD, outcomes=OUTCOMES), INDICES)
    assert entry.outcomes == OUTCOMES
    assert entry.gives == (104, 105)
    assert entry.has_failures
    assert entry.outcomes[1].failure == FAILURE
    assert entry.outcomes[2].spilled == (Spill(10, DIGEST), "token")


def entry(*outcomes: Packed, gives: str = "") -> bytes:
    """An entry that is sealed as it should be, whatever it says."""
    return entry_bytes(WIRE, NAME, head=replace(HEAD, gives=gives), outcomes=outcomes)


def tampered(change: Callable[[EntryHead], EntryHead]) -> bytes:
    """An entry whose head was changed and sealed again."""
    data = entry(*OUTCOMES)
    stop = 4 + struct.unpack_from("<I", data)[0]
    frame = WIRE.seal(change(WIRE.unseal(EntryHead, data[4:stop], NAME)), NAME)
    return struct.pack("<I", len(frame)) + frame + data[stop:]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        b"garbage" * 9,
        struct.pack("<I", 2**32 - 1) + b"x",
        entry(*OUTCOMES)[:-1],
        entry(*OUTCOMES) + b"x",
        entry(Packed(99, 0, 1, 0.0, b"")),
        entry(Packed(108, 0, 1, 0.0, b"")),
        entry(Packed(2**63, 0, 1, 0.0, b"")),
        entry(Packed(100, 0, 1, 0.0, b"a"), Packed(100, 0, 1, 0.0, b"b")),
        entry(Packed(100, 5, 1, 0.0, b"")),
        entry(gives="99"),
        entry(gives="100-999999999999"),
        entry(gives="x"),
        entry(Packed(100, 0, 1, 0.0, b""), gives="100-101"),
        tampered(lambda head: replace(head, count=-1)),
        tampered(lambda head: replace(head, count=0)),
        tampered(lambda head: replace(head, count=10**9)),
        tampered(lambda head: replace(head, count=2**63)),
        tampered(lambda head: replace(head, columns=b"")),
        tampered(lambda head: replace(head, size=10**18)),
        tampered(lambda head: replace(head, sha256="0" * 64)),
    ],
)
def test_a_damaged_or_forged_entry_is_refused(data: bytes) -> None:
    """An index outside, twice, or ended and given away; sizes that do not fit; and garbage: a clear end."""
    with pytest.raises(Malformed):
        read_entry(WIRE, NAME, data, INDICES)


def test_an_entry_without_the_app_s_signature_is_refused() -> None:
    """Unsigned, signed with another key, or moved from another place."""
    other = Wire("myproj", Keyring(("o" * 32,)))
    elsewhere = NAME[:-1] + "1"
    for data in (
        entry(*OUTCOMES),
        entry_bytes(other, NAME, head=HEAD, outcomes=OUTCOMES),
        entry_bytes(SIGNED, elsewhere, head=HEAD, outcomes=OUTCOMES),
    ):
        with pytest.raises(SignatureInvalid):
            read_entry(SIGNED, NAME, data, INDICES)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_flipped_and_inserted_bytes_never_give_another_entry(noise: bytes, at: int) -> None:
    """Signed: what is not byte for byte what was written is refused."""
    data = entry_bytes(SIGNED, NAME, head=HEAD, outcomes=OUTCOMES)
    spoilt = data[:at] + noise + data[at + len(noise) :]
    if spoilt != data:
        with pytest.raises(MessageError):
            read_entry(SIGNED, NAME, spoilt, INDICES)
