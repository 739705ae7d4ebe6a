"""huey with SQLite, the reference of the local store: a file in WAL mode, synced as our own is (`synchronous=NORMAL`) or as told.

Its consumer and its `get` look every 100 and 50 ms unless told otherwise; here every millisecond, its quickest setting that leaves
the processor to others. The place is a folder.

Next: `process_pool.py`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from huey import Huey
from huey.storage import SqliteStorage
from program import Run, main, workers

FOLDER = "JOBQ_BENCHMARK_FOLDER"
POLL_SECONDS = 0.001
SYNCHRONOUS = os.environ.get("HUEY_SYNCHRONOUS", "normal")


class Storage(SqliteStorage):
    """huey offers FULL or OFF; ours is NORMAL: after a power cut the last commits may be gone, never the rest."""

    def _create_connection(self) -> sqlite3.Connection:
        connection = super()._create_connection()
        connection.execute(f"pragma synchronous={SYNCHRONOUS}")
        return connection


if __name__ == "__main__":
    os.environ[FOLDER] = sys.argv[1]
huey = Huey("benchmark", storage_class=Storage, filename=str(Path(os.environ[FOLDER], "huey.db")))


@huey.task()
def no_op(x: int) -> int:
    return x


@contextlib.contextmanager
def serve(place: str, processes: int) -> Iterator[Run]:
    import huey_on_sqlite  # the name by which the consumer knows the task

    program = Path(sys.executable).with_name("huey_consumer")
    polling = ["--delay", str(POLL_SECONDS), "--max-delay", str(POLL_SECONDS), "--backoff", "1"]
    command = [str(program), "huey_on_sqlite.huey", "--workers", str(processes), "--worker-type", "process"]

    def run(calls: int) -> list[int]:
        sent = [huey_on_sqlite.no_op(x) for x in range(calls)]
        return [one.get(blocking=True, max_delay=POLL_SECONDS) for one in sent]

    with workers([*command, "--no-periodic", "--quiet", *polling], **{FOLDER: place, "PYTHONPATH": str(Path(__file__).parent)}):
        yield run


if __name__ == "__main__":
    main(serve)
