"""Records survive their way to bytes and back; whatever else lies in storage is refused, by name, cheaply, and without running it.

The corpus stands for everyone with a right to write to the place. A refusal is Malformed, SignatureInvalid or Unfit, nothing else.
"""

from __future__ import annotations

import base64
import math
import os
import pickle
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq import layout, version3
from ai4s.jobq.errors import Malformed, MessageError, SignatureInvalid, Unfit
from ai4s.jobq.message import Backoff, Call, Cause, DeadLetter, Failure, KeyRecord, Outcome, Pool, Spill, State
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.base import MAX_BODY_BYTES
from ai4s.jobq.wire import MAX_UNPACKED_BYTES, ROOM_BYTES, Wire

T = TypeVar("T")
SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
REFUSALS = {Malformed, SignatureInvalid, Unfit}
MIB = 1024 * 1024

OLD_KEY, NEW_KEY, WRONG_KEY = "old-key-of-16-and-more", "new-key-of-16-and-more", "wrong-key-of-16-and-more"
OPEN = Wire("proj")
SIGNED = Wire("proj", Keyring((NEW_KEY,)))

CLIENT = "abcdefgh234567ab"
CALL = Call(id=layout.call_id(CLIENT, 7), task="proj.square", queue="default", arguments=b"\x92\x91\x03\x80", sent=1_700_000_000.0)
OUTCOME = Outcome(call=CALL.id, run=1, state=State.SUCCEEDED, token="0123456789abcdef", value=b"\x09")
DIGEST = "0" * 64

# Making records.

texts = st.text(max_size=40)
counts = st.integers(0, 2**53)
moments = st.floats(0, 2**53)
call_ids = st.one_of(
    st.builds(layout.call_id, st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16), st.integers(0, 10**12 - 1)),
    st.builds(layout.keyed_call_id, st.text("0123456789abcdef", min_size=64, max_size=64)),
    st.builds(version3.message_call_id, st.text(max_size=20)),
)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
spills = st.builds(Spill, size=counts, sha256=digests)
calls = st.builds(
    Call,
    id=call_ids,
    task=texts,
    queue=texts,
    arguments=st.one_of(st.binary(max_size=2000), spills),
    sent=moments,
    run=counts,
    codec=texts,
    pool=st.sampled_from(Pool),
    function=st.none() | digests,
    ship=st.lists(digests, max_size=3).map(tuple),
    python=st.none() | texts,
    retries=counts,
    backoff=st.builds(Backoff, first=moments, factor=moments, longest=moments),
    max_deaths=counts,
    timeout_seconds=st.none() | moments,
    eta=st.none() | moments,
    expires=st.none() | moments,
    root=st.none() | call_ids,
    parent=st.none() | call_ids,
    resent=st.booleans(),
    errors=counts,
    deaths=counts,
    preemptions=counts,
    mark=st.none() | texts,
    alone=st.booleans(),
)
failures = st.builds(
    Failure, cause=st.sampled_from(Cause), type=texts, message=texts, traceback=texts, exception=st.none() | st.binary(max_size=100)
)
outcomes = st.builds(
    Outcome,
    call=call_ids,
    run=counts,
    state=st.sampled_from(State),
    token=st.text("0123456789abcdef", min_size=16, max_size=16),
    task=texts,
    queue=texts,
    codec=texts,
    value=st.one_of(st.none(), st.binary(max_size=2000), spills),
    failure=st.none() | failures,
    attempts=counts,
    worker=texts,
    started=st.none() | moments,
    ended=st.none() | moments,
)
letters = st.builds(DeadLetter, reason=texts, outcome=st.none() | outcomes, call=st.none() | calls, raw=texts)
key_records = st.builds(KeyRecord, arguments=digests, sent=st.booleans())
wires = st.sampled_from([OPEN, SIGNED])


def sealed(wire: Wire, call: Call) -> str:
    """The text of a call that is known to fit."""
    text = wire.seal_call(call)
    assert text is not None
    return text


def frame(body: object, *, version: int = 1, flags: int = 0) -> bytes:
    """A frame as anybody can make one; `body` is a map to be packed, or bytes."""
    return b"JQ" + bytes((version, flags)) + (body if isinstance(body, bytes) else msgpack.packb(body))


def text_of(data: bytes) -> str:
    """A message's text."""
    return base64.b64encode(data).decode()


