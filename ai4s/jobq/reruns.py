"""The next run of a call that failed: asked for by a marker, sent, and found by whoever waits.

The steps stand in an order in which each may be the last: claim the dead letter, put the marker, send, lay the letter down. Asking
again goes on from there, and what may have been sent before says so (`resent`), so that the run ends once. Only a run whose outcome
is a failure has a next one: a success is never superseded. Of several who ask at a time one has the claim; the others wait for it.

Next: `dead_letters.py` and `submission.py`, which ask for it; `handle.py`, which follows.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from . import layout
from .errors import AlreadyExists, ConditionFailed, MessageError, NotFinished, NotFound, ResultGone
from .ledger import Ledger
from .message import Call, DeadLetter, Outcome, RetryRecord, State

T = TypeVar("T")

CLAIM_SECONDS = 30.0
"""How long the others leave it to whoever claimed a letter, by the server's clock; then they take that one for dead.

As long as a send is tried again; without a fault a claim lasts for three requests.
"""

LATE_SECONDS = 5.0
"""How long after its outcome a run's dead letter may still be on its way."""

LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.05, 1.0
"""Between two looks at what somebody else is doing; the pause doubles."""


class Fate(StrEnum):
    """What became of a dead letter; it stands in the blob's metadata. What is retried or purged is a tombstone: an empty blob.

    `RETRYING` forbids to purge it: the marker may be there already, and only the letter says what is still to be sent.
    """

    RETRYING = "retrying"
    RETRIED = "retried"
    PURGED = "purged"


@dataclass(frozen=True, slots=True)
class LetterBlob:
    """A dead letter as it lies there; without an etag, there is none. `claim` says whose retry it is, `modified` since when.

    `notes` are for onlookers: see `letter_notes.py`.
    """

    name: str
    data: bytes = b""
    etag: str | None = None
    fate: str = ""
    claim: str = ""
    modified: float = 0.0
    notes: Mapping[str, str] = field(default_factory=dict)


# reading


async def is_asked_for(ledger: Ledger, call: str, run: int) -> bool:
    """Whether somebody asked for this run, 2 or later. Raises MessageError for a record that is not this app's."""
    name = layout.retry(call, run)
    blob = await ledger.record(name)
    if blob is None:
        return False
    ledger.wire.unseal(RetryRecord, blob.data, name)
    return True


async def newest(ledger: Ledger, call: str, run: int = 1, known: Outcome | None = None) -> tuple[int, Outcome | None]:
    """The newest run of a call, looked for from `run` on, and its outcome, if it has ended; `known` is that of `run`.

    Costs a read for each outcome that is not known, and one for each failure. Raises ResultGone if the call was forgotten.
    """
    while True:
        outcome = known or await ledger.outcome(call, run)
        if outcome is None or outcome.state is not State.FAILED or not await is_asked_for(ledger, call, run + 1):
            return run, outcome
        run, known = run + 1, None


async def commit_newest(ledger: Ledger, outcome: Outcome) -> Outcome:
    """End the newest run, from `outcome.run` on, with this outcome unless it has ended; returns the outcome that stands."""
    while True:
        standing = await ledger.commit(outcome)
        if standing.state is not State.FAILED or not await is_asked_for(ledger, outcome.call, outcome.run + 1):
            return standing
        outcome = replace(outcome, run=outcome.run + 1)


async def letter_of(ledger: Ledger, call: Call, run: int) -> LetterBlob:
    """The dead letter of a run of `call` that failed, wherever that was queued.

    It is waited for if the run has just ended: its worker writes the outcome first.
    """
    outcome = await ledger.outcome(call.id, run)
    name = layout.dead_letter(outcome.queue if outcome and outcome.queue else call.queue, call.id, run)
    ended = float("-inf") if outcome is None or outcome.ended is None else outcome.ended
    while True:
        letter = await letter_blob(ledger, name)
        if letter.etag or abs(await ledger.transport.server_time() - ended) >= LATE_SECONDS:
            return letter
        await asyncio.sleep(LEAST_PAUSE_SECONDS)


