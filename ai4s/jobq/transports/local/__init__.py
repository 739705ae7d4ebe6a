"""The local transport: a folder shared by the processes of one machine, without any server.

Survives processes that are killed at any moment, with all that was answered; not a loss of power (see `schema.py`). The folder
must lie on a disk of this machine, as SQLite's WAL mode does not work over a network.

Next: `queue.py`, then `store.py`; below both `database.py`.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from functools import partial

from ...errors import NotFound
from ...requests_made import Requests
from ..base import Queue, Store
from ..place import LocalPlace
from . import bells, faults, schema
from . import files as blob_files
from .bells import Bell
from .database import Database, Transaction
from .files import Files
from .queue import LocalQueue
from .store import LocalStore

__all__ = ["LocalTransport"]


@dataclass(frozen=True, slots=True)
class LocalTransport:
    """An opened folder; see `base.Transport` for the contract."""

    place: LocalPlace
    database: Database
    bell: Bell
    files: Files
    requests: Requests = field(default_factory=Requests)

    @classmethod
    async def open(
        cls, place: LocalPlace, *, patience_seconds: float = faults.PATIENCE_SECONDS, create: bool = True
    ) -> LocalTransport:
        """Open the folder on the running event loop, making it if it is not there; without `create` that is NotFound.

        A request waits for `patience_seconds` while another process holds the database, then raises Unreachable. Raises
        ConfigurationError if the folder cannot be made or written, or was written by a later version.
        """
        if not create and not schema.is_place(place.folder):
            raise NotFound(f"There is no place at {place.label}.")
        database = await Database.open(place.folder, patience_seconds=patience_seconds)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(database.close)
            await database.write(partial(_sweep, place))
            transport = cls(place, database, _hang_bell(place), Files(place.folder / schema.BLOBS))
            undo.pop_all()
        return transport

    def queue(self, name: str, *, app: str) -> Queue:
        """The queue of this name."""
        return LocalQueue(name, app, self.database, self.bell, self.requests)

    def store(self, container: str) -> Store:
        """The container of this name."""
        return LocalStore(container, self.database, self.files, self.requests)

    @property
    def credential(self) -> str:
        """Nothing but the rights to the folder."""
        return "the folder's permissions"

    async def queues(self, prefix: str) -> dict[str, str]:
        """All queues of a prefix."""
        self.requests.add("queue_other")
        return await self.database.read(partial(_queues, prefix=prefix))

    async def server_time(self) -> float:
        """This machine's wall clock."""
        return time.time()

    async def close(self) -> None:
        """End the threads and close the files."""
        await self.files.close()
        bell = self.bell.name
        self.bell.close()
        self.database.post(lambda transaction: bells.forget_waiter(transaction.connection, bell))
        await self.database.close()


def _queues(transaction: Transaction, *, prefix: str) -> dict[str, str]:
    rows = transaction.execute("SELECT name, app FROM queues WHERE substr(name, 1, ?) = ? ORDER BY name", (len(prefix), prefix))
    return dict(rows.fetchall())


def _hang_bell(place: LocalPlace) -> Bell:
    try:
        return Bell(place.folder / schema.BELLS)
    except OSError as fault:
        raise schema.unusable(place.folder, f"a FIFO cannot be made in it ({fault.strerror})") from fault


def _sweep(place: LocalPlace, transaction: Transaction) -> None:
    bells.sweep(place.folder / schema.BELLS)
    blob_files.collect(transaction, folder=place.folder / schema.BLOBS)
