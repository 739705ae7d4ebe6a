"""Chapter 10: tests for tasks of your own.

The package brings a plugin for pytest: these fixtures are there as soon as it is installed. This file has no worker of its own
and is otherwise a test file as you would write it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from ai4s.jobq import App, current
from ai4s.jobq.testing import inline, temporary_place

# Say that this is your project …

app = App("your-project")


@app.task
def parse(line: str) -> list[float]:
    return [float(number) for number in line.split(",")]


@app.task(retries=2)
def fetch_flaky() -> int:
    if current().attempt < 3:
        raise ConnectionError("not yet")
    return current().attempt


@app.task
def process_id() -> int:
    return os.getpid()


# … and these are its tests.


def test_most_tests_need_no_queue_at_all() -> None:
    """A task is a function."""
    assert parse("1,2.5") == [1, 2.5]


def test_inline_mode_runs_calls_at_once(jobq_inline: Callable[[App], App]) -> None:
    """In this process, where a debugger works; through the real codec, so that what can't travel is found out."""
    jobq_inline(app)

    assert parse.delay("1,2.5").result() == [1, 2.5]
    assert process_id.delay().result() == os.getpid()
    with pytest.raises(ValueError, match="could not convert string to float: 'x'"):
        parse.delay("x").result()


def test_inline_mode_retries_without_waiting(jobq_inline: Callable[[App], App]) -> None:
    """The budgets are those of a worker; the pauses between attempts are left out."""
    jobq_inline(app)

    assert fetch_flaky.delay().result() == 3


def test_a_map_runs_at_once_too(jobq_inline: Callable[[App], App]) -> None:
    """With all its outcomes there when it returns; what failed can be retried, and runs at once as well."""
    jobq_inline(app)
    batch = parse.map(["1,2.5", "x", "3"])

    assert [outcome.index for outcome in batch.failures()] == [1]
    assert batch.retry_failures() == 1
    with parse.stream(["4"] * 3) as outcomes:
        assert [outcome.value for outcome in outcomes] == [[4]] * 3


def test_a_real_worker_for_the_length_of_a_test(jobq_place: Callable[[App], App], jobq_worker: Callable[..., object]) -> None:
    """`jobq_place` moves your app to an empty store of its own, `jobq_worker` starts a worker for it."""
    jobq_worker(jobq_place(app))

    assert process_id.delay().result(timeout=60) != os.getpid()


def test_a_fresh_app_for_tests_that_declare_tasks(jobq_app: App, jobq_worker: Callable[..., object]) -> None:
    """`jobq_app` has no tasks yet, and a store of its own."""

    @jobq_app.task
    def double(x: int) -> int:
        return 2 * x

    jobq_worker(jobq_app)
    assert double.delay(4).result(timeout=60) == 8


def test_the_same_without_pytest() -> None:
    """Context managers, for other test runners and for notebooks."""
    with temporary_place(app), inline(app):
        assert parse.delay("1,2.5").result() == [1, 2.5]
