"""Dead letters, chosen by filters and read: from blobs to what a person wants to know of them.

A listing tells of thousands; each letter that may be meant costs a read, and they are read some at a time, so that there may be any
number of them. Of a call only the newest run's counts, and a tombstone is no letter. A batch has one for all its failures. Nothing
is changed here.

Next: `dead_letters.py`, which does something with them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypedDict, TypeVar

from . import layout, reruns
from .clock import boottime
from .errors import DeclarationError, MessageError, NotFound
from .handle import Handle
from .ledger import Ledger
from .maps.letters import BatchLetter, open_letter
from .message import Cause, DeadLetter, Outcome
from .options import seconds
from .overview.glance import arguments_of
from .reruns import Fate, LetterBlob
from .transports.base import BlobInfo

T = TypeVar("T")

UNREADABLE = "unreadable"
CAUSES = (*map(str, Cause), UNREADABLE)

LETTERS_IN_FLIGHT = 32
"""Letters worked on at a time: what hides a request's latency, and leaves connections for others."""


OF_A_BATCH = 0
"""In place of a run: the log tells of which run the failures are."""

LATE_SECONDS, LATE_PAUSE_SECONDS = reruns.LATE_SECONDS, 0.05
"""How long a retry waits for the letter of a call that has failed: its worker writes the outcome first."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What is known of a call that failed, or of a message that could not be read (then `cause` is "unreadable").

    `id` is the call's, or the message's. `error` is the type of what was raised, as "ValueError" or "proj.errors.NoModel", if
    anything was. `sent`, `started` (of the last attempt) and `ended` are in epoch seconds by the server's clock. `arguments` shows
    what the call was given, as far as that can be read without running anything. `raw` is the text of an unreadable message.
    `retrying` says that a retry goes on, or was cut short: then ask for it again.

    A batch with failures has one letter: `id` is the batch's, `failures` how many of its calls stand as failed, `causes` how many
    of those that were looked at failed in which way ("raised ValueError"), and the rest is said of the first of them.
    """

    id: str
    queue: str
    run: int
    cause: str
    message: str
    ended: float
    task: str = ""
    error: str = ""
    traceback: str = field(default="", repr=False)
    attempts: int = 0
    worker: str = ""
    raw: str = field(default="", repr=False)
    retrying: bool = False
    failures: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)
    sent: float | None = None
    started: float | None = None
    arguments: str = ""


