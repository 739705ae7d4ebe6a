"""What dead letters say of themselves in metadata: short, in ASCII, whatever a task has raised, and kept while they are retried."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as some
from storage_spy import Crash, crash_after

from ai4s.jobq import App, layout
from ai4s.jobq.letter_notes import MOST_CHARS, letter_notes
from ai4s.jobq.message import Call, Cause, DeadLetter, Failure, Outcome, State

CALL = "abcdefghijklmnop-000000000000"


def letter(error: str, message: str, task: str = "proj.step") -> DeadLetter:
    """The letter of a call that raised this."""
    failure = Failure(Cause.RAISED, error, message)
    outcome = Outcome(CALL, 1, State.FAILED, "token", task=task, queue="default", failure=failure, ended=1000.5)
    return DeadLetter("raised", outcome, Call(CALL, task, "default", b"", 900.0))


@given(some.text(), some.text(), some.text())
def test_notes_are_short_and_plain_whatever_was_raised(error: str, message: str, task: str) -> None:
    """Azure takes printable ASCII, 8 KiB in all."""
    notes = letter_notes(letter(error, message, task))
    for name, text in notes.items():
        assert name.isalpha()
        assert text.isascii()
        assert text.isprintable()
        assert 0 < len(text) <= MOST_CHARS


def test_notes_say_what_failed_and_when() -> None:
    """As one would look for it."""
    notes = letter_notes(letter("proj.NoModel", "keine Lösung für \x1b[31m"))
    assert {name: unquote(text) for name, text in notes.items()} == {
        "task": "proj.step",
        "cause": "raised",
        "error": "proj.NoModel",
        "message": "keine Lösung für \x1b[31m",
        "at": "1000.500",
    }


def test_a_message_that_could_not_be_read_says_so() -> None:
    """It has no call."""
    notes = letter_notes(DeadLetter("Malformed: not ours", raw="???"))
    assert notes == {"cause": "unreadable", "error": "Malformed", "message": "not%20ours"}


async def test_a_letter_that_is_being_retried_keeps_its_notes(jobq_app: App) -> None:
    """Also where whoever retries it has died after the first step."""
    name = layout.dead_letter("default", CALL, 1)

    async def bury(ledger: Any) -> None:
        dead = letter("ValueError", "no")
        assert dead.outcome is not None
        await ledger.commit(dead.outcome)
        await ledger.bury(dead, "default", CALL, 1)

    async def metadata(ledger: Any) -> dict[str, str]:
        return dict((await (await ledger.store()).head(name)).metadata)

    jobq_app.client.run(bury)
    before = jobq_app.client.run(metadata)
    with crash_after(jobq_app, "put", name), contextlib.suppress(Crash):
        await jobq_app.dead_letters.aretry(CALL)
    during = jobq_app.client.run(metadata)
    assert during.pop("fate") == "retrying"
    assert during.pop("claim")
    assert during == before
