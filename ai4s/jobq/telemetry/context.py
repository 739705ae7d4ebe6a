"""The context of a trace, as text: what W3C calls `traceparent`. It travels in messages and to children.

A text that is none is ignored by whoever reads it.

Next: `sending.py`, where it comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


def is_loaded() -> bool:
    """Whether anything in this process has loaded OpenTelemetry: else there are no spans of which one could be part.

    Not `opentelemetry` alone, a namespace that packages without the API share.
    """
    return "opentelemetry.trace" in sys.modules


def attached(trace: str | None) -> AbstractContextManager[None]:
    """For the length of the block, what runs here belongs to this trace; nothing if there is none, or nobody has spans."""
    return nullcontext() if trace is None or not is_loaded() else _attached(trace)


@contextmanager
def _attached(trace: str) -> Iterator[None]:
    from opentelemetry import context

    from .spans import context_of

    token = context.attach(context_of(trace))
    try:
        yield
    finally:
        context.detach(token)
