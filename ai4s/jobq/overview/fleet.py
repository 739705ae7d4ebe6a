"""The workers of an app as one listing tells of them: each writes its status into the metadata of an empty blob.

What is no number where one belongs counts as 0: a status is for onlookers, and one that somebody spoilt must not hide the others.

Next: `worker/status.py`, which writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .. import layout
from ..client import WORKER_SEEN_SECONDS
from ..ledger import Ledger
from ..printable import printable
from ..transports.base import BlobInfo

SILENT, STOPPED = "silent", "stopped"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker last said of itself.

    `state` is "working", "draining", "stopped", or "silent" if it was not heard of for 3 minutes: it is gone, or cannot reach the
    storage. `heard_seconds` is how long ago that was, up to a minute for an idle worker. `slots` is the room for calls, `running`
    how many run. The counts are of attempts since it started: `succeeded`, `failed` for good, `retried`, `lost` to a lease that ran
    out, and `fenced`: another one had ended the call. `rate` is in calls that ended a second, over its life; 0 where that is not
    known. `batches` says how many calls of a batch run, `trouble` what keeps it from its queues.
    """

    id: str
    host: str
    state: str
    heard_seconds: float
    up_seconds: float | None = None
    pid: int = 0
    version: str = ""
    queues: tuple[str, ...] = ()
    slots: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    lost: int = 0
    fenced: int = 0
    rate: float = 0.0
    batches: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""

    @property
    def is_live(self) -> bool:
        """Whether it works, as far as is known."""
        return self.state not in (SILENT, STOPPED)


async def workers(ledger: Ledger) -> list[WorkerStatus]:
    """All workers whose statuses are there, those that have ended as well, by id."""
    store, now = await ledger.store(), await ledger.transport.server_time()
    listing = store.list(layout.WORKERS, with_metadata=True)
    return [_status(info, now) async for info in listing]


def running_calls(found: Iterable[WorkerStatus]) -> Counter[str]:
    """How many calls of each batch the workers that live say to run."""
    running = Counter[str]()
    for worker in found:
        if worker.is_live:
            running.update(worker.batches)
    return running


def _status(info: BlobInfo, now: float) -> WorkerStatus:
    said, name = info.metadata, printable(info.name.removeprefix(layout.WORKERS))
    heard_seconds = max(0.0, now - info.modified)
    state = printable(said.get("state", "working"))
    if state != STOPPED and heard_seconds >= WORKER_SEEN_SECONDS:
        state = SILENT
    started = _number(said, "started")
    up_seconds = max(1.0, info.modified - started) if started else None
    counts = {each: _number(said, each) for each in ("pid", "slots", "running", "succeeded", "failed", "retried", "lost", "fenced")}
    return WorkerStatus(
        id=name,
        host=name.rsplit("-", 2)[0],
        state=state,
        heard_seconds=heard_seconds,
        up_seconds=up_seconds,
        version=printable(said.get("version", "")),
        queues=tuple(printable(said.get("queues", "")).split()),
        rate=(counts["succeeded"] + counts["failed"]) / up_seconds if up_seconds else 0.0,
        batches=_batches(said),
        trouble=printable(said.get("trouble", "")),
        **counts,
    )


def _batches(said: Mapping[str, str]) -> dict[str, int]:
    pairs = (pair.partition("=") for pair in said.get("batches", "").split())
    return {printable(name): int(count) for name, _, count in pairs if _is_count(count)}


def _number(said: Mapping[str, str], name: str) -> int:
    text = said.get(name, "")
    return int(text) if _is_count(text) else 0


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 15
