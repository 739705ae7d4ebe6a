"""What single pages look at (a batch, a call), each read by one for all who have it open, and forgotten when nobody does.

Next: `batch_data.py`, `call_data.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from .shared import Shared

T = TypeVar("T")

MOST_LOOKS = 64
"""That are kept, of each kind; whose turn was longest ago goes."""


class Looks(Generic[T]):
    """Things by name; `begin` makes what is kept of one. For one event loop."""

    def __init__(self, begin: Callable[[str], Shared[T]]) -> None:
        self._begin = begin
        self._kept: OrderedDict[str, Shared[T]] = OrderedDict()

    async def at(self, name: str) -> Shared[T]:
        """What is known of this one, read anew if that is due."""
        if name not in self._kept:
            self._kept[name] = self._begin(name)
        self._kept.move_to_end(name)
        looked = self._kept[name]
        await looked.get()
        while len(self._kept) > MOST_LOOKS:
            await self._kept.popitem(last=False)[1].close()
        return looked

    def expire(self) -> None:
        """Have all read anew when they are asked for next."""
        for looked in self._kept.values():
            looked.expire()

    async def close(self) -> None:
        """End what is being read."""
        for looked in self._kept.values():
            await looked.close()
