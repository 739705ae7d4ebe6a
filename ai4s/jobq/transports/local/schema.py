"""The folder and the database in it: made where they are missing, refused where they cannot be used.

    FOLDER/jobq.db (-wal, -shm)     queues, messages, and blobs up to INLINE_BYTES
    FOLDER/blobs/<token>            what is larger, one file for each write
    FOLDER/bells/<token>            a FIFO for each opened transport, to wake it

Invariant: a file in `blobs/` is named by a row of `parts`, or by a row of `files` that says it is being written or doomed.
Synchronous NORMAL: a killed process loses nothing, because commits are in the kernel's hands when they are answered. After a
loss of power the database is sound, but the last commits and the bytes of new files may be missing; an fsync for each
commit would cost more than all the rest together.

Next: `database.py`, which runs operations on the connection made here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from ...errors import ConfigurationError
from . import faults

SCHEMA_VERSION = 1
DATABASE, BLOBS, BELLS = "jobq.db", "blobs", "bells"
_OLDEST_SQLITE = (3, 35)  # the first one with RETURNING

_SCHEMA = """
CREATE TABLE queues (name TEXT PRIMARY KEY, app TEXT NOT NULL) WITHOUT ROWID;
-- AUTOINCREMENT: an id is never used again, as outcomes may be kept under it.
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, visible_at REAL NOT NULL, token TEXT NOT NULL,
    dequeue_count INTEGER NOT NULL, inserted REAL NOT NULL, body TEXT NOT NULL);
CREATE INDEX messages_due ON messages (queue, visible_at);
CREATE TABLE waiters (queue TEXT NOT NULL, bell TEXT NOT NULL, PRIMARY KEY (queue, bell)) WITHOUT ROWID;
CREATE TABLE containers (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY, container TEXT NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
    modified REAL NOT NULL, metadata TEXT NOT NULL, UNIQUE (container, name));
-- A blob that was put has one part, one that was appended to has a part for each time.
CREATE TABLE parts (blob INTEGER NOT NULL, at INTEGER NOT NULL, size INTEGER NOT NULL, file TEXT, data BLOB);
CREATE INDEX parts_of_blob ON parts (blob, at);
CREATE TABLE files (name TEXT PRIMARY KEY, since REAL NOT NULL, doomed INTEGER NOT NULL) WITHOUT ROWID;
"""


def is_place(folder: Path) -> bool:
    """Whether the folder has been used as a place before. One that may not be looked into counts: to open it says what is wrong."""
    try:
        return (folder / DATABASE).exists()
    except PermissionError:
        return True


def connect(folder: Path, *, patience_seconds: float) -> sqlite3.Connection:
    """Open the database in `folder`, making both if they are missing.

    Raises ConfigurationError that says which folder cannot be used, why and what to do, and Unreachable if it stays busy.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise ConfigurationError(
            f"A local place needs SQLite 3.35 or later; this Python has {sqlite3.sqlite_version}. Use a newer Python build."
        )
    _make_folders(folder)
    try:
        return faults.patiently(lambda: _open(folder), patience_seconds=patience_seconds)
    except sqlite3.Error as fault:
        if faults.is_busy(fault):
            raise faults.unreachable(fault, folder=folder) from fault
        raise unusable(folder, str(fault)) from fault


def _make_folders(folder: Path) -> None:
    try:
        # Messages are code to a worker: what we make is for its owner alone. A folder that is there keeps its rights.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (BLOBS, BELLS):
            (folder / name).mkdir(exist_ok=True)
    except OSError as fault:
        raise unusable(folder, fault.strerror or str(fault)) from fault


def unusable(folder: Path, why: str) -> ConfigurationError:
    """The error that says which folder cannot be used, why, and what to do."""
    return ConfigurationError(
        f"The folder {folder} cannot be used as a place: {why}. "
        "Choose one on a disk of this machine that you may write to, as in JOBQ_URL=local:///tmp/jobs."
    )


def _open(folder: Path) -> sqlite3.Connection:
    # timeout=0: `faults.patiently` does the waiting. isolation_level=None: transactions are ours to begin. `database.py` sees to it
    # that one thread uses it at a time.
    with contextlib.ExitStack() as undo:
        connection = sqlite3.connect(folder / DATABASE, timeout=0, isolation_level=None, check_same_thread=False)
        undo.callback(connection.close)
        _prepare(connection, folder)
        undo.pop_all()
        return connection


def _prepare(connection: sqlite3.Connection, folder: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise unusable(folder, "its file system lacks what SQLite's WAL mode needs, as network file systems do")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"The folder {folder} was written by a later ai4s-jobq (schema {version}, this one knows {SCHEMA_VERSION}). "
            "Upgrade, or choose another folder."
        )
    if version == 0:
        # executescript() would commit first and so let two processes in.
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
