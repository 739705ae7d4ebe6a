"""Calls on their way by the dozen: submitted side by side, told in the order of their lines, and never more than a few in memory.

Next: `push.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..errors import ConfigurationError, DeclarationError, JobQError
from .interrupts import Interrupts, held_interrupts
from .lines import Item

T = TypeVar("T")
AT_ONCE = 32
"""Requests of a process that wait for an answer: enough to hide a latency of some ms, few enough for one account."""


class NotAll(JobQError):
    """Some calls were submitted, and then one could not be."""


class Submitter:
    """Submits one call after the other; `told` gets each with what `submit` returned, in their order. Used once."""

    def __init__(self, submit: Callable[[Item], T], told: Callable[[Item, T], None]) -> None:
        self._submit, self._told = submit, told
        self._flying: deque[tuple[Item, Future[T]]] = deque()
        self._error: tuple[Item, Exception] | None = None
        self.count = self.last = 0
        """How many were submitted, and the number of the last one's line."""

    def run(self, items: Iterable[Item]) -> None:
        """Submit all; whatever ends it, what was begun is finished and told. Raises NotAll, and what `items` raises.

        A Ctrl-C is heeded while the next item is awaited.
        """
        with held_interrupts() as interrupts, ThreadPoolExecutor(AT_ONCE, "jobq-push") as threads:
            try:
                self._submit_each(iter(items), threads, interrupts)
            finally:
                self._settle(1)
        if self._error is not None:
            self._raise(*self._error)

    def _submit_each(self, items: Iterator[Item], threads: ThreadPoolExecutor, interrupts: Interrupts) -> None:
        while (item := interrupts.heed(lambda: next(items, None))) is not None:
            self._flying.append((item, threads.submit(self._submit, item)))
            self._settle(AT_ONCE)
            if self._error is not None:
                return

    def _settle(self, most: int) -> None:
        """Tell of those that are done, and wait for the first ones while there are so many."""
        while self._flying and (len(self._flying) >= most or self._flying[0][1].done()):
            self._settle_first()

    def _settle_first(self) -> None:
        item, future = self._flying[0]
        try:
            made = future.result()
        except Exception as exc:  # noqa: BLE001  # it is raised again once what came after it is told
            self._flying.popleft()
            self._error = self._error or (item, exc)
            return
        self._flying.popleft()
        self.count, self.last = self.count + 1, item.number
        self._told(item, made)

    def _raise(self, item: Item, exc: Exception) -> None:
        if not self.count and isinstance(exc, JobQError):
            raise exc
        said = f"Line {item.number} was not submitted: {exc}"
        if isinstance(exc, ConfigurationError | DeclarationError | TypeError):
            raise ConfigurationError(said) from exc
        raise NotAll(f"{said} ({self.count:,} calls were, up to line {self.last}.)") from exc
