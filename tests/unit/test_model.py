"""Random histories of workers, producers, faults and time keep the promises; with a rule of the protocol removed they do not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import model_machine
import pytest
from model_mutants import MUTANTS

from ai4s.jobq.message import State

HISTORIES = 150
MUTANT_HISTORIES = 400


def test_every_promise_holds_in_random_histories() -> None:
    """Crashes, frozen workers, lost answers, copies and time: each call ends once, rightly, and what was read never changes."""
    tally = model_machine.run(HISTORIES)
    assert tally.runs >= HISTORIES
    assert set(map(str, State)) <= set(tally.states)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_missing_rule_is_noticed(mutant: Callable[[], AbstractContextManager[Any]]) -> None:
    """Each rule stands because some history goes wrong without it."""
    with mutant(), pytest.raises(AssertionError):
        model_machine.run(MUTANT_HISTORIES, explain=False)
