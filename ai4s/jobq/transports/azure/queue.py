"""A Storage Queue under the contract of `base.py`.

Bodies are the text itself, without the SDK's encodings. Visibility is passed with every update, since the service makes a
message visible at once where it is left out. A receive is one request; a send or a receive is never made twice.

Next: `store.py` for blobs; `retrying.py` for what `repeat`, `repeat_unsent` and `remove` promise.
"""

from __future__ import annotations

import asyncio
import math
import re

from azure.storage.queue import QueueMessage, QueueProperties
from azure.storage.queue.aio import QueueClient

from ...clock import boottime
from ...errors import AlreadyExists, PlaceTaken, Unreachable
from ..base import MAX_BODY_BYTES, MAX_DELAY_SECONDS, MAX_RECEIVE, Delivery, Receipt
from .retrying import Retrying
from .server_clock import ServerClock
from .translate import status_of

APP_KEY = "app"
"""The key of a queue's metadata that names its app."""

FOR_EVER = -1
"""time_to_live: the service's default of 7 days would let a backlog vanish silently."""

CAREFUL_MARGIN_SECONDS = 30.0
"""How much longer than a lease single receives go on after a batch that could not be read."""

NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What the service's XML cannot carry, or (a carriage return) would not bring back as it was."""


class AzureQueue:
    """One queue of an opened account."""

    def __init__(self, client: QueueClient, *, app: str, retrying: Retrying, clock: ServerClock) -> None:
        self._client = client
        self._app = app
        self._retrying = retrying
        self._clock = clock
        self._careful_until = -math.inf
        self._where = f"queue {client.queue_name}"

    @property
    def name(self) -> str:
        return self._client.queue_name

    async def create(self) -> None:
        """Make the queue if it is not there; raises PlaceTaken if it names another app."""
        try:
            await self._retrying.repeat(f"create {self._where}", lambda: self._client.create_queue(metadata={APP_KEY: self._app}))
        except AlreadyExists as exc:
            # 204 says that its metadata are the same as ours, 409 that they differ.
            if status_of(exc.__cause__) != 204:
                await self.check()

    async def check(self) -> None:
        """See that the queue is there, and not another app's."""
        properties = await self._retrying.repeat(f"look at {self._where}", self._client.get_queue_properties)
        # A queue without a name on it is nobody else's: ai4s-jobq 3.x wrote none.
        owner = owner_of(properties, self._app)
        if owner != self._app:
            raise PlaceTaken(
                f"Queue {self.name!r} at {self._retrying.account.label} belongs to the app {owner!r}, not to {self._app!r}: "
                "choose another name for the app or the queue."
            )

    async def send(self, body: str, *, delay_seconds: float = 0) -> Receipt:
        """Put a message; see the contract for what `Unreachable` means here."""
        _check_body(body)
        hidden = _whole_seconds(delay_seconds, least=0)
        message = await self._retrying.repeat_unsent(
            f"send to {self._where}",
            lambda: self._client.send_message(body, visibility_timeout=hidden, time_to_live=FOR_EVER),
        )
        return Receipt(message.id, message.pop_receipt or "")

    async def receive(self, n: int, *, lease_seconds: float) -> list[Delivery]:
        """Take up to `n` messages in one request; only one while a batch could not be read lately."""
        lease = _whole_seconds(lease_seconds, least=1)
        asked_at = boottime()
        wanted = 1 if asked_at < self._careful_until else min(n, MAX_RECEIVE)
        try:
            messages = await self._retrying.repeat_unsent(f"receive from {self._where}", lambda: self._take(wanted, lease))
        except Unreachable as fault:
            self._note_unreadable(fault, asked_at + lease)
            raise
        now = self._clock.now()
        return [_delivery(message, asked_at, now) for message in messages]

    async def _take(self, n: int, lease: int) -> list[QueueMessage]:
        # Iterating over the messages themselves would make a second request when fewer than asked for came.
        pages = self._client.receive_messages(messages_per_page=n, visibility_timeout=lease).by_page()
        page = await anext(pages, None)
        return [] if page is None else [message async for message in page]

    def _note_unreadable(self, fault: Unreachable, lease_end: float) -> None:
        """After an answer spoilt by one message of a batch, take single ones until that batch has come back.

        Azurite answers 500 to any batch with a control character in it. The spoilt batch is invisible for a lease and
        comes back together; alone, the bad message harms none but itself.
        """
        if status_of(fault.__cause__) in (200, 500):
            self._careful_until = lease_end + CAREFUL_MARGIN_SECONDS

    async def renew(self, receipt: Receipt, *, lease_seconds: float, body: str | None = None) -> Receipt:
        """Keep the message; after a lost answer the repeated request finds the receipt void, which is LeaseLost."""
        return await self._update("renew a message of", receipt, _whole_seconds(lease_seconds, least=1), body)

    async def release(self, receipt: Receipt, *, delay_seconds: float = 0, body: str | None = None) -> None:
        """Give the message back."""
        await self._update("release a message of", receipt, _whole_seconds(delay_seconds, least=0), body)

    async def _update(self, verb: str, receipt: Receipt, hidden_seconds: int, body: str | None) -> Receipt:
        if body is not None:
            _check_body(body)
        updated = await self._retrying.repeat(
            f"{verb} {self._where}",
            lambda: self._client.update_message(receipt.message_id, receipt.token, body, visibility_timeout=hidden_seconds),
        )
        return Receipt(receipt.message_id, updated.pop_receipt or "")

    async def delete(self, receipt: Receipt) -> None:
        """Remove the message; gone after a lost answer is gone."""
        await self._retrying.remove(
            f"delete a message of {self._where}",
            lambda: self._client.delete_message(receipt.message_id, receipt.token),
        )

    async def peek(self, n: int) -> list[str]:
        """The bodies of up to `n` visible messages."""
        messages = await self._retrying.repeat(
            f"peek into {self._where}", lambda: self._client.peek_messages(max_messages=min(n, MAX_RECEIVE))
        )
        return [message.content or "" for message in messages]

    async def depth(self) -> int:
        """The approximate count, which includes invisible messages."""
        properties = await self._retrying.repeat(f"count {self._where}", self._client.get_queue_properties)
        return properties.approximate_message_count or 0

    async def clear(self) -> None:
        """Remove all messages; the service may need several requests for a great many."""
        await self._retrying.repeat(f"clear {self._where}", self._client.clear_messages)

    async def idle(self, seconds: float) -> None:
        """Sleep: the service has no way to tell of a new message."""
        await asyncio.sleep(seconds)


