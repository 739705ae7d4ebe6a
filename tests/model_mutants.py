"""Rules of the protocol, each removed for the length of a block: whoever checks histories must notice.

Next: `unit/test_model.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from ai4s.jobq import layout, reruns
from ai4s.jobq.errors import LeaseLost
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Outcome
from ai4s.jobq.worker.attempt import Attempts
from ai4s.jobq.worker.lease import Lease, LeaseKeeper
from ai4s.jobq.worker.settlement import Attempt, Settlement


def plain_puts() -> AbstractContextManager[Any]:
    """An outcome replaces the one that stands."""

    async def commit(self: Ledger, outcome: Outcome) -> Outcome:
        store = await self.store()
        await store.put(layout.result(outcome.call, outcome.run), self.wire.seal_outcome(outcome))
        return outcome

    return patch.object(Ledger, "commit", commit)


def no_renewals() -> AbstractContextManager[Any]:
    """A lease ends although its task runs."""

    async def keep(self: LeaseKeeper) -> None:
        await asyncio.Event().wait()

    return patch.object(LeaseKeeper, "keep", keep)


def letters_last() -> AbstractContextManager[Any]:
    """The message goes before its dead letter is there."""
    whole = Settlement._finish

    async def finish(self: Settlement, attempt: Attempt, standing: Outcome) -> None:
        with contextlib.suppress(LeaseLost):
            await attempt.lease.patiently(attempt.lease.delete)
        await whole(self, attempt, standing)

    return patch.object(Settlement, "_finish", finish)


def blind_redeliveries() -> AbstractContextManager[Any]:
    """Nobody looks whether a call that came again has ended."""
    return patch.object(Attempts, "_may_have_ended", lambda *_: False)


def zombies_write_failures() -> AbstractContextManager[Any]:
    """A failure is written under a lost lease."""

    async def commit(self: Settlement, attempt: Attempt, outcome: Outcome) -> Outcome:
        return await self._ledger.commit(outcome)

    return patch.object(Settlement, "_commit", commit)


def unmarked_attempts() -> AbstractContextManager[Any]:
    """An attempt leaves no mark, so that nobody learns of its death."""

    async def mark(self: Attempts, attempt: Attempt) -> None: ...

    return patch.object(Attempts, "_mark", mark)


def unmarked_copies() -> AbstractContextManager[Any]:
    """A message that was sent again does not say so."""
    seal = Ledger.sealed

    async def sealed(self: Ledger, call: Any, room_bytes: int = 0) -> Any:
        return await seal(self, replace(call, resent=False), room_bytes)

    return patch.object(Ledger, "sealed", sealed)


def renewals_without_bodies() -> AbstractContextManager[Any]:
    """What a renewal is to write into the message is left out: marks and checkpoints."""
    renew = Lease.renew
    return patch.object(Lease, "renew", lambda self, body=None: renew(self))


def letters_laid_down_first() -> AbstractContextManager[Any]:
    """A dead letter is gone before the next run's message is there."""
    start = reruns.start

    async def lay_down_and_start(ledger: Ledger, call: Any, letter: Any, send: Any) -> Any:
        await reruns._lay_down(ledger, letter)
        return await start(ledger, call, letter, send)

    return patch.object(reruns, "start", lay_down_and_start)


MUTANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "without put-if-absent": plain_puts,
    "without renewal": no_renewals,
    "deleted before the dead letter": letters_last,
    "without a look at redelivery": blind_redeliveries,
    "failures under a lost lease": zombies_write_failures,
    "without a start mark": unmarked_attempts,
    "copies without a mark": unmarked_copies,
    "renewals without bodies": renewals_without_bodies,
    "letters laid down first": letters_laid_down_first,
}
