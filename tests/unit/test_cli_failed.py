"""`failed list|show|retry|purge`: the commands in this process, on a local place, with calls that failed here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from storage_spy import depth

from ai4s.jobq import App, Handle
from ai4s.jobq.cli import jobq, looking
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import DeadLetter
from ai4s.jobq.testing import inline, temporary_place

declared = App("given-up")


@declared.task(name="proj.step", codec="msgpack")
def step(x: int, *, how: str = "") -> int:
    raise ValueError(f"no step \x1b[31m{x}")


@declared.task(name="proj.load")
def load(name: str) -> str:
    raise FileNotFoundError(f"there is no {name}")


@pytest.fixture
def app() -> Iterator[App]:
    """The app of this file on an empty store, where calls run as they are made."""
    with temporary_place(declared) as app, inline(app):
        app.client.run(lambda ledger: ledger.queue("default"))
        yield app


@pytest.fixture
def run(app: App, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `failed …` on the app by its place and name."""
    monkeypatch.delenv("JOBQ_URL", raising=False)

    def invoke(*words: str, **options: Any) -> Result:
        return CliRunner().invoke(jobq, [f"{app.client.place.label}/{app.name}", "failed", *words], **options)

    return invoke


def ids(result: Result) -> set[str]:
    """Of what was listed with --json."""
    assert result.exit_code == 0, result.output
    return {json.loads(line)["id"] for line in result.stdout.splitlines()}


@pytest.fixture
def gone(app: App) -> dict[str, Handle[Any]]:
    """Two calls that failed in different ways."""
    return {"step": step.delay(1, how="slowly"), "load": load.delay("model")}


def test_filters_choose(run: Callable[..., Result], gone: dict[str, Handle[Any]]) -> None:
    """By task, by what is found in type and message, by cause, age and queue; all of them must apply."""
    step_id, load_id = gone["step"].id, gone["load"].id
    for words, found in (
        ((), {step_id, load_id}),
        (("--task", "step"), {step_id}),
        (("--error", "^FileNotFoundError: there"), {load_id}),
        (("--error", "no (step|pace)"), {step_id}),
        (("--error", "Timeout"), set()),
        (("--cause", "died"), set()),
        (("--newer-than", "1h", "--queue", "default"), {step_id, load_id}),
        (("--older-than", "1h"), set()),
        (("--batch", load_id), {load_id}),
    ):
        assert ids(run("list", "--json", *words)) == found, words
    assert len(ids(run("list", "--json", "--limit", "1"))) == 1
    refused = run("list", "--error", "(")
    assert refused.exit_code == 2
    assert "regular expression" in refused.stderr


def test_nothing_raw_reaches_the_terminal(run: Callable[..., Result], gone: dict[str, Handle[Any]]) -> None:
    """What a task wrote into its error is spelled out, in a row and in a field."""
    listed = run("list")
    assert listed.stdout.splitlines()[0].split("\t")[:2] == ["id", "queue"]
    assert r"no step \x1b[31m1" in listed.stdout
    shown = run("show", gone["step"].id)
    assert r"no step \x1b[31m1" in shown.stdout
    assert "\x1b" not in listed.output


def test_show_tells_all_of_one(run: Callable[..., Result], gone: dict[str, Handle[Any]]) -> None:
    """Arguments without running code, times, and the traceback; or why there is nothing."""
    shown = run("show", gone["step"].id).stdout
    for part in ("1, how='slowly'", "proj.step", "ValueError", "attempts", "sent", "Traceback (most recent call last)"):
        assert part in shown
    assert "bytes of cloudpickle" in run("show", gone["load"].id).stdout
    assert json.loads(run("show", gone["step"].id, "--json").stdout)["cause"] == "raised"
    refused = run("show", "some-batch.17")
    assert refused.exit_code == 1
    assert "`failed show some-batch`" in refused.stderr


def test_a_batch_is_one_letter_that_says_how_calls_failed(app: App, run: Callable[..., Result]) -> None:
    """Filters look at its failures, and so does the retry of all of them."""
    batch = step.map([1, 2, 3])
    assert ids(run("list", "--json", "--error", "no step .*2")) == {batch.id}
    assert "3 raised ValueError" in run("show", batch.id).stdout
    assert f"{batch.id}\tall failures of the batch" in run("retry", "--batch", batch.id).stdout
    assert depth(app) == 1


