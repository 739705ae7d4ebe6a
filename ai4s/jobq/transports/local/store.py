"""A container: small blobs in the database, large ones as files beside it.

Invariant: bytes are in place before the row that shows them is committed, and a file goes only after the row that named it.
A reader that finds its file gone has read an old row: it reads the row again.

Next: `rows.py` for what a transaction does, `files.py` for the large ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ...errors import TransportError
from ...parts import Parts
from ...requests_made import Requests
from ..base import MAX_PAGE, Blob, BlobInfo, Source
from . import as_azure, files, rows
from .database import Database, Transaction
from .files import INLINE_BYTES, Files, Piece
from .rows import Address, Condition, Content, Put

T = TypeVar("T")

_MAX_APPEND_BYTES = 4 * 1024 * 1024
_MAX_NAME = 1024
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_METADATA_KEY = re.compile("[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class LocalStore:
    """See `base.Store` for the contract."""

    container: str
    database: Database
    files: Files
    requests: Requests

    async def create(self) -> None:
        """Make the container if it is not there."""
        self.requests.add("blob_other")
        await self.database.write(partial(rows.create, container=self.container))

    async def check(self) -> None:
        """See that the container is there."""
        self.requests.add("blob_other")
        await self.database.read(partial(rows.require_container, container=self.container))

    async def put(
        self,
        name: str,
        data: Source,
        *,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Write a whole blob; an OSError if a Path cannot be read."""
        put = Put(self._address(name), Condition(if_absent, if_match), _metadata_text(metadata))
        source = await self._load(data)
        if isinstance(source, Parts) and source.size <= INLINE_BYTES:
            self.requests.add("blob_put")
            content = Content(source.size, data=source.joined())
            has_doomed = await self.database.write(partial(rows.put, content=content, put=put), small=True)
        else:
            has_doomed = await self._put_large(source, put)
        if has_doomed:
            self._collect()
        return put.etag

    async def _put_large(self, source: Parts | Path, put: Put) -> bool:
        size = source.size if isinstance(source, Parts) else (await asyncio.to_thread(source.stat)).st_size
        puts = as_azure.puts(size, streamed=isinstance(source, Path))
        if puts == 1:
            self.requests.add("blob_put")
        elif put.condition.if_absent:
            self.requests.add("blob_head")
        has_doomed = await self._write_file(source, partial(rows.announce, put=put), partial(rows.put, put=put))
        if puts > 1:
            self.requests.add("blob_put", puts)
        return has_doomed

    async def get(self, name: str, *, start: int = 0, length: int | None = None, if_none_match: str | None = None) -> Blob | None:
        """Read a blob or a range of it."""
        address, missing_etag = self._address(name), None
        find = partial(rows.find, address=address, start=start, length=length, if_none_match=if_none_match)
        self.requests.add("blob_head" if length == 0 else "blob_get")
        while True:
            found = await self.database.read(find, small=True)
            if found.pieces is None:
                return None
            try:
                blob = Blob(found.info, await self._read(found.pieces))
                as_azure.count_rest(self.requests, len(blob.data), length)
                return blob
            except FileNotFoundError as fault:
                # Overwritten or deleted since the row was read, if the row is another now.
                if found.info.etag == missing_etag:
                    raise TransportError(f"A file of the {address} is missing from {self.files.folder}.") from fault
                missing_etag = found.info.etag

    async def head(self, name: str) -> BlobInfo:
        """All about a blob but its bytes."""
        self.requests.add("blob_head")
        return await self.database.read(partial(rows.head, address=self._address(name)), small=True)

    async def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Remove a blob; its files go right after."""
        self.requests.add("blob_delete")
        if await self.database.write(partial(rows.delete, address=self._address(name), if_match=if_match)):
            self._collect()

    async def list(self, prefix: str, *, with_metadata: bool = False, page: int = MAX_PAGE) -> AsyncIterator[BlobInfo]:
        """All blobs below a prefix, page by page, each page as of one moment."""
        read_page, after = rows.infos if with_metadata else rows.names, ""
        while True:
            self.requests.add("blob_list")
            infos = await self.database.read(partial(read_page, container=self.container, prefix=prefix, after=after, limit=page))
            for info in infos:
                yield info
            if len(infos) < page:
                return
            after = infos[-1].name

    async def append(self, name: str, data: bytes, *, at: int) -> int:
        """Add bytes at the end."""
        if len(data) > _MAX_APPEND_BYTES:
            raise ValueError(f"At most {_MAX_APPEND_BYTES} bytes can be appended at a time; these are {len(data)}.")
        address = self._address(name)
        as_azure.count_append(self.requests, len(data), at)
        if len(data) <= INLINE_BYTES:
            content = Content(len(data), data=data)
            return await self.database.write(partial(rows.append, content=content, address=address, at=at))
        announce = partial(rows.announce_append, address=address, at=at)
        return await self._write_file(Parts.of(data), announce, partial(rows.append, address=address, at=at))

    def _address(self, name: str) -> Address:
        # More than the contract asks for, as users name their own blobs: what Azure takes is to work here.
        if not 0 < len(name) <= _MAX_NAME or _NOT_IN_NAMES.search(name) or ".." in name.split("/"):
            raise ValueError(
                f"A blob's name is of 1 to {_MAX_NAME} characters without control characters, and without '..' between slashes; "
                f"got {name!r}."
            )
        return Address(self.container, name)

    async def _load(self, data: Source) -> Parts | Path:
        if not isinstance(data, Path):
            return data if isinstance(data, Parts) else Parts.of(data)
        small = await self.files.read_small(data)
        return data if small is None else Parts.of(small)

    async def _write_file(
        self,
        source: Parts | Path,
        announce: Callable[[Transaction, str], None],
        adopt: Callable[[Transaction, Content], T],
    ) -> T:
        file = files.new_name()
        await self.database.write(lambda transaction: announce(transaction, file))
        writing = self.files.write(file, source)
        with contextlib.ExitStack() as undo:
            # Only once the thread has let go of the file, which a cancelled caller does not wait for.
            undo.callback(writing.add_done_callback, lambda _: self._collect(mine=file))
            size = await asyncio.wrap_future(writing)
            answer = await self.database.write(lambda transaction: adopt(transaction, Content(size, file=file)))
            undo.pop_all()
        return answer

    def _collect(self, *, mine: str | None = None) -> None:
        self.database.post(partial(files.collect, folder=self.files.folder, mine=mine))

    async def _read(self, pieces: tuple[Piece, ...]) -> bytes:
        if any(piece.file for piece in pieces):
            return await self.files.read(pieces)
        return b"".join(bytes(piece.data or b"")[piece.start : piece.stop] for piece in pieces)


def _metadata_text(metadata: Mapping[str, str] | None) -> str:
    for key, value in (metadata or {}).items():
        if not _METADATA_KEY.fullmatch(key):
            raise ValueError(f"A metadata key must be lower-case letters and digits; got {key!r}.")
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"The metadata value of {key!r} must be printable ASCII; got {value!r}.")
    return json.dumps(dict(metadata)) if metadata else ""
