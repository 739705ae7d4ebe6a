"""Fleets and batches that never were: what workers would have left in storage, so that many can be looked at cheaply."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ai4s.jobq import App, layout
from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.call_progress import CallProgress
from ai4s.jobq.distribution import Distribution
from ai4s.jobq.entry_notes import Written, notes
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import BatchMeta, BatchTotal, Call, Cause, Failure
from ai4s.jobq.overview import current
from ai4s.jobq.packing import Code, Packed, failed
from ai4s.jobq.requests_made import to_text

AT_A_TIME = 64
ENVIRONMENTS = ("kubernetes", "slurm", "local")


def worker_status(number: int, now: float, *, batch: str = "") -> dict[str, str]:
    """The metadata of a worker at work, with two calls that run."""
    times = Distribution()
    times.add(0.2 * (1 + number % 50), n=100)
    calls = [
        current.CurrentCall(
            layout.packed_call_id(batch or "some", 2 * number + place),
            "proj.step",
            now - 60 * place,
            CallProgress(place, 10, "at work"),
        )
        for place in range(2)
    ]
    text, _ = current.to_text(calls)
    counts = {"begun": 102, "succeeded": 95, "failed": 3, "retried": 2, "dead": 1, "preempted": number % 3, "deaths": 0, "lost": 0}
    return {
        **{name: str(count) for name, count in counts.items()},
        "state": "working",
        "pid": str(1000 + number),
        "version": "4.0.0",
        "host": f"node-{number:04d}",
        "environment": ENVIRONMENTS[number % len(ENVIRONMENTS)],
        "slots": "4",
        "running": "2",
        "started": f"{now - 3600:.0f}",
        "queues": "default",
        "cpu": "180.0",
        "memory": str(2 * 1024**3),
        "rate": "0.5",
        "requests": to_text({"queue_receive": 400, "queue_renew": 50, "blob_put": 120}),
        "runs": times.to_text(),
        "waits": times.to_text(),
        "calls": text,
    } | ({"batches": f"{batch}=2"} if batch else {})


async def put_workers(ledger: Ledger, count: int, *, batch: str = "") -> None:
    """So many workers at work."""
    store, now = await ledger.store(), await ledger.transport.server_time()
    await _all(
        store.put(layout.worker(f"node-{number:04d}-1-abcd"), b"", metadata=worker_status(number, now, batch=batch))
        for number in range(count)
    )


async def put_batch(ledger: Ledger, name: str, calls: int, *, packs: int = 25, entries: int = 400, task: str = "proj.step") -> None:
    """A batch of `calls` of which nine tenths have ended in so many entries, each twentieth as failed."""
    store, now = await ledger.store(), await ledger.transport.server_time()
    batch = BatchLedger(ledger, name)
    await batch.put_meta(BatchMeta(Call(layout.packed_call_id(name, 0), task, "default", b"", now - 600)))
    size = calls // packs
    inputs = (
        store.put(layout.pack_input(name, pack), b"x", metadata={"first": str(pack * size), "count": str(size)})
        for pack in range(packs)
    )
    await _all(inputs)
    per_pack = entries // packs
    await _all(
        store.put(layout.log_entry(name, layout.root_log(pack), seq), b"x", metadata=_entry(pack * size, size, seq, per_pack, now))
        for pack in range(packs)
        for seq in range(per_pack)
    )
    await batch.say_total(BatchTotal(calls, packs, ended=True))
    await batch.bury("default")


def _entry(first: int, size: int, seq: int, per_pack: int, now: float) -> dict[str, str]:
    share = size * 9 // 10 // per_pack
    start = first + seq * share
    failure = Failure(Cause.RAISED, "ValueError" if seq % 2 else "proj.errors.NoModel", "no")
    outcomes = [
        failed(index, 1, 0.5, failure) if index % 20 == 7 else Packed(index, Code.VALUE, 1, 0.1, b"x")
        for index in range(start, start + share)
    ]
    return notes(outcomes, 0, Written(f"node-{seq:04d}-1-abcd", now - 60 + seq, {"blob_put": 1, "queue_renew": 2}))


async def put_letters(ledger: Ledger, count: int, queue: str = "default") -> None:
    """So many dead letters that nobody can read."""
    store = await ledger.store()
    names = (layout.dead_letter(queue, layout.call_id("abcdefghijklmnop", number), 1) for number in range(count))
    metadata = {"task": "proj.step", "cause": "raised", "error": "ValueError", "message": "it%20broke"}
    await _all(store.put(name, b"x", metadata=metadata) for name in names)


def make(app: App, *queues: str) -> None:
    """The app's container, and these queues of it."""

    async def do(ledger: Ledger) -> None:
        await ledger.store()
        for queue in queues or ("default",):
            await ledger.queue(queue)

    app.client.run(do)


async def _all(works: Iterable[Any]) -> None:
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(work: Any) -> None:
        async with room:
            await work

    await asyncio.gather(*map(one, works))
