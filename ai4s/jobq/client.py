"""One app at one place in one process: its portal, its ledger, and the ids it gives out.

Everything that users hold (tasks, handles) refers to a Client. It opens nothing until it is used; after a fork
the child opens its own connections and takes a client id of its own, since neither connections nor ids may be shared.
A pickled Client carries no secret: unpickling finds the process's own client of that app and place, or makes one.

Next: `submission.py`, which sends calls through it.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import os
import secrets
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from . import layout
from .blobs.containers import Containers
from .clock import boottime
from .config import check_keys, default_url, read_settings
from .errors import ConfigurationError
from .ledger import Ledger
from .message import PackHeader
from .portal import Portal
from .recent import Recent
from .signing import Keyring
from .telemetry.sending import Producing
from .transports import open_transport
from .transports.place import Place, parse_place

T = TypeVar("T")
log = logging.getLogger("ai4s.jobq")

SILENCE_SECONDS = 15.0
"""How long somebody waits before the log says that nobody seems to work."""

WORKER_SEEN_SECONDS = 180.0
"""A worker whose status is older than this counts as gone: three times the longest pause between two writes."""


class Origin(NamedTuple):
    """What a client was told about its place; None is left to the environment."""

    url: str | None
    signing_keys: tuple[str, ...] | None
    create: bool


class _Session:
    """What must not outlive or leave its process."""

    def __init__(self, client: Client) -> None:
        self.pid = os.getpid()
        self.portal = Portal()
        self.id = base64.b32encode(secrets.token_bytes(10)).decode().lower()
        self.numbers = itertools.count()
        self.published: set[str] = set()
        settings = read_settings()
        self.containers = Containers(settings.environ, settings.cache_bytes)
        self.fleet: Recent[Any] = Recent()
        """What the workers said last, for who asks often."""
        self.producing = Producing(client.name, settings.environ)
        self._place, self._name, self._keyring, self._create = client.place, client.name, client.keyring, client.create
        self._ledger: Ledger | None = None
        self._closed = False

    async def ledger(self) -> Ledger:
        """Opened on the portal's loop by whoever comes first."""
        if self._ledger is None:
            transport = await open_transport(self._place, environ=read_settings().environ, create=self._create)
            if self._ledger is not None:  # somebody else was faster
                await transport.close()
                return self._ledger
            self._ledger = Ledger(transport, self._name, self._keyring, create=self._create)
        return self._ledger

    def close(self) -> None:
        """Close connections and the portal, once, and only in the process that they belong to."""
        if not self._closed and self.pid == os.getpid():
            self._closed = True
            self.portal.close(self._close())
            self.producing.close()

    async def _close(self) -> None:
        await self.containers.close()
        if self._ledger is not None:
            await self._ledger.transport.close()


class Instead(Protocol):
    """What tests put in the place of queues and workers."""

    def __call__(self, work: Callable[[Ledger, Any], Coroutine[Any, Any, T]], /) -> T:
        """Do what sends calls, which is given a step of its own in place of the sending."""

    async def take_pack(self, ledger: Ledger, pack: PackHeader, /, delay_seconds: float = 0) -> None:
        """Take a pack in place of its queue."""

    def run_taken(self) -> None:
        """Run the packs that were taken; on the caller's thread."""


