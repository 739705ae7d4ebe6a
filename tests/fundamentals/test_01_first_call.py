"""Chapter 1: a function, a call, a result.

The chapters are meant to be read in order. Each test shows one thing; together they are a tour of what users hold in their hands.
"""

from __future__ import annotations

import pytest

from ai4s.jobq import App

# An app is a name under which tasks belong together. Making one opens nothing and asks nobody.
app = App("first-call")

# Every test of this chapter has a worker in the background. It is a process of its own, like those on other machines.
pytestmark = pytest.mark.usefixtures("worker")


@app.task
def square(x: int) -> int:
    return x * x


@app.task
def describe(name: str, *, loud: bool = False) -> str:
    return f"{name.upper()}!" if loud else name


def test_a_task_is_still_a_function() -> None:
    """Called as ever, it runs here and now; no worker has any part in it."""
    assert square(3) == 9


def test_delay_lets_a_worker_run_it() -> None:
    """`delay` sends the call and returns a handle at once; `result` waits for the value."""
    handle = square.delay(3)

    assert handle.result(timeout=60) == 9


def test_arguments_are_passed_as_to_the_function() -> None:
    """By position or by name, with the defaults of the function."""
    assert describe.delay("ada").result(timeout=60) == "ada"
    assert describe.delay("ada", loud=True).result(timeout=60) == "ADA!"


def test_wrong_arguments_are_found_at_once() -> None:
    """What doesn't fit the signature is an error at the caller, not a day later in a worker's log."""
    with pytest.raises(TypeError, match=r"square\(x\): missing a required argument: 'x'"):
        square.delay()  # type: ignore[call-arg]


def test_many_calls_run_side_by_side() -> None:
    """Send as many as you like, then collect: the calls are spread over all workers."""
    handles = [square.delay(x) for x in range(20)]

    assert [handle.result(timeout=60) for handle in handles] == [x * x for x in range(20)]
