"""What was looked at lately, kept for some seconds: who asks many times a second, or at the same time, costs one look.

Next: `handle.py`, whose `progress` asks so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from .clock import boottime

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps the newest answer. It belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock, self._turn = clock, asyncio.Lock()
        self._kept: tuple[float, T] | None = None

    async def get(self, seconds: float, look: Callable[[], Awaitable[T]]) -> T:
        """The answer, at most so old; a look that fails is not kept."""
        async with self._turn:
            if self._kept is None or self._clock() - self._kept[0] >= seconds:
                began = self._clock()
                self._kept = (began, await look())
            return self._kept[1]
