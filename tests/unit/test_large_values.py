"""Large buffers are never copied on their way into bytes, come back as views, and small values stay the pickles that they were."""

from __future__ import annotations

import mmap
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai4s.jobq.buffers import ALIGNMENT, BUFFER_BYTES, MAGIC, NUMBER_BYTES, is_packed, mapped, packed, unpacked
from ai4s.jobq.checkpointing import Checkpointing
from ai4s.jobq.codec import Encoded, codec_named
from ai4s.jobq.errors import NotSerializable
from ai4s.jobq.message import Form
from ai4s.jobq.parts import Parts, gathered

CLOUDPICKLE, MSGPACK = codec_named("cloudpickle"), codec_named("msgpack")
SAME_EACH_TIME = settings(derandomize=True, deadline=None, database=None, max_examples=200)
MIB = 1024 * 1024


class Scattered:
    """Offers a buffer that is not in one piece."""

    def __reduce_ex__(self, protocol: Any) -> tuple[object, ...]:
        return (bytes, (pickle.PickleBuffer(memoryview(bytes(400_000))[::2]),))


# Parts


@SAME_EACH_TIME
@given(st.lists(st.binary(max_size=9), max_size=8), st.integers(0, 80), st.integers(0, 80))
def test_a_cut_is_what_a_slice_would_be(pieces: list[bytes], start: int, stop: int) -> None:
    """Wherever it begins and ends, and however many pieces are empty."""
    parts = Parts.of(*pieces)
    assert parts.joined() == b"".join(pieces)
    assert parts.size == len(parts.joined())
    assert b"".join(parts.cut(start, stop)) == parts.joined()[start:stop]


@SAME_EACH_TIME
@given(st.lists(st.binary(max_size=9), max_size=12), st.integers(1, 9))
def test_gathered_pieces_are_the_same_bytes(pieces: list[bytes], small_bytes: int) -> None:
    """No two neighbours that are both small remain."""
    fewer = list(gathered(pieces, small_bytes))
    assert b"".join(fewer) == b"".join(pieces)
    assert sum(len(piece) >= small_bytes for piece in pieces) <= len(fewer) <= len(pieces)


def test_views_of_other_items_are_counted_in_bytes() -> None:
    """A memoryview of 8-byte numbers is eight times as many bytes as it has items."""
    numbers = np.arange(10)
    assert Parts.of(numbers.data, b"x").size == 81
    assert Parts.of(numbers.data).joined() == numbers.tobytes()


def test_one_piece_of_bytes_is_not_copied() -> None:
    """Small values are one piece, and cost nothing more than they did."""
    data = b"some bytes"
    assert Parts.of(data).joined() is data


# The container


def address(view: memoryview) -> int:
    """Where it lies in memory."""
    return np.frombuffer(view, np.uint8).ctypes.data


def test_a_container_gives_back_what_was_put_in() -> None:
    """The pickle and each buffer, empty ones too, each at a multiple of 64 bytes."""
    buffers = [memoryview(bytes([n]) * size) for n, size in enumerate([0, 1, 64, 65, 100_000])]
    data = packed(Parts.of(b"pic", b"kle"), buffers).joined()
    assert is_packed(data)
    pickled, beside = unpacked(data)
    assert bytes(pickled) == b"pickle"
    assert beside == buffers
    start = address(memoryview(data))
    assert [(address(view) - start) % ALIGNMENT for view in [pickled, *beside[1:]]] == [0] * 5


