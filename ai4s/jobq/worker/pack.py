"""One delivery of a pack, from its header to its settlement: admit, catch up with the log, deal the calls, log, settle.

As for single calls each step may be the last one before the process dies. What is logged stands for ever; what is not is run
again by the next delivery, which finds a mark if this one began to run anything after a first one had failed to settle.

Next: `dealing.py` for how calls run, `pack_log.py` for what is kept; `pack_upkeep.py` for what goes on meanwhile.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass, field, replace

from .. import layout
from ..batches import BatchLedger
from ..call_records import Subject, now_about
from ..errors import LeaseLost, Malformed, MessageError, ResultGone, Unfit
from ..lifecycle import Bury, Died, Release, decide
from ..message import NO_NEEDS, BatchMeta, Cause, Failure, PackHeader, Resources, State
from ..packing import PackInput
from ..printable import printable
from ..transports.base import MAX_DELAY_SECONDS, Delivery
from .counts import Counts
from .dealing import Dealer
from .lease import Lease
from .pack_calls import PackCalls, RunTimes, charges_of
from .pack_checkpoints import PackCheckpoints
from .pack_log import PackLog, Writer
from .pack_upkeep import upkeep
from .reckoning import Dealt, Reckoner
from .settlement import Settlement, refused, releasing
from .slots import PackTurn
from .workshop import Workshop

log = logging.getLogger("ai4s.jobq.worker")

CLOCK_SLACK_SECONDS = 1.0
"""An answer's Date has whole seconds: a message may seem to come up to one second before its time."""

MOST_PARTS = 32
"""Into how many messages a pack goes that has killed a worker: so a culprit among 4,096 calls is found in three deliveries."""

KNOWN_BATCHES = 64
"""Batches of which a worker remembers what their calls share."""

CROWDED_DELAY_SECONDS = 0.3
TURN_SECONDS = 0.5
"""How long a pack waits for those before it; one that would wait for longer goes back, to whoever is idle."""


@dataclass(frozen=True, slots=True)
class PackDelivery:
    """A pack's message, received."""

    header: PackHeader
    delivery: Delivery
    lease: Lease

    @property
    def may_have_run(self) -> bool:
        """Whether the message, or what it was split from, may have been worked on before."""
        return self.delivery.dequeue_count > 1 or self.header.resent or self.header.suspect


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """What a worker remembers of a batch: what its calls have in common, and how long they take."""

    meta: BatchMeta
    times: RunTimes = field(default_factory=RunTimes)


class Packs:
    """Runs the packs that one worker receives, several at a time."""

    def __init__(self, workshop: Workshop, settlement: Settlement, counts: Counts) -> None:
        self._shop, self._settlement, self._counts = workshop, settlement, counts
        self._known: OrderedDict[str, KnownBatch] = OrderedDict()
        self._dealers: list[tuple[str, Dealer]] = []

    def running(self) -> Mapping[str, int]:
        """How many calls of each batch run now."""
        found: Counter[str] = Counter()
        for batch, dealer in self._dealers:
            found[batch] += dealer.running
        return found

    async def run(self, pack: PackDelivery) -> None:
        """Work on one delivery. Raises LeaseLost, Unreachable, AccessDenied; the message then comes again."""
        header, delivery = pack.header, pack.delivery
        now_about(Subject(batch=header.batch))
        if header.not_before is not None and header.not_before - CLOCK_SLACK_SECONDS > delivery.server_time:
            await self._release(pack, header.not_before - delivery.server_time)
            return
        try:
            with self._shop.slots.arriving():
                known = await self._known_batch(pack)
            now_about(Subject(batch=header.batch, task=known.meta.call.task))
            pack.lease.context = copy_context()
            run = _PackRun(self._shop, pack, known, counts=self._counts, dealers=self._dealers)
            async with self._shop.slots.pack(run.call.pool, run.count, TURN_SECONDS, run.needs) as turn:
                if turn is not None:
                    await run.run(turn)
                    return
        except ResultGone:
            await pack.lease.patiently(pack.lease.delete)
            return
        except Unfit as exc:
            await self._settlement.refuse_unread(header.queue, delivery, pack.lease, exc)
            return
        except MessageError as exc:
            # Of what the calls share, or of an entry in the log's way. To pass that by would have its calls end twice, should
            # it be sound for somebody with other keys; so a person has to look.
            await self._settlement.bury_unread(header.queue, delivery, pack.lease, exc)
            return
        await self._release(pack, CROWDED_DELAY_SECONDS)

    async def _known_batch(self, pack: PackDelivery) -> KnownBatch:
        batch = pack.header.batch
        if batch not in self._known:
            found = await pack.lease.patiently(BatchLedger(self._shop.ledger, batch).meta)
            if found is None or found.call.queue != pack.header.queue:
                raise Malformed(f"There is no batch {batch!r} on this queue.")
            self._known[batch] = KnownBatch(found)
            if len(self._known) > KNOWN_BATCHES:
                self._known.popitem(last=False)
        self._known.move_to_end(batch)
        return self._known[batch]

    async def _release(self, pack: PackDelivery, delay_seconds: float) -> None:
        step = releasing(min(delay_seconds, MAX_DELAY_SECONDS))
        await pack.lease.patiently(lambda: pack.lease.settle(step))


