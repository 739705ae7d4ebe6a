"""One SQLite connection, for small operations on the spot, and for all others on a thread with group commit.

Invariants: an answer is given only after its commit; an operation that fails is undone alone (a savepoint each) and its
neighbours do not notice; a caller that goes away breaks nothing. Reads run in a transaction that takes no lock on writers.
It must not know what the operations do. A small commit takes 0.03 ms and the way to the thread and back three times as long; so the
thread has what is large, and what finds the database taken: it waits there, and what waits together is committed together.

Next: `queue.py` and `store.py` for the operations; `bells.py` for who is woken after a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from ...errors import Unreachable
from . import bells, faults, schema

T = TypeVar("T")

# Bounds the time for which other processes wait for the lock, and the bytes of answers that are held at once.
_LARGEST_GROUP = 256

# Others hold the lock for some 0.05 ms: to wait that long here costs less than the thread does.
_SHORT_PAUSES_SECONDS = (0.00002, 0.00005, 0.0001, 0.0002)

# Small operations in a row, after which those who wait for the event loop have their turn.
_LONGEST_RUN = 8


@dataclass(frozen=True, slots=True)
class Transaction:
    """What an operation may do: run SQL, and say which queues have got a message."""

    connection: sqlite3.Connection
    rung: set[str] = field(default_factory=set)

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, parameters)

    def ring(self, queue: str) -> None:
        """Wake who idles on `queue`, once this is committed."""
        self.rung.add(queue)


@dataclass(frozen=True, slots=True)
class _Request:
    operation: Callable[[Transaction], Any]
    begin: str
    answer: asyncio.Future[Any] | None


@dataclass(frozen=True, slots=True)
class _Answer:
    request: _Request
    value: Any = None
    error: Exception | None = None

    def unwrap(self) -> Any:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.value


class Database:
    """The database of one folder, for one event loop."""

    def __init__(self, folder: Path, *, patience_seconds: float) -> None:
        """Start the thread; `open` is the way in."""
        self._folder, self._bells = folder, folder / schema.BELLS
        self._patience_seconds = patience_seconds
        self._loop = asyncio.get_running_loop()
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._turn = threading.Lock()
        self._run_length = 0
        self._thread = threading.Thread(target=self._serve, name="jobq-database", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, folder: Path, *, patience_seconds: float) -> Database:
        """Open or make the database in `folder`. Raises ConfigurationError or Unreachable."""
        database = cls(folder, patience_seconds=patience_seconds)
        with contextlib.ExitStack() as undo:
            undo.callback(database._stop)
            await database._opened
            undo.pop_all()
        return database

    async def read(self, operation: Callable[[Transaction], T], *, small: bool = False) -> T:
        """Run an operation that changes nothing. It sees one state of the database. A `small` one takes far less than 1 ms."""
        return await self._ask(operation, "BEGIN", small=small)

    async def write(self, operation: Callable[[Transaction], T], *, small: bool = False) -> T:
        """Run an operation that may change something, and return its answer once that is committed.

        It may run more than once before its commit, so it must change nothing but the database. A caller that is cancelled
        cannot tell whether it ran. Raises what the operation raised, undone; or Unreachable. A `small` one takes far less than
        1 ms, for which the event loop may wait.
        """
        return await self._ask(operation, "BEGIN IMMEDIATE", small=small)

    def post(self, operation: Callable[[Transaction], object]) -> None:
        """Have an operation run that nobody waits for, and whose failure nobody is told of. From any thread."""
        if not self._closed:
            self._requests.put(_Request(operation, "BEGIN IMMEDIATE", None))

    async def close(self) -> None:
        """Run what was asked before, then close. Doing it twice is fine."""
        self._stop()
        await asyncio.shield(self._ended)
        self._thread.join()  # it has said its last word, and only has to return

    async def _ask(self, operation: Callable[[Transaction], T], begin: str, *, small: bool) -> T:
        if small:
            await self._let_others()
            found = self._at_once(_Request(operation, begin, None))
            if found is not None:
                return cast("T", found.unwrap())
        if self._closed:
            raise Unreachable(f"The transport of {self._folder} was closed.", maybe_done=False)
        answer: asyncio.Future[T] = self._loop.create_future()
        self._requests.put(_Request(operation, begin, answer))
        return await answer

    async def _let_others(self) -> None:
        """What is done at once never waits, so from time to time it has to make way."""
        self._run_length += 1
        if self._run_length >= _LONGEST_RUN:
            self._run_length = 0
            await asyncio.sleep(0)

    def _at_once(self, request: _Request) -> _Answer | None:
        """What came of the operation here and now; None, undone, where it is for the thread to do."""
        for pause_seconds in _SHORT_PAUSES_SECONDS:
            if self._closed or not self._turn.acquire(blocking=False):
                return None
            try:
                assert self._connection is not None
                answer = _commit_one(self._connection, request, self._bells)
            except faults.CommitFailed as fault:
                return _Answer(request, error=faults.unreachable(fault, folder=self._folder))
            except sqlite3.Error as fault:
                if not faults.is_busy(fault):
                    return None
            else:
                return answer
            finally:
                self._turn.release()
            time.sleep(pause_seconds)
        return None

    def _stop(self) -> None:
        if not self._closed:
            self._closed = True
            self._requests.put(None)

    # What follows runs on the thread.

    def _serve(self) -> None:
        try:
            connection = schema.connect(self._folder, patience_seconds=self._patience_seconds)
        except Exception as error:  # noqa: BLE001 - the thread's top: whatever it is, it goes to the one who opens
            self._tell(_settle, self._opened, None, error)
            return
        self._connection = connection
        with contextlib.closing(connection):
            self._tell(_settle, self._opened, None, None)
            while group := self._next_group():
                self._tell(_deliver, self._answer(connection, group))
        self._tell(_settle, self._ended, None, None)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        # A loop that was closed without closing the transport wants no answers.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _next_group(self) -> list[_Request]:
        group: list[_Request] = []
        request = self._requests.get()
        with contextlib.suppress(Empty):
            while request is not None:
                group.append(request)
                if len(group) == _LARGEST_GROUP:
                    return group
                request = self._requests.get_nowait()
            if group:
                self._requests.put(None)
        return group

    def _answer(self, connection: sqlite3.Connection, group: Sequence[_Request]) -> list[_Answer]:
        wanted = [request for request in group if request.answer is None or not request.answer.cancelled()]
        answers: list[_Answer] = []
        # Reads come first: they need not wait for another process that holds the lock on writes.
        for begin in ("BEGIN", "BEGIN IMMEDIATE"):
            if alike := [request for request in wanted if request.begin == begin]:
                answers += self._commit_patiently(connection, alike)
        return answers

    def _commit_patiently(self, connection: sqlite3.Connection, group: list[_Request]) -> list[_Answer]:
        def in_turn() -> list[_Answer]:
            with self._turn:
                return _commit(connection, group, self._bells)

        try:
            return faults.patiently(in_turn, patience_seconds=self._patience_seconds)
        except (sqlite3.Error, faults.CommitFailed) as fault:
            if len(group) > 1 and isinstance(fault, sqlite3.Error) and not faults.is_busy(fault):
                # One of them met a fault that spoiled the transaction for all: alone, only that one fails.
                return [answer for request in group for answer in self._commit_patiently(connection, [request])]
            return [_Answer(request, error=faults.unreachable(fault, folder=self._folder)) for request in group]


def _commit(connection: sqlite3.Connection, group: Sequence[_Request], bell_folder: Path) -> list[_Answer]:
    transaction = Transaction(connection)
    try:
        connection.execute(group[0].begin)
        answers = [_run(transaction, request) for request in group]
        waiters = _finish(transaction)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    for bell in waiters:
        bells.ring(bell_folder / bell)
    return answers


def _commit_one(connection: sqlite3.Connection, request: _Request, bell_folder: Path) -> _Answer:
    """As `_commit`, without a savepoint: if it fails, there is nothing but itself to be undone."""
    transaction = Transaction(connection)
    try:
        connection.execute(request.begin)
        value = request.operation(transaction)
        waiters = _finish(transaction)
    except (sqlite3.Error, faults.CommitFailed):
        raise
    except Exception as error:  # noqa: BLE001 - a supervisor's top: the error goes to the one who asked
        return _Answer(request, error=error)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    for bell in waiters:
        bells.ring(bell_folder / bell)
    return _Answer(request, value=value)


def _finish(transaction: Transaction) -> list[str]:
    """Commit; returns the bells to ring."""
    waiters = [bell for queue in transaction.rung for bell in bells.take_waiters(transaction.connection, queue)]
    try:
        transaction.execute("COMMIT")
    except sqlite3.Error as fault:
        if faults.is_busy(fault):
            raise
        raise faults.CommitFailed(str(fault)) from fault
    return waiters


def _run(transaction: Transaction, request: _Request) -> _Answer:
    transaction.execute("SAVEPOINT one")
    try:
        answer = _Answer(request, value=request.operation(transaction))
    except sqlite3.Error:
        # SQLite may have undone more than the savepoint: the whole group is run again.
        raise
    except Exception as error:  # noqa: BLE001 - a supervisor's top: the error goes to the one who asked
        transaction.execute("ROLLBACK TO one")
        answer = _Answer(request, error=error)
    transaction.execute("RELEASE one")
    return answer


# What follows runs on the event loop.


def _deliver(answers: Sequence[_Answer]) -> None:
    for answer in answers:
        if answer.request.answer is not None:
            _settle(answer.request.answer, answer.value, answer.error)


def _settle(future: asyncio.Future[Any], value: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
