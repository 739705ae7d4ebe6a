"""Chapter 2: waiting for a result, and what a result can be."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from gate import Gate

from ai4s.jobq import App, JobQError, ResultTimeout

app = App("results")

pytestmark = pytest.mark.usefixtures("worker")


@dataclass
class Molecule:
    name: str
    atoms: int


@app.task
def add_atom(molecule: Molecule) -> Molecule:
    return Molecule(molecule.name, molecule.atoms + 1)


@app.task
def zeros(size: int) -> bytes:
    return bytes(size)


@app.task
def wait_at(gate: Gate) -> str:
    gate.pass_through()
    return "through"


@app.task
def nothing() -> None:
    return None


def test_arguments_and_results_are_ordinary_objects() -> None:
    """Whatever pickles can be an argument and a result; it arrives as a copy."""
    water = Molecule("water", 2)

    assert add_atom.delay(water).result(timeout=60) == Molecule("water", 3)
    assert water.atoms == 2


def test_none_is_a_result() -> None:
    """A function without a value has ended as well as any other."""
    assert nothing.delay().result(timeout=60) is None


@pytest.mark.parametrize("size", [0, 100_000, 10_000_000])
def test_results_may_be_large(size: int) -> None:
    """Small values lie in the outcome, large ones beside it; nothing changes for you."""
    assert len(zeros.delay(size).result(timeout=60)) == size


def test_done_and_status_look_without_waiting(gate: Gate) -> None:
    """A call is pending while it waits or runs, and then ends in one of four ways; here it succeeds."""
    handle = wait_at.delay(gate)
    assert not handle.done()
    assert handle.status() == "pending"

    gate.open()
    handle.result(timeout=60)
    assert handle.done()
    assert handle.status() == "succeeded"


def test_a_wait_that_runs_out_harms_nothing(gate: Gate) -> None:
    """`result(timeout)` raises when time is up; the call goes on, and you can wait for it again."""
    handle = wait_at.delay(gate)
    with pytest.raises(ResultTimeout, match=f"No outcome of call {handle.id} within 0.1 s; it goes on"):
        handle.result(timeout=0.1)

    gate.open()
    assert handle.result(timeout=60) == "through"


def test_running_out_of_time_is_a_timeout_error(gate: Gate) -> None:
    """Catch it as what it is here, or as Python's own TimeoutError."""
    with pytest.raises(TimeoutError) as caught:
        wait_at.delay(gate).result(timeout=0)
    assert isinstance(caught.value, JobQError)


def test_a_result_can_be_asked_for_again() -> None:
    """An outcome never changes; it stays until you forget it."""
    handle = add_atom.delay(Molecule("methane", 4))

    assert handle.result(timeout=60) == handle.result(timeout=60)
