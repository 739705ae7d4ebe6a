"""How far a batch is, and the bar that shows it to whoever looks on."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from logged import CANCELLED, log_entry

from ai4s.jobq import App, Progress, ResultTimeout, layout
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.maps import progress_bar

declared = App("progress-unit")


@declared.task
def square(x: int) -> int:
    return x * x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's tasks, on an empty store, without a worker."""
    return jobq_place(declared)


def status(app: App, worker: str, **metadata: str) -> None:
    """What a worker says of itself."""

    async def put(ledger: Ledger) -> None:
        await (await ledger.store()).put(layout.worker(worker), b"", metadata=metadata)

    app.client.run(put)


# Numbers.


def test_all_that_has_ended_is_counted(app: App) -> None:
    """In whatever way; what has no value is counted by its kind as well."""
    batch = square.map(range(10), pack=10, batch="b")
    log_entry(app, "b", {0: 0, 1: ValueError("one"), 2: CANCELLED})
    found = batch.progress()
    assert (found.done, found.failed, found.cancelled, found.total, found.is_whole) == (3, 1, 1, 10, True)


def test_the_rate_is_that_of_the_time_there_was(app: App) -> None:
    """A batch that began a moment ago is not said to last for hours."""
    batch = square.map(range(10), pack=10, batch="b")
    log_entry(app, "b", {n: n for n in range(5)})
    found = batch.progress()
    assert 0.08 < found.rate <= 5
    assert found.seconds_left == pytest.approx(5 / found.rate)


def test_nothing_is_said_of_the_time_left_before_anything_has_ended(app: App) -> None:
    """And at the end it is none."""
    batch = square.map(range(2), batch="b")
    assert batch.progress().seconds_left is None
    log_entry(app, "b", {0: 0, 1: 1})
    assert batch.progress().seconds_left == 0


def test_what_runs_is_what_living_workers_say(app: App) -> None:
    """Those that have stopped say nothing any more."""
    batch = square.map(range(20), batch="b")
    status(app, "one", state="working", batches="b=3 other=7")
    status(app, "two", state="working", batches="b=2")
    status(app, "three", state="stopped", batches="b=9")
    status(app, "four", state="working")
    assert batch.progress().running == 5


def test_failures_that_run_again_have_not_ended(app: App) -> None:
    """Until they have, a second time."""
    batch = square.map(range(4), batch="b")
    log_entry(app, "b", {0: 0, 1: 1, 2: ValueError("two"), 3: ValueError("three")})
    assert (batch.progress().done, batch.progress().failed) == (4, 2)
    batch.retry_failures()
    assert (batch.progress().done, batch.progress().failed) == (2, 0)
    log_entry(app, "b", {2: 4, 3: ValueError("again")}, log="000000.r1")
    assert (batch.progress().done, batch.progress().failed) == (4, 1)
    batch.retry_failures()
    assert (batch.progress().done, batch.progress().failed) == (3, 0)


def test_what_somebody_else_adds_is_counted(app: App) -> None:
    """Progress is that of the batch, not of what this process submitted."""
    batch = square.map(range(2), batch="b", key=str)
    square.map(range(5), batch="b", key=str)
    assert batch.progress().total == 5


def test_progress_reads_well() -> None:
    """In a log, or a prompt."""
    made = Progress(done=1200, failed=3, cancelled=0, running=8, total=5000, is_whole=True, rate=123.4, seconds_left=30.8)
    assert str(made) == "1,200 of 5,000 done (3 failed), 8 running, 123/s, 31 s left"
    made = Progress(done=0, failed=0, cancelled=0, running=0, total=8, is_whole=False, rate=0.0, seconds_left=None)
    assert str(made) == "0 of 8 and more done (0 failed), 0 running, 0/s"


# The bar.


class Silent:
    """Stands for what shows a bar."""

    def update(self, line: int, **what: object) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Nothing was shown."""


class Terminal(io.StringIO):
    """Somebody looks on."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is shown from the first moment on."""
    monkeypatch.setattr(progress_bar, "SHOWN_AFTER_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def read_on(stream: Any, app: App, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read a batch while standard error is this stream; returns what was shown."""
    batch = square.map(range(4), batch="seen")
    log_entry(app, "seen", {n: n for n in range(4)})
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        assert list(batch) == [0, 1, 2, 3]
    return str(stream.getvalue())


@pytest.mark.usefixtures("at_once")
def test_a_terminal_gets_a_bar(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the batch's name, and how many calls there are."""
    shown = read_on(Terminal(), app, monkeypatch)
    assert "seen" in shown
    assert "4/4" in shown


@pytest.mark.usefixtures("at_once")
def test_a_pipe_gets_none(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a file."""
    assert read_on(io.StringIO(), app, monkeypatch) == ""


@pytest.mark.usefixtures("at_once")
def test_a_notebook_gets_a_bar(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its standard error is no terminal. A program that only imports IPython is no notebook."""
    shown: list[str] = []
    monkeypatch.setattr(progress_bar, "_open", lambda name: (shown.append(name), (Silent(), 0))[1])
    ipython, shell = ModuleType("IPython"), type("ZMQInteractiveShell", (), {})
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    read_on(io.StringIO(), app, monkeypatch)
    assert shown == []
    monkeypatch.setattr(ipython, "get_ipython", shell, raising=False)
    list(app.batch("seen"))
    assert shown == ["seen"]


def test_what_is_soon_over_gets_none(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that flashes up tells nothing."""
    monkeypatch.setattr(progress_bar, "SHOWN_AFTER_SECONDS", 3600.0)
    assert read_on(Terminal(), app, monkeypatch) == ""


@pytest.mark.usefixtures("at_once")
def test_the_bar_is_there_while_nothing_comes(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gone as soon as the reading is over, by an error too."""
    batch, stream = square.map(range(4), batch="seen"), Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        with pytest.raises(ResultTimeout):
            batch.results(timeout=0.2)
        assert "0/4" in stream.getvalue()
        assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


@pytest.mark.usefixtures("at_once")
def test_a_failed_call_ends_the_bar_at_once(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback may be looked at for long, and would be painted over."""
    batch, stream = square.map(range(2), batch="seen"), Terminal()
    log_entry(app, "seen", {0: ValueError("zero"), 1: 1})
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        try:
            list(batch)
        except ValueError as exc:
            kept = exc
        assert stream.getvalue().count("\x1b[?25h") == 1
    assert str(kept) == "zero"


def test_without_standard_error_there_is_none(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program without a console."""
    batch = square.map([1], batch="b")
    log_entry(app, "b", {0: 1})
    monkeypatch.setattr(sys, "stderr", None)
    assert list(batch) == [1]
