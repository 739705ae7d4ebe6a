"""Bytes too large for the database: one file for each write, on threads of their own.

Invariant: a file's name is announced in the table `files` before it is written, and leaves it in the very transaction in
which a row of `parts` begins to name it (adopt). The other way round it is doomed when the row goes, and removed after that
commit. So a process killed anywhere leaves no file that nobody knows of, and no row without its file.

Next: `store.py`, which says when.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from ...errors import Unreachable
from ...parts import Parts
from .database import Transaction

T = TypeVar("T")

INLINE_BYTES = 64 * 1024
"""Up to this size a blob lies in the database, where a write costs no file and shares its commit."""

_BLOCK_BYTES = 1024 * 1024
_THREADS = 4  # enough to keep a disk busy
# An announced file this old belongs to a killed process; no write takes a day.
_ABANDONED_AFTER_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of bytes: of `data`, or of a file."""

    start: int
    stop: int
    data: bytes | None
    file: str | None


class Files:
    """The folder of the large blobs' files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="jobq-files")

    def write(self, name: str, source: Parts | Path) -> Future[int]:
        """Begin to write a new file; the answer is its size. Unreachable if the disk refuses."""
        return self._submit(partial(_write, self.folder / name, source))

    async def read_small(self, path: Path) -> bytes | None:
        """The bytes at `path`, or None if they are too many for the database."""
        return await asyncio.wrap_future(self._submit(partial(_read_small, path)))

    async def read(self, pieces: Sequence[Piece]) -> bytes:
        """The bytes of all pieces. Raises FileNotFoundError if a file was removed meanwhile."""
        return await asyncio.wrap_future(self._submit(partial(_read, self.folder, pieces)))

    async def close(self) -> None:
        """Wait for what was begun, then end the threads. Doing it twice is fine."""
        await asyncio.to_thread(self._threads.shutdown)

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        try:
            return self._threads.submit(job)
        except RuntimeError as fault:
            raise Unreachable(f"The transport of {self.folder.parent} was closed.", maybe_done=False) from fault


def new_name() -> str:
    """A file name that nobody else has."""
    return secrets.token_hex(16)


def announce(transaction: Transaction, name: str) -> None:
    """Say that a file of this name is about to be written."""
    transaction.execute("INSERT INTO files (name, since, doomed) VALUES (?, ?, 0)", (name, time.time()))


def adopt(transaction: Transaction, name: str) -> None:
    """Say that a row names this file from now on. Raises Unreachable if it was taken for abandoned and removed."""
    if transaction.execute("DELETE FROM files WHERE name = ? AND NOT doomed", (name,)).rowcount != 1:
        raise Unreachable("The write took so long that its file was removed as abandoned. Try again.", maybe_done=False)


def doom(transaction: Transaction, names: Iterable[str]) -> None:
    """Say that no row names these files any more."""
    for name in names:
        transaction.execute("INSERT INTO files (name, since, doomed) VALUES (?, ?, 1)", (name, time.time()))


def collect(transaction: Transaction, *, folder: Path, mine: str | None = None) -> None:
    """Remove the files that are doomed or abandoned, and `mine` unless it was adopted.

    They are unlinked before the commit, as an unlinked file may be unlinked again but a forgotten one never is.
    """
    names = transaction.execute(
        "SELECT name FROM files WHERE doomed OR since < ? OR name = ?", (time.time() - _ABANDONED_AFTER_SECONDS, mine)
    ).fetchall()
    for (name,) in names:
        (folder / name).unlink(missing_ok=True)
        transaction.execute("DELETE FROM files WHERE name = ?", (name,))


def _write(target: Path, source: Parts | Path) -> int:
    if isinstance(source, Path):
        # A source that cannot be read is the caller's own mistake and stays an OSError.
        with source.open("rb") as reader:
            return _write_blocks(target, _blocks(reader))
    return _write_blocks(target, source.pieces)


def _blocks(reader: BinaryIO) -> Iterator[bytes]:
    while block := reader.read(_BLOCK_BYTES):
        yield block


def _write_blocks(target: Path, blocks: Iterable[bytes | bytearray | memoryview]) -> int:
    try:
        with target.open("xb", buffering=0) as writer:
            return sum(_write_all(writer, memoryview(block)) for block in blocks)
    except OSError as fault:
        raise Unreachable(f"A blob could not be written to {target.parent}: {fault.strerror}.", maybe_done=False) from fault


def _write_all(writer: BinaryIO, block: memoryview) -> int:
    # A raw file may take less than it is given.
    rest = block
    while rest.nbytes:
        rest = rest[writer.write(rest) :]
    return block.nbytes


def _read_small(path: Path) -> bytes | None:
    return path.read_bytes() if path.stat().st_size <= INLINE_BYTES else None


def _read(folder: Path, pieces: Sequence[Piece]) -> bytes:
    if len(pieces) == 1:
        return _read_piece(folder, pieces[0])
    return b"".join(_read_piece(folder, piece) for piece in pieces)


def _read_piece(folder: Path, piece: Piece) -> bytes:
    if piece.file is None:
        return bytes((piece.data or b"")[piece.start : piece.stop])
    with (folder / piece.file).open("rb", buffering=0) as reader:
        reader.seek(piece.start)
        return _read_all(reader, piece.stop - piece.start)


def _read_all(reader: BinaryIO, wanted_bytes: int) -> bytes:
    first = reader.read(wanted_bytes)
    if len(first) == wanted_bytes:
        return first
    # One read stops at 2 GiB.
    found = [first]
    while first and (missing_bytes := wanted_bytes - sum(map(len, found))):
        found.append(first := reader.read(missing_bytes))
    return b"".join(found)
