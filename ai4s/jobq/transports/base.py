"""The transport contract: bytes in, bytes out, and what each answer promises.

A transport is one opened place. It knows queues of text and stores of bytes, and nothing of calls, codecs or keys.
Every method raises only errors of `ai4s.jobq.errors`; the ones named are the ones a caller must expect, and on top of
them every request may raise `Unreachable` (with `maybe_done`) and `AccessDenied`. `tests/conformance` checks this
contract on every transport; nothing in it is optional.

Retries: a transport repeats by itself what is harmless to repeat (reads, lists, deletes, renewals, puts) for
a bounded time on passing faults. It never repeats a send or a receive: whoever sends must know that it may lie there twice.

Next: `local.py` for the simplest implementation, `azure/` for the one that counts; `wire.py` for what the bytes say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..parts import Parts
from ..requests_made import Requests

Source = bytes | memoryview | Path | Parts
"""Where the bytes of a blob come from."""

MAX_BODY_BYTES = 64 * 1024
"""Bytes of one message's text, as UTF-8; Azure's limit, which every transport enforces (ValueError)."""

MAX_RECEIVE = 32
"""Messages that one receive can return; Azure's limit."""

MAX_PAGE = 5000
"""Names that one request of a listing can return; Azure's limit."""

MAX_DELAY_SECONDS = 7 * 24 * 3600
"""The longest delay, and the longest lease, that a queue takes; Azure's limit."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The right to settle one message, until it is renewed, settled or delivered again."""

    message_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One receipt of a message by a worker.

    `body` is the text as it lies there, whatever it is. `dequeue_count` is 1 on the first delivery; a lost answer raises
    it as well. `inserted` and `server_time` are epoch seconds by the server's clock; `received_at` is
    `clock.boottime()` of this machine just before the request went out, so that the lease surely lasts until
    `received_at + lease_seconds`.
    """

    receipt: Receipt
    body: str
    dequeue_count: int
    inserted: float
    server_time: float
    received_at: float


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What a listing or a head tells of a blob. `modified` is in epoch seconds; `metadata` is empty unless it was asked for."""

    name: str
    size: int
    etag: str
    modified: float
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob, or the range of it that was asked for. `info.size` is the whole blob's."""

    info: BlobInfo
    data: bytes


class Queue(Protocol):
    """A queue of text messages: at least once, in no particular order."""

    @property
    def name(self) -> str: ...

    async def create(self) -> None:
        """Make the queue if it is not there, and check that it is its app's.

        Raises `PlaceTaken` if it names another app. Doing it twice, or from two processes at once, is fine.
        """

    async def check(self) -> None:
        """See, without making anything, that the queue is there and its app's. Raises `NotFound`, `PlaceTaken`."""

    async def send(self, body: str, *, delay_seconds: float = 0) -> Receipt:
        """Put a message, invisible for `delay_seconds` (0 to MAX_DELAY_SECONDS). It never expires by itself.

        Returns when it is durable. The receipt can `delete` it until somebody receives it. Raises `NotFound` if there is
        no such queue, ValueError for a body over MAX_BODY_BYTES. After `Unreachable(maybe_done=True)` it may lie there or
        not; it was not repeated.
        """

    async def receive(self, n: int, *, lease_seconds: float) -> list[Delivery]:
        """Take up to `n` visible messages, at most MAX_RECEIVE, and hide them from others for `lease_seconds` (1 or more).

        Returns at once, with an empty list if there is none. A message that the service cannot even hand out
        (a control character in its text) does not keep the others from being received. Raises `NotFound`.
        """

    async def renew(self, receipt: Receipt, *, lease_seconds: float, body: str | None = None) -> Receipt:
        """Keep the message invisible for `lease_seconds` from now, and replace its body if one is given.

        Returns the new receipt; the old one is void. Raises `LeaseLost` if the receipt is void.
        """

    async def release(self, receipt: Receipt, *, delay_seconds: float = 0, body: str | None = None) -> None:
        """Give the message back, visible after `delay_seconds`, with a new body if one is given. Raises `LeaseLost`."""

    async def delete(self, receipt: Receipt) -> None:
        """Remove the message. A receipt that merely ran out still works. Raises `LeaseLost` if it is void."""

    async def peek(self, n: int) -> list[str]:
        """The bodies of up to `n` (at most MAX_RECEIVE) visible messages, which stay as they are. Raises `NotFound`."""

    async def depth(self) -> int:
        """How many messages there are, invisible ones included; Azure calls it approximate. Raises `NotFound`."""

    async def clear(self) -> None:
        """Remove all messages at once. Raises `NotFound`."""

    async def idle(self, seconds: float) -> None:
        """Sleep for `seconds`, or less if this transport can tell that a message is visible here: then it returns at once.

        It is for those who have just found nothing. Who does not want messages must sleep otherwise.
        """


