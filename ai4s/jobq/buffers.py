"""A pickle and the large buffers that were left out of it, as one run of bytes that can be mapped.

The format: a magic word that no pickle begins with, the number of sections, the length of each, then the sections, each at a
multiple of 64 bytes from the start: the pickle first, then its buffers in their order. It says nothing of itself that its reader
must trust: lengths that do not fit are an error.

Next: `codec.py`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .parts import Parts

Readable = bytes | bytearray | memoryview | mmap.mmap

BUFFER_BYTES = 64 * 1024
"""Smaller buffers stay in the pickle, where they cost less, and where they have always been."""

MAGIC = b"JOBQ-5\r\n"  # a pickle of protocol 2 or later begins with byte 128
ALIGNMENT = 64
"""What vector instructions want, and every element of an array."""

NUMBER_BYTES = 8


def packed(pickled: Parts, buffers: Sequence[memoryview]) -> Parts:
    """The pickle and its buffers in the format."""
    sections = [pickled, *(Parts.of(buffer) for buffer in buffers)]
    numbers = (len(sections), *(section.size for section in sections))
    head = MAGIC + b"".join(number.to_bytes(NUMBER_BYTES, "little") for number in numbers)
    pieces: list[bytes | bytearray | memoryview] = [head]
    before = len(head)
    for section in sections:
        pieces += [bytes(-before % ALIGNMENT), *section.pieces]
        before = section.size  # which begins at a multiple itself
    return Parts.of(*(piece for piece in pieces if len(piece)))


def is_packed(data: Readable) -> bool:
    """Whether these bytes are in the format."""
    return data[: len(MAGIC)] == MAGIC


def unpacked(data: Readable) -> tuple[memoryview, list[memoryview]]:
    """Views of the pickle and its buffers; raises ValueError where lengths do not fit."""
    view = memoryview(data).cast("B")
    count = _number(view, len(MAGIC))
    first = len(MAGIC) + NUMBER_BYTES
    if not 0 < count <= (len(view) - first) // NUMBER_BYTES:
        raise ValueError(f"{len(view)} bytes cannot have {count} sections")
    lengths = [_number(view, first + NUMBER_BYTES * index) for index in range(count)]
    pickled, *beside = [view[start:stop] for start, stop in _places(first + NUMBER_BYTES * count, lengths, len(view))]
    return pickled, beside


def _places(start: int, lengths: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    for length in lengths:
        start += -start % ALIGNMENT
        if start + length > size:
            raise ValueError(f"a section of {length} bytes ends beyond the {size} that are there")
        yield start, start + length
        start += length


def _number(view: memoryview, at: int) -> int:
    return int.from_bytes(view[at : at + NUMBER_BYTES], "little")


def mapped(path: Path, *, writable: bool) -> Readable:
    """A file's bytes, none of which are read before they are used; what is written to them stays in this process.

    The file may be removed meanwhile, but must not be changed.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""  # nothing cannot be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
