"""`concurrent.futures.ProcessPoolExecutor`: what Python itself does on one machine, where nothing outlives the program.

Next: `bare_packs.py`, which goes through storage.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from program import Run, main

CHUNK = 256  # calls that travel together; without it the executor sends each by itself


def no_op(x: int) -> int:
    return x


@contextlib.contextmanager
def serve(place: str, processes: int) -> Iterator[Run]:
    # Spawned, as ours are: a fork would begin with what this process has imported.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield lambda calls: list(pool.map(no_op, range(calls), chunksize=CHUNK))


if __name__ == "__main__":
    main(serve)
