"""What a child's code prints and logs, heard beside where it goes anyway, and told to the call that it is of.

Whose it is says the context variable in `running.py`, so that threads and coroutines of several calls are told apart. What a thread
prints that a task has started by itself is known to be of a call only where there is no other. What subprocesses and C code write
to the process's descriptors is not heard. Nothing that is heard is shown less, or later, than without us.

Next: `voices.py`, which takes it.
"""

from __future__ import annotations

import io
import logging
import sys
from typing import Any, TextIO, cast

from ..log_lines import ERR, LOG, OUT, KeptLine
from ..running import Voice, voice_here
from .voices import Voices

QUIET_LIBRARIES = ("azure", "urllib3", "asyncio", "httpx", "httpcore", "msal")
"""What they log at INFO is of each request: nobody who has not asked for it wants that in a call's log."""

PREFIX_END = "] "


def hear(voices: Voices, *, is_configured: bool) -> None:
    """Have all that is printed and logged in this process heard, from now on. To be done once the user's modules are loaded.

    Logged is from INFO on, unless `is_configured`: the user's modules have said how to log.
    """
    tees = {OUT: _heard(sys.stdout, OUT, voices), ERR: _heard(sys.stderr, ERR, voices)}
    move_handlers({id(sys.stdout): tees[OUT], id(sys.stderr): tees[ERR]})
    sys.stdout, sys.stderr = tees[OUT], tees[ERR]
    root = logging.getLogger()
    root.addHandler(_Handler(voices))
    if root.level == logging.WARNING and not is_configured:
        _quieten()
        root.setLevel(logging.INFO)


def _quieten() -> None:
    for name in QUIET_LIBRARIES:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


def move_handlers(streams: dict[int, TextIO]) -> None:
    """Have handlers of loggers that keep their records to themselves write to what is heard: no other handler gets those."""
    loggers = [logger for logger in logging.getLogger().manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    for handler in [handler for logger in loggers if not logger.propagate for handler in logger.handlers]:
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in streams:
            handler.setStream(streams[id(handler.stream)])


def _heard(real: TextIO, stream: str, voices: Voices) -> TextIO:
    """A stream like `real` that writes to it, and is heard; `real` itself where it is no usual one."""
    if not isinstance(real, io.TextIOWrapper):
        return real
    tee = cast("Any", _Tee(real, stream, voices))
    # Written through, so that what is printed is told apart by who prints it, and not by who ends the line.
    heard = _TeeWrapper(tee, real.encoding, real.errors, line_buffering=real.line_buffering, write_through=True)
    heard.__dict__["mode"] = getattr(real, "mode", "w")  # which Python puts there as well
    return heard


class _TeeWrapper(io.TextIOWrapper):
    """A stream that is heard. It is never closed by being forgotten: the real one is the process's own."""

    def __del__(self) -> None:
        return


class _Tee(io.BufferedIOBase):
    """Bytes to the real stream, and to whom they are of."""

    def __init__(self, text: io.TextIOWrapper, stream: str, voices: Voices) -> None:
        self._text, self._stream, self._voices = text, stream, voices
        self._real: Any = text.buffer  # which the text's stream would close if nobody had that any more

    def __del__(self) -> None:
        return

    def write(self, data: Any) -> int:
        """Write all of it, as a buffer does."""
        written: int = self._real.write(data)
        if (voice := voice_here() or self._voices.nobodys()) is not None:
            voice.write(self._stream, bytes(data))
        return written

    def flush(self) -> None:
        self._real.flush()

    def close(self) -> None:
        """As the real one: closing it is what the task wants."""
        self._real.close()

    @property
    def closed(self) -> bool:
        return bool(self._real.closed)

    @property
    def raw(self) -> Any:
        return self._real.raw

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    @property
    def name(self) -> Any:
        return self._text.name

    @property
    def mode(self) -> Any:
        return self._real.mode

    def fileno(self) -> int:
        return int(self._real.fileno())

    def isatty(self) -> bool:
        return bool(self._real.isatty())


class _Handler(logging.Handler):
    """Tells the call of a record what it says, unless a handler shows it where it is heard."""

    def __init__(self, voices: Voices) -> None:
        super().__init__()
        self._voices = voices
        self.setFormatter(_Text())

    def emit(self, record: logging.LogRecord) -> None:
        voice: Voice | None = voice_here() or self._voices.nobodys()
        if voice is None or _is_kept(record) or _is_shown(logging.getLogger(record.name)):
            return
        try:
            voice.write(LOG, f"{self.format(record)}\n".encode("utf-8", "replace"))
        except Exception:  # noqa: BLE001  # of an argument's __str__, as for any handler
            self.handleError(record)


def _is_kept(record: logging.LogRecord) -> bool:
    return isinstance(record.args, tuple) and any(isinstance(value, KeptLine) for value in record.args)


def _is_shown(logger: logging.Logger | None) -> bool:
    """Whether a handler of this logger writes to a stream that is heard, in a form that somebody chose."""
    while logger is not None:
        if any(isinstance(getattr(handler, "stream", None), _TeeWrapper) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


class _Text(logging.Formatter):
    """The text of a record, with its level and logger unless the task itself just says something."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        call = getattr(record, "call_id", None)
        text = record.message
        if call and text.startswith(f"[{call} attempt "):
            text = text.partition(PREFIX_END)[2]  # it is in that call's own log
            return text if record.levelno == logging.INFO else f"{record.levelname} {text}"
        return f"{record.levelname} {record.name}: {text}"
