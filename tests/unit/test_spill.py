"""Spilled bytes come back as they were or not at all: in order, in bounded memory, with nothing left running."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from ai4s.jobq import spill
from ai4s.jobq.errors import Malformed, Unreachable
from ai4s.jobq.message import Spill
from ai4s.jobq.parts import Parts
from ai4s.jobq.transports.base import Blob, Store
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.place import LocalPlace

BLOCK = 1_000
NAME = "args/x"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1,000 bytes, so that a few KiB are many of them."""
    monkeypatch.setattr(spill, "BLOCK_BYTES", BLOCK)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    """A container of a place in this folder."""
    transport = await LocalTransport.open(LocalPlace(folder / "place"))
    try:
        store = transport.store("c")
        await store.create()
        yield store
    finally:
        await transport.close()


class Watched:
    """A store that notes each read, and does something before it answers."""

    def __init__(self, store: Store, before: Callable[[int], Awaitable[None]] | None = None) -> None:
        self._store, self._before = store, before
        self.reads: list[int] = []

    async def get(self, name: str, *, start: int = 0, length: int | None = None, if_none_match: str | None = None) -> Blob | None:
        self.reads.append(start)
        if self._before is not None:
            await self._before(start)
        return await self._store.get(name, start=start, length=length, if_none_match=if_none_match)


def watched(store: Store, before: Callable[[int], Awaitable[None]] | None = None) -> Any:
    """A watched store, as what takes its place."""
    return Watched(store, before)


def told(data: bytes) -> Spill:
    """What is said of these bytes."""
    return Spill(len(data), hashlib.sha256(data).hexdigest())


async def fetched(store: Store, said: Spill, way: str, folder: Path) -> bytes:
    """The bytes by one of the two ways."""
    if way == "memory":
        return await spill.fetch(store, NAME, said)
    await spill.fetch_to(store, NAME, said, folder / "out")
    return (folder / "out").read_bytes()


def others() -> set[asyncio.Task[Any]]:
    """What runs beside the test."""
    return asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}


WAYS = pytest.mark.parametrize("way", ["memory", "file"])


@pytest.mark.parametrize("kind", ["bytes", "file"])
async def test_length_and_digest_are_those_of_the_bytes(kind: str, tmp_path: Path) -> None:
    """Of bytes in memory and of a file alike."""
    data = os.urandom(5_000)
    (path := tmp_path / "data").write_bytes(data)
    assert await spill.digest(data if kind == "bytes" else path) == told(data)


@WAYS
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK, 9 * BLOCK + 7])
async def test_what_was_spilled_comes_back(size: int, way: str, tmp_path: Path) -> None:
    """For none, one and many blocks, to memory and to a file, and with one read for each block."""
    data = os.urandom(size)
    async with opened(tmp_path) as store:
        await store.put(NAME, data)
        seen = watched(store)
        assert await fetched(seen, told(data), way, tmp_path) == data
        assert seen.reads == list(range(0, size, BLOCK))


@WAYS
async def test_blocks_that_arrive_in_any_order_are_put_in_theirs(way: str, tmp_path: Path) -> None:
    """The first block's answer comes last, and still stands first."""
    data, last_asked = os.urandom(4 * BLOCK), asyncio.Event()

    async def hold_back(start: int) -> None:
        if start == 3 * BLOCK:
            last_asked.set()
        if start == 0:
            await last_asked.wait()

    async with opened(tmp_path) as store:
        await store.put(NAME, data)
        assert await fetched(watched(store, hold_back), told(data), way, tmp_path) == data


async def test_only_a_few_blocks_are_asked_for_ahead(tmp_path: Path) -> None:
    """A slow reader is not overrun: while the first block is awaited, three more are under way, and no fifth."""
    data, asked, go = os.urandom(9 * BLOCK), asyncio.Event(), asyncio.Event()

    async def hold_back(start: int) -> None:
        if start == 3 * BLOCK:
            asked.set()
        await go.wait()

    async with opened(tmp_path) as store:
        await store.put(NAME, data)
        seen = watched(store, hold_back)
        fetching = asyncio.create_task(spill.fetch(seen, NAME, told(data)))
        await asked.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert seen.reads == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
        go.set()
        assert await fetching == data


