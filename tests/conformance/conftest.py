"""One suite for every transport: each test here runs on a folder, on a real Azurite, and on what tests keep in memory.

A test is a plain function; `run` runs one coroutine of it on the loop to which the transport belongs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from memory_transport import MemoryPlace, MemoryTransport

from ai4s.jobq.transports import open_transport
from ai4s.jobq.transports.base import BlobInfo, Queue, Store, Transport
from ai4s.jobq.transports.place import parse_place

T = TypeVar("T")

Until = Callable[..., Coroutine[Any, Any, Any]]


class Run(Protocol):
    """Runs a coroutine to its end."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


@pytest.fixture(params=["local", "azurite", "memory"])
def place_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the test runs."""
    if request.param == "memory":
        return "memory"
    if request.param == "local":
        return f"local://{tmp_path}/place"
    return str(request.getfixturevalue("azurite_url"))


@pytest.fixture
def unique() -> str:
    """A name that no other test uses, as all tests share one Azurite."""
    return f"t{uuid.uuid4().hex[:20]}"


@pytest.fixture
def run() -> Iterator[Run]:
    """The test's event loop."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture
def open_another(run: Run, place_url: str) -> Iterator[Callable[[], Transport]]:
    """Opens the place once more, as another process would; closed at the end."""
    memory = MemoryPlace()
    with contextlib.ExitStack() as stack:

        def open_it() -> Transport:
            if place_url == "memory":
                return MemoryTransport(memory)
            transport = run(open_transport(parse_place(place_url)))
            stack.callback(lambda: run(transport.close()))
            return transport

        yield open_it


@pytest.fixture
def transport(open_another: Callable[[], Transport]) -> Transport:
    """The place, opened."""
    return open_another()


@pytest.fixture
def queue(run: Run, transport: Transport, unique: str) -> Queue:
    """An empty queue."""
    queue = transport.queue(unique, app="one")
    run(queue.create())
    return queue


@pytest.fixture
def other_queue(open_another: Callable[[], Transport], queue: Queue) -> Queue:
    """The same queue, seen through another transport."""
    return open_another().queue(queue.name, app="one")


@pytest.fixture
def store(run: Run, transport: Transport, unique: str) -> Store:
    """An empty container."""
    store = transport.store(unique)
    run(store.create())
    return store


@pytest.fixture
def other_store(open_another: Callable[[], Transport], store: Store, unique: str) -> Store:
    """The same container, seen through another transport."""
    return open_another().store(unique)


@pytest.fixture
def until() -> Until:
    """Waits for a condition, which has to come true in time."""

    async def wait(condition: Callable[[], Awaitable[T]], *, within: float = 15.0) -> T:
        give_up_at = time.monotonic() + within
        while not (found := await condition()):
            assert time.monotonic() < give_up_at, f"did not come true within {within} s"
            await asyncio.sleep(0.05)
        return found

    return wait


@pytest.fixture
def listed(run: Run, store: Store) -> Callable[..., list[BlobInfo]]:
    """The listing of a prefix as a list."""

    async def collect(prefix: str, with_metadata: bool) -> list[BlobInfo]:
        return [info async for info in store.list(prefix, with_metadata=with_metadata)]

    return lambda prefix, *, with_metadata=False: run(collect(prefix, with_metadata))
