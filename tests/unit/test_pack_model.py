"""Random histories of packs with the real code: see `tests/pack_machine.py`."""

from __future__ import annotations

import pack_machine
import pytest
from pack_mutants import MUTANTS

HISTORIES = 60
MOST_HISTORIES = 300
SEEN_IN = {"late outcomes kept": 89, "folded gifts not sent again": 65, "failures under a lost lease": 71}
"""Histories in which the lack of a rule was noticed before: the search begins there."""


def test_promises_hold_in_random_histories() -> None:
    """Whatever dies, stands still or comes twice: each call ends once, values stay, logs have no holes, nobody pays for others."""
    tally = pack_machine.run(HISTORIES, seed=1000)
    assert tally.runs == HISTORIES
    assert tally.given > 0
    assert all(tally.faults[fault] for fault in ("FREEZE", "NOT_DONE", "CRASH_BEFORE", "CRASH_AFTER", "ANSWER_LOST"))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_missing_rule_is_noticed(name: str) -> None:
    """With one of the rules taken out, some history breaks a promise."""
    with MUTANTS[name](), pytest.raises(AssertionError, match="History"):
        pack_machine.run(MOST_HISTORIES, seed=SEEN_IN.get(name, 0))
