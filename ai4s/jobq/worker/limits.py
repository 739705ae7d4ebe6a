"""How much a child may do and hold before another takes its place.

Next: `executors.py`, which asks after each call.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigurationError
from .child_process import Child
from .memory import held_bytes, readable

PART_BETWEEN_CALLS = 0.75
"""A child that still holds so much of what it may after a call is replaced: else it is the next call that would pay."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """After how many calls a child is replaced, and how many bytes of memory it may hold; None for no bound."""

    calls: int | None = None
    memory_bytes: int | None = None

    def worn(self, child: Child) -> bool:
        """Whether a child should get no more jobs."""
        if self.calls is not None and child.given >= self.calls:
            return True
        return self.memory_bytes is not None and held_bytes(child.pid) > PART_BETWEEN_CALLS * self.memory_bytes

    def check_room(self, idle: Child) -> None:
        """Raise ConfigurationError if a child that runs nothing is worn already: each call would die of it."""
        held = held_bytes(idle.pid)
        if self.memory_bytes is not None and held > PART_BETWEEN_CALLS * self.memory_bytes:
            raise ConfigurationError(
                f"A child process holds {readable(held)} before it runs anything, and --max-memory-per-child allows "
                f"{readable(self.memory_bytes)}: allow at least twice what it holds."
            )
