"""Waking who idles: a FIFO for each opened transport, and a row in the database for each queue that it idles on.

No wake-up is lost: the row is written in a transaction that finds no message due, so a send either comes before it and is
found, or after it and finds the row. A sender takes the rows away and rings; so a busy queue, where nobody idles, pays
nothing. Only a sender killed between its commit and its ring leaves the idlers to their timeout.
FIFOs and not sockets, whose paths may not be longer than about 100 characters; not file watching, which differs by system.

Next: `queue.py`, whose `idle` listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

# A bell this old that nobody holds open was left by a killed process; a younger one may be between mkfifo and open.
_SWEEP_AFTER_SECONDS = 60.0


class Bell:
    """The waiter's side: rings end the wait of everybody who listens on this event loop."""

    def __init__(self, folder: Path) -> None:
        """Hang a bell in `folder`, for the running event loop."""
        self.name = secrets.token_hex(8)
        self._path = folder / self.name
        self._loop = asyncio.get_running_loop()
        self._listeners: set[asyncio.Future[None]] = set()
        os.mkfifo(self._path)
        # Open for writing as well: without a writer a FIFO reads as ended, over and over.
        self._fd: int | None = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(self._fd, self._heard)

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done at the next ring."""
        rung: asyncio.Future[None] = self._loop.create_future()
        self._listeners.add(rung)
        try:
            yield rung
        finally:
            self._listeners.discard(rung)
            rung.cancel()

    def close(self) -> None:
        """Take the bell down; whoever listens is woken. Doing it twice is fine."""
        if self._fd is None:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = None
        self._path.unlink(missing_ok=True)
        self._wake()

    def _heard(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._fd, 64 * 1024)
        self._wake()

    def _wake(self) -> None:
        for rung in self._listeners:
            if not rung.done():
                rung.set_result(None)


def add_waiter(connection: sqlite3.Connection, queue: str, bell: str) -> None:
    """Have `bell` rung at the next message for `queue`."""
    connection.execute("INSERT OR IGNORE INTO waiters (queue, bell) VALUES (?, ?)", (queue, bell))


def take_waiters(connection: sqlite3.Connection, queue: str) -> list[str]:
    """The bells to ring for a message on `queue`, taken off the list."""
    return [bell for (bell,) in connection.execute("DELETE FROM waiters WHERE queue = ? RETURNING bell", (queue,)).fetchall()]


def forget_waiter(connection: sqlite3.Connection, bell: str) -> None:
    """Take `bell` off every list."""
    connection.execute("DELETE FROM waiters WHERE bell = ?", (bell,))


def ring(path: Path) -> None:
    """Ring a bell; one whose owner is gone is taken down."""
    # A ring that fails costs time only, as every idle ends by itself: a full FIFO has rings enough waiting in it.
    with contextlib.suppress(OSError):
        if (fd := _open_if_heard(path)) is not None:
            try:
                os.write(fd, b"!")
            finally:
                os.close(fd)


def sweep(folder: Path) -> None:
    """Take down the bells that killed processes have left."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            is_old = time.time() - path.stat().st_ctime > _SWEEP_AFTER_SECONDS
            if is_old and (fd := _open_if_heard(path)) is not None:
                os.close(fd)


def _open_if_heard(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        if fault.errno == errno.ENXIO:
            path.unlink(missing_ok=True)
        return None
