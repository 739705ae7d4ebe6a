"""The running calls as a worker's status tells of them: the longest in the blob's metadata, as many as fit, and all in its body.

Whoever reads it takes nothing for granted: what makes no sense is left out, and what is shown is fit to be.

Next: `fleet.py`, which reads; `worker/status.py`, which writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from ..call_progress import MAX_MESSAGE_CHARS, CallProgress
from ..printable import printable

MOST_CHARS = 3500
"""Of the calls in the metadata: all of it must be less than 8 KiB."""

MAX_SHOWN_CHARS = 80
"""Of a message, and of a task's name, in the metadata: one of them must not keep the others out."""

MAX_NAME_CHARS = 300
MOST_CALLS = 100_000
"""Nobody runs as many: what claims more is not read on."""


@dataclass(frozen=True, slots=True)
class CurrentCall:
    """A call that ran when its worker said so: since when, in epoch seconds by the server's clock, and how far it said it was."""

    id: str
    task: str
    started: float
    progress: CallProgress | None = None


def to_text(calls: Sequence[CurrentCall]) -> tuple[str, int]:
    """The calls as text in ASCII, and how many of them fit, from the first on."""
    parts: list[str] = []
    length = 0
    for call in calls:
        part = _to_part(call)
        length += len(part) + 1
        if length > MOST_CHARS:
            break
        parts.append(part)
    return " ".join(parts), len(parts)


def _to_part(call: CurrentCall) -> str:
    said = call.progress
    fields = [call.id, call.task[:MAX_SHOWN_CHARS], f"{call.started:.0f}"]
    if said is not None:
        fields += [_number(said.done), "" if said.total is None else _number(said.total), said.message[:MAX_SHOWN_CHARS]]
    # `quote` leaves the tilde alone, and lone surrogates are no UTF-8.
    return "~".join(quote(field, safe="", errors="replace").replace("~", "%7E") for field in fields)


def _number(number: float) -> str:
    return f"{number:.12g}"


def from_text(text: str) -> tuple[CurrentCall, ...]:
    """The calls in a text; what is no call is left out."""
    parts = text[: 2 * MOST_CHARS].split(" ")
    return tuple(call for call in map(_from_part, parts) if call is not None)


def _from_part(part: str) -> CurrentCall | None:
    name, task, started, done, total, message, *_ = [*map(unquote, part.split("~")), *[""] * 6]
    return _call(name, task, started, (done, total, message) if done else None)


def to_body(calls: Iterable[CurrentCall]) -> bytes:
    """All calls, as JSON."""
    return json.dumps({"calls": [_to_map(call) for call in calls]}, ensure_ascii=False).encode("utf-8", "replace")


def _to_map(call: CurrentCall) -> dict[str, Any]:
    said = call.progress
    shown = {"id": call.id, "task": call.task, "started": round(call.started, 3)}
    return shown if said is None else {**shown, "done": said.done, "total": said.total, "message": said.message}


def from_body(body: bytes) -> tuple[CurrentCall, ...]:
    """The calls in a body; what is no call is left out."""
    try:
        listed = json.loads(body)["calls"][:MOST_CALLS]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()
    return tuple(call for each in listed if isinstance(each, dict) and (call := _from_map(each)) is not None)


def _from_map(said: dict[str, Any]) -> CurrentCall | None:
    progress = (said["done"], said.get("total"), said.get("message", "")) if "done" in said else None
    return _call(said.get("id"), said.get("task"), said.get("started"), progress)


def _call(name: Any, task: Any, started: Any, said: tuple[Any, Any, Any] | None) -> CurrentCall | None:
    """A call, if that is one."""
    since = _finite(started)
    if not (isinstance(name, str) and name and isinstance(task, str) and since is not None):
        return None
    call = CurrentCall(printable(name[:MAX_NAME_CHARS]), printable(task[:MAX_NAME_CHARS]), since)
    if said is None or (done := _finite(said[0])) is None or not isinstance(said[2], str):
        return call
    return replace(call, progress=CallProgress(done, _finite(said[1]), printable(said[2][:MAX_MESSAGE_CHARS])))


def _finite(said: Any) -> float | None:
    """A number in a text, or as one; None if it is none, or cannot be counted with."""
    if not isinstance(said, str | int | float) or isinstance(said, bool):
        return None
    try:
        number = float(said)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
