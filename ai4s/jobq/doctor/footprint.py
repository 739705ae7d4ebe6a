"""What lies at the place: messages by queue, and whether they can be read here; blobs by folder. It says where it stops counting.

Next: back to `examination.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from .. import layout
from ..client import Client
from ..errors import AccessDenied, NotFound, TransportError
from ..ledger import Ledger
from ..overview.queues import Queues
from ..transports.base import MAX_PAGE, MAX_RECEIVE
from .finding import Finding, fine, warning

FOLDERS = (
    layout.RESULTS,
    layout.ARGUMENTS,
    layout.VALUES,
    layout.PAYLOADS,
    layout.BATCHES,
    layout.RETRIES,
    layout.DEAD_LETTERS,
    layout.CHECKPOINTS,
    layout.LOGS,
    layout.KEYS,
    layout.WORKERS,
)

DAY_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class _Folder:
    """What is known of a folder; `is_whole` unless there is more than one page."""

    name: str
    blobs: int
    size: int
    oldest: float
    is_whole: bool

    def __str__(self) -> str:
        more = "" if self.is_whole else " and more"
        return f"{self.name} {self.blobs:,}{more} ({_bytes(self.size)})"


async def queues(client: Client, ledger: Ledger) -> AsyncIterator[Finding]:
    """Each queue: how many messages, and whether those that are visible can be read with this process's keys and version."""
    view = Queues(client)
    try:
        found = await view.statuses(ledger)
    except (NotFound, AccessDenied):
        return  # which the rights have told
    for queue in found:
        told = f"about {queue.calls:,} calls in {queue.messages:,} messages{', paused' if queue.paused else ''}"
        seen = []
        with suppress(TransportError):
            seen = await view.messages(ledger, MAX_RECEIVE, queue.name)
        strange = [each.why for each in seen if each.kind == "unreadable"]
        if strange:
            advice = "Another key (JOBQ_SIGNING_KEYS), a later version, or somebody else's: workers make dead letters of them."
            yield warning(f"queue {queue.name}", f"{told}; {len(strange)} of {len(seen)} cannot be read here: {strange[0]}", advice)
        elif queue.paused:
            yield warning(f"queue {queue.name}", told, "Workers begin nothing of it until `resume`.")
        else:
            yield fine(f"queue {queue.name}", told)


async def blobs(ledger: Ledger) -> AsyncIterator[Finding]:
    """What each folder holds, in so far as a page of its listing tells."""
    store = ledger.transport.store(layout.container_name(ledger.app))

    async def look(prefix: str) -> _Folder:
        count, size, oldest = 0, 0, time.time()
        async for info in store.list(prefix, with_metadata=True):
            if count == MAX_PAGE:
                return _Folder(prefix, count, size, oldest, is_whole=False)
            count, size, oldest = count + 1, size + info.size, min(oldest, info.modified)
        return _Folder(prefix, count, size, oldest, is_whole=True)

    try:
        found = [folder for folder in await asyncio.gather(*map(look, FOLDERS)) if folder.blobs]
    except (NotFound, AccessDenied):
        return
    yield fine("blobs", ", ".join(map(str, found)) or "none")
    for folder in found:
        if folder.name == layout.BATCHES:
            days = (time.time() - folder.oldest) / DAY_SECONDS
            yield fine("batches", f"the oldest that was looked at is {days:.1f} days old; `gc --older-than` removes old ones")


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
