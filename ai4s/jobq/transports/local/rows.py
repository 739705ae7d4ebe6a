"""Blobs as rows: the operations that a store runs within a transaction.

Invariant: an operation checks everything before it changes anything, and an etag is new with every change. A blob's bytes are
its `parts` in order; those of a large part are in a file.

Next: `store.py`, which calls these.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field

from ...errors import AlreadyExists, ConditionFailed, NotFound
from ..base import BlobInfo
from . import files
from .database import Transaction
from .files import Piece

# Names are printable, so this character comes after all that can follow a prefix.
_AFTER_ALL = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a blob is."""

    container: str
    name: str

    def __str__(self) -> str:
        return f"blob {self.name!r} of {self.container!r}"


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one part: inline, or in a file of this name."""

    size: int
    data: bytes | memoryview | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold for a write to happen; both None and False is no condition."""

    if_absent: bool = False
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """A write of a whole blob, all but its bytes."""

    address: Address
    condition: Condition
    metadata: str
    etag: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class _Row:
    id: int
    info: BlobInfo


@dataclass(frozen=True, slots=True)
class Found:
    """A blob and the pieces of the range that was asked for; no pieces where it is unchanged."""

    info: BlobInfo
    pieces: tuple[Piece, ...] | None


def create(transaction: Transaction, *, container: str) -> None:
    """Make a container if it is not there."""
    transaction.execute("INSERT OR IGNORE INTO containers (name) VALUES (?)", (container,))


def require_container(transaction: Transaction, container: str) -> None:
    """Raise NotFound if there is no such container."""
    if transaction.execute("SELECT 1 FROM containers WHERE name = ?", (container,)).fetchone() is None:
        raise NotFound(f"There is no container {container!r} here; create() makes it.")


def announce(transaction: Transaction, file: str, *, put: Put) -> None:
    """Announce a put's file, unless the put is bound to fail: then nothing need be written."""
    _check(transaction, put.address, put.condition)
    files.announce(transaction, file)


def put(transaction: Transaction, content: Content, *, put: Put) -> bool:
    """Write a whole blob; return whether files were doomed by it."""
    old = _check(transaction, put.address, put.condition)
    has_doomed = old is not None and _remove(transaction, old.id)
    info = BlobInfo(put.address.name, content.size, put.etag, time.time())
    _add_part(transaction, _insert(transaction, put.address, info, put.metadata), 0, content)
    return has_doomed


def announce_append(transaction: Transaction, file: str, *, address: Address, at: int) -> None:
    """Announce an append's file, unless the append is bound to fail."""
    _check_end(transaction, address, at)
    files.announce(transaction, file)


def append(transaction: Transaction, content: Content, *, address: Address, at: int) -> int:
    """Add a part to a blob that is `at` bytes long; return the new length."""
    row = _check_end(transaction, address, at)
    end, now, etag = at + content.size, time.time(), secrets.token_hex(8)
    if row is None:
        number = _insert(transaction, address, BlobInfo(address.name, end, etag, now), "")
    else:
        number = row.id
        transaction.execute("UPDATE blobs SET size = ?, etag = ?, modified = ? WHERE id = ?", (end, etag, now, number))
    _add_part(transaction, number, at, content)
    return end


def find(transaction: Transaction, *, address: Address, start: int, length: int | None, if_none_match: str | None) -> Found:
    """Look a blob up, with where the bytes from `start` on are. Raises NotFound."""
    row = _require(transaction, address)
    if row.info.etag == if_none_match:
        return Found(row.info, None)
    stop = row.info.size if length is None else min(start + length, row.info.size)
    parts = transaction.execute(
        "SELECT at, size, data, file FROM parts WHERE blob = ? AND at < ? AND at + size > ? ORDER BY at",
        (row.id, stop, min(start, stop)),
    )
    pieces = [Piece(max(start - at, 0), min(stop - at, size), data, file) for at, size, data, file in parts.fetchall()]
    return Found(row.info, tuple(pieces))


