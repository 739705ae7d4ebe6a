"""Which call a log record is about: `call_id`, `batch`, `attempt`, `task` and `worker`, on every record of whatever logger.

In a child it is the call that runs where the record is made, as the context variable in `running.py` has it, so that threads and
event loops are told apart; in a supervisor it is what `about` names. Users' own factories, filters, handlers and `extra=` go on as
they did. What is about no call has empty fields, and 0 for the attempt.

Next: `log_formats.py`, which writes them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any

from . import layout
from .message import Call
from .running import Now, RunningCall, running_now


@dataclass(frozen=True, slots=True)
class Subject:
    """What a record is about."""

    call_id: str = ""
    batch: str = ""
    attempt: int = 0
    task: str = ""
    worker: str = ""


FIELDS = tuple(field.name for field in fields(Subject))
NOTHING = Subject()

_ABOUT: ContextVar[Call | Subject | None] = ContextVar("jobq_log_subject", default=None)


class CallRecord(logging.LogRecord):
    """A record that knows its subject.

    The fields are there for whoever asks by name, and in `__dict__`, where `%(call_id)s` is looked up, once the text was asked for,
    as every formatter does first. Not earlier: `Logger.makeRecord` refuses an `extra={"batch": 3}` whose name is taken.
    """

    _told: Call | Subject | Now | None = None
    _worker = ""
    _subject: Subject | None = None

    def set_subject(self, told: Call | Subject | Now | None, worker: str) -> None:
        """Note what it is about; worked out only if somebody asks."""
        self._told, self._worker = told, worker

    @property
    def subject(self) -> Subject:
        """What it is about, by this worker unless it says another."""
        if self._subject is None:
            self._subject = _subject(self._told, self._worker)
        return self._subject

    def __getattr__(self, name: str) -> Any:
        if name in FIELDS:
            return getattr(self.subject, name)
        raise AttributeError(f"A log record has no attribute {name!r}.")

    def getMessage(self) -> str:  # noqa: N802  # the name is logging's
        """The text; from now on the fields are attributes like any other, and what users named so stays theirs."""
        for name in FIELDS:
            self.__dict__.setdefault(name, getattr(self.subject, name))
        return super().getMessage()

    def __reduce__(self) -> tuple[object, ...]:
        # To a queue of another process goes the subject alone: what runs cannot be pickled.
        return (_rebuilt, ({**self.__dict__, "_subject": self.subject, "_told": None},))


def _rebuilt(attributes: dict[str, object]) -> CallRecord:
    record = CallRecord.__new__(CallRecord)
    record.__dict__.update(attributes)
    return record


def subject_of(record: logging.LogRecord) -> Subject:
    """What any record is about: one that another factory made, what this code runs for now."""
    return record.subject if isinstance(record, CallRecord) else _subject(_ABOUT.get() or running_now(), "")


@contextmanager
def call_records(worker: str) -> Iterator[None]:
    """As `make_call_records`, for the length of the block."""
    before = logging.getLogRecordFactory()
    make_call_records(worker)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


def make_call_records(worker: str) -> None:
    """Have all records that this process makes from now on know their call, and this worker."""
    before = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        if type(record) is logging.LogRecord:  # else it is somebody's own, whose class is theirs to choose
            record.__class__ = CallRecord
            record.set_subject(_ABOUT.get() or running_now(), worker)  # type: ignore[attr-defined]  # its class has just changed
        return record

    logging.setLogRecordFactory(make)


@contextmanager
def about(what: Call | Subject) -> Iterator[None]:
    """What is logged within the block, and by tasks that begin there, is about this."""
    token = _ABOUT.set(what)
    try:
        yield
    finally:
        _ABOUT.reset(token)


def now_about(what: Call | Subject) -> None:
    """What this asyncio task logs from now on is about this."""
    _ABOUT.set(what)


def _subject(told: Call | Subject | Now | None, worker: str) -> Subject:
    if told is None:
        return Subject(worker=worker)
    if isinstance(told, Subject):
        return Subject(told.call_id, told.batch, told.attempt, told.task, told.worker or worker)
    call = told if isinstance(told, Call) else told.call
    by = call.worker if isinstance(call, RunningCall) else worker
    return Subject(call.id, layout.batch_of(call.id) or "", call.attempt, call.task, by)