class _PackRun:
    """One delivery on its way."""

    def __init__(
        self, workshop: Workshop, pack: PackDelivery, known: KnownBatch, *, counts: Counts, dealers: list[tuple[str, Dealer]]
    ) -> None:
        meta = known.meta
        self._shop, self._pack, self._meta, self._counts, self._dealers = workshop, pack, meta, counts, dealers
        self._header, self._lease = pack.header, pack.lease
        self._token = secrets.token_hex(8)
        self._calls = PackCalls.of(pack.header, known.times)
        self._batch = BatchLedger(workshop.ledger, pack.header.batch)
        to_server_time = pack.delivery.server_time - pack.delivery.received_at
        writer = Writer(workshop.duties.worker, counts, workshop.leases.clock, to_server_time)
        self._log = PackLog(self._batch, pack.header, self._calls, lease=pack.lease, writer=writer)
        pool = workshop.duties.tasks.get(meta.call.task) if meta.call.function is None else None
        self.call = replace(
            meta.call,
            pool=pool or meta.call.pool,
            python=pack.header.python,
            sent=pack.header.sent,
            run=pack.header.run,
        )

    @property
    def needs(self) -> Resources:
        """What a chunk of its calls needs beside a slot; nothing if it never gets that here, for then it goes back at once."""
        return NO_NEEDS if self._shop.duties.refuses(self.call) else self._shop.slots.needs(self.call)

    @property
    def count(self) -> int:
        """How many calls are still to be done."""
        return len(self._calls.open)

    async def run(self, turn: PackTurn) -> None:
        with self._shop.telemetry.processing(self.call, batch=self._header.batch, count=self.count) as process:
            self._process, self.call = process, replace(self.call, trace=process.trace)
            await self._run(turn)

    async def _run(self, turn: PackTurn) -> None:
        if self._pack.may_have_run:
            await self._log.catch_up()
        if self._calls.open and not await self._ended_early():
            await self._work(turn)
            return
        await self._log.append()
        await self._settle(0)

    # admit

    async def _ended_early(self) -> bool:
        """Whether the calls end, or go back, without being run."""
        expires = self.call.expires
        if expires is not None and self._pack.delivery.server_time >= expires:
            self._reckoner().end_all(State.EXPIRED)
            return True
        if await self._is_cancelled():
            self._reckoner().end_all(State.CANCELLED)
            return True
        return self._header.mark is not None and await self._after_death()

    async def _is_cancelled(self) -> bool:
        if not self._shop.orders.may_be_cancelled(self.call):
            return False
        try:
            return await self._lease.patiently(self._batch.is_cancelled)
        except MessageError as exc:
            log.error("Batch %s: a request to cancel it counts for nothing: %s", self._header.batch, printable(str(exc)))
            return False

    async def _after_death(self) -> bool:
        """An earlier delivery ended with its worker. Whose doing it was shows when the calls are apart: then the one is charged."""
        if len(self._calls.open) > 1:
            ordered = sorted(self._calls.open)
            size = -(-len(ordered) // MOST_PARTS)
            await self._log.give_all([ordered[start : start + size] for start in range(0, len(ordered), size)])
            return True
        (index,) = self._calls.open
        call = self._calls.call(self._meta, layout.packed_call_id(self._header.batch, index), index)
        failure = Failure(Cause.DIED, "", f"The worker that ran attempt {call.attempt} vanished, or the task killed it.")
        decision = decide(Died(failure), call, jitter=0)
        if isinstance(decision, Bury):
            self._calls.charge(index, replace(charges_of(call), deaths=call.deaths + 1))
            self._reckoner().fail_all(failure)
            return True
        # The lease that ran out was delay enough: it goes on here and now.
        self._calls.charge(index, charges_of(decision.call))  # type: ignore[union-attr]  # nothing else follows a death
        return False

    def _reckoner(self, found: PackInput | None = None) -> Reckoner:
        return Reckoner(self._shop.ledger, self._shop.leases.clock, self._dealt(found or PackInput(())))

    def _dealt(self, found: PackInput) -> Dealt:
        checkpoints = PackCheckpoints(self._shop.ledger, self._header, self._calls, lease=self._lease, token=self._token)
        checkpoints.renew = self._renew
        return Dealt(
            self._header, self._meta, found, self._calls, checkpoints, self._pack.delivery, self._lease, self._token, self._counts
        )

    # work

    async def _work(self, turn: PackTurn) -> None:
        reason = self._shop.duties.refuses(self.call)
        if reason is not None:
            log.warning("Batch %s is put aside: %s", self._header.batch, printable(reason))
            await self._refuse(decide(refused(self._pack.delivery, reason), self.call, jitter=0))
            return
        try:
            found = await self._lease.patiently(lambda: self._batch.input(self._header))
        except MessageError as exc:
            # Of a batch that was removed since this worker read what its calls share: then that says so, and no more is done.
            await self._lease.patiently(self._batch.meta)
            log.error("Batch %s: a pack's input cannot be read: %s", self._header.batch, printable(str(exc)))
            self._reckoner().fail_all(Failure(Cause.REFUSED, type(exc).__name__, str(exc)))
            await self._log.append()
            await self._settle(0)
            return
        self._calls.single = frozenset(self._header.first + place for place in found.spilled)
        if self._pack.may_have_run:
            await self._mark()
        await self._deal(found, turn)

    async def _mark(self) -> None:
        """Note that calls begin. As late as can be: what fails before is the storage's fault, and must not look like a death."""
        try:
            await self._lease.patiently(self._renew)
        except LeaseLost:
            # Lost before its time: most likely only the answer was, and the mark is there. Left behind it would count
            # as a death though nothing had run; so go on, as under any lost lease: values may still count.
            if not self._lease.in_time:
                raise

    async def _deal(self, found: PackInput, turn: PackTurn) -> None:
        dealer = Dealer(self._shop, self._dealt(found), self.call)
        self._lease.refresh = self._renew
        turn.estimate_seconds = lambda: dealer.estimate_seconds
        queue = await self._shop.ledger.queue(self._header.queue)
        self._dealers.append((self._header.batch, dealer))
        try:
            async with upkeep(dealer, self._log, self._lease, queue):
                await dealer.run()
        finally:
            self._dealers.remove((self._header.batch, dealer))
        await self._log.append()
        if dealer.put_aside is not None:
            await self._refuse(dealer.put_aside)
            return
        await self._settle(dealer.rest_seconds)

    async def _refuse(self, decision: object) -> None:
        """This worker cannot run the calls: leave them to others, or fail them all if there has been none for long."""
        if isinstance(decision, Release):
            log.warning("A pack of batch %s is put aside for %g s.", self._header.batch, decision.delay_seconds)
            self._counts.refused[self._pack.delivery.receipt.message_id] = self._shop.leases.clock() + decision.delay_seconds
            await self._give_back(decision.delay_seconds)
            return
        assert isinstance(decision, Bury)
        self._reckoner().fail_all(decision.failure)
        await self._log.append()
        await self._settle(0)

    # settle

    async def _settle(self, rest_seconds: float) -> None:
        """Delete the message once nothing is open; else give it back for `rest_seconds`."""
        with self._process.settling():
            if not self._calls.open:
                await self._lease.patiently(self._lease.delete)
            else:
                await self._give_back(rest_seconds)

    async def _give_back(self, delay_seconds: float) -> None:
        delay = min(delay_seconds, MAX_DELAY_SECONDS)
        not_before = self._pack.delivery.server_time + self._age() + delay if delay > 1 else None
        text = self._text(mark=None, not_before=not_before)
        await self._lease.patiently(lambda: self._lease.settle(releasing(delay, text)))

    def _age(self) -> float:
        return self._shop.leases.clock() - self._pack.delivery.received_at

    async def _renew(self) -> None:
        """Keep the message, with what is still to be done; from the second delivery on with a mark, since something may run."""
        mark = self._token if self._pack.may_have_run else None
        await self._lease.renew(self._text(mark=mark))

    def _text(self, **changes: object) -> str | None:
        """The message as it should be now; None, for it to stay as it is, if that does not fit, as thousands of charges may not."""
        header = self._calls.header(self._header, pos=self._log.pos, **changes)
        try:
            return self._shop.ledger.sealed_pack(header)
        except ValueError as exc:
            log.error("A pack's message stays as it is, and its calls may run again: %s", exc)
            return None
