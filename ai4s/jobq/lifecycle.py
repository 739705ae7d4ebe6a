"""What follows from what happened to an attempt. Pure: no clock, no storage, no randomness of its own.

Errors, deaths and preemptions have separate budgets; only here are they spent. `attempt.py` carries the decision out.

Next: `wire.py` for how a call travels, or `worker/attempt.py` for who asks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .message import Call, Cause, Failure, Spill, State

MAX_IDLE_PREEMPTIONS = 5
"""Preemptions since the last checkpoint after which a call is taken to be too long for these machines."""

FIRST_UNFIT_DELAY_SECONDS, LONGEST_UNFIT_DELAY_SECONDS = 30.0, 3600.0
"""How long a sound message that this worker cannot run is put aside, for workers that can: twice as long each time.

Mostly somebody has forgotten to restart a worker after a change, and mends that within minutes.
"""

HINDERED_DELAY_SECONDS = 10.0

UNFIT_DELIVERIES = 24
UNFIT_AGE_SECONDS = 23 * 3600
"""A message that was put aside so often and is so old is given up: about a day of no worker that could run it.

The count alone proves nothing: retries, hand-backs and lost answers raise it as well.
"""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task returned; `value` is encoded."""

    value: bytes | Spill


@dataclass(frozen=True, slots=True)
class Raised:
    """The task raised. `retryable` is the policy's word; `delay_seconds` is what a `Retry` asked for."""

    failure: Failure
    retryable: bool
    delay_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The attempt was stopped because it ran longer than the call's timeout."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Died:
    """The attempt's process ended without an answer, or an earlier attempt left its mark and never settled."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Preempted:
    """The machine or the worker had to go while the attempt ran."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody cancelled the call while the attempt ran."""


@dataclass(frozen=True, slots=True)
class Disturbed:
    """The attempt's process ended with several attempts in it: `suspect` if one of them, nobody knows which, caused that."""

    suspect: bool


@dataclass(frozen=True, slots=True)
class Hindered:
    """This worker could not run the attempt for reasons of its own: a full disk, a child that cannot start."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The call was delivered after its `expires`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The message is sound, but this worker cannot run it; how often it has been delivered, and how long it has lain there."""

    failure: Failure
    deliveries: int
    age_seconds: float


Happening = Succeeded | Raised | TimedOut | Died | Preempted | Cancelled | Disturbed | Hindered | Expired | Refused


@dataclass(frozen=True, slots=True)
class Finish:
    """End the run without a dead letter: with a value, or as expired or cancelled."""

    state: State
    value: bytes | Spill | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Put `call` in the message's place, visible after `delay_seconds`."""

    call: Call
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Release:
    """Give the message back as it is, visible after `delay_seconds`."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Bury:
    """End the run as failed, and keep a dead letter."""

    failure: Failure


Decision = Finish | Retry | Release | Bury


def decide(happening: Happening, call: Call, *, jitter: float) -> Decision:
    """What to do with `call` now; `jitter` is a random number in [0, 1)."""
    match happening:
        case Succeeded(value):
            return Finish(State.SUCCEEDED, value)
        case Expired() | Cancelled():
            return Finish(State.EXPIRED if isinstance(happening, Expired) else State.CANCELLED)
        case Raised() | TimedOut():
            return _after_error(call, happening, jitter)
        case Died(failure):
            return _after_death(call, failure, jitter)
        case Preempted() | Disturbed() | Hindered():
            return _after_interruption(call, happening)
        case Refused():
            return Bury(happening.failure) if is_hopeless(happening) else Release(unfit_delay_seconds(happening.deliveries))


def unfit_delay_seconds(deliveries: int) -> float:
    """How long to put a message aside that has been delivered so often."""
    return float(min(LONGEST_UNFIT_DELAY_SECONDS, FIRST_UNFIT_DELAY_SECONDS * 2 ** min(deliveries - 1, 10)))


def is_hopeless(refusal: Refused) -> bool:
    """Whether to give up waiting for a worker that can run it."""
    return refusal.deliveries >= UNFIT_DELIVERIES and refusal.age_seconds >= UNFIT_AGE_SECONDS


def _after_error(call: Call, happening: Raised | TimedOut, jitter: float) -> Decision:
    retryable, delay_seconds = True, None
    if isinstance(happening, Raised):
        retryable, delay_seconds = happening.retryable, happening.delay_seconds
    if not retryable or call.errors >= call.retries:
        return Bury(happening.failure)
    if delay_seconds is None:
        delay_seconds = call.backoff.delay_seconds(call.errors, jitter)
    return Retry(replace(call, errors=call.errors + 1, mark=None), delay_seconds)


def _after_death(call: Call, failure: Failure, jitter: float) -> Decision:
    deaths_before = call.deaths - (call.checkpoint.deaths if call.checkpoint else 0)
    if deaths_before + 1 >= call.max_deaths:
        return Bury(failure)
    charged = replace(call, deaths=call.deaths + 1, mark=None)
    return Retry(charged, call.backoff.delay_seconds(deaths_before, jitter))


def _after_interruption(call: Call, happening: Preempted | Disturbed | Hindered) -> Decision:
    if isinstance(happening, Hindered):
        return Retry(replace(call, mark=None), HINDERED_DELAY_SECONDS)
    if isinstance(happening, Disturbed):
        # Uncharged, and bounded: a suspect shares no process from then on, so its next death is its own.
        return Retry(replace(call, alone=call.alone or happening.suspect, mark=None), 0)
    charged = replace(call, preemptions=call.preemptions + 1, mark=None)
    idle_preemptions = charged.preemptions - (call.checkpoint.preemptions if call.checkpoint else 0)
    if idle_preemptions < MAX_IDLE_PREEMPTIONS:
        return Retry(charged, 0)
    message = f"Preempted {idle_preemptions} times without progress: it takes longer than these machines live."
    return Bury(Failure(Cause.NEVER_FITS, "", message))
