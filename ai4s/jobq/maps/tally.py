"""How a batch stands, in numbers, from one listing: how many calls ended how, which ones, what failed, how long it took, the cost.

Nothing but metadata is read: the log's entries say it of themselves (`entry_notes.py`), the packs' inputs which calls they hold,
the requests for another run which calls run again, and the total what the producer has asked of the storage. What an earlier
version or somebody else left out, or spoilt, counts as nothing; where a number cannot be known it is left out, not guessed.

Next: `onlooking.py`, through which users ask.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import accumulate

from .. import layout, requests_made
from ..batches import BatchLedger
from ..distribution import Distribution
from ..entry_notes import ANY_INDEX, Notes, Span, number
from ..errors import JobQError, Malformed, ResultGone
from ..ledger import Ledger
from ..message import BatchMeta
from ..ranges import spans
from ..transports.base import BlobInfo
from .progress import RATE_SECONDS
from .standing import Standing, standing_of

MOST_STATES = 16 * 1024 * 1024
"""Calls whose states are told one by one, at a byte each while that is reckoned; of a larger batch only the numbers are."""

MOST_POINTS = 400
"""Points of the curve."""

SLOWEST = 10

STATES = ("waiting", "succeeded", "failed", "cancelled", "unknown")
WAITING, SUCCEEDED, FAILED, CANCELLED, UNKNOWN = range(len(STATES))
_CODES = {"ok": SUCCEEDED, "bad": FAILED, "off": CANCELLED}
_RUNS = re.compile(rb"([\1-\4])\1*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class BatchTally:
    """How a batch stood when it was listed.

    `calls` is what was submitted so far, `submitted_all` whether that is all. `succeeded`, `failed`, `cancelled` and `expired`
    count calls that have ended, and stand so now: what runs again counts as waiting. `sent` and the moments in `ended_points`, each
    with how many calls had ended by then, are epoch seconds by the server's clock. `rate` is in calls/s over the last minute;
    `seconds_left` is None where that is not known.

    `states` are runs of neighbours, (first, last, state), with the state "succeeded", "failed", "cancelled" (expired ones too) or
    "unknown": calls that have ended, and nothing short says how. What is in none of them waits or runs. It is empty for a batch of
    more than 16 million calls. `errors` counts the types of exceptions of what stands as failed, at most the 8 most frequent of
    each entry; `slowest` has up to ten (index, seconds), `run_times` the last attempt of each run of a call.

    `requests` are those to the storage that are known to be this batch's, by kind: its producer's once it has ended, and its
    workers', but for what a worker asked after its last entry. `entries` is how many entries the log has, `retries` how often its
    failures were to run again.
    """

    id: str
    task: str
    queue: str
    sent: float
    calls: int = 0
    submitted_all: bool = False
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    states: Sequence[tuple[int, int, str]] = ()
    errors: Counter[str] = field(default_factory=Counter)
    slowest: Sequence[tuple[int, float]] = ()
    run_times: Distribution = field(default_factory=Distribution)
    requests: Counter[str] = field(default_factory=Counter)
    entries: int = 0
    retries: int = 0
    is_cancelled: bool = False
    ended_points: Sequence[tuple[float, int]] = ()
    rate: float = 0.0
    seconds_left: float | None = None

    @property
    def done(self) -> int:
        """How many calls have ended."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def waiting(self) -> int:
        """How many calls have not ended, of those that were submitted: they wait or run."""
        return max(0, self.calls - self.done)


async def tally(ledger: Ledger, batch_id: str, *, meta: BatchMeta | None = None) -> BatchTally:
    """How a batch stands: one listing, and a read for what its calls have in common, unless it is given.

    Raises JobQError if there is no such batch, ResultGone if it was removed, TransportError.
    """
    meta = meta or await BatchLedger(ledger, batch_id).meta()
    standing = await standing_of(ledger, batch_id)
    if standing.is_going:
        raise ResultGone(f"Batch {batch_id} was removed.", call_id=batch_id)
    if meta is None:
        raise JobQError(f"There is no batch {batch_id!r} of the app {ledger.app!r}.")
    return tally_of(standing, meta, await ledger.transport.server_time())


def tally_of(standing: Standing, meta: BatchMeta, now: float) -> BatchTally:
    """How a batch stands, by what a listing tells of it."""
    packs = {layout.INPUT.fullmatch(info.name): info for info in standing.inputs}
    extents = {match["pack"]: _indices(info) for match, info in packs.items() if match}
    calls = sum(map(len, extents.values()))
    entries = sorted(_entries(standing.entries, extents), key=lambda entry: entry.retry)
    retries = list(_retries(standing, entries))
    again = sum(retry.calls for retry in retries)
    sums = Counter[str]()
    for entry in entries:
        notes = entry.notes
        sums.update(done=notes.done, failed=notes.failed, cancelled=notes.cancelled, expired=notes.expired)
    states = _States(calls, extents.values(), entries, retries)
    done, left = sums["done"] - again, calls - sums["done"] + again
    lately = sum(entry.notes.done for entry in entries if now - entry.ended < RATE_SECONDS)
    rate = lately / max(1.0, min(RATE_SECONDS, now - meta.call.sent))
    total = standing.total
    return BatchTally(
        id=standing.batch,
        task=meta.call.task,
        queue=meta.call.queue,
        sent=meta.call.sent,
        calls=calls,
        submitted_all=total is not None and number(total.metadata.get("calls", str(calls))) == calls,
        succeeded=max(0, done - (sums["failed"] - again) - sums["cancelled"] - sums["expired"]),
        failed=max(0, sums["failed"] - again),
        cancelled=sums["cancelled"],
        expired=sums["expired"],
        states=states.told(),
        errors=states.errors(),
        slowest=_slowest(entries),
        run_times=_run_times(entries),
        requests=_requests(total, entries),
        entries=len(entries),
        retries=len(retries),
        is_cancelled=any(info.name == layout.batch_cancelled(standing.batch) for info in standing.blobs),
        ended_points=_points(entries, calls),
        rate=rate,
        seconds_left=0.0 if left <= 0 else left / rate if rate else None,
    )


