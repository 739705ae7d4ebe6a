"""A worker's telemetry for as long as it works: opened, connected with what the worker knows, and closed within its time.

The one thing that is asked of the storage for it is how long the queues are, and that only if somebody reads metrics.

Next: `telemetry/working.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..clock import boottime
from ..config import Settings
from ..errors import TransportError
from ..telemetry.opening import open_telemetry
from ..telemetry.working import About, Gauges, Port, Telemetry
from .consumption import Consumption
from .poller import Poller
from .shutdown import Shutdown
from .workshop import Workshop

DEPTH_SECONDS = 60.0
"""Between two counts of a queue: a request for each, and each worker counts for itself."""

USAGE_SECONDS = 1.0
"""What was measured so lately is not measured again."""


@asynccontextmanager
async def metered(app: str, worker: str, port: Port | None, *, settings: Settings, shutdown: Shutdown) -> AsyncIterator[Telemetry]:
    """A worker's telemetry. Its end waits for what has not been sent yet, unless the worker is out of time.

    Raises ConfigurationError for a port that cannot be had.
    """
    opened = open_telemetry(About(app, worker, settings.environment_name, settings.environ), port)
    telemetry = opened.__enter__()
    try:
        yield telemetry
    finally:
        if telemetry.is_on:
            await shutdown.unless_over(asyncio.to_thread(opened.__exit__, None, None, None))


class _Usage:
    """What the worker takes of its machine, measured when somebody collects: on any thread, and for both gauges at once."""

    def __init__(self) -> None:
        self._consumption, self._lock = Consumption(), threading.Lock()
        self._measured_at = float("-inf")
        self._found: tuple[float | None, int] = (None, 0)

    def __call__(self) -> tuple[float | None, int]:
        with self._lock:
            if boottime() - self._measured_at >= USAGE_SECONDS:
                consumed = self._consumption.measure()
                self._measured_at, self._found = boottime(), (consumed.cpu_percent or 0.0, consumed.memory_bytes)
            return self._found


async def keep_metered(workshop: Workshop, poller: Poller) -> None:
    """Show what the worker knows, and count its queues from time to time, for ever."""
    if not workshop.telemetry.has_metrics:
        return
    depths: dict[str, int] = {}
    slots, counts, requests = workshop.slots, workshop.counts, workshop.ledger.transport.requests
    usage = _Usage()
    workshop.telemetry.show(  # before anything is waited for: the first calls count as well
        Gauges(
            slots=lambda: (slots.total, slots.running),
            counts=lambda: {"dead": counts.dead, "lost": counts.lost, "preempted": counts.preempted},
            requests=requests.snapshot,
            usage=usage,
            depths=depths,
        )
    )
    await asyncio.to_thread(usage)  # processor time counts from here
    while True:
        for line in poller.lines:
            try:
                depths[line.name] = await line.queue.depth()
            except TransportError:  # as whoever receives from it will say
                depths.pop(line.name, None)
        await asyncio.sleep(DEPTH_SECONDS)
