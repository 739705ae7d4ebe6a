"""The calls of one delivery of a pack: which wait, run, have ended or are put off, and what they have used up. No I/O, no clock.

Every call is `open` until an entry of the log has its outcome or gives it away; only of an open call may an outcome be kept. So
what another worker has logged meanwhile, or is to run, can be dropped at any moment by `remove`.

Next: `pack_log.py`, which writes the outcomes down.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

from ..message import BatchMeta, Call, ChargedCalls, Charges, Checkpoint, HeldCheckpoint, PackHeader
from ..packing import MAX_ENTRY_BYTES, Packed
from ..ranges import by_value, from_text, to_text

UNCHARGED = Charges()
SMOOTHING = 0.2
"""Weight of the newest run time in the running mean."""


@dataclass(slots=True)
class RunTimes:
    """How long calls take: the mean of those that ended, the newest weighing most; None before the first."""

    mean_seconds: float | None = None

    def note(self, seconds: Sequence[float]) -> None:
        """Take in what some calls took that ran one after the other: their mean counts as one, or as several where it is lower.

        A few long calls must not make a thousand short ones that follow look long.
        """
        if not seconds:
            return
        mean = sum(seconds) / len(seconds)
        weight = 1 - (1 - SMOOTHING) ** len(seconds)
        self.mean_seconds = mean if self.mean_seconds is None else self.mean_seconds + weight * (mean - self.mean_seconds)


@dataclass(slots=True)
class PackCalls:
    """The state of the calls; made by `of`."""

    open: set[int]
    charges: dict[int, Charges]
    checkpoints: dict[int, Checkpoint]
    undealt: deque[int]
    alone: deque[tuple[int, ...]] = field(default_factory=deque)
    """What must be dealt as it is: a part of a vector's slice, of which another part or the whole has failed."""
    running: set[int] = field(default_factory=set)
    pending: dict[int, Packed] = field(default_factory=dict)
    pending_bytes: int = 0
    times: RunTimes = field(default_factory=RunTimes)
    leaving: set[int] = field(default_factory=set)
    """Given away in the newest entry, and perhaps without a message of their own yet."""
    single: frozenset[int] = frozenset()
    """Calls that share their chunk with no other, because of their arguments."""
    _later: list[tuple[float, int]] = field(default_factory=list)

    @classmethod
    def of(cls, header: PackHeader, times: RunTimes | None = None) -> PackCalls:
        """The calls that a pack's message says are to be done; `times` is how long those of their batch took so far."""
        todo = from_text(header.todo, header.indices)
        charges = {index: charged.charges for charged in header.charged for index in from_text(charged.calls, header.indices)}
        checkpoints = {held.index: held.checkpoint for held in header.checkpoints}
        return cls(set(todo), charges, checkpoints, deque(todo), times=times or RunTimes())

    # dealing

    def deal(self, most: int) -> list[int]:
        """Up to `most` calls to run next, in order; they count as running."""
        dealt = [index for index in self.alone.popleft() if self._is_due(index)] if self.alone else self._deal_next(most)
        self.running.update(dealt)
        return dealt

    def _deal_next(self, most: int) -> list[int]:
        if not (self.single or self.checkpoints or self.charges):  # by far the most common, and calls are many
            taken = [self.undealt.popleft() for _ in range(min(most, len(self.undealt)))]
            are_due = self.open.issuperset(taken) and self.pending.keys().isdisjoint(taken)
            return taken if are_due else list(filter(self._is_due, taken))
        dealt: list[int] = []
        while self.undealt and len(dealt) < most:
            index = self.undealt[0]
            if dealt and (self._is_special(index) or self._is_special(dealt[0])):
                break
            self.undealt.popleft()
            if self._is_due(index):
                dealt.append(index)
        return dealt

    def _is_due(self, index: int) -> bool:
        """Whether a call that waited is still to be run."""
        return index in self.open and index not in self.pending

    def _is_special(self, index: int) -> bool:
        """Whether a call shares its chunk with no other."""
        return index in self.single or index in self.checkpoints or self.charge_of(index).alone

    def take_back(self, indices: Iterable[int]) -> None:
        """These have not begun: they are dealt next."""
        returned = sorted(index for index in indices if index in self.running)
        self.running.difference_update(returned)
        self.undealt.extendleft(reversed([index for index in returned if self._is_due(index)]))

    def bisect(self, indices: Sequence[int]) -> None:
        """A slice failed as a whole: its halves are dealt next, each by itself."""
        self.running.difference_update(indices)
        middle = len(indices) // 2
        self.alone.extend(half for half in (tuple(indices[:middle]), tuple(indices[middle:])) if half)

    @property
    def waiting(self) -> int:
        """How many calls could run now and do not."""
        return len(self.undealt) + sum(map(len, self.alone))

    # what became of them

    def end(self, outcome: Packed) -> None:
        """A call has ended, which is to be logged, unless that was done already."""
        self.running.discard(outcome.at)
        if outcome.at in self.open and outcome.at not in self.pending:
            self.pending[outcome.at] = outcome
            self.pending_bytes += len(outcome.data)

    def end_values(self, indices: Sequence[int], values: Sequence[tuple[int, float, bytes]]) -> bool:
        """As `end`, of calls that all gave a value (0, seconds, data) at their first attempt; False if some did not."""
        if self.charges or not self.open.issuperset(indices) or not self.pending.keys().isdisjoint(indices):
            return False
        self.running.difference_update(indices)
        codes, seconds, data = zip(*values, strict=True)
        self.pending.update(
            zip(
                indices,
                map(tuple.__new__, repeat(Packed), zip(indices, codes, repeat(1), seconds, data, strict=False)),
                strict=True,
            )
        )
        self.pending_bytes += sum(map(len, data))
        return True

    def put_off(self, index: int, charges: Charges, due: float) -> None:
        """A call has to run again, not before `due` on the worker's clock."""
        self.running.discard(index)
        if index in self.open:
            self.charge(index, charges)
            heapq.heappush(self._later, (due, index))

    def charge(self, index: int, charges: Charges) -> None:
        """Note what a call has used up."""
        if charges == UNCHARGED:
            self.charges.pop(index, None)
        else:
            self.charges[index] = charges

    def charge_of(self, index: int) -> Charges:
        """What a call has used up."""
        return self.charges.get(index, UNCHARGED)

    @property
    def next_due(self) -> float | None:
        """When the first of those that were put off may run."""
        return self._later[0][0] if self._later else None

    def wake(self, now: float) -> None:
        """Those that were put off until now wait like the others."""
        while self._later and self._later[0][0] <= now:
            self.undealt.append(heapq.heappop(self._later)[1])

    def loggable(self) -> list[Packed]:
        """Outcomes that wait to be logged, as many as one entry holds."""
        if self.pending_bytes <= MAX_ENTRY_BYTES:
            return list(self.pending.values())
        chosen: list[Packed] = []
        size = 0
        for outcome in self.pending.values():
            size += len(outcome.data)
            if chosen and size > MAX_ENTRY_BYTES:
                break
            chosen.append(outcome)
        return chosen

    def remove(self, ended: Iterable[int], given: Iterable[int] = ()) -> None:
        """These stand in an entry of the log, as ended or as given away: nothing of them is to be done here any more.

        What is given keeps what it has used up until `part_from`: the message that is to say so may have to be sent again.
        """
        ended, given = list(ended), list(given)
        gone = [*ended, *given]
        self.open.difference_update(gone)
        dropped = filter(None, map(self.pending.pop, gone, repeat(None)))
        self.pending_bytes -= sum(len(outcome.data) for outcome in dropped)
        self.leaving.update(given)
        self._forget(ended)

    def part_from(self, given: Iterable[int]) -> None:
        """These have a message of their own."""
        given = list(given)
        self.leaving.difference_update(given)
        self._forget(given)

    def _forget(self, indices: Iterable[int]) -> None:
        for index in indices if self.charges or self.checkpoints else ():
            self.charges.pop(index, None)
            self.checkpoints.pop(index, None)

    def spare(self, most: int) -> list[int]:
        """Up to `most` calls that do not run and could be given away: those that would be dealt last."""
        waiting = [index for index in self.undealt if self._is_due(index)]
        return waiting[max(0, len(waiting) - most) :]

    # as records

    def header(self, header: PackHeader, **changes: object) -> PackHeader:
        """The message as it should be now."""
        said = {**self.part(self.open | self.leaving), "todo": to_text(self.open)}
        return replace(header, **{**said, **changes})  # type: ignore[arg-type]

    def part(self, indices: Iterable[int]) -> dict[str, object]:
        """What a message says of these calls."""
        chosen = set(indices)
        charges = by_value({index: charge for index, charge in self.charges.items() if index in chosen})
        held = sorted(index for index in self.checkpoints if index in chosen)
        return {
            "todo": to_text(chosen),
            "charged": tuple(ChargedCalls(calls, charge) for charge, calls in charges.items()),
            "checkpoints": tuple(HeldCheckpoint(index, self.checkpoints[index]) for index in held),
        }

    def call(self, meta: BatchMeta, call_id: str, index: int) -> Call:
        """One of the calls, as a single one would be."""
        charge = self.charge_of(index)
        return replace(
            meta.call,
            id=call_id,
            arguments=b"",
            errors=charge.errors,
            deaths=charge.deaths,
            preemptions=charge.preemptions,
            alone=charge.alone,
            checkpoint=self.checkpoints.get(index),
        )


def charges_of(call: Call) -> Charges:
    """What a call has used up, as a pack's message says it."""
    return Charges(call.errors, call.deaths, call.preemptions, call.alone)
