"""`result`, `cancel` and `batch` in this process, on a local place: what is shown, and with which exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ai4s.jobq import App, CommandFailed, ShellResult
from ai4s.jobq.cli import jobq, output
from ai4s.jobq.cli.showing import Shower
from ai4s.jobq.errors import JobQError

app = App("looked-at")


@app.task(name="proj.echo")
def echo(value: Any) -> Any:
    return value


@app.task(name="proj.fail")
def fail(why: str) -> None:
    raise ValueError(why)


@app.task(name="proj.odd")
def odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(f"{number} is even\x1b[31m")
    return number


Run = Callable[..., Result]


@pytest.fixture
def run(jobq_inline: Callable[[App], App]) -> Run:
    """Runs a verb on the app by its place, where tasks of this file run at once."""
    jobq_inline(app)
    return lambda *words: CliRunner().invoke(jobq, [f"{app.client.place.label}/{app.name}", *words])


@pytest.fixture
def waiting(jobq_place: Callable[[App], App]) -> Run:
    """The same, where nobody runs anything."""
    jobq_place(app)
    return lambda *words: CliRunner().invoke(jobq, [f"{app.client.place.label}/{app.name}", *words])


# result


@pytest.mark.parametrize(
    ("value", "shown", "fields"),
    [
        ("a text\nof two\tlines \x1b[31m", "a text\nof two\tlines \x1b[31m\n", {"value": "a text\nof two\tlines \x1b[31m"}),
        (3, "3\n", {"value": 3}),
        (None, "None\n", {"value": None}),
        ({"a": [1, 2.5]}, "{'a': [1, 2.5]}\n", {"value": {"a": [1, 2.5]}}),
        ({1, 2}, "{1, 2}\n", {"repr": "{1, 2}"}),
        (float("nan"), "nan\n", {"repr": "nan"}),
        (ShellResult(0, "out\n", 1.5), "out\n", {"exit_code": 0, "output": "out\n", "seconds": 1.5}),
    ],
)
def test_a_value_is_shown_as_what_it_is(run: Run, value: object, shown: str, fields: dict[str, Any]) -> None:
    """A text as it is where it is piped, a command's output, anything else as Python shows it; and as JSON where that can."""
    call = echo.delay(value).id
    found = run("result", call)
    assert (found.exit_code, found.stdout, found.stderr) == (0, shown, "")
    assert json.loads(run("result", call, "--json").stdout) == {"id": call, "state": "succeeded", **fields}


