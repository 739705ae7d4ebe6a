"""A worker's status in `workers/<id>`: that it lives, where, and what it has done; all in the blob's metadata.

Written at start and stop, when draining or trouble begins or ends, every 15 s while busy and every minute while idle, so that one
listing tells of all workers. `trouble` says what keeps a worker from its queues, as long as it can still say so.

Next: `client.py`, which looks whether anybody works.
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
from ..printable import printable
from ..version import __version__

log = logging.getLogger("ai4s.jobq.worker")

BUSY_SECONDS, IDLE_SECONDS = 15.0, 60.0
LOOK_SECONDS = 1.0
MAX_TROUBLE_CHARS, MAX_QUEUES_CHARS = 300, 2000
"""A blob's metadata holds 8 KiB in all."""


def new_worker_id() -> str:
    """A name for this worker that says where it is: host, process, and something random."""
    host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:40]
    return f"{host or 'host'}-{os.getpid()}-{secrets.token_hex(2)}"


class Told(Protocol):
    """Who tells of a worker: the current counts, with "running" among them; what it serves; how many calls of each batch run; what
    is wrong."""

    def numbers(self) -> Mapping[str, int]: ...

    def queues(self) -> Sequence[str]: ...

    def batches(self) -> Mapping[str, int]: ...

    def trouble(self) -> str: ...


class Status:
    """Writes the status of one worker."""

    def __init__(self, ledger: Ledger, worker: str, told: Told) -> None:
        self._ledger, self._worker, self._told = ledger, worker, told
        self._started: float | None = None

    async def keep(self, draining: asyncio.Event) -> None:
        """Write it from time to time, for ever, and when draining or trouble begins or ends."""
        written_at, said = float("-inf"), ("", False)
        while True:
            news = ("draining" if draining.is_set() else "working", bool(self._told.trouble()))
            pause = BUSY_SECONDS if self._told.numbers()["running"] else IDLE_SECONDS
            if news != said or boottime() - written_at >= pause:
                written_at, said = boottime(), news
                await self.write(news[0])
            await asyncio.sleep(LOOK_SECONDS)

    async def write(self, state: str) -> None:
        """Write it once. It serves onlookers only: a fault is logged, and work goes on."""
        metadata = {"state": state, "pid": str(os.getpid()), "version": __version__}
        metadata |= {name: str(number) for name, number in self._told.numbers().items()}
        busiest = sorted(self._told.batches().items(), key=lambda named: -named[1])[:MAX_NAMED]
        if named := " ".join(f"{batch}={count}" for batch, count in busiest if count):
            metadata["batches"] = named
        metadata["queues"] = " ".join(self._told.queues())[:MAX_QUEUES_CHARS]
        if trouble := self._told.trouble():
            metadata["trouble"] = printable(trouble).encode("ascii", "replace").decode()[:MAX_TROUBLE_CHARS]
        try:
            self._started = self._started or await self._ledger.transport.server_time()
            metadata["started"] = f"{self._started:.0f}"
            await (await self._ledger.store()).put(layout.worker(self._worker), b"", metadata=metadata)
        except TransportError as exc:
            log.warning("The worker's status could not be written: %s", exc)
