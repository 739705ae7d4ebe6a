"""What came of a chunk, and what that means for its calls: outcomes, retries, charges. The counterpart of `attempt.py` for packs.

The rules are those of `lifecycle.decide`, asked for one call at a time. A vector's slice that fails as a whole charges nobody as
long as it has more than one item: it is halved until the culprit is alone.

Next: `pack_log.py`, which keeps the outcomes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .. import layout
from ..call_progress import CallProgress
from ..call_records import about
from ..errors import AccessDenied, LeaseLost, Malformed, Unreachable
from ..ledger import Ledger
from ..lifecycle import (
    Bury,
    Cancelled,
    Died,
    Disturbed,
    Finish,
    Happening,
    Hindered,
    Preempted,
    Raised,
    Refused,
    Release,
    Retry,
    TimedOut,
    decide,
)
from ..message import BatchMeta, Cause, Failure, PackHeader, State
from ..packing import Code, Packed, PackInput, failed, spilled
from ..printable import printable
from ..transports.base import Delivery
from .call_logs import ChunkLogs, with_tail
from .counts import Counts, how_ended
from .current_calls import Current
from .executors import Ending
from .interruptions import Stop
from .jobs import Kind, Report
from .journal import Frame, Journal, Mark
from .lease import Clock, Lease
from .pack_calls import PackCalls, charges_of
from .pack_checkpoints import PackCheckpoints
from .pack_counts import PackCounts
from .scratch import JobFiles
from .settlement import described, refused, told

log = logging.getLogger("ai4s.jobq.worker")

FLUSH_BYTES = 64 * 1024
"""Outcomes of so many bytes are logged at once."""

_CODES = {State.CANCELLED: Code.CANCELLED, State.EXPIRED: Code.EXPIRED}


@dataclass(frozen=True, slots=True)
class Dealt:
    """A delivery of a pack as its calls are dealt."""

    header: PackHeader
    meta: BatchMeta
    input: PackInput
    calls: PackCalls
    checkpoints: PackCheckpoints
    delivery: Delivery
    lease: Lease
    token: str
    counts: Counts


@dataclass(slots=True, eq=False)
class RunningChunk:
    """A chunk on its way: its calls that were not taken back, how many of them have ended, and since when the next one runs.

    `begun` is how many are counted to have begun, `said` which one has said last how far it is, by its place in the pack.
    `overdue` is the call whose time was up; `is_damaged` says that nothing more is believed of the journal.
    """

    number: int
    indices: list[int]
    journal: Journal
    value: Path
    stop: asyncio.Future[Stop]
    began: float
    ended: int = 0
    begun: int = 0
    since: float | None = None
    said: tuple[int, CallProgress] | None = None
    overdue: int | None = None
    recalling: bool = False
    is_damaged: bool = False
    logs: ChunkLogs | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, files: JobFiles, indices: list[int], stop: asyncio.Future[Stop], now: float) -> RunningChunk:
        """A chunk that begins now."""
        return cls(files.number, list(indices), Journal(files.journal), files.value, stop, now)

    @property
    def left(self) -> list[int]:
        """The calls without an outcome; the first of them runs."""
        return self.indices[self.ended :]

    def current(self, dealt: Dealt) -> Current | None:
        """The call that runs, as far as is known: the journal is read from time to time only."""
        left = self.left
        if not left:
            return None
        index, progress = left[0], None
        if self.said is not None and dealt.header.first + self.said[0] in left:
            index, progress = dealt.header.first + self.said[0], self.said[1]
        since = self.began if self.since is None else self.since
        return Current(layout.packed_call_id(dealt.header.batch, index), dealt.meta.call.task, since, progress)

    def progressed(self, place: int, progress: CallProgress) -> None:
        """The task has said how far the call at this place of the pack is."""
        self.said = (place, progress)


class Reckoner:
    """Draws the consequences for one delivery's calls. `flush_wanted` is set when much waits to be logged."""

    def __init__(self, ledger: Ledger, clock: Clock, dealt: Dealt) -> None:
        self._ledger, self._clock, self._dealt, self._calls = ledger, clock, dealt, dealt.calls
        self._counts = PackCounts(dealt.counts, dealt.header, dealt.meta, calls=dealt.calls, delivery=dealt.delivery)
        self.flush_wanted = asyncio.Event()
        self.put_aside: Release | None = None
        """What to do with the pack if this worker cannot run its calls."""
        self.is_hindered = False
        """Whether this machine could not run them, for reasons of its own."""

    def note_begun(self, running: RunningChunk, ended: int = 0) -> None:
        """Count the calls of a chunk that run by now, when so many more have ended: the one after them has begun as well."""
        stop = min(running.ended + ended + (self._dealt.meta.vector or 1), len(running.indices))
        if stop > running.begun:
            self._counts.began(running.indices[running.begun : stop], running.began)
            running.begun = stop

    async def take_in(self, running: RunningChunk) -> None:
        """Take in the outcomes that a chunk has written down since the last time."""
        async with running.turn:
            if running.is_damaged:
                return
            try:
                if frames := running.journal.read():
                    await self._take_all(running, frames)
            except Malformed:
                running.is_damaged = True
            if running.is_damaged or running.journal.is_damaged:
                log.error("Calls of batch %s: a journal is damaged; what it does not tell runs again.", self._batch)
                running.is_damaged = True
            if self._calls.pending_bytes >= FLUSH_BYTES:
                self.flush_wanted.set()

    async def _take_all(self, running: RunningChunk, frames: list[Frame]) -> None:
        running.since = self._clock()
        seconds = [frame.seconds / frame.calls if frame.mark == Mark.SLICE else frame.seconds for frame in frames]
        self._calls.times.note(seconds)
        if not any(frame.mark for frame in frames) and self._take_values(running, frames, seconds):
            return
        self.note_begun(running, sum(frame.calls for frame in frames))
        for frame in frames:
            if not running.left:
                break  # a zombie of a recalled part; it has been dealt anew
            # What is damaged raises before it counts: it is the outcome of the call that is next.
            happening = self._happening(frame.report) if frame.mark in (Mark.REPORT, Mark.SLICE) else None
            if frame.mark == Mark.SLICE:
                self._fail_slice(running, frame, happening)
                continue
            index = running.indices[running.ended]
            running.ended += 1
            if happening is not None:
                self._apply(index, happening, frame.seconds)
            elif frame.mark == Mark.FILE:
                await self._keep(running, index, frame.seconds)
            else:
                self._counts.succeeded([index], [frame.seconds])
                self._calls.end(Packed(index, Code.VALUE, self._attempt(index), frame.seconds, frame.data))

    def _take_values(self, running: RunningChunk, frames: list[Frame], seconds: list[float]) -> bool:
        """Take in frames that all hold a value, at once: short calls are many. False if they need to be looked at one by one."""
        indices = running.indices[running.ended : running.ended + len(frames)]
        if len(indices) < len(frames) or not self._calls.end_values(indices, frames):
            return False
        self.note_begun(running, len(frames))
        self._counts.succeeded(indices, seconds)
        running.ended += len(frames)
        return True

    async def _keep(self, running: RunningChunk, index: int, seconds: float) -> None:
        """Upload a value that is too large for the log; it is the chunk's slot that waits for it."""
        path = Path(f"{running.value}.{index - self._dealt.header.first}")
        name = self._call_id(index)
        try:
            keep = partial(self._ledger.spilled_from, layout.value(name, self._dealt.token), path)
            kept = await self._dealt.lease.patiently(keep)
        except OSError as exc:
            failure = Failure(Cause.DIED, type(exc).__name__, f"Its value could not be read from the scratch folder: {exc}")
            self._apply(index, Died(failure), seconds)
        except (Unreachable, AccessDenied, LeaseLost) as exc:
            # Only without a lease: whoever has it now runs the call again.
            log.warning("The value of call %s is lost: %s", name, printable(str(exc)))
        else:
            self._counts.succeeded([index], [seconds])
            self._calls.end(spilled(index, self._attempt(index), seconds, (kept, self._dealt.token)))
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    def conclude(self, running: RunningChunk, ending: Ending | Raised) -> bool:
        """Settle what has no outcome once a chunk is over; False if this worker should deal no more of the pack."""
        left = running.left
        if isinstance(ending, Report) and ending.kind is Kind.HINDERED and ending.failure is not None:
            log.error("Calls of batch %s go back, since their outcomes could not be written: %s", self._batch, told(ending.failure))
            ending = Hindered()
        self.is_hindered = isinstance(ending, Hindered)
        counts = self._dealt.counts
        counts.hindered = counts.hindered + 1 if self.is_hindered else 0
        if isinstance(ending, Report) and left and self._is_untold(running):
            ending = Died(Failure(Cause.DIED, "", "What came of it was not written down as it should be."))
        if isinstance(ending, Report | Hindered) or self._is_innocent(running, ending):
            self._counts.given_back(running.indices[running.ended : running.begun])
            self._calls.take_back(left)
        elif left:
            self._end_with(running, left, ending)
        if isinstance(ending, Cancelled):
            self.end_all(State.CANCELLED)
        return not isinstance(ending, Preempted | Hindered) and self.put_aside is None

    def _is_untold(self, running: RunningChunk) -> bool:
        """Whether a child says that it ran all, and its journal does not say what came of it."""
        return running.is_damaged or not running.recalling

    def _is_innocent(self, running: RunningChunk, ending: Ending | Raised) -> bool:
        """Whether the call whose time was up ended all the same before its process did: what began then is not to blame."""
        is_other = running.overdue is not None and running.overdue not in running.left
        return is_other and isinstance(ending, TimedOut) and not self._dealt.meta.vector

    def _end_with(self, running: RunningChunk, left: list[int], ending: Ending | Raised) -> None:
        """The first call without an outcome ran when its chunk ended; those after it had not begun."""
        if self._dealt.meta.vector:
            self._end_slice(running, left, ending)
            return
        self._calls.take_back(left[1:])
        if running.logs is not None:
            ending = with_tail(ending, running.logs.tail_of(left[0] - self._dealt.header.first))
        self._apply(left[0], ending, self._clock() - (running.since or running.began))

    def fail_all(self, failure: Failure) -> None:
        """End all calls as failed."""
        indices = sorted(self._calls.open - self._calls.pending.keys())
        for index in indices:
            self._calls.end(failed(index, self._attempt(index) - 1, 0.0, failure))
        self._counts.ended(indices, "failed", None, failure.type or str(failure.cause))

    def end_all(self, state: State) -> None:
        """End all calls that do not run and have not ended as cancelled or expired."""
        indices = sorted(self._calls.open - self._calls.pending.keys() - self._calls.running)
        for index in indices:
            self._calls.end(Packed(index, _CODES[state], self._attempt(index) - 1, 0.0, b""))
        self._counts.ended(indices, "cancelled" if state is State.CANCELLED else "expired", None)

    # vectors

    def _fail_slice(self, running: RunningChunk, frame: Frame, happening: Happening | None) -> None:
        assert happening is not None
        failed_ones = running.left[: frame.calls]
        running.ended += len(failed_ones)
        if isinstance(happening, Raised) and len(failed_ones) > 1:
            self._halve(failed_ones, happening, frame.seconds)
            return
        for index in failed_ones:
            self._apply(index, happening, frame.seconds)

    def _halve(self, indices: list[int], happening: Raised | Died | TimedOut, seconds: float) -> None:
        """Have the calls of a slice that failed as a whole run again, in smaller ones."""
        self._counts.halved(indices, happening, seconds / len(indices))
        self._calls.bisect(indices)

    def _end_slice(self, running: RunningChunk, left: list[int], ending: Ending | Raised) -> None:
        """A slice was stopped, or its process died: all of its items ran, and those after them had not begun."""
        self._calls.take_back(left[self._dealt.meta.vector :])
        left = left[: self._dealt.meta.vector]
        if len(left) > 1 and isinstance(ending, Died | TimedOut):
            self._halve(left, ending, self._clock() - (running.since or running.began))
            return
        for index in left:
            self._apply(index, ending, 0.0)

    # one call

    def _happening(self, report: Report) -> Happening:
        if report.kind is Kind.GIVEN_BACK:
            return Preempted()
        if report.failure is None or report.kind not in (Kind.RAISED, Kind.UNFIT, Kind.HINDERED):
            raise Malformed("A chunk's journal tells of no failure where there should be one.")
        if report.kind is Kind.HINDERED:
            return Hindered()
        if report.kind is Kind.UNFIT:
            return refused(self._dealt.delivery, report.failure.message)
        return Raised(report.failure, report.retryable, report.delay_seconds)

    def _apply(self, index: int, happening: Ending | Happening, seconds: float) -> None:
        """Do to one call what its lifecycle says."""
        assert not isinstance(happening, Report)
        self._dealt.counts.note(happening)
        call = self._calls.call(self._dealt.meta, self._call_id(index), index)
        decision = decide(happening, call, jitter=random.random())
        how, error = how_ended(happening, decision)
        self._counts.ended([index], how, seconds, error)
        match decision:
            case Finish(state, _):
                self._calls.end(Packed(index, _CODES[state], call.attempt, seconds, b""))
            case Bury(failure):
                with about(call):
                    log.error("Call %s failed for good: %s", described(call), told(failure))
                self._calls.end(failed(index, call.attempt, seconds, failure))
            case Retry(charged, delay_seconds):
                if not isinstance(happening, Disturbed):
                    self._dealt.counts.retried += 1
                    with about(call):
                        log.info("Call %s may run again in %.1f s: %s", described(call), delay_seconds, type(happening).__name__)
                self._calls.put_off(index, charges_of(charged), self._clock() + delay_seconds)
            case Release() as put_aside:
                assert isinstance(happening, Refused)
                if self.put_aside is None:
                    log.warning("Batch %s is put aside: %s", self._batch, told(happening.failure))
                self.put_aside = put_aside
                self._calls.take_back([index])

    def _attempt(self, index: int) -> int:
        charge = self._calls.charge_of(index)
        return 1 + charge.errors + charge.deaths + charge.preemptions

    def _call_id(self, index: int) -> str:
        return layout.packed_call_id(self._batch, index)

    @property
    def _batch(self) -> str:
        return self._dealt.header.batch
