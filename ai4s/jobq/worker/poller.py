"""Fetching: which queue to ask next, for how many messages, and how long to rest when there are none.

Groups of queues are strict: a later group is asked when the earlier ones have nothing. Within a group it is round robin
by weight. A queue that had a message is asked again at once, one that lately had some every 25 ms, an idle one ever more rarely.

Next: `runtime.py`, which owns the loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..clock import boottime
from ..errors import ConfigurationError, TransportError, Unreachable
from ..layout import check_queue_name
from ..ledger import Ledger
from ..telemetry.working import SILENT, Telemetry
from ..transports.base import Delivery, Queue
from .lease import USUAL_TERMS, Terms

log = logging.getLogger("ai4s.jobq.worker")

AWAKE_SECONDS = 2.5
AWAKE_PAUSE_SECONDS = 0.025
"""For so long after a message, and so often, a queue is asked: what comes soon after is picked up within 50 ms."""

LONGEST_PAUSE_SECONDS = 5.0
GROWTH = 0.15
"""A pause as a part of the time since the queue fell asleep: 5 s after half a minute, hardly 30 requests a minute from then on."""

FAULT_PAUSE_SECONDS, LONGEST_FAULT_PAUSE_SECONDS = 0.5, 5.0
"""With the time after which a request counts as lost, a worker is back at work 15 s after the storage is."""

LONGEST_DENIED_PAUSE_SECONDS = 30.0
"""Rights and keys are mended by people."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A queue's place in a group."""

    queue: str
    weight: int = 1


def parse_queues(app: str, texts: Sequence[str]) -> tuple[tuple[Turn, ...], ...]:
    """The groups that `--queue` options mean: "a,b" is round robin, "a:3,b" with weights, several options are a strict order.

    >>> parse_queues("myproj", ["urgent", "default,gpu:3"])
    ((Turn(queue='urgent', weight=1),), (Turn(queue='default', weight=1), Turn(queue='gpu', weight=3)))

    Raises DeclarationError for a queue that cannot be, ConfigurationError for a weight that is none.
    """
    groups = tuple(tuple(_turn(app, part.strip()) for part in text.split(",") if part.strip()) for text in texts)
    if not groups or not all(groups):
        raise ConfigurationError("--queue wants names of queues, as in --queue default,gpu.")
    return groups


def _turn(app: str, text: str) -> Turn:
    name, colon, weight = text.partition(":")
    if colon and not re.fullmatch(r"[1-9][0-9]?", weight):
        raise ConfigurationError(f"--queue wants NAME or NAME:WEIGHT with a whole number from 1 to 99; got {text!r}.")
    return Turn(check_queue_name(app, name), int(weight) if colon else 1)


class Line:
    """One queue and when to ask it next."""

    def __init__(self, name: str, queue: Queue) -> None:
        self.name, self.queue = name, queue
        self.last_message = boottime()
        self.due = 0.0
        self.paused = False
        self.trouble = ""
        self._fault_pause = 0.0

    def had(self, messages: int) -> None:
        """Note what a receive brought."""
        now = boottime()
        self._fault_pause, self.trouble = 0.0, ""
        if messages:
            self.last_message, self.due = now, 0.0
            return
        asleep = now - self.last_message - AWAKE_SECONDS
        pause = min(LONGEST_PAUSE_SECONDS, AWAKE_PAUSE_SECONDS + GROWTH * max(0.0, asleep))
        self.due = now + pause * random.uniform(0.75, 1.25)

    async def idle(self, seconds: float) -> None:
        """Sleep until there may be messages; a queue that cannot tell, or is paused, is slept for all the same."""
        if self.paused:
            await asyncio.sleep(LONGEST_PAUSE_SECONDS)
            return
        try:
            await self.queue.idle(max(0.0, seconds))
        except TransportError as exc:
            self.failed(exc)
            await asyncio.sleep(self.due - boottime())

    def failed(self, exc: TransportError) -> None:
        """Note a fault: the first of a series is said, and each one makes the pause longer."""
        if not self._fault_pause:
            log.error("Queue %s cannot be read, trying on: %s", self.queue.name, exc)
        self.trouble = f"{type(exc).__name__}: {exc}"
        longest = LONGEST_FAULT_PAUSE_SECONDS if isinstance(exc, Unreachable) else LONGEST_DENIED_PAUSE_SECONDS
        self._fault_pause = min(longest, 2 * self._fault_pause or FAULT_PAUSE_SECONDS)
        self.due = boottime() + self._fault_pause * random.uniform(0.5, 1)


class Poller:
    """Fetches for a worker; made ready by `open`."""

    def __init__(
        self,
        groups: Sequence[Sequence[Line]],
        turns: Sequence[Sequence[Turn]],
        terms: Terms = USUAL_TERMS,
        *,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._terms, self._telemetry = terms, telemetry
        self._groups = [
            [line for line, turn in zip(lines, group, strict=True) for _ in range(turn.weight)]
            for lines, group in zip(groups, turns, strict=True)
        ]
        self.lines = [line for lines in groups for line in lines]

    @classmethod
    async def open(
        cls, ledger: Ledger, turns: Sequence[Sequence[Turn]], terms: Terms = USUAL_TERMS, *, telemetry: Telemetry = SILENT
    ) -> Poller:
        """With all queues there. Raises AccessDenied, Unreachable, NotFound, PlaceTaken."""
        lines = [[Line(turn.queue, await ledger.queue(turn.queue)) for turn in group] for group in turns]
        return cls(lines, turns, terms, telemetry=telemetry)

    async def fetch(self, room: int) -> tuple[Line, list[Delivery]] | None:
        """Up to `room` messages of the first queue that is due and has some; nothing for no room."""
        if room == 0:
            return None
        for group in self._groups:
            # The next turn begins after the queue that had something, so that each gets its share.
            for position in range(len(group)):
                line = group[position]
                if line.paused or line.due > boottime():
                    continue
                deliveries = await self._receive(line, room)
                if deliveries:
                    group[:] = group[position + 1 :] + group[: position + 1]
                    return line, deliveries
        return None

    async def rest(self) -> None:
        """Sleep until a queue is due, or something is known to have been sent."""
        now = boottime()
        sleeps = [asyncio.create_task(line.idle(line.due - now)) for line in self.lines]
        try:
            await asyncio.wait(sleeps, return_when=asyncio.FIRST_COMPLETED)
            for line, sleep in zip(self.lines, sleeps, strict=True):
                if sleep.done():
                    sleep.result()
                    line.due = 0.0
        finally:
            for sleep in sleeps:
                sleep.cancel()
            await asyncio.gather(*sleeps, return_exceptions=True)

    async def depth(self) -> int:
        """Messages of all queues, invisible ones included. Raises Unreachable, AccessDenied."""
        return sum([await line.queue.depth() for line in self.lines])

    async def _receive(self, line: Line, room: int) -> list[Delivery]:
        began = boottime()
        try:
            deliveries = await line.queue.receive(room, lease_seconds=self._terms.seconds)
        except TransportError as exc:
            line.failed(exc)
            return []
        self._telemetry.received(line.name, deliveries, boottime() - began)
        line.had(len(deliveries))
        return deliveries
