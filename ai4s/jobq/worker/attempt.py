"""One delivery of one call, from its text to its settlement: unseal, admit, execute under a lease, decide, settle.

Every request here may be the last one before the process dies, or lose its answer, so the order is the protocol: the outcome,
then the dead letter, then the message's deletion; whoever gets the message again finds the outcome and goes on from there.
Under a lost lease only a success may still be written, and only if there is no outcome yet.

Next: `lifecycle.py` for the decisions; `executors.py` for where it runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..clock import boottime
from ..errors import AccessDenied, LeaseLost, Malformed, MessageError, ResultGone, SignatureInvalid, Unfit, Unreachable
from ..ledger import Ledger
from ..lifecycle import (
    Bury,
    Died,
    Expired,
    Finish,
    Happening,
    Hindered,
    Raised,
    Refused,
    Release,
    Retry,
    Succeeded,
    decide,
    is_hopeless,
    unfit_delay_seconds,
)
from ..message import Call, Cause, DeadLetter, Failure, Outcome, State
from ..printable import printable
from ..transports.base import MAX_DELAY_SECONDS, Delivery, Queue, Receipt
from .duties import Duties
from .executors import Ending, Executors
from .jobs import Kind, Report
from .lease import Lease, LeaseKeeper
from .scratch import Scratch
from .slots import Closed, Slots

T = TypeVar("T")
log = logging.getLogger("ai4s.jobq.worker")

CLOCK_SLACK_SECONDS = 1.0
"""An answer's Date has whole seconds: a message may seem to come up to one second before its time."""

CROWDED_DELAY_SECONDS = 0.3
"""How long a call goes back that came along with others while its own pool was full."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
"""Between tries of a step that the storage did not take; on top of what the transport tried by itself."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The record that goes down the pipeline."""

    call: Call
    delivery: Delivery
    lease: Lease
    token: str

    @property
    def redelivered(self) -> bool:
        """Whether the message may have been worked on before."""
        return self.delivery.dequeue_count > 1 or self.call.resent


@dataclass(slots=True)
class Counts:
    """What became of this worker's attempts so far.

    `refused` holds messages put aside, and until when on the worker's clock; `hindered` counts attempts in a row that this
    machine could not even begin.
    """

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    given_back: int = 0
    lost: int = 0
    hindered: int = 0
    refused: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workshop:
    """What attempts work with."""

    ledger: Ledger
    executors: Executors
    slots: Slots
    scratch: Scratch
    leases: LeaseKeeper


