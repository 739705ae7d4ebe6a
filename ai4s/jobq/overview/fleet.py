"""The workers of an app as one listing tells of them: each writes its status into the metadata of a blob.

What is no number where one belongs counts as 0: a status is for onlookers, and one that somebody spoilt must not hide the others.

Next: `worker/status.py`, which writes it; `current.py` for the calls that run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .. import layout, requests_made
from ..client import WORKER_SEEN_SECONDS
from ..distribution import Distribution
from ..ledger import Ledger
from ..printable import printable
from ..transports.base import BlobInfo
from . import current
from .current import CurrentCall

__all__ = ["CurrentCall", "WorkerStatus", "calls_of", "find_call", "running_calls", "workers"]

SILENT, STOPPED = "silent", "stopped"
COUNTS = ("pid", "slots", "running", "begun", "succeeded", "failed", "retried", "dead", "lost", "fenced", "deaths", "preempted")
MAX_SAID_CHARS = 300
MOST_DECIMAL = 1e12
"""What claims more is nonsense; and sums must stay finite."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker last said of itself.

    `state` is "working", "draining", "stopped", or "silent" if it was not heard of for 3 minutes: it is gone, or cannot reach the
    storage. `heard_seconds` is how long ago that was, up to a minute for an idle worker. `environment` is where it runs, such as
    "slurm". `slots` is the room for calls, `running` how many run; `calls` are these, the longest first, and `more_calls` how many
    beside them its metadata had no room for. `trouble` is what keeps it from its queues.

    The counts are of attempts since it started: `begun`, `succeeded`, `failed` for good, `retried`, `dead` letters, `lost` to a
    lease that ran out, `fenced` (another one had ended the call), `deaths` of their process, and `preempted`: given back since the
    worker was to go. `requests` are its own to the storage, by kind, as far as it has counted; `run_times` how long attempts took,
    `wait_times` how long calls waited until their first one began. `rate` is in calls that ended a second, between its last two
    words; 0 where that is not known. `cpu_percent` (of one core, in the same time) and `memory_bytes` are its own and its
    children's. `batches` says how many calls of a batch run.
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
    environment: str = ""
    begun: int = 0
    dead: int = 0
    deaths: int = 0
    preempted: int = 0
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    run_times: Distribution = field(default_factory=Distribution)
    wait_times: Distribution = field(default_factory=Distribution)
    calls: tuple[CurrentCall, ...] = ()
    more_calls: int = 0

    @property
    def is_live(self) -> bool:
        """Whether it works, as far as is known."""
        return self.state not in (SILENT, STOPPED)


async def workers(ledger: Ledger) -> list[WorkerStatus]:
    """All workers whose statuses are there, those that have ended as well, by id."""
    store, now = await ledger.store(), await ledger.transport.server_time()
    listing = store.list(layout.WORKERS, with_metadata=True)
    return [_status(info, now) async for info in listing]


async def calls_of(ledger: Ledger, worker: WorkerStatus) -> tuple[CurrentCall, ...]:
    """All calls that a worker says to run: a request only where there are more of them than its metadata holds."""
    if not worker.more_calls:
        return worker.calls
    blob = await (await ledger.store()).get(layout.worker(worker.id))
    return worker.calls if blob is None else current.from_body(blob.data)


async def find_call(ledger: Ledger, found: Iterable[WorkerStatus], call: str) -> CurrentCall | None:
    """The call with this id, if a worker that lives says to run it; of several, who said so last."""
    live = sorted((worker for worker in found if worker.is_live), key=lambda worker: worker.heard_seconds)
    for worker in live:
        if (current_call := _named(worker.calls, call)) is not None:
            return current_call
    for worker in live:
        if worker.more_calls and (current_call := _named(await calls_of(ledger, worker), call)) is not None:
            return current_call
    return None


def _named(calls: Iterable[CurrentCall], name: str) -> CurrentCall | None:
    return next((call for call in calls if call.id == name), None)


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
    state = _text(said, "state") or "working"
    if state != STOPPED and heard_seconds >= WORKER_SEEN_SECONDS:
        state = SILENT
    started = _number(said, "started")
    up_seconds = max(1.0, info.modified - started) if started else None
    counts = {each: _number(said, each) for each in COUNTS}
    return WorkerStatus(
        id=name,
        host=_text(said, "host") or name.rsplit("-", 2)[0],
        state=state,
        heard_seconds=heard_seconds,
        up_seconds=up_seconds,
        version=_text(said, "version"),
        environment=_text(said, "environment"),
        queues=tuple(printable(said.get("queues", "")).split()),
        rate=_rate(said, counts, up_seconds),
        batches=_batches(said),
        trouble=_text(said, "trouble"),
        cpu_percent=_decimal(said, "cpu") or 0.0,
        memory_bytes=_number(said, "memory"),
        requests=requests_made.from_text(said.get("requests", "")),
        run_times=Distribution.from_text(said.get("runs", "")),
        wait_times=Distribution.from_text(said.get("waits", "")),
        calls=current.from_text(said.get("calls", "")),
        more_calls=_number(said, "more"),
        **counts,
    )


def _rate(said: Mapping[str, str], counts: Mapping[str, int], up_seconds: float | None) -> float:
    """As the worker says; of an older one, over its life."""
    rate = _decimal(said, "rate")
    if rate is not None:
        return rate
    return (counts["succeeded"] + counts["failed"]) / up_seconds if up_seconds else 0.0


def _batches(said: Mapping[str, str]) -> dict[str, int]:
    pairs = (pair.partition("=") for pair in said.get("batches", "").split())
    return {printable(name): int(count) for name, _, count in pairs if _is_count(count)}


def _text(said: Mapping[str, str], name: str) -> str:
    return printable(said.get(name, "")[:MAX_SAID_CHARS])


def _number(said: Mapping[str, str], name: str) -> int:
    text = said.get(name, "")
    return int(text) if _is_count(text) else 0


def _decimal(said: Mapping[str, str], name: str) -> float | None:
    text = said.get(name, "")
    try:
        number = float(text[:20])
    except ValueError:
        return None
    return number if 0 <= number <= MOST_DECIMAL else None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 15