def test_no_pickle_looks_like_a_container() -> None:
    """Nor does what is shorter than its magic word."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert not is_packed(pickle.dumps({"a": MAGIC}, protocol))
    assert not any(is_packed(MAGIC[:length]) for length in range(len(MAGIC)))


def number(value: int) -> bytes:
    """A number as it stands in the head."""
    return value.to_bytes(NUMBER_BYTES, "little")


@pytest.mark.parametrize(
    "data",
    [
        MAGIC,
        MAGIC + number(0),
        MAGIC + number(1),
        MAGIC + number(2**63),
        MAGIC + number(1) + number(2**63) + bytes(100),
        MAGIC + number(2) + number(10) + number(100) + bytes(100),
        packed(Parts.of(pickle.dumps(1)), [memoryview(bytes(100))]).joined()[:-1],
        packed(Parts.of(b"no pickle"), [memoryview(bytes(100))]).joined(),
        packed(Parts.of(pickle.dumps(np.ones(10), 5, buffer_callback=lambda _: None)), []).joined(),
    ],
    ids=["bare", "none", "no length", "too many", "too long", "beyond", "cut", "no pickle", "too few"],
)
def test_a_damaged_container_is_not_serializable(data: bytes) -> None:
    """Lengths that do not fit, and pickles that want other buffers, end in our one error."""
    with pytest.raises(NotSerializable):
        CLOUDPICKLE.loads(data)


# The codec


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, "a", {"b": 2.5}],
        b"x" * 100,
        bytearray(1000),
        np.arange(100),
        {"x": np.ones((10, 10)), "y": [np.zeros(3)]},
        "ä" * 200_000,
        list(range(100_000)),
        b"y" * 1_000_000,
        np.arange(200_000, dtype=object),
        lambda x: x + 1,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_large_buffers_is_the_same_pickle_as_ever(value: object) -> None:
    """Byte for byte, since keys compare digests of arguments; also if its pieces were large."""
    assert CLOUDPICKLE.dumps(value).data == cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


ARRAYS: dict[str, Callable[[], Any]] = {
    "numbers": lambda: np.arange(100_000),
    "columns first": lambda: np.asfortranarray(np.arange(90_000.0).reshape(300, 300)),
    "not in one piece": lambda: np.arange(400_000)[::2],
    "empty": lambda: np.zeros((0, 5)),
    "read-only": lambda: np.frombuffer(bytes(100_000), np.uint8),
    "records": lambda: np.zeros(50_000, dtype=[("a", "i4"), ("b", "f8")]),
    "at the bound": lambda: np.zeros(BUFFER_BYTES, np.uint8),
    "below the bound": lambda: np.zeros(BUFFER_BYTES - 1, np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_arrays_come_back(name: str, form: Callable[[bytes], Any]) -> None:
    """Whatever their order, kind and size, from bytes of whatever type, beside other values."""
    array = ARRAYS[name]()
    there = [array, {"again": array, "text": "x" * 100_000}, b"z" * 100_000]
    back = CLOUDPICKLE.loads(form(CLOUDPICKLE.dumps(there).data))
    assert np.array_equal(back[0], array)
    assert back[0].dtype == array.dtype
    assert back[1]["again"] is back[0]
    assert back[1]["text"] == "x" * 100_000
    assert back[2] == there[2]


def test_arrays_from_bytes_and_bytearrays_can_be_written_to() -> None:
    """As those that are pickled as a whole; what was read-only stays so."""
    data = CLOUDPICKLE.dumps([np.ones(100_000), np.frombuffer(bytes(100_000))]).data
    for readable in (data, bytearray(data)):
        writable, fixed = CLOUDPICKLE.loads(readable)
        writable[:] = 2
        assert not fixed.flags.writeable
    assert CLOUDPICKLE.loads(data)[0][0] == 1


def test_arrays_are_views_of_what_they_are_read_from() -> None:
    """Of a bytearray that was fetched, no second copy is made."""
    data = bytearray(CLOUDPICKLE.dumps(np.ones(MIB)).data)
    tracemalloc.start()
    try:
        array = CLOUDPICKLE.loads(data)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    array[-1] = 7
    assert CLOUDPICKLE.loads(data)[-1] == 7


@pytest.mark.parametrize("make", [lambda: np.ones(4 * MIB), lambda: bytes(32 * MIB), lambda: bytearray(32 * MIB)])
def test_large_buffers_are_not_copied_by_encoding(make: Callable[[], Any]) -> None:
    """Arrays, bytes and bytearrays of 32 MiB cost less than 1 MiB of memory on top, and are sent from where they lie."""
    value = make()
    tracemalloc.start()
    try:
        encoded = CLOUDPICKLE.dumps((value, {"as": value}))
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    assert encoded.size > 32 * MIB
    memoryview(value).cast("B")  # it is still the user's own
    [largest] = [piece for piece in encoded.parts.pieces if len(piece) >= 32 * MIB]
    assert largest[0] == 0 or largest[:8] == np.ones(1).tobytes()


def test_a_buffer_that_is_not_in_one_piece_is_refused_by_name() -> None:
    """As pickle does it, with what it says."""
    with pytest.raises(NotSerializable, match=r"Scattered.*contiguous"):
        CLOUDPICKLE.dumps(Scattered())


def test_msgpack_reads_all_kinds_of_bytes(tmp_path: Path) -> None:
    """Plain data in a file is mapped like the rest."""
    (path := tmp_path / "data").write_bytes(data := MSGPACK.dumps([b"x" * 100_000, 1]).data)
    for readable in (data, bytearray(data), memoryview(data), mapped(path, writable=True)):
        assert MSGPACK.loads(readable) == [b"x" * 100_000, 1]


# Files


@pytest.mark.parametrize("value", [np.arange(100_000), b"x" * 100_000, [1, 2]], ids=lambda value: type(value).__name__)
def test_a_mapped_file_is_read_like_bytes(tmp_path: Path, value: Any) -> None:
    """Containers and plain pickles alike, and still after the file was removed."""
    (path := tmp_path / "data").write_bytes(CLOUDPICKLE.dumps(value).data)
    data = mapped(path, writable=True)
    path.unlink()
    assert np.array_equal(CLOUDPICKLE.loads(data), value)


def test_what_is_written_to_a_mapped_array_stays_in_the_process(tmp_path: Path) -> None:
    """A task may change its argument; the next attempt finds the file as it was."""
    (path := tmp_path / "data").write_bytes(CLOUDPICKLE.dumps(np.zeros(100_000)).data)
    array = CLOUDPICKLE.loads(mapped(path, writable=True))
    array[:] = 1
    assert CLOUDPICKLE.loads(path.read_bytes()).max() == 0


def test_a_shared_file_gives_arrays_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Many processes see the same pages."""
    (path := tmp_path / "data").write_bytes(CLOUDPICKLE.dumps(np.zeros(100_000)).data)
    array = CLOUDPICKLE.loads(mapped(path, writable=False))
    assert array.ctypes.data % ALIGNMENT == 0
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_an_empty_file_is_no_bytes(tmp_path: Path) -> None:
    """Which could not be mapped."""
    (path := tmp_path / "data").touch()
    assert mapped(path, writable=False) == b""
    path.write_bytes(b"x")
    assert isinstance(mapped(path, writable=False), mmap.mmap)


class FileVault:
    """Keeps the last checkpoint in a file."""

    def __init__(self, folder: Path) -> None:
        self.path, self.kept = folder / "passing", folder / "kept"

    def save(self, form: Form) -> bool:
        """See `checkpointing.Vault`."""
        self.path.rename(self.kept)
        return True

    def load(self) -> Form | None:
        """See `checkpointing.Vault`."""
        self.path.write_bytes(self.kept.read_bytes())
        return Form.VALUE


def test_a_checkpoint_of_a_large_array_is_not_copied_before_it_is_written(tmp_path: Path) -> None:
    """It goes to its file from where it lies, and comes back."""
    checkpoint, array = Checkpointing(FileVault(tmp_path), CLOUDPICKLE), np.arange(4 * MIB)
    tracemalloc.start()
    try:
        assert checkpoint.save({"weights": array})
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    assert np.array_equal(checkpoint.load()["weights"], array)


def test_an_encoded_value_knows_its_size() -> None:
    """Of all its pieces, which `data` puts together."""
    for value in (1, np.arange(100_000), b"x" * 100_000):
        encoded = CLOUDPICKLE.dumps(value)
        assert isinstance(encoded, Encoded)
        assert encoded.size == len(encoded.data)
