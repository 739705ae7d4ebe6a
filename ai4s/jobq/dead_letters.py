"""Dead letters as a person handles them: list the calls that failed, with their causes; retry them, or purge them.

A letter is never lost: it is laid down only after the next run's message is on the queue, and one that is being retried cannot
be purged. Whatever was cut short is finished by asking again.

Next: `letters.py` for how they are found, `reruns.py` for the steps of a retry.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Unpack

from . import layout, reruns
from .client import Client
from .errors import ResultGone
from .handle import Handle, Sent
from .ledger import Ledger
from .letters import Choice, Filters, Letter, Opened, late_letter, make_choice, opened_letters, together
from .message import DeadLetter, State
from .reruns import Fate
from .retry import whole_number

__all__ = ["DeadLetters", "Filters", "Letter", "Retried"]


class Retried(NamedTuple):
    """What a retry has done: handles of calls that run again, ids of messages put back, and why others were left alone, by id."""

    handles: list[Handle[Any]]
    put_back: list[str]
    left: dict[str, str]


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
            ids: of calls or unreadable messages; the text of such a message goes back on its queue as it was.
            everything: must be True if neither ids nor filters are given.
            filters: see `Filters`.

        Handles of the calls, old ones too, wait for the new run. If this raises, ask again: what was done is not done twice.
        """
        chosen = make_choice(self._client.name, ids, filters, everything)
        return self._client.run(partial(self._retry, chosen))

    async def aretry(self, *ids: str, everything: bool = False, **filters: Unpack[Filters]) -> Retried:
        """As `retry`."""
        chosen = make_choice(self._client.name, ids, filters, everything)
        return await self._client.arun(partial(self._retry, chosen))

    def purge(self, *ids: str, everything: bool = False, **filters: Unpack[Filters]) -> _Ids:
        """Remove letters; the calls stay as failed as they are, and cannot be retried any more. Arguments as for `retry`.

        Returns the ids of those removed; a letter whose retry was begun is left.
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

    async def _retry(self, chosen: Choice, ledger: Ledger) -> Retried:
        done = Retried([], [], {})
        async for opened in opened_letters(ledger, chosen):
            await together(self._retry_one(ledger, each, done) for each in opened)
        missing = chosen.ids - {*(handle.id for handle in done.handles), *done.put_back, *done.left}
        await together(self._retry_missing(ledger, each, chosen, done) for each in sorted(missing))
        return done

    async def _retry_one(self, ledger: Ledger, opened: Opened, done: Retried) -> None:
        letter, dead = opened.letter, opened.dead
        if dead is None:
            done.left[letter.id] = letter.message
        elif dead.call is None:
            await self._put_back(ledger, opened, dead, done)
        elif reason := await _why_not(ledger, dead):
            done.left[letter.id] = reason
        else:
            await self._run_again(ledger, opened, dead, done)

    async def _put_back(self, ledger: Ledger, opened: Opened, dead: DeadLetter, done: Retried) -> None:
        blob = await reruns.claim(ledger, opened.blob)
        if blob.data:
            await reruns.put_back(ledger, blob, opened.letter.queue, dead.raw)
        if blob.fate == Fate.PURGED:
            done.left[opened.letter.id] = _PURGED
        else:
            done.put_back.append(opened.letter.id)

    async def _run_again(self, ledger: Ledger, opened: Opened, dead: DeadLetter, done: Retried) -> None:
        assert dead.call is not None
        blob = await reruns.claim(ledger, opened.blob)
        if blob.fate == Fate.PURGED:
            done.left[dead.call.id] = _PURGED
            return
        call = reruns.next_run(dead.call, await ledger.transport.server_time())
        receipt = await reruns.start(ledger, call, blob, ledger.send)
        message = Sent(call.queue, receipt) if receipt else None
        handle = Handle[Any](self._client, call.id, run=call.run, codec=call.codec, message=message, queue=call.queue)
        done.handles.append(handle)

    async def _retry_missing(self, ledger: Ledger, subject: str, chosen: Choice, done: Retried) -> None:
        """An id without a letter: its call was retried before, or its worker is about to write it, or there is nothing to retry."""
        done.left[subject] = "There is no such dead letter."
        if not layout.CALL_ID.fullmatch(subject):
            return
        with suppress(ResultGone):
            run, outcome = await reruns.newest(ledger, subject)
            if outcome is not None and outcome.state is State.FAILED and chosen.queue in (None, outcome.queue):
                late = await late_letter(ledger, outcome)
                if late is not None and chosen.takes(late.letter, await ledger.transport.server_time()):
                    del done.left[subject]
                    await self._retry_one(ledger, late, done)
            elif run > 1:
                del done.left[subject]
                done.handles.append(Handle(self._client, subject, run=run))

    async def _purge(self, chosen: Choice, ledger: Ledger) -> _Ids:
        purged: _Ids = []
        async for opened in opened_letters(ledger, chosen):
            gone = await together(reruns.purge(ledger, each.blob) for each in opened)
            purged += [each.letter.id for each, is_gone in zip(opened, gone, strict=True) if is_gone]
        return purged


# Where `list` is a method, it is no type.
_Letters = list[Letter]
_Ids = list[str]

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
