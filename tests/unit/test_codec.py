"""Values come back as they were, and what cannot travel is refused where the user is, by name."""

from __future__ import annotations

import builtins
import enum
import os
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.codec import codec_named, codec_of, describe
from ai4s.jobq.errors import DeclarationError, JobQError, NotSerializable, Unfit

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
CLOUDPICKLE, MSGPACK = codec_named("cloudpickle"), codec_named("msgpack")

keys = st.text(max_size=5) | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=5) | st.booleans() | st.none()
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


class Colour(enum.IntEnum):
    """An int that is more than an int."""

    RED = 1


Point = namedtuple("Point", "x y")


@dataclass
class Record:
    """Something that can be imported."""

    x: int


class Unwilling:
    """Raises whatever it is told when it is pickled or unpickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[object, ...]:
        raise self.error


def fail_to_load(message: str) -> None:
    """What unpickling a `LateFailure` calls."""
    raise RuntimeError(message)


class LateFailure:
    """Pickles, but does not come back."""

    def __reduce__(self) -> tuple[object, ...]:
        return (fail_to_load, ("not here",))


class RaisesInStr(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


# Round trips.


@SAME_EACH_TIME
@given(plain)
def test_plain_data_comes_back_from_both_codecs(value: object) -> None:
    """What both codecs take comes back equal, and of the same types."""
    for codec in (CLOUDPICKLE, MSGPACK):
        back = codec.loads(codec.dumps(value).data)
        assert back == value
        assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {3},
        frozenset({4}),
        10**30,
        1 + 2j,
        Decimal("1.5"),
        Colour.RED,
        Point(1, 2),
        Record(3),
        datetime(2026, 1, 1, tzinfo=UTC),
        PurePosixPath("/a"),
    ],
    ids=str,
)
def test_importable_objects_come_back_and_are_no_code(value: object) -> None:
    """Objects of classes that a worker can import travel by reference, and do not bind the call to a Python version."""
    encoded = CLOUDPICKLE.dumps(value)
    assert CLOUDPICKLE.loads(encoded.data) == value
    assert not encoded.has_code


def test_not_a_number_comes_back_as_such() -> None:
    """NaN, which equals nothing, survives both codecs."""
    for codec in (CLOUDPICKLE, MSGPACK):
        back = codec.loads(codec.dumps(float("nan")).data)
        assert back != back  # what NaN is known by


def local_class() -> type:
    """A class that nobody can import."""

    class Hidden:
        pass

    return Hidden


@pytest.mark.parametrize(
    "value",
    [lambda: 1, [lambda: 1], local_class(), local_class()(), {"deep": [local_class()()]}],
    ids=["a lambda", "a lambda in a list", "a local class", "an instance of it", "deep inside"],
)
def test_code_that_travels_by_value_is_noticed(value: object) -> None:
    """Functions and classes that cannot be imported are found anywhere in a value, as they bind it to a Python version."""
    assert CLOUDPICKLE.dumps(value).has_code


@pytest.mark.parametrize(
    "value",
    [os.path.join, len, Record, int, type(None), type(...), [Record, None]],
    ids=lambda value: getattr(value, "__qualname__", "several"),
)
def test_what_can_be_imported_is_no_code(value: object) -> None:
    """References to importable functions, classes and types bind a value to no Python version."""
    assert not CLOUDPICKLE.dumps(value).has_code


def test_tuples_come_back_from_msgpack_as_lists() -> None:
    """Msgpack knows one kind of sequence, at any depth."""
    assert MSGPACK.loads(MSGPACK.dumps((1, [(2, 3)], {"a": (4,)})).data) == [1, [[2, 3]], {"a": [4]}]


# Refusals, at the caller.

UNSAFE: dict[str, tuple[object, str]] = {
    "a set": ({1}, "set"),
    "a set inside": ([{"a": {1}}], "set"),
    "an object": (Record(1), "Record"),
    "a class": (Record, "type"),
    "a function": (fail_to_load, "function"),
    "a subclass of int": (Colour.RED, "Colour"),
    "a named tuple": (Point(1, 2), "Point"),
    "a complex number": (1j, "complex"),
    "a datetime": (datetime(2026, 1, 1, tzinfo=UTC), "datetime"),
    "a tuple as a key": ({(1, 2): 3}, "tuple"),
    "a tuple as a key, inside": ([{"a": {(1, 2): 3}}], "tuple"),
    "a frozen set as a key": ({frozenset({1}): 1}, "frozenset"),
    "bytes that can change": (bytearray(b"x"), "bytearray"),
    "a view of bytes": (memoryview(b"x"), "memoryview"),
    "msgpack's own timestamp": (msgpack.Timestamp(1), "Timestamp"),
    "msgpack's own extension": (msgpack.ExtType(1, b""), "ExtType"),
    "text that is no Unicode": ("\ud800", "str"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_msgpack_refuses_at_the_caller(name: str) -> None:
    """What the safe codec cannot bring back as it was is refused when it is encoded, and the error names the type."""
    value, kind = UNSAFE[name]
    with pytest.raises(NotSerializable, match=kind):
        MSGPACK.dumps(value)


def test_an_int_that_is_too_large_is_named_as_such() -> None:
    """An int beyond 64 bits is refused in words that do not say that an int would be taken."""
    with pytest.raises(NotSerializable, match=r"64|range|large|big"):
        MSGPACK.dumps([2**64])


@pytest.mark.parametrize("codec", [CLOUDPICKLE, MSGPACK], ids=["cloudpickle", "msgpack"])
def test_a_value_that_never_ends_is_refused(codec: Any) -> None:
    """Nesting without end (for cloudpickle, past what the interpreter can follow) is refused and does not crash."""
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    try:
        with pytest.raises(NotSerializable):
            codec.dumps(value)
    finally:
        while value:  # taken apart by hand: freeing it in one go is deep, too
            value = value[0]  # type: ignore[assignment]  # lists of lists


def test_a_list_that_holds_itself_is_refused_by_msgpack_only() -> None:
    """Pickle keeps identity, msgpack cannot."""
    value: list[object] = []
    value.append(value)
    back = CLOUDPICKLE.loads(CLOUDPICKLE.dumps(value).data)
    assert back[0] is back
    with pytest.raises(NotSerializable):
        MSGPACK.dumps(value)


def test_what_cannot_be_pickled_is_named() -> None:
    """The error says what type the value has and why it cannot travel."""
    with pytest.raises(NotSerializable, match=r"list.*lock"):
        CLOUDPICKLE.dumps([threading.Lock()])


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), OSError(28, "No space"), RaisesInStr()], ids=repr)
def test_any_error_of_the_users_pickling_is_not_serializable(error: Exception) -> None:
    """Pickling runs the user's code: whatever it raises comes out as our one error, with the original as its cause."""
    with pytest.raises(NotSerializable) as caught:
        CLOUDPICKLE.dumps([Unwilling(error)])
    assert caught.value.__cause__ is error


