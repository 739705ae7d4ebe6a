"""What a task can ask about the call that it is: `jobq.current()`.

A context variable, so that tasks on threads and event loops each see their own.

Next: `worker/execution.py`, which sets it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .errors import JobQError, WouldDeadlock


@dataclass(frozen=True, slots=True)
class RunningCall:
    """The running call. `deadline` is in epoch seconds by this machine's clock, None where there is no timeout."""

    id: str
    run: int
    attempt: int
    task: str
    queue: str
    worker: str
    root: str
    deadline: float | None = None

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the call's id, run, attempt and worker, as attributes and before the text."""
        fields = {"call_id": self.id, "run": self.run, "attempt": self.attempt, "task": self.task, "worker": self.worker}
        return _CallLogger(logging.getLogger(f"ai4s.jobq.task.{self.task}"), fields)


class _CallLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields = dict(self.extra or {})
        kwargs["extra"] = {**fields, **kwargs.get("extra", {})}
        return f"[{fields['call_id']} attempt {fields['attempt']}] {msg}", kwargs


_RUNNING: ContextVar[RunningCall | None] = ContextVar("jobq_running_call", default=None)


def current() -> RunningCall:
    """The call that this code runs for; raises JobQError outside a task."""
    call = _RUNNING.get()
    if call is None:
        raise JobQError("jobq.current() works only inside a running task.")
    return call


def current_or_none() -> RunningCall | None:
    """The call that this code runs for, or None outside a task."""
    return _RUNNING.get()


_IMPORTING: ContextVar[str | None] = ContextVar("jobq_importing", default=None)


@contextmanager
def importing(what: str) -> Iterator[None]:
    """A worker imports the user's modules: what would wait for a worker, or start one, must not run then."""
    token = _IMPORTING.set(what)
    try:
        yield
    finally:
        _IMPORTING.reset(token)


def being_imported() -> str | None:
    """What a worker is importing now, if it is."""
    return _IMPORTING.get()


@contextmanager
def running(call: RunningCall) -> Iterator[None]:
    """Make `call` the current one."""
    token = _RUNNING.set(call)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def refuse_to_wait(call_id: str) -> None:
    """Raise WouldDeadlock inside a task, and while a worker imports the module."""
    call, imported = _RUNNING.get(), _IMPORTING.get()
    if imported is not None:
        raise WouldDeadlock(
            f"{imported} waits for call {call_id} while a worker imports it, which is before any call can run. "
            'Put what the program does under `if __name__ == "__main__":`.'
        )
    if call is not None:
        raise WouldDeadlock(
            f"Call {call.id} must not wait for call {call_id}: it would hold its slot for a call that may need one. "
            "Return the handle, or let the caller wait."
        )