# What is not as it was.


def lies(data: bytes) -> dict[str, tuple[bytes | None, Spill]]:
    """What lies there, and what is said of it."""
    said = told(data)
    return {
        "missing": (None, said),
        "empty": (b"", said),
        "truncated": (data[:-1], said),
        "truncated at a block": (data[: 2 * BLOCK], said),
        "truncated in the first block": (data[:10], said),
        "longer": (data + b"x", said),
        "longer by blocks": (data + data, said),
        "swapped": (os.urandom(len(data)), said),
        "one bit flipped at the end": (data[:-1] + bytes([data[-1] ^ 1]), said),
        "blocks in another order": (data[BLOCK : 2 * BLOCK] + data[:BLOCK] + data[2 * BLOCK :], said),
        "another digest": (data, Spill(said.size, "0" * 64)),
        "a size that is smaller": (data, Spill(said.size - 1, said.sha256)),
        "a size that is larger": (data, Spill(said.size + 1, said.sha256)),
        "no size": (data, Spill(0, said.sha256)),
    }


@WAYS
@pytest.mark.parametrize("name", lies(bytes(3_500)))
async def test_what_is_not_as_it_was_is_an_error(name: str, way: str, tmp_path: Path) -> None:
    """Missing, truncated, swapped or longer: Malformed that names the blob, and never a wrong value."""
    there, said = lies(os.urandom(3_500))[name]
    async with opened(tmp_path) as store:
        if there is not None:
            await store.put(NAME, there)
        with pytest.raises(Malformed, match=NAME):
            await fetched(store, said, way, tmp_path)
        assert not others()


@WAYS
async def test_a_size_that_lies_costs_a_few_requests(way: str, tmp_path: Path) -> None:
    """Who says nine petabytes over a blob of three bytes gets an error at the first short block."""
    async with opened(tmp_path) as store:
        await store.put(NAME, b"abc")
        seen = watched(store)
        with pytest.raises(Malformed):
            await fetched(seen, Spill(2**53, told(b"abc").sha256), way, tmp_path)
        assert len(seen.reads) <= 2 * spill.BLOCKS_IN_FLIGHT


async def test_nothing_of_a_wrong_value_is_handed_on(tmp_path: Path) -> None:
    """Bytes whose digest is wrong never get beyond their last block into a file, so nobody takes it for complete."""
    data = os.urandom(3 * BLOCK)
    async with opened(tmp_path) as store:
        await store.put(NAME, data[:-1] + b"?")
        with pytest.raises(Malformed):
            await spill.fetch_to(store, NAME, told(data), tmp_path / "out")
    assert (tmp_path / "out").stat().st_size < len(data)


@WAYS
async def test_a_fault_of_the_storage_is_no_damage(way: str, tmp_path: Path) -> None:
    """A store that cannot be reached says so: the bytes may be there, and nothing may be given up."""

    async def fail(start: int) -> None:
        if start == 2 * BLOCK:
            raise Unreachable

    data = os.urandom(9 * BLOCK)
    async with opened(tmp_path) as store:
        await store.put(NAME, data)
        with pytest.raises(Unreachable):
            await fetched(watched(store, fail), told(data), way, tmp_path)
        assert not others()


# Keeping.


@pytest.mark.parametrize("kind", ["bytes", "parts", "file"])
async def test_what_is_kept_is_said_truly(kind: str, tmp_path: Path) -> None:
    """Length and digest of bytes, of pieces and of a file; what is there already stays, and is not complained about."""
    data = os.urandom(5_000)
    (path := tmp_path / "data").write_bytes(data)
    source = {"bytes": data, "parts": Parts.of(data[:100], bytearray(data[100:])), "file": path}[kind]
    async with opened(tmp_path) as store:
        assert await spill.keep(store, NAME, source) == told(data)  # type: ignore[arg-type]  # one of the three
        assert await spill.fetch(store, NAME, told(data)) == data
        assert await spill.keep(store, NAME, b"other") == told(b"other")
        assert await spill.fetch(store, NAME, told(data)) == data


