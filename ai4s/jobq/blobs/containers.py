"""Containers with data of users: reads, writes, and files and folders there and back. For the portal's loop.

One process has one connection pool and one credential for each place, and so many requests under way at a time, whoever asks. A
file is complete under its name or not there: it is written beside, and renamed once all bytes of one version of its blob are in it.

Next: `blobs.py`, which users hold; `cache.py` for what a machine keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AccessDenied, JobQError, NotFound, Unreachable
from ..spill import BLOCK_BYTES, BLOCKS_IN_FLIGHT
from ..transports import open_transport
from ..transports.base import Blob, BlobInfo, Store, Transport
from ..transports.place import Place
from . import cache as blob_cache
from .cache import BlobCache
from .names import checked_name
from .whole_files import beside, inside, size_to_send, to_its_end, walked, write_at, write_whole

T = TypeVar("T")

REQUESTS_AT_ONCE = 32
"""Requests of one process for blobs of users, at a time: enough to hide the latency of small ones, too few to starve its calls."""

LARGE_AT_ONCE = 4
"""Transfers in blocks at a time, of BLOCKS_IN_FLIGHT blocks each, which all are in memory."""

FIRST_BYTES = 1024 * 1024
"""Asked for at first, when the size is not known yet."""

DOWNLOADS_AT_ONCE = 128
"""Downloads to files that have begun: each may hold FIRST_BYTES while it waits for its turn among the large ones."""

READ_TRIES = 5
"""How often a download begins again because the blob was replaced meanwhile."""

Sink = Callable[[int, bytes], Awaitable[None]]
"""Takes bytes that belong at this offset."""


class Containers:
    """The containers that one process uses, and the places that it has opened for them beside its app's own."""

    def __init__(self, environ: Mapping[str, str], cache_bytes: int) -> None:
        self._environ = environ
        self._opened: dict[str, asyncio.Task[Transport]] = {}
        self._containers: dict[tuple[str, str], Container] = {}
        self.cache = BlobCache(cache_bytes)
        self.room = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self.large = asyncio.Semaphore(LARGE_AT_ONCE)
        self.downloads = asyncio.Semaphore(DOWNLOADS_AT_ONCE)

    async def container(self, place: Place, name: str, own: Transport | None) -> Container:
        """A container of a place, which is the app's own if that is given, and else opened now, once."""
        key = (place.label, name)
        if key not in self._containers:
            transport = own or await self._transport(place)
            self._containers.setdefault(key, Container(self, transport.store(name), place.label, name))
        return self._containers[key]

    async def _transport(self, place: Place) -> Transport:
        opening = self._opened.get(place.label)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception())):
            opening = self._opened[place.label] = asyncio.create_task(open_transport(place, environ=self._environ))
        return await asyncio.shield(opening)

    async def close(self) -> None:
        """Close the places that were opened here."""
        for opened in await asyncio.gather(*self._opened.values(), return_exceptions=True):
            if not isinstance(opened, BaseException):
                await opened.close()


class Replaced(Exception):
    """The blob has another version than the one that is being read."""