class Client:
    """An app's name, place and keys, and this process's way to them.

    Args:
        name: the app's name, checked.
        url: the place's URL; None takes what the environment says at first use.
        signing_keys: newest first; None takes what the environment says at first use.
        create: whether queues and container are made on first use.
    """

    def __init__(self, name: str, url: str | None, signing_keys: tuple[str, ...] | None, *, create: bool = True) -> None:
        self.name, self.create = name, create
        self._given_url, self._given_keys = url, signing_keys
        self._session: _Session | None = None
        self._lock = threading.Lock()
        self._silence_noted = False
        self.modules: set[str] = set()
        """Where workers find tasks of this app by importing."""
        self.queues = {layout.DEFAULT_QUEUE}
        """The queues that tasks of this app and their options name, as far as this process knows them."""
        self.result_ttl_seconds: float | None = None
        """After how long workers of this app may remove outcomes."""
        self.instead: Instead | None = None
        """None outside tests."""

    @cached_property
    def url(self) -> str:
        """The place's URL, which may hold a secret; raises ConfigurationError where none can be meant."""
        settings = read_settings()
        url = self._given_url or settings.url
        if url is None:
            url = default_url(settings, Path.cwd())
            log.info("App %s uses the folder %s (JOBQ_URL is not set).", self.name, url)
        return url

    @cached_property
    def place(self) -> Place:
        """The place; raises ConfigurationError for a URL that is none."""
        url = self.url
        try:
            place = parse_place(url)
        except ConfigurationError as exc:
            source = f"The url of the app {self.name!r}" if self._given_url else "JOBQ_URL"
            raise ConfigurationError(f"{source}: {exc}") from None
        _CLIENTS[self.name, place.label] = self
        return place

    @cached_property
    def keyring(self) -> Keyring:
        """The keys that sign and verify; raises ConfigurationError for one that is too short."""
        return Keyring(read_settings().signing_keys if self._given_keys is None else check_keys(self._given_keys))

    def __reduce__(self) -> tuple[object, ...]:
        return (_attach, (self.name, self.place.label))

    def run(self, work: Callable[[Ledger], Coroutine[Any, Any, T]]) -> T:
        """Do something with the ledger and wait for it."""
        session = self.session
        return session.portal.run(_with_ledger(session, work))

    def start(self, work: Callable[[Ledger], Coroutine[Any, Any, T]]) -> Future[T]:
        """Have something done with the ledger, and wait for nothing."""
        session = self.session
        return session.portal.start(_with_ledger(session, work))

    async def arun(self, work: Callable[[Ledger], Coroutine[Any, Any, T]]) -> T:
        """Do something with the ledger and await it, from any loop."""
        session = self.session
        return await session.portal.arun(_with_ledger(session, work))

    @property
    def session(self) -> _Session:
        """This process's session; after a fork, a new one."""
        with self._lock:
            if self._session is None or self._session.pid != os.getpid():
                self._session = _Session(self)
                # At the interpreter's end too, so that connections are closed while their loop still runs.
                weakref.finalize(self, self._session.close)
            return self._session

    def next_call_id(self) -> str:
        """A call id that nobody else has."""
        session = self.session
        return layout.call_id(session.id, next(session.numbers))

    async def publish(self, ledger: Ledger, payloads: tuple[bytes, ...]) -> tuple[str, ...]:
        """Upload what this process has not uploaded yet; returns the digests."""
        return tuple([await self._publish(ledger, data) for data in payloads])

    async def _publish(self, ledger: Ledger, data: bytes) -> str:
        published = self.session.published
        sha256 = layout.sha256_of(data)
        if sha256 not in published:
            published.add(await ledger.publish(data))
        return sha256

    async def send_pack(self, ledger: Ledger, pack: PackHeader, /, delay_seconds: float = 0) -> None:
        """Put a pack's message on its queue; see `Ledger.send_pack`."""
        if self.instead is not None:
            await self.instead.take_pack(ledger, pack, delay_seconds)
        else:
            await ledger.send_pack(pack, delay_seconds)

    def run_taken(self) -> None:
        """In tests, run the packs that were sent; else nothing."""
        if self.instead is not None:
            self.instead.run_taken()

    async def arun_taken(self) -> None:
        """As `run_taken`."""
        if self.instead is not None:
            await asyncio.to_thread(self.instead.run_taken)

    async def note_silence(self, ledger: Ledger, waiting_since: float) -> None:
        """After some time of waiting, say once where the call lies and whether any worker has been seen there."""
        if self._silence_noted or boottime() - waiting_since < SILENCE_SECONDS:
            return
        self._silence_noted = True
        store, now = await ledger.store(), await ledger.transport.server_time()
        workers = [info async for info in store.list(layout.WORKERS, with_metadata=True)]
        if not any(info.metadata.get("state") != "stopped" and now - info.modified < WORKER_SEEN_SECONDS for info in workers):
            log.warning(
                "Still waiting: no worker has been seen for app %r at %s. Start one with: jobq-worker %s",
                self.name, self.place.label, self._target(),
            )  # fmt: skip

    def _target(self) -> str:
        """What to start a worker with: the module where the app is found, if its tasks have one."""
        for module in sorted(self.modules):
            for name, value in vars(sys.modules.get(module, object)).items():
                if getattr(value, "client", None) is self and hasattr(value, "tasks"):
                    return f"{module}:{name}"
        return f"{self.place.label}/{self.name}"

    @property
    def origin(self) -> Origin:
        """What it was told about its place."""
        return Origin(self._given_url, self._given_keys, self.create)

    def move(self, origin: Origin) -> None:
        """From now on, be the client of this place."""
        self.close()
        self._given_url, self._given_keys, self.create = origin
        for name in ("url", "place", "keyring"):
            self.__dict__.pop(name, None)

    def close(self) -> None:
        """Close connections and the portal; the next use opens them again."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()


async def _with_ledger(session: _Session, work: Callable[[Ledger], Awaitable[T]]) -> T:
    return await work(await session.ledger())


# The only mutable module state: an unpickled handle must find the client that its process already has, with its
# connections and keys, and there is nobody whom unpickling could ask but the module.
_CLIENTS: weakref.WeakValueDictionary[tuple[str, str], Client] = weakref.WeakValueDictionary()


def _attach(name: str, label: str) -> Client:
    known = _CLIENTS.get((name, label))
    if known is not None and known.place.label == label:
        return known
    return Client(name, url_of(label), None)


def url_of(label: str) -> str:
    """The URL of the place with this label: $JOBQ_URL if it means the same place, since it may hold the right to use it."""
    url = read_settings().url
    return url if url and parse_place(url).label == parse_place(label).label else label
