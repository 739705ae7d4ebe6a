"""Sets of indices as text, in which neighbours cost nothing: "0-4095,5000". Small in a message, and legible to a person.

What is read back is bounded by the range that it must lie in, so that a few bytes cannot claim a billion.

Next: `message.py`, whose pack headers use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TypeVar

from .errors import Malformed

T = TypeVar("T")

_RANGES = re.compile(r"([0-9]{1,15}(-[0-9]{1,15})?(,[0-9]{1,15}(-[0-9]{1,15})?)*)?")


def to_text(indices: Iterable[int]) -> str:
    """The text of a set of indices.

    >>> to_text([3, 0, 1, 2, 7])
    '0-3,7'
    """
    ordered = sorted(indices)
    # Neighbours have the same distance from their place in the order.
    groups = [list(group) for _, group in groupby(range(len(ordered)), lambda place: ordered[place] - place)]
    parts = [(ordered[group[0]], ordered[group[-1]]) for group in groups]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def from_text(text: str, within: range) -> list[int]:
    """The indices, in order; raises Malformed for what is no such text, or leads out of `within`.

    >>> from_text("0-3,7", range(8))
    [0, 1, 2, 3, 7]
    """
    return [index for first, last in spans(text, within) for index in range(first, last + 1)]


def spans(text: str, within: range) -> list[tuple[int, int]]:
    """As `from_text`, of runs of neighbours only the first and the last, for who does not want to hold them all.

    >>> spans("0-3,7", range(8))
    [(0, 3), (7, 7)]
    """
    if not _RANGES.fullmatch(text):
        raise Malformed(f"{text[:80]!r} is no set of indices.")
    found: list[tuple[int, int]] = []
    for part in filter(None, text.split(",")):
        start, _, stop = part.partition("-")
        first, last = int(start), int(stop or start)
        if first not in within or not first <= last < within.stop or (found and first <= found[-1][1]):
            raise Malformed(f"The indices {part!r} lie outside {within.start}-{within.stop - 1}, or are out of order.")
        found.append((first, last))
    return found


def by_value(values: Mapping[int, T]) -> dict[T, str]:
    """The indices that have each value, as text.

    >>> by_value({0: "a", 1: "a", 5: "b"})
    {'a': '0-1', 'b': '5'}
    """
    found: dict[T, list[int]] = {}
    for index, value in values.items():
        found.setdefault(value, []).append(index)
    return {value: to_text(indices) for value, indices in found.items()}
