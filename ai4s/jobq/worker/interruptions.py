"""The attempts and chunks that run, and how to stop them before their end: one that was cancelled, or all when the worker leaves.

Next: `executors.py`, which stops what it runs when it is told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..layout import batch_of, run_id
from ..lifecycle import Cancelled, Preempted, TimedOut
from ..message import Call


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the attempt: what that counts as, and how many seconds its process has between SIGTERM and SIGKILL."""

    ending: Preempted | Cancelled | TimedOut
    grace_seconds: float


LEAVE = Stop(Preempted(), grace_seconds=1.5)
"""The last seconds of a worker must do for this, and for giving the call back."""

CANCEL = Stop(Cancelled(), grace_seconds=5.0)


class Interruptions:
    """What runs in one worker, by run."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Future[Stop], Call] = {}
        self._left = False

    @contextmanager
    def watched(self, call: Call) -> Iterator[asyncio.Future[Stop]]:
        """A future that is set when this attempt is to be stopped, within the block."""
        stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        self._running[stop] = call
        if self._left:
            stop.set_result(LEAVE)
        try:
            yield stop
        finally:
            del self._running[stop]

    def running(self, queue: str) -> dict[asyncio.Future[Stop], Call]:
        """The attempts of this queue that nobody has stopped, by what would stop them."""
        return {stop: call for stop, call in self._running.items() if call.queue == queue and not stop.done()}

    def leave(self) -> None:
        """Stop all attempts, and those that come."""
        self._left = True
        for stop in self._running:
            _set(stop, LEAVE)

    def stay(self) -> None:
        """Leave alone those that come from now on: the machine is still there."""
        self._left = False

    def cancel(self, runs: Iterable[str]) -> None:
        """Stop the attempts of these runs."""
        wanted = frozenset(runs)
        for stop, call in self._running.items():
            if cancelled_as(call) in wanted:
                _set(stop, CANCEL)


def cancelled_as(call: Call) -> str:
    """What says that this call is cancelled: its run, or its batch."""
    return batch_of(call.id) or run_id(call.id, call.run)


def _set(stop: asyncio.Future[Stop], why: Stop) -> None:
    if not stop.done():
        stop.set_result(why)
