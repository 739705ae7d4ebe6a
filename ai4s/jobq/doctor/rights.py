"""Every operation that a role needs, really tried: in the app's own queue and container, as rights may be given for one alone.

The probe message is a call that has expired and is delayed by an hour. So no worker meets it before it is deleted; and should this
process die in between, the one that does writes "expired" and runs nothing. What is received to try that is given back at once: it
costs its worker a look for an outcome. Probe blobs have a folder of their own, which `gc` clears.

Next: `footprint.py`.
"""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from .. import layout
from ..errors import (
    AccessDenied,
    AlreadyExists,
    ConditionFailed,
    JobQError,
    LeaseLost,
    NotFound,
    PlaceTaken,
    TransportError,
    Unreachable,
)
from ..ledger import Ledger
from ..message import Call
from ..transports.base import Queue, Receipt, Store
from .finding import Finding, failed, fine, warning

PRODUCER, WORKER, LOOKER = "producer", "worker", "looker"
ROLES = (PRODUCER, WORKER, LOOKER)
"""Who pushes and waits, who works, and who looks after both."""

PROBE_DELAY_SECONDS = 3600.0
RECEIVE_LEASE_SECONDS = 15.0
NETWORK_RULE = "AuthorizationFailure"
"""The service's code where the account's firewall, and not a missing role, is the reason."""

READER, CONTRIBUTOR = "Storage Blob Data Reader", "Storage Blob Data Contributor"
Q_READER, Q_SENDER, Q_PROCESSOR, Q_CONTRIBUTOR = (
    "Storage Queue Data Reader",
    "Storage Queue Data Message Sender",
    "Storage Queue Data Message Processor",
    "Storage Queue Data Contributor",
)


@dataclass(frozen=True, slots=True)
class Right:
    """An operation: who needs it, which roles of Azure give it (the narrowest first), and which permission of a SAS."""

    name: str
    needed_by: tuple[str, ...]
    given_by: tuple[str, ...]
    permission: str


RIGHTS = {
    right.name: right
    for right in (
        Right("queue: look", ROLES, (Q_READER, Q_CONTRIBUTOR), "r"),
        Right("queue: create", (), (Q_CONTRIBUTOR,), "w"),
        Right("queue: send", (PRODUCER, WORKER), (Q_SENDER, Q_CONTRIBUTOR), "a"),
        Right("queue: peek", (WORKER, LOOKER), (Q_READER, Q_PROCESSOR, Q_CONTRIBUTOR), "r"),
        Right("queue: receive", (WORKER,), (Q_PROCESSOR, Q_CONTRIBUTOR), "p"),
        Right("queue: update", (WORKER,), (Q_CONTRIBUTOR,), "u"),
        Right("queue: delete", (WORKER,), (Q_PROCESSOR, Q_CONTRIBUTOR), "p"),
        Right("container: look", ROLES, (READER, CONTRIBUTOR), "r"),
        Right("container: create", (), (CONTRIBUTOR,), "c"),
        Right("blobs: put", (PRODUCER, WORKER), (CONTRIBUTOR,), "w"),
        Right("blobs: put on conditions", (PRODUCER, WORKER), (CONTRIBUTOR,), "w"),
        Right("blobs: get", ROLES, (READER, CONTRIBUTOR), "r"),
        Right("blobs: list", ROLES, (READER, CONTRIBUTOR), "l"),
        Right("blobs: delete", (WORKER,), (CONTRIBUTOR,), "d"),
    )
}

Step = Callable[[], Awaitable[object]]


class StopExamining(Exception):
    """Nothing further can be tried: the credentials themselves were refused, or nobody answers."""


