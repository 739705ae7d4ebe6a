"""Files of users on this machine, on their way to blobs and back: complete under their name or not there, and walked by folder.

What is written lies beside its place until it is whole. Disks are for threads; who is cancelled while one writes waits for it, as
it would go on behind its back otherwise, and into a file that is another's by then.

Next: `containers.py`, which says what is written.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..errors import JobQError

P = ParamSpec("P")
R = TypeVar("R")

FILES_A_LOOK = 256
PART = ".jobq-part-"
"""How names of files begin that are not complete; an upload of a folder leaves them out."""


async def to_its_end(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a thread makes of it; over when that is over, and not before, whoever cancels it."""
    running = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    finally:
        if not running.done():
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def beside(path: Path) -> AsyncIterator[Path]:
    """A path to write to; what is written there is at `path` once the block ends well."""
    part = path.with_name(f"{PART}{secrets.token_hex(8)}")
    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    try:
        yield part
        await to_its_end(part.replace, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file; its folders are made if need be."""
    part = path.with_name(f"{PART}{secrets.token_hex(8)}")
    try:
        try:
            part.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_at(path: Path, data: bytes, start: int) -> None:
    """Write a part of a file, of which the part from 0 comes first."""
    with path.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.write(data)


def size_to_send(path: Path) -> int:
    """A file's size. Raises OSError, and JobQError for what has none, as a pipe, from which one might wait for ever."""
    found = path.stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # of a folder, the system says so
        raise JobQError(f"{path} is a pipe, a socket or a device, and cannot be uploaded: read it and write(name, data) instead.")
    return found.st_size


def inside(folder: Path, name: str, prefix: str) -> Path:
    """The file of a blob; raises JobQError for a name that would lead elsewhere."""
    parts = name.removeprefix(prefix).split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise JobQError(f"The blob {name!r} cannot be a file below {folder}: download it by its name, to a path of your choice.")
    return folder.joinpath(*parts)


async def walked(folder: Path) -> AsyncIterator[str]:
    """The names of all files below a folder. Raises OSError."""
    files = _files(folder)
    while some := await asyncio.to_thread(lambda: list(islice(files, FILES_A_LOOK))):
        for name in some:
            yield name


def _files(folder: Path) -> Iterator[str]:
    for where, _, names in _sorted(os.walk(folder, onerror=_raised)):
        for name in names:
            if not name.startswith(PART):
                yield Path(where, name).relative_to(folder).as_posix()


def _sorted(walk: Iterable[tuple[str, list[str], list[str]]]) -> Iterator[tuple[str, list[str], list[str]]]:
    for where, folders, names in walk:
        folders.sort()
        yield where, folders, sorted(names)


def _raised(error: OSError) -> None:
    raise error
