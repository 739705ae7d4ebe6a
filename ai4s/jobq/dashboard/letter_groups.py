"""All dead letters from one listing that comes page by page: how many of each kind, and the newest.

No letter is read: kind, task and error stand in its metadata, which older ones lack. Of a call only the newest run counts, and a
tombstone is no letter. Kept is a bounded part of them, counted are all.

Next: `failed_data.py`, which shows them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from .. import layout
from ..errors import MessageError
from ..printable import printable
from ..transports.base import BlobInfo

MOST_LETTERS = 500
"""That are shown one by one, the newest."""

MOST_IDS = 1000
"""Of a group: as many as one action works on."""

MOST_GROUPS = 200
OTHER = "(other)"
"""Task and error of all groups beyond those."""


class Group(NamedTuple):
    """What letters of one group have in common."""

    cause: str
    task: str
    error: str


class SeenLetter(NamedTuple):
    """A dead letter as a listing tells of it; `at` is when the call ended, in epoch seconds by the server's clock."""

    at: float
    id: str
    queue: str
    group: Group
    message: str
    of_batch: bool


@dataclass(slots=True)
class Gathered:
    """The letters of one group: all are counted, and the ids of some kept."""

    count: int = 0
    newest: float = 0.0
    ids: list[str] = field(default_factory=list)

    def add(self, letter: SeenLetter) -> None:
        """Count one."""
        self.count += 1
        self.newest = max(self.newest, letter.at)
        if len(self.ids) < MOST_IDS:
            self.ids.append(letter.id)


@dataclass(slots=True)
class Letters:
    """What one pass over all letters has found. `batches` are those with failures, by id."""

    groups: dict[Group, Gathered] = field(default_factory=dict)
    newest: list[SeenLetter] = field(default_factory=list)
    batches: dict[str, SeenLetter] = field(default_factory=dict)
    total: int = 0

    def add(self, letter: SeenLetter) -> None:
        """Count one."""
        self.total += 1
        if letter.of_batch:
            self.batches[letter.id] = letter
            return
        group = letter.group
        if group not in self.groups and len(self.groups) >= MOST_GROUPS:
            group = Group(group.cause, OTHER, OTHER)
        self.groups.setdefault(group, Gathered()).add(letter)
        push = heapq.heappush if len(self.newest) < MOST_LETTERS else heapq.heappushpop
        push(self.newest, letter)


class LetterRound:
    """One pass over all letters."""

    def __init__(self) -> None:
        self.found = Letters()
        self._last: tuple[tuple[str, str], int, BlobInfo] | None = None

    def add(self, infos: Iterable[BlobInfo], *, is_last: bool) -> None:
        """Count a page."""
        for info in infos:
            parts = _parts(info.name)
            if parts is None:
                continue
            if self._last is not None and self._last[0] != parts[:2]:
                self._passed()
            if self._last is None or parts[2] >= self._last[1]:
                self._last = (parts[:2], parts[2], info)
        if is_last:
            self._passed()

    def _passed(self) -> None:
        """Count the newest run's letter of a subject: those of one subject follow each other in a listing."""
        last, self._last = self._last, None
        if last is not None and _stands(last[2]):
            self.found.add(_letter(last[2], *last[0]))


def _parts(name: str) -> tuple[str, str, int] | None:
    if (parts := layout.batch_letter_parts(name)) is not None:
        return *parts, 0
    try:
        return layout.letter_parts(name)
    except MessageError:
        return None  # what somebody else has put there


def _stands(info: BlobInfo) -> bool:
    """Whether this is no tombstone; a batch's letter is empty in any case."""
    return bool(info.size) or (layout.batch_letter_parts(info.name) is not None and not info.metadata.get("fate"))


def _letter(info: BlobInfo, queue: str, subject: str) -> SeenLetter:
    task, cause, error, message = (_said(info, name) for name in ("task", "cause", "error", "message"))
    return SeenLetter(
        at=_moment(info),
        id=subject,
        queue=queue,
        group=Group(cause, task, error),
        message=message,
        of_batch=layout.batch_letter_parts(info.name) is not None,
    )


def _said(info: BlobInfo, name: str) -> str:
    return printable(unquote(info.metadata.get(name, "")))


def _moment(info: BlobInfo) -> float:
    """When the call ended; when the letter was written, where that is not said or cannot be."""
    try:
        said = float(info.metadata.get("at", ""))
    except ValueError:
        return info.modified
    return said if 0 < said <= info.modified + 3600 else info.modified
