"""Chapter 5: the same task, called differently. `options()` gives a configured copy; the task itself stays as it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from gate import Gate

from ai4s.jobq import App, CallExpired, CallTimedOut, DeclarationError, KeyConflict, NotFinished, current

app = App("options")

pytestmark = pytest.mark.usefixtures("worker")


@app.task
def square(x: int) -> int:
    return x * x


@app.task(queue="gpu")
def name_of_queue() -> str:
    return current().queue


@app.task(backoff=0)
def fail_once() -> int:
    if current().attempt == 1:
        raise ConnectionError("not yet")
    return current().attempt


@app.task
def append_to(log: Path, text: str) -> int:
    with log.open("a") as file:
        file.write(text)
    return len(log.read_text())


@app.task
def wait_at(gate: Gate) -> None:
    gate.pass_through()


def test_a_configured_copy_is_called_like_the_task() -> None:
    """Keep it, pass it on, call it often."""
    patient = square.options(timeout=3600, retries=5)

    assert [patient.delay(x).result(timeout=60) for x in (1, 2)] == [1, 4]


def test_countdown_puts_a_call_off() -> None:
    """It may run in so many seconds at the earliest; a timedelta will do as well."""
    later = square.options(countdown=timedelta(hours=1)).delay(3)
    soon = square.options(countdown=0.1).delay(3)

    assert soon.result(timeout=60) == 9
    assert later.status() == "pending"


def test_eta_is_a_moment() -> None:
    """A datetime with a time zone: clocks of two machines don't agree on what 9 o'clock is."""
    just_past = datetime.now(UTC) - timedelta(seconds=1)
    assert square.options(eta=just_past).delay(3).result(timeout=60) == 9

    with pytest.raises(DeclarationError, match="eta must have a time zone"):
        square.options(eta=datetime(2030, 1, 1))  # noqa: DTZ001  # that it has none is the point


def test_a_call_that_nobody_took_in_time_expires() -> None:
    """After `expires`, no attempt begins any more: stale work is dropped, and the caller is told."""
    handle = square.options(expires=0.05, countdown=0.1).delay(3)

    with pytest.raises(CallExpired, match="expired before a worker took it"):
        handle.result(timeout=60)
    assert handle.status() == "expired"


def test_queues_separate_what_needs_different_machines() -> None:
    """A task names its queue, and a call can name another. Workers say which ones they serve."""
    assert name_of_queue.delay().result(timeout=60) == "gpu"
    assert name_of_queue.options(queue="default").delay().result(timeout=60) == "default"


def test_timeout_and_retries_can_be_set_per_call(gate: Gate) -> None:
    """They take the place of what the task says."""
    with pytest.raises(CallTimedOut):
        wait_at.options(timeout=0.2).delay(gate).result(timeout=60)
    assert fail_once.options(retries=1).delay().result(timeout=60) == 2


def test_a_key_makes_a_call_idempotent(tmp_path: Path) -> None:
    """Called again with the same key and arguments, it is the same call: it runs once, and both handles mean it.

    So a program that was interrupted can just be started again.
    """
    log = tmp_path / "log"
    first = append_to.options(key="step 1").delay(log, "once;")
    again = append_to.options(key="step 1").delay(log, "once;")

    assert first == again
    assert first.result(timeout=60) == again.result(timeout=60)
    assert log.read_text() == "once;"


def test_a_key_stands_for_its_arguments() -> None:
    """The same key with other arguments is a mistake, and is called one."""
    square.options(key="the square").delay(3)

    with pytest.raises(KeyConflict, match="used before with other arguments"):
        square.options(key="the square").delay(4)


def test_options_can_be_changed_step_by_step(gate: Gate) -> None:
    """Each copy starts from the one before it."""
    careful = wait_at.options(retries=5)
    handle = careful.options(key="one at the gate").delay(gate)

    assert handle == careful.options(key="one at the gate").delay(gate)
    with pytest.raises(NotFinished):
        handle.forget()


def test_a_misspelt_option_is_found_out() -> None:
    """With a guess at what was meant."""
    with pytest.raises(DeclarationError, match=r"'retires' is not an option of a call\. Did you mean 'retries'\?"):
        square.options(retires=3)  # type: ignore[call-arg]
