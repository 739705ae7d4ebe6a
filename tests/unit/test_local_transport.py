"""What is the local transport's alone: several processes on one folder, killed ones, wake-ups, and folders that will not do.

What every transport promises is in `tests/conformance`.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ai4s.jobq.errors import AlreadyExists, ConfigurationError, NotFound, TransportError, Unreachable
from ai4s.jobq.transports.base import Blob, Delivery, Queue, Store
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.local.database import Transaction
from ai4s.jobq.transports.place import LocalPlace

SPAWN = multiprocessing.get_context("spawn")
LARGE = 200_000  # bytes; more than lies in the database
SENDERS, RECEIVERS, MESSAGES = 3, 3, 200
SOON = 20.0  # seconds; far more than it takes, and far less than the timeouts that must not be waited for


@contextlib.asynccontextmanager
async def opened(folder: Path, *, patience_seconds: float = 10.0) -> AsyncIterator[LocalTransport]:
    """The folder's transport, closed afterwards."""
    transport = await LocalTransport.open(LocalPlace(folder), patience_seconds=patience_seconds)
    try:
        yield transport
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def opened_queue(folder: Path) -> AsyncIterator[Queue]:
    """A queue of the folder."""
    async with opened(folder) as transport:
        queue = transport.queue("q", app="one")
        await queue.create()
        yield queue


@contextlib.asynccontextmanager
async def opened_store(folder: Path) -> AsyncIterator[Store]:
    """A container of the folder."""
    async with opened(folder) as transport:
        store = transport.store("c")
        await store.create()
        yield store


@contextlib.contextmanager
def process(target: Callable[..., None], *arguments: object) -> Iterator[tuple[multiprocessing.process.BaseProcess, Connection]]:
    """A process that runs `target(connection, *arguments)`, killed at the end if it still lives."""
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(target=target, args=(theirs, *arguments))
    child.start()
    theirs.close()
    try:
        yield child, ours
    finally:
        child.kill()
        child.join()
        child.close()
        ours.close()


def rows(folder: Path, sql: str) -> list[tuple[object, ...]]:
    """What the database holds."""
    with contextlib.closing(sqlite3.connect(folder / "jobq.db")) as connection:
        return connection.execute(sql).fetchall()


def files(folder: Path, kind: str) -> list[str]:
    """The files of one kind."""
    return sorted(path.name for path in (folder / kind).iterdir())


async def has_no_files(folder: Path) -> None:
    """Wait until no blob's file is left."""
    give_up_at = time.monotonic() + SOON
    while left := files(folder, "blobs"):
        assert time.monotonic() < give_up_at, left
        await asyncio.sleep(0.02)


# Several processes.


