"""A reading that several ask for and one makes: not more often than it may be, one at a time, and kept when the next one fails.

Who asks waits for it only a moment: pages must answer while the storage does not. What went wrong is said with its first moment,
and the next try comes later each time.

Next: `refresh.py` and `looks.py`, which read by it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ..clock import boottime
from ..errors import JobQError, TransportError
from ..printable import printable

T = TypeVar("T")
log = logging.getLogger("ai4s.jobq")

PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS = 0.3, 0.7
"""How long a reading that is being made is waited for, from its beginning: longer where there is nothing to show yet."""

SLOW_SECONDS = 5.0
"""A reading that takes longer is worth a word: the storage is asked for 30 s before a request fails."""

LONGEST_PAUSE_SECONDS = 30.0
SHARE = 5
"""A reading that takes long is made more rarely: it may take a fifth of the time."""


class Shared(Generic[T]):
    """A value that is read anew when it is asked for and older than `seconds`. For one event loop.

    `problem` is empty, or says in words why the last tries failed, and `problem_since` since when, in this machine's epoch seconds.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], *, seconds: float) -> None:
        self._read, self._seconds = read, seconds
        self.value: T | None = None
        self.read_at: float | None = None
        self._said = ""
        self._failing_since: float | None = None
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._begun, self._due = 0.0, float("-inf")

    async def get(self, patience_seconds: float | None = None) -> T | None:
        """The value, a new one if it is due and there in time; None before the first."""
        if self._task is None and boottime() >= self._due:
            self._begun = boottime()
            self._task = asyncio.create_task(self._keep())
        if self._task is not None:
            usual = FIRST_PATIENCE_SECONDS if self.value is None else PATIENCE_SECONDS
            patience = usual if patience_seconds is None else patience_seconds
            await asyncio.wait({self._task}, timeout=max(0.0, patience - (boottime() - self._begun)))
        return self.value

    def expire(self) -> None:
        """Have it read anew for the next who asks: something was changed."""
        if not self._failures:
            self._due = float("-inf")

    @property
    def problem(self) -> str:
        """Why there is nothing new; empty if all is well."""
        if self._said or self._task is None or boottime() - self._begun < SLOW_SECONDS:
            return self._said
        return f"The storage has not answered for {boottime() - self._begun:.0f} s."

    @property
    def problem_since(self) -> float | None:
        """When that began; None where all is well, and for what does not pass by itself."""
        if not self.problem:
            return None
        return self._failing_since if self._said else time.time() - (boottime() - self._begun)

    async def close(self) -> None:
        """End a reading that is being made."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        try:
            self.value = await self._read()
        except TransportError as exc:
            self._failed(str(exc))
        except JobQError as exc:  # nothing that passes: there is no such batch, or nobody may read it
            self._failed(str(exc), is_lasting=True)
        except Exception as exc:
            # Whatever is wrong with what somebody put there, or with this code: the other pages go on.
            log.exception("A reading for the dashboard failed.")
            self._failed(f"{type(exc).__name__}: {exc}")
        else:
            self._said, self._failures, self.read_at = "", 0, time.time()
        finally:
            self._task = None
            took = boottime() - self._begun
            # Not for ever, though: what waited for an outage to end took long, and is no measure of what comes.
            rest = took if self._failures else min(took * SHARE, LONGEST_PAUSE_SECONDS)
            self._due = self._begun + max(self._pause_seconds(), rest)

    def _failed(self, why: str, *, is_lasting: bool = False) -> None:
        begun = self._failing_since if self._said else time.time() - (boottime() - self._begun)
        if is_lasting:
            self.value, begun = None, None  # what was known is true no more
        self._failing_since = begun
        self._said, self._failures = printable(why), self._failures + 1

    def _pause_seconds(self) -> float:
        return min(LONGEST_PAUSE_SECONDS, self._seconds * 2.0 ** min(self._failures, 10)) if self._failures else self._seconds