def head(transaction: Transaction, *, address: Address) -> BlobInfo:
    """Look a blob up. Raises NotFound."""
    return _require(transaction, address).info


def delete(transaction: Transaction, *, address: Address, if_match: str | None) -> bool:
    """Remove a blob; return whether files were doomed by it."""
    row = _require(transaction, address)
    if if_match is not None and row.info.etag != if_match:
        raise ConditionFailed(f"The {address} has changed since it was read.")
    return _remove(transaction, row.id)


def names(transaction: Transaction, *, container: str, prefix: str, after: str, limit: int) -> list[BlobInfo]:
    """A page of names, from an index alone."""
    require_container(transaction, container)
    rows = transaction.execute(
        "SELECT name FROM blobs WHERE container = ? AND name >= ? AND name < ? AND name > ? ORDER BY name LIMIT ?",
        (container, prefix, prefix + _AFTER_ALL, after, limit),
    )
    return [BlobInfo(name, 0, "", 0.0) for (name,) in rows.fetchall()]


def infos(transaction: Transaction, *, container: str, prefix: str, after: str, limit: int) -> list[BlobInfo]:
    """A page of names with all else."""
    require_container(transaction, container)
    rows = transaction.execute(
        "SELECT name, size, etag, modified, metadata FROM blobs "
        "WHERE container = ? AND name >= ? AND name < ? AND name > ? ORDER BY name LIMIT ?",
        (container, prefix, prefix + _AFTER_ALL, after, limit),
    )
    return [BlobInfo(name, size, etag, modified, _metadata(metadata)) for name, size, etag, modified, metadata in rows.fetchall()]


def _find(transaction: Transaction, address: Address) -> _Row | None:
    row = transaction.execute(
        "SELECT id, size, etag, modified, metadata FROM blobs WHERE container = ? AND name = ?",
        (address.container, address.name),
    ).fetchone()
    if row is None:
        require_container(transaction, address.container)
        return None
    number, size, etag, modified, metadata = row
    return _Row(number, BlobInfo(address.name, size, etag, modified, _metadata(metadata)))


def _metadata(text: str) -> dict[str, str]:
    return dict(json.loads(text)) if text else {}


def _require(transaction: Transaction, address: Address) -> _Row:
    row = _find(transaction, address)
    if row is None:
        raise NotFound(f"There is no {address}.")
    return row


def _check(transaction: Transaction, address: Address, condition: Condition) -> _Row | None:
    row = _find(transaction, address)
    if condition.if_absent and row is not None:
        raise AlreadyExists(f"There is a {address} already.")
    if condition.if_match is not None and (row is None or row.info.etag != condition.if_match):
        raise ConditionFailed(f"The {address} has changed since it was read, or is gone.")
    return row


def _check_end(transaction: Transaction, address: Address, at: int) -> _Row | None:
    row = _find(transaction, address)
    length = 0 if row is None else row.info.size
    if length != at:
        raise ConditionFailed(f"The {address} is {length} bytes long, not {at}.")
    return row


def _insert(transaction: Transaction, address: Address, info: BlobInfo, metadata: str) -> int:
    cursor = transaction.execute(
        "INSERT INTO blobs (container, name, size, etag, modified, metadata) VALUES (?, ?, ?, ?, ?, ?)",
        (address.container, address.name, info.size, info.etag, info.modified, metadata),
    )
    return cursor.lastrowid or 0


def _add_part(transaction: Transaction, blob: int, at: int, content: Content) -> None:
    if content.file is not None:
        files.adopt(transaction, content.file)
    transaction.execute(
        "INSERT INTO parts (blob, at, size, data, file) VALUES (?, ?, ?, ?, ?)",
        (blob, at, content.size, content.data, content.file),
    )


def _remove(transaction: Transaction, blob: int) -> bool:
    rows = transaction.execute("DELETE FROM parts WHERE blob = ? RETURNING file", (blob,)).fetchall()
    doomed = [file for (file,) in rows if file is not None]
    files.doom(transaction, doomed)
    transaction.execute("DELETE FROM blobs WHERE id = ?", (blob,))
    return bool(doomed)