async def letter_blob(ledger: Ledger, name: str) -> LetterBlob:
    """The dead letter of this name, or its tombstone."""
    blob = await ledger.record(name)
    if blob is None:
        return LetterBlob(name)
    notes = dict(blob.info.metadata)
    fate, claim = notes.pop("fate", ""), notes.pop("claim", "")
    return LetterBlob(name, blob.data, blob.info.etag, fate, claim, blob.info.modified, notes)


# asking


def next_run(call: Call, now: float) -> Call:
    """The next run of a call: what it was told to do, with budgets that nothing has been taken from yet.

    It goes on from the last checkpoint. Deaths and preemptions are counted from a checkpoint on, so what had been counted by then
    becomes 0 as they do: with the old numbers the new run could die that much more often. An `expires` that has passed is dropped:
    somebody wants the call run now.
    """
    return replace(
        call,
        run=call.run + 1,
        sent=now,
        eta=None,
        expires=None if call.expires is not None and call.expires <= now else call.expires,
        resent=True,
        errors=0,
        deaths=0,
        preemptions=0,
        alone=False,
        mark=None,
        checkpoint=replace(call.checkpoint, deaths=0, preemptions=0) if call.checkpoint else None,
    )


async def claim(ledger: Ledger, letter: LetterBlob, *, purged_too: bool = False) -> LetterBlob:
    """Note in a dead letter that it is being retried, so that nobody purges it or sends the same; returns it, or its tombstone.

    What somebody else is retrying is waited for, until it has been retried or its claim is old; then it is taken over. With
    `purged_too`, a letter that was purged is claimed as well. One that its worker has not written yet is not: an empty claim
    in its place would keep it from ever being written.
    """
    mine, pause = secrets.token_hex(8), LEAST_PAUSE_SECONDS
    while letter.fate != Fate.RETRIED and letter.claim != mine and (letter.data or (purged_too and letter.etag)):
        if await _is_held(ledger, letter):
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_PAUSE_SECONDS)
        else:
            with suppress(ConditionFailed, AlreadyExists):  # or this was done, and its answer lost: `mine` tells
                etag = await _put(ledger, letter, letter.data, {**letter.notes, "fate": Fate.RETRYING, "claim": mine})
                return replace(letter, etag=etag, fate=Fate.RETRYING, claim=mine)
        letter = await letter_blob(ledger, letter.name)
    return letter


async def _is_held(ledger: Ledger, letter: LetterBlob) -> bool:
    """Whether somebody claimed it lately. A time far in the future is that of a clock which was set, and counts as old."""
    return letter.fate == Fate.RETRYING and abs(await ledger.transport.server_time() - letter.modified) < CLAIM_SECONDS


async def start(ledger: Ledger, call: Call, letter: LetterBlob, send: Callable[[Call], Awaitable[T]]) -> T | None:
    """Ask for `call`'s run, send it unless it surely was sent, and lay the letter of the run before it down.

    Returns what `send` returned, or None if there was nothing to be sent any more.
    """
    if letter.fate == Fate.RETRIED:
        return None  # which is said only after its message was sent
    is_new = await _ask(ledger, call)
    sent = await send(call) if is_new or not await _has_ended(ledger, call) else None
    await _lay_down(ledger, letter)
    return sent


async def checkpointed(ledger: Ledger, call: Call, letter: LetterBlob) -> Call:
    """`call` with the checkpoint that the dead letter of the run before it knows, if there is one."""
    try:
        dead = ledger.wire.unseal(DeadLetter, letter.data, letter.name) if letter.data else None
    except MessageError:  # what it knows is a help, and no condition
        dead = None
    last = dead.call.checkpoint if dead and dead.call else None
    return replace(call, checkpoint=replace(last, deaths=0, preemptions=0) if last else None)


