"""Chapter 8: what a task can know and use while it runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import pytest

from ai4s.jobq import App, HandleAsArgument, JobQError, WouldDeadlock, current, gather

app = App("inside-a-task")

pytestmark = pytest.mark.usefixtures("worker")


@app.task(timeout=30)
def who_am_i() -> dict[str, object]:
    call = current()
    left = (call.deadline or 0) - time.time()
    return {
        "id": call.id,
        "run": call.run,
        "attempt": call.attempt,
        "queue": call.queue,
        "task": call.task,
        "in time": 0 < left <= 30,
    }


@app.task
async def who_am_i_async() -> str:
    return current().id


@app.task
def log_something() -> str:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment,method-assign]
    logger = current().logger
    logger.logger.addHandler(handler)
    logger.warning("step %d", 3)
    return f"{records[0].getMessage()} ({records[0].__dict__['call_id']})"


@app.resource
def model() -> Iterator[list[int]]:
    """Something expensive to make; here, a list with the process that made it."""
    yield [os.getpid()]


@app.task
def use_model() -> tuple[int, int]:
    """The number of uses so far, and the process."""
    model().append(0)
    return len(model()) - 1, os.getpid()


@app.task
def square(x: int) -> int:
    return x * x


@app.task
def submit_another(x: int) -> str:
    return square.delay(x).id


@app.task
def wait_for_another(x: int) -> int:
    return square.delay(x).result()


def test_current_says_which_call_this_is() -> None:
    """Its id, which attempt it is, where it came from, and until when it may run (seconds since 1970)."""
    handle = who_am_i.delay()

    assert handle.result(timeout=60) == {
        "id": handle.id,
        "run": 1,
        "attempt": 1,
        "queue": "default",
        "task": "test_08_inside_a_task.who_am_i",
        "in time": True,
    }


def test_each_async_call_sees_itself() -> None:
    """However many of them share a process."""
    handles = [who_am_i_async.delay() for _ in range(5)]

    assert gather(*handles, timeout=60) == [handle.id for handle in handles]


def test_outside_a_task_there_is_no_current_call() -> None:
    """Not even where the function of a task is just called."""
    with pytest.raises(JobQError, match="only inside a running task"):
        who_am_i()


def test_the_logger_names_the_call() -> None:
    """In the text, and in fields for those who collect logs."""
    handle = log_something.delay()

    assert handle.result(timeout=60) == f"[{handle.id} attempt 1] step 3 ({handle.id})"


def test_a_resource_is_made_once_in_each_process() -> None:
    """A function with one `yield`, called where the thing is needed: a model, a connection, a table."""
    uses: dict[int, list[int]] = {}
    for handle in [use_model.delay() for _ in range(8)]:
        count, process = handle.result(timeout=60)
        uses.setdefault(process, []).append(count)

    assert sum(len(counts) for counts in uses.values()) == 8
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in uses.values()), uses


def test_a_task_can_submit_further_calls() -> None:
    """They go to the same place."""
    further = submit_another.delay(3).result(timeout=60)

    assert app.handle(further).result(timeout=60) == 9


def test_a_task_must_not_wait_for_another() -> None:
    """It would hold its slot for a call that may need one. Return the other's id, or let the caller wait."""
    with pytest.raises(WouldDeadlock, match="must not wait for call"):
        wait_for_another.delay(3).result(timeout=60)


def test_a_handle_is_not_an_argument() -> None:
    """Pass the value. This is found out before anything is sent."""
    handle = square.delay(3)

    with pytest.raises(HandleAsArgument, match=r"is not an argument: pass handle\.result"):
        square.delay(handle)  # type: ignore[arg-type]