def call_map(**changes: object) -> dict[str, object]:
    """A sound call as a map, with changes; `...` leaves a field out."""
    made: dict[str, object] = {
        "kind": "call",
        "id": CALL.id,
        "task": CALL.task,
        "queue": CALL.queue,
        "arguments": CALL.arguments,
        "sent": CALL.sent,
        **changes,
    }
    return {name: value for name, value in made.items() if value is not ...}


def refusal(unseal: Callable[[], object]) -> MessageError:
    """The error of something that must be refused: one of the three, and no class of their own."""
    with pytest.raises(MessageError) as caught:
        unseal()
    assert type(caught.value) in REFUSALS
    return caught.value


def unless_refused(unseal: Callable[[], T]) -> T | None:
    """The record, or None if it was refused by one of the three."""
    try:
        return unseal()
    except (Malformed, SignatureInvalid, Unfit):
        return None


def memory_of(work: Callable[[], object]) -> int:
    """The most bytes that Python held at a time for this."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def deflated_zeros(size: int) -> bytes:
    """So many zeros, compressed as tightly as can be, made without holding them."""
    deflater, block = zlib.compressobj(9), bytes(MIB)
    return b"".join(deflater.compress(block) for _ in range(size // MIB)) + deflater.flush()


# Round trips.


@SAME_EACH_TIME
@given(wires, calls)
def test_a_call_comes_back_as_it_was(wire: Wire, call: Call) -> None:
    """Every field of a call survives its message, signed or not."""
    assert wire.unseal_call(sealed(wire, call), call.queue) == call


@SAME_EACH_TIME
@given(wires, outcomes)
def test_an_outcome_comes_back_as_it_was(wire: Wire, outcome: Outcome) -> None:
    """Every field of an outcome survives its blob."""
    assert wire.unseal_outcome(wire.seal_outcome(outcome), outcome.call, outcome.run) == outcome


@SAME_EACH_TIME
@given(wires, letters | key_records)
def test_dead_letters_and_keys_come_back_as_they_were(wire: Wire, record: DeadLetter | KeyRecord) -> None:
    """Records that are bound to a blob's name survive it."""
    assert wire.unseal(type(record), wire.seal(record, "some/name"), "some/name") == record


def test_defaults_cost_nothing() -> None:
    """A plain call's message holds the five fields that have no default, and no more."""
    body = base64.b64decode(sealed(OPEN, CALL))[4:]
    assert set(msgpack.unpackb(body)) == {"kind", "id", "task", "queue", "arguments", "sent"}


def test_long_repetitive_arguments_travel_compressed() -> None:
    """What compresses well stays in the message, though it is larger than a queue takes."""
    call = replace(CALL, arguments=b"abc" * 80_000)
    text = sealed(SIGNED, call)
    assert len(text) < 4_000
    assert SIGNED.unseal_call(text, "default") == call


# Size.

LATER = {
    "mark": "f" * 16,
    "errors": 2**20,
    "deaths": 2**20,
    "preemptions": 5,
    "resent": True,
    "eta": 1_800_000_000.123,
    "run": 99,
    "alone": True,
}


def largest_that_fits(wire: Wire, call: Call) -> Call:
    """The call with as many incompressible bytes of arguments as its message takes when it is sent, with room for later."""
    noise, fits, too_many = os.urandom(60_000), 40_000, 60_000
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if wire.seal_call(replace(call, arguments=noise[:middle]), room_bytes=ROOM_BYTES) is None:
            too_many = middle
        else:
            fits = middle
    return replace(call, arguments=noise[:fits])


@pytest.mark.parametrize("wire", [OPEN, SIGNED], ids=["unsigned", "signed"])
def test_a_message_never_exceeds_what_a_queue_takes(wire: Wire) -> None:
    """The largest call that is sealed, with room or without, fits a queue's 64 KiB and uses most of them."""
    noise = os.urandom(60_000)
    for room_bytes in (0, ROOM_BYTES):
        texts = [wire.seal_call(replace(CALL, arguments=noise[:n]), room_bytes=room_bytes) for n in range(46_000, 60_000, 100)]
        longest = max(len(text) for text in texts if text is not None)
        assert 0.96 * MAX_BODY_BYTES < longest <= MAX_BODY_BYTES
        assert texts[-1] is None


