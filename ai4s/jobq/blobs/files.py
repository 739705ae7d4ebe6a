"""A blob read as a file: ranges of one version, fetched when they are needed, and the next one ahead of who reads in order.

Who jumps about gets small ranges; with each range that follows its predecessor they grow. Fetching belongs to the portal's loop;
the files hold a position and nothing else.

Next: back to `blobs.py`.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

from ..client import Client
from ..errors import JobQError
from ..ledger import Ledger
from ..spill import BLOCK_BYTES
from ..transports.base import BlobInfo
from .containers import Container, Replaced

BUFFER_BYTES = 256 * 1024
"""The first range after a jump, and what a file object asks for at a time."""


class Ranges:
    """The ranges of one version of a blob, for one reader."""

    def __init__(self, container: Container, info: BlobInfo, first: bytes) -> None:
        self._container, self._info = container, info
        self._loop = asyncio.get_running_loop()
        self._held, self._start, self._window = first, 0, BUFFER_BYTES
        self._ahead: tuple[int, asyncio.Task[bytes]] | None = None

    @classmethod
    async def opened(cls, container: Container, name: str) -> Ranges:
        """The ranges of the version that is there now. Raises NotFound."""
        first = await container.first(name)
        return cls(container, first.info, first.data)

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self._info.size

    async def read(self, start: int, most: int, _: Ledger | None = None) -> bytes:
        """From 1 to `most` bytes from there; none at the end. Raises JobQError if the blob has been replaced."""
        if start >= self.size or most <= 0:
            return b""
        if not self._start <= start < self._end:
            try:
                await self._fetch(start)
            except Replaced as exc:
                raise JobQError(f"The blob {self._info.name!r} was replaced while it was read: open it again.") from exc
        return self._held[start - self._start : start - self._start + most]

    @property
    def _end(self) -> int:
        return self._start + len(self._held)

    async def _fetch(self, start: int) -> None:
        """Hold the range that begins there."""
        goes_on = start == self._end
        self._window = min(2 * self._window, BLOCK_BYTES) if goes_on else BUFFER_BYTES
        if self._ahead is not None and self._ahead[0] == start:
            fetching = self._ahead[1]
            self._ahead = None
        else:
            self._drop()
            fetching = self._fetching(start)
        self._held, self._start = await fetching, start
        if goes_on and self._end < self.size:
            self._ahead = (self._end, self._fetching(self._end))

    def _fetching(self, start: int) -> asyncio.Task[bytes]:
        return asyncio.create_task(self._container.same(self._info, start, min(self._window, self.size - start)))

    def close(self) -> None:
        """Fetch nothing more; from any thread."""
        with suppress(RuntimeError):  # the loop has ended, and all its tasks with it
            self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        if self._ahead is not None:
            task = self._ahead[1]
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            task.cancel()
            self._ahead = None


class RawBlobFile(io.RawIOBase):
    """A blob under Python's buffered files."""

    def __init__(self, client: Client, ranges: Ranges) -> None:
        self._client, self._ranges, self._position = client, ranges, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go on from there; as in other files."""
        self._position = position(offset, whence, self._position, self._ranges.size)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill as much of the buffer as is at hand."""
        with memoryview(buffer).cast("B") as view:
            data = self._some(len(view))
            view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """All that is left, a range at a time; as inherited it would be a few KiB at a time."""
        whole = io.BytesIO()
        while data := self._some(BLOCK_BYTES):
            whole.write(data)
        return whole.getvalue()

    def _some(self, most: int) -> bytes:
        if self.closed:
            raise ValueError("The blob's file was closed.")
        data = self._client.run(partial(self._ranges.read, self._position, most))
        self._position += len(data)
        return data

    def close(self) -> None:
        """Fetch nothing more."""
        if not self.closed:
            self._ranges.close()
        super().close()


class AsyncBlobFile:
    """A blob to be read piece by piece from any loop. Made by `Blobs.aopen`."""

    def __init__(self, client: Client, ranges: Ranges) -> None:
        self._client, self._ranges, self._position = client, ranges, 0

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self._ranges.size

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go on from there; as in other files."""
        self._position = position(offset, whence, self._position, self._ranges.size)
        return self._position

    async def read(self, n: int = -1) -> bytes:
        """The next `n` bytes, fewer only at the end; all that is left if it is negative."""
        pieces, wanted = [], self.size if n < 0 else n
        while wanted and (piece := await self._some(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """What is left, block by block, as it comes."""
        while block := await self._some(BLOCK_BYTES):
            yield block

    async def _some(self, most: int) -> bytes:
        data = await self._client.arun(partial(self._ranges.read, self._position, most))
        self._position += len(data)
        return data


def position(offset: int, whence: int, now: int, size: int) -> int:
    """Where a seek leads; raises ValueError."""
    origins = {io.SEEK_SET: 0, io.SEEK_CUR: now, io.SEEK_END: size}
    if whence not in origins or origins[whence] + offset < 0:
        raise ValueError(f"There is no place {offset!r}, {whence!r} in a blob of {size} bytes.")
    return origins[whence] + offset
