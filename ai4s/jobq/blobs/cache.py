"""Blobs that this machine has downloaded before, each with the etag of its version: one file for each, among `machine_files`.

The file's end says which version its bytes are and how many, so that both are replaced by one rename. It is found only in the same
boot of the machine: what a crash has damaged is not seen again. Files are copied out, and not linked: a task may change its own.

Next: `containers.py`, which asks the storage whether a version is still the one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from ..machine_files import PART, cache_folder, held, make_room
from ..transports.base import BlobInfo
from .whole_files import to_its_end

END = struct.Struct(">QH4s")
"""At a file's end, after the etag: how many bytes the blob has, how many the etag, and the mark."""

MARK = b"jobq"
BOOT = Path("/proc/sys/kernel/random/boot_id")

LARGEST_PART = 0.5
"""Of what the cache may hold, a blob larger than this is not kept: all others would go for it."""

FILES_A_LOOK = 256
"""Files that are kept between two looks at how much there is: with many small ones, looking takes longer than keeping."""


class BlobCache:
    """The cache, for one process. It may hold `limit_bytes`, together with what other processes of this user keep."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept_bytes = self._kept_files = 0

    def takes(self, size: int) -> bool:
        """Whether a blob of this size is kept."""
        return size <= self.limit_bytes * LARGEST_PART

    async def keep(self, path: Path, info: BlobInfo, fetch: Callable[[Path], Awaitable[None]]) -> None:
        """Have this version at `path`, fetched by whoever comes first. Raises OSError."""
        part = path.with_suffix(PART)
        async with held(part):
            try:
                if await asyncio.to_thread(etag_of, path) == info.etag:  # fetched by the one who held it before
                    part.unlink()
                    return
                await asyncio.to_thread(self._make_room, path.parent, info.size)
                await fetch(part)
                await to_its_end(_finish, part, path, info)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _make_room(self, folder: Path, size: int) -> None:
        is_first = not self._kept_files
        self._kept_bytes, self._kept_files = self._kept_bytes + size, self._kept_files + 1
        if is_first or self._kept_files > FILES_A_LOOK or self._kept_bytes > self.limit_bytes // 32:
            make_room(folder, size, self.limit_bytes)
            self._kept_bytes, self._kept_files = size, 1


def entry(place: str, container: str, name: str) -> Path:
    """Where a blob's file is. Raises OSError."""
    where = "\0".join((_boot(), place, container, name))
    return cache_folder() / hashlib.sha256(where.encode("utf-8", "surrogatepass")).hexdigest()


@cache
def _boot() -> str:
    return BOOT.read_text() if BOOT.exists() else ""


def etag_of(path: Path) -> str | None:
    """Which version a file holds; None if there is none, or no sound one."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return _read_end(file)[1]
    return None


def copy_out(path: Path, etag: str | None, target: Path) -> bool:
    """Copy the blob of a file; False if the file is not there any more, or of another version."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        size, found = _read_end(file)
        if found != etag:
            return False
        os.utime(file.fileno())
        with target.open("wb") as copy:
            file.seek(0)
            shutil.copyfileobj(file, copy, 1024 * 1024)
            copy.truncate(size)
        return True
    return False


def _read_end(file: BinaryIO) -> tuple[int, str | None]:
    length = os.fstat(file.fileno()).st_size
    if length < END.size:
        return 0, None
    file.seek(length - END.size)
    size, etag_bytes, mark = END.unpack(file.read(END.size))
    if mark != MARK or size + etag_bytes + END.size != length:
        return 0, None
    file.seek(size)
    return size, file.read(etag_bytes).decode(errors="replace")


def _finish(part: Path, path: Path, info: BlobInfo) -> None:
    etag = info.etag.encode()
    with part.open("ab") as file:
        file.write(etag + END.pack(info.size, len(etag), MARK))
    part.rename(path)
