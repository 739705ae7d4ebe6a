"""Values of labels, bounded: a label with a new value for each call would cost its owner a database.

Next: `instruments.py`.
"""

from __future__ import annotations

MOST_TASKS = MOST_ERROR_TYPES = 50
OTHER = "other"
LONGEST_VALUE = 120


class Bounded:
    """The first `most` values as they are, cut to a length; from then on every new one is "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        """What to write for this value."""
        known = self._known.get(value)
        if known is None:
            if len(self._known) >= self._most:
                return OTHER
            known = self._known[value] = value[:LONGEST_VALUE]
        return known
