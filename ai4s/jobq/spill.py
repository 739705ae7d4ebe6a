"""Large bytes, to blobs and back: in blocks, several at a time, measured and hashed on the way.

A Spill says how long the bytes are and what their SHA-256 is; what is read back is compared with both, so a missing,
truncated or swapped blob is an error and never a wrong value. To and from files, no more than a few blocks are in memory.

Next: `ledger.py`, which knows the blobs' names.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from .errors import Malformed, NotFound
from .message import Spill
from .transports.base import Store

BLOCK_BYTES = 4 * 1024 * 1024
BLOCKS_IN_FLIGHT = 4


async def digest(data: bytes | Path) -> Spill:
    """Length and hash of bytes or of a file, reckoned off the event loop."""
    return await asyncio.to_thread(_digest, data)


def _digest(data: bytes | Path) -> Spill:
    if isinstance(data, bytes):
        return Spill(len(data), hashlib.sha256(data).hexdigest())
    with data.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Spill(file.tell(), sha256)


async def fetch(store: Store, name: str, spill: Spill) -> bytes:
    """The spilled bytes in memory; raises Malformed if they are missing or not the ones that were spilled."""
    data = bytearray()
    async with aclosing(_blocks(store, name, spill)) as blocks:
        async for block in blocks:
            data += block
    return bytes(data)


async def fetch_to(store: Store, name: str, spill: Spill, path: Path) -> None:
    """The spilled bytes in a file, which is complete when this returns; raises Malformed as `fetch` does."""
    with path.open("wb") as file:
        async with aclosing(_blocks(store, name, spill)) as blocks:
            async for block in blocks:
                await asyncio.to_thread(file.write, block)


async def _blocks(store: Store, name: str, spill: Spill) -> AsyncGenerator[bytes, None]:
    """The blocks in order, a few requested ahead; the last one is given out only after all were verified."""
    sha256, size, pending = hashlib.sha256(), 0, b""
    async with aclosing(_ahead(store, name, spill.size)) as blocks:
        async for block in blocks:
            await asyncio.to_thread(sha256.update, block)
            size += len(block)
            if len(block) < BLOCK_BYTES and size < spill.size:
                break  # a size that lies must not cost a request for each block that is not there
            if pending:
                yield pending
            pending = block
    if size != spill.size or sha256.hexdigest() != spill.sha256:
        raise Malformed(f"The blob {name!r} is not what was spilled there ({size} of {spill.size} bytes, or other ones).")
    yield pending


async def _ahead(store: Store, name: str, size: int) -> AsyncGenerator[bytes, None]:
    starts = iter(range(0, size, BLOCK_BYTES))
    waiting = [asyncio.create_task(_block(store, name, at)) for _, at in zip(range(BLOCKS_IN_FLIGHT), starts, strict=False)]
    try:
        while waiting:
            block = await waiting[0]
            waiting.pop(0)
            waiting.extend(asyncio.create_task(_block(store, name, at)) for _, at in zip(range(1), starts, strict=False))
            yield block
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _block(store: Store, name: str, start: int) -> bytes:
    try:
        found = await store.get(name, start=start, length=BLOCK_BYTES)
    except NotFound as exc:
        raise Malformed(f"The blob {name!r} is missing.") from exc
    return found.data if found else b""
