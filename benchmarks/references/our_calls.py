"""This package itself, as one more program with workers of its own: what its variables change is seen beside another one of these.

Up to 1,000 calls are sent one by one, more by `map`.

Next: `../telemetry.py`, which starts two.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from program import Run, main

from ai4s.jobq import gather
from ai4s.jobq.client import Origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tasks import app, no_op

MOST_SINGLE_CALLS = 1_000


@contextlib.contextmanager
def serve(place: str, processes: int) -> Iterator[Run]:
    """A worker with so many children."""
    app.client.move(Origin(place, None, True))
    with app.worker(concurrency=processes):
        yield run


def run(calls: int) -> list[int]:
    """Make calls, and read their values."""
    if calls <= MOST_SINGLE_CALLS:
        return gather(*[no_op.delay(x) for x in range(calls)])
    return list(no_op.map(range(calls)))


if __name__ == "__main__":
    main(serve)
