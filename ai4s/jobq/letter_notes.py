"""What a dead letter says of itself in its blob's metadata: one listing tells what has failed and why, and no letter need be read.

It is for onlookers: nothing depends on it, letters of earlier versions have none, and it is bounded whatever a task has raised.

Next: `ledger.py`, which writes it; `dashboard/letter_groups.py`, which reads it.
"""

from __future__ import annotations

from .entry_notes import encoded
from .message import DeadLetter

MOST_CHARS = 200
"""Of each, as it is written."""

UNREADABLE = "unreadable"


def letter_notes(letter: DeadLetter) -> dict[str, str]:
    """The metadata of a letter: `task`, `cause`, `error`, `message`, and when the call ended (`at`, by the server's clock)."""
    outcome = letter.outcome
    failure = outcome.failure if outcome is not None else None
    if outcome is None or letter.call is None:
        error, _, message = letter.reason.partition(": ")
        said = {"cause": UNREADABLE, "error": error, "message": message}
    elif failure is None:
        said = {"task": outcome.task, "cause": letter.reason}
    else:
        said = {"task": outcome.task, "cause": str(failure.cause), "error": failure.type, "message": failure.message}
    made = {name: encoded(text, MOST_CHARS) for name, text in said.items() if text}
    return made if outcome is None or outcome.ended is None else {**made, "at": f"{outcome.ended:.3f}"}
