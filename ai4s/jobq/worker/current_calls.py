"""The calls that run in a worker now: since when, and how far they say they are.

Whoever runs calls is asked, since of a chunk another call runs every moment; nothing is noted a call.

Next: `status.py`, which tells of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..call_progress import CallProgress


@dataclass(slots=True, eq=False)
class Current:
    """A call that runs, since this moment on the worker's clock. Of a vector's slice, its first call stands for all."""

    id: str
    task: str
    since: float
    progress: CallProgress | None = None

    def progressed(self, place: int, progress: CallProgress) -> None:
        """The task has said how far it is; a single call has one place only."""
        self.progress = progress


class CurrentCalls:
    """What runs in one worker."""

    def __init__(self) -> None:
        self._tellers: dict[object, Callable[[], Current | None]] = {}

    @contextmanager
    def told_by(self, teller: Callable[[], Current | None]) -> Iterator[None]:
        """Within the block, this tells what runs, if anything does."""
        key = object()
        self._tellers[key] = teller
        try:
            yield
        finally:
            del self._tellers[key]

    def longest_first(self) -> list[Current]:
        """All that runs now."""
        found = (teller() for teller in self._tellers.values())
        return sorted((current for current in found if current is not None), key=lambda current: current.since)
