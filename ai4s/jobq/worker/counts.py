"""What becomes of a worker's attempts, in numbers: for its status, for metrics, and for what it decides by them.

A single call is counted as it goes; of a pack's calls, which may be a hundred thousand in a second, many at a time, as their
journal is read. What an attempt came to is counted once it is settled, or, of a pack, once it is known here.

Next: `settlement.py` and `reckoning.py`, which count; `status.py`, which tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ..distribution import Distribution
from ..errors import TransportError
from ..layout import batch_of
from ..lifecycle import Bury, Cancelled, Decision, Died, Expired, Happening, Preempted, Raised, Succeeded, TimedOut
from ..message import Call, Failure

How = Literal["succeeded", "failed", "retried", "cancelled", "expired", "given_back", "died", "lost", "fenced"]


@dataclass(frozen=True, slots=True)
class CallSeen:
    """A call as watchers hear of it. `batch` is "" for a single one.

    `waited_seconds` is how long it waited for its first attempt, from when it was sent or was to run; None for later attempts.
    """

    id: str
    task: str
    queue: str
    batch: str = ""
    waited_seconds: float | None = None


class Watcher(Protocol):
    """Hears of all attempts. Called on the worker's loop, so it must be quick, and must not raise.

    Of a pack's calls it hears many at a time: `call` is then one of them, from which the others differ in their ids.
    """

    def began(self, call: CallSeen, number: int = 1, first: int = 1) -> None:
        """So many attempts begin, `first` of them at calls that have waited as this one; of a pack's calls, it may be heard only
        once their turn in the chunk has passed."""

    def succeeded(self, call: CallSeen, seconds: Sequence[float]) -> None:
        """Attempts that took so long gave a value each."""

    def ended(self, call: CallSeen, how: How, seconds: float, error: str = "") -> None:
        """An attempt has ended in another way, after so many seconds of the task; 0 for one that never ran.

        `how`: "failed" (for good), "cancelled" and "expired" end the call. After "retried" (an error), "died" (its
        process) and "given_back" (the machine or the worker was to go, or could not run it) it runs again. "fenced": the call had
        ended elsewhere; "lost": the lease was, and what came of it is not known here. `error` is the exception's type.
        """


COUNTERS = ("begun", "succeeded", "failed", "retried", "dead", "lost", "fenced", "deaths", "preempted")
"""Which of the counts a status tells."""


@dataclass(slots=True)
class Counts:
    """What became of this worker's attempts so far.

    `begun` counts attempts; `succeeded` and `failed` calls that ended; `retried` attempts that go on in another one; `dead` the
    calls and messages that became dead letters. `lost` counts leases, `fenced` attempts whose call had an outcome already when they
    came to theirs: duplicates, in short. `deaths` counts attempts whose process ended, `preempted` those that were given back since
    the machine or the worker was to go.
    `refused` holds messages put aside, and until when on the worker's clock; `hindered` counts attempts in a row that this
    machine could not even begin, `failures_in_a_row` those that failed, whether or not they are to be repeated.
    """

    watchers: tuple[Watcher, ...] = ()
    begun: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    dead: int = 0
    lost: int = 0
    fenced: int = 0
    deaths: int = 0
    preempted: int = 0
    hindered: int = 0
    failures_in_a_row: int = 0
    run_times: Distribution = field(default_factory=Distribution)
    wait_times: Distribution = field(default_factory=Distribution)
    refused: dict[str, float] = field(default_factory=dict)
    on_failure: Callable[[], None] = lambda: None
    """Called after each failure: a pack may have thousands of them before it is settled."""

    def numbers(self) -> dict[str, int]:
        """The counters by name."""
        return {name: getattr(self, name) for name in COUNTERS}

    def note(self, happening: Happening) -> None:
        """Count what an attempt met; what neither failed nor succeeded, such as an attempt that was given back, ends no row."""
        self.deaths += isinstance(happening, Died)
        self.preempted += isinstance(happening, Preempted)
        if isinstance(happening, Raised | TimedOut | Died):
            self.failures_in_a_row += 1
            self.on_failure()
        elif isinstance(happening, Succeeded):
            self.failures_in_a_row = 0

    def began(self, call: CallSeen) -> None:
        """An attempt begins."""
        self.began_many(call, 1, int(call.waited_seconds is not None))

    def began_many(self, call: CallSeen, number: int, first: int) -> None:
        """So many attempts at calls like this one begin; `first` of them are first ones, of calls that have waited as it has."""
        self.begun += number
        if first and call.waited_seconds is not None:
            self.wait_times.add(call.waited_seconds, first)
        for watcher in self.watchers:
            watcher.began(call, number, first)

    def ended(self, call: CallSeen, how: How, seconds: float | None, error: str = "") -> None:
        """An attempt has ended; None for one that never ran."""
        if seconds is not None:
            self.run_times.add(seconds)
        for watcher in self.watchers:
            if how == "succeeded":
                watcher.succeeded(call, (seconds or 0.0,))
            else:
                watcher.ended(call, how, seconds or 0.0, error)

    def succeeded_many(self, call: CallSeen, seconds: Sequence[float]) -> None:
        """Attempts at calls like this one, which took so long, gave a value each."""
        self.failures_in_a_row = 0
        self.run_times.add_all(seconds)
        for watcher in self.watchers:
            watcher.succeeded(call, seconds)


LAST: frozenset[How] = frozenset({"succeeded", "failed", "cancelled", "expired"})
"""What ends a call, and so is told of even where no attempt at it ran."""


class Watched:
    """One attempt at a single call on its way through the counts: it begins at most once, and ends at most once."""

    def __init__(self, counts: Counts, call: CallSeen) -> None:
        self._counts, self._call = counts, call
        self._has_begun = self._has_ended = False
        self.seconds = 0.0
        """How long the task ran, once that is known."""

    def begin(self) -> None:
        """The task is about to run."""
        self._has_begun = True
        self._counts.began(self._call)

    def end(self, how: How, error: str = "") -> None:
        """The attempt has ended; what ended it first counts."""
        if not self._has_ended and (self._has_begun or how in LAST):
            self._has_ended = True
            self._counts.ended(self._call, how, self.seconds if self._has_begun else None, error)

    @contextmanager
    def unless_lost(self) -> Iterator[None]:
        """If the block fails for want of the lease or the storage, the attempt is lost."""
        try:
            yield
        except TransportError:
            self.end("lost")
            raise


def seen(call: Call, now: float | None = None) -> CallSeen:
    """A single call as watchers hear of it; `now` by the server's clock, if an attempt begins."""
    is_first = now is not None and call.attempt == 1
    waited = max(0.0, now - (call.eta or call.sent)) if now is not None and is_first else None
    return CallSeen(call.id, call.task, call.queue, batch_of(call.id) or "", waited)


def how_ended(happening: Happening, decision: Decision) -> tuple[How, str]:
    """How an attempt ended that met this, and the type of its error."""
    if isinstance(decision, Bury):
        return "failed", _error(decision.failure)
    match happening:
        case Succeeded():
            return "succeeded", ""
        case Cancelled():
            return "cancelled", ""
        case Expired():
            return "expired", ""
        case Raised(failure) | TimedOut(failure):
            return "retried", _error(failure)
        case Died(failure):
            return "died", _error(failure)
    return "given_back", ""


def _error(failure: Failure) -> str:
    return failure.type or str(failure.cause)