def test_an_error_of_ours_from_the_users_pickling_is_not_serializable() -> None:
    """A JobQError counts as ours only if the guard raised it, not if pickling an object of the user's happened to."""
    with pytest.raises(NotSerializable):
        CLOUDPICKLE.dumps(Unwilling(JobQError("the place is not known")))


@pytest.mark.parametrize("codec", [CLOUDPICKLE, MSGPACK], ids=["cloudpickle", "msgpack"])
@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xc1", b"garbage", b"\xdd\xff\xff\xff\xff", b"\x80\x05", b"\x81\x90\x01"], ids=repr
)
def test_bytes_that_are_no_value_are_not_serializable(codec: Any, data: bytes) -> None:
    """Damaged bytes end in one error, whatever the decoder raised."""
    if codec is MSGPACK and data in {b"\x00", b"garbage"}:
        data += b"\xc1"  # one of them is a number to msgpack, the other begins with one
    with pytest.raises(NotSerializable):
        codec.loads(data)


def test_what_does_not_come_back_is_not_serializable() -> None:
    """Unpickling runs the user's code as well; what it raises is told."""
    with pytest.raises(NotSerializable, match="RuntimeError: not here"):
        CLOUDPICKLE.loads(CLOUDPICKLE.dumps(LateFailure()).data)


def test_msgpack_runs_nothing() -> None:
    """A pickle is no msgpack: the safe codec never calls what bytes name."""
    with pytest.raises(NotSerializable):
        MSGPACK.loads(CLOUDPICKLE.dumps(LateFailure()).data)


# Guards.


@pytest.mark.parametrize("codec", [CLOUDPICKLE, MSGPACK], ids=["cloudpickle", "msgpack"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {"a": (1, {"b": x})}], ids=["bare", "in a list", "deep"])
def test_a_guard_sees_objects_at_any_depth(codec: Any, wrap: Callable[[object], object]) -> None:
    """A guard may refuse an object wherever it stands, and its own error comes through."""

    class Refused(JobQError):
        """Not this one."""

    def refuse(value: object) -> None:
        if isinstance(value, Record):
            raise Refused

    with pytest.raises(Refused):
        codec.dumps(wrap(Record(1)), refuse)
    assert codec.dumps(wrap(1), refuse).data == codec.dumps(wrap(1)).data


# Names and texts.


@pytest.mark.parametrize("name", ["json", "", "Cloudpickle", None, 5, ["msgpack"]], ids=repr)
def test_an_unknown_codec_is_a_wrong_declaration(name: object) -> None:
    """A declaration with an unknown codec is told which there are."""
    with pytest.raises(DeclarationError, match="'cloudpickle', 'msgpack'"):
        codec_named(name)


def test_an_unknown_codec_in_a_record_is_unfit() -> None:
    """A record of a later version may name a codec to come: it is for others, and neither damaged nor the user's fault."""
    assert codec_of("msgpack") is MSGPACK
    with pytest.raises(Unfit):
        codec_of("zstd-pickle")


class TextOf:
    """Its `str` raises, or is whatever it is told."""

    def __init__(self, outcome: BaseException | str) -> None:
        self.outcome = outcome

    def __str__(self) -> str:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize("name", ["ValueError", "RecursionError", "SystemExit", "KeyboardInterrupt"])
def test_a_text_that_raises_is_described(name: str) -> None:
    """Where `str` of a user's object raises, even to end the process, a note stands in its place."""
    assert name in describe(TextOf(getattr(builtins, name)()))


def test_an_error_of_the_codec_is_short() -> None:
    """What an error quotes of the user's is cut, whatever it is."""
    with pytest.raises(NotSerializable) as caught:
        CLOUDPICKLE.dumps(Unwilling(ValueError("x" * 10**7)))
    assert len(str(caught.value)) < 3_000


def test_a_text_that_is_no_unicode_can_be_stored() -> None:
    """File names may bring lone surrogates, which no message could hold."""
    assert describe(TextOf("caf\udce9")).encode() == b"caf?"
