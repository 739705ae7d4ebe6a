"""Files of stored objects, shared by all workers of a user on one machine: fetched once, bounded, the least used go first.

A file is complete under its name, which is its SHA-256, or not there: it is written under another name by whoever holds the lock of
that, and renamed. A file that this process has not seen before is hashed before it is used, since a crash of the machine may have
left it damaged. A file that goes while a child has it mapped stays readable there.

Next: `shelf.py`, the child's side.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from ..machine_files import PART, cache_folder, held, make_room, size_of
from ..message import Spill
from ..spill import digest


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
        sound = size_of(path) == wanted.size
        if sound and wanted.sha256 not in self._known:
            with suppress(FileNotFoundError):
                sound = await digest(path) == wanted
        if not sound:
            _remove(path)
        return sound

    async def _have(self, path: Path, wanted: Spill, fetch: Callable[[Path], Awaitable[None]]) -> None:
        part = path.with_suffix(PART)
        async with held(part):
            if size_of(path) is not None:  # fetched by the one who held it before
                _remove(part)
                return
            try:
                await asyncio.to_thread(make_room, path.parent, wanted.size, self._limit_bytes)
                await fetch(part)
            except BaseException:
                _remove(part)
                raise
            part.rename(path)
            self._known.add(wanted.sha256)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