def _indices(info: BlobInfo) -> range:
    first, count = (number(info.metadata.get(name, "")) for name in ("first", "count"))
    return range(first, first + count)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the log: of which retry's log, 0 for the first run, of a pack with these indices, and when it was written."""

    retry: int
    ended: float
    notes: Notes


def _entries(infos: Iterable[BlobInfo], extents: Mapping[str, range]) -> Iterator[_Entry]:
    for info in infos:
        parts, retry = layout.entry_parts(info.name), layout.retry_of_entry(info.name)
        if parts is not None and retry is not None:
            within = extents.get(parts[0].partition(".")[0], range(0))
            notes = Notes.read(info.metadata, within)
            # A moment far from when the storage took it is nonsense.
            written = notes.at if notes.at is not None and abs(notes.at - info.modified) < 3600 else info.modified
            yield _Entry(retry, written, notes)


@dataclass(frozen=True, slots=True)
class _Retry:
    """That so many failures were to run again, and which ones, where that is said."""

    number: int
    calls: int
    todo: Sequence[Span]


def _retries(standing: Standing, entries: Sequence[_Entry]) -> Iterator[_Retry]:
    for place in range(1, standing.retries + 1):
        info = standing.of(layout.batch_retry(standing.batch, place))
        metadata = info.metadata if info is not None else {}
        try:
            todo = spans(metadata.get("todo", ""), ANY_INDEX)
        except Malformed:
            todo = []
        # An earlier version did not say how many: as many as have ended anew, at least.
        ended = sum(entry.notes.done for entry in entries if entry.retry == place)
        yield _Retry(place, max(ended, number(metadata.get("calls", ""))), todo)


class _States:
    """Which call stands how: what ended in a later run takes the place of what had failed before."""

    def __init__(self, calls: int, extents: Iterable[range], entries: Sequence[_Entry], retries: Sequence[_Retry]) -> None:
        stop = max((extent.stop for extent in extents), default=0)
        self._entries = entries
        self._codes = bytearray(stop if calls <= stop <= MOST_STATES else 0)
        self._runs = bytearray(len(self._codes))
        for run in range(len(retries) + 1):
            if run:
                self._note(retries[run - 1].todo, WAITING, run)
            for entry in entries:
                if entry.retry == run:
                    self._note_entry(entry)

    def _note_entry(self, entry: _Entry) -> None:
        self._note(entry.notes.unknown, UNKNOWN, entry.retry)
        for way, found in entry.notes.spans.items():
            self._note(found, _CODES[way], entry.retry)

    def _note(self, found: Sequence[Span], code: int, run: int) -> None:
        for first, last in found:
            if last < len(self._codes):
                self._codes[first : last + 1] = bytes([code]) * (last + 1 - first)
                self._runs[first : last + 1] = bytes([run % 256]) * (last + 1 - first)

    def told(self) -> list[tuple[int, int, str]]:
        """Runs of neighbours that have ended the same way."""
        return [(match.start(), match.end() - 1, STATES[match[1][0]]) for match in _RUNS.finditer(self._codes)]

    def errors(self) -> Counter[str]:
        """The types of what stands as failed: an entry whose failures have all run again tells of none."""
        found = Counter[str]()
        for entry in self._entries:
            failed = entry.notes.spans.get("bad", ())
            standing = sum(self._standing(span, entry.retry) for span in failed) if failed else entry.notes.failed
            if standing:
                found.update({name: min(count, standing) for name, count in entry.notes.errors.items()})
        return found

    def _standing(self, span: Span, run: int) -> int:
        """How many of these calls stand as they ended in this run."""
        first, last = span
        if last >= len(self._codes):
            return last + 1 - first
        return self._runs.count(run % 256, first, last + 1)


def _slowest(entries: Sequence[_Entry]) -> list[tuple[int, float]]:
    times: dict[int, float] = {}
    for entry in entries:
        times.update(entry.notes.slowest)
    return nlargest(SLOWEST, times.items(), key=lambda item: item[1])


def _run_times(entries: Sequence[_Entry]) -> Distribution:
    times = Distribution()
    for entry in entries:
        times.merge(entry.notes.run_times)
    return times


def _requests(total: BlobInfo | None, entries: Sequence[_Entry]) -> Counter[str]:
    """What is known to have been asked of the storage for this batch."""
    asked = Counter[str](requests_made.from_text(total.metadata.get("requests", "")) if total is not None else {})
    for entry in entries:
        asked.update(entry.notes.requests)
    return asked


def _points(entries: Sequence[_Entry], calls: int) -> list[tuple[float, int]]:
    """How many calls had ended by when, about evenly thinned; never more than there are, though some ran again."""
    ordered = sorted((entry.ended, entry.notes.done) for entry in entries if entry.notes.done)
    sums = accumulate(done for _, done in ordered)
    points = [(ended, min(calls, done)) for (ended, _), done in zip(ordered, sums, strict=True)]
    step = -(-len(points) // MOST_POINTS) or 1
    return points[::-step][::-1]
