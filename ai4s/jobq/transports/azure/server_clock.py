"""The service's clock, as the Date of its answers tells it.

A Date is cut to whole seconds and a little old on arrival, so each answer gives a lower bound of how far the two clocks are
apart; the largest bound is the best estimate. It steps back only if the service's clock did.

Next: `queue.py`, whose deliveries carry this time.
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import mktime_tz, parsedate_tz

from ...clock import boottime

STEP_SECONDS = 3.0
"""An answer that lies further back than this tells of a clock that was set; less is the cut, and a slow answer."""


class ServerClock:
    """Epoch seconds by the server, between answers carried on by this machine's clock."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._last_date = ""
        self._offset: float | None = None

    @property
    def known(self) -> bool:
        """Whether any answer has been seen."""
        return self._offset is not None

    def note(self, date: str | None) -> None:
        """Learn from an answer's Date; a second answer within the same second says nothing new."""
        if not date or date == self._last_date:
            return
        parsed = parsedate_tz(date)
        if parsed is None:
            return
        self._last_date = date
        offset = mktime_tz(parsed) - self._clock()
        if self._offset is None or offset > self._offset or offset < self._offset - STEP_SECONDS:
            self._offset = offset

    def now(self) -> float:
        """Epoch seconds by the server's clock; only once `known`."""
        if self._offset is None:
            raise LookupError("No answer of the server has been seen yet.")
        return self._clock() + self._offset
