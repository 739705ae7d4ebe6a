"""A place in memory, as Azure behaves, on clocks that are given: for histories that only need the contract, fast.

Receipts are void after a renewal or another delivery, leases end by the server's clock, and every request takes effect at once:
what goes wrong with one is left to whoever stands in between. `tests/conformance` checks it like the real ones.

Next: `model_world.py`, which lets processes loose on it.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ai4s.jobq.clock import boottime
from ai4s.jobq.errors import AlreadyExists, ConditionFailed, LeaseLost, NotFound, PlaceTaken
from ai4s.jobq.parts import Parts
from ai4s.jobq.requests_made import Requests
from ai4s.jobq.transports.base import (
    MAX_BODY_BYTES,
    MAX_DELAY_SECONDS,
    MAX_RECEIVE,
    Blob,
    BlobInfo,
    Delivery,
    Queue,
    Receipt,
    Source,
    Store,
)

MAX_APPEND_BYTES = 4 * 1024 * 1024
MAX_NAME = 1024

Clock = Callable[[], float]


@dataclass(slots=True)
class Message:
    """What lies on a queue; `token` is that of the receipt that holds it."""

    body: str
    visible_at: float
    token: str
    inserted: float
    dequeue_count: int = 0


@dataclass(slots=True)
class Box:
    """One queue."""

    app: str
    messages: dict[str, Message] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """One blob; `appended` if it grew by appends."""

    info: BlobInfo
    data: bytes
    appended: bool = False


@dataclass(slots=True)
class MemoryPlace:
    """All queues and containers; `server_clock` is the service's, in epoch seconds, `clock` that of the machines for leases."""

    server_clock: Clock = time.time
    clock: Clock = boottime
    queues: dict[str, Box] = field(default_factory=dict)
    containers: dict[str, dict[str, Kept]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    """Names of blobs that were written or removed, the newest last, for whoever watches; it may be emptied."""

    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def next_word(self) -> str:
        """A word that was not given out before: an etag, a token, an id."""
        return f"{next(self.numbers):08x}"


@dataclass(frozen=True, slots=True)
class MemoryTransport:
    """See `base.Transport` for the contract."""

    place: MemoryPlace
    requests: Requests = field(default_factory=Requests)
    """Nothing is counted here."""

    def queue(self, name: str, *, app: str) -> Queue:
        """The queue of this name."""
        return MemoryQueue(self.place, name, app)

    def store(self, container: str) -> Store:
        """The container of this name."""
        return MemoryStore(self.place, container)

    @property
    def credential(self) -> str:
        """There is nobody to keep out."""
        return "nothing"

    async def queues(self, prefix: str) -> dict[str, str]:
        """The queues of a prefix."""
        return {name: box.app for name, box in self.place.queues.items() if name.startswith(prefix)}

    async def server_time(self) -> float:
        """The server's clock."""
        return self.place.server_clock()

    async def close(self) -> None:
        """There is nothing to close."""


@dataclass(frozen=True, slots=True)
class MemoryQueue:
    """See `base.Queue` for the contract."""

    place: MemoryPlace
    name: str
    app: str

    async def create(self) -> None:
        self.place.queues.setdefault(self.name, Box(self.app))
        await self.check()

    async def check(self) -> None:
        owner = self._box.app
        if owner != self.app:
            raise PlaceTaken(f"The queue {self.name!r} belongs to the app {owner!r}, not to {self.app!r}.")

    async def send(self, body: str, *, delay_seconds: float = 0) -> Receipt:
        _check_body(body)
        _check_seconds(delay_seconds)
        now, receipt = self.place.server_clock(), Receipt(self.place.next_word(), self.place.next_word())
        self._box.messages[receipt.message_id] = Message(body, now + delay_seconds, receipt.token, now)
        return receipt

    async def receive(self, n: int, *, lease_seconds: float) -> list[Delivery]:
        _check_seconds(lease_seconds)
        now, received_at = self.place.server_clock(), self.place.clock()
        found = []
        for message_id, message in self._visible()[: min(n, MAX_RECEIVE)]:
            message.visible_at, message.token = now + lease_seconds, self.place.next_word()
            message.dequeue_count += 1
            receipt = Receipt(message_id, message.token)
            found.append(Delivery(receipt, message.body, message.dequeue_count, message.inserted, now, received_at))
        return found

    async def renew(self, receipt: Receipt, *, lease_seconds: float, body: str | None = None) -> Receipt:
        _check_body(body)
        _check_seconds(lease_seconds)
        return self._update(receipt, lease_seconds, body)

    async def release(self, receipt: Receipt, *, delay_seconds: float = 0, body: str | None = None) -> None:
        _check_body(body)
        _check_seconds(delay_seconds)
        self._update(receipt, delay_seconds, body)

    async def delete(self, receipt: Receipt) -> None:
        self._held(receipt)
        del self._box.messages[receipt.message_id]

    async def peek(self, n: int) -> list[str]:
        return [message.body for _, message in self._visible()[: min(n, MAX_RECEIVE)]]

    async def depth(self) -> int:
        return len(self._box.messages)

    async def clear(self) -> None:
        self._box.messages.clear()

    async def idle(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @property
    def _box(self) -> Box:
        try:
            return self.place.queues[self.name]
        except KeyError:
            raise NotFound(f"There is no queue {self.name!r} here.") from None

    def _visible(self) -> list[tuple[str, Message]]:
        now = self.place.server_clock()
        found = [pair for pair in self._box.messages.items() if pair[1].visible_at <= now]
        return sorted(found, key=lambda pair: pair[1].visible_at)

    def _held(self, receipt: Receipt) -> Message:
        message = self._box.messages.get(receipt.message_id)
        if message is None or message.token != receipt.token:
            raise LeaseLost(f"The receipt no longer holds message {receipt.message_id} of {self.name!r}.")
        return message

    def _update(self, receipt: Receipt, invisible_seconds: float, body: str | None) -> Receipt:
        message = self._held(receipt)
        message.visible_at, message.token = self.place.server_clock() + invisible_seconds, self.place.next_word()
        message.body = message.body if body is None else body
        return Receipt(receipt.message_id, message.token)


@dataclass(frozen=True, slots=True)
class MemoryStore:
    """See `base.Store` for the contract."""

    place: MemoryPlace
    container: str

    async def create(self) -> None:
        self.place.containers.setdefault(self.container, {})

    async def check(self) -> None:
        self._blobs  # noqa: B018  # raises

    async def put(
        self,
        name: str,
        data: Source,
        *,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        _check_name(name)
        _check_metadata(metadata or {})
        there = self._blobs.get(name)
        if if_absent and there is not None:
            raise AlreadyExists(f"There is a blob {name!r} already.")
        _check_etag(there, if_match)
        return self._keep(name, _bytes_of(data), metadata).etag

    async def get(self, name: str, *, start: int = 0, length: int | None = None, if_none_match: str | None = None) -> Blob | None:
        await asyncio.sleep(0)  # who polls must not keep others from going on
        kept = self._found(name)
        if if_none_match == kept.info.etag:
            return None
        return Blob(kept.info, kept.data[start:][:length])

    async def head(self, name: str) -> BlobInfo:
        return self._found(name).info

    async def delete(self, name: str, *, if_match: str | None = None) -> None:
        _check_etag(self._found(name), if_match)
        del self._blobs[name]
        self.place.changed.append(name)

    async def list(self, prefix: str, *, with_metadata: bool = False, page: int = 5000) -> AsyncIterator[BlobInfo]:
        infos = [self._blobs[name].info for name in sorted(self._blobs) if name.startswith(prefix)]
        for info in infos:
            yield info if with_metadata else BlobInfo(info.name, 0, "", 0)

    async def append(self, name: str, data: bytes, *, at: int) -> int:
        _check_name(name)
        if len(data) > MAX_APPEND_BYTES:
            raise ValueError(f"At most {MAX_APPEND_BYTES} bytes can be appended at a time; these are {len(data)}.")
        there = self._blobs.get(name)
        before = there.data if there is not None else b""
        if len(before) != at or (there is not None and not there.appended):
            raise ConditionFailed(f"The blob {name!r} is {len(before)} bytes long, not {at}.")
        return self._keep(name, before + data, None, appended=True).size

    @property
    def _blobs(self) -> dict[str, Kept]:
        try:
            return self.place.containers[self.container]
        except KeyError:
            raise NotFound(f"There is no container {self.container!r} here.") from None

    def _found(self, name: str) -> Kept:
        kept = self._blobs.get(_check_name(name))
        if kept is None:
            raise NotFound(f"There is no blob {name!r} here.")
        return kept

    def _keep(self, name: str, data: bytes, metadata: Mapping[str, str] | None, *, appended: bool = False) -> BlobInfo:
        info = BlobInfo(name, len(data), self.place.next_word(), self.place.server_clock(), dict(metadata or {}))
        self._blobs[name] = Kept(info, data, appended)
        self.place.changed.append(name)
        return replace(info)


def _bytes_of(data: Source) -> bytes:
    if isinstance(data, Parts):
        return data.joined()
    return data.read_bytes() if isinstance(data, Path) else bytes(data)


def _check_name(name: str) -> str:
    if not (0 < len(name) <= MAX_NAME and name.isascii() and name.isprintable() and ".." not in name):
        raise ValueError(f"A blob's name must be printable ASCII without '..', of at most {MAX_NAME} characters; got {name!r}.")
    return name


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        if not re.fullmatch("[a-z0-9]+", key) or not (value.isascii() and value.isprintable()):
            raise ValueError(f"Metadata must be plain text under plain keys; got {key!r}: {value!r}.")


def _check_etag(there: Kept | None, if_match: str | None) -> None:
    if if_match is not None and (there is None or there.info.etag != if_match):
        raise ConditionFailed("The blob has changed, or is gone.")


def _check_body(body: str | None) -> None:
    if body is not None and len(body.encode()) > MAX_BODY_BYTES:
        raise ValueError(f"A message's text may have {MAX_BODY_BYTES} bytes as UTF-8; this one has {len(body.encode())}.")


def _check_seconds(seconds: float) -> None:
    if not 0 <= seconds <= MAX_DELAY_SECONDS:
        raise ValueError(f"Delays and leases lie between 0 and {MAX_DELAY_SECONDS} s (7 days); got {seconds}.")
