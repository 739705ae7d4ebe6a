"""Chapter 4: when a task fails."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest

from ai4s.jobq import App, CallTimedOut, Retry, WorkerDied, current

app = App("errors")

pytestmark = pytest.mark.usefixtures("worker")


class NoConvergence(Exception):
    """An exception of your own, with what you want to know about it."""

    def __init__(self, steps: int) -> None:
        super().__init__(f"no convergence in {steps} steps")
        self.steps = steps


@app.task
def solve(steps: int) -> float:
    raise NoConvergence(steps)


@app.task(retries=3, backoff=0)
def pass_on_attempt(number: int) -> int:
    if current().attempt < number:
        raise ConnectionError(f"attempt {current().attempt} failed")
    return current().attempt


@app.task(retries=3, backoff=0, retry_on=(ConnectionError, TimeoutError))
def fail_for_good(log: Path) -> None:
    with log.open("a") as file:
        file.write("tried\n")
    raise ValueError("this will not get better")


@app.task(retries=1)
def ask_for_another_attempt() -> int:
    if current().attempt == 1:
        raise Retry(delay=0)
    return current().attempt


@app.task(timeout=0.2)
def never_end() -> None:
    while True:
        pass


@app.task(max_deaths=1)
def crash() -> None:
    os._exit(13)


@app.task
def time_out_itself() -> None:
    raise TimeoutError("the instrument did not answer")


def test_result_raises_what_the_task_raised() -> None:
    """The exception is the original one, with its class and its attributes."""
    with pytest.raises(NoConvergence, match="no convergence in 50 steps") as caught:
        solve.delay(50).result(timeout=60)
    assert caught.value.steps == 50


def test_the_remote_traceback_comes_along() -> None:
    """It stands as the cause, so that an uncaught error shows both: where it was raised, and where you waited for it."""
    with pytest.raises(NoConvergence) as caught:
        solve.delay(50).result(timeout=60)

    printed = "".join(traceback.format_exception(caught.value))
    assert "raise NoConvergence(steps)" in printed
    assert "test_04_errors_and_retries.py" in printed
    assert "direct cause" in printed


def test_exception_returns_the_error_instead_of_raising_it() -> None:
    """None stands for a success."""
    assert isinstance(solve.delay(50).exception(timeout=60), NoConvergence)
    assert pass_on_attempt.delay(1).exception(timeout=60) is None


def test_nothing_is_retried_unless_you_say_so() -> None:
    """`retries` is 0 by default: only you know whether your function may run twice."""
    handle = solve.delay(50)
    handle.exception(timeout=60)

    assert handle.status() == "failed"


def test_retries_are_further_attempts() -> None:
    """With `retries=3` a call has up to four attempts; `current().attempt` counts them."""
    assert pass_on_attempt.delay(4).result(timeout=60) == 4


def test_the_last_error_counts_when_retries_are_used_up() -> None:
    """Then the call has failed, with the exception of its last attempt."""
    with pytest.raises(ConnectionError, match="attempt 4 failed"):
        pass_on_attempt.delay(5).result(timeout=60)


def test_retry_on_says_which_errors_earn_a_retry(tmp_path: Path) -> None:
    """Others fail the call at once."""
    log = tmp_path / "log"
    with pytest.raises(ValueError, match="this will not get better"):
        fail_for_good.delay(log).result(timeout=60)

    assert log.read_text() == "tried\n"


def test_a_task_can_ask_for_another_attempt() -> None:
    """`raise Retry(delay=seconds)`, within the task's `retries`."""
    assert ask_for_another_attempt.delay().result(timeout=60) == 2


def test_an_attempt_that_takes_too_long_is_stopped() -> None:
    """`timeout` is for one attempt; its process is killed, whatever it does. It counts as an error, so it can be retried."""
    with pytest.raises(CallTimedOut, match=r"longer than its timeout of 0\.2 s") as caught:
        never_end.delay().result(timeout=60)
    assert caught.value.attempts == 1


def test_a_crash_of_the_process_is_an_error_of_its_own() -> None:
    """A segmentation fault or a kill for want of memory takes a child process, not the worker. `max_deaths` are allowed."""
    handle = crash.delay()
    with pytest.raises(WorkerDied, match="exit code 13") as caught:
        handle.result(timeout=60)
    assert caught.value.call_id == handle.id


def test_a_timeout_in_the_task_is_not_one_of_waiting() -> None:
    """A TimeoutError that the task raised comes back as just that; a wait that ran out raises ResultTimeout."""
    with pytest.raises(TimeoutError, match="the instrument did not answer") as caught:
        time_out_itself.delay().result(timeout=60)
    assert type(caught.value) is TimeoutError
