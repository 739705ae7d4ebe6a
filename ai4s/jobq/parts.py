"""Bytes that lie in several pieces of memory, so that what is large is never put together only to be sent.

The pieces are the user's own buffers: nothing here copies them but `joined`, and `cut` hands out views. Whoever changes an array
while it is on its way damages the copy that travels, and its digest says so to the reader.

Next: `codec.py`, which makes them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

Piece = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Parts:
    """Pieces of bytes in their order; made by `Parts.of`. `starts` says where each begins, and `size` how long all are together."""

    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, *pieces: Piece) -> Parts:
        """These pieces, one after the other.

        >>> Parts.of(b"ab", b"", b"cd").size
        4
        """
        if len(pieces) == 1 and isinstance(pieces[0], bytes):  # by far the most common
            return cls(pieces, (0,), len(pieces[0]))
        plain = tuple(each if isinstance(each, bytes) else memoryview(each).cast("B") for each in pieces)
        *starts, size = accumulate(map(len, plain), initial=0)
        return cls(plain, tuple(starts), size)

    def joined(self) -> bytes:
        """All bytes as one: a copy, unless they are one piece of `bytes` already."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], bytes):
            return self.pieces[0]
        return b"".join(self.pieces)

    def cut(self, start: int, stop: int) -> Iterator[memoryview]:
        """Views of the bytes from `start` to `stop`.

        >>> [bytes(view) for view in Parts.of(b"abc", b"def", b"ghi").cut(2, 7)]
        [b'c', b'def', b'g']
        """
        first = max(0, bisect_right(self.starts, start) - 1)
        for number in range(first, len(self.pieces)):
            at = self.starts[number]
            if at >= stop:
                return
            view = memoryview(self.pieces[number])[max(0, start - at) : stop - at]
            if view:
                yield view


def gathered(pieces: Iterable[Piece], small_bytes: int) -> Iterator[Piece]:
    """The same bytes in fewer pieces: neighbours shorter than `small_bytes` become one."""
    small: list[Piece] = []
    for piece in pieces:
        if len(piece) < small_bytes:
            small.append(piece)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield piece
    if small:
        yield b"".join(small)
