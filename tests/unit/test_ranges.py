"""Sets of indices as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai4s.jobq.errors import Malformed
from ai4s.jobq.ranges import by_value, from_text, to_text


@given(st.sets(st.integers(0, 5000)))
def test_a_set_comes_back_as_it_was(indices: set[int]) -> None:
    """What is written is read, in order."""
    assert from_text(to_text(indices), range(5001)) == sorted(indices)


def test_neighbours_cost_nothing() -> None:
    """A whole pack is a few characters."""
    assert to_text(range(4096)) == "0-4095"
    assert to_text([]) == ""


@pytest.mark.parametrize(
    "text",
    ["x", "1,", ",1", "-1", "1--2", "3-1", "0-8", "8", "1,1", "2,1", "0-3,2-4", "1 ", "٣", "9" * 16, "0-" + "9" * 15, "1e3", "+1"],
)
def test_what_is_no_set_or_leads_out_is_refused(text: str) -> None:
    """A few bytes cannot claim a billion calls, nor one that is not there, nor one twice."""
    with pytest.raises(Malformed):
        from_text(text, range(8))


@given(st.dictionaries(st.integers(0, 100), st.integers(0, 3)))
def test_indices_are_grouped_by_what_they_have(values: dict[int, int]) -> None:
    """Every index stands in the text of its value."""
    found = {index: value for value, text in by_value(values).items() for index in from_text(text, range(101))}
    assert found == values