def send_many(connection: Connection, folder: Path, sender: int) -> None:
    """Send numbered messages, some one by one and some at once."""

    async def scenario() -> None:
        async with opened_queue(folder) as queue:
            for i in range(MESSAGES // 2):
                await queue.send(f"{sender}-{i}")
            await asyncio.gather(*(queue.send(f"{sender}-{i}") for i in range(MESSAGES // 2, MESSAGES)))

    asyncio.run(scenario())
    connection.send("sent")


def receive_many(connection: Connection, folder: Path) -> None:
    """Receive and delete until a message says "stop", which is left for the others; tell what came."""

    async def settle(queue: Queue, delivery: Delivery) -> str:
        if delivery.body == "stop":
            await queue.release(delivery.receipt)
        else:
            await queue.delete(delivery.receipt)
        return delivery.body

    async def scenario() -> list[str]:
        got: list[str] = []
        async with opened_queue(folder) as queue:
            while "stop" not in got:
                deliveries = await queue.receive(5, lease_seconds=300)
                got += await asyncio.gather(*(settle(queue, delivery) for delivery in deliveries))
                if not deliveries:
                    await queue.idle(60)
        return got

    connection.send(asyncio.run(scenario()))


def test_no_message_is_lost_or_delivered_twice(tmp_path: Path) -> None:
    """Several processes that make, fill and empty one folder at the same time share it without a fault."""
    folder = tmp_path / "place"
    with contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(process(receive_many, folder))[1] for _ in range(RECEIVERS)]
        senders = [stack.enter_context(process(send_many, folder, i))[1] for i in range(SENDERS)]
        for sender in senders:
            assert sender.poll(60), "a sender is stuck"
            assert sender.recv() == "sent"
        asyncio.run(send_one(folder, "stop"))
        bodies: Counter[str] = Counter()
        for receiver in receivers:
            assert receiver.poll(60), "a receiver is stuck"
            bodies.update(receiver.recv())
        del bodies["stop"]
    assert bodies == Counter(f"{sender}-{i}" for sender in range(SENDERS) for i in range(MESSAGES))


async def send_one(folder: Path, body: str) -> None:
    """Send one message."""
    async with opened_queue(folder) as queue:
        await queue.send(body)


def put_for_ever(connection: Connection, folder: Path) -> None:
    """Put small and large blobs, overwrite and append; tell each one that was acknowledged."""

    async def put_one(store: Store, i: int) -> None:
        size = LARGE if i % 3 else 100
        await store.put(f"b/{i}", i.to_bytes(4, "big") * (size // 4), if_absent=True)
        await store.put(f"over/{i % 5}", i.to_bytes(4, "big") * (size // 4))
        await store.append(f"log/{i}", i.to_bytes(4, "big") * (size // 4), at=0)
        connection.send(i)

    async def scenario() -> None:
        async with opened_store(folder) as store:
            for i in range(0, 10**9, 4):
                await asyncio.gather(*(put_one(store, i + j) for j in range(4)))

    asyncio.run(scenario())


def acknowledged(connection: Connection) -> Iterator[int]:
    """What a process has told until it was killed."""
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


@pytest.mark.parametrize("kill_after", [1, 7, 40])
def test_a_killed_process_leaves_a_sound_store(tmp_path: Path, kill_after: int) -> None:
    """After SIGKILL in the middle of puts all that was acknowledged is there and whole, and so is all that is listed."""
    folder = tmp_path / "place"
    with process(put_for_ever, folder) as (child, connection):
        done = []
        for i in acknowledged(connection):
            done.append(i)
            if len(done) == kill_after:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
    assert len(done) >= kill_after

    async def scenario() -> None:
        async with opened_store(folder) as store:
            names = {info.name async for info in store.list("")}
            assert {f"b/{i}" for i in done} | {f"log/{i}" for i in done} <= names
            for name in names:
                blob = await store.get(name)
                assert blob is not None
                assert blob.data == blob.data[:4] * (blob.info.size // 4)
                assert len(blob.data) == blob.info.size > 0

    asyncio.run(scenario())
    known = rows(folder, "SELECT file FROM parts WHERE file IS NOT NULL UNION ALL SELECT name FROM files")
    assert set(files(folder, "blobs")) <= {name for (name,) in known}
    assert rows(folder, "PRAGMA integrity_check") == [("ok",)]


def test_what_a_killed_put_left_is_swept_a_day_later(tmp_path: Path) -> None:
    """A file that was announced and never adopted is removed by a later opening; a young one may be in use and stays."""

    async def scenario() -> None:
        async with opened_store(tmp_path):
            pass
        for name, age in (("old", 25 * 3600), ("young", 60)):
            (tmp_path / "blobs" / name).write_bytes(b"part of a blob")
            with contextlib.closing(sqlite3.connect(tmp_path / "jobq.db", isolation_level=None)) as connection:
                connection.execute("INSERT INTO files (name, since, doomed) VALUES (?, ?, 0)", (name, time.time() - age))
        async with opened_store(tmp_path):
            assert files(tmp_path, "blobs") == ["young"]

    asyncio.run(scenario())


# Waking up.


def send_when_told(connection: Connection, folder: Path) -> None:
    """Send a message each time the other end says so."""

    async def scenario() -> None:
        async with opened_queue(folder) as queue:
            connection.send("ready")
            while connection.recv() == "send":
                await queue.send("x")

    asyncio.run(scenario())


async def idles(queue: Queue) -> asyncio.Task[None]:
    """A long idle that has surely begun."""
    idle = asyncio.ensure_future(queue.idle(600))
    await asyncio.sleep(0.2)
    assert not idle.done()
    return idle


def test_a_message_from_another_process_ends_an_idle(tmp_path: Path) -> None:
    """Who sleeps on a queue is woken by a send from any process, again and again."""

    async def scenario(connection: Connection) -> None:
        async with opened_queue(tmp_path) as queue:
            for _ in range(3):
                idle = await idles(queue)
                connection.send("send")
                await asyncio.wait_for(idle, SOON)
                [delivery] = await queue.receive(1, lease_seconds=30)
                await queue.delete(delivery.receipt)

    with process(send_when_told, tmp_path) as (child, connection):
        assert connection.poll(60)
        connection.recv()
        asyncio.run(scenario(connection))
        connection.send("end")
        child.join(SOON)


def test_a_message_from_the_same_process_ends_every_idle(tmp_path: Path) -> None:
    """All who sleep on a queue are woken, and those on other queues sleep on."""

    async def scenario() -> None:
        async with opened(tmp_path) as transport, opened(tmp_path) as other:
            queue, neighbour = transport.queue("q", app="one"), transport.queue("n", app="one")
            await asyncio.gather(queue.create(), neighbour.create())
            sleepers = [await idles(one) for one in (queue, queue, other.queue("q", app="one"))]
            undisturbed = await idles(neighbour)
            await queue.send("x")
            await asyncio.wait_for(asyncio.gather(*sleepers), SOON)
            assert not undisturbed.done()
            undisturbed.cancel()

    asyncio.run(scenario())


def test_a_message_sent_before_the_idle_is_not_slept_over(tmp_path: Path) -> None:
    """What came between an empty receive and the idle ends it at once."""

    async def scenario() -> None:
        async with opened_queue(tmp_path) as queue:
            assert await queue.receive(1, lease_seconds=30) == []
            await queue.send("x")
            await asyncio.wait_for(queue.idle(600), SOON)

    asyncio.run(scenario())


def test_an_idle_notices_what_becomes_due(tmp_path: Path) -> None:
    """A delayed message, sent before or during the idle, a lease that ends and a release all end it."""

    async def scenario() -> None:
        async with opened_queue(tmp_path) as queue:
            await queue.send("x", delay_seconds=0.3)
            await asyncio.wait_for(queue.idle(600), SOON)
            [delivery] = await queue.receive(1, lease_seconds=1)
            await asyncio.wait_for(queue.idle(600), SOON)
            [delivery] = await queue.receive(1, lease_seconds=300)
            idle = await idles(queue)
            await queue.release(delivery.receipt)
            await asyncio.wait_for(idle, SOON)
            [delivery] = await queue.receive(1, lease_seconds=300)
            idle = await idles(queue)
            await queue.send("y", delay_seconds=0.3)
            await asyncio.wait_for(idle, SOON)
            [delivery] = await queue.receive(1, lease_seconds=300)
            assert delivery.body == "y"

    asyncio.run(scenario())


def test_a_message_far_off_does_not_end_an_idle(tmp_path: Path) -> None:
    """A delayed message is no reason to wake before it is due."""

    async def scenario() -> None:
        async with opened_queue(tmp_path) as queue:
            idle = await idles(queue)
            await queue.send("x", delay_seconds=300)
            await asyncio.sleep(0.2)
            assert not idle.done()
            idle.cancel()

    asyncio.run(scenario())


def idle_for_ever(connection: Connection, folder: Path) -> None:
    """Sleep on the queue."""

    async def scenario() -> None:
        async with opened_queue(folder) as queue:
            sleeper = await idles(queue)
            connection.send("idle")
            await sleeper

    asyncio.run(scenario())


def test_the_bell_of_a_killed_process_is_taken_down(tmp_path: Path) -> None:
    """A sender that finds nobody behind a bell removes it, and is not held up."""
    with process(idle_for_ever, tmp_path) as (child, connection):
        assert connection.poll(60)
        child.kill()
        child.join()
    assert len(files(tmp_path, "bells")) == 1
    asyncio.run(send_one(tmp_path, "x"))
    assert files(tmp_path, "bells") == []
    assert rows(tmp_path, "SELECT * FROM waiters") == []


def test_closing_leaves_nothing_but_the_database(tmp_path: Path) -> None:
    """Neither bells nor waiters nor SQLite's side files outlive the last transport."""

    async def scenario() -> None:
        async with opened_queue(tmp_path) as queue:
            sleeper = await idles(queue)
        with pytest.raises(Unreachable):
            await sleeper

    asyncio.run(scenario())
    assert [path.name for path in tmp_path.rglob("*") if not path.is_dir()] == ["jobq.db"]
    assert rows(tmp_path, "SELECT * FROM waiters") == []


# Files.


@pytest.mark.parametrize("how", ["delete", "overwrite", "overwrite-small", "lost-race"])
def test_a_file_goes_with_its_blob(tmp_path: Path, how: str) -> None:
    """What no blob refers to any more is removed from the disk."""

    async def scenario() -> None:
        async with opened_store(tmp_path) as store:
            await store.put("x", bytes(LARGE))
            await store.put("x", bytes(LARGE))
            if how == "overwrite-small":
                await store.put("x", b"small")
            elif how == "lost-race":
                attempts = (store.put("y", bytes(LARGE), if_absent=True) for _ in range(4))
                errors = [error for error in await asyncio.gather(*attempts, return_exceptions=True) if not isinstance(error, str)]
                assert [type(error) for error in errors] == [AlreadyExists] * 3
                await store.delete("y")
            if how != "overwrite-small":
                await store.delete("x")
            await has_no_files(tmp_path)
        assert rows(tmp_path, "SELECT * FROM files") == []

    asyncio.run(scenario())


def test_a_cancelled_put_leaves_no_file(tmp_path: Path) -> None:
    """At whatever moment a large put is cancelled, there is a whole blob afterwards or nothing at all."""

    async def scenario() -> None:
        async with opened_store(tmp_path) as store:
            for milliseconds in range(0, 30, 2):
                putting = asyncio.ensure_future(store.put("x", bytes(20 * LARGE)))
                await asyncio.sleep(milliseconds / 1000)
                putting.cancel()
                await asyncio.gather(putting, return_exceptions=True)
                with contextlib.suppress(NotFound):
                    blob = await store.get("x")
                    assert blob is not None
                    assert len(blob.data) == 20 * LARGE
                    await store.delete("x")
            await has_no_files(tmp_path)

    asyncio.run(scenario())


def test_a_vanished_file_is_an_error_and_not_an_absent_blob(tmp_path: Path) -> None:
    """If somebody removed a file by hand, the reader is told of it and not of a missing outcome."""

    async def scenario() -> None:
        async with opened_store(tmp_path) as store:
            await store.put("x", bytes(LARGE))
            for name in files(tmp_path, "blobs"):
                (tmp_path / "blobs" / name).unlink()
            with pytest.raises(TransportError, match="missing") as caught:
                await store.get("x")
            assert not isinstance(caught.value, NotFound)

    asyncio.run(scenario())


def test_a_source_that_is_missing_is_the_callers_error(tmp_path: Path) -> None:
    """A put of a path that is not there says so."""

    async def scenario() -> None:
        async with opened_store(tmp_path) as store:
            with pytest.raises(FileNotFoundError):
                await store.put("x", tmp_path / "nowhere")

    asyncio.run(scenario())


PEAK = """
import asyncio, resource, sys
from pathlib import Path
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.place import LocalPlace

async def main(folder, source):
    transport = await LocalTransport.open(LocalPlace(folder))
    store = transport.store("c")
    await store.create()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await store.put("big", source)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    await transport.close()

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_a_large_path_is_not_held_in_memory(tmp_path: Path) -> None:
    """A file of 200 MB is put with a few MB of memory."""
    source = tmp_path / "source"
    with source.open("wb") as writer:
        writer.truncate(200_000_000)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "place"), str(source)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 50_000  # KiB


# Faults.


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    """The error says which folder, why, and what to do."""
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / "file" / "place"
    with pytest.raises(ConfigurationError, match=r"place cannot be used.*Not a directory.*JOBQ_URL"):
        asyncio.run(LocalTransport.open(LocalPlace(folder)))


def test_a_folder_that_may_not_be_looked_into_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's place: not an error of Python's, nor one that says there is none."""

    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "jobq.db").mkdir()  # which SQLite cannot open either: tests may run as root, who may look into everything
    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(ConfigurationError, match="cannot be used as a place"):
        asyncio.run(LocalTransport.open(LocalPlace(tmp_path), create=False))


def test_a_file_that_is_no_database_is_a_configuration_error(tmp_path: Path) -> None:
    """A damaged or foreign file is left as it is."""
    (tmp_path / "jobq.db").write_text("not a database, " * 1000)
    with pytest.raises(ConfigurationError, match="not a database"):
        asyncio.run(LocalTransport.open(LocalPlace(tmp_path)))
    assert (tmp_path / "jobq.db").read_text().startswith("not a database")


def test_a_folder_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """A schema that this version does not know is not touched."""
    asyncio.run(send_one(tmp_path, "x"))
    rows(tmp_path, "PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="later"):
        asyncio.run(LocalTransport.open(LocalPlace(tmp_path)))


def test_a_busy_database_is_unreachable_and_nothing_was_done(tmp_path: Path) -> None:
    """Writes wait for a while and then say that nothing happened; reads need not wait; afterwards all is well."""

    async def scenario() -> None:
        async with opened(tmp_path, patience_seconds=0.2) as transport:
            queue = transport.queue("q", app="one")
            await queue.create()
            with contextlib.closing(sqlite3.connect(tmp_path / "jobq.db", isolation_level=None)) as holder:
                holder.execute("BEGIN IMMEDIATE")
                with pytest.raises(Unreachable) as caught:
                    await queue.send("x")
                assert not caught.value.maybe_done
                assert await queue.depth() == 0
                with pytest.raises(Unreachable):
                    await LocalTransport.open(LocalPlace(tmp_path), patience_seconds=0.2)
            await queue.send("y")
            assert await queue.peek(2) == ["y"]

    asyncio.run(scenario())


def test_a_full_disk_is_unreachable_and_nothing_was_done(tmp_path: Path) -> None:
    """A write for which there is no room fails alone; smaller ones beside it, and later ones, succeed."""

    async def scenario() -> None:
        async with opened(tmp_path) as transport:
            store = transport.store("c")
            await store.create()
            await transport.database.write(lambda transaction: transaction.execute("PRAGMA max_page_count = 40").fetchall())
            results = await asyncio.gather(
                store.put("small", b"1"), *(store.put(f"big/{i}", bytes(60_000)) for i in range(8)), return_exceptions=True
            )
            faults = [result for result in results if isinstance(result, Exception)]
            assert faults
            assert all(isinstance(fault, Unreachable) and not fault.maybe_done for fault in faults)
            names = [info.name async for info in store.list("")]
            assert len(names) == len(results) - len(faults)
            assert "small" in names

    asyncio.run(scenario())


def test_a_fault_of_one_operation_spares_its_neighbours(tmp_path: Path) -> None:
    """In one commit, an operation that fails halfway is undone and the others are not."""

    async def scenario() -> None:
        async with opened(tmp_path) as transport:
            store = transport.store("c")
            await store.create()

            def halfway(transaction: Transaction) -> None:
                transaction.execute("INSERT INTO containers (name) VALUES ('half')")
                raise AlreadyExists

            requests = [store.put("a", b"1"), transport.database.write(halfway), store.put("b", b"2")]
            results = await asyncio.gather(*requests, return_exceptions=True)
            assert [type(result) for result in results] == [str, AlreadyExists, str]
            assert [info.name async for info in store.list("")] == ["a", "b"]

    asyncio.run(scenario())
    assert rows(tmp_path, "SELECT name FROM containers") == [("c",)]


def test_small_operations_in_a_row_let_others_have_their_turn(tmp_path: Path) -> None:
    """Who asks again and again, and is answered at once, does not keep the event loop to himself."""

    async def scenario() -> None:
        async with opened_queue(tmp_path) as queue:
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            beside = asyncio.ensure_future(other())
            for _ in range(100):
                await queue.send("x")
            assert turns >= 10
            beside.cancel()

    asyncio.run(scenario())


def test_a_small_write_waits_for_who_holds_the_database_and_not_the_loop(tmp_path: Path) -> None:
    """What finds the database taken is done once it is free, and the event loop goes on meanwhile."""

    async def scenario() -> None:
        async with opened_queue(tmp_path) as queue:
            with contextlib.closing(sqlite3.connect(tmp_path / "jobq.db", isolation_level=None)) as holder:
                holder.execute("BEGIN IMMEDIATE")
                sending = [asyncio.ensure_future(queue.send(f"{i}")) for i in range(3)]
                await asyncio.sleep(0.05)
                assert not any(one.done() for one in sending)
                holder.execute("COMMIT")
                await asyncio.wait_for(asyncio.gather(*sending), SOON)
            assert sorted(await queue.peek(3)) == ["0", "1", "2"]

    asyncio.run(scenario())


def test_a_small_operation_that_fails_halfway_is_undone(tmp_path: Path) -> None:
    """Its error is told, nothing of it stays, and the next one succeeds."""

    async def scenario() -> None:
        async with opened(tmp_path) as transport:
            store = transport.store("c")
            await store.create()

            def halfway(transaction: Transaction) -> None:
                transaction.execute("INSERT INTO containers (name) VALUES ('half')")
                raise AlreadyExists

            with pytest.raises(AlreadyExists):
                await transport.database.write(halfway, small=True)
            await store.put("a", b"1")

    asyncio.run(scenario())
    assert rows(tmp_path, "SELECT name FROM containers") == [("c",)]


def test_a_closed_transport_is_unreachable(tmp_path: Path) -> None:
    """A request after closing fails at once, for sure undone."""

    async def scenario() -> None:
        async with opened_queue(tmp_path) as queue:
            pass
        with pytest.raises(Unreachable) as caught:
            await queue.send("x")
        assert not caught.value.maybe_done

    asyncio.run(scenario())


def test_requests_under_way_while_closing_end_cleanly(tmp_path: Path) -> None:
    """Each is answered or told that the transport was closed; none hangs and none meets a foreign error."""

    async def scenario() -> None:
        async with opened_store(tmp_path) as store:
            await store.put("x", bytes(LARGE))
            requests = [asyncio.ensure_future(store.get("x")) for _ in range(50)]
            puts = [asyncio.ensure_future(store.put(f"y/{i}", bytes(LARGE))) for i in range(20)]
            await asyncio.sleep(0.005)
        results = await asyncio.wait_for(asyncio.gather(*requests, *puts, return_exceptions=True), SOON)
        assert all(isinstance(result, Blob | str | Unreachable) for result in results), results

    asyncio.run(scenario())


def test_a_new_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """Messages can be code, so others may not write where we made the folder."""
    asyncio.run(send_one(tmp_path / "a" / "place", "x"))
    assert (tmp_path / "a" / "place").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["", "a/../b", "a\nb", "x" * 1025])
def test_a_name_that_azure_would_refuse_is_refused(tmp_path: Path, name: str) -> None:
    """What works here works there."""

    async def scenario() -> None:
        async with opened_store(tmp_path) as store:
            with pytest.raises(ValueError, match="name"):
                await store.put(name, b"")

    asyncio.run(scenario())
