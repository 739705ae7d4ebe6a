"""What every reference's program has in common: it is told how many calls to make, and answers how long they took.

A program starts its own workers, gives `main` a function that makes calls and waits for all of them, and knows nothing of what it
is compared with. Orders come as lines of JSON on standard input, answers go out likewise; the end of the input is the end.
It runs in an environment that holds the reference and nothing of ours: the standard library must do here.

Next: `celery_on_azure.py`, the first of them; `../outside.py`, the other end of the pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

HERE = Path(__file__).resolve().parent
Run = Callable[[int], "list[int] | None"]
STOP_SECONDS = 20.0


def main(serve: Callable[[str, int], AbstractContextManager[Run]]) -> None:
    """Serve a place with so many worker processes (both from the command line), and follow orders.

    `serve` yields `run(calls)`, which makes no-op calls of 0, 1, 2 ... and returns their values in order, or None where the
    reference keeps no results and all that can be known is that the calls have run.
    """
    place, processes = sys.argv[1], int(sys.argv[2])
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with serve(place, processes) as run:
        for line in sys.stdin:
            answers.write(json.dumps(measure(run, **json.loads(line))) + "\n")
            answers.flush()


def measure(run: Run, calls: int, rounds: int) -> list[float]:
    """Seconds of each of `rounds` times `calls` calls."""
    measured = []
    for _ in range(rounds):
        began = time.perf_counter()
        values = run(calls)
        measured.append(time.perf_counter() - began)
        if values not in (None, list(range(calls))):
            raise AssertionError(f"wrong values: {str(values)[:200]}")
    return measured


@contextlib.contextmanager
def workers(*commands: list[str], **variables: str) -> Iterator[None]:
    """Run these programs beside this one; stopped by their ids, and killed if they do not stop."""
    environment = {**os.environ, **variables}
    started = [subprocess.Popen(command, cwd=HERE, env=environment, stdin=subprocess.DEVNULL) for command in commands]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Tally:
    """A file to which each call adds a byte: how to know that calls have run where there are no results."""

    def __init__(self, path: str) -> None:
        self.path = path

    def add(self) -> None:
        """One more call has run; from any process, since a file opened to append keeps such writes whole."""
        with Path(self.path).open("ab", buffering=0) as file:
            file.write(b".")

    @property
    def count(self) -> int:
        """How many have run."""
        return Path(self.path).stat().st_size

    def wait_for(self, count: int, poll_seconds: float = 0.005) -> None:
        """Return once so many have run."""
        while self.count < count:
            time.sleep(poll_seconds)


@contextlib.contextmanager
def tally() -> Iterator[Tally]:
    """A tally of nothing yet."""
    with tempfile.NamedTemporaryFile() as file:
        yield Tally(file.name)
