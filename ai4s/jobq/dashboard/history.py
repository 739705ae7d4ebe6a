"""How many calls ended when, from what workers say again and again; so a page that is opened shows what came before.

Workers say it every 15 s or so: rates are of a minute, or they would jump. Kept is half an hour.

Next: `refresh.py`, which notes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from operator import itemgetter

WINDOW_SECONDS = 60.0
KEPT_SECONDS = 1800.0
LEAST_SECONDS = 30.0
"""What is known of a shorter time says nothing about a rate."""

MOST_POINTS = 180
"""Of a chart."""

MOST_GONE = 10_000
"""Workers that are listed no more, and whose counts are kept in case that they come back; more than that are forgotten at once."""


class History:
    """The calls that ended since the first note, by time."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._total = 0
        self._points: deque[tuple[float, int]] = deque()

    def note(self, ended: Mapping[str, int], at: float) -> None:
        """Note how many calls each worker has ended by now; `at` in epoch seconds by the server's clock."""
        if self._points:
            # One that was not there before has done all it did since.
            self._total += sum(max(0, count - self._counts.get(worker, 0)) for worker, count in ended.items())
        self._counts = {**(self._counts if len(self._counts) < MOST_GONE + len(ended) else {}), **ended}
        self._points.append((at, self._total))
        while self._points[0][0] < at - KEPT_SECONDS:
            self._points.popleft()

    @property
    def seconds(self) -> float:
        """How much time is known of."""
        return self._points[-1][0] - self._points[0][0] if self._points else 0.0

    def per_second(self) -> float | None:
        """Calls that ended a second, over the last minute; None while too little is known."""
        return self._rate(list(self._points), len(self._points) - 1) if self.seconds >= LEAST_SECONDS else None

    def points(self) -> list[list[float]]:
        """Moments and rates, oldest first."""
        known = list(self._points)
        step = max(1, -(-len(known) // MOST_POINTS))
        places: Iterable[int] = range((len(known) - 1) % step, len(known), step)
        return [[round(known[place][0], 1), self._rate(known, place)] for place in islice(places, 1, None)]

    @staticmethod
    def _rate(known: list[tuple[float, int]], place: int) -> float:
        at, total = known[place]
        # The last note before the window: after a pause in which nobody looked there is no other one in it.
        first = known[max(0, bisect_right(known, at - WINDOW_SECONDS, key=itemgetter(0)) - 1)]
        return round((total - first[1]) / max(1.0, at - first[0]), 4)
