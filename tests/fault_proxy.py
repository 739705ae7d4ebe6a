"""A storage account with faults: a proxy before Azurite that can spoil each request as a plan says.

`async with faulty_account(url) as account` yields an account whose `place` and `url` lead through the proxy. The plan is
asked once per request and may look at its kind ("send", "receive", "put", …); `account.requests` lists all that came.

    account.plan = spoil("delete message", Fault.LOSE_ANSWER)      # the first one only
    account.plan = at_random(0.1, seed=1)                          # a tenth of everything, in every way

Next: `unit/test_azure_transport.py` for how it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from urllib.parse import parse_qs, urlsplit

from ai4s.jobq.transports.azure import AzureTransport
from ai4s.jobq.transports.azure.queue import AzureQueue
from ai4s.jobq.transports.azure.store import AzureStore
from ai4s.jobq.transports.place import AzurePlace, parse_place


class Fault(Enum):
    """What happens to one request."""

    NONE = auto()
    LOSE_ANSWER = auto()  # carried out; the connection breaks before the answer
    TRUNCATE = auto()  # carried out; the answer breaks off in its body
    GARBLE = auto()  # carried out; the answer's body is not what it should be
    RESET = auto()  # not carried out; the connection is reset
    BLACK_HOLE = auto()  # not carried out, and no answer for as long as the client waits
    BUSY = auto()  # not carried out; 503 ServerBusy
    BROKEN = auto()  # not carried out; 500 InternalError
    DENIED = auto()  # not carried out; 403, as without a right


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it."""

    service: str
    method: str
    target: str
    headers: dict[str, str]

    @property
    def kind(self) -> str:
        """The operation, by the names that the contract uses."""
        return queue_kind(self) if self.service == "queue" else blob_kind(self)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def path(self) -> list[str]:
        """The path below the account."""
        return [part for part in urlsplit(self.target).path.split("/") if part][1:]


Plan = Callable[[Request], Fault]


def no_faults(request: Request) -> Fault:
    return Fault.NONE


def spoil(kind: str, *faults: Fault) -> Plan:
    """Spoil the first requests of this kind, one with each of `faults`, and let the others be."""
    waiting = list(faults)
    return lambda request: waiting.pop(0) if waiting and request.kind == kind else Fault.NONE


def spoil_all(kind: str, fault: Fault) -> Plan:
    """Spoil every request of this kind ("" is any kind)."""
    return lambda request: fault if kind in ("", request.kind) else Fault.NONE


def at_random(share: float, *, seed: int, faults: Sequence[Fault] = ()) -> Plan:
    """Spoil this share of all requests, each in one of `faults` (all but black holes and denials if not given)."""
    dice = random.Random(seed)
    ways = faults or [fault for fault in Fault if fault not in (Fault.NONE, Fault.BLACK_HOLE, Fault.DENIED)]
    return lambda request: dice.choice(ways) if dice.random() < share else Fault.NONE


def queue_kind(request: Request) -> str:
    method, path = request.method, request.path
    if path[1:] == ["messages"]:
        reading = "peek" if "peekonly" in request.query else "receive"
        return {"POST": "send", "GET": reading, "DELETE": "clear"}[method]
    if path[1:2] == ["messages"]:
        return {"PUT": "update", "DELETE": "delete message"}[method]
    return {"PUT": "create queue", "GET": "look at queue", "HEAD": "look at queue"}.get(method, method)


def blob_kind(request: Request) -> str:
    method, steps = request.method, request.query.get("comp", [""])
    if "restype" in request.query:
        return "list" if steps == ["list"] else {"PUT": "create container"}.get(method, "look at container")
    if method == "PUT":
        return {"block": "stage", "blocklist": "commit", "appendblock": "append"}.get(steps[0], "put")
    return {"GET": "get", "HEAD": "head", "DELETE": "delete"}.get(method, method)


COUNTED_AS = {
    "send": "queue_send",
    "receive": "queue_receive",
    "peek": "queue_peek",
    "update": "queue_renew",
    "delete message": "queue_delete",
    "look at queue": "queue_depth",
    "list": "blob_list",
    "put": "blob_put",
    "stage": "blob_put",
    "commit": "blob_put",
    "append": "blob_append",
    "get": "blob_get",
    "head": "blob_head",
    "delete": "blob_delete",
}


def counted_kind(request: Request) -> str:
    """A request by the name under which a transport counts it."""
    return COUNTED_AS.get(request.kind, f"{request.service}_other")


@dataclass
class FaultyAccount:
    """An account behind the proxy. Tests set `plan` and read `requests`."""

    place: AzurePlace
    plan: Plan = no_faults
    requests: list[Request] = field(default_factory=list)
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """The account as a connection string, for other processes."""
        return (
            f"AccountName={self.place.account};AccountKey={self.place.key};"
            f"BlobEndpoint={self.place.blob_url};QueueEndpoint={self.place.queue_url}"
        )

    def kinds(self) -> list[str]:
        """The kinds of all requests so far."""
        return [request.kind for request in self.requests]


