"""Files of stored objects, shared by all workers of a user on one machine: fetched once, bounded, the least used go first.

A file is complete under its name, which is its SHA-256, or not there: it is written under another name by whoever holds the lock of
that, and renamed. A file that this process has not seen before is hashed before it is used, since a crash of the machine may have
left it damaged. A file that goes while a child has it mapped stays readable there.

Next: `shelf.py`, the child's side.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import stat
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..layout import SHA256
from ..message import Spill
from ..spill import digest

PREFIX, PART = "jobq-cache-", ".part"
FREE_PART = 0.5
"""Of what would be free without our files, we take no more than this."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.5
"""Between two looks whether another worker has fetched the file."""


class Cellar:
    """The machine's files, for one worker. They may take `limit_bytes`, and what is in use besides."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._known: set[str] = set()
        self._fetching: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def file(self, wanted: Spill, fetch: Callable[[Path], Awaitable[None]]) -> Path:
        """The file of these bytes, which `fetch` writes to a path if the machine has not got it. Raises OSError.

        The file may be gone again when it is opened; then ask again.
        """
        path = cache_folder() / wanted.sha256
        async with self._fetching[wanted.sha256]:
            while True:
                if not await self._is_there(path, wanted):
                    await self._have(path, wanted, fetch)
                with suppress(FileNotFoundError):  # another worker has just made room
                    os.utime(path)
                    self._known.add(wanted.sha256)
                    return path

    async def _is_there(self, path: Path, wanted: Spill) -> bool:
        """Whether the file is there and sound; one that is not is removed."""
        sound = _size_of(path) == wanted.size
        if sound and wanted.sha256 not in self._known:
            with suppress(FileNotFoundError):
                sound = await digest(path) == wanted
        if not sound:
            _remove(path)
        return sound

    async def _have(self, path: Path, wanted: Spill, fetch: Callable[[Path], Awaitable[None]]) -> None:
        part = path.with_suffix(PART)
        async with _held(part):
            if _size_of(path) is not None:  # fetched by the one who held it before
                _remove(part)
                return
            try:
                await asyncio.to_thread(_make_room, path.parent, wanted.size, self._limit_bytes)
                await fetch(part)
            except BaseException:
                _remove(part)
                raise
            part.rename(path)
            self._known.add(wanted.sha256)


def _size_of(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return None


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """This user's folder on this machine. Raises OSError if there is none, or if it is somebody else's or open to others."""
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that only this user can write to and read: remove it, or set TMPDIR.")
    return folder


@asynccontextmanager
async def _held(part: Path) -> AsyncIterator[None]:
    """Hold the lock of a file that is being written, once whoever has it lets go; the kernel takes it from one that is killed."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        with part.open("ab") as file:
            # Renamed or removed between the opening and the locking, it would be another's lock.
            if _locked(file) and _same(file, part):
                yield
                return
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _locked(file: BinaryIO) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _same(file: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    return False


def _make_room(folder: Path, needed: int, limit: int) -> None:
    """Remove what was not used for longest until so many bytes have room, and what killed workers have left."""
    _remove_abandoned(folder)
    files = sorted(_files(folder), key=lambda file: file[1].st_mtime_ns)
    held = sum(found.st_size for _, found in files)
    allowed = min(limit, int(FREE_PART * (shutil.disk_usage(folder).free + held)))
    for path, found in files:
        if held + needed <= allowed:
            return
        path.unlink(missing_ok=True)
        held -= found.st_size


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if SHA256.fullmatch(path.name):
                yield path, path.stat()


def _remove_abandoned(folder: Path) -> None:
    for part in folder.glob(f"*{PART}"):
        with suppress(OSError), part.open("rb+") as file:
            if _locked(file) and _same(file, part):
                part.unlink(missing_ok=True)
