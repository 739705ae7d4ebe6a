"""A producer's telemetry: the span around sending, whose context travels in the message, and what was sent.

It is there if the program has set up OpenTelemetry itself, or if a variable switches it on; else `begin` is a look at two flags.

Next: `producer.py`, which is loaded when it is on; on the other side, `working.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ..message import Call
from .context import is_loaded
from .switches import Switches, available, gave_up, switches

if TYPE_CHECKING:
    from .producer import Producer


class Sending(Protocol):
    """One submission on its way, as a block. `trace` is what its message is to carry."""

    @property
    def trace(self) -> str | None: ...

    def sent(self, *, messages: int, calls: int) -> None:
        """So much was sent; unless this is called, one message with one call was."""

    def __enter__(self) -> Sending: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...


class _Untold:
    """A submission of which nobody hears."""

    trace = None

    def sent(self, *, messages: int, calls: int) -> None:
        """Nothing is told."""

    def __enter__(self) -> _Untold:
        return self

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        return None


UNTOLD: Sending = _Untold()


class Producing:
    """The telemetry of one app's submissions in this process. Safe on any thread."""

    def __init__(self, app: str, environ: Mapping[str, str]) -> None:
        self._app, self._environ = app, environ
        self._wanted = switches(environ).any
        self._lock = threading.Lock()
        self._on: Switches | None = None
        self._producer: Producer | None = None
        self._gave_up = False

    def begin(self, call: Call, batch: str | None = None) -> Sending:
        """A submission of this call, or of a batch of calls like it, begins in the context of whoever calls this."""
        if self._gave_up or not (self._wanted or is_loaded()):
            return UNTOLD
        try:
            producer = self._made()
            return (producer and producer.begin(call, batch)) or UNTOLD
        except Exception as exc:  # noqa: BLE001  # by variables that OpenTelemetry judges, or a version that the program brought
            self._gave_up = True
            gave_up(exc)
            return UNTOLD

    def _made(self) -> Producer | None:
        """What tells; None if the extra is missing, and the program has nothing of it either."""
        with self._lock:
            self._on = self._on or available(switches(self._environ), self._environ)
            if self._producer is None and (self._on.any or is_loaded()):
                from .producer import Producer

                self._producer = Producer(self._app, self._environ, self._on)
            return self._producer

    def close(self) -> None:
        """Send what has not been sent yet, and stop."""
        if self._producer is not None:
            self._producer.close()
