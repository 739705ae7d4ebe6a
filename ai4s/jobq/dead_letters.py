"""Dead letters as a person handles them: list the calls that failed, with their causes; retry them, or purge them.

A letter is never lost: it is laid down only after the next run's message is on the queue, and one that is being retried cannot
be purged. Whatever was cut short is finished by asking again.

Next: `letters.py` for how they are found, `reruns.py` for the steps of a retry.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Unpack, cast

from . import layout, reruns
from .batches import BatchLedger
from .client import Client
from .errors import MessageError, NotFinished, ResultGone
from .handle import Handle, Sent
from .ledger import Ledger
from .letters import Choice, Filters, Letter, Opened, late_letter, make_choice, opened_letters, together
from .maps import letters as batch_letters
from .maps.batch import Batch
from .message import Call, DeadLetter, Outcome, State
from .reruns import Fate, LetterBlob
from .retry import whole_number
from .submission import Send

__all__ = ["DeadLetters", "Filters", "Letter", "Retried"]


class Retried(NamedTuple):
    """What a retry has done: handles of calls that run again, ids of messages put back, and why others were left alone, by id.

    A call that was retried before, and runs or has succeeded since, is among the handles. `batches` are those of which all failures
    run again.
    """

    handles: list[Handle[Any]]
    put_back: list[str]
    left: dict[str, str]
    batches: list[Batch[Any]]


class DeadLetters:
    """The dead letters of an app: `app.dead_letters`. Each method has an async twin with the prefix `a`; all are safe to repeat.

    Only the newest run of a call counts; what was retried or purged is there no more.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, limit: int | None = None, **filters: Unpack[Filters]) -> _Letters:
        """The letters that all filters apply to (see `Filters`), by queue and id, at most `limit`.

        Raises DeclarationError for a filter that cannot be.
        """
        return self._client.run(partial(self._list, make_choice(self._client.name, (), filters), limit))

    async def alist(self, *, limit: int | None = None, **filters: Unpack[Filters]) -> _Letters:
        """As `list`."""
        return await self._client.arun(partial(self._list, make_choice(self._client.name, (), filters), limit))

    def get(self, id: str) -> Letter | None:
        """The letter of the call, or the unreadable message, with this id; None if there is none."""
        return next(iter(self._client.run(partial(self._list, make_choice(self._client.name, (id,), {}), 1))), None)

    async def aget(self, id: str) -> Letter | None:
        """As `get`."""
        return next(iter(await self._client.arun(partial(self._list, make_choice(self._client.name, (id,), {}), 1))), None)

    def retry(self, *ids: str, everything: bool = False, **filters: Unpack[Filters]) -> Retried:
        """Run calls again: as the next run of the same call, with full budgets, from its last checkpoint on, at once.

        Args:
            ids: of calls, batches or unreadable messages; the text of such a message goes back on its queue as it was. Of a batch
                all failures run again.
            everything: must be True if neither ids nor filters are given.
            filters: see `Filters`.

        Handles of the calls, old ones too, wait for the new run. If this raises, ask again: what was done is not done twice, and
        a letter on which somebody died is taken up half a minute later. A letter that somebody else retries now is waited for.
        """
        work = partial(self._retry, make_choice(self._client.name, ids, filters, everything))
        if self._client.instead is not None:
            return self._client.instead(work)
        return self._client.run(work)

    async def aretry(self, *ids: str, everything: bool = False, **filters: Unpack[Filters]) -> Retried:
        """As `retry`."""
        work = partial(self._retry, make_choice(self._client.name, ids, filters, everything))
        if self._client.instead is not None:
            return cast("Retried", await asyncio.to_thread(self._client.instead, work))
        return await self._client.arun(work)

    def purge(self, *ids: str, everything: bool = False, **filters: Unpack[Filters]) -> _Ids:
        """Remove letters; the calls stay as failed as they are, and cannot be retried any more. Arguments as for `retry`.

        Returns the ids of those removed; left are a letter whose retry was begun, and that of a batch of which calls still run.
        """
        chosen = make_choice(self._client.name, ids, filters, everything)
        return self._client.run(partial(self._purge, chosen))

    async def apurge(self, *ids: str, everything: bool = False, **filters: Unpack[Filters]) -> _Ids:
        """As `purge`."""
        chosen = make_choice(self._client.name, ids, filters, everything)
        return await self._client.arun(partial(self._purge, chosen))

    def __repr__(self) -> str:
        return f"<DeadLetters of {self._client.name} at {self._client.place.label}>"

    async def _list(self, chosen: Choice, limit: int | None, ledger: Ledger) -> _Letters:
        found: _Letters = []
        if limit is not None and whole_number("limit", limit, least=0) == 0:
            return found
        async for opened in opened_letters(ledger, chosen):
            found += [each.letter for each in opened]
            if limit is not None and len(found) >= limit:
                return found[:limit]
        return found

    async def _retry(self, chosen: Choice, ledger: Ledger, send: Send | None = None) -> Retried:
        retrying = _Retrying(self._client, ledger, send or Ledger.send, chosen, Retried([], [], {}, []))
        await retrying.all()
        return retrying.done

    async def _purge(self, chosen: Choice, ledger: Ledger) -> _Ids:
        purged: _Ids = []
        async for opened in opened_letters(ledger, chosen):
            gone = await together(_purge(ledger, each) for each in opened)
            purged += [each.letter.id for each, is_gone in zip(opened, gone, strict=True) if is_gone]
        return purged


