"""Who a worker is and what it may run.

Next: `attempt.py`, which asks before it runs anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..codec import codec_of
from ..errors import Unfit
from ..message import V3_TASK, Call, Pool
from ..payload import python_minor
from .devices import Hardware

OF_VERSION_3 = f" It came from ai4s-jobq 3.x: declare what its Processor did as @app.task(name={V3_TASK!r}, codec='msgpack')."


@dataclass(frozen=True, slots=True)
class Duties:
    """Who this worker is and what it may run."""

    worker: str
    tasks: Mapping[str, Pool]
    runs_by_value: bool = True
    hardware: Hardware | None = None

    def refuses(self, call: Call) -> str | None:
        """Why this worker cannot run the call, as far as can be told without user code; None if it can."""
        if call.function is None and not call.ship and call.task not in self.tasks:
            known = ", ".join(sorted(self.tasks)[:10]) or "none by name"
            return f"this worker knows no task {call.task!r}; it knows {known}.{OF_VERSION_3 if call.task == V3_TASK else ''}"
        if (call.function is not None or call.ship) and not self.runs_by_value:
            return "it brings its code along, and this worker was started with --no-by-value."
        try:
            codec_of(call.codec)
        except Unfit as exc:
            return str(exc)
        if call.python is not None and call.python != python_minor():
            return f"it brings code of Python {call.python} along, and this worker runs Python {python_minor()}."
        return None if self.hardware is None else self.hardware.lacks(call.resources)