@pytest.mark.parametrize("wire", [OPEN, SIGNED], ids=["unsigned", "signed"])
def test_a_full_message_has_room_for_what_comes_later(wire: Wire) -> None:
    """A call that was sealed at the limit still fits when marks and counts of later attempts are added."""
    later = replace(largest_that_fits(wire, CALL), **LATER)  # type: ignore[arg-type]  # as in LATER
    text = wire.seal_call(later)
    assert text is not None
    assert len(text) <= MAX_BODY_BYTES


@pytest.mark.parametrize("later", [2**53, 0], ids=["counts at their bounds", "nothing"])
def test_spilled_arguments_leave_a_small_message(later: int) -> None:
    """A call whose arguments lie elsewhere is a few hundred bytes, whatever happened to it."""
    call = replace(CALL, arguments=Spill(2**40, DIGEST), errors=later, deaths=later, mark="f" * 16)
    assert len(sealed(SIGNED, call)) < 1_000


# What would not come back is not sent.


@pytest.mark.parametrize(
    "changes",
    [
        {"retries": 2**63 - 1},
        {"retries": 10**20},
        {"max_deaths": 2**53 + 1},
        {"expires": -1.0},
        {"eta": 1e300},
        {"timeout_seconds": math.inf},
        {"timeout_seconds": math.nan},
        {"backoff": Backoff(1.0, 2.0, 1e18)},
        {"task": "lone \ud800"},
    ],
    ids=str,
)
def test_what_cannot_be_unsealed_is_not_sealed(changes: dict[str, Any]) -> None:
    """A record that every reader would refuse is refused where it is made, while somebody can still be told."""
    with pytest.raises(ValueError):  # noqa: PT011  # any kind of it: the point is that nothing is sent
        OPEN.seal_call(replace(CALL, **changes))


# Keys.


def test_the_newest_key_signs_and_every_key_verifies() -> None:
    """While keys are rotated, what the old key signed is still read, and the new one signs."""
    before, during, after = (Wire("proj", Keyring(keys)) for keys in [(OLD_KEY,), (NEW_KEY, OLD_KEY), (NEW_KEY,)])
    assert during.unseal_call(sealed(before, CALL), "default") == CALL
    assert after.unseal_call(sealed(during, CALL), "default") == CALL
    assert isinstance(refusal(lambda: before.unseal_call(sealed(during, CALL), "default")), SignatureInvalid)
    assert isinstance(refusal(lambda: after.unseal_call(sealed(before, CALL), "default")), SignatureInvalid)


def test_a_signed_message_is_set_aside_where_there_is_no_key() -> None:
    """A process without keys neither trusts nor condemns what is signed: others can read it."""
    assert isinstance(refusal(lambda: OPEN.unseal_call(sealed(SIGNED, CALL), "default")), Unfit)


def other_place(wire: Wire) -> dict[str, Callable[[], object]]:
    """Soundly signed bytes, each in a place that they were not signed for."""
    other_call = replace(CALL, id=layout.call_id(CLIENT, 8))
    other_mac = base64.b64decode(sealed(wire, CALL))[4:36]
    ours, theirs = base64.b64decode(sealed(wire, CALL)), base64.b64decode(sealed(wire, other_call))
    outcome = wire.seal_outcome(OUTCOME)
    key = wire.seal(KeyRecord(DIGEST), "keys/a")
    return {
        "another queue": lambda: wire.unseal_call(sealed(wire, CALL), "gpu"),
        "another app": lambda: Wire("other", wire.keyring).unseal_call(sealed(wire, CALL), "default"),
        "another call's body": lambda: wire.unseal_call(text_of(ours[:4] + other_mac + theirs[36:]), "default"),
        "another call's signature": lambda: wire.unseal_call(text_of(ours[:4] + theirs[4:36] + ours[36:]), "default"),
        "an outcome as a message": lambda: wire.unseal_call(text_of(outcome), "default"),
        "a message as an outcome": lambda: wire.unseal_outcome(ours, CALL.id, 1),
        "another run's outcome": lambda: wire.unseal_outcome(outcome, CALL.id, 2),
        "another call's outcome": lambda: wire.unseal_outcome(outcome, other_call.id, 1),
        "another key's record": lambda: wire.unseal(KeyRecord, key, "keys/b"),
        "a key's record as a dead letter": lambda: wire.unseal(DeadLetter, key, "keys/a"),
        "a queue whose name goes on as the body does": lambda: wire.unseal_call(sealed(wire, CALL), "default\0x"),
    }


