"""All batches from one listing that comes page by page: how much of each there is, has ended and failed.

No blob is read and none kept, so that a batch may have any number of log entries. A batch is told of once the listing is past it.

Next: `refresh.py`, which asks for the pages; `../maps/tally.py` for all about one batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from .. import layout
from ..entry_notes import Notes, number
from ..maps.progress import RATE_SECONDS
from ..printable import printable
from ..transports.base import BlobInfo

ENDS = ("done", "failed", "cancelled", "expired")


@dataclass(slots=True)
class BatchSums:
    """A batch as its names and metadata tell of it.

    `sent` is when its submission began, `as_of` when this was read, both in epoch seconds by the server's clock; `lately` is how
    many calls ended in the minute before, `messages` about how many lie in its queue. `task` and `queue` are empty where the
    listing does not say.
    """

    id: str
    as_of: float
    sent: float = 0.0
    task: str = ""
    queue: str = ""
    calls: int = 0
    inputs: int = 0
    messages: int = 0
    entries: int = 0
    lately: int = 0
    is_cancelled: bool = False
    is_there: bool = False
    ends: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    asked: Counter[int] = field(default_factory=Counter)
    again: Counter[int] = field(default_factory=Counter)
    """By the number of a retry: the calls that were to run again, as far as that is said, and those that have ended again."""
    logs: Counter[str] = field(default_factory=Counter, repr=False)
    """What is left to do of each log, while they are counted."""

    @property
    def rerun(self) -> int:
        """Failures that were to run again, which are failures no more."""
        return sum((self.asked | self.again).values())

    @property
    def failed(self) -> int:
        """Calls that stand as failed."""
        return max(0, self.ends["failed"] - self.rerun)

    @property
    def cancelled(self) -> int:
        """Calls that were cancelled, or expired."""
        return self.ends["cancelled"] + self.ends["expired"]

    @property
    def succeeded(self) -> int:
        """Calls with a value."""
        return max(0, self.calls - self.waiting - self.failed - self.cancelled)

    @property
    def waiting(self) -> int:
        """Calls that have not ended; those that run are among them."""
        return max(0, self.calls - self.ends["done"] + self.rerun)

    @property
    def rate(self) -> float:
        """Calls that ended a second, over the last minute."""
        return self.lately / max(1.0, min(RATE_SECONDS, self.as_of - self.sent))

    @property
    def is_open(self) -> bool:
        """Whether calls have not ended."""
        return self.waiting > 0

    def add(self, info: BlobInfo) -> None:
        """Count one of its blobs."""
        rest = info.name.removeprefix(layout.batch(self.id))
        if rest == "meta":
            self._meta(info)
        elif rest == "cancelled":
            self.is_cancelled = True
        elif rest.startswith("in/"):
            self._input(rest.removeprefix("in/"), number(info.metadata.get("count", "")))
        elif rest.startswith("retries/") and rest[8:].isdecimal():
            self.asked[int(rest[8:])] = number(info.metadata.get("calls", ""))
        elif rest.startswith("log/"):
            self._entry(info)

    def whole(self) -> BatchSums:
        """This, now that all of it was counted: each log with something left has one message."""
        again = sum(min(left, self.inputs) for left in (self.asked - self.again).values())
        self.messages = sum(left > 0 for left in self.logs.values()) + again
        self.logs.clear()
        return self

    def _input(self, log: str, count: int) -> None:
        self.calls += count
        self.inputs += 1
        self.logs[log] += count

    def _meta(self, info: BlobInfo) -> None:
        self.is_there, self.sent = info.size > 0, info.modified
        self.task = printable(unquote(info.metadata.get("task", "")))
        self.queue = printable(info.metadata.get("queue", ""))

    def _entry(self, info: BlobInfo) -> None:
        retry = layout.retry_of_entry(info.name)
        if retry is None:
            return
        self.entries += 1
        parts = layout.entry_parts(info.name)
        counts = {name: number(info.metadata.get(name, "")) for name in ENDS}
        self.ends.update(counts)
        if parts is not None:
            given = number(info.metadata.get("gives", ""))
            self.logs[parts[0]] -= counts["done"] + given
            self.logs[layout.child_log(*parts)] += given
        if retry:
            self.again[retry] += counts["done"]
        if self.as_of - info.modified < RATE_SECONDS:
            self.lately += counts["done"]
        if counts["failed"]:
            self.errors.update(Notes.read(info.metadata, range(0)).errors)


class BatchRound:
    """One pass over all batches: `add` a page and get the batches that are whole now."""

    def __init__(self) -> None:
        self._last: BatchSums | None = None

    def add(self, infos: Iterable[BlobInfo], now: float, *, is_last: bool) -> list[BatchSums]:
        """Count a page; the batches that the listing is past."""
        found = [*self._passed(infos, now)]
        if is_last and self._last is not None:
            found.append(self._last.whole())
            self._last = None
        return [each for each in found if each.is_there]

    def _passed(self, infos: Iterable[BlobInfo], now: float) -> Iterator[BatchSums]:
        for info in infos:
            owner = info.name.removeprefix(layout.BATCHES).partition("/")[0]
            if not layout.BATCH_ID.fullmatch(owner) or len(owner) > layout.MAX_BATCH_LENGTH:
                continue  # what somebody else has put there
            if self._last is None or self._last.id != owner:
                if self._last is not None:
                    yield self._last.whole()
                self._last = BatchSums(owner, now)
            self._last.add(info)