def test_on_a_terminal_no_value_steers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters are spelled out, but for the ends of lines and tabs; a carriage return overwrites nothing."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert output.told_lines("a\tb\x1b[31m\r\nc\rd\x07\n") == "a\tb\\x1b[31m\nc\\rd\\x07\n"


def test_a_failure_is_one_line_and_code_1(run: Run) -> None:
    """With the call's id, the error's name and its first line; JSON has all of it."""
    call = fail.delay("no luck\nat all\x1b[31m").id
    found = run("result", call)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == f"Error: call {call}: ValueError: no luck\n"
    said = json.loads(run("result", call, "--json").stdout)
    assert said == {"id": call, "state": "failed", "error": "ValueError", "message": "no luck\nat all\x1b[31m"}


def test_a_failed_command_shows_what_it_has_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Its output on stdout, as if it had succeeded, and why it failed beside it."""
    error = CommandFailed("Command 'x' failed with exit code 3.\nend", exit_code=3, output="begin\nend\n")
    Shower(as_json=False).show("id", lambda: error, lambda: None)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("begin\nend\n", "Error: call id: CommandFailed: Command 'x' failed with exit code 3.\n")
    Shower(as_json=True).show("id", lambda: error, lambda: None)
    assert json.loads(capsys.readouterr().out).items() >= {"exit_code": 3, "output": "begin\nend\n", "state": "failed"}.items()


def test_several_results_are_introduced(run: Run) -> None:
    """By their ids, on stderr; one that failed makes the exit code."""
    first, second = echo.delay("a").id, fail.delay("b").id
    found = run("result", first, second)
    assert (found.exit_code, found.stdout) == (1, "a\n")
    assert found.stderr == f"{first}: done\nError: call {second}: ValueError: b\n"


def test_what_has_not_ended_is_waited_for_no_longer_than_told(waiting: Run) -> None:
    """And is then not a failure of the call."""
    call = echo.delay(1).id
    found = waiting("result", call, "--timeout", "0s", "--json")
    assert (found.exit_code, json.loads(found.stdout)["state"]) == (1, "pending")


@pytest.mark.parametrize("state", ["cancelled", "forgotten"])
def test_a_call_without_a_value_says_so(run: Run, state: str) -> None:
    """As a state of its own."""
    handle = echo.delay(1)
    if state == "forgotten":
        handle.forget()
        call = handle.id
    else:
        call = app.handle("aaaaaaaaaaaaaaaa-000000000000").id
        run("cancel", call)
    found = run("result", call, "--json")
    assert (found.exit_code, json.loads(found.stdout)["state"]) == (1, state)


def test_an_id_that_is_none_is_wrong_usage(run: Run) -> None:
    """With what an id looks like."""
    found = run("result", "nope!")
    assert found.exit_code == 2
    assert "is not the id of a call" in found.stderr


@pytest.mark.parametrize("words", [["result", "aaaaaaaaaaaaaaaa-000000000000"], ["cancel", "nightly"], ["batch", "nightly"]])
def test_a_place_that_is_not_there_is_not_made(tmp_path: Any, words: list[str]) -> None:
    """A mistyped name leaves no trace."""
    found = CliRunner().invoke(jobq, [f"local://{tmp_path}/none/proj", *words])
    assert found.exit_code == 1
    assert found.stderr.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


# cancel


def test_cancel_says_which_of_the_three_it_was(waiting: Run) -> None:
    """Cancelled for a call that waits, had ended for one that has, asked to stop for a batch."""
    call, batch = echo.delay(1).id, echo.map([1, 2], batch="nightly").id
    found = waiting("cancel", call, batch, "--json")
    assert found.exit_code == 0
    assert [json.loads(line) for line in found.stdout.splitlines()] == [
        {"id": call, "result": "cancelled", "state": "cancelled"},
        {"id": batch, "result": "asked to stop", "state": ""},
    ]


def test_what_had_ended_is_not_cancelled(run: Run) -> None:
    """Its outcome stands, and the exit code is 1."""
    call = echo.delay(1).id
    found = run("cancel", call)
    assert found.exit_code == 1
    assert f"{call}\thad ended\tsucceeded" in found.stdout


def test_a_call_of_a_batch_is_cancelled_with_it(waiting: Run) -> None:
    """Alone it cannot be, and the line says what can."""
    found = waiting("cancel", "nightly.3")
    assert found.exit_code == 2
    assert "cancel nightly" in found.stderr


# batch


def test_a_batch_says_how_far_it_is(run: Run) -> None:
    """Counts by state, a field a line or as one JSON object."""
    odd.map(range(5), batch="numbers")
    found = json.loads(run("batch", "numbers", "--json").stdout)
    counts = {name: found[name] for name in ("calls", "complete", "succeeded", "failed", "cancelled", "running", "waiting")}
    assert counts == {"calls": 5, "complete": True, "succeeded": 2, "failed": 3, "cancelled": 0, "running": 0, "waiting": 0}
    assert "failed        3\n" in run("batch", "numbers").stdout


def test_failures_of_a_batch_are_listed(run: Run) -> None:
    """With ids that `result` takes, and errors that steer no terminal."""
    odd.map(range(3), batch="numbers")
    lines = run("batch", "numbers", "--failures").stdout.splitlines()
    assert lines == [
        "id\tattempts\terror",
        "numbers.0\t1\tValueError: 0 is even\\x1b[31m",
        "numbers.2\t1\tValueError: 2 is even\\x1b[31m",
    ]
    assert run("result", "numbers.1").stdout == "1\n"


def test_waiting_for_a_batch_tells_by_its_code_whether_all_is_well(run: Run) -> None:
    """With --results, of each call what came of it."""
    echo.map(["a", "b"], batch="good")
    odd.map(range(2), batch="bad")
    assert run("batch", "good", "--wait").exit_code == 0
    assert run("batch", "good", "--results").stdout == "a\nb\n"
    bad = run("batch", "bad", "--results", "--json")
    assert bad.exit_code == 1
    assert [json.loads(line)["state"] for line in bad.stdout.splitlines()] == ["failed", "succeeded"]


def test_a_batch_is_asked_to_stop_or_to_run_its_failures_again(waiting: Run, run: Run) -> None:
    """Each is said; both at once is refused."""
    odd.map(range(4), batch="numbers")
    assert (
        "2 calls of batch numbers to run again"
        in CliRunner().invoke(jobq, [f"{__name__}:app", "batch", "numbers", "--retry"]).stderr
    )
    assert "asked to stop" in run("batch", "numbers", "--cancel").stderr
    assert run("batch", "numbers", "--cancel", "--retry").exit_code == 2


def test_a_batch_that_is_not_there_is_named(waiting: Run) -> None:
    """With code 1."""
    echo.delay(1)
    found = waiting("batch", "nightly")
    assert found.exit_code == 1
    assert "There is no batch 'nightly'" in found.stderr


def test_time_for_a_batch_runs_out(waiting: Run) -> None:
    """That is no failure of a call, and one line."""
    echo.map([1], batch="slow")
    found = waiting("batch", "slow", "--wait", "--timeout", "0s")
    assert found.exit_code == 1
    assert found.stderr.startswith("Error: ")


def test_an_error_that_is_no_calls_passes_through() -> None:
    """The storage's fault is not shown as what came of a call."""

    def broken() -> BaseException | None:
        raise JobQError("unreachable")

    shower = Shower(as_json=True)
    with pytest.raises(JobQError, match="unreachable"):
        shower.show("id", broken, lambda: None)
    assert shower.failed == 0