@pytest.mark.parametrize("where", other_place(SIGNED))
def test_a_signature_holds_only_where_it_was_made_for(where: str) -> None:
    """What was signed for one place, record or subject is refused at any other."""
    assert isinstance(refusal(other_place(SIGNED)[where]), SignatureInvalid)


@pytest.mark.parametrize(
    "where", ["another run's outcome", "another call's outcome", "an outcome as a message", "a message as an outcome"]
)
def test_unsigned_records_say_what_they_are(where: str) -> None:
    """Without a key, a record that speaks of something else is at least damaged."""
    assert isinstance(refusal(other_place(OPEN)[where]), Malformed)


def test_every_flipped_bit_of_a_signed_message_is_noticed() -> None:
    """No single bit of a signed frame can change unnoticed."""
    whole = base64.b64decode(sealed(SIGNED, CALL))
    for position in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        refusal(lambda damaged=damaged: SIGNED.unseal_call(text_of(bytes(damaged)), "default"))  # type: ignore[misc]


@SAME_EACH_TIME
@given(st.integers(0, 300), st.binary(max_size=40))
def test_a_signed_message_that_was_cut_or_spliced_is_noticed(at: int, junk: bytes) -> None:
    """Cutting a signed frame anywhere and putting anything in its place ends in a refusal."""
    whole = base64.b64decode(sealed(SIGNED, CALL))
    damaged = whole[:at] + junk
    if damaged != whole:
        refusal(lambda: SIGNED.unseal_call(text_of(damaged), "default"))