@dataclass(frozen=True, slots=True)
class _Retrying:
    """One retry of what was chosen: `send` puts a call's message on its queue, `done` collects what came of each."""

    client: Client
    ledger: Ledger
    send: Send
    chosen: Choice
    done: Retried

    async def all(self) -> None:
        async for opened in opened_letters(self.ledger, self.chosen):
            await together(self._one(each) for each in opened)
        done = self.done
        found = {*(handle.id for handle in done.handles), *(batch.id for batch in done.batches), *done.put_back, *done.left}
        missing = self.chosen.ids - found
        await together(self._missing(each) for each in sorted(missing))

    async def _one(self, opened: Opened) -> None:
        letter, dead = opened.letter, opened.dead
        if opened.batch is not None:
            await self._batch(letter.id)
        elif dead is None:
            self.done.left[letter.id] = letter.message
        elif dead.call is None:
            await self._put_back(opened, dead)
        elif reason := await _why_not(self.ledger, dead):
            self.done.left[letter.id] = reason
        else:
            await self._run_again(dead.call, opened.blob)

    async def _batch(self, batch_id: str) -> None:
        """Have the failures of a batch run again, or finish what somebody has begun."""
        batch: Batch[Any] = Batch(self.client, batch_id)
        try:
            await batch.run_failures(self.ledger)
        except (NotFinished, ResultGone, MessageError) as exc:
            self.done.left[batch_id] = str(exc)
        else:
            self.done.batches.append(batch)

    async def _put_back(self, opened: Opened, dead: DeadLetter) -> None:
        blob = await reruns.claim(self.ledger, opened.blob)
        if blob.data:
            await reruns.put_back(self.ledger, blob, opened.letter.queue, dead.raw)
        if blob.fate == Fate.PURGED:
            self.done.left[opened.letter.id] = _PURGED
        else:
            self.done.put_back.append(opened.letter.id)

    async def _run_again(self, failed: Call, letter: LetterBlob) -> None:
        blob = await reruns.claim(self.ledger, letter)
        if blob.fate == Fate.PURGED:
            self.done.left[failed.id] = _PURGED
            return
        call = reruns.next_run(failed, await self.ledger.transport.server_time())
        receipt = await reruns.start(self.ledger, call, blob, partial(self.send, self.ledger))
        message = Sent(call.queue, receipt) if receipt else None
        handle = Handle[Any](self.client, call.id, run=call.run, codec=call.codec, message=message, queue=call.queue)
        self.done.handles.append(handle)

    async def _missing(self, subject: str) -> None:
        """An id without a letter: its call was retried before, or its worker is about to write it, or there is nothing to retry."""
        self.done.left[subject] = "There is no such dead letter."
        if not layout.CALL_ID.fullmatch(subject):
            await self._missing_batch(subject)
            return
        with suppress(ResultGone):
            run, outcome = await reruns.newest(self.ledger, subject)
            if outcome is not None and outcome.state is State.FAILED:
                await self._late(outcome)
            elif run > 1:
                self._retried_before(subject, run, outcome)

    async def _missing_batch(self, subject: str) -> None:
        """A batch without a letter: perhaps it was retried before."""
        if batch := layout.batch_of(subject):
            self.done.left[subject] = f"It belongs to a batch, whose failures are retried as a whole: retry({batch!r})."
        if not layout.BATCH_ID.fullmatch(subject) or len(subject) > layout.MAX_BATCH_LENGTH:
            return
        with suppress(ResultGone, MessageError):
            if await BatchLedger(self.ledger, subject).retry(1) is not None:
                del self.done.left[subject]
                await self._batch(subject)

    async def _late(self, outcome: Outcome) -> None:
        if self.chosen.queue not in (None, outcome.queue):
            return
        late = await late_letter(self.ledger, outcome)
        if late is not None and self.chosen.takes(late.letter, await self.ledger.transport.server_time()):
            del self.done.left[outcome.call]
            await self._one(late)

    def _retried_before(self, call: str, run: int, outcome: Outcome | None) -> None:
        if outcome is None or outcome.state is State.SUCCEEDED:
            del self.done.left[call]
            self.done.handles.append(Handle(self.client, call, run=run))
        else:
            what = "was cancelled" if outcome.state is State.CANCELLED else "has expired"
            self.done.left[call] = f"Its run {run} {what}."


# Where `list` is a method, it is no type.
_Letters = list[Letter]
_Ids = list[str]


async def _purge(ledger: Ledger, opened: Opened) -> bool:
    if opened.batch is not None:
        return await batch_letters.purge(ledger, opened.batch)
    return await reruns.purge(ledger, opened.blob)


_PURGED = "It was purged meanwhile."


async def _why_not(ledger: Ledger, dead: DeadLetter) -> str:
    """Why this letter's call may not run again; empty if it may."""
    if dead.outcome is None:
        return "It does not say what came of the call."
    try:
        # Nobody but gc deletes an outcome. Without it, those who wait for the call would not find its next run.
        standing = await ledger.outcome(dead.outcome.call, dead.outcome.run) or await ledger.commit(dead.outcome)
    except ResultGone:
        return "It was forgotten."
    return "" if standing.state is State.FAILED else f"It has {standing.state}."
