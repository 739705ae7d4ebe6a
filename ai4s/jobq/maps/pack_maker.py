"""Calls to packs: arguments are encoded as they come, and cut into packs that grow from a few calls to thousands.

What cannot be shared or fail alone (numbers, texts) is encoded a slice at a time, all else call by call, so that what a caller
changes later does not matter and what cannot travel is refused there and then. Only arguments too large to be copied stay the
caller's memory; they end their pack, for whose upload the caller then waits. The first packs are small, so that idle workers
find work at once; each is twice as large as the one before. It makes no requests.

Next: `mapping.py`, which submits packs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..codec import Codec, Encoded
from ..message import Spill
from ..packing import MAX_INPUT_BYTES, MAX_ITEM_BYTES, SLICE_BYTES, SLICE_CALLS, Layout, PackInput, Slice
from ..parts import Parts
from ..printable import storable
from ..wire import MAX_PACK_CALLS

FIRST_PACK_CALLS = 8

MAX_COPIED_BYTES = 64 * 1024 * 1024
"""Large arguments of a pack in all, beyond which it ends; of one call, beyond which they are not copied."""

Row = tuple[object, ...]
Encode = Callable[[Row], Encoded]

_SCALARS: dict[type, int] = {type(None): 1, bool: 1, float: 9}
"""Types of which a value has one size, about. Integers, texts and bytes are as immutable, and measured."""

_LEAST_INT, _MOST_INT = -(2**63), 2**63 - 1
"""What every codec takes."""


@dataclass(frozen=True, slots=True)
class MadePack:
    """A pack to be submitted: its number among those made, its first index, its calls.

    `large` holds the arguments that are to be spilled, by place. `rows` and `keys` are kept where the batch has keys.
    """

    number: int
    first: int
    slices: tuple[Slice, ...]
    has_code: bool = False
    large: dict[int, Parts] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many calls there are."""
        return sum(each.count for each in self.slices)

    @property
    def large_bytes(self) -> int:
        """How long the arguments are that are to be spilled."""
        return sum(parts.size for parts in self.large.values())

    @property
    def borrows(self) -> bool:
        """Whether it holds memory of the caller's, who must leave that alone until it is put."""
        return any(parts.size > MAX_COPIED_BYTES for parts in self.large.values())

    def without(self, is_taken: Callable[[str], bool], encode: Encode, codec: Codec) -> MadePack:
        """The same pack but for the calls whose keys are taken."""
        maker = PackMaker(encode, codec, limit=MAX_PACK_CALLS)
        for row, key in zip(self.rows, self.keys, strict=True):
            if not is_taken(key):
                maker.add(row, key)
        return replace(maker.take(), number=self.number)

    def input(self, spilled: Mapping[int, Spill]) -> PackInput:
        """The pack's input, once the large arguments are spilled."""
        return PackInput(self.slices, self.keys, spilled)


class PackMaker:
    """Makes packs of the calls of one batch.

    Args:
        encode: a call's arguments as bytes; raises what cannot travel.
        codec: the codec of the task, for slices.
        first: the index of the first call.
        limit: calls of a pack, where somebody wants it so; else packs grow, to `most`.
    """

    def __init__(
        self, encode: Encode, codec: Codec, *, first: int = 0, limit: int | None = None, most: int = MAX_PACK_CALLS
    ) -> None:
        self._encode, self._codec = encode, codec
        self._limit = limit or min(FIRST_PACK_CALLS, most)
        self._most = limit or most
        self._number, self.next_index = 0, first
        self._begin()

    def _begin(self) -> None:
        self.count = 0
        self._bytes = 0
        self._slices: list[Slice] = []
        self._column: list[Row] = []
        self._column_bytes = 0
        self._alone: list[bytes] = []
        self._large: dict[int, Parts] = {}
        self._large_bytes = 0
        self._has_code = False
        self._rows: list[Row] = []
        self._keys: list[str] = []

    def add(self, row: Row, key: str | None = None) -> bool:
        """Take one call's arguments; whether the next call should begin a new pack."""
        size = _SCALARS.get(type(row[0])) if len(row) == 1 else None
        if size is None:
            size = _size(row)
        if size is None:
            self._add_alone(row)
        else:
            if self._alone:
                self._close_slice()
            self._column.append(row)
            self._column_bytes += size
            if len(self._column) == SLICE_CALLS or self._column_bytes > SLICE_BYTES:
                self._close_slice()
        self.count += 1
        if key is not None:
            self._rows.append(row)
            self._keys.append(key)
        return (
            self.count >= self._limit
            or self._bytes + self._column_bytes >= MAX_INPUT_BYTES
            or self._large_bytes >= MAX_COPIED_BYTES
        )

    def take(self) -> MadePack:
        """What was added since the last time, as a pack."""
        self._close_slice()
        made = MadePack(
            self._number,
            self.next_index,
            tuple(self._slices),
            self._has_code,
            self._large,
            tuple(self._rows),
            tuple(self._keys),
        )
        if self.count >= self._limit:
            self._limit = min(2 * self._limit, self._most)
        self._number += 1
        self.next_index += made.count
        self._begin()
        return made

    def _add_alone(self, row: Row) -> None:
        encoded = self._encode(row)
        if self._column:
            self._close_slice()
        self._has_code = self._has_code or encoded.has_code
        if encoded.size > MAX_ITEM_BYTES:
            self._large[self.count] = encoded.parts if encoded.size > MAX_COPIED_BYTES else Parts.of(encoded.data)
            self._large_bytes += encoded.size
            self._alone.append(b"")
        else:
            self._alone.append(encoded.data)
            self._bytes += encoded.size
        if len(self._alone) == SLICE_CALLS:
            self._close_slice()

    def _close_slice(self) -> None:
        if self._column:
            is_single = len(self._column[0]) == 1
            values = [row[0] for row in self._column] if is_single else self._column
            data = self._codec.dumps(values).data
            self._slices.append(Slice(Layout.SINGLE if is_single else Layout.ROWS, len(values), data))
            self._bytes += len(data)
            self._column, self._column_bytes = [], 0
        if self._alone:
            sizes = tuple(map(len, self._alone))
            self._slices.append(Slice(Layout.ALONE, len(sizes), b"".join(self._alone), sizes))
            self._alone = []


def _size(row: Row) -> int | None:
    """About how many bytes these arguments take, if they can be neither shared nor fail alone; else None."""
    size = 0
    for value in row:
        of = type(value)
        if of is int:
            if not _LEAST_INT <= value <= _MOST_INT:  # type: ignore[operator]
                return None
            size += 9
        elif (known := _SCALARS.get(of)) is not None:
            size += known
        elif (of is bytes or (of is str and _is_text(value))) and len(value) <= SLICE_BYTES:  # type: ignore[arg-type]
            size += len(value)  # type: ignore[arg-type]
        else:
            return None
    return size


def _is_text(value: object) -> bool:
    """Whether UTF-8 can hold it, which not every codec can do without."""
    assert isinstance(value, str)
    return value.isascii() or storable(value) == value
