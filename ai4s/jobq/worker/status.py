"""A worker's status in `workers/<id>`: that it lives, where, what it has done and what it does now.

Written at start and stop, when draining or trouble begins or ends, every 15 s while calls run or something is new, and every
minute while nothing is. What lists need lies in the blob's metadata, so that one listing tells of all workers; its body has all
running calls, however many. `trouble` says what keeps a worker from its queues, as long as it can still say so.

Next: `overview/fleet.py`, which reads it; `client.py`, which looks whether anybody works.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import Protocol

from .. import layout
from ..clock import boottime
from ..errors import TransportError
from ..ledger import Ledger
from ..maps.progress import MAX_NAMED
from ..overview import current
from ..printable import printable
from ..version import __version__
from .consumption import Consumption
from .counts import Counts
from .current_calls import Current

log = logging.getLogger("ai4s.jobq.worker")

BUSY_SECONDS, IDLE_SECONDS = 15.0, 60.0
LOOK_SECONDS = 1.0
MAX_TROUBLE_CHARS, MAX_QUEUES_CHARS, MAX_NAME_CHARS = 300, 1500, 100
"""A blob's metadata holds 8 KiB in all."""

LEAST_RATE_SECONDS = 5.0
"""A rate over less than this says nothing; the one before stands."""


def new_worker_id() -> str:
    """A name for this worker that says where it is: host, process, and something random."""
    host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:40]
    return f"{host or 'host'}-{os.getpid()}-{secrets.token_hex(2)}"


class Told(Protocol):
    """Who tells of a worker: its slots and how many of them are busy; its counts; what it serves; how many calls of each batch run;
    all that runs, the longest first; what is wrong."""

    def numbers(self) -> Mapping[str, int]: ...

    @property
    def counts(self) -> Counts: ...

    def queues(self) -> Sequence[str]: ...

    def batches(self) -> Mapping[str, int]: ...

    def calls(self) -> Sequence[Current]: ...

    def trouble(self) -> str: ...


class Status:
    """Writes the status of one worker, which runs in this environment."""

    def __init__(self, ledger: Ledger, worker: str, told: Told, *, environment: str = "local") -> None:
        self._ledger, self._worker, self._told = ledger, worker, told
        self._always = {
            "pid": str(os.getpid()),
            "version": __version__,
            "host": _ascii(socket.gethostname(), MAX_NAME_CHARS),
            "environment": _ascii(environment, MAX_NAME_CHARS),
        }
        self._consumption, self._rate = Consumption(), _Rate()
        self._started: float | None = None

    async def keep(self, draining: asyncio.Event) -> None:
        """Write it from time to time, for ever, and when draining or trouble begins or ends."""
        written_at, said, told = float("-inf"), ("", False), dict[str, int]()
        while True:
            news = ("draining" if draining.is_set() else "working", bool(self._told.trouble()))
            numbers = dict(self._told.numbers())
            # Also once all has ended: else it would be shown as running, or not counted, for a minute.
            pause = BUSY_SECONDS if numbers["running"] or numbers != told else IDLE_SECONDS
            if news != said or boottime() - written_at >= pause:
                written_at, said, told = boottime(), news, numbers
                await self.write(news[0])
            await asyncio.sleep(LOOK_SECONDS)

    async def write(self, state: str) -> None:
        """Write it once. It serves onlookers only: a fault is logged, and work goes on."""
        try:
            now = await self._ledger.transport.server_time()
            self._started = self._started or now
            calls = self._calls(now)
            metadata = self._always | {"state": state, "started": f"{self._started:.0f}"} | self._numbers() | _told_of(calls)
            metadata |= await self._consumed() | self._words()
            body = current.to_body(calls) if calls else b""
            await (await self._ledger.store()).put(layout.worker(self._worker), body, metadata=metadata)
        except TransportError as exc:
            log.warning("The worker's status could not be written: %s", exc)

    def _calls(self, now: float) -> list[current.CurrentCall]:
        to_server_time = now - boottime()
        return [current.CurrentCall(each.id, each.task, each.since + to_server_time, each.progress) for each in self._told.calls()]

    def _numbers(self) -> dict[str, str]:
        counts = self._told.counts
        found = {name: str(number) for name, number in self._told.numbers().items()}
        rate = self._rate.of(counts.succeeded + counts.failed)
        texts = {
            "rate": "" if rate is None else f"{rate:.4g}",
            "requests": self._ledger.transport.requests.to_text(),
            "runs": counts.run_times.to_text(),
            "waits": counts.wait_times.to_text(),
        }
        return found | {name: text for name, text in texts.items() if text}

    async def _consumed(self) -> dict[str, str]:
        consumed = await asyncio.to_thread(self._consumption.measure)
        cpu = {} if consumed.cpu_percent is None else {"cpu": f"{consumed.cpu_percent:.1f}"}
        return {**cpu, "memory": str(consumed.memory_bytes)}

    def _words(self) -> dict[str, str]:
        busiest = sorted(self._told.batches().items(), key=lambda named: -named[1])[:MAX_NAMED]
        texts = {
            "batches": " ".join(f"{batch}={count}" for batch, count in busiest if count),
            "queues": " ".join(self._told.queues())[:MAX_QUEUES_CHARS],
            "trouble": _ascii(self._told.trouble(), MAX_TROUBLE_CHARS),
        }
        return {name: text for name, text in texts.items() if text}


class _Rate:
    """How many calls ended a second since the word before."""

    def __init__(self) -> None:
        self._since, self._ended = boottime(), 0
        self._rate: float | None = None

    def of(self, ended: int) -> float | None:
        """The rate, now that so many have ended; None before anything is known."""
        seconds = boottime() - self._since
        if seconds >= LEAST_RATE_SECONDS:
            self._rate = (ended - self._ended) / seconds
            self._since, self._ended = boottime(), ended
        return self._rate


def _told_of(calls: Sequence[current.CurrentCall]) -> dict[str, str]:
    text, fit = current.to_text(calls)
    return {name: said for name, said in (("calls", text), ("more", str(len(calls) - fit))) if said not in ("", "0")}


def _ascii(text: str, most: int) -> str:
    return printable(text).encode("ascii", "replace").decode()[:most].strip()
