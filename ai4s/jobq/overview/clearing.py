"""Clearing a queue: what can be received is cancelled, call by call, and only then taken off; batches are asked to stop.

The outcome is put before the message goes, so that whoever dies in between leaves a message that runs nothing. A pack's message
stays for a worker, since only entries of its log can end its calls. What cannot be read is left alone: it may be sound, and for
somebody else.

Next: `queues.py`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from .. import control
from ..batches import BatchLedger
from ..errors import LeaseLost, MessageError, ResultGone
from ..ledger import Ledger
from ..message import Call, Cause, DeadLetter, Failure, Outcome, PackHeader, State
from ..transports.base import MAX_RECEIVE, Delivery, Queue

LEASE_SECONDS = 60.0
"""For 32 calls, each of which takes two requests."""

ASIDE_SECONDS = 60.0
"""How long what is left alone stays out of sight, so that it is not met again; a worker sees to it a moment later."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """What a `clear` has done: `calls` were cancelled, `batches` asked to stop; `ended` messages were of calls that had ended.

    `unreadable` messages were left alone. `left` is how many messages are in the queue now: those, packs that wait for a worker,
    and calls that run or are delayed. With `force`, `dropped` messages were removed, and nothing else was done.
    """

    calls: int = 0
    batches: tuple[str, ...] = ()
    ended: int = 0
    unreadable: int = 0
    left: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Clearing:
    ledger: Ledger
    name: str
    queue: Queue
    calls: int = 0
    ended: int = 0
    batches: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)
    aside: set[str] = field(default_factory=set)

    async def all(self) -> None:
        """Until nothing new can be received."""
        while deliveries := await self.queue.receive(MAX_RECEIVE, lease_seconds=LEASE_SECONDS):
            known = self.aside.copy()
            await asyncio.gather(*(self._one(each) for each in deliveries))
            if known.issuperset(each.receipt.message_id for each in deliveries):
                return

    async def _one(self, delivery: Delivery) -> None:
        try:
            found = self.ledger.wire.unseal_delivery(delivery, self.name)
            if isinstance(found, Call):
                await self._cancel(found, delivery)
                return
            await self._ask_to_stop(found)
        except MessageError:
            self.unreadable.add(delivery.receipt.message_id)
        self.aside.add(delivery.receipt.message_id)
        with suppress(LeaseLost):
            await self.queue.release(delivery.receipt, delay_seconds=ASIDE_SECONDS)

    async def _cancel(self, call: Call, delivery: Delivery) -> None:
        mine = Outcome(
            call=call.id,
            run=call.run,
            state=State.CANCELLED,
            token=secrets.token_hex(8),
            task=call.task,
            queue=call.queue,
            codec=call.codec,
            attempts=call.attempt - 1,
            ended=delivery.server_time,
        )
        try:
            standing = await self.ledger.commit(mine)
        except ResultGone:
            standing = None
        if standing is not None and standing.state is State.FAILED:
            # Whoever wrote that died before the rest of it: without its letter nobody could retry the call.
            failure = standing.failure or Failure(Cause.RAISED, "", "unknown")
            await self.ledger.bury(DeadLetter(str(failure.cause), standing, call), call.queue, call.id, call.run)
        is_mine = standing is not None and standing.token == mine.token
        self.calls, self.ended = self.calls + is_mine, self.ended + (not is_mine)
        with suppress(LeaseLost):
            await self.queue.delete(delivery.receipt)

    async def _ask_to_stop(self, pack: PackHeader) -> None:
        if pack.batch not in self.batches:
            self.batches.add(pack.batch)
            await BatchLedger(self.ledger, pack.batch).request_cancel()
            await control.tell_cancelled(self.ledger, self.name, pack.batch)


async def clear(ledger: Ledger, name: str, *, force: bool) -> Cleared:
    """See `Queues.clear`."""
    queue = await ledger.queue(name)
    if force:
        dropped = await queue.depth()
        await queue.clear()
        return Cleared(dropped=dropped)
    clearing = _Clearing(ledger, name, queue)
    await clearing.all()
    return Cleared(
        calls=clearing.calls,
        batches=_in_order(clearing.batches),
        ended=clearing.ended,
        unreadable=len(clearing.unreadable),
        left=await queue.depth(),
    )


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
