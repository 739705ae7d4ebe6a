"""What SQLite's errors mean to a caller, and how long a busy database is waited for.

Invariant: nothing but errors of `ai4s.jobq.errors` leaves this transport, and `maybe_done` is true only if a commit failed
in a way that leaves its effect unknown.

Next: `database.py`, which meets these faults.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...errors import Unreachable

T = TypeVar("T")

PATIENCE_SECONDS = 10.0
"""How long another process may hold the database: hundreds of times a usual commit, and less than a lease."""

# SQLite's own waiting ends at steps of 100 ms, far too coarse beside a commit of 0.1 ms. PROTOCOL is what WAL answers
# when many processes race for its locks.
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_FIRST_PAUSE_SECONDS = 0.0005
_LONGEST_PAUSE_SECONDS = 0.02


class CommitFailed(Exception):
    """COMMIT itself failed; its cause is SQLite's error, and whether it took effect is unknown."""


def is_busy(fault: BaseException) -> bool:
    """Whether another process holds the database, which passes."""
    return isinstance(fault, sqlite3.Error) and getattr(fault, "sqlite_errorcode", 0) & 0xFF in _BUSY


def patiently(action: Callable[[], T], *, patience_seconds: float) -> T:
    """Do `action`, again and again while the database is busy; the last busy error is raised when patience ends."""
    give_up_at = time.monotonic() + patience_seconds
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except sqlite3.Error as fault:
            if not is_busy(fault) or time.monotonic() >= give_up_at:
                raise
        # Jitter keeps waiting processes from coming back in step.
        time.sleep(pause_seconds * random.uniform(0.5, 1.5))
        pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)


def unreachable(fault: Exception, *, folder: Path) -> Unreachable:
    """The error that a caller sees for a fault of SQLite."""
    if is_busy(fault):
        error = Unreachable(f"Another process holds the database in {folder} and does not let go.", maybe_done=False)
    elif isinstance(fault, CommitFailed):
        error = Unreachable(f"A write to the database in {folder} may have failed: {fault.__cause__}.", maybe_done=True)
    else:
        error = Unreachable(
            f"The database in {folder} did not do as asked: {fault}. Is its disk full, or was the folder removed?",
            maybe_done=False,
        )
    error.__cause__ = fault
    return error
