"""What a child writes down as the calls of a chunk end: one frame a call, in a file, in the order of the calls.

A file keeps what was written when its writer dies, and to write to it wakes nobody. So each call's outcome is safe the moment it
has ended, however short the call was, and the first call without one is the one that ran.

Next: `chunks.py`, which writes; `dealing.py`, which reads.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import msgpack

from ..errors import Malformed
from ..fields import from_map, to_map
from .jobs import Report

_HEAD = struct.Struct("<BfI")
_COUNT = struct.Struct("<I")

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Far above every honest frame: a value of more than 64 KiB lies in a file."""


class Mark(IntEnum):
    """What a frame's data are: an encoded value; nothing, as the value lies in a file; a report of something else, of one call or
    of a whole slice."""

    VALUE = 0
    FILE = 1
    REPORT = 2
    SLICE = 3


_LAST_MARK = max(Mark)


class Frame(NamedTuple):
    """How a call went: what the data are, how many seconds it ran, the data."""

    mark: int
    seconds: float
    data: bytes

    @property
    def report(self) -> Report:
        """The report in the data; raises MessageError."""
        data = self.data[_COUNT.size :] if self.mark == Mark.SLICE else self.data
        try:
            return from_map(Report, msgpack.unpackb(data))
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as exc:
            raise Malformed("A chunk's journal is damaged.") from exc

    @property
    def calls(self) -> int:
        """How many calls it speaks of."""
        return int(_COUNT.unpack_from(self.data)[0]) if self.mark == Mark.SLICE else 1


def to_frame(mark: Mark, seconds: float, data: bytes) -> bytes:
    """A frame as it lies in the file."""
    return _HEAD.pack(mark, seconds, len(data)) + data


def report_frame(report: Report) -> bytes:
    """The frame of a call that gave no value."""
    return to_frame(Mark.REPORT, report.seconds, msgpack.packb(to_map(report)))


def slice_frame(report: Report, count: int) -> bytes:
    """The frame of so many calls that were one call of their function, which gave no value."""
    return to_frame(Mark.SLICE, report.seconds, _COUNT.pack(count) + msgpack.packb(to_map(report)))


@dataclass(slots=True)
class Journal:
    """A chunk's journal as its reader knows it: `read` gives the frames that are new and whole, up to what is damaged."""

    path: Path
    at: int = 0
    frames: int = 0
    is_damaged: bool = False

    def read(self) -> list[Frame]:
        """The frames that were written since; none for a file that is not there yet. Raises OSError."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.at)
                data = file.read()
        except FileNotFoundError:
            return []
        found, start, length = [], 0, len(data)
        # A hundred thousand times a second, perhaps: what is looked up here is looked up once.
        unpack, head_bytes, new = _HEAD.unpack_from, _HEAD.size, tuple.__new__
        while (began := start + head_bytes) <= length:
            mark, seconds, size = unpack(data, start)
            if mark > _LAST_MARK or size > MAX_FRAME_BYTES or not 0 <= seconds < math.inf:
                self.is_damaged = True  # what comes before it is sound
                break
            stop = began + size
            if stop > length:
                break
            if mark == Mark.SLICE and (size < _COUNT.size or not any(data[began : began + _COUNT.size])):
                self.is_damaged = True
                break
            found.append(new(Frame, (mark, seconds, data[began:stop])))
            start = stop
        self.at += start
        self.frames += len(found)
        return found
