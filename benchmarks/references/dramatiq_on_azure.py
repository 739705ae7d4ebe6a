"""dramatiq with dramatiq-azure: a storage queue as its broker, and no results, for it has no store for them on Azure.

A call adds to a tally, and nobody reads a value.

Next: `huey_on_sqlite.py`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from program import Run, Tally, main, tally, workers

URL, TALLY = "AZURE_STORAGE_CONNECTION_STR", "JOBQ_BENCHMARK_TALLY"
if __name__ == "__main__":
    os.environ[URL] = sys.argv[1]  # read when dramatiq_azure is imported

import dramatiq  # noqa: E402  # (the line above comes first)
import dramatiq_azure  # noqa: E402

dramatiq.set_broker(dramatiq_azure.ASQBroker())


@dramatiq.actor
def no_op(x: int) -> None:
    Tally(os.environ[TALLY]).add()


@contextlib.contextmanager
def serve(place: str, processes: int) -> Iterator[Run]:
    command = [sys.executable, "-m", "dramatiq", "dramatiq_on_azure", "--processes", str(processes), "--threads", "1"]
    with tally() as counted, workers(command, **{TALLY: counted.path}):

        def run(calls: int) -> None:
            before = counted.count
            for x in range(calls):
                no_op.send(x)
            counted.wait_for(before + calls)

        yield run


if __name__ == "__main__":
    main(serve)
