"""How far a map has come with its source: what it has considered, skipped and queued, for whoever wants to see it live.

Told where the source is iterated, and not more often than somebody can read; a line on a terminal where nobody asked to be told.

Next: `feeding.py`, which counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..clock import boottime
from .progress_bar import Line

TELL_SECONDS = 0.25
"""Between two times that somebody is told."""


@dataclass(frozen=True, slots=True)
class Fed:
    """How many items the source of a map has given, how many of them became no calls, and how many calls are durable.

    What is not yet one or the other waits: for the answer of `skip`, or for its pack. An item whose key was there before counts as
    skipped.
    """

    considered: int = 0
    skipped: int = 0
    queued: int = 0

    def __str__(self) -> str:
        return f"{self.considered:,} considered, {self.skipped:,} skipped, {self.queued:,} queued"


Report = Callable[[Fed], object]


class Tally:
    """The counts of one map. With `shown`, a line on a terminal tells them if nobody else wants to be told."""

    def __init__(self, report: Report | None = None, *, shown: bool = False) -> None:
        self.considered = self.skipped = 0
        self._line = Line("map") if shown and report is None else None
        self._report = self._line.show if self._line is not None else report
        self._told = boottime()

    def tell(self, queued: int, *, now: bool = False) -> None:
        """Say how far it is, if it is time; raises what the listener raises."""
        if self._report is not None and (now or boottime() - self._told >= TELL_SECONDS):
            self._told = boottime()
            self._report(Fed(self.considered, self.skipped, queued))

    def close(self) -> None:
        """Remove the line."""
        if self._line is not None:
            self._line.close()
