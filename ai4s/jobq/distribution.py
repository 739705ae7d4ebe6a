"""How durations are spread: counts in fixed buckets, cheap to add to, to merge, and to write as a short text.

Everyone has the same buckets, so that what workers and log entries say of themselves can be summed, whatever their versions hold
beside it. The text goes into a blob's metadata; one that somebody spoilt counts as empty, as it serves onlookers only.

Next: `worker/counts.py`, which fills two of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, Self

BOUNDS: Final = (
    *(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    *(30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10800.0, 43200.0, 86400.0),
)
"""Upper ends in seconds, each of which belongs to its bucket; one more bucket holds what took longer than a day."""
_MOST_DIGITS = 15


class Distribution:
    """Counts of durations. `counts[i]` is of those of at most `BOUNDS[i]` seconds that were in no bucket before."""

    __slots__ = ("counts",)

    def __init__(self, counts: Iterable[int] = ()) -> None:
        """From counts by bucket; those left out at the end are 0, and those beyond the buckets are dropped."""
        given = list(counts)[: len(BOUNDS) + 1]
        self.counts: list[int] = given + [0] * (len(BOUNDS) + 1 - len(given))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Distribution) and self.counts == other.counts

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Distribution.from_text({self.to_text()!r})"

    @property
    def total(self) -> int:
        """How many durations there are."""
        return sum(self.counts)

    def add(self, seconds: float, n: int = 1) -> None:
        """Count a duration, `n` times. One below 0, by clocks that differ, counts as 0; one that is no number does not count."""
        if seconds == seconds:  # not a NaN; cheaper than math.isnan, and this runs once a call
            self.counts[bisect_left(BOUNDS, seconds)] += n

    def add_all(self, durations: Sequence[float]) -> None:
        """Count many durations, all of them numbers: faster than one by one."""
        if durations and (only := bisect_left(BOUNDS, max(durations))) == bisect_left(BOUNDS, min(durations)):
            self.counts[only] += len(durations)  # as of thousands that take next to no time
            return
        ordered, start, bucket = sorted(durations), 0, 0
        while start < len(ordered):
            bucket = bisect_left(BOUNDS, ordered[start], bucket)
            stop = bisect_right(ordered, BOUNDS[bucket], start) if bucket < len(BOUNDS) else len(ordered)
            self.counts[bucket] += stop - start
            start = stop

    def merge(self, other: Distribution) -> None:
        """Count all that the other one holds."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]

    def quantile(self, q: float) -> float | None:
        """Seconds that the share `q` (0 to 1) of all durations did not exceed, as if each bucket were evenly filled.

        None where there are no durations. Of the last bucket nothing is known but its lower end, which is the answer there.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"A quantile lies between 0 and 1, not at {q!r}.")
        left = q * self.total
        last = max((bucket for bucket, count in enumerate(self.counts) if count), default=None)
        if last is None:
            return None
        for bucket, count in enumerate(self.counts):
            if count and (left <= count or bucket == last):
                return _within(bucket, min(1.0, left / count))
            left -= count
        raise AssertionError("the last bucket that holds something ends the search")

    def to_text(self) -> str:
        """The buckets that are not empty, as "0:12,5:3"."""
        return ",".join(f"{bucket}:{count}" for bucket, count in enumerate(self.counts) if count)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """What `to_text` gave; never raises, and what it cannot read is left out."""
        read = cls()
        for pair in text.split(","):
            bucket, _, count = pair.partition(":")
            if _is_count(bucket) and _is_count(count) and int(bucket) <= len(BOUNDS):
                read.counts[int(bucket)] += int(count)
        return read


def _within(bucket: int, share: float) -> float:
    low = BOUNDS[bucket - 1] if bucket else 0.0
    high = BOUNDS[bucket] if bucket < len(BOUNDS) else low
    return low + (high - low) * share


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