class Filters(TypedDict, total=False):
    """Which letters are meant; all of them must apply.

    `queue`: one of the app's queues. `task`: a task's name, or the last part of it. `cause`: "raised", "timed out", "died",
    "refused", "never fits" or "unreadable". `error`: an exception's type, or the last part of it. `older_than`, `newer_than`:
    seconds, or a timedelta, since the call ended. `matching`: a regular expression that is found in "ErrorType: message".
    """

    queue: str | None
    task: str | None
    cause: str | None
    error: str | None
    older_than: float | timedelta | None
    newer_than: float | timedelta | None
    matching: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Filters, checked."""

    ids: frozenset[str]
    queue: str | None
    task: str | None
    cause: str | None
    error: str | None
    older_seconds: float
    newer_seconds: float
    matching: re.Pattern[str] | None = None

    def takes(self, letter: Letter, now: float) -> bool:
        """Whether all filters apply to it; ids are looked at before it is read."""
        return (
            _is_named(letter.task, self.task)
            and _is_named(letter.error, self.error)
            and self.cause in (None, letter.cause)
            and self.older_seconds <= now - letter.ended <= self.newer_seconds
            and (self.matching is None or self.matching.search(f"{letter.error}: {letter.message}".removeprefix(": ")) is not None)
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """A letter, its blob, and what could be read of it: None if nothing."""

    letter: Letter
    blob: LetterBlob
    dead: DeadLetter | None
    batch: BatchLetter | None = None

    def is_chosen(self, chosen: Choice, now: float) -> bool:
        """Whether all filters apply to it: to a batch, if they do to one of the failures that were looked at."""
        if self.batch is None:
            return chosen.takes(self.letter, now)
        kinds = {(str(failure.cause), failure.type, failure.message) for _, failure in self.batch.found}
        return any(chosen.takes(replace(self.letter, cause=cause, error=error, message=said), now) for cause, error, said in kinds)


def make_choice(app: str, ids: tuple[str, ...], filters: Filters, everything: bool = True) -> Choice:
    """What was asked for; raises DeclarationError for what cannot be, and for nothing at all unless everything is meant."""
    _check(ids, filters, everything)
    said = {name: value for name, value in filters.items() if value is not None}
    if not (ids or said or everything):
        raise DeclarationError("Say which: ids, filters as in task='step', or everything=True.")
    cause = said.get("cause")
    if cause is not None and cause not in CAUSES:
        raise DeclarationError(f"cause must be one of {', '.join(map(repr, CAUSES))}; got {cause!r}.")
    queue = said.get("queue")
    return Choice(
        ids=frozenset(ids),
        queue=None if queue is None else layout.check_queue_name(app, queue),
        task=_text("task", said.get("task")),
        cause=None if cause is None else str(cause),
        error=_text("error", said.get("error")),
        # Clocks of storage and workers may differ by a little: what has just ended is not from the future.
        older_seconds=seconds("older_than", said["older_than"], least=0) if "older_than" in said else float("-inf"),
        newer_seconds=seconds("newer_than", said["newer_than"], least=0) if "newer_than" in said else float("inf"),
        matching=_pattern(said.get("matching")),
    )


def _check(ids: tuple[object, ...], filters: Filters, everything: object) -> None:
    for each in ids:
        if isinstance(each, Handle):
            raise DeclarationError(f"A dead letter is named by the call's id: pass handle.id, {each.id!r}, and not the handle.")
        if not isinstance(each, str):
            raise DeclarationError(f"An id is a string, and several are given as in retry(*ids); got {each!r}.")
    if not isinstance(everything, bool):
        raise DeclarationError(f"everything must be True or False; got {everything!r}.")
    known = Filters.__annotations__
    for name in filters:
        if name not in known:
            raise DeclarationError(f"{name!r} is no filter of dead letters. There are: {', '.join(known)}.")


def _text(name: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise DeclarationError(f"{name} must be a name, as a string; got {value!r}.")


def _pattern(value: object) -> re.Pattern[str] | None:
    text = _text("matching", value)
    try:
        return None if text is None else re.compile(text)
    except re.error as exc:
        raise DeclarationError(f"matching must be a regular expression; {text!r} is none: {exc}.") from exc


def _is_named(name: str, wanted: str | None) -> bool:
    """Whether a dotted name is the one that is wanted, or ends with it."""
    return wanted is None or name == wanted or name.endswith(f".{wanted}")


async def opened_letters(ledger: Ledger, chosen: Choice) -> AsyncIterator[list[Opened]]:
    """The letters that are chosen, some at a time, so that there may be any number of them."""
    now = await ledger.transport.server_time()
    batch: list[BlobInfo] = []
    async for info in _newest_letters(ledger, chosen):
        batch.append(info)
        if len(batch) == LETTERS_IN_FLIGHT:
            yield await _read(ledger, batch, chosen, now)
            batch = []
    if batch:
        yield await _read(ledger, batch, chosen, now)


async def _newest_letters(ledger: Ledger, chosen: Choice) -> AsyncIterator[BlobInfo]:
    """The letters of the newest runs, tombstones left out; those of one subject follow each other in a listing."""
    last: tuple[str, str, int] | None = None
    newest: BlobInfo | None = None
    async for info in (await ledger.store()).list(layout.letters(chosen.queue), with_metadata=True):
        found = _parts(info.name)
        if found is None or (chosen.ids and found[1] not in chosen.ids):
            continue
        if last is None or found[:2] != last[:2]:
            if newest is not None and _stands(newest):
                yield newest
        elif found[2] < last[2]:
            continue
        last, newest = found, info
    if newest is not None and _stands(newest):
        yield newest


def _stands(info: BlobInfo) -> bool:
    """Whether this is no tombstone; a batch's letter is empty in any case."""
    return bool(info.size) or (layout.batch_letter_parts(info.name) is not None and not info.metadata.get("fate"))