async def purge(ledger: Ledger, letter: LetterBlob) -> bool:
    """Replace a dead letter by a tombstone, which keeps a late worker from putting it back. False if it is being retried."""
    if letter.fate == Fate.RETRYING:
        return False
    try:
        await _put_tombstone(ledger, letter, Fate.PURGED)
    except (ConditionFailed, AlreadyExists):
        return (await letter_blob(ledger, letter.name)).fate == Fate.PURGED
    return True


async def put_back(ledger: Ledger, letter: LetterBlob, queue: str, text: str) -> None:
    """Put the text of a message that could not be read on its queue again, and lay the letter down."""
    await (await ledger.queue(queue)).send(text)
    await _lay_down(ledger, letter)


async def _ask(ledger: Ledger, call: Call) -> bool:
    """Put the marker; whether it was not there."""
    name = layout.retry(call.id, call.run)
    try:
        await (await ledger.store()).put(name, ledger.wire.seal(RetryRecord(call.sent), name), if_absent=True)
    except AlreadyExists:
        return False
    return True


async def _has_ended(ledger: Ledger, call: Call) -> bool:
    try:
        return await ledger.outcome(call.id, call.run) is not None
    except ResultGone:
        return True


async def _lay_down(ledger: Ledger, letter: LetterBlob) -> None:
    """Put the tombstone of a letter that was retried, also where its worker has not come to write it."""
    while letter.fate != Fate.RETRIED:
        try:
            await _put_tombstone(ledger, letter, Fate.RETRIED)
        except (ConditionFailed, AlreadyExists):
            letter = await letter_blob(ledger, letter.name)
        else:
            return


async def _put_tombstone(ledger: Ledger, letter: LetterBlob, fate: Fate) -> None:
    await _put(ledger, letter, b"", {"fate": fate})


async def _put(ledger: Ledger, letter: LetterBlob, data: bytes, metadata: dict[str, str]) -> str:
    """Put this in a letter's place if it is still as it was read; returns the etag."""
    condition: dict[str, Any] = {"if_match": letter.etag} if letter.etag else {"if_absent": True}
    return await (await ledger.store()).put(letter.name, data, metadata=metadata, **condition)


# forgetting


async def forget(ledger: Ledger, call: str) -> None:
    """Replace the outcomes of all runs by tombstones, and remove what belongs to them: spilled bytes, markers, dead letters.

    The first run's goes first, so that what is cut short can be repeated. Raises NotFinished before the end of the newest run, and
    ResultGone if the call was forgotten already; then too nothing is left of it.
    """
    runs, letters, gone = await _all_runs(ledger, call)
    for name in letters:
        await (await ledger.store()).put(name, b"", metadata={"fate": Fate.PURGED})
    for run in range(1, runs + 1):
        await ledger.forget(call, run)
    for run in range(runs, 1, -1):
        with suppress(NotFound, ConditionFailed):
            await (await ledger.store()).delete(layout.retry(call, run))
    if gone is not None:
        raise gone


async def _all_runs(ledger: Ledger, call: str) -> tuple[int, list[str], ResultGone | None]:
    """How many runs there are, the names of their dead letters, and the error if the call was forgotten."""
    letters: list[str] = []
    gone: ResultGone | None = None
    run = 1
    while True:
        try:
            outcome = await ledger.outcome(call, run)
        except ResultGone as exc:
            gone, outcome = gone or exc, None
        if outcome is None and gone is None:
            raise NotFinished(f"Call {call} has no outcome yet: wait for it, or cancel it first.")
        if outcome is not None and outcome.state is State.FAILED and outcome.queue:
            letters.append(layout.dead_letter(outcome.queue, call, run))
        may_have_next = outcome is None or outcome.state is State.FAILED
        if not may_have_next or not await is_asked_for(ledger, call, run + 1):
            return run, letters, gone
        run += 1