class Container:
    """One container, and what is known of it."""

    def __init__(self, shared: Containers, store: Store, place: str, name: str) -> None:
        self._shared, self._store = shared, store
        self.place, self.name = place, name
        self._is_there = False

    async def create(self) -> None:
        """Make the container, the first time."""
        if not self._is_there:
            await self._store.create()
            self._is_there = True

    # requests

    async def _request(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Make a request, when it is its turn; "not there" says what it is that is not there."""
        try:
            async with self._shared.room:
                answer = await ask()
        except NotFound as exc:
            await self.check()
            raise NotFound(f"There is no blob {what!r} in container {self.name!r} of {self.place}.") from exc
        self._is_there = True
        return answer

    async def check(self) -> None:
        """Raise NotFound that says what to do if there is no such container."""
        if self._is_there:
            return
        try:
            await self._store.check()
        except AccessDenied:  # a right to blobs alone: as far as one may know, it is the blob that is not there
            return
        except NotFound as exc:
            raise NotFound(
                f"There is no container {self.name!r} at {self.place}. Say blobs({self.name!r}, create=True) to have it made, "
                "or look for a slip of the pen."
            ) from exc
        self._is_there = True

    async def get(self, name: str, start: int, length: int, *, if_none_match: str | None = None) -> Blob | None:
        """A range of a blob; see `Store.get`."""
        return await self._request(name, partial(self._store.get, name, start=start, length=length, if_none_match=if_none_match))

    async def first(self, name: str) -> Blob:
        """The first bytes of a blob, all of a small one."""
        found = await self.get(name, 0, FIRST_BYTES)
        assert found is not None  # no etag was named
        return found

    async def same(self, info: BlobInfo, start: int, length: int) -> bytes:
        """A range of this version of a blob. Raises Replaced."""
        found = await self.get(info.name, start, length)
        if found is None or found.info.etag != info.etag:
            raise Replaced(f"The blob {info.name!r} was replaced while it was read.")
        if len(found.data) != min(length, info.size - start):
            raise Unreachable(f"get {info.name}: {len(found.data)} bytes came instead of {length}.", maybe_done=False)
        return found.data

    async def exists(self, name: str) -> bool:
        """Whether there is such a blob."""
        try:
            await self._request(name, partial(self._store.head, name))
        except NotFound:
            await self.check()
            return False
        return True

    async def delete(self, name: str) -> None:
        """Remove a blob, if it is there."""
        try:
            await self._request(name, partial(self._store.delete, name))
        except NotFound:
            await self.check()

    async def put(self, name: str, data: bytes | Path, *, overwrite: bool = True) -> None:
        """Write a blob; raises AlreadyExists if it is there and not to be overwritten, DeclarationError for what can be no name."""
        checked_name(name)
        size = len(data) if isinstance(data, bytes) else await asyncio.to_thread(size_to_send, data)
        put = partial(self._store.put, name, data, if_absent=not overwrite)
        if size <= BLOCK_BYTES:
            await self._request(name, put)
            return
        async with self._shared.large:
            await self._request(name, put)

    async def names(self, prefix: str) -> AsyncIterator[str]:
        """The names of all blobs that begin so."""
        async for info in self._infos(prefix, with_metadata=False):
            yield info.name

    async def _infos(self, prefix: str, *, with_metadata: bool) -> AsyncIterator[BlobInfo]:
        try:
            async for info in self._store.list(prefix, with_metadata=with_metadata):
                yield info
        except NotFound:
            await self.check()
            raise

    # whole blobs

    async def read(self, name: str) -> bytes:
        """A whole blob."""
        return await self._persisted(name, partial(self._read, name))

    async def _read(self, name: str) -> bytes:
        first = await self.first(name)
        if first.info.size == len(first.data):
            return first.data
        data = bytearray(first.info.size)

        async def sink(start: int, block: bytes) -> None:
            data[start : start + len(block)] = block

        await self._pour(first, sink)
        return bytes(data)

    async def download(self, name: str, path: Path, *, cached: bool = False) -> None:
        """A blob in a file, which replaces one that is there."""
        fetch = self._to_file_by_cache if cached else self._to_file
        async with self._shared.downloads:
            await self._persisted(name, partial(fetch, name, path))

    async def _persisted(self, name: str, read: Callable[[], Awaitable[T]]) -> T:
        """Begin again while the blob is replaced meanwhile."""
        for _ in range(READ_TRIES):
            try:
                return await read()
            except Replaced:
                continue
        raise Unreachable(f"get {name}: it was replaced {READ_TRIES} times while it was read.", maybe_done=False)

    async def _to_file(self, name: str, path: Path) -> None:
        await self._rest_to_file(await self.first(name), path)

    async def _rest_to_file(self, first: Blob, path: Path) -> None:
        if first.info.size == len(first.data):
            await to_its_end(write_whole, path, first.data)
            return
        async with beside(path) as part:
            await self._pour_into(first, part)

    async def _to_file_by_cache(self, name: str, path: Path) -> None:
        """As `_to_file`, from this machine's disk if it holds the version that is there now."""
        try:
            entry = await asyncio.to_thread(blob_cache.entry, self.place, self.name, name)
            known = await asyncio.to_thread(blob_cache.etag_of, entry)
        except OSError:  # no folder that can be trusted
            await self._to_file(name, path)
            return
        first = await self.get(name, 0, FIRST_BYTES, if_none_match=known)
        if first is not None:
            known = first.info.etag
            if not await self._kept(entry, first):
                await self._rest_to_file(first, path)
                return
        async with beside(path) as part:
            if not await to_its_end(blob_cache.copy_out, entry, known, part):  # it has just made room for another
                await self._pour_into(first or await self.first(name), part)

    async def _kept(self, entry: Path, first: Blob) -> bool:
        """Whether the machine could keep this version, as far as one can see now."""
        if not self._shared.cache.takes(first.info.size):
            return False
        try:
            await self._shared.cache.keep(entry, first.info, partial(self._pour_into, first))
        except OSError:  # a full disk, which the target may not be on
            return False
        return True

    async def _pour_into(self, first: Blob, path: Path) -> None:
        async def sink(start: int, block: bytes) -> None:
            await to_its_end(write_at, path, block, start)

        await self._pour(first, sink)

    async def _pour(self, first: Blob, sink: Sink) -> None:
        """Have all bytes of this version taken, in any order. Raises Replaced."""
        info, begun = first.info, len(first.data)
        await sink(0, first.data)
        if begun == info.size:
            return
        starts = iter(range(begun, info.size, BLOCK_BYTES))

        async def pour() -> None:
            for start in starts:
                await sink(start, await self.same(info, start, BLOCK_BYTES))

        async with self._shared.large:
            await side_by_side(pour, BLOCKS_IN_FLIGHT)

    # folders

    async def download_folder(self, prefix: str, folder: Path, *, cached: bool = False) -> int:
        """All blobs below a prefix as files below a folder; returns how many."""
        infos, count = self._infos(prefix, with_metadata=True), 0
        turn = asyncio.Lock()

        async def download() -> None:
            nonlocal count
            while (info := await _next(infos, turn)) is not None:
                if not _is_folder(info):
                    await self._to_folder(info.name, folder, inside(folder, info.name, prefix), cached=cached)
                    count += 1

        await side_by_side(download, REQUESTS_AT_ONCE)
        return count

    async def _to_folder(self, name: str, folder: Path, path: Path, *, cached: bool) -> None:
        try:
            await self.download(name, path, cached=cached)
        except (IsADirectoryError, NotADirectoryError, FileExistsError) as exc:
            raise JobQError(
                f"The blob {name!r} cannot be a file below {folder}: a folder is there, or a file where it wants a folder, as of "
                "'a' and 'a/b'. Download it by its name, to a path of your choice."
            ) from exc

    async def upload_folder(self, folder: Path, prefix: str) -> int:
        """All files below a folder as blobs below a prefix; returns how many."""
        names, count = walked(folder), 0
        turn = asyncio.Lock()

        async def upload() -> None:
            nonlocal count
            while (name := await _next(names, turn)) is not None:
                await self.put(prefix + name, folder / name)
                count += 1

        await side_by_side(upload, REQUESTS_AT_ONCE)
        return count


async def side_by_side(work: Callable[[], Coroutine[Any, Any, None]], times: int) -> None:
    """Run so many at a time, each to its end; raises the first error."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(times):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed.exceptions[0].__cause__


async def _next(several: AsyncIterator[T], turn: asyncio.Lock) -> T | None:
    async with turn:
        return await anext(several, None)


def _is_folder(info: BlobInfo) -> bool:
    """Whether it only marks a folder, as accounts with hierarchical names and some tools do."""
    return info.size == 0 and (info.name.endswith("/") or info.metadata.get("hdi_isfolder", "").lower() == "true")