async def test_what_is_kept_is_hashed_while_it_is_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waits for the other."""
    put, real = asyncio.Event(), spill.digest

    class Slow:
        async def put(self, name: str, source: Any, *, if_absent: bool) -> None:
            await put.wait()

    async def hash_then_put(source: Any) -> Spill:
        found = await real(source)
        put.set()
        return found

    monkeypatch.setattr(spill, "digest", hash_then_put)
    assert await spill.keep(cast("Any", Slow()), NAME, b"data") == told(b"data")


@pytest.mark.parametrize("fault", [Unreachable(), OSError("no such file"), asyncio.CancelledError()], ids=repr)
async def test_a_put_that_fails_leaves_nothing_running(fault: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is the one that is raised."""

    class Failing:
        async def put(self, name: str, source: Any, *, if_absent: bool) -> None:
            await asyncio.sleep(0)
            raise fault

    async def for_ever(source: Any) -> Spill:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(spill, "digest", for_ever)
    with pytest.raises(type(fault)):
        await spill.keep(cast("Any", Failing()), NAME, b"data")
    assert not others()


# Memory, and what is left behind.


async def test_large_bytes_are_fetched_into_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB take 64 MiB and a few blocks, and can be written to."""
    monkeypatch.setattr(spill, "BLOCK_BYTES", 1024 * 1024)
    (path := tmp_path / "in").write_bytes(os.urandom(1024 * 1024) * 64)
    async with opened(tmp_path) as store:
        said = await spill.keep(store, NAME, path)
        tracemalloc.start()
        try:
            data = await spill.fetch_large(store, NAME, said)
            held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert isinstance(data, bytearray)
    assert hashlib.sha256(data).hexdigest() == said.sha256
    assert held < (64 + 2.5 * (spill.BLOCKS_IN_FLIGHT + 2)) * 1024 * 1024


async def test_large_bytes_pass_to_a_file_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB go by way of a file with a few blocks of 1 MiB in memory, in both directions."""
    monkeypatch.setattr(spill, "BLOCK_BYTES", 1024 * 1024)
    (path := tmp_path / "in").write_bytes(os.urandom(1024 * 1024) * 64)
    async with opened(tmp_path) as store:
        tracemalloc.start()
        try:
            said = await spill.digest(path)
            await store.put(NAME, path)
            await spill.fetch_to(store, NAME, said, tmp_path / "out")
            held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert await spill.digest(tmp_path / "out") == said
    assert held < 2.5 * (spill.BLOCKS_IN_FLIGHT + 2) * 1024 * 1024


@WAYS
async def test_a_cancelled_fetch_leaves_nothing_running(way: str, tmp_path: Path) -> None:
    """Whoever is cancelled while blocks are under way takes them along."""
    data, asked, never = os.urandom(9 * BLOCK), asyncio.Event(), asyncio.Event()

    async def hold_back(start: int) -> None:
        if start > BLOCK:
            asked.set()
            await never.wait()

    async with opened(tmp_path) as store:
        await store.put(NAME, data)
        fetching = asyncio.create_task(fetched(watched(store, hold_back), told(data), way, tmp_path))
        await asked.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert not others()


async def test_a_full_disk_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file cannot be written, the error is the system's, and the blocks under way are called off at once."""
    monkeypatch.setattr(spill, "BLOCK_BYTES", 100_000)
    data, never = os.urandom(900_000), asyncio.Event()

    async def hold_back(start: int) -> None:
        if start >= 300_000:
            await never.wait()

    async with opened(tmp_path) as store:
        await store.put(NAME, data)
        with pytest.raises(OSError, match="No space left"):
            await spill.fetch_to(watched(store, hold_back), NAME, told(data), Path("/dev/full"))
        assert not others()


async def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    """A file that cannot be made costs no request."""
    async with opened(tmp_path) as store:
        seen = watched(store)
        with pytest.raises(FileNotFoundError):
            await spill.fetch_to(seen, NAME, told(b"x"), tmp_path / "no" / "folder")
        assert seen.reads == []