@pytest.mark.parametrize("keys", [(), (WRONG_KEY,)], ids=["unsigned", "wrong key"])
def test_what_is_not_ours_is_not_even_decoded(keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a key is configured, nothing is decompressed or unpacked before its signature was verified."""
    text = sealed(Wire("proj", Keyring(keys)), replace(CALL, arguments=bytes(5_000)))

    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("zlib.decompressobj", decoded)
    monkeypatch.setattr("msgpack.unpackb", decoded)
    assert isinstance(refusal(lambda: SIGNED.unseal_call(text, "default")), SignatureInvalid)


# Later versions.

LATER_VERSIONS = {
    "a later version": frame(call_map(), version=2),
    "version 0": frame(call_map(), version=0),
    "an unknown flag": frame(call_map(), flags=8),
    "all flags": frame(call_map(), flags=0xFF),
    "an unknown field": frame(call_map(successors=["x"])),
    "a field that is spoken for": frame(call_map(checkpoint={"name": "x"})),
    "an unknown field of the backoff": frame(call_map(backoff={"curve": "cubic"})),
    "an unknown field of spilled arguments": frame(call_map(arguments={"size": 1, "sha256": DIGEST, "cipher": "x"})),
}


@pytest.mark.parametrize("name", LATER_VERSIONS)
def test_what_a_later_version_wrote_is_unfit_and_not_malformed(name: str) -> None:
    """A message that a newer worker can read is put aside, not buried."""
    assert isinstance(refusal(lambda: OPEN.unseal_call(text_of(LATER_VERSIONS[name]), "default")), Unfit)


def test_an_unknown_codec_is_left_to_whoever_decodes() -> None:
    """A codec is a name to the wire: a worker without it puts the call aside (Unfit, by `codec_of`) instead of losing its id."""
    call = replace(CALL, codec="zstd-pickle")
    assert OPEN.unseal_call(sealed(OPEN, call), "default") == call


def test_a_message_dated_tomorrow_is_a_sound_one() -> None:
    """Dates are compared with the server's clock at admission, where a future `eta` delays the call; here they are numbers."""
    tomorrow = replace(CALL, sent=CALL.sent + 86_400, eta=CALL.sent + 90_000)
    assert OPEN.unseal_call(sealed(OPEN, tomorrow), "default") == tomorrow


# Hostile messages.


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def nested(opening: bytes, closing: bytes = b"\xc0") -> bytes:
    """Containers in containers, 10,000 deep."""
    return opening * 10_000 + closing


SOUND_BODY = msgpack.packb(call_map())
EXT = msgpack.ExtType(5, b"\x00\x01")
WHEN = msgpack.Timestamp(1, 5)

TEXTS = {
    "empty": "",
    "a space": " ",
    "not base64": "!!!!",
    "base64 with a line break": "SlEB\nAA==",
    "base64 without its padding": "SlEBAA",
    "base64 of the wrong alphabet": "-_-_",
    "not ASCII": "Jü==",
    "a control character": "\x00",
    "terminal escapes": "\x1b]0;gone\x07",
    "plain JSON of another program": '{"version": 1}',
    "a lone surrogate": "\ud800",
    "64 KiB of nothing": "A" * MAX_BODY_BYTES,
    "a megabyte of the letter A": "A" * MIB,
}
FRAMES = {
    "nothing but our magic": b"JQ",
    "a header without a body": b"JQ\x01\x00",
    "another magic": b"PK\x01\x00" + SOUND_BODY,
    "random bytes": bytes(range(256)),
    "a pickle": pickle.dumps({"kind": "call"}),
    "compressed, and is not": frame(SOUND_BODY, flags=1),
    "compressed, and cut off": frame(zlib.compress(SOUND_BODY)[:-3], flags=1),
    "compressed, and followed by more": frame(zlib.compress(SOUND_BODY) + b"x", flags=1),
    "compressed twice": frame(zlib.compress(zlib.compress(SOUND_BODY)), flags=1),
    "a signature too short": frame(b"x", flags=2),
    "flagged as signed, and is not": frame(SOUND_BODY, flags=2),
    "cut-off msgpack": frame(SOUND_BODY[:-4]),
    "msgpack with something behind it": frame(SOUND_BODY + b"\xc0"),
    "msgpack's reserved byte": frame(b"\xc1"),
    "a list": frame([1, 2]),
    "a number": frame(b"\x07"),
    "an empty map": frame({}),
    "no kind": frame(call_map(kind=...)),
    "another kind": frame(call_map(kind="outcome")),
    "the kind to come": frame(call_map(kind="pack")),
    "a kind that cannot be hashed": frame(call_map(kind=[])),
    "a name that stands twice": frame(
        bytes([SOUND_BODY[0] + 1]) + SOUND_BODY[1:] + msgpack.packb("task") + msgpack.packb("os.system")
    ),
    "a name inside that stands twice": frame(
        bytes([SOUND_BODY[0] + 1])
        + SOUND_BODY[1:]
        + msgpack.packb("backoff")
        + b"\x82"
        + 2 * (msgpack.packb("first") + msgpack.packb(1.0))
    ),
    "a name that is a number": frame(b"\x81\x01\x01"),
    "a name that is a list": frame(b"\x81\x90\x01"),
    "a name that is bytes": frame({b"kind": "call"}),
    "nested lists": frame(nested(b"\x91")),
    "nested maps": frame(nested(b"\x81\xa1x")),
    "nested in a field": frame(bytes([SOUND_BODY[0] + 1]) + SOUND_BODY[1:] + msgpack.packb("ship") + nested(b"\x91")),
    "an array of four billion": frame(b"\xdd\xff\xff\xff\xff"),
    "a map of four billion": frame(b"\xdf\xff\xff\xff\xff"),
    "a text of four billion bytes": frame(b"\xdb\xff\xff\xff\xff"),
    "bytes of four billion bytes": frame(b"\xc6\xff\xff\xff\xff"),
    "an extension of four billion bytes": frame(b"\xc9\xff\xff\xff\xff\x01"),
    "text that is no UTF-8": frame(b"\x81\xa4kind\xa2\xff\xfe"),
    "a timestamp out of bounds": frame(b"\xd7\xff" + b"\xff" * 8),
}
FIELDS: dict[str, dict[str, object]] = {
    "no id": {"id": ...},
    "no arguments": {"arguments": ...},
    "an id with ..": {"id": "../../payloads/x"},
    "an id that is a URL": {"id": "https://evil.example/x"},
    "an id of another alphabet": {"id": f"{CLIENT.upper()}-{7:012d}"},
    "an id with digits of another script": {"id": f"{CLIENT}-" + "٣" * 12},
    "an id with a line break": {"id": CALL.id + "\n"},
    "an id with a null": {"id": CALL.id + "\0"},
    "an empty id": {"id": ""},
    "a huge id": {"id": "a" * 40_000},
    "NaN": {"sent": math.nan},
    "infinity": {"sent": math.inf},
    "a date before 1970": {"sent": -1.0},
    "a date far off": {"eta": 1e300},
    "a negative count": {"retries": -1},
    "a huge count": {"errors": 2**64 - 1},
    "a count with a fraction": {"deaths": 1.5},
    "a count that is a truth": {"run": True},
    "a truth that is a count": {"resent": 1},
    "a text that is bytes": {"task": b"proj.square"},
    "bytes that are a text": {"arguments": "text"},
    "arguments that are a list": {"arguments": [1]},
    "arguments that are null": {"arguments": None},
    "a negative size": {"arguments": {"size": -1, "sha256": DIGEST}},
    "a size that is a text": {"arguments": {"size": "1", "sha256": DIGEST}},
    "spilled, without a digest": {"arguments": {"size": 1}},
    "spilled, with .. for a digest": {"arguments": {"size": 1, "sha256": "../../x"}},
    "spilled, with a URL for a digest": {"arguments": {"size": 1, "sha256": "https://evil.example/x"}},
    "a function that is a path": {"function": "/etc/hostname"},
    "a function with ..": {"function": "../7.out"},
    "a function that is nothing": {"function": ""},
    "a function that is a URL": {"function": "https://evil.example/f"},
    "a shipped module that is a path": {"ship": ["/tmp"]},
    "a shipped module with ..": {"ship": [".."]},
    "shipped, but not a list": {"ship": DIGEST},
    "shipped, but not texts": {"ship": [1]},
    "an unknown pool": {"pool": "gpu"},
    "a pool that is a list": {"pool": ["process"]},
    "a backoff that is a number": {"backoff": 5},
    "a backoff of NaN": {"backoff": {"first": math.nan}},
    "a negative backoff": {"backoff": {"first": -5.0}},
    "an extension type": {"task": EXT},
    "a timestamp": {"sent": WHEN},
    "a timestamp for arguments": {"arguments": WHEN},
    "a mark that is a list": {"mark": []},
    "a parent with ..": {"parent": "../x"},
    "a field with escapes in its name": {"\x1b[2J\r\nERROR": 1},
    "a field with a huge name": {"x" * 40_000: 1},
    "a field named like a method": {"__init__": 1},
    "the class's own name": {"__class__": "x"},
}
DAMAGED_TEXTS = {
    "a sound message with a line break in it": text_of(frame(SOUND_BODY))[:8] + "\n" + text_of(frame(SOUND_BODY))[8:],
    "a sound message with spaces around it": f" {text_of(frame(SOUND_BODY))} ",
    "a sound message with padding too many": text_of(frame(SOUND_BODY)).rstrip("=") + "======",
    "two sound messages": 2 * text_of(frame(SOUND_BODY)),
}
CORPUS = {
    **TEXTS,
    **DAMAGED_TEXTS,
    **{name: text_of(data) for name, data in FRAMES.items()},
    **{name: text_of(frame(call_map(**changes))) for name, changes in FIELDS.items()},
}


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_message_is_refused(name: str) -> None:
    """Whatever the text of a message is, reading it ends in one of three errors, soon and with little memory."""
    began = time.process_time()
    held = memory_of(lambda: refusal(lambda: OPEN.unseal_call(CORPUS[name], "default")))
    assert held < 16 * MIB
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_message_is_refused_where_a_key_is_set(name: str) -> None:
    """The same with a key: what is not a later version's is unsigned, or nothing of ours."""
    refusal(lambda: SIGNED.unseal_call(CORPUS[name], "default"))


@pytest.mark.parametrize("name", CORPUS)
def test_what_a_refusal_says_can_be_shown(name: str) -> None:
    """A refusal's text goes to logs and terminals: it holds no control characters and stays short, whatever was in the message."""
    text = str(refusal(lambda: OPEN.unseal_call(CORPUS[name], "default")))
    assert text.isprintable()
    assert len(text) < 500


@pytest.mark.parametrize("wire", [SIGNED, OPEN], ids=["signed", "unsigned"])
def test_no_pickle_runs_while_a_message_is_read(wire: Wire, tmp_path: Path) -> None:
    """A pickle in a message is bytes until whoever verified it decodes it; where a key is set, an unsigned one never gets there."""
    canary = tmp_path / "canary"
    call = replace(CALL, arguments=pickle.dumps(Canary(canary)))
    if wire is SIGNED:
        assert isinstance(refusal(lambda: SIGNED.unseal_call(sealed(OPEN, call), "default")), SignatureInvalid)
    else:
        assert OPEN.unseal_call(sealed(OPEN, call), "default") == call
    for data in (pickle.dumps(Canary(canary)), frame(pickle.dumps(Canary(canary)))):
        refusal(lambda data=data: wire.unseal_call(text_of(data), "default"))  # type: ignore[misc]
        refusal(lambda data=data: wire.unseal_outcome(data, CALL.id, 1))  # type: ignore[misc]
    assert not canary.exists()


def test_a_compression_bomb_takes_bounded_memory() -> None:
    """Deflate grows by a thousand at most: a full message unfolds to 48 MiB, a blob to anything; neither gets past the bound."""
    message, blob = deflated_zeros(40 * MIB), deflated_zeros(96 * MIB)
    held = memory_of(lambda: refusal(lambda: OPEN.unseal_call(text_of(frame(message, flags=1)), "default")))
    assert held < 3 * MAX_UNPACKED_BYTES
    held = memory_of(lambda: refusal(lambda: OPEN.unseal_outcome(frame(blob, flags=1), CALL.id, 1)))
    assert held < 3 * MAX_UNPACKED_BYTES


@pytest.mark.parametrize("empty", [b"\x90", b"\x80", b"\xa0", b"\x91\xc0"], ids=["lists", "maps", "texts", "lists of null"])
def test_a_bomb_of_small_objects_takes_bounded_memory(empty: bytes) -> None:
    """A few KiB that unpack to millions of objects are refused before they are made."""
    n = (MAX_UNPACKED_BYTES - 1_000) // len(empty)
    body = b"\x87" + SOUND_BODY[1:] + msgpack.packb("ship") + b"\xdd" + n.to_bytes(4, "big") + empty * n
    text = text_of(frame(zlib.compress(body, 9), flags=1))
    assert len(text) < 20_000
    assert memory_of(lambda: refusal(lambda: OPEN.unseal_call(text, "default"))) < 64 * MIB


@SAME_EACH_TIME
@given(st.text(max_size=300) | st.binary(max_size=300).map(text_of))
def test_no_text_gets_past_the_three_errors(text: str) -> None:
    """Random texts and random bytes are refused, and never crash."""
    refusal(lambda: OPEN.unseal_call(text, "default"))


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=20),
        st.binary(max_size=20),
        st.just(EXT),
        st.just(WHEN),
        st.just(DIGEST),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(SAME_EACH_TIME, max_examples=400)
