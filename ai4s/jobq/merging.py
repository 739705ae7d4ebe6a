"""Changes of one record that are wanted at the same time in one process, made together.

Who comes while a change is under way waits, and all who wait are the next change: so a thousand at once cost a few requests.
Nobody returns before the own change is made. What a caller who is cut off leaves undone, the next one does; a failure is
raised to all whose changes it concerned. It knows neither records nor storage.

Next: `ledger.py`, which changes a queue's control like this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import reduce
from typing import Generic, TypeVar, cast

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Wanted(Generic[T]):
    """A change, and what came of it."""

    change: Callable[[T], T]
    is_over: bool = False
    made: T | None = None
    error: Exception | None = None


class Merged(Generic[T]):
    """Makes changes with `make`, one at a time, which may call the change more than once. For one event loop."""

    def __init__(self, make: Callable[[Callable[[T], T]], Awaitable[T]]) -> None:
        self._make = make
        self._turn = asyncio.Lock()
        self._waiting: list[_Wanted[T]] = []

    async def change(self, change: Callable[[T], T]) -> T:
        """Make the change, with those that wait too; returns what the record is then."""
        mine = _Wanted(change)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if not mine.is_over:
                    await self._make_all()
        finally:
            if not mine.is_over:
                self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error.with_traceback(None)  # many raise it, each of whom would make its traceback longer
        return cast("T", mine.made)

    async def _make_all(self) -> None:
        """Until it is over they stay in the list, for the next one if this one is cancelled."""
        batch = list(self._waiting)
        made: T | None = None
        error: Exception | None = None
        try:
            made = await self._make(lambda found: reduce(lambda value, wanted: wanted.change(value), batch, found))
        except Exception as exc:  # noqa: BLE001  # each of them raises it
            error = exc
        for wanted in batch:
            wanted.is_over, wanted.made, wanted.error = True, made, error
        self._waiting = [wanted for wanted in self._waiting if not wanted.is_over]