def test_retry_runs_the_calls_that_are_meant(app: App, run: Callable[..., Result], gone: dict[str, Handle[Any]]) -> None:
    """By id or by filter; their messages are on the queue again, and the letter is gone."""
    again = run("retry", "--error", "no step", "--json")
    assert json.loads(again.stdout) == {"id": gone["step"].id, "retry": "run 2"}
    assert depth(app) == 1
    assert ids(run("list", "--json")) == {gone["load"].id}
    unknown = run("retry", "abcdefgh234567ab-000000000001")
    assert unknown.exit_code == 1
    assert "left alone" in unknown.stdout


def test_many_are_retried_or_purged_once_that_is_confirmed(
    run: Callable[..., Result], gone: dict[str, Handle[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a terminal; what was named by its id is meant, and nothing at all is refused."""
    monkeypatch.setattr(looking, "at_terminal", lambda: True)
    for verb in ("retry", "purge"):
        refused = run(verb)
        assert refused.exit_code == 2
        assert "--all" in refused.stderr
        asked = run(verb, "--all", input="n\n")
        assert asked.exit_code == 1
        assert "2 dead letters of given-up" in asked.output
        assert "Nothing was done" in asked.stderr
    assert len(ids(run("list", "--json"))) == 2
    assert gone["step"].id in run("purge", gone["step"].id).stdout
    assert gone["load"].id in run("purge", "--all", "--yes").stdout
    assert ids(run("list", "--json")) == set()


def test_ctrl_c_at_a_question_is_no_mere_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it ends the command with the exit code of Ctrl-C."""

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(looking, "at_terminal", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
    with pytest.raises(KeyboardInterrupt):
        looking.ask("Remove all?", yes=False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("retry", "--v3", "--task", "step"), "only --queue goes with it"),
        (("retry", "--v3", "an-id"), "only --queue goes with it"),
        (("purge", "--all", "an-id"), "Either ids or --all"),
        (("list", "--error", "("), "--error"),
    ],
)
def test_what_contradicts_itself_is_refused(run: Callable[..., Result], words: tuple[str, ...], told: str) -> None:
    """Before anything is done: which was meant cannot be known."""
    refused = run(*words)
    assert refused.exit_code == 2
    assert told in refused.stderr


def test_no_letter_at_all_is_told_from_none_that_filters_let_through(
    app: App, run: Callable[..., Result], gone: dict[str, Handle[Any]]
) -> None:
    """A mistyped filter shall not look like good news."""
    assert "these filters" in run("list", "--task", "setp").stderr
    run("purge", "--all")
    assert run("list").stderr == "There is no dead letter.\n"


def test_what_a_command_wrote_is_shown_line_by_line(app: App, run: Callable[..., Result]) -> None:
    """It is the only trace of why a command failed."""
    call = app.shell("echo one; echo two; exit 3").id
    shown = run("show", call).stdout
    assert "failed with exit code 3:\n" in shown
    assert shown.endswith("\n\none\ntwo\n")


def test_a_message_that_could_not_be_read_is_shown_with_its_text(app: App, run: Callable[..., Result]) -> None:
    """For a person, it may be the only trace of a call."""
    step.delay(1)
    letter = DeadLetter("Malformed: The message is not base64.", raw="gar\x07bage")

    async def bury(ledger: Ledger) -> None:
        await ledger.bury(letter, "default", "a-message", 1)

    app.client.run(bury)
    assert "gar\x07bage" in run("show", "a-message").stdout  # piped, as it is
    assert ids(run("list", "--json", "--cause", "unreadable")) == {"a-message"}


def test_what_3x_gave_up_is_mentioned_and_sent_back(app: App, run: Callable[..., Result]) -> None:
    """It lies in a queue of its own, with no error text."""
    step.delay(1)
    text = {"version": 1, "reply_requested": False, "kwargs": '{"cmd": "true"}', "num_retries": 0, "id": "0" * 32}

    async def give_up(ledger: Ledger) -> None:
        letters = ledger.transport.queue(f"{app.name}-failed", app=app.name)
        await letters.create()
        await letters.send(json.dumps(text))

    app.client.run(give_up)
    assert run("retry", "--v3", "--queue", "gup").exit_code == 1
    assert "3.x there are 1 more" in run("list").stderr
    assert "Sent 1 back to the queue default" in run("retry", "--v3").stdout
    assert depth(app) == 1
    assert "3.x" not in run("list").stderr
