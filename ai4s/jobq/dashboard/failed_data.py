"""The dead letters as the pages show them: by cause, task and error, and the newest one by one.

A batch has one letter for all its failures; what they are is in the metadata of its log's entries, which were listed anyway. So its
groups are made of those, and counted as long as its failures stand.

Next: `actions.py`, which retries and purges a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..printable import printable
from .letter_groups import Gathered, Group, SeenLetter
from .refresh import Refresh

SHOWN_IDS = 20
RAISED = "raised"


def failed_data(refresh: Refresh) -> dict[str, Any]:
    """See the module."""
    letters, as_of = refresh.seen.letters, refresh.seen.letters_as_of
    groups = [_row(group, found.count, found.newest, found.ids) for group, found in letters.groups.items()]
    groups += [row for letter in letters.batches.values() for row in _of_batch(refresh, letter)]
    shown = sorted([*letters.newest, *letters.batches.values()], key=lambda letter: -letter.at)
    return {
        "groups": sorted(groups, key=lambda row: (-row["count"], row["cause"], row["error"])),
        "letters": [_letter(letter) for letter in shown],
        "total": letters.total,
        **({} if as_of is None else {"as_of": as_of}),
    }


def ids_of(refresh: Refresh, group: Group, batch: str = "") -> list[str]:
    """The ids of a row's letters as far as they are known: those of single calls, or the batch whose row it is."""
    letters = refresh.seen.letters
    if batch:
        return [batch] if batch in letters.batches else []
    return letters.groups.get(group, Gathered()).ids


def _row(group: Group, count: int, newest: float, ids: list[str], *, batch: str | None = None) -> dict[str, Any]:
    return {**group._asdict(), "count": count, "newest": newest, "ids": ids[:SHOWN_IDS], "batch": batch}


def _of_batch(refresh: Refresh, letter: SeenLetter) -> Iterator[dict[str, Any]]:
    """A row for each kind of error, as far as failures stand; one for all where it is not known which there were."""
    batch = refresh.seen.batches.get(letter.id)
    if batch is None:
        yield _row(Group(RAISED, letter.group.task, letter.group.error), 1, letter.at, [letter.id], batch=letter.id)
        return
    left, errors = batch.failed, batch.errors.most_common()
    if not errors or (batch.rerun and len(errors) > 1):  # which of them ran again, the listing does not say
        errors = [("", left)]
    for error, count in errors:
        if standing := min(count, left):
            yield _row(Group(RAISED, batch.task, printable(error)), standing, letter.at, [letter.id], batch=letter.id)
        left -= standing


def _letter(letter: SeenLetter) -> dict[str, Any]:
    group = letter.group
    said = {"cause": group.cause, "task": group.task, "error": group.error, "message": letter.message, "at": letter.at}
    return {"id": letter.id, "queue": letter.queue, "of_batch": letter.of_batch, **said}
