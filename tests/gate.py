"""A gate where a task waits until the test lets it pass, whichever process it runs in: no test has to guess how long to sleep.

The test holds both ends of two FIFOs, so opening them never blocks; a gate given to a task as an argument is just a folder's name.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DEADLINE_SECONDS = 60.0
ROOM = 64  # attempts that are let through when the test is over, so that none of them keeps its worker


@dataclass(frozen=True)
class Gate:
    """The task says `gate.pass_through()`; the test says `gate.wait_until_reached()` and `gate.open()`."""

    folder: Path

    def pass_through(self) -> None:
        """In a task: say that it came so far, and wait until the test opens."""
        self._reached.write_text("x")
        with self._opened.open() as opened:
            opened.read(1)

    def wait_until_reached(self) -> None:
        """In a test: wait until a task stands before the gate."""
        with self._reached.open("r+b", buffering=0) as reached:
            ready, _, _ = select.select([reached], [], [], DEADLINE_SECONDS)
            assert ready, f"no task came to the gate within {DEADLINE_SECONDS:g} s"
            reached.read(1)

    def open(self, times: int = 1) -> None:
        """In a test: let one attempt through, or several."""
        with self._opened.open("r+b", buffering=0) as opened:
            opened.write(b"x" * times)

    @property
    def _reached(self) -> Path:
        return self.folder / "reached"

    @property
    def _opened(self) -> Path:
        return self.folder / "opened"


@contextlib.contextmanager
def gate_in(folder: Path) -> Iterator[Gate]:
    """A closed gate for the length of the block; then it is open, and whoever comes too late finds no gate at all."""
    made = Gate(folder)
    with contextlib.ExitStack() as stack:
        for fifo in (made._reached, made._opened):
            os.mkfifo(fifo)
            stack.callback(os.close, os.open(fifo, os.O_RDWR))
            stack.callback(fifo.unlink)
        stack.callback(made.open, ROOM)
        yield made