class Attempts:
    """Runs deliveries to their settlement. One instance for a worker; `run` is called once for each delivery, many at a time."""

    def __init__(self, workshop: Workshop, duties: Duties) -> None:
        self._ledger, self._executors, self._slots = workshop.ledger, workshop.executors, workshop.slots
        self._scratch, self._leases, self._duties = workshop.scratch, workshop.leases, duties
        self.counts = Counts()

    async def run(self, queue: Queue, queue_name: str, delivery: Delivery) -> None:
        """Work on one delivery. Storage faults that outlast the lease leave the message to its next delivery."""
        try:
            async with self._leases.hold(queue, delivery) as lease:
                with self._slots.arriving():
                    attempt = await self._unseal(queue_name, delivery, lease)
                if attempt is not None:
                    await self._work(attempt)
        except LeaseLost:
            self.counts.lost += 1
            log.warning(
                "Message %s: the lease was lost before it was settled; it is left to whoever has it now.",
                delivery.receipt.message_id,
            )
        except (Unreachable, AccessDenied) as exc:
            self.counts.lost += 1
            log.error("Message %s could not be settled in time and will be delivered again: %s", delivery.receipt.message_id, exc)

    # unseal

    async def _unseal(self, queue_name: str, delivery: Delivery, lease: Lease) -> Attempt | None:
        """The call in the message; None if it holds none and has been settled."""
        try:
            call = self._ledger.wire.unseal_call(delivery.body, queue_name)
            if call.queue != queue_name:
                raise Malformed(f"The call belongs on the queue {call.queue[:60]!r}, and lay on {queue_name!r}.")
        except Unfit as exc:
            await self._refuse_unread(queue_name, delivery, lease, exc)
            return None
        except (Malformed, SignatureInvalid) as exc:
            await self._bury_unread(queue_name, delivery, lease, exc)
            return None
        known = self._duties.tasks.get(call.task) if call.function is None else None
        return Attempt(replace(call, pool=known or call.pool), delivery, lease, secrets.token_hex(8))

    async def _refuse_unread(self, queue_name: str, delivery: Delivery, lease: Lease, exc: Unfit) -> None:
        if is_hopeless(_refused(delivery, str(exc))):
            await self._bury_unread(queue_name, delivery, lease, exc)
            return
        seconds = unfit_delay_seconds(delivery.dequeue_count)
        log.warning("Message %s is put aside for %g s: %s", delivery.receipt.message_id, seconds, printable(str(exc)))
        self._note_refused(delivery, seconds)
        await _patiently(lease, lambda: lease.settle(_releasing(seconds)))

    async def _bury_unread(self, queue_name: str, delivery: Delivery, lease: Lease, exc: MessageError) -> None:
        log.error("Message %s is a dead letter: %s", delivery.receipt.message_id, printable(str(exc)))
        self.counts.failed += 1
        letter = DeadLetter(reason=f"{type(exc).__name__}: {exc}", raw=delivery.body)
        await _patiently(lease, lambda: self._ledger.bury(letter, queue_name, delivery.receipt.message_id, 1))
        await _patiently(lease, lease.delete)

    # admit

    async def _work(self, attempt: Attempt) -> None:
        early = self._early_seconds(attempt)
        if early > 0:
            await self._release(attempt, min(early, MAX_DELAY_SECONDS))
            return
        attempt, happening = self._admit(attempt)
        if happening is None and not self._slots.welcome(attempt.call.pool):
            await self._release(attempt, CROWDED_DELAY_SECONDS * (0.5 + random.random() / 2))
            return
        await (self._settle(attempt, happening) if happening else self._execute(attempt))

    async def _ended_before(self, attempt: Attempt) -> bool:
        """Whether an earlier delivery ended this run; if so, finish what it may have left undone."""
        call = attempt.call
        return await self._finish_standing(attempt, lambda: self._ledger.outcome(call.id, call.run))

    async def _finish_standing(self, attempt: Attempt, read: Callable[[], Awaitable[Outcome | None]]) -> bool:
        """Finish the settlement of the outcome that `read` gives, whoever wrote it; False if there is none."""
        try:
            standing = await _patiently(attempt.lease, read)
        except ResultGone:
            await _patiently(attempt.lease, attempt.lease.delete)
            return True
        except Unfit as exc:
            await self._refuse_unread(attempt.call.queue, attempt.delivery, attempt.lease, exc)
            return True
        except MessageError as exc:
            await self._bury_unread(attempt.call.queue, attempt.delivery, attempt.lease, exc)
            return True
        if standing is not None:
            await self._finish(attempt, standing)
        return standing is not None

    def _early_seconds(self, attempt: Attempt) -> float:
        eta = attempt.call.eta
        return 0 if eta is None else eta - CLOCK_SLACK_SECONDS - attempt.delivery.server_time

    def _admit(self, attempt: Attempt) -> tuple[Attempt, Happening | None]:
        """The attempt with earlier deaths charged, and what keeps it from running, if anything does."""
        call = attempt.call
        if call.expires is not None and attempt.delivery.server_time >= call.expires:
            return attempt, Expired()
        if call.mark is not None:
            message = f"The worker that ran attempt {call.attempt} vanished, or the task killed it."
            decision = decide(Died(Failure(Cause.DIED, "", message)), call, jitter=0)
            if isinstance(decision, Bury):
                return replace(attempt, call=replace(call, deaths=call.deaths + 1, mark=None)), Died(decision.failure)
            assert isinstance(decision, Retry)
            # The lease that ran out was delay enough: it goes on here and now.
            attempt = replace(attempt, call=decision.call)
        reason = self._duties.refuses(call)
        return attempt, _refused(attempt.delivery, reason) if reason else None

    # execute

    async def _execute(self, attempt: Attempt) -> None:
        call = attempt.call
        try:
            async with self._slots.take(call.pool):
                # Not before: a copy of the message may have been worked on while this one waited for the slot.
                if attempt.redelivered and await self._ended_before(attempt):
                    return
                with self._scratch.job_files() as files:
                    began = boottime()
                    happening = await self._outcome_of(attempt, *files)
                    # Settling needs the value's file, and holds the slot: what is not durable is not done.
                    await self._settle(attempt, happening, ran_from=began)
        except Closed:
            await self._release(attempt, 0)

    async def _mark(self, attempt: Attempt) -> None:
        """Note in the message that an attempt begins, so that one that never settles is known to have died."""
        _, text = await self._ledger.sealed(replace(attempt.call, mark=attempt.token))
        try:
            await _patiently(attempt.lease, lambda: attempt.lease.renew(text))
        except LeaseLost:
            # Lost before its time: most likely only the answer was, and the mark is there. Left behind it would count
            # as a death though nothing had run; so go on, as under any lost lease: a success may still count.
            if not attempt.lease.in_time:
                raise

    async def _outcome_of(self, attempt: Attempt, number: int, arguments: Path, value: Path) -> Happening:
        call = attempt.call
        try:
            job = await _patiently(attempt.lease, lambda: self._scratch.job(call, number, arguments, value))
            shipped = [str(await _patiently(attempt.lease, partial(self._scratch.payload, sha256))) for sha256 in call.ship]
        except MessageError as exc:
            return Raised(Failure(Cause.REFUSED, type(exc).__name__, str(exc)), retryable=False)
        except OSError as exc:
            log.error("Call %s goes back, since the worker's scratch folder failed: %s", call.id, exc)
            self.counts.hindered += 1
            return Hindered()
        if attempt.redelivered:
            # As late as can be: what fails before is the storage's fault, and must not look like a death.
            await self._mark(attempt)
        ending = await self._executors.run(job, tuple(shipped), self._duties.leaving)
        return await self._as_happening(attempt, ending, value)

    async def _as_happening(self, attempt: Attempt, ending: Ending, value: Path) -> Happening:
        self.counts.hindered = self.counts.hindered + 1 if isinstance(ending, Hindered) else 0
        if not isinstance(ending, Report):
            return ending
        self._slots.took(attempt.call.pool, ending.seconds)
        if ending.kind is Kind.RETURNED:
            data = value if ending.value is None else ending.value
            try:
                kept = await _patiently(attempt.lease, lambda: self._ledger.keep_value(attempt.call.id, attempt.token, data))
            except OSError as exc:  # charged, since the task has run, and may have made its own file unreadable
                return Died(Failure(Cause.DIED, type(exc).__name__, f"Its value could not be read from the scratch folder: {exc}"))
            return Succeeded(kept)
        assert ending.failure is not None
        if ending.kind is Kind.UNFIT:
            return _refused(attempt.delivery, ending.failure.message)
        return Raised(ending.failure, ending.retryable, ending.delay_seconds)

    # settle

    async def _settle(self, attempt: Attempt, happening: Happening, ran_from: float | None = None) -> None:
        match decide(happening, attempt.call, jitter=random.random()):
            case Finish(value):
                state = State.EXPIRED if value is None else State.SUCCEEDED
                await self._end(attempt, self._outcome(attempt, state, ran_from, value=value))
            case Bury(failure):
                await self._end(attempt, self._outcome(attempt, State.FAILED, ran_from, failure=failure))
            case Retry(call, delay_seconds):
                await self._retry(attempt, call, delay_seconds)
            case Release(delay_seconds):
                assert isinstance(happening, Refused)
                reason = printable(happening.failure.message)
                log.warning("Call %s is put aside for %g s: %s", _described(attempt.call), delay_seconds, reason)
                self._note_refused(attempt.delivery, delay_seconds)
                await self._release(attempt, delay_seconds)

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
            worker=self._duties.worker,
            started=ran_from + to_server_time if ran_from else None,
            ended=boottime() + to_server_time,
        )

    async def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        """Commit the outcome unless there is one, and finish whichever stands."""
        await self._finish_standing(attempt, lambda: self._commit(attempt, outcome))

    async def _commit(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        # Looked at before each try: the lease may run out between two of them.
        if outcome.state is not State.SUCCEEDED and not attempt.lease.held:
            raise LeaseLost("The lease was lost, and only a success may be written without one.")
        return await self._ledger.commit(outcome)

    async def _finish(self, attempt: Attempt, standing: Outcome) -> None:
        """What follows an outcome, whoever wrote it: the dead letter, then the deletion of the message."""
        call = attempt.call
        if standing.state is State.FAILED:
            self.counts.failed += 1
            failure = standing.failure or Failure(Cause.RAISED, "", "unknown")
            log.error(
                "Call %s of %s failed for good: %s", call.id, printable(call.task), printable(failure.message.partition("\n")[0])
            )
            letter = DeadLetter(reason=str(failure.cause), outcome=standing, call=call)
            await _patiently(attempt.lease, lambda: self._ledger.bury(letter, call.queue, call.id, call.run))
        else:
            self.counts.succeeded += standing.state is State.SUCCEEDED
        await _patiently(attempt.lease, attempt.lease.delete)

    async def _retry(self, attempt: Attempt, call: Call, delay_seconds: float) -> None:
        self.counts.retried += 1
        eta = attempt.delivery.server_time + delay_seconds if delay_seconds > MAX_DELAY_SECONDS else None
        _, text = await self._ledger.sealed(replace(call, eta=eta))
        step = _releasing(min(delay_seconds, MAX_DELAY_SECONDS), text)
        await _patiently(attempt.lease, lambda: attempt.lease.settle(step))

    async def _release(self, attempt: Attempt, delay_seconds: float) -> None:
        """Give the message back uncharged. After a redelivery there may be a mark in it, which must not stand for a death."""
        self.counts.given_back += 1
        text = (await self._ledger.sealed(attempt.call))[1] if attempt.redelivered else None
        await _patiently(attempt.lease, lambda: attempt.lease.settle(_releasing(delay_seconds, text)))

    def _note_refused(self, delivery: Delivery, seconds: float) -> None:
        self.counts.refused[delivery.receipt.message_id] = boottime() + seconds


def _refused(delivery: Delivery, reason: str) -> Refused:
    failure = Failure(Cause.REFUSED, "", reason)
    return Refused(failure, delivery.dequeue_count, delivery.server_time - delivery.inserted)


def _told(failure: Failure) -> str:
    line = failure.message.partition("\n")[0]
    return printable(f"{failure.type}: {line}" if failure.type else line)


def _described(call: Call) -> str:
    return f"{call.id} of {printable(call.task)}"


def _releasing(delay_seconds: float, body: str | None = None) -> Callable[[Queue, Receipt], Awaitable[None]]:
    return lambda queue, receipt: queue.release(receipt, delay_seconds=delay_seconds, body=body)


async def _patiently(lease: Lease, step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a step through storage faults for as long as the lease is ours; what each step does may be done twice."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await step()
        except (Unreachable, AccessDenied) as exc:
            if not lease.held:
                raise
            log.warning("Trying again while the lease lasts: %s", exc)
        await asyncio.sleep(pause * (0.5 + random.random() / 2))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
