"""How durations are spread."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai4s.jobq.distribution import BOUNDS, Distribution

COUNTS = st.lists(st.integers(0, 10**9), max_size=len(BOUNDS) + 1)
SECONDS = st.floats(0, 10**7)


def spread(*durations: float) -> Distribution:
    found = Distribution()
    for seconds in durations:
        found.add(seconds)
    return found


@given(COUNTS)
def test_a_distribution_comes_back_as_it_was(counts: list[int]) -> None:
    """What is written is read, in ASCII."""
    written = Distribution(counts)
    text = written.to_text()
    assert text.isascii()
    assert Distribution.from_text(text) == written


@given(st.text() | st.text("0123456789:,"))
def test_any_text_can_be_read(text: str) -> None:
    """A status that somebody spoilt hides nothing else: what cannot be read is left out."""
    assert Distribution.from_text(text).total >= 0


@pytest.mark.parametrize("text", ["", "x", "1", "1:", ":1", "-1:2", "1:-2", "99:1", "٣:1", "1:" + "9" * 16, "1.0:2"])
def test_garbage_is_empty(text: str) -> None:
    """None of these is a count of a bucket."""
    assert Distribution.from_text(text) == Distribution()


@given(st.lists(SECONDS), st.lists(SECONDS))
def test_merged_is_as_if_counted_together(some: list[float], others: list[float]) -> None:
    """Workers' distributions can be summed."""
    merged = spread(*some)
    merged.merge(spread(*others))
    assert merged == spread(*some, *others)
    assert merged.total == len(some) + len(others)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_can_be_counted(seconds: float) -> None:
    """Clocks that differ make odd durations; none of them raises, and only what is no number does not count."""
    assert spread(seconds).total == (seconds == seconds)


@given(st.lists(SECONDS))
def test_many_are_counted_as_one_by_one(durations: list[float]) -> None:
    """The fast way to count comes to the same."""
    found = Distribution()
    found.add_all(durations)
    assert found == spread(*durations)


def test_a_bound_belongs_to_its_bucket() -> None:
    """Exactly one second is among those of at most one second."""
    assert spread(1.0).counts == spread(0.5).counts
    assert spread(1.0).to_text() == f"{BOUNDS.index(1.0)}:1"


@given(st.lists(SECONDS, min_size=1), st.lists(st.floats(0, 1), min_size=2))
def test_quantiles_rise_and_stay_within_the_buckets(durations: list[float], shares: list[float]) -> None:
    """A larger share is never reached sooner, and no answer lies above the bucket of the longest duration."""
    found = spread(*durations)
    answers = [found.quantile(share) for share in sorted(shares)]
    assert all(low is not None and high is not None and low <= high + 1e-9 for low, high in pairwise(answers))
    longest = next((bound for bound in BOUNDS if max(durations) <= bound), BOUNDS[-1])
    assert found.quantile(1) == pytest.approx(longest)


def test_a_quantile_is_interpolated() -> None:
    """Half of what lies evenly between 10 s and 30 s took at most 20 s."""
    assert spread(*[25.0] * 10).quantile(0.5) == pytest.approx(20.0)


def test_nothing_has_no_quantile() -> None:
    """Of nothing, nothing is known; and a share lies between 0 and 1."""
    assert Distribution().quantile(0.5) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        spread(1).quantile(50)
