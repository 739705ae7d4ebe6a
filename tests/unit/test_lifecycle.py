"""What follows from what happens to an attempt: separate budgets, bounded attempts, and a success that always counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.lifecycle import (
    MAX_IDLE_PREEMPTIONS,
    UNFIT_AGE_SECONDS,
    UNFIT_DELIVERIES,
    Bury,
    Cancelled,
    Decision,
    Died,
    Disturbed,
    Expired,
    Finish,
    Happening,
    Preempted,
    Raised,
    Refused,
    Release,
    Retry,
    Succeeded,
    TimedOut,
    decide,
)
from ai4s.jobq.message import Backoff, Call, Cause, Failure, Spill, State

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
FAILURE = Failure(Cause.RAISED, "ValueError", "no")
DEATH = Failure(Cause.DIED, "", "signal SIGKILL")
CALL = Call(
    id="abcdefgh234567ab-000000000007",
    task="proj.f",
    queue="default",
    arguments=b"",
    sent=1.0,
    retries=2,
    max_deaths=3,
    backoff=Backoff(first=10, factor=2, longest=15),
    mark="f" * 16,
)

backoffs = st.builds(
    lambda first, factor, longer: Backoff(first, factor, first + longer),
    st.floats(0, 1e6),
    st.floats(1, 1e12),
    st.floats(0, 1e9),
)
calls = st.builds(
    lambda **changes: replace(CALL, **changes),
    retries=st.integers(0, 6),
    max_deaths=st.integers(1, 6),
    backoff=backoffs,
    errors=st.integers(0, 6),
    deaths=st.integers(0, 6),
    preemptions=st.integers(0, MAX_IDLE_PREEMPTIONS),
    mark=st.none() | st.just("f" * 16),
    alone=st.booleans(),
)
unsuccessful = st.one_of(
    st.builds(Raised, st.just(FAILURE), st.booleans(), st.none() | st.floats(0, 1e9)),
    st.just(TimedOut(FAILURE)),
    st.just(Died(DEATH)),
    st.just(Preempted()),
    st.just(Expired()),
    st.builds(Refused, st.just(FAILURE), st.integers(1, 50), st.floats(0, 10 * 86_400)),
)
jitters = st.floats(0, 1, exclude_max=True)


def call(**changes: object) -> Call:
    """CALL with changes."""
    return replace(CALL, **changes)  # type: ignore[arg-type]  # fields by name


def again(**changes: object) -> Call:
    """CALL as the next attempt has it: changed, and without the mark."""
    return replace(CALL, mark=None, **changes)  # type: ignore[arg-type]  # fields by name


REFUSED = Refused(FAILURE, 1, 0.0)
NEVER_FITS = f"Preempted {MAX_IDLE_PREEMPTIONS} times without progress: it takes longer than these machines live."
TABLE: dict[str, tuple[Call, Happening, Decision]] = {
    "a success": (CALL, Succeeded(b"9"), Finish(State.SUCCEEDED, b"9")),
    "an empty value": (CALL, Succeeded(b""), Finish(State.SUCCEEDED, b"")),
    "a spilled success": (CALL, Succeeded(Spill(9, "0")), Finish(State.SUCCEEDED, Spill(9, "0"))),
    "a success after all budgets": (call(errors=9, deaths=9, preemptions=9), Succeeded(b"9"), Finish(State.SUCCEEDED, b"9")),
    "cancelled": (CALL, Cancelled(), Finish(State.CANCELLED)),
    "too late": (CALL, Expired(), Finish(State.EXPIRED)),
    "the first error": (CALL, Raised(FAILURE, retryable=True), Retry(again(errors=1), 10)),
    "the second error": (call(errors=1), Raised(FAILURE, retryable=True), Retry(again(errors=2), 15)),
    "the last error": (call(errors=2), Raised(FAILURE, retryable=True), Bury(FAILURE)),
    "an error after deaths and preemptions": (
        call(deaths=2, preemptions=4),
        Raised(FAILURE, retryable=True),
        Retry(again(deaths=2, preemptions=4, errors=1), 10),
    ),
    "a death after errors and preemptions": (
        call(errors=2, preemptions=4),
        Died(DEATH),
        Retry(again(errors=2, preemptions=4, deaths=1), 10),
    ),
    "a preemption after errors and deaths": (
        call(errors=2, deaths=2),
        Preempted(),
        Retry(again(errors=2, deaths=2, preemptions=1), 0),
    ),
    "an error that earns none": (CALL, Raised(FAILURE, retryable=False), Bury(FAILURE)),
    "no retries at all": (call(retries=0), Raised(FAILURE, retryable=True), Bury(FAILURE)),
    "an error with a wish": (CALL, Raised(FAILURE, True, 77.0), Retry(again(errors=1), 77.0)),
    "an error that wants to go on at once": (CALL, Raised(FAILURE, True, 0.0), Retry(again(errors=1), 0.0)),
    "the last error with a wish": (call(errors=2), Raised(FAILURE, True, 1.0), Bury(FAILURE)),
    "a timeout": (CALL, TimedOut(FAILURE), Retry(again(errors=1), 10)),
    "the last timeout": (call(errors=2), TimedOut(FAILURE), Bury(FAILURE)),
    "the first death": (CALL, Died(DEATH), Retry(again(deaths=1), 10)),
    "the second death": (call(deaths=1), Died(DEATH), Retry(again(deaths=2), 15)),
    "the last death": (call(deaths=2), Died(DEATH), Bury(DEATH)),
    "the only death": (call(max_deaths=1), Died(DEATH), Bury(DEATH)),
    "a death without retries": (call(retries=0), Died(DEATH), Retry(again(retries=0, deaths=1), 10)),
    "a preemption": (CALL, Preempted(), Retry(again(preemptions=1), 0)),
    "the last preemption": (
        call(preemptions=MAX_IDLE_PREEMPTIONS - 1),
        Preempted(),
        Bury(Failure(Cause.NEVER_FITS, "", NEVER_FITS)),
    ),
    "refused": (CALL, REFUSED, Release(30.0)),
    "refused often, on its first day": (CALL, Refused(FAILURE, 1_000, UNFIT_AGE_SECONDS - 1.0), Release(3600.0)),
    "refused seldom, for a week": (CALL, Refused(FAILURE, UNFIT_DELIVERIES - 1, 7 * 86_400.0), Release(3600.0)),
    "refused for a day": (CALL, Refused(FAILURE, UNFIT_DELIVERIES, float(UNFIT_AGE_SECONDS)), Bury(FAILURE)),
    "disturbed by another": (CALL, Disturbed(suspect=False), Retry(again(), 0)),
    "disturbed, and perhaps the cause": (CALL, Disturbed(suspect=True), Retry(again(alone=True), 0)),
    "disturbed again, though it was suspect": (call(alone=True), Disturbed(suspect=False), Retry(again(alone=True), 0)),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_decisions(name: str) -> None:
    """What happens, and what follows, without jitter."""
    before, happening, expected = TABLE[name]
    assert decide(happening, before, jitter=0) == expected


@SAME_EACH_TIME
@given(calls, st.binary(max_size=9) | st.just(Spill(1, "0")), jitters)
def test_a_success_always_finishes(before: Call, value: bytes | Spill, jitter: float) -> None:
    """Whatever was spent before, a success ends the run with its value."""
    assert decide(Succeeded(value), before, jitter=jitter) == Finish(State.SUCCEEDED, value)


@SAME_EACH_TIME
@given(calls, unsuccessful, jitters)
def test_one_happening_spends_one_budget(before: Call, happening: Happening, jitter: float) -> None:
    """A retry changes the count of its own kind by one, takes the mark out, and leaves everything else alone."""
    decision = decide(happening, before, jitter=jitter)
    if isinstance(decision, Retry):
        kind = {Raised: "errors", TimedOut: "errors", Died: "deaths", Preempted: "preemptions"}[type(happening)]
        spent: dict[str, object] = {kind: getattr(before, kind) + 1}
        assert decision.call == replace(before, mark=None, **spent)  # type: ignore[arg-type]  # fields by name
        assert decision.call.attempt == before.attempt + 1


@SAME_EACH_TIME
@given(calls, st.booleans(), jitters)
def test_a_disturbance_costs_nothing_and_a_suspect_stays_one(before: Call, suspect: bool, jitter: float) -> None:
    """Who shared a process with what killed it loses no budget; whoever may have done it runs alone from then on."""
    decision = decide(Disturbed(suspect), before, jitter=jitter)
    assert decision == Retry(replace(before, alone=before.alone or suspect, mark=None), 0)


@SAME_EACH_TIME
@given(calls, unsuccessful, jitters)
def test_delays_stay_within_bounds(before: Call, happening: Happening, jitter: float) -> None:
    """A delay is what a Retry asked for, or at most the backoff's longest, and at least half of its first; never negative."""
    decision = decide(happening, before, jitter=jitter)
    if isinstance(decision, Retry):
        asked = happening.delay_seconds if isinstance(happening, Raised) else None
        if asked is not None:
            assert decision.delay_seconds == asked
        elif isinstance(happening, Preempted):
            assert decision.delay_seconds == 0
        else:
            assert before.backoff.first / 2 <= decision.delay_seconds <= before.backoff.longest