class Store(Protocol):
    """Named bytes with conditional writes. Names are paths of printable ASCII without `..`, at most 1,024 characters."""

    async def create(self) -> None:
        """Make the container if it is not there. Doing it twice, or from two processes at once, is fine."""

    async def check(self) -> None:
        """See, without making anything, that the container is there. Raises `NotFound`."""

    async def put(
        self,
        name: str,
        data: Source,
        *,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Write a whole blob atomically and return its etag. A Path is streamed in blocks and never held as one piece.

        Of what lies in memory already, large bytes and Parts, no more than a few blocks are copied at a time; they must not change
        meanwhile.

        Readers see the old bytes or the new ones, never a part. `if_absent` raises `AlreadyExists` if there is one (which,
        after a repeated request, may be this very write: compare what lies there); `if_match` raises `ConditionFailed`
        if its etag is another or it is gone. Metadata keys are lower-case letters and digits, values printable ASCII.
        Raises `NotFound` if there is no container.
        """

    async def get(self, name: str, *, start: int = 0, length: int | None = None, if_none_match: str | None = None) -> Blob | None:
        """Read a blob, or `length` bytes of it from `start` (fewer at its end; none, with the info, past it), with its metadata.

        Returns None if `if_none_match` is its etag still. Raises `NotFound`.
        """

    async def head(self, name: str) -> BlobInfo:
        """What a listing would tell, with metadata. Raises `NotFound`."""

    async def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Remove a blob. Raises `NotFound` if there is none, `ConditionFailed` if its etag is another."""

    def list(self, prefix: str, *, with_metadata: bool = False, page: int = MAX_PAGE) -> AsyncIterator[BlobInfo]:
        """All blobs whose names begin with `prefix`, in the order of their names, at most `page` of them a request.

        A page is asked for when the one before it has been gone through, however much later. To make one of 5,000 with metadata
        keeps the event loop busy for a second or more; who must not do that asks for smaller ones.

        Without `with_metadata` only `name` is sure to be filled in (size 0, etag empty, modified 0): names are much cheaper
        than the rest.
        A blob that is there before and after the listing is in it, exactly once. An absent container raises `NotFound`.
        """

    async def append(self, name: str, data: bytes, *, at: int) -> int:
        """Append to a blob that is made when first appended to, if it is `at` bytes long now; return the new length.

        Raises `ConditionFailed` otherwise. A blob is either put or appended to, never both. At most 4 MiB a time.
        """


class Transport(Protocol):
    """An opened place. It belongs to the event loop it was opened on and to one process."""

    def queue(self, name: str, *, app: str) -> Queue:
        """The queue of this name, which `app` owns. No request is made."""

    def store(self, container: str) -> Store:
        """The container of this name. No request is made."""

    @property
    def requests(self) -> Requests:
        """What has been asked of the service so far, repeats included; a local place counts what Azure would have been asked."""

    @property
    def credential(self) -> str:
        """What gives the right to use this place, in words and without secrets: "an account key", or which source of Entra ID."""

    async def queues(self, prefix: str) -> dict[str, str]:
        """The queues whose names begin with `prefix`, each with the app that it names; "" where it names none.

        Listing needs a right to the whole place, which those who may use one queue need not have: then `AccessDenied`.
        """

    async def server_time(self) -> float:
        """Epoch seconds by the server's clock, from the last answers or, before the first one, from a cheap request."""

    async def close(self) -> None:
        """Close connections and files. Doing it twice is fine."""
