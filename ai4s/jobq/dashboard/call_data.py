"""One call as its page shows it: its state, runs and their causes, arguments, traceback, value, progress, checkpoint, last lines.

Next: `call_look.py`, which reads it.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

from .. import layout
from ..log_lines import plain
from ..message import Outcome, Spill, State
from ..printable import escaped, printable, redacted, storable
from .arguments import shown_value
from .call_logs import CallLog
from .call_look import CallLook, Look
from .looks import Looks
from .refresh import Refresh
from .shared import Shared
from .worker_data import call_now, running_calls

MOST_VALUE_BYTES = 64 * 1024
"""Of a value in a safe codec that is shown."""


MOST_LOGS = 16
"""That are kept, in part; whose turn was longest ago goes."""


class CallLooks:
    """The calls that somebody looks at."""

    def __init__(self, refresh: Refresh, seconds: float) -> None:
        self._refresh, self._seconds = refresh, seconds
        self._looks = Looks(self._begin)
        self._logs: OrderedDict[str, CallLog] = OrderedDict()

    async def data(self, call_id: str) -> dict[str, Any]:
        """See the module. Raises DeclarationError for what is no id of a call."""
        self._refresh.app.handle(call_id)
        looked = await self._looks.at(call_id)
        said = {"problem": looked.problem, "problem_since": looked.problem_since} if looked.problem else {}
        if looked.value is None or looked.read_at is None:
            return {"id": call_id, "state": None, **said}
        if call_id in self._logs and not looked.value.is_forgotten:
            self._logs[call_id].is_of(looked.value.outcome.run if looked.value.outcome else None)
        return {**call_data(call_id, looked.value, self._refresh), "as_of": self._refresh.server_time(looked.read_at), **said}

    async def logs(self, call_id: str, after: int) -> dict[str, Any]:
        """Lines of its log from a number on. Raises DeclarationError for what is no id of a call."""
        if call_id not in self._logs:
            self._logs[call_id] = CallLog(self._refresh.app, call_id, self._seconds)
        self._logs.move_to_end(call_id)
        log = self._logs[call_id]
        while len(self._logs) > MOST_LOGS:
            await self._logs.popitem(last=False)[1].shared.close()
        return await log.data(after)

    def expire(self) -> None:
        """Have all looked at anew."""
        self._looks.expire()
        for log in self._logs.values():
            log.expire()

    async def close(self) -> None:
        """End what is being read."""
        await self._looks.close()
        for log in self._logs.values():
            await log.shared.close()

    def _begin(self, call_id: str) -> Shared[Look]:
        app, look = self._refresh.app, CallLook(self._refresh.app, call_id)

        async def read() -> Look:
            return await app.client.arun(partial(look.look, queues=list(self._refresh.seen.queues)))

        return Shared(read, seconds=self._seconds)


def call_data(call_id: str, look: Look, refresh: Refresh) -> dict[str, Any]:
    """What is shown of a call that was looked at."""
    outcome, message = look.outcome, look.message
    running = next(((worker, call) for worker, call in running_calls(refresh) if call.id == call_id), None)
    now = call_now(running[1], refresh.now) if running and outcome is None else None
    failure = outcome.failure if outcome else None
    return {
        "id": call_id,
        "state": _state(look, is_running=now is not None),
        "task": printable(look.task) or (running[1].task if running else ""),
        "queue": look.queue,
        "batch": layout.batch_of(call_id),
        "run": outcome.run if outcome else message.run if message else 1,
        "sent": message.sent if message else None,
        "eta": message.eta if message else None,
        "worker": outcome.worker if outcome else running[0].id if running else "",
        "attempts": [*_ended(look), *_running(look, running[0].id if running else "", now)],
        "budget": {name: getattr(message, name) for name in ("errors", "deaths", "preemptions")} if message else None,
        "arguments": look.arguments,
        "failure": failure and {"type": printable(failure.type), "message": _lines(failure.message), "cause": str(failure.cause)},
        "traceback": _lines(failure.traceback) if failure else "",
        "value": _value(outcome) if outcome and outcome.state is State.SUCCEEDED else None,
        "progress": now and now["progress"],
        "checkpoint": look.checkpoint
        and {"number": look.checkpoint.number, "saved": look.checkpoint.saved, "bytes": look.checkpoint.size},
        "tail": _lines(plain(outcome.tail)) if outcome else "",
    }


def _state(look: Look, *, is_running: bool) -> str:
    if look.is_forgotten:
        return "forgotten"
    if look.outcome is not None:
        return str(look.outcome.state)
    return "running" if is_running else "waiting" if look.is_waiting else "pending"


def _ended(look: Look) -> list[dict[str, Any]]:
    """The last attempt of each run that has ended: of those before it only their number is kept."""
    runs = sorted([*look.earlier, *([look.outcome] if look.outcome else [])], key=lambda outcome: outcome.run)
    return [_attempt(outcome) for outcome in runs]


def _attempt(outcome: Outcome) -> dict[str, Any]:
    failure, timed = outcome.failure, outcome.ended is not None and outcome.started is not None
    return {
        "run": outcome.run,
        "number": outcome.attempts,
        "cause": str(failure.cause) if failure else str(outcome.state),
        "worker": outcome.worker,
        "seconds": max(0.0, outcome.ended - outcome.started) if timed else None,  # type: ignore[operator]  # as timed says
        "ended": outcome.ended,
        "error": printable(f"{failure.type}: {failure.message}".removeprefix(": ")) if failure else "",
    }


def _running(look: Look, worker: str, now: dict[str, Any] | None) -> list[dict[str, Any]]:
    if now is None:
        return []
    run = look.message.run if look.message else 1 + max((each.run for each in look.earlier), default=0)
    number = look.message.attempt if look.message else None
    return [
        {"run": run, "number": number, "cause": "running", "worker": worker, "seconds": now["seconds"], "ended": None, "error": ""}
    ]


def _value(outcome: Outcome) -> dict[str, Any]:
    value = outcome.value
    if isinstance(value, Spill):
        return {"bytes": value.size, "codec": outcome.codec, "shown": None}
    shown = shown_value(value, outcome.codec) if value and len(value) <= MOST_VALUE_BYTES else None
    return {"bytes": len(value or b""), "codec": outcome.codec, "shown": shown}


def _lines(text: str) -> str:
    """A text of several lines, each fit to be shown."""
    return "\n".join(map(escaped, redacted(storable(text)).split("\n")))
