"""A worker's status in `workers/<id>`: that it lives, where, and what it has done; all in the blob's metadata.

Written at start and stop, every 15 s while busy and every minute while idle, so that one listing tells of all workers.

Next: `client.py`, which looks whether anybody works.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Mapping

from .. import layout
from ..errors import TransportError
from ..ledger import Ledger
from ..version import __version__

log = logging.getLogger("ai4s.jobq.worker")

BUSY_SECONDS, IDLE_SECONDS = 15.0, 60.0


def new_worker_id() -> str:
    """A name for this worker that says where it is: host, process, and something random."""
    host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:40]
    return f"{host or 'host'}-{os.getpid()}-{secrets.token_hex(2)}"


class Status:
    """Writes the status of one worker; `numbers` gives the current counts, with "running" among them."""

    def __init__(self, ledger: Ledger, worker: str, numbers: Callable[[], Mapping[str, int]]) -> None:
        self._ledger, self._worker, self._numbers = ledger, worker, numbers

    async def keep(self) -> None:
        """Write it from time to time, for ever."""
        while True:
            await self.write("working")
            await asyncio.sleep(BUSY_SECONDS if self._numbers()["running"] else IDLE_SECONDS)

    async def write(self, state: str) -> None:
        """Write it once. It serves onlookers only: a fault is logged, and work goes on."""
        metadata = {"state": state, "pid": str(os.getpid()), "version": __version__}
        metadata |= {name: str(number) for name, number in self._numbers().items()}
        try:
            await (await self._ledger.store()).put(layout.worker(self._worker), b"", metadata=metadata)
        except TransportError as exc:
            log.warning("The worker's status could not be written: %s", exc)
