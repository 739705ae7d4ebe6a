"""A worker's telemetry, opened: a silent one unless something switches it on; then nothing of OpenTelemetry is loaded.

Next: `telling.py`, which is loaded when it is on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..errors import ConfigurationError
from .switches import Switches, available, gave_up, switches
from .working import SILENT, About, Port, Telemetry


@contextmanager
def open_telemetry(about: About, port: Port | None = None) -> Iterator[Telemetry]:
    """What a worker tells with; what has not been sent yet goes at the block's end.

    Raises ConfigurationError for a port that cannot be had.
    """
    on = available(switches(about.environ, port=port is not None), about.environ)
    if not on.any:
        yield SILENT
        return
    with ExitStack() as stack:
        yield _set_up(stack, about, on, port)


def _set_up(stack: ExitStack, about: About, on: Switches, port: Port | None) -> Telemetry:
    """What is switched on, until the stack ends; silence, and a word in the log, if it cannot be had."""
    try:
        from .telling import opened

        return stack.enter_context(opened(about, on, port))
    except ConfigurationError:
        raise
    except Exception as exc:  # noqa: BLE001  # by variables that OpenTelemetry judges, or versions that do not fit
        gave_up(exc)
        return SILENT