class Rights:
    """Tries the rights to one queue and the container of an app."""

    def __init__(self, ledger: Ledger, roles: tuple[str, ...]) -> None:
        self._ledger, self._roles = ledger, roles

    async def to_queue(self, name: str, *, create: bool) -> AsyncIterator[Finding]:
        """What may be done with a queue. Raises StopExamining."""
        queue = self._ledger.transport.queue(layout.queue_name(self._ledger.app, name), app=self._ledger.app)
        if create:
            yield await self._try("queue: create", queue.create)
        there = await self._try("queue: look", queue.check, missing=f"there is no queue {name!r} yet: what is sent first makes it")
        yield there
        if not _is_there(there):
            return
        if not create:
            yield await self._try("queue: create", queue.create)
        probe = _Probe(queue, await self._probe(name))
        try:
            for right, step in probe.steps():
                yield await self._try(right, step)
        finally:
            await probe.remove()

    async def _probe(self, queue: str) -> str:
        """The text of a call that every worker takes for expired."""
        client = base64.b32encode(secrets.token_bytes(10)).decode().lower()
        call = Call(layout.call_id(client, 0), "jobq.doctor", queue, b"", sent=0.0, codec="msgpack", expires=0.0)
        return (await self._ledger.sealed(call))[1]

    async def to_container(self, *, create: bool) -> AsyncIterator[Finding]:
        """What may be done with blobs. Raises StopExamining."""
        store = self._ledger.transport.store(layout.container_name(self._ledger.app))
        if create:
            yield await self._try("container: create", store.create)
        there = await self._try("container: look", store.check, missing="there is no container yet: what is sent first makes it")
        yield there
        if not _is_there(there):
            return
        if not create:
            yield await self._try("container: create", store.create)
        name = f"{layout.PROBES}{secrets.token_hex(8)}"
        try:
            for right, step in _blob_steps(store, name):
                yield await self._try(right, step)
        finally:
            with suppress(TransportError):
                await store.delete(name)

    async def _try(self, name: str, step: Step, *, missing: str = "") -> Finding:
        """Do it; what the storage says of it, as a finding."""
        try:
            await step()
        except AccessDenied as exc:
            return self._denied(RIGHTS[name], exc)
        except PlaceTaken as exc:
            return failed(name, str(exc), "Choose another name for the app or the queue.")
        except NotFound:
            if missing:
                return warning(name, missing, "To try the rights now: `doctor --create`, which makes it.")
            return fine(name, "allowed")  # of a blob that could not be put before
        except Unreachable as exc:
            raise StopExamining(str(exc)) from exc
        except JobQError as exc:
            return failed(name, str(exc), "")
        return fine(name, "allowed")

    def _denied(self, right: Right, exc: AccessDenied) -> Finding:
        if exc.unknown:
            raise StopExamining(str(exc)) from exc
        missing_for = [role for role in self._roles if role in right.needed_by]
        if not missing_for:
            told = "not allowed, and not needed" if right.needed_by else "not allowed, and needed only where it is not there yet"
            return fine(right.name, told)
        return failed(right.name, f"not allowed, and needed by a {' and a '.join(missing_for)}", self._advice(right, exc))

    def _advice(self, right: Right, exc: AccessDenied) -> str:
        if NETWORK_RULE in str(exc).split("answered", 1)[-1].replace(",", " ").replace(".", " ").split():
            return "The account's firewall keeps this network out, or the credential is not for this account."
        credential = self._ledger.transport.credential
        if "key" in credential:
            return "A key gives every right: access by key is disabled for this account, perhaps; use azure://ACCOUNT, by Entra ID."
        if "SAS" in credential:
            service = "queues" if right.name.startswith("queue") else "blobs"
            return f"The SAS lacks the permission {right.permission!r} for {service} (or its service or resource type: bq, sco)."
        return f"Give this identity the role {' or '.join(right.given_by)} (a new role takes some minutes)."


@dataclass(slots=True)
class _Probe:
    """A message of ours, and the receipt that holds it once it was sent."""

    queue: Queue
    text: str
    receipt: Receipt | None = None

    def steps(self) -> tuple[tuple[str, Step], ...]:
        """What is tried with it, in this order."""
        return (
            ("queue: send", self._send),
            ("queue: peek", lambda: self.queue.peek(1)),
            ("queue: receive", lambda: _receive(self.queue)),
            ("queue: update", self._update),
            ("queue: delete", self._delete),
        )

    async def remove(self) -> None:
        """Take it away if it is still there."""
        with suppress(TransportError):
            if self.receipt is not None:
                await self.queue.delete(self.receipt)

    async def _send(self) -> None:
        self.receipt = await self.queue.send(self.text, delay_seconds=PROBE_DELAY_SECONDS)

    async def _update(self) -> None:
        with _of_nothing(self.receipt):
            renewed = await self.queue.renew(self.receipt or _no_receipt(), lease_seconds=PROBE_DELAY_SECONDS)
            self.receipt = renewed

    async def _delete(self) -> None:
        with _of_nothing(self.receipt):
            await self.queue.delete(self.receipt or _no_receipt())
            self.receipt = None


@contextmanager
def _of_nothing(receipt: Receipt | None) -> Iterator[None]:
    """Without a message of ours: whoever has the right is told that there is no such message, in whichever words."""
    try:
        yield
    except (AccessDenied, Unreachable):
        raise
    except TransportError:
        if receipt is not None:
            raise


def _is_there(finding: Finding) -> bool:
    return finding.said == "allowed" or finding.said.startswith("not allowed")


def _no_receipt() -> Receipt:
    """One that holds nothing: who may not update a message is told so before anybody looks for it."""
    return Receipt(str(uuid.uuid4()), base64.b64encode(secrets.token_bytes(8)).decode())


async def _receive(queue: Queue) -> None:
    """Take a message, if there is one, and give it back at once."""
    for delivery in await queue.receive(1, lease_seconds=RECEIVE_LEASE_SECONDS):
        with suppress(LeaseLost, AccessDenied):
            await queue.release(delivery.receipt)


def _blob_steps(store: Store, name: str) -> tuple[tuple[str, Step], ...]:
    async def conditions() -> None:
        if not await _is_refused(store.put(name, b"2", if_absent=True)) or not await _is_refused(
            store.put(name, b"3", if_match='"0"')
        ):
            raise JobQError("The storage overwrites a blob against the condition that was given: no outcome would be safe.")

    async def get() -> Any:
        await store.head(name)
        return await store.get(name)

    return (
        ("blobs: put", lambda: store.put(name, b"1", metadata={"probe": "1"}, if_absent=True)),
        ("blobs: put on conditions", conditions),
        ("blobs: get", get),
        ("blobs: list", lambda: anext(store.list(name, with_metadata=True), None)),
        ("blobs: delete", lambda: store.delete(name)),
    )


async def _is_refused(put: Awaitable[str]) -> bool:
    try:
        await put
    except (AlreadyExists, ConditionFailed):
        return True
    return False
