"""What a task can ask about the call that it is: `jobq.current()`.

A context variable, so that tasks on threads and event loops each see their own.

Next: `worker/execution.py`, which sets it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from . import layout
from .blobs.blobs import Blobs, blobs_of
from .call_progress import CallProgress, checked_progress
from .checkpointing import Checkpointing
from .client import Client
from .errors import JobQError, WouldDeadlock

TASK_LOGGER = "ai4s.jobq.task"
"""Above the loggers of all tasks."""


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
    def batch(self) -> str | None:
        """The batch that it belongs to; None if it was sent alone."""
        return layout.batch_of(self.id)

    @property
    def checkpoint(self) -> Checkpointing:
        """What this call keeps for its next attempt; raises JobQError outside its task."""
        found = _RUNNING.get()
        if found is None or found.call.id != self.id or found.support is None:
            raise JobQError("Checkpoints are there only inside the running task.")
        return found.support.checkpoint

    def blobs(self, container: str, *, create: bool = False) -> Blobs:
        """The blobs of a container, as `App.blobs` gives them; raises JobQError outside the task."""
        found = _RUNNING.get()
        if found is None or found.call.id != self.id or found.support is None or found.support.client is None:
            raise JobQError("current().blobs(…) is there only inside the running task; elsewhere there is app.blobs(…).")
        return blobs_of(found.support.client, container, create=create)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far the call is, for `handle.progress()`, `jobq TARGET status` and the dashboard.

        Args:
            done: how much is done, in whatever the task counts: items, steps, bytes. At least 0.
            total: how much there is to do; None where that is not known.
            message: what it does now, in up to 200 characters; the rest is cut off.

        Returns at once, and may be said as often as one likes: the newest word leaves the process up to 4 times a second, and the
        worker's status carries it, every 15 s. It costs no request, and whether anybody hears it is not known. In inline mode, in a
        fork, and once the call has ended, nothing comes of it. Raises TypeError and ValueError for what is no number or text.
        """
        said, found = checked_progress(done, total, message), _RUNNING.get()
        if found is not None and found.call.id == self.id and found.support is not None and found.support.say is not None:
            found.support.say(said)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the call's id, run, attempt and worker, as attributes and before the text."""
        fields = {"call_id": self.id, "run": self.run, "attempt": self.attempt, "task": self.task, "worker": self.worker}
        return _CallLogger(logging.getLogger(f"{TASK_LOGGER}.{self.task}"), fields)


class _CallLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields = dict(self.extra or {})
        kwargs["extra"] = {**fields, **kwargs.get("extra", {})}
        return f"[{fields['call_id']} attempt {fields['attempt']}] {msg}", kwargs


@dataclass(frozen=True, slots=True)
class Support:
    """What a worker holds ready for a running call: its checkpoints, an event that is set while the worker is about to end, the
    app's client in this process, and whom to tell how far it is."""

    checkpoint: Checkpointing
    preemption: threading.Event
    client: Client | None = None
    say: Callable[[CallProgress], None] | None = None


class Voice(Protocol):
    """Takes what a call prints and logs, for its log. From any thread; it never fails, and never waits for long."""

    def write(self, stream: str, data: bytes) -> None:
        """Take a part of a line or many of them, of a stream that `log_lines` names."""


class Now(Protocol):
    """What runs: a call, and what is held ready for it. Asked only when the task asks, since most never do."""

    @property
    def call(self) -> RunningCall: ...

    @property
    def support(self) -> Support | None: ...

    @property
    def voice(self) -> Voice | None: ...


@dataclass(frozen=True, slots=True)
class _Running:
    call: RunningCall
    support: Support | None
    voice: Voice | None = None


_RUNNING: ContextVar[Now | None] = ContextVar("jobq_running_call", default=None)


def current() -> RunningCall:
    """The call that this code runs for; raises JobQError outside a task."""
    call = current_or_none()
    if call is None:
        raise JobQError("jobq.current() works only inside a running task.")
    return call


def current_or_none() -> RunningCall | None:
    """The call that this code runs for, or None outside a task."""
    found = _RUNNING.get()
    return found.call if found else None


def running_now() -> Now | None:
    """What runs here, for who may ask about it later."""
    return _RUNNING.get()


def voice_here() -> Voice | None:
    """Who takes what is printed and logged here; None where nothing runs, or nobody wants to hear it."""
    found = _RUNNING.get()
    return found.voice if found else None


def say(stream: str, text: str) -> None:
    """Put a line into the running call's log, beside what is printed and logged."""
    if (voice := voice_here()) is not None:
        voice.write(stream, f"{text}\n".encode("utf-8", "replace"))


def preempted() -> bool:
    """Whether the worker that runs this call is about to end: its machine goes, its time is up, or it was told to.

    A task that hears so has some seconds, most of the worker's grace period, to save a checkpoint and `raise Retry()`: then the
    call goes back at once, uncharged. What does neither is stopped, and goes back uncharged as well. May turn false again,
    where a notice is withdrawn. Outside a task, and in one that was called directly, it is False:

    >>> preempted()
    False
    """
    found = _RUNNING.get()
    return found is not None and found.support is not None and found.support.preemption.is_set()


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
def running(call: RunningCall, support: Support | None = None, voice: Voice | None = None) -> Iterator[None]:
    """Make `call` the current one."""
    token = _RUNNING.set(_Running(call, support, voice))
    try:
        yield
    finally:
        _RUNNING.reset(token)


@contextmanager
def running_kept() -> Iterator[None]:
    """Whatever is said to run within the block, afterwards it is what ran before."""
    token = _RUNNING.set(_RUNNING.get())
    try:
        yield
    finally:
        _RUNNING.reset(token)


def set_running(now: Now | None) -> None:
    """Say what runs in this context from now on."""
    _RUNNING.set(now)


def refuse_to_wait(call_id: str) -> None:
    """Raise WouldDeadlock inside a task, and while a worker imports the module."""
    call, imported = current_or_none(), _IMPORTING.get()
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