@given(st.sampled_from([field.name for field in fields(Call)]), ANYTHING)
def test_each_field_is_what_its_record_says_or_the_message_is_refused(name: str, value: object) -> None:
    """What is read may be trusted field by field: it can be sealed again, and then is the same."""
    text = text_of(frame(call_map(**{name: value})))
    call = unless_refused(lambda: OPEN.unseal_call(text, "default"))
    assert call is None or OPEN.unseal_call(sealed(OPEN, call), "default") == call


@settings(SAME_EACH_TIME, max_examples=200)
@given(st.sampled_from([field.name for field in fields(Outcome)]), ANYTHING)
def test_each_field_of_an_outcome_is_checked_as_well(name: str, value: object) -> None:
    """An outcome's blob is no better than a message: every field is checked, and it can be sealed again."""
    sound: dict[str, object] = {"kind": "outcome", "call": CALL.id, "run": 1, "state": "succeeded", "token": OUTCOME.token}
    outcome = unless_refused(lambda: OPEN.unseal_outcome(frame({**sound, name: value}), CALL.id, 1))
    assert outcome is None or OPEN.unseal_outcome(OPEN.seal_outcome(outcome), CALL.id, 1) == outcome


@pytest.mark.parametrize("token", ["../../payloads/x", "a/b", "", "https://evil.example/x", "a\nb", "x" * 5_000])
def test_an_outcome_cannot_name_a_blob_outside_its_call(token: str) -> None:
    """The token of an outcome becomes part of a blob's name, so one that is none is refused with the outcome."""
    record = {"kind": "outcome", "call": CALL.id, "run": 1, "state": "succeeded", "token": token}
    assert isinstance(refusal(lambda: OPEN.unseal_outcome(frame(record), CALL.id, 1)), Malformed)
