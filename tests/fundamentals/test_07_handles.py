"""Chapter 7: handles. A handle is the future of one call, on any machine, for as long as its outcome is kept."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
from gate import Gate

from ai4s.jobq import App, CallCancelled, Handle, NotFinished, ResultGone, as_completed, gather, wait

app = App("handles")

pytestmark = pytest.mark.usefixtures("worker")


@app.task
def square(x: int) -> int:
    return x * x


@app.task
def reciprocal(x: int) -> float:
    return 1 / x


@app.task
def wait_at(gate: Gate) -> str:
    gate.pass_through()
    return "through"


def test_an_id_is_all_you_need_to_come_back() -> None:
    """Note `handle.id` anywhere; `app.handle(id)` is the same handle again."""
    noted = square.delay(3).id

    assert app.handle(noted).result(timeout=60) == 9


def test_another_process_can_wait_for_the_result() -> None:
    """Days later, or on another machine."""
    handle = square.delay(3)

    program = "import sys; from ai4s.jobq import App; print(App('handles').handle(sys.argv[1]).result(timeout=60))"
    environment = {**os.environ, "JOBQ_URL": app.client.url}
    command = [sys.executable, "-c", program, handle.id]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    assert answer.stdout == "9\n", answer.stderr


def test_a_handle_can_be_pickled() -> None:
    """It holds an id and the name of a place, and no secret."""
    handle: Handle[int] = pickle.loads(pickle.dumps(square.delay(3)))

    assert handle.result(timeout=60) == 9


def test_two_handles_of_one_call_are_equal() -> None:
    """So they can be members of sets and keys of dicts."""
    handle = square.delay(3)

    assert {handle, app.handle(handle.id)} == {handle}


def test_gather_gives_all_values_in_order() -> None:
    """It raises the error of the first that failed."""
    assert gather(*(square.delay(x) for x in range(5)), timeout=60) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        gather(reciprocal.delay(1), reciprocal.delay(0), timeout=60)


def test_as_completed_gives_handles_as_their_calls_end(gate: Gate) -> None:
    """In whatever way they end: what came of each, its handle says."""
    slow, good, bad = wait_at.delay(gate), reciprocal.delay(4), reciprocal.delay(0)

    order = []
    for handle in as_completed([slow, good, bad], timeout=60):
        order.append(handle)
        if len(order) == 2:
            gate.open()

    assert set(order[:2]) == {good, bad}
    assert order[2] == slow
    assert isinstance(bad.exception(), ZeroDivisionError)


def test_wait_says_what_has_ended_and_what_has_not(gate: Gate) -> None:
    """As in `concurrent.futures`; when time is up it just returns."""
    slow, quick = wait_at.delay(gate), square.delay(3)

    done, not_done = wait([slow, quick], timeout=60, return_when="first")
    assert (done, not_done) == ({quick}, {slow})

    gate.open()
    assert wait([slow, quick], timeout=60).not_done == set()


def test_cancel_ends_what_nobody_took_yet() -> None:
    """Whoever waits for the call is told."""
    handle = square.options(countdown=3600).delay(3)

    assert handle.cancel()
    assert handle.status() == "cancelled"
    with pytest.raises(CallCancelled):
        handle.result(timeout=60)


def test_cancel_comes_too_late_for_what_has_ended() -> None:
    """It says so, and the result stays."""
    handle = square.delay(3)
    handle.result(timeout=60)

    assert not handle.cancel()
    assert handle.result() == 9


def test_forget_removes_an_outcome_that_nobody_needs_any_more() -> None:
    """Results stay until somebody forgets them."""
    handle = square.delay(3)
    handle.result(timeout=60)

    handle.forget()
    with pytest.raises(ResultGone, match=f"The outcome of call {handle.id} was forgotten"):
        handle.result(timeout=60)


def test_only_what_has_ended_can_be_forgotten(gate: Gate) -> None:
    """Wait for the call, or cancel it first."""
    handle = wait_at.delay(gate)
    with pytest.raises(NotFinished, match="wait for it, or cancel it first"):
        handle.forget()