def _parts(name: str) -> tuple[str, str, int] | None:
    """Queue, subject and run of a letter; None for what somebody else has put there."""
    if (parts := layout.batch_letter_parts(name)) is not None:
        return *parts, OF_A_BATCH
    try:
        return layout.letter_parts(name)
    except MessageError:
        return None


async def _read(ledger: Ledger, batch: list[BlobInfo], chosen: Choice, now: float) -> list[Opened]:
    found = await together(_open(ledger, info) for info in batch)
    return [opened for opened in found if opened and opened.is_chosen(chosen, now)]


async def late_letter(ledger: Ledger, outcome: Outcome) -> Opened | None:
    """The letter of a failure that a worker is just about to write: callers may know the outcome a moment before."""
    name, store = layout.dead_letter(outcome.queue, outcome.call, outcome.run), await ledger.store()
    give_up = boottime() + LATE_SECONDS
    while True:
        with suppress(NotFound):
            return await _open(ledger, await store.head(name))
        if boottime() > give_up:
            return None
        await asyncio.sleep(LATE_PAUSE_SECONDS)


async def _open(ledger: Ledger, info: BlobInfo) -> Opened | None:
    """The letter, in so far as it can be read; None if it was laid down meanwhile."""
    if (parts := layout.batch_letter_parts(info.name)) is not None:
        return await _open_batch(ledger, info, *parts)
    blob = await reruns.letter_blob(ledger, info.name)
    if not blob.data:
        return None
    queue, subject, run = layout.letter_parts(info.name)
    known: dict[str, Any] = {"id": subject, "queue": queue, "run": run, "retrying": blob.fate == Fate.RETRYING}
    try:
        dead = ledger.wire.unseal(DeadLetter, blob.data, info.name)
    except MessageError as exc:
        message = f"The letter itself cannot be read. {exc}"
        letter = Letter(**known, cause=UNREADABLE, error=type(exc).__name__, message=message, ended=info.modified)
        return Opened(letter, blob, None)
    return Opened(_letter(dead, known, info), blob, dead)


async def _open_batch(ledger: Ledger, info: BlobInfo, queue: str, batch: str) -> Opened | None:
    blob = LetterBlob(info.name, etag=info.etag, modified=info.modified)
    try:
        found = await open_letter(ledger, info)
    except MessageError as exc:
        message = f"The batch's records cannot be read. {exc}"
        letter = Letter(batch, queue, 1, UNREADABLE, message, info.modified, error=type(exc).__name__)
        return Opened(letter, blob, None)
    if found is None:
        return None
    first, failure = found.first
    letter = Letter(
        id=batch,
        queue=queue,
        run=found.reckoned.run,
        cause=str(failure.cause),
        message=found.message,
        ended=found.ended,
        task=found.meta.call.task,
        error=failure.type,
        traceback=failure.traceback,
        attempts=first.outcome.attempts,
        worker=first.entry.worker,
        failures=found.reckoned.failures,
        causes=found.causes,
    )
    return Opened(letter, blob, None, found)


def _letter(dead: DeadLetter, known: dict[str, Any], info: BlobInfo) -> Letter:
    outcome = dead.outcome
    if dead.call is None or outcome is None:
        error, _, message = dead.reason.partition(": ")
        return Letter(**known, cause=UNREADABLE, error=error, message=message, ended=info.modified, raw=dead.raw)
    failure = outcome.failure
    return Letter(
        **known,
        task=outcome.task,
        cause=str(failure.cause) if failure else dead.reason,
        error=failure.type if failure else "",
        message=failure.message if failure else "",
        traceback=failure.traceback if failure else "",
        attempts=outcome.attempts,
        worker=outcome.worker,
        ended=info.modified if outcome.ended is None else outcome.ended,
        sent=dead.call.sent,
        started=outcome.started,
        arguments=arguments_of(dead.call),
    )


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """Do these at the same time, all to their end, whichever of them fails."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
