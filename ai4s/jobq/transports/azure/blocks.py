"""Large uploads, in blocks that become a blob all at once.

Block ids are random for each upload: the SDK's own follow from the position, so that two writers of one name would mix
their bytes. A commit throws away every block that it does not name, other writers' too; whoever is hit uploads again.

Next: back to `store.py`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from azure.storage.blob import BlobBlock
from azure.storage.blob.aio import BlobClient

from ...errors import TransportError, Unreachable
from ...parts import Parts
from .retrying import Retrying
from .translate import error_code

BLOCK_BYTES = 4 * 1024 * 1024
"""One block: what is sent again after a broken connection, and with PARALLEL the memory that an upload takes."""

MAX_BLOCKS = 50_000
"""The service's limit; a larger file has larger blocks."""

PARALLEL = 4
"""Blocks on their way at the same time: enough to fill a common link, little enough to stay small."""

UPLOAD_TRIES = 3
"""Uploads begun again because another writer's commit threw our blocks away."""

COMMIT_READ_SECONDS = 60
"""A commit of many thousand blocks takes the service longer than other requests."""


async def upload_in_blocks(blob: BlobClient, source: Parts | Path, options: Mapping[str, Any], retrying: Retrying) -> str:
    """Upload `source` and return the new etag; `options` carry the metadata and the condition, which the commit checks."""
    for _ in range(UPLOAD_TRIES):
        upload = await _Upload.begin(blob, source, retrying)
        await upload.stage_all()
        try:
            return await upload.commit(options)
        except TransportError as exc:
            if error_code(exc.__cause__) != "InvalidBlockList":
                raise
    raise Unreachable(f"put {blob.blob_name}: other writers of this blob were in the way {UPLOAD_TRIES} times.", maybe_done=False)


@dataclass(frozen=True, slots=True)
class _Upload:
    blob: BlobClient
    source: Parts | Path
    retrying: Retrying
    size: int
    token: str

    @classmethod
    async def begin(cls, blob: BlobClient, source: Parts | Path, retrying: Retrying) -> _Upload:
        size = (await asyncio.to_thread(source.stat)).st_size if isinstance(source, Path) else source.size
        return cls(blob, source, retrying, size, uuid.uuid4().hex)

    @property
    def block_bytes(self) -> int:
        return max(BLOCK_BYTES, -(-self.size // MAX_BLOCKS))

    @property
    def starts(self) -> range:
        return range(0, self.size, self.block_bytes)

    def block_id(self, start: int) -> str:
        # All ids of a blob must have one length.
        return f"{self.token}-{start // self.block_bytes:05}"

    async def stage_all(self) -> None:
        starts = iter(self.starts)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(PARALLEL):
                    group.create_task(self._stage_from(starts))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed.exceptions[0].__cause__

    async def _stage_from(self, starts: Iterator[int]) -> None:
        for start in starts:
            data = await self._read(start)
            stage = partial(self.blob.stage_block, self.block_id(start), data, len(data))
            await self.retrying.repeat(f"put {self.blob.blob_name}", stage)

    async def _read(self, start: int) -> bytes:
        if isinstance(self.source, Path):
            return await asyncio.to_thread(_read_part, self.source, start, self.block_bytes)
        return b"".join(self.source.cut(start, start + self.block_bytes))

    async def commit(self, options: Mapping[str, Any]) -> str:
        blocks = [BlobBlock(self.block_id(start)) for start in self.starts]
        answer = await self.retrying.repeat(
            f"put {self.blob.blob_name}",
            lambda: self.blob.commit_block_list(blocks, read_timeout=COMMIT_READ_SECONDS, **options),
        )
        return str(answer["etag"])


def _read_part(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)
