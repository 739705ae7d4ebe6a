"""`jobq TARGET logs`: what is shown where, on a local place whose logs are written by the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from ai4s.jobq import App, layout, logs
from ai4s.jobq.cli import jobq, output
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.log_lines import to_line
from ai4s.jobq.message import Outcome, State

app = App("spoken")
ID = "abcdefgh234567ab-000000000007"
Run = Callable[..., Result]


@pytest.fixture
def run(jobq_place: Callable[[App], App]) -> Run:
    """Runs the verb on the app by its place."""
    jobq_place(app)
    return lambda *words: CliRunner().invoke(jobq, [f"{app.client.place.label}/{app.name}", "logs", *words])


def say(*lines: tuple[str, str], attempt: int = 1) -> None:
    """Write an attempt's log."""
    text = "".join(to_line(1_700_000_000 + number, stream, text) for number, (stream, text) in enumerate(lines))

    async def put(ledger: Ledger) -> None:
        await (await ledger.store()).append(layout.call_log(ID, (1, attempt, 5.0), "ab"), text.encode(), at=0)

    app.client.run(put)


def end(tail: str = "") -> None:
    """Write the call's outcome."""
    app.client.run(lambda ledger: ledger.commit(Outcome(ID, 1, State.SUCCEEDED, "cd", attempts=2, worker="w", tail=tail)))


@pytest.fixture
def spoken(run: Run) -> Run:
    """The verb, where two attempts have said something."""
    say(("j", "Attempt 1, by worker w"), ("o", "one"), ("e", "two\x1b[31m\tred"))
    say(("j", "Attempt 2, by worker w"), ("l", "three"), attempt=2)
    return run


def test_what_the_task_wrote_goes_to_stdout_and_our_notes_to_stderr(spoken: Run) -> None:
    """As it was written, where it is piped."""
    shown = spoken(ID)
    assert shown.exit_code == 0
    assert shown.stdout == "one\ntwo\x1b[31m\tred\nthree\n"
    assert shown.stderr == "-- Attempt 1, by worker w\n-- Attempt 2, by worker w\n"


def test_a_terminal_gets_no_escapes(spoken: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote the log must not write to the reader's clipboard."""
    monkeypatch.setattr(output.sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    assert output.told_lines("two\x1b[31m\tred") == "two\\x1b[31m\tred"


def test_only_the_last_lines_if_that_is_wanted(spoken: Run) -> None:
    """Notes count as lines."""
    assert spoken(ID, "--tail", "3").stdout == "two\x1b[31m\tred\nthree\n"
    assert spoken(ID, "--tail", "0").stdout == ""


def test_times_and_json_are_there_on_request(spoken: Run) -> None:
    """Times are the reader's local ones; JSON has the number as it is stored."""
    timed = spoken(ID, "-t").stdout.split("\n")[0]
    assert timed.endswith(".000 one")
    assert len(timed) == len("2023-11-14 22:13:21.000 one")
    rows = [json.loads(line) for line in spoken(ID, "--json").stdout.splitlines()]
    assert rows[1] == {"at": 1_700_000_001.0, "stream": "stdout", "text": "one", "attempt": 1}
    assert [row["stream"] for row in rows] == ["jobq", "stdout", "stderr", "jobq", "log"]


def test_a_time_that_cannot_be_is_no_error(run: Run) -> None:
    """Whoever can write to the place can write any number."""
    say(("o", "fine"))

    async def put(ledger: Ledger) -> None:
        store = await ledger.store()
        await store.append(layout.call_log(ID, (1, 2, 5.0), "ab"), b"-5 o early\n99999999999999 o late\nnothing\n", at=0)

    app.client.run(put)
    shown = run(ID, "-t")
    assert shown.exit_code == 0
    assert [line.rpartition(" ")[2] for line in shown.stdout.splitlines()] == ["fine", "early", "late"]


def test_a_call_that_has_said_nothing_is_told_so(run: Run) -> None:
    """Beside the answer, which is empty."""
    end()
    shown = run(ID)
    assert (shown.exit_code, shown.stdout) == (0, "")
    assert shown.stderr == f"Call {ID} has said nothing that is kept; `result` tells how it ended.\n"


def test_an_id_that_cannot_be_is_refused(run: Run) -> None:
    """With what one looks like."""
    shown = run("nonsense!")
    assert shown.exit_code == 2
    assert "is not the id of a call" in shown.stderr


def test_following_ends_with_the_call(spoken: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginning with the last lines, if that is wanted."""
    monkeypatch.setattr(logs, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(logs, "LONGEST_PAUSE_SECONDS", 0.05)
    ending = threading.Timer(0.3, end, (to_line(5, "o", "last"),))
    ending.start()
    shown = spoken(ID, "-f", "--tail", "1")
    ending.join()
    assert shown.exit_code == 0
    assert shown.stdout == "three\nlast\n"