@contextlib.asynccontextmanager
async def faulty_account(url: str) -> AsyncIterator[FaultyAccount]:
    """Put a proxy before both services of the account at `url`."""
    place = azure_place(url)
    account = FaultyAccount(place)
    blobs, blob_url = await listen(account, "blob", place.blob_url)
    queues, queue_url = await listen(account, "queue", place.queue_url)
    account.place = replace(place, blob_url=blob_url, queue_url=queue_url)
    try:
        yield account
    finally:
        blobs.close()
        queues.close()
        for task in account.connections:
            task.cancel()
        await asyncio.gather(*account.connections, return_exceptions=True)


async def listen(account: FaultyAccount, service: str, upstream: str) -> tuple[asyncio.Server, str]:
    parts = urlsplit(upstream)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        account.connections.add(task)
        task.add_done_callback(account.connections.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve_connection(account, service, (parts.hostname or "", parts.port or 80), reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    port = server.sockets[0].getsockname()[1]
    return server, f"{parts.scheme}://127.0.0.1:{port}{parts.path}"


async def serve_connection(
    account: FaultyAccount, service: str, upstream: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer requests until the client leaves or a fault ends the connection."""
    onward: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    try:
        while True:
            head, body = await read_message(reader)
            request = parse_request(service, head)
            account.requests.append(request)
            fault = account.plan(request)
            if fault in REFUSALS:
                writer.write(REFUSALS[fault])
            elif fault is Fault.RESET:
                return reset(writer)
            elif fault is Fault.BLACK_HOLE:
                await reader.read()
                return None
            else:
                onward = onward or await asyncio.open_connection(*upstream, limit=2**20)
                onward[1].write(head + body)
                answer = await read_message(onward[0], bodiless=request.method == "HEAD")
                if not pass_on(answer, fault, writer):
                    return reset(writer) if fault is Fault.LOSE_ANSWER else None
            await writer.drain()
    finally:
        if onward:
            onward[1].close()


def pass_on(answer: tuple[bytes, bytes], fault: Fault, writer: asyncio.StreamWriter) -> bool:
    """Write the answer as the fault leaves it; says whether the connection goes on."""
    head, body = answer
    if fault is Fault.NONE or (fault in (Fault.TRUNCATE, Fault.GARBLE) and not body):
        writer.write(head + body)
        return True
    if fault is Fault.TRUNCATE:
        writer.write(head + body[: len(body) // 2])
    if fault is Fault.GARBLE:
        writer.write(head + body.replace(b"<", b"\x01"))
        return True
    return False


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    linger_none = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
    writer.transport.abort()


async def read_message(reader: asyncio.StreamReader, *, bodiless: bool = False) -> tuple[bytes, bytes]:
    """One HTTP message: its head, and its body as it was on the wire."""
    head = await reader.readuntil(b"\r\n\r\n")
    headers = parse_headers(head)
    if bodiless or b" 304 " in head[:16] or b" 204 " in head[:16]:
        return head, b""
    if headers.get("transfer-encoding") == "chunked":
        return head, await read_chunks(reader)
    return head, await reader.readexactly(int(headers.get("content-length", 0)))


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    raw = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        raw += line + await reader.readexactly(size + 2)
        if size == 0:
            return raw


def parse_headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


def parse_request(service: str, head: bytes) -> Request:
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    return Request(service, method, target, parse_headers(head))


def refusal(status: str, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>"
    fields = f"Content-Type: application/xml\r\nx-ms-error-code: {code}\r\nContent-Length: {len(body)}"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n{body}".encode()


REFUSALS = {
    Fault.BUSY: refusal("503 Server Busy", "ServerBusy"),
    Fault.BROKEN: refusal("500 Internal Server Error", "InternalError"),
    Fault.DENIED: refusal("403 Forbidden", "AuthorizationPermissionMismatch"),
}


def fresh_name() -> str:
    """A name for a queue or container that no other test uses."""
    return f"t{uuid.uuid4().hex}"


def azure_place(url: str) -> AzurePlace:
    """The account behind a URL."""
    place = parse_place(url)
    assert isinstance(place, AzurePlace)
    return place


@contextlib.asynccontextmanager
async def opened(place: AzurePlace, budget_seconds: float = 5) -> AsyncIterator[AzureTransport]:
    """An account, opened with this budget for repeats."""
    transport = await AzureTransport.open(place, budget_seconds=budget_seconds)
    try:
        yield transport
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def faulty_queue(url: str, budget_seconds: float = 5) -> AsyncIterator[tuple[FaultyAccount, AzureQueue]]:
    """A queue of its own behind the proxy."""
    async with faulty_account(url) as account, opened(account.place, budget_seconds) as transport:
        queue = transport.queue(fresh_name(), app="test")
        await queue.create()
        account.requests.clear()
        yield account, queue


@contextlib.asynccontextmanager
async def faulty_store(url: str, budget_seconds: float = 5) -> AsyncIterator[tuple[FaultyAccount, AzureStore]]:
    """A container of its own behind the proxy."""
    async with faulty_account(url) as account, opened(account.place, budget_seconds) as transport:
        store = transport.store(fresh_name())
        await store.create()
        account.requests.clear()
        yield account, store