def owner_of(properties: QueueProperties, otherwise: str) -> str:
    """The app that a queue names."""
    return (properties.metadata or {}).get(APP_KEY, otherwise)


def _delivery(message: QueueMessage, asked_at: float, now: float) -> Delivery:
    return Delivery(
        receipt=Receipt(message.id, message.pop_receipt or ""),
        body=message.content or "",
        dequeue_count=message.dequeue_count or 1,
        inserted=message.inserted_on.timestamp() if message.inserted_on else now,
        server_time=now,
        received_at=asked_at,
    )


def _whole_seconds(seconds: float, *, least: int) -> int:
    """Round up: a lease must not end early, and a delayed message must not come early."""
    whole = max(least, math.ceil(seconds))
    if whole > MAX_DELAY_SECONDS or seconds < 0:
        raise ValueError(f"A queue takes 0 to {MAX_DELAY_SECONDS} seconds (7 days), not {seconds}.")
    return whole


def _check_body(body: str) -> None:
    if len(body) > MAX_BODY_BYTES or len(body.encode()) > MAX_BODY_BYTES:
        raise ValueError(f"A message holds at most {MAX_BODY_BYTES} bytes; this one has {len(body.encode())}.")
    # The first two tests run in C over the common case, a line of base64.
    if not (body.isascii() and body.isprintable()) and NOT_IN_XML.search(body):
        raise ValueError("A message is XML text: no control characters other than tab and newline.")
