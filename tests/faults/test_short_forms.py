"""Every experiment of `nox -s faults` in a size that takes seconds."""

from __future__ import annotations

import pytest
from catalogue import experiments
from harness import Experiment, Lab

SHORT = [(experiment, place) for experiment in experiments() for place in experiment.short_places or experiment.places]


@pytest.mark.parametrize(("experiment", "place"), SHORT, ids=[f"{experiment.name}-{place}" for experiment, place in SHORT])
def test_the_promises_hold(lab: Lab, experiment: Experiment, place: str) -> None:
    """Nothing is lost, nothing comes to anything else than it should, and no more runs twice than the faults explain."""
    row = experiment.run(lab, place, experiment.short)
    assert row.passed, row
