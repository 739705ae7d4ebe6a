"""One delivery of one call, from its text to its settlement: unseal, admit, execute under a lease, decide, settle.

Each step may be the last one before the process dies, or lose its answer; the message then comes again, and its next delivery
finds what this one left: a start mark, or the outcome.

Next: `executors.py` for where a call runs; `settlement.py` for what becomes of it.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import partial

from ..call_records import now_about
from ..errors import AccessDenied, LeaseLost, Malformed, MessageError, SignatureInvalid, TransportError, Unfit, Unreachable
from ..lifecycle import Bury, Died, Expired, Happening, Hindered, Preempted, Raised, Retry, Succeeded, decide, is_hopeless
from ..message import Call, Cause, Failure, PackHeader
from ..printable import printable
from ..transports.base import MAX_DELAY_SECONDS, Delivery, Queue
from .checkpoints import Checkpoints, opened_checkpoints
from .child_process import ignore_said
from .counts import Watched, seen
from .current_calls import Current
from .executors import Ending, Work
from .gates import Share
from .jobs import Kind, Report
from .lease import Lease
from .pack import PackDelivery, Packs
from .scratch import JobFiles
from .settlement import Attempt, Settlement, refused, told
from .slots import Closed
from .workshop import Workshop

log = logging.getLogger("ai4s.jobq.worker")

CLOCK_SLACK_SECONDS = 1.0
"""An answer's Date has whole seconds: a message may seem to come up to one second before its time."""

CROWDED_DELAY_SECONDS = 0.3
"""How long a call goes back that came along with others while its own pool was full."""


