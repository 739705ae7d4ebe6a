"""Files that all processes of a user on one machine share: in one folder, bounded, the least used go first.

A file is complete under its name, which is a SHA-256, or not there: it is written under another name by whoever holds the lock of
that, and renamed. A file that goes while somebody has it open stays readable there.

Next: `worker/cellar.py` for what `app.put` stored, `blobs/cache.py` for blobs of users.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .layout import SHA256

PREFIX, PART = "jobq-cache-", ".part"
FREE_PART = 0.5
"""Of what would be free without our files, we take no more than this."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.5
"""Between two looks whether another process has fetched the file."""


def size_of(path: Path) -> int | None:
    """A file's size; None if it is not there."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return None


def cache_folder() -> Path:
    """This user's folder on this machine. Raises OSError if there is none, or if it is somebody else's or open to others."""
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that only this user can write to and read: remove it, or set TMPDIR.")
    return folder


@asynccontextmanager
async def held(part: Path) -> AsyncIterator[None]:
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


def make_room(folder: Path, needed: int, limit: int) -> None:
    """Remove what was not used for longest until so many bytes have room, and what killed workers have left."""
    _remove_abandoned(folder)
    files = sorted(_files(folder), key=lambda file: file[1].st_mtime_ns)
    taken = sum(found.st_size for _, found in files)
    allowed = min(limit, int(FREE_PART * (shutil.disk_usage(folder).free + taken)))
    for path, found in files:
        if taken + needed <= allowed:
            return
        path.unlink(missing_ok=True)
        taken -= found.st_size


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
