"""What may be declared about retries, and how long the pauses between attempts are."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.errors import DeclarationError, JobQError
from ai4s.jobq.errors import Retry as RetryRequest
from ai4s.jobq.message import Backoff
from ai4s.jobq.retry import RetryPolicy, retry_policy

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
SOUND: dict[str, Any] = {"retries": 3, "retry_on": (ValueError,), "backoff": 5, "max_deaths": 2}


def policy(**changes: object) -> RetryPolicy:
    """A policy from a sound declaration with changes."""
    return retry_policy(**{**SOUND, **changes})


def test_a_declaration_becomes_a_policy() -> None:
    """A bare class stands for a tuple of it, bare seconds for a constant pause."""
    assert policy(retry_on=OSError) == RetryPolicy(3, (OSError,), Backoff(5.0, 1.0, 5.0), 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"retries": -1},
        {"retries": 1.0},
        {"retries": True},
        {"retries": "3"},
        {"retries": None},
        {"retries": math.nan},
        {"max_deaths": 0},
        {"max_deaths": -1},
        {"max_deaths": 1.5},
        {"retry_on": ()},
        {"retry_on": None},
        {"retry_on": "ValueError"},
        {"retry_on": ValueError()},
        {"retry_on": [ValueError]},
        {"retry_on": (ValueError, 3)},
        {"retry_on": int},
        {"backoff": -1},
        {"backoff": math.nan},
        {"backoff": math.inf},
        {"backoff": True},
        {"backoff": "5"},
        {"backoff": None},
        {"backoff": 10**400},
        {"backoff": Backoff(first=-1.0)},
        {"backoff": Backoff(first=5, longest=4)},
        {"backoff": Backoff(factor=0.5)},
        {"backoff": Backoff(factor=math.nan)},
        {"backoff": Backoff(factor=math.inf)},
        {"backoff": Backoff(longest=math.inf)},
        {"backoff": Backoff(first="1")},  # type: ignore[arg-type]  # as users will
        {"backoff": Backoff(longest=None)},  # type: ignore[arg-type]  # as users will
    ],
    ids=str,
)
def test_a_declaration_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    """Each wrong value is refused when it is declared, and the error names the option."""
    with pytest.raises(DeclarationError, match=next(iter(changes))):
        policy(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"retries": sys.maxsize},
        {"retries": 10**20},
        {"max_deaths": sys.maxsize},
        {"backoff": 1e300},
        {"backoff": Backoff(longest=sys.float_info.max)},
        {"backoff": Backoff(factor=1e300)},
    ],
    ids=str,
)
def test_numbers_that_no_worker_would_take_are_refused(changes: dict[str, object]) -> None:
    """What does not fit a message's fields is refused at declaration: a worker could only bury such a call unread."""
    with pytest.raises(DeclarationError):
        policy(**changes)


def test_retry_on_decides_which_errors_are_covered() -> None:
    """Subclasses count; what leaves the process does not unless it is named."""
    assert policy(retry_on=OSError).covers(FileNotFoundError())
    assert not policy(retry_on=OSError).covers(ValueError())
    assert RetryPolicy().covers(ValueError())
    assert not RetryPolicy().covers(SystemExit())
    assert not RetryPolicy().covers(KeyboardInterrupt())
    assert policy(retry_on=(OSError, SystemExit)).covers(SystemExit())


@pytest.mark.parametrize("delay", [-1, -0.001, math.nan, math.inf, 1e300, "5", b"5", [5], object], ids=repr)
def test_a_retry_with_an_impossible_delay_is_refused_where_it_is_made(delay: Any) -> None:
    """A wrong delay is an error on the line that asks for it, and not one of the worker."""
    with pytest.raises((TypeError, ValueError)):
        RetryRequest(delay)


def test_a_retry_is_no_error_of_ours() -> None:
    """`except JobQError` in a task does not swallow its own request for another attempt."""
    assert not issubclass(RetryRequest, JobQError)
    assert RetryRequest().delay_seconds is None
    assert RetryRequest(0).delay_seconds == 0
    assert RetryRequest(delay=2.5).delay_seconds == 2.5


# Pauses.


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 1), (1, 2), (2, 4), (3, 8), (9, 512), (10, 600), (64, 600), (10_000, 600), (2**53, 600)]
)
def test_pauses_double_up_to_ten_minutes(failures: int, seconds: float) -> None:
    """Unless declared otherwise, without jitter."""
    assert Backoff().delay_seconds(failures, 0) == seconds


@pytest.mark.parametrize("failures", [0, 1, 64, 2**53])
@pytest.mark.parametrize("factor", [1.0, 1.5, 1e5, 1e10, 1e300, sys.float_info.max])
def test_backoff_never_overflows(factor: float, failures: int) -> None:
    """Any factor may be raised to any power: the pause is the longest one."""
    pause = Backoff(1.0, factor, 600.0).delay_seconds(failures, 0)
    assert pause == (1.0 if failures == 0 or factor == 1.0 else 600.0 if factor > 1.5 or failures > 20 else 1.5)


@SAME_EACH_TIME
@given(
    st.floats(0, 1e9),
    st.floats(1, 1e300),
    st.floats(0, 1e9),
    st.integers(0, 2**53),
    st.floats(0, 1, exclude_max=True),
)
def test_pauses_stay_between_half_the_first_and_the_longest(
    first: float, factor: float, longer: float, failures: int, jitter: float
) -> None:
    """Whatever is declared and however often it failed; jitter takes up to half and never adds."""
    backoff = Backoff(first, factor, first + longer)
    pause = backoff.delay_seconds(failures, jitter)
    assert first / 2 <= pause <= backoff.longest


def test_pauses_never_shrink() -> None:
    """Without jitter each pause is at least as long as the one before."""
    backoff = Backoff(0.3, 1.7, 100.0)
    pauses = [backoff.delay_seconds(n, 0) for n in range(80)]
    assert all(one <= other for one, other in pairwise(pauses))
    assert pauses[-1] == 100.0


def test_a_constant_backoff_is_constant() -> None:
    """backoff=5 means 5 s each time, less jitter."""
    backoff = policy(backoff=5).backoff
    assert {backoff.delay_seconds(n, 0) for n in range(20)} == {5.0}
    assert backoff.delay_seconds(7, 0.5) == 3.75


def test_no_backoff_means_at_once() -> None:
    """backoff=0 is allowed: the next attempt begins at once."""
    assert policy(backoff=0).backoff.delay_seconds(5, 0.9) == 0
