"""Large bytes, to blobs and back: in blocks, several at a time, measured and hashed on the way.

A Spill says how long the bytes are and what their SHA-256 is; what is read back is compared with both, so a missing,
truncated or swapped blob is an error and never a wrong value. To and from files, no more than a few blocks are in memory; to and
from memory, nothing is copied but blocks.

Next: `ledger.py`, which knows the blobs' names.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path

from .errors import AlreadyExists, Malformed, NotFound
from .message import Spill
from .parts import Parts
from .transports.base import Blob, Source, Store

BLOCK_BYTES = 4 * 1024 * 1024
BLOCKS_IN_FLIGHT = 4


async def digest(source: Source) -> Spill:
    """Length and hash of bytes or of a file, reckoned off the event loop."""
    return await asyncio.to_thread(_digest, source)


def _digest(source: Source) -> Spill:
    if isinstance(source, Path):
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256")
            return Spill(file.tell(), sha256.hexdigest())
    sha256, parts = hashlib.sha256(), source if isinstance(source, Parts) else Parts.of(source)
    for piece in parts.pieces:
        sha256.update(piece)
    return Spill(parts.size, sha256.hexdigest())


async def keep(store: Store, name: str, source: Source) -> Spill:
    """Put bytes unless the blob is there, and hash them meanwhile.

    A blob that is there already does no harm, since its reader will compare length and digest.
    """
    hashing = asyncio.create_task(digest(source))
    try:
        with suppress(AlreadyExists):
            await store.put(name, source, if_absent=True)
    except BaseException:
        hashing.cancel()
        await asyncio.gather(hashing, return_exceptions=True)
        raise
    return await hashing


async def fetch(store: Store, name: str, spill: Spill) -> bytes:
    """The spilled bytes in memory; raises Malformed if they are missing or not the ones that were spilled."""
    return bytes(await fetch_large(store, name, spill))


async def fetch_large(store: Store, name: str, spill: Spill) -> bytearray:
    """As `fetch`, into memory that may be written to and is never copied as a whole."""
    data, taken = bytearray(), 0

    def take(block: bytes) -> None:
        nonlocal data, taken
        # Not before the first block has come, as the size may lie.
        data = data or bytearray(spill.size)
        with memoryview(data) as view:  # bytes would be copied once more on their way into a bytearray
            view[taken : taken + len(block)] = block
        taken += len(block)

    await _pour(store, name, spill, take)
    return data


async def fetch_to(store: Store, name: str, spill: Spill, path: Path) -> None:
    """The spilled bytes in a file, which is complete when this returns; raises Malformed as `fetch` does."""
    with path.open("wb") as file:
        await _pour(store, name, spill, file.write)
        await asyncio.to_thread(file.flush)


async def _pour(store: Store, name: str, spill: Spill, take: Callable[[bytes], object]) -> None:
    """Have `take` take the blocks in order, on a thread; the last one only after all were verified."""
    sha256, size, pending = hashlib.sha256(), 0, b""

    def digest_and_take(block: bytes, before: bytes) -> None:
        sha256.update(block)
        if before:
            take(before)

    async with aclosing(_ahead(store, name, spill.size)) as blobs:
        async for blob in blobs:
            if blob.info.size != spill.size:
                size = blob.info.size
                break  # a size that lies must cost neither memory nor a request for each block that is not there
            await asyncio.to_thread(digest_and_take, blob.data, pending)
            size, pending = size + len(blob.data), blob.data
    if size != spill.size or sha256.hexdigest() != spill.sha256:
        raise Malformed(f"The blob {name!r} is not what was spilled there ({size} of {spill.size} bytes, or other ones).")
    await asyncio.to_thread(take, pending)


async def _ahead(store: Store, name: str, size: int) -> AsyncGenerator[Blob, None]:
    requests = (asyncio.create_task(_block(store, name, at)) for at in range(0, size, BLOCK_BYTES))
    waiting = _some(requests, BLOCKS_IN_FLIGHT)
    try:
        while waiting:
            blob = await waiting[0]
            waiting = waiting[1:] + _some(requests, 1)
            yield blob
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _some(requests: Iterator[asyncio.Task[Blob]], count: int) -> list[asyncio.Task[Blob]]:
    return [request for _, request in zip(range(count), requests, strict=False)]


async def _block(store: Store, name: str, start: int) -> Blob:
    try:
        found = await store.get(name, start=start, length=BLOCK_BYTES)
    except NotFound as exc:
        raise Malformed(f"The blob {name!r} is missing.") from exc
    assert found is not None  # no etag was named
    return found
