"""The map of a batch's calls by state, no larger than a page can draw: runs of neighbours, or of equal parts where there are more.

Next: `batch_data.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST_RUNS = 10_000
"""Some 300 KB, and more than a screen has room for."""

WORST_FIRST = ("failed", "unknown", "cancelled", "waiting", "succeeded")
"""Of the calls in one part of the map the one that a person must see stands for all."""

Run = tuple[int, int, str]


def state_map(states: Sequence[Run], calls: int) -> tuple[list[list[int | str]], bool]:
    """Runs of calls as [first, last, state], and whether they say it of each; waiting calls are in none that is exact.

    >>> state_map([(0, 3, "succeeded"), (4, 4, "failed")], 10)
    ([[0, 3, 'succeeded'], [4, 4, 'failed']], True)
    """
    if len(states) <= MOST_RUNS:
        return [list(run) for run in states], True
    size = -(-calls // MOST_RUNS)
    worst = [WORST_FIRST.index("succeeded")] * -(-calls // size)
    for place, state in _parts(_with_gaps(states, calls), size):
        worst[place] = min(worst[place], WORST_FIRST.index(state))
    return [list(run) for run in _joined(worst, size, calls)], False


def _with_gaps(states: Iterable[Run], calls: int) -> Iterable[Run]:
    """The runs, and between them the calls that wait."""
    after = 0
    for first, last, state in states:
        if first > after:
            yield after, first - 1, "waiting"
        yield first, last, state
        after = last + 1
    if after < calls:
        yield after, calls - 1, "waiting"


def _parts(runs: Iterable[Run], size: int) -> Iterable[tuple[int, str]]:
    """The parts of the map that each run is in."""
    for first, last, state in runs:
        for place in range(first // size, last // size + 1):
            yield place, state


def _joined(worst: Sequence[int], size: int, calls: int) -> Iterable[Run]:
    """Neighbouring parts of one state as one run."""
    start = 0
    for place in range(1, len(worst) + 1):
        if place == len(worst) or worst[place] != worst[start]:
            yield start * size, min(place * size, calls) - 1, WORST_FIRST[worst[start]]
            start = place
