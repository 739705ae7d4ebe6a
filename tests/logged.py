"""Batches behind an app's back: log entries as a worker would write them, and what a producer has put."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from ai4s.jobq import App, layout
from ai4s.jobq.batches import BatchLedger, PackInfo
from ai4s.jobq.codec import codec_named
from ai4s.jobq.entry_notes import Written, notes
from ai4s.jobq.failures import failure_of
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import BatchTotal, EntryHead, PackHeader
from ai4s.jobq.packing import Code, Packed, entry_bytes, failed
from ai4s.jobq.ranges import to_text

CANCELLED = object()
"""Stands for the outcome of a cancelled call."""


def packed(index: int, value: object, codec: str = "cloudpickle") -> Packed:
    """The outcome of a call: an exception is a failure, all else a value."""
    if isinstance(value, Exception):
        return failed(index, 1, 0.5, failure_of(value, codec_named(codec)))
    if value is CANCELLED:
        return Packed(index, Code.CANCELLED, 0, 0.0, b"")
    return Packed(index, Code.VALUE, 1, 0.5, codec_named(codec).dumps(value).data)


async def write(
    ledger: Ledger, batch: str, log: str, seq: int, values: Mapping[int, object], *, gives: tuple[int, ...] = ()
) -> None:
    """Put one entry of a log."""
    outcomes = [packed(index, value) for index, value in values.items()]
    head = EntryHead(secrets.token_hex(8), "worker-1", await ledger.transport.server_time(), 0, "", gives=to_text(gives))
    data = entry_bytes(ledger.wire, layout.log_entry(batch, log, seq), head=head, outcomes=outcomes)
    metadata = notes(outcomes, len(gives), Written("worker-1", head.ended, {}))
    assert await BatchLedger(ledger, batch).put_entry(log, seq, data, metadata)


def log_entry(
    app: App, batch: str, values: Mapping[int, object], *, log: str = "000000", seq: int = 0, gives: tuple[int, ...] = ()
) -> None:
    """As `write`, from a plain test."""
    app.client.run(lambda ledger: write(ledger, batch, log, seq, values, gives=gives))


def headers(app: App, queue: str = "default") -> list[PackHeader]:
    """The packs whose messages are visible, by run and number: messages may overtake each other."""

    async def ask(ledger: Ledger) -> list[PackHeader]:
        texts = await (await ledger.queue(queue)).peek(32)
        found = [ledger.wire.unseal_message(text, queue) for text in texts]
        return sorted((header for header in found if isinstance(header, PackHeader)), key=lambda header: (header.run, header.pack))

    return app.client.run(ask)


def inputs(app: App, batch: str) -> list[PackInfo]:
    """The packs whose inputs are there."""

    async def ask(ledger: Ledger) -> list[PackInfo]:
        return [info async for info in BatchLedger(ledger, batch).packs()]

    return app.client.run(ask)


def keys(app: App, batch: str) -> list[str]:
    """The keys of all calls that are there, in their order."""

    async def ask(ledger: Ledger) -> list[str]:
        there = BatchLedger(ledger, batch)
        return [key async for info in there.packs() for key in await there.keys(info)]

    return app.client.run(ask)


def total(app: App, batch: str) -> BatchTotal | None:
    """What was said of a batch's size."""
    return app.client.run(lambda ledger: BatchLedger(ledger, batch).total())
