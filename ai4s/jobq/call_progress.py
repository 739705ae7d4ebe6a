"""How far a running call says it is: numbers and a few words, checked where the task says them.

It goes from the task's process to its worker, and from there with the worker's status: no request of its own.

Next: `running.py`, where a task says it; `worker/status.py`, which passes it on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .printable import describe, printable

MAX_MESSAGE_CHARS = 200


@dataclass(frozen=True, slots=True)
class CallProgress:
    """How far a call is: `done` of `total`, in whatever the task counts, with a message; `total` is None where it is not known."""

    done: float
    total: float | None = None
    message: str = ""

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,.10g}"
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        return f"{self.done:,.10g}{of}{share}{': ' if self.message else ''}{self.message}"


def checked_progress(done: Any, total: Any, message: Any) -> CallProgress:
    """What a task said, if it makes sense; the message cut to 200 characters that can be shown.

    Raises TypeError for what is no number or text, ValueError for a number below 0 or one that is not finite.
    """
    if not isinstance(message, str):
        raise TypeError(f"progress(…, message=…) takes a text, not {type(message).__name__}: give str(…) or an f-string.")
    cut = printable(message[:MAX_MESSAGE_CHARS])[:MAX_MESSAGE_CHARS]
    return CallProgress(_number("done", done), None if total is None else _number("total", total), cut)


def _number(name: str, value: Any) -> float:
    # Also NumPy's scalars, which say that they are real.
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"progress({name}=…) takes a number, such as 3 or 0.5, not {type(value).__name__}.")
    try:
        number = float(value)
    except OverflowError:  # of an int or a fraction beyond what a float holds
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"progress({name}=…) takes a finite number of at least 0, not {describe(value)}.")
    return number