@SAME_EACH_TIME
@given(calls, st.lists(unsuccessful, min_size=20, max_size=60), jitters)
def test_attempts_are_bounded_whatever_happens(fresh: Call, happenings: list[Happening], jitter: float) -> None:
    """Whatever the sequence of happenings, a run has at most retries + deaths + preemptions attempts, and then it ends."""
    now = replace(fresh, errors=0, deaths=0, preemptions=0, mark=None)
    attempts, most = 0, now.retries + now.max_deaths + MAX_IDLE_PREEMPTIONS
    for happening in happenings:
        decision = decide(happening, now, jitter=jitter)
        attempts += not isinstance(happening, (Expired, Refused))
        if isinstance(decision, (Finish, Bury)):
            break
        if isinstance(decision, Retry):
            now = decision.call
            assert now.errors <= now.retries
            assert now.deaths < now.max_deaths
            assert now.preemptions < MAX_IDLE_PREEMPTIONS
    assert attempts <= most


@pytest.mark.parametrize(
    ("happening", "attempts"),
    [(Raised(FAILURE, retryable=True), 3), (TimedOut(FAILURE), 3), (Died(DEATH), 3), (Preempted(), MAX_IDLE_PREEMPTIONS)],
    ids=["errors", "timeouts", "deaths", "preemptions"],
)
def test_the_same_happening_for_ever_ends(happening: Happening, attempts: int) -> None:
    """One kind of trouble alone uses exactly its own budget: retries + 1, max_deaths, or the preemptions."""
    now, made = again(), 1
    while isinstance(decision := decide(happening, now, jitter=0.5), Retry):
        now, made = decision.call, made + 1
    assert isinstance(decision, Bury)
    assert made == attempts == now.attempt


def test_the_failure_that_ends_a_run_is_the_last_one() -> None:
    """What is buried is what happened last, so that its cause is the one to look at."""
    spent = call(errors=2, deaths=2)
    assert decide(TimedOut(FAILURE), spent, jitter=0) == Bury(FAILURE)
    assert decide(Died(DEATH), spent, jitter=0) == Bury(DEATH)
