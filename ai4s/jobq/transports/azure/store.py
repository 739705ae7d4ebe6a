"""A blob container under the contract of `base.py`.

A blob of up to SINGLE_BYTES is one request in either direction. Etags are kept in the quoted form everywhere: listings give
them bare, and conditions want the quotes. The SDK's downloader is asked for one range at a time, so that it never goes on
by itself.

Next: `blocks.py` for large uploads; `retrying.py` for what `repeat` and `remove` promise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import ResourceModifiedError
from azure.storage.blob import BlobProperties
from azure.storage.blob.aio import ContainerClient

from ...errors import AlreadyExists, ConditionFailed, NotFound, TransportError, Unreachable
from ...parts import Parts
from ..base import MAX_PAGE, Blob, BlobInfo, Source
from .blob_clients import blob_clients
from .blocks import BLOCK_BYTES, upload_in_blocks
from .retrying import Retrying
from .translate import error_code, status_of

SINGLE_BYTES = 8 * 1024 * 1024
"""The most that one request writes or reads: above it a lost connection costs more than another request."""

READ_TRIES = 5
"""How often a read of several ranges begins again because the blob was replaced in between."""


class AzureStore:
    """One container of an opened account."""

    def __init__(self, client: ContainerClient, *, retrying: Retrying) -> None:
        self._client = client
        self._retrying = retrying
        self._where = f"container {client.container_name}"
        self._blob = blob_clients(client)

    async def create(self) -> None:
        """Make the container if it is not there."""
        try:
            await self._retrying.repeat(f"create {self._where}", self._client.create_container)
        except AlreadyExists:
            return

    async def check(self) -> None:
        """See that the container is there."""
        await self._retrying.repeat(f"look at {self._where}", self._client.get_container_properties)

    async def put(
        self,
        name: str,
        data: Source,
        *,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Write a blob in one request, or a large one in blocks under the same condition."""
        options = {"metadata": dict(metadata or {}), **_condition(if_absent, if_match)}
        source = await _small_enough(data)
        try:
            if isinstance(source, bytes):
                return await self._put_single(name, source, options)
            if if_absent:
                await self._refuse_existing(name)
            return _quoted(await upload_in_blocks(self._blob(name), source, options, self._retrying))
        except (ConditionFailed, NotFound) as exc:
            raise _put_error(exc, name, if_absent=if_absent, if_match=if_match) from exc.__cause__

    async def _put_single(self, name: str, data: bytes, options: Mapping[str, Any]) -> str:
        client = self._blob(name)
        answer = await self._retrying.repeat(f"put {name}", lambda: client.upload_blob(data, overwrite=True, **options))
        return _quoted(answer["etag"])

    async def _refuse_existing(self, name: str) -> None:
        """Spare a large upload that the condition would refuse at its end."""
        try:
            await self.head(name)
        except NotFound:
            return
        raise AlreadyExists(f"put {name}: there is such a blob.")

    async def get(self, name: str, *, start: int = 0, length: int | None = None, if_none_match: str | None = None) -> Blob | None:
        """Read a blob or a range; more than SINGLE_BYTES takes several requests, all of the same version."""
        wanted = SINGLE_BYTES if length is None else min(length, SINGLE_BYTES)
        for _ in range(READ_TRIES):
            first = await self._get_single(name, start, wanted, _unless(if_none_match))
            if first is None:
                return None
            missing = _missing(first, start, length)
            if not missing:
                return first
            try:
                return await self._get_rest(first, missing)
            except ConditionFailed:
                continue
        raise Unreachable(f"get {name}: it was replaced {READ_TRIES} times while it was read.", maybe_done=False)

    async def _get_rest(self, first: Blob, missing: range) -> Blob:
        same = {"etag": first.info.etag, "match_condition": MatchConditions.IfNotModified}
        pieces = [first.data]
        for at in range(missing.start, missing.stop, SINGLE_BYTES):
            piece = await self._get_single(first.info.name, at, min(SINGLE_BYTES, missing.stop - at), same)
            pieces.append(piece.data if piece else b"")
        return Blob(first.info, b"".join(pieces))

    async def _get_single(self, name: str, start: int, length: int, condition: Mapping[str, Any]) -> Blob | None:
        if length == 0:
            return await self._get_nothing(name, condition)
        try:
            return await self._retrying.repeat(f"get {name}", lambda: self._download(name, start, length, condition))
        except TransportError as exc:
            if status_of(exc.__cause__) == 304:
                return None
            # An empty blob has no range at all, and past the end there is none either.
            if status_of(exc.__cause__) == 416:
                return await self._get_nothing(name, condition)
            raise

    async def _download(self, name: str, start: int, length: int, condition: Mapping[str, Any]) -> Blob:
        download = await self._blob(name).download_blob(start, length, **condition)
        # Its size is the range's; the blob's own stands at the end of "bytes 0-9/1000".
        size = int((download.properties.content_range or "").rpartition("/")[2])
        return Blob(replace(_info(download.properties, name), size=size), await download.readall())

    async def _get_nothing(self, name: str, condition: Mapping[str, Any]) -> Blob | None:
        info = await self.head(name)
        unchanged = condition.get("match_condition") is MatchConditions.IfModified and condition["etag"] == info.etag
        return None if unchanged else Blob(info, b"")

    async def head(self, name: str) -> BlobInfo:
        """What is known of a blob, with its metadata."""
        properties = await self._retrying.repeat(f"head {name}", self._blob(name).get_blob_properties)
        return _info(properties, name)

    async def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Remove a blob; gone after a lost answer is gone."""
        condition = _condition(False, if_match)
        await self._retrying.remove(f"delete {name}", lambda: self._delete_once(name, condition))

    async def _delete_once(self, name: str, condition: Mapping[str, Any]) -> None:
        client = self._blob(name)
        try:
            await client.delete_blob(**condition)
        except ResourceModifiedError:
            # Azurite answers 412 for a blob that is gone as well; only then this raises, and it says "not there".
            await client.get_blob_properties()
            raise

    async def list(self, prefix: str, *, with_metadata: bool = False, page: int = MAX_PAGE) -> AsyncIterator[BlobInfo]:
        """All blobs of a prefix; each page is repeated by itself."""
        operation = f"list {prefix}* in {self._where}"
        pages: AsyncIterator[AsyncIterator[Any]] = (
            self._client.list_blobs(name_starts_with=prefix, include=["metadata"], results_per_page=page).by_page()
            if with_metadata
            else self._client.list_blob_names(name_starts_with=prefix, results_per_page=page).by_page()
        )
        while (found_page := await self._retrying.repeat(operation, lambda: anext(pages, None))) is not None:
            async for found in found_page:
                yield _info(found, found.name) if with_metadata else BlobInfo(found, 0, "", 0.0)

    async def append(self, name: str, data: bytes, *, at: int) -> int:
        """Append under the condition of the length; a repeated append whose answer was lost is ConditionFailed."""
        if not data:
            return await self._append_nothing(name, at)
        try:
            return await self._append_block(name, data, at)
        except NotFound as exc:
            if error_code(exc.__cause__) != "BlobNotFound":
                raise
            if at:
                raise ConditionFailed(f"append {name}: it is not there, so not {at} bytes long.") from exc.__cause__
        await self._create_append_blob(name)
        return await self._append_block(name, data, at)

    async def _append_block(self, name: str, data: bytes, at: int) -> int:
        client = self._blob(name)
        await self._retrying.repeat(f"append {name}", lambda: client.append_block(data, len(data), appendpos_condition=at))
        return at + len(data)

    async def _create_append_blob(self, name: str) -> None:
        client = self._blob(name)
        try:
            await self._retrying.repeat(
                f"append {name}", lambda: client.create_append_blob(match_condition=MatchConditions.IfMissing)
            )
        except (AlreadyExists, ConditionFailed):
            return  # another writer was first; the length decides

    async def _append_nothing(self, name: str, at: int) -> int:
        try:
            size = (await self.head(name)).size
        except NotFound:
            size = 0
        if size != at:
            raise ConditionFailed(f"append {name}: it is {size} bytes long, not {at}.")
        return at


async def _small_enough(data: Source) -> bytes | Parts | Path:
    """Bytes where one request carries them; what is larger in pieces, or as a file."""
    if isinstance(data, Path):
        size = (await asyncio.to_thread(data.stat)).st_size
        return await asyncio.to_thread(data.read_bytes) if size <= BLOCK_BYTES else data
    parts = data if isinstance(data, Parts) else Parts.of(data)
    return parts.joined() if parts.size <= SINGLE_BYTES else parts


def _condition(if_absent: bool, if_match: str | None) -> dict[str, Any]:
    if if_absent:
        return {"match_condition": MatchConditions.IfMissing}
    if if_match is not None:
        return {"etag": if_match, "match_condition": MatchConditions.IfNotModified}
    return {}


def _unless(etag: str | None) -> dict[str, Any]:
    return {} if etag is None else {"etag": etag, "match_condition": MatchConditions.IfModified}


def _put_error(exc: TransportError, name: str, *, if_absent: bool, if_match: str | None) -> TransportError:
    """The contract's error for a put's condition; which one the service gives depends on the kind of put."""
    if isinstance(exc, ConditionFailed) and if_absent:
        return AlreadyExists(f"put {name}: there is such a blob.")
    if isinstance(exc, NotFound) and if_match is not None and error_code(exc.__cause__) == "BlobNotFound":
        return ConditionFailed(f"put {name}: it is gone.")
    return exc


def _missing(first: Blob, start: int, length: int | None) -> range:
    end = first.info.size if length is None else min(first.info.size, start + length)
    return range(start + len(first.data), end)


def _info(properties: BlobProperties, name: str) -> BlobInfo:
    modified = properties.last_modified
    return BlobInfo(
        name=name,
        size=properties.size or 0,
        etag=_quoted(properties.etag or ""),
        modified=modified.timestamp() if isinstance(modified, datetime) else 0.0,
        # A listing gives None for an empty value, and a head "".
        metadata={name: value or "" for name, value in (properties.metadata or {}).items()},
    )


def _quoted(etag: str) -> str:
    return f'"{etag.strip(chr(34))}"'
