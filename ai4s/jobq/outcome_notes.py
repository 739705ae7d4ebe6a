"""What an outcome says of itself in its blob's metadata, so that a listing tells how calls ended, without a read for each.

`gc` goes by `state` and `queue`; the rest is for onlookers, bounded whatever a task has raised. Earlier versions' blobs lack it.

Next: `ledger.py`, which writes it; `sweeping.py`, which goes by it.
"""

from __future__ import annotations

from .entry_notes import encoded
from .message import Outcome

MOST_CHARS = 200


def outcome_notes(outcome: Outcome) -> dict[str, str]:
    """The metadata of an outcome: `state`, `queue`, `task`, `error` (a failure's type), and `seconds` that its last attempt ran."""
    said = {"state": str(outcome.state), "queue": outcome.queue, "task": encoded(outcome.task, MOST_CHARS)}
    if outcome.failure is not None:
        said["error"] = encoded(outcome.failure.type or str(outcome.failure.cause), MOST_CHARS)
    if outcome.started is not None and outcome.ended is not None:
        said["seconds"] = f"{max(0.0, outcome.ended - outcome.started):.3f}"
    return {name: text for name, text in said.items() if text}
