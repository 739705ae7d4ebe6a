"""Blobs of a container, for tasks that move data: `jobq.current().blobs("container")`, and `app.blobs("container")` elsewhere.

Every method has an async twin with the prefix `a`. What a Blobs holds is a name: connections belong to the process, are opened on
first use and shared by all that it runs, so making one costs nothing, and it may travel with a call.

Next: `containers.py` for how, `files.py` for reading as from a file.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .. import layout
from ..client import Client
from ..errors import DeclarationError
from ..ledger import Ledger
from ..transports.place import AzurePlace, Place, parse_place
from .containers import Container
from .files import BUFFER_BYTES, AsyncBlobFile, Ranges, RawBlobFile
from .names import checked_container, checked_name, checked_prefix

T = TypeVar("T")
StrPath = str | os.PathLike[str]

NAMES_A_HOP = 1000
"""Names that a listing brings from one loop to another at a time."""


def blobs_of(client: Client, container: str, *, create: bool = False) -> Blobs:
    """The blobs of a container; see `App.blobs`. Raises DeclarationError for what is no name of one."""
    account, name = checked_container(container)
    if name == layout.container_name(client.name) and not account:
        raise DeclarationError(f"The container {name!r} is the app's own; what lies there is not for tasks. Take another one.")
    return Blobs(client, name, account, create)


@dataclass(frozen=True, slots=True)
class Blobs:
    """The blobs of one container. Made by `current().blobs(…)` and `app.blobs(…)`; safe to use from any thread and loop.

    Names are as in `"folder/file.txt"`. Up to 32 requests of a process are under way at a time, passing faults are gone through as
    everywhere, and what a blob's size or version does not fit is read again. All methods raise NotFound, for a blob and for a
    container that is not there, AccessDenied and Unreachable.
    """

    client: Client
    container: str
    account: str
    creates: bool

    def download(self, name: str, path: StrPath, *, cache: bool = False) -> Path:
        """Bring a blob to a file, whose folders are made and which is replaced as a whole; returns its path.

        With `cache`, the machine keeps a copy for all its workers, within JOBQ_CACHE_BYTES, and the storage is only asked
        whether there is a later version.
        """
        return self._run(partial(_download, name=name, path=Path(path), cache=cache))

    async def adownload(self, name: str, path: StrPath, *, cache: bool = False) -> Path:
        """As `download`."""
        return await self._arun(partial(_download, name=name, path=Path(path), cache=cache))

    def download_folder(self, prefix: str, path: StrPath, *, cache: bool = False) -> int:
        """Bring all blobs below `prefix` to files below a folder, many at a time; returns how many.

        `"data"` and `"data/"` mean the same, `""` the whole container. Raises JobQError for a name that would lead out of the
        folder; files that are there and have no blob stay.
        """
        return self._run(partial(_download_folder, prefix=prefix, path=Path(path), cache=cache))

    async def adownload_folder(self, prefix: str, path: StrPath, *, cache: bool = False) -> int:
        """As `download_folder`."""
        return await self._arun(partial(_download_folder, prefix=prefix, path=Path(path), cache=cache))

    def upload(self, path: StrPath, name: str, *, overwrite: bool = True) -> None:
        """Put a file's bytes into a blob, which readers see as a whole or not at all.

        Raises AlreadyExists if it is there and is not to be overwritten.
        """
        self._run(lambda container: container.put(name, Path(path), overwrite=overwrite))

    async def aupload(self, path: StrPath, name: str, *, overwrite: bool = True) -> None:
        """As `upload`."""
        await self._arun(lambda container: container.put(name, Path(path), overwrite=overwrite))

    def upload_folder(self, path: StrPath, prefix: str) -> int:
        """Put all files below a folder into blobs below `prefix`, many at a time; returns how many. Linked folders are left out."""
        return self._run(lambda container: container.upload_folder(Path(path), checked_prefix(prefix)))

    async def aupload_folder(self, path: StrPath, prefix: str) -> int:
        """As `upload_folder`."""
        return await self._arun(lambda container: container.upload_folder(Path(path), checked_prefix(prefix)))

    def exists(self, name: str) -> bool:
        """Whether there is such a blob."""
        return self._run(lambda container: container.exists(checked_name(name)))

    async def aexists(self, name: str) -> bool:
        """As `exists`."""
        return await self._arun(lambda container: container.exists(checked_name(name)))

    def read(self, name: str) -> bytes:
        """All bytes of a blob."""
        return self._run(lambda container: container.read(checked_name(name)))

    async def aread(self, name: str) -> bytes:
        """As `read`."""
        return await self._arun(lambda container: container.read(checked_name(name)))

    def write(self, name: str, data: bytes | bytearray | memoryview, *, overwrite: bool = True) -> None:
        """Put bytes into a blob, as `upload` does."""
        self._run(lambda container: container.put(name, _bytes(data), overwrite=overwrite))

    async def awrite(self, name: str, data: bytes | bytearray | memoryview, *, overwrite: bool = True) -> None:
        """As `write`."""
        await self._arun(lambda container: container.put(name, _bytes(data), overwrite=overwrite))

    def delete(self, name: str) -> None:
        """Remove a blob, if it is there."""
        self._run(lambda container: container.delete(checked_name(name)))

    async def adelete(self, name: str) -> None:
        """As `delete`."""
        await self._arun(lambda container: container.delete(checked_name(name)))

    def list(self, prefix: str = "") -> Iterator[str]:
        """The names of all blobs that begin with `prefix`, in their order, read as they are asked for."""
        names = self._run(partial(_names, prefix=prefix))
        while some := self._run(partial(_some, names)):
            yield from some

    async def alist(self, prefix: str = "") -> AsyncIterator[str]:
        """As `list`."""
        names = await self._arun(partial(_names, prefix=prefix))
        while some := await self._arun(partial(_some, names)):
            for name in some:
                yield name

    def open(self, name: str) -> io.BufferedReader:
        """A blob as a file of bytes to be read: seekable, fetched in ranges as they are read, and ahead of who reads in order.

        Use it in a `with` block. All that is read is of the version that was there when it was opened; once that is replaced,
        reading raises JobQError.
        """
        ranges = self._run(partial(Ranges.opened, name=checked_name(name)))
        return io.BufferedReader(RawBlobFile(self.client, ranges), BUFFER_BYTES)

    @asynccontextmanager
    async def aopen(self, name: str) -> AsyncIterator[AsyncBlobFile]:
        """As `open`, in an `async with` block: `await file.read(n)`, and `async for block in file`."""
        ranges = await self._arun(partial(Ranges.opened, name=checked_name(name)))
        try:
            yield AsyncBlobFile(self.client, ranges)
        finally:
            ranges.close()

    def _run(self, work: Callable[[Container], Coroutine[Any, Any, T]]) -> T:
        return self.client.run(partial(self._work, work))

    async def _arun(self, work: Callable[[Container], Awaitable[T]]) -> T:
        return await self.client.arun(partial(self._work, work))

    async def _work(self, work: Callable[[Container], Awaitable[T]], ledger: Ledger) -> T:
        place = self._place()
        own = ledger.transport if place is self.client.place else None
        container = await self.client.session.containers.container(place, self.container, own)
        if self.creates:
            await container.create()
        return await work(container)

    def _place(self) -> Place:
        own = self.client.place
        if not self.account or (isinstance(own, AzurePlace) and own.account == self.account):
            return own
        return parse_place(f"azure://{self.account}")

    def __repr__(self) -> str:
        return f"<Blobs of {f'{self.account}/' if self.account else ''}{self.container}>"


async def _download(container: Container, name: str, path: Path, *, cache: bool) -> Path:
    await container.download(checked_name(name), path, cached=cache)
    return path


async def _download_folder(container: Container, prefix: str, path: Path, *, cache: bool) -> int:
    return await container.download_folder(checked_prefix(prefix), path, cached=cache)


async def _names(container: Container, prefix: str) -> AsyncIterator[str]:
    return container.names(prefix)


async def _some(names: AsyncIterator[str], _: Container) -> list[str]:
    some: list[str] = []
    while len(some) < NAMES_A_HOP and (name := await anext(names, None)) is not None:
        some.append(name)
    return some


def _bytes(data: bytes | bytearray | memoryview) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):  # of a number, bytes() would make so many zeros
        raise TypeError(f"A blob holds bytes; got {type(data).__name__}. Of a text, write text.encode().")
    return bytes(data)
