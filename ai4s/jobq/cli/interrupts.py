"""Ctrl-C where it does no harm: between two steps, never in the middle of one.

What was submitted must be counted, so that whoever goes on after a Ctrl-C leaves out all of it and nothing else.

Next: `submitting.py`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Interrupts:
    """Whether a Ctrl-C came. The first one raises KeyboardInterrupt within `heed` only, the second wherever it comes."""

    def __init__(self) -> None:
        self._came = self._is_heeded = False

    def heed(self, step: Callable[[], T]) -> T:
        """Take a step that a Ctrl-C may cut short, also one that came before."""
        self._is_heeded = True
        try:
            if self._came:
                raise KeyboardInterrupt
            return step()
        finally:
            self._is_heeded = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """See `signal.signal`."""
        is_second, self._came = self._came, True
        if self._is_heeded or is_second:
            raise KeyboardInterrupt


@contextmanager
def held_interrupts() -> Iterator[Interrupts]:
    """Hold a Ctrl-C back for the length of the block, except where it is heeded. Elsewhere than on the main thread none comes."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupts.take)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
