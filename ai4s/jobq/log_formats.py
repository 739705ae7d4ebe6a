"""How log records are written: as text for people, or as JSON for what collects logs, one object a line.

A line is bounded, has no secrets in it and no control characters, whatever users and tasks wrote; and writing one raises nothing.

Next: `worker/child_records.py` and `cli/output.py`, which write.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

from .call_records import FIELDS, Subject, subject_of
from .errors import ConfigurationError
from .printable import LOG_FORMAT, PlainFormatter, describe, redacted, storable

LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[LogFormat, ...] = ("text", "json")

MAX_MESSAGE_CHARS, MAX_EXCEPTION_CHARS = 8_000, 16_000
MAX_EXTRAS, MAX_EXTRA_CHARS = 32, 1_000
"""Of what users add by `extra=`."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; all else in it is an extra."""


def checked_format(name: str) -> LogFormat:
    """`name` if there is such a format; raises ConfigurationError."""
    for each in LOG_FORMATS:
        if name == each:
            return each
    raise ConfigurationError(f"A log format is one of {', '.join(LOG_FORMATS)}; got {name!r}.")


def formatter(log_format: str, *, of_tasks: bool = False) -> logging.Formatter:
    """What writes records in this format; `of_tasks`: text names the call, as `current().logger` does."""
    if log_format == "json":
        return JsonFormatter()
    return TaskFormatter(LOG_FORMAT) if of_tasks else PlainFormatter(LOG_FORMAT)


class TaskFormatter(PlainFormatter):
    """Text with the call before it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        if (call := subject_of(record)).call_id and not record.message.startswith(_prefix(call)):
            record.message = f"{_prefix(call)}{record.message}"  # of a copy: see PlainFormatter
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII.

    `time` (UTC), `level`, `logger`, `message`; what is known of `call_id`, `batch`, `attempt`, `task` and `worker`; `extra`, what
    users added; `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        subject = subject_of(record)
        said: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(_text(record).removeprefix(_prefix(subject)), MAX_MESSAGE_CHARS),
        }
        said |= {name: value for name in FIELDS if (value := getattr(subject, name))}
        if extra := _extras(record, subject):
            said["extra"] = extra
        if exception := self._exception(record):
            said["exception"] = exception
        return json.dumps(said)

    def _exception(self, record: logging.LogRecord) -> str:
        texts = []
        if record.exc_info and record.exc_info[0] is not None:
            texts.append(self.formatException(record.exc_info))
        elif record.exc_text:
            texts.append(record.exc_text)
        if record.stack_info:
            texts.append(record.stack_info)
        # The end of it says most: there stand what was raised, and where.
        return _cut("\n".join(texts), MAX_EXCEPTION_CHARS, from_end=True)


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  # of arguments that do not fit, and of users' __str__
        return f"{describe(record.msg)} {describe(record.args)}"


def _prefix(call: Subject) -> str:
    """What `current().logger` puts before its texts."""
    return f"[{call.call_id} attempt {call.attempt}] " if call.call_id else ""


def _extras(record: logging.LogRecord, subject: Subject) -> dict[str, object]:
    """What users added by `extra=`, also under a name that is a field's, if that says something else."""
    named = [(name, value) for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")]
    found = [(name, value) for name, value in named if name not in FIELDS or value is not getattr(subject, name)]
    return {_cut(name, MAX_EXTRA_CHARS): _plain(value) for name, value in found[:MAX_EXTRAS]}


def _plain(value: object) -> object:
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float:
        return value if value - value == 0 else str(value)  # JSON has neither infinities nor NaN
    return _cut(describe(value), MAX_EXTRA_CHARS)


def _cut(text: str, most: int, *, from_end: bool = False) -> str:
    """Before it is looked through for secrets, which takes time for a long one."""
    if len(text) > most:
        text = f"…{text[-most + 1 :]}" if from_end else f"{text[: most - 1]}…"
    return redacted(storable(text))
