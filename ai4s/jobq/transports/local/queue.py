"""A queue as rows: a message is visible once its `visible_at` has come, and belongs to whoever knows its token.

Invariant: every receive, renewal and release draws a new token, so an older receipt finds no row. Times are this machine's
wall clock, because leases and delays outlive processes and reboots; a clock that is set forward ends leases early, which
"at least once" allows.

Next: `database.py` for how operations are run; `poller.py` of the worker for who receives.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from dataclasses import dataclass
from functools import partial

from ...clock import boottime
from ...errors import LeaseLost, NotFound, PlaceTaken
from ...requests_made import Requests
from ..base import MAX_BODY_BYTES, MAX_DELAY_SECONDS, MAX_RECEIVE, Delivery, Receipt
from . import bells
from .bells import Bell
from .database import Database, Transaction


@dataclass(frozen=True, slots=True)
class LocalQueue:
    """See `base.Queue` for the contract."""

    name: str
    app: str
    database: Database
    bell: Bell
    requests: Requests

    async def create(self) -> None:
        """Make the queue, or find that it is ours."""
        self.requests.add("queue_other")
        await self.database.write(partial(_create, name=self.name, app=self.app))

    async def check(self) -> None:
        """See that the queue is there and ours."""
        self.requests.add("queue_depth")
        await self.database.read(partial(_check_owner, name=self.name, app=self.app))

    async def send(self, body: str, *, delay_seconds: float = 0) -> Receipt:
        """Put a message and wake who idles."""
        _check_body(body)
        _check_seconds("delay_seconds", delay_seconds)
        self.requests.add("queue_send")
        return await self.database.write(partial(_send, queue=self.name, body=body, delay_seconds=delay_seconds), small=True)

    async def receive(self, n: int, *, lease_seconds: float) -> list[Delivery]:
        """Take the messages that have been visible for longest."""
        _check_seconds("lease_seconds", lease_seconds)
        self.requests.add("queue_receive")
        return await self.database.write(
            partial(_receive, queue=self.name, n=min(n, MAX_RECEIVE), lease_seconds=lease_seconds, received_at=boottime()),
            small=True,
        )

    async def renew(self, receipt: Receipt, *, lease_seconds: float, body: str | None = None) -> Receipt:
        """Go on holding a message."""
        _check_body(body)
        _check_seconds("lease_seconds", lease_seconds)
        self.requests.add("queue_renew")
        return await self.database.write(
            partial(_update, queue=self.name, receipt=receipt, invisible_seconds=lease_seconds, body=body), small=True
        )

    async def release(self, receipt: Receipt, *, delay_seconds: float = 0, body: str | None = None) -> None:
        """Give a message back and wake who idles."""
        _check_body(body)
        _check_seconds("delay_seconds", delay_seconds)
        self.requests.add("queue_renew")
        release = partial(_release, queue=self.name, receipt=receipt, delay_seconds=delay_seconds, body=body)
        await self.database.write(release, small=True)

    async def delete(self, receipt: Receipt) -> None:
        """Remove a message."""
        self.requests.add("queue_delete")
        await self.database.write(partial(_delete, queue=self.name, receipt=receipt), small=True)

    async def peek(self, n: int) -> list[str]:
        """Look at visible messages."""
        self.requests.add("queue_peek")
        return await self.database.read(partial(_peek, queue=self.name, n=min(n, MAX_RECEIVE)))

    async def depth(self) -> int:
        """Count the messages; exact here."""
        self.requests.add("queue_depth")
        return await self.database.read(partial(_depth, queue=self.name))

    async def clear(self) -> None:
        """Remove all messages."""
        self.requests.add("queue_other")
        await self.database.write(partial(_clear, queue=self.name))

    async def idle(self, seconds: float) -> None:
        """Sleep until a message is visible, at most `seconds`. Returns at once if one is visible already."""
        give_up_at = time.monotonic() + seconds
        while (left_seconds := give_up_at - time.monotonic()) > 0:
            # Listen before asking: the ring may come before the answer does.
            with self.bell.listening() as rung:
                waiting = partial(_due_or_wait, queue=self.name, bell=self.bell.name)
                due_seconds = await self.database.write(waiting, small=True)
                if due_seconds <= 0:
                    return
                await asyncio.wait((rung,), timeout=min(left_seconds, due_seconds))


def _check_body(body: str | None) -> None:
    if body is not None and len(body.encode()) > MAX_BODY_BYTES:
        raise ValueError(f"A message's text may have {MAX_BODY_BYTES} bytes as UTF-8; this one has {len(body.encode())}.")


def _check_seconds(what: str, seconds: float) -> None:
    if not 0 <= seconds <= MAX_DELAY_SECONDS:
        raise ValueError(f"{what} must lie between 0 and {MAX_DELAY_SECONDS} (7 days); got {seconds}.")


def _new_token() -> str:
    return secrets.token_hex(8)


def _absent(queue: str) -> NotFound:
    return NotFound(f"There is no queue {queue!r} here; create() makes it.")


def _require(transaction: Transaction, queue: str) -> None:
    if transaction.execute("SELECT 1 FROM queues WHERE name = ?", (queue,)).fetchone() is None:
        raise _absent(queue)


def _create(transaction: Transaction, *, name: str, app: str) -> None:
    transaction.execute("INSERT OR IGNORE INTO queues (name, app) VALUES (?, ?)", (name, app))
    _check_owner(transaction, name=name, app=app)


def _check_owner(transaction: Transaction, *, name: str, app: str) -> None:
    row = transaction.execute("SELECT app FROM queues WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise _absent(name)
    if row[0] != app:
        raise PlaceTaken(f"The queue {name!r} belongs to the app {row[0]!r}, not to {app!r}. Rename one of the apps.")


def _send(transaction: Transaction, *, queue: str, body: str, delay_seconds: float) -> Receipt:
    now, token = time.time(), _new_token()
    cursor = transaction.execute(
        "INSERT INTO messages (queue, visible_at, token, dequeue_count, inserted, body) "
        "SELECT name, ?, ?, 0, ?, ? FROM queues WHERE name = ?",
        (now + delay_seconds, token, now, body, queue),
    )
    if cursor.rowcount != 1:
        raise _absent(queue)
    transaction.ring(queue)
    return Receipt(str(cursor.lastrowid), token)


def _receive(transaction: Transaction, *, queue: str, n: int, lease_seconds: float, received_at: float) -> list[Delivery]:
    now = time.time()
    # The lease counts from now, after the wait for the lock; `received_at` lies before, so the holder stops in time.
    rows = transaction.execute(
        "UPDATE messages SET visible_at = ?, token = lower(hex(randomblob(8))), dequeue_count = dequeue_count + 1 "
        "WHERE id IN (SELECT id FROM messages WHERE queue = ? AND visible_at <= ? ORDER BY visible_at, id LIMIT ?) "
        "RETURNING id, token, body, dequeue_count, inserted",
        (now + lease_seconds, queue, now, n),
    ).fetchall()
    if not rows:
        _require(transaction, queue)
    return [
        Delivery(Receipt(str(number), token), body, count, inserted, now, received_at)
        for number, token, body, count, inserted in sorted(rows)
    ]


def _update(transaction: Transaction, *, queue: str, receipt: Receipt, invisible_seconds: float, body: str | None) -> Receipt:
    token = _new_token()
    cursor = transaction.execute(
        "UPDATE messages SET visible_at = ?, token = ?, body = coalesce(?, body) WHERE id = ? AND token = ? AND queue = ?",
        (time.time() + invisible_seconds, token, body, receipt.message_id, receipt.token, queue),
    )
    _require_held(cursor.rowcount, queue, receipt)
    return Receipt(receipt.message_id, token)


def _release(transaction: Transaction, *, queue: str, receipt: Receipt, delay_seconds: float, body: str | None) -> None:
    _update(transaction, queue=queue, receipt=receipt, invisible_seconds=delay_seconds, body=body)
    transaction.ring(queue)


def _delete(transaction: Transaction, *, queue: str, receipt: Receipt) -> None:
    cursor = transaction.execute(
        "DELETE FROM messages WHERE id = ? AND token = ? AND queue = ?", (receipt.message_id, receipt.token, queue)
    )
    _require_held(cursor.rowcount, queue, receipt)


def _require_held(changed_rows: int, queue: str, receipt: Receipt) -> None:
    if changed_rows != 1:
        raise LeaseLost(
            f"The receipt no longer holds message {receipt.message_id} of {queue!r}: it was delivered again or settled."
        )


def _peek(transaction: Transaction, *, queue: str, n: int) -> list[str]:
    _require(transaction, queue)
    rows = transaction.execute(
        "SELECT body FROM messages WHERE queue = ? AND visible_at <= ? ORDER BY visible_at, id LIMIT ?",
        (queue, time.time(), n),
    )
    return [body for (body,) in rows.fetchall()]


def _depth(transaction: Transaction, *, queue: str) -> int:
    _require(transaction, queue)
    (count,) = transaction.execute("SELECT count(*) FROM messages WHERE queue = ?", (queue,)).fetchone()
    return int(count)


def _clear(transaction: Transaction, *, queue: str) -> None:
    _require(transaction, queue)
    transaction.execute("DELETE FROM messages WHERE queue = ?", (queue,))


def _due_or_wait(transaction: Transaction, *, queue: str, bell: str) -> float:
    (due_at,) = transaction.execute("SELECT min(visible_at) FROM messages WHERE queue = ?", (queue,)).fetchone()
    due_seconds = math.inf if due_at is None else due_at - time.time()
    if due_seconds > 0:
        bells.add_waiter(transaction.connection, queue, bell)
    return due_seconds
