"""Settling a delivery: the outcome, what follows it, and the end of the message, in an order in which every step may be the last.

The outcome first, then the dead letter, then the deletion: whoever gets the message again finds the outcome and goes on from
there. Under a lost lease only a success may still be written, and only if there is no outcome yet. Nothing else settles calls.

Next: `lifecycle.py` for the decisions; `ledger.py` for the requests.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from ..errors import LeaseLost, MessageError, ResultGone, TransportError, Unfit
from ..ledger import Ledger
from ..lifecycle import (
    Bury,
    Decision,
    Died,
    Finish,
    Happening,
    Raised,
    Refused,
    Release,
    Retry,
    TimedOut,
    decide,
    is_hopeless,
    unfit_delay_seconds,
)
from ..message import Call, Cause, Checkpoint, DeadLetter, Failure, Outcome, State
from ..printable import printable
from ..transports.base import MAX_DELAY_SECONDS, Delivery, Queue, Receipt
from .call_logs import CallLog
from .counts import Counts, Watched, how_ended, seen
from .lease import Clock, Lease

log = logging.getLogger("ai4s.jobq.worker")


@dataclass(frozen=True, slots=True)
class Attempt:
    """The record that goes down the pipeline."""

    call: Call
    delivery: Delivery
    lease: Lease
    token: str
    watched: Watched | None = None
    said: CallLog | None = None
    trace: str | None = None

    @property
    def redelivered(self) -> bool:
        """Whether the message may have been worked on before."""
        return self.delivery.dequeue_count > 1 or self.call.resent


class Settlement:
    """Settles the attempts of one worker, and counts them. Many at a time; each attempt only once."""

    def __init__(self, ledger: Ledger, worker: str, clock: Clock, *, counts: Counts) -> None:
        self._ledger, self._worker, self._clock, self.counts = ledger, worker, clock, counts

    async def settle(self, attempt: Attempt, happening: Happening, ran_from: float | None = None) -> None:
        if ran_from is not None:
            self.counts.note(happening)
        decision = decide(happening, attempt.call, jitter=random.random())
        await self._carry_out(decision, attempt, happening, ran_from)
        (attempt.watched or Watched(self.counts, seen(attempt.call))).end(*how_ended(happening, decision))

    async def _carry_out(self, decision: Decision, attempt: Attempt, happening: Happening, ran_from: float | None) -> None:
        match decision:
            case Finish(state, value):
                await self._end(attempt, self._outcome(attempt, state, ran_from, value=value))
            case Bury(failure):
                await self._end(attempt, self._outcome(attempt, State.FAILED, ran_from, failure=failure))
            case Retry(call, delay_seconds):
                log.info("Call %s goes back and may run again in %.1f s: %s", described(call), delay_seconds, _reason(happening))
                await self._retry(attempt, call, delay_seconds)
            case Release(delay_seconds):
                assert isinstance(happening, Refused)
                reason = printable(happening.failure.message)
                log.warning("Call %s is put aside for %g s: %s", described(attempt.call), delay_seconds, reason)
                self._note_refused(attempt.delivery, delay_seconds)
                await self.release(attempt, delay_seconds)

    def _outcome(
        self, attempt: Attempt, state: State, ran_from: float | None, *, value: object = None, failure: Failure | None = None
    ) -> Outcome:
        call, delivery = attempt.call, attempt.delivery
        to_server_time = delivery.server_time - delivery.received_at
        return Outcome(
            call=call.id,
            run=call.run,
            state=state,
            token=attempt.token,
            task=call.task,
            queue=call.queue,
            codec=call.codec,
            value=value,  # type: ignore[arg-type]  # what Finish holds
            failure=failure,
            attempts=call.attempt if ran_from else call.attempt - 1,
            worker=self._worker,
            started=ran_from + to_server_time if ran_from else None,
            ended=self._clock() + to_server_time,
            tail=attempt.said.tail if attempt.said is not None else "",
        )

    async def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        """Commit the outcome unless there is one, and finish whichever stands."""
        await self._finish_standing(attempt, lambda: self._commit(attempt, outcome))

    async def _commit(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        # Looked at before each try: the lease may run out between two of them.
        if outcome.state is not State.SUCCEEDED and not attempt.lease.held:
            raise LeaseLost("The lease was lost, and only a success may be written without one.")
        standing = await self._ledger.commit(outcome)
        if attempt.said is not None:
            attempt.said.is_kept = standing.token == outcome.token
        if standing.token != outcome.token and outcome.state is not State.CANCELLED:  # whoever cancelled it has written that
            self.counts.fenced += 1
            if attempt.watched is not None:
                attempt.watched.end("fenced")
            log.warning(
                "Call %s had ended before (%s): what came of it here does not count.", described(attempt.call), standing.state
            )
        return standing

    async def _finish(self, attempt: Attempt, standing: Outcome) -> None:
        """What follows an outcome, whoever wrote it: the dead letter, then the deletion of the message."""
        call = attempt.call
        if standing.state is State.FAILED:
            self.counts.failed += 1
            failure = standing.failure or Failure(Cause.RAISED, "", "unknown")
            log.error("Call %s failed for good: %s", described(call), told(failure))
            letter = DeadLetter(reason=str(failure.cause), outcome=standing, call=call)
            await attempt.lease.patiently(lambda: self._ledger.bury(letter, call.queue, call.id, call.run))
            self.counts.dead += 1
        else:
            self.counts.succeeded += standing.state is State.SUCCEEDED
            if call.checkpoint is not None:
                await drop_checkpoint(self._ledger, call.id, call.checkpoint)
        await attempt.lease.patiently(attempt.lease.delete)

    async def _retry(self, attempt: Attempt, call: Call, delay_seconds: float) -> None:
        self.counts.retried += 1
        eta = attempt.delivery.server_time + delay_seconds if delay_seconds > MAX_DELAY_SECONDS else None
        _, text = await self._ledger.sealed(replace(call, eta=eta))
        step = releasing(min(delay_seconds, MAX_DELAY_SECONDS), text)
        await attempt.lease.patiently(lambda: attempt.lease.settle(step))

    async def release(self, attempt: Attempt, delay_seconds: float) -> None:
        """Give the message back uncharged. After a redelivery there may be a mark in it, which must not stand for a death."""
        text = (await self._ledger.sealed(attempt.call))[1] if attempt.redelivered else None
        await attempt.lease.patiently(lambda: attempt.lease.settle(releasing(delay_seconds, text)))

    async def ended_before(self, attempt: Attempt) -> bool:
        """Whether an earlier delivery ended this run; if so, finish what it may have left undone."""
        call = attempt.call
        return await self._finish_standing(attempt, lambda: self._ledger.outcome(call.id, call.run))

    async def _finish_standing(self, attempt: Attempt, read: Callable[[], Awaitable[Outcome | None]]) -> bool:
        """Finish the settlement of the outcome that `read` gives, whoever wrote it; False if there is none."""
        try:
            standing = await attempt.lease.patiently(read)
        except ResultGone:
            await attempt.lease.patiently(attempt.lease.delete)
            return True
        except Unfit as exc:
            await self.refuse_unread(attempt.call.queue, attempt.delivery, attempt.lease, exc)
            return True
        except MessageError as exc:
            await self.bury_unread(attempt.call.queue, attempt.delivery, attempt.lease, exc)
            return True
        if standing is not None:
            await self._finish(attempt, standing)
        return standing is not None

    async def refuse_unread(self, queue_name: str, delivery: Delivery, lease: Lease, exc: Unfit) -> None:
        if is_hopeless(refused(delivery, str(exc))):
            await self.bury_unread(queue_name, delivery, lease, exc)
            return
        seconds = unfit_delay_seconds(delivery.dequeue_count)
        log.warning("Message %s is put aside for %g s: %s", delivery.receipt.message_id, seconds, printable(str(exc)))
        self._note_refused(delivery, seconds)
        await lease.patiently(lambda: lease.settle(releasing(seconds)))

    async def bury_unread(self, queue_name: str, delivery: Delivery, lease: Lease, exc: MessageError) -> None:
        log.error("Message %s is a dead letter: %s", delivery.receipt.message_id, printable(str(exc)))
        self.counts.failed += 1
        letter = DeadLetter(reason=printable(f"{type(exc).__name__}: {exc}"), raw=delivery.body)
        await lease.patiently(lambda: self._ledger.bury(letter, queue_name, delivery.receipt.message_id, 1))
        self.counts.dead += 1
        await lease.patiently(lease.delete)

    def _note_refused(self, delivery: Delivery, seconds: float) -> None:
        self.counts.refused[delivery.receipt.message_id] = self._clock() + seconds


def refused(delivery: Delivery, reason: str) -> Refused:
    """What a worker that cannot run the message's call says of it."""
    failure = Failure(Cause.REFUSED, "", reason)
    return Refused(failure, delivery.dequeue_count, delivery.server_time - delivery.inserted)


def _reason(happening: Happening) -> str:
    if isinstance(happening, Raised | TimedOut | Died):
        return told(happening.failure)
    return type(happening).__name__.lower()


def told(failure: Failure) -> str:
    """The first line of a failure, fit for a log."""
    line = failure.message.partition("\n")[0]
    return printable(f"{failure.type}: {line}" if failure.type else line)


def described(call: Call) -> str:
    """A call for a log."""
    return f"{call.id} of {printable(call.task)}"


async def drop_checkpoint(ledger: Ledger, call: str, checkpoint: Checkpoint) -> None:
    """Remove a checkpoint that nobody will ask for; one that stays behind is left to `gc`."""
    try:
        await ledger.drop_checkpoint(call, checkpoint)
    except TransportError as exc:
        log.warning("An old checkpoint of call %s stays behind: %s", call, printable(str(exc)))


def releasing(delay_seconds: float, body: str | None = None) -> Callable[[Queue, Receipt], Awaitable[None]]:
    """A settling step: give the message back."""
    return lambda queue, receipt: queue.release(receipt, delay_seconds=delay_seconds, body=body)