class Attempts:
    """Runs deliveries to their settlement. One instance for a worker; `run` is called once for each delivery, many at a time."""

    def __init__(self, workshop: Workshop) -> None:
        self._ledger, self._executors, self._slots = workshop.ledger, workshop.executors, workshop.slots
        self._scratch, self._leases, self._duties = workshop.scratch, workshop.leases, workshop.duties
        self._interruptions, self._orders, self._logs = workshop.interruptions, workshop.orders, workshop.logs
        self._settlement = Settlement(workshop.ledger, workshop.duties.worker, workshop.leases.clock, counts=workshop.counts)
        self.counts, self._current, self._telemetry = workshop.counts, workshop.current, workshop.telemetry
        self._packs = Packs(workshop, self._settlement, self.counts)
        self._told_of_replies = False

    def running_batches(self) -> Mapping[str, int]:
        """How many calls of each batch run now."""
        return self._packs.running()

    async def run(self, queue: Queue, queue_name: str, delivery: Delivery) -> None:
        """Work on one delivery. Storage faults that outlast the lease leave the message to its next delivery."""
        try:
            async with self._leases.hold(queue, delivery) as lease:
                await self._run_held(queue_name, delivery, lease)
        except LeaseLost:
            self.counts.lost += 1
            log.warning(
                "Message %s: the lease was lost before it was settled; it is left to whoever has it now.",
                delivery.receipt.message_id,
            )
        except (Unreachable, AccessDenied) as exc:
            self.counts.lost += 1
            told_last = printable(str(exc))
            log.error(
                "Message %s could not be settled in time and will be delivered again: %s", delivery.receipt.message_id, told_last
            )

    async def _run_held(self, queue_name: str, delivery: Delivery, lease: Lease) -> None:
        with self._slots.arriving():
            attempt = None
            try:
                attempt = await self._unseal(queue_name, delivery, lease)
            finally:
                self._telemetry.opened(delivery, attempt.call.trace if isinstance(attempt, Attempt) else None)
        if isinstance(attempt, PackDelivery):
            await self._packs.run(attempt)
        elif attempt is not None:
            now_about(attempt.call)
            lease.context = copy_context()
            await self._work_or_give_up(attempt)

    async def _work_or_give_up(self, attempt: Attempt) -> None:
        """A call that meets a defect of ours at each delivery must not come for ever."""
        try:
            await self._work(attempt)
        except TransportError:
            raise
        except Exception as exc:
            hopeless = refused(attempt.delivery, f"Its workers have met a defect for a day, lately {type(exc).__name__}: {exc}")
            if not is_hopeless(hopeless):
                raise
            log.exception("Call %s has met a defect of the worker for a day.", attempt.call.id)
            await self._settlement.settle(attempt, hopeless)

    # unseal

    async def _unseal(self, queue_name: str, delivery: Delivery, lease: Lease) -> Attempt | PackDelivery | None:
        """The call or the pack in the message; None if it holds none and has been settled."""
        try:
            call = self._ledger.wire.unseal_delivery(delivery, queue_name)
            if call.queue != queue_name:
                raise Malformed(f"The message belongs on the queue {call.queue[:60]!r}, and lay on {queue_name!r}.")
        except Unfit as exc:
            await self._settlement.refuse_unread(queue_name, delivery, lease, exc)
            return None
        except (Malformed, SignatureInvalid) as exc:
            await self._settlement.bury_unread(queue_name, delivery, lease, exc)
            return None
        if isinstance(call, PackHeader):
            return PackDelivery(call, delivery, lease)
        self._note_reply(call)
        known = self._duties.tasks.get(call.task) if call.function is None else None
        if known not in (None, call.pool):
            call = replace(call, pool=known)
        return Attempt(call, delivery, lease, secrets.token_hex(8))

    def _note_reply(self, call: Call) -> None:
        """Say once that nobody gets the replies that producers of ai4s-jobq 3.x may wait for."""
        if call.version3 is not None and call.version3.reply_requested and not self._told_of_replies:
            self._told_of_replies = True
            log.warning("Call %s asks for a reply as ai4s-jobq 3.x sent them: none is sent, its outcome is kept instead.", call.id)

    # admit

    async def _work(self, attempt: Attempt) -> None:
        early = self._early_seconds(attempt)
        if early > 0:
            await self._settlement.release(attempt, min(early, MAX_DELAY_SECONDS))
            return
        attempt, happening = self._admit(attempt)
        if happening is None and not self._slots.welcome(attempt.call.pool, self._slots.needs(attempt.call)):
            await self._settlement.release(attempt, CROWDED_DELAY_SECONDS * (0.5 + random.random() / 2))
            return
        await (self._settlement.settle(attempt, happening) if happening else self._execute(attempt))

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
            now_about(attempt.call)
        reason = self._duties.refuses(call)
        return attempt, refused(attempt.delivery, reason) if reason else None

    # execute

    async def _execute(self, attempt: Attempt) -> None:
        try:
            async with self._slots.take(attempt.call.pool, self._slots.needs(attempt.call)) as share:
                # Not before: a copy of the message may have been worked on while this one waited for the slot.
                if self._may_have_ended(attempt) and await self._settlement.ended_before(attempt):
                    return
                await self._run_to_its_end(attempt, share)
        except Closed:
            await self._settlement.release(attempt, 0)

    async def _run_to_its_end(self, attempt: Attempt, share: Share) -> None:
        began, delivery = self._leases.clock(), attempt.delivery
        watched = Watched(self.counts, seen(attempt.call, began + delivery.server_time - delivery.received_at))
        processing = self._telemetry.processing(attempt.call)
        said = self._logs.opened(attempt.call, attempt.token)
        with processing as process, watched.unless_lost(), said as said_so_far, self._scratch.job_files() as files:
            attempt = replace(attempt, watched=watched, trace=process.trace, said=said_so_far)
            async with opened_checkpoints(self._ledger, attempt, files.checkpoint) as checkpoints:
                happening = await self._outcome_of(attempt, share, files, checkpoints)
                call = await checkpoints.finish()
                attempt = attempt if call is attempt.call else replace(attempt, call=call)
            # Settling needs the value's file, and holds the slot: what is not durable is not done.
            with process.settling():
                await self._settlement.settle(attempt, happening, ran_from=began)

    def _may_have_ended(self, attempt: Attempt) -> bool:
        """Whether it pays to look: after a redelivery, and for calls that were sent before somebody cancelled one."""
        return attempt.redelivered or self._orders.may_be_cancelled(attempt.call)

    async def _mark(self, attempt: Attempt) -> None:
        """Note in the message that an attempt begins, so that one that never settles is known to have died."""
        _, text = await self._ledger.sealed(replace(attempt.call, mark=attempt.token))
        try:
            await attempt.lease.patiently(lambda: attempt.lease.renew(text))
        except LeaseLost:
            # Lost before its time: most likely only the answer was, and the mark is there. Left behind it would count
            # as a death though nothing had run; so go on, as under any lost lease: a success may still count.
            if not attempt.lease.in_time:
                raise

    async def _outcome_of(self, attempt: Attempt, share: Share, files: JobFiles, checkpoints: Checkpoints) -> Happening:
        call = attempt.call if attempt.trace == attempt.call.trace else replace(attempt.call, trace=attempt.trace)
        try:
            job = await attempt.lease.patiently(lambda: self._scratch.job(call, files))
            shipped = [str(await attempt.lease.patiently(partial(self._scratch.payload, sha256))) for sha256 in call.ship]
        except MessageError as exc:
            return Raised(Failure(Cause.REFUSED, type(exc).__name__, str(exc)), retryable=False)
        except OSError as exc:
            log.error("Call %s goes back, since the worker's scratch folder failed: %s", call.id, printable(str(exc)))
            self.counts.hindered += 1
            return Hindered()
        if attempt.redelivered:
            # As late as can be: what fails before is the storage's fault, and must not look like a death.
            await self._mark(attempt)
        serve = self._scratch.serving(checkpoints.serve, attempt.lease.patiently)
        with self._interruptions.watched(call) as stop, self._begun(attempt) as current:
            said = ignore_said if attempt.said is None else attempt.said.hear
            work = Work(job, tuple(shipped), stop, serve, share=share, progressed=current.progressed, said=said)
            ending = await self._executors.run(work)
            if attempt.said is not None:
                attempt.said.close()
            if attempt.watched is not None:
                ran_seconds = self._leases.clock() - current.since
                attempt.watched.seconds = ending.seconds if isinstance(ending, Report) else ran_seconds
        inline = isinstance(ending, Report) and ending.value is not None and isinstance(call.arguments, bytes)
        files.none_made = inline and not checkpoints.asked
        return await self._as_happening(attempt, ending, files)

    @contextmanager
    def _begun(self, attempt: Attempt) -> Iterator[Current]:
        """Count and tell that the attempt runs, for the length of the block."""
        current = Current(attempt.call.id, attempt.call.task, self._leases.clock())
        if attempt.watched is not None:
            attempt.watched.begin()
        with self._current.told_by(lambda: current):
            yield current

    async def _as_happening(self, attempt: Attempt, ending: Ending, files: JobFiles) -> Happening:
        if isinstance(ending, Report) and ending.kind is Kind.HINDERED and ending.failure is not None:
            log.error("Call %s goes back, since this machine hindered it: %s", attempt.call.id, told(ending.failure))
            ending = Hindered()
        self.counts.hindered = self.counts.hindered + 1 if isinstance(ending, Hindered) else 0
        if not isinstance(ending, Report):
            return ending
        self._slots.took(attempt.call.pool, ending.seconds)
        if ending.kind is Kind.RETURNED:
            data = files.value if ending.value is None else ending.value
            try:
                kept = await attempt.lease.patiently(lambda: self._ledger.keep_value(attempt.call.id, attempt.token, data))
            except OSError as exc:  # charged, since the task has run, and may have made its own file unreadable
                return Died(Failure(Cause.DIED, type(exc).__name__, f"Its value could not be read from the scratch folder: {exc}"))
            return Succeeded(kept)
        if ending.kind is Kind.GIVEN_BACK:
            return Preempted()
        assert ending.failure is not None
        if ending.kind is Kind.UNFIT:
            return refused(attempt.delivery, ending.failure.message)
        return Raised(ending.failure, ending.retryable, ending.delay_seconds)
