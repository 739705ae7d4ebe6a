"""What is Azure's alone: lost answers, what is repeated, and how many requests an operation costs.

What the contract says of every transport is checked in `conformance/`. Here a proxy before a real Azurite spoils single
requests; the first part is the table of lost answers, row by row, with what this project makes of each.

Next: `test_azure_blobs_and_bodies.py`, `test_azure_rights.py`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from fault_proxy import (
    Fault,
    at_random,
    azure_place,
    faulty_account,
    faulty_queue,
    faulty_store,
    fresh_name,
    opened,
    spoil,
    spoil_all,
)

from ai4s.jobq.errors import AlreadyExists, ConditionFailed, LeaseLost, NotFound, Unreachable
from ai4s.jobq.transports.azure.store import AzureStore

# --- the table of lost answers


async def test_send_with_a_lost_answer_is_not_repeated_and_says_maybe(azurite_url: str) -> None:
    """The SDK would report one send and leave two messages; here there is one, and the sender knows that it may be there."""
    async with faulty_queue(azurite_url) as (account, queue):
        account.plan = spoil("send", Fault.LOSE_ANSWER)
        with pytest.raises(Unreachable) as caught:
            await queue.send("aGVsbG8=")
        assert caught.value.maybe_done
        assert account.kinds() == ["send"]
        assert await queue.depth() == 1


async def test_receive_with_a_lost_answer_is_not_repeated_and_raises(azurite_url: str) -> None:
    """The SDK would report an empty queue; here the caller learns that messages may have become invisible."""
    async with faulty_queue(azurite_url) as (account, queue):
        await queue.send("one")
        account.requests.clear()
        account.plan = spoil("receive", Fault.LOSE_ANSWER)
        with pytest.raises(Unreachable) as caught:
            await queue.receive(32, lease_seconds=1)
        assert caught.value.maybe_done
        assert account.kinds() == ["receive"]
        await asyncio.sleep(1.1)
        [delivery] = await queue.receive(1, lease_seconds=30)
        assert delivery.dequeue_count == 2


async def test_receive_on_a_used_connection_is_not_repeated_by_the_http_client(azurite_url: str) -> None:
    """aiohttp repeats a GET by itself when a connection that it reuses breaks; this watches that it does not."""
    async with faulty_queue(azurite_url) as (account, queue):
        await queue.receive(1, lease_seconds=30)
        account.plan = spoil("receive", Fault.RESET)
        with pytest.raises(Unreachable):
            await queue.receive(1, lease_seconds=30)
        assert account.kinds() == ["receive", "receive"]


async def test_renew_with_a_lost_answer_is_lease_lost(azurite_url: str) -> None:
    """The new receipt is unknown and the old one void: nobody can settle this delivery, and its owner must know."""
    async with faulty_queue(azurite_url) as (account, queue):
        await queue.send("one")
        [delivery] = await queue.receive(1, lease_seconds=30)
        account.plan = spoil("update", Fault.LOSE_ANSWER)
        with pytest.raises(LeaseLost):
            await queue.renew(delivery.receipt, lease_seconds=30)


async def test_renew_that_did_not_arrive_is_repeated(azurite_url: str) -> None:
    """A request that was not carried out leaves the receipt as it was."""
    async with faulty_queue(azurite_url) as (account, queue):
        await queue.send("one")
        [delivery] = await queue.receive(1, lease_seconds=30)
        account.plan = spoil("update", Fault.RESET, Fault.BUSY, Fault.BROKEN)
        renewed = await queue.renew(delivery.receipt, lease_seconds=30, body="two")
        await queue.delete(renewed)


async def test_delete_with_a_lost_answer_is_done(azurite_url: str) -> None:
    """The repeated request gets 404, which here says that the first one worked."""
    async with faulty_queue(azurite_url) as (account, queue):
        await queue.send("one")
        [delivery] = await queue.receive(1, lease_seconds=30)
        account.plan = spoil("delete message", Fault.LOSE_ANSWER)
        await queue.delete(delivery.receipt)
        assert account.kinds().count("delete message") == 2
        assert await queue.depth() == 0


async def test_delete_with_a_void_receipt_is_lease_lost(azurite_url: str) -> None:
    """Without a lost answer "not there" means what it says, also after attempts that surely did nothing."""
    async with faulty_queue(azurite_url) as (account, queue):
        await queue.send("one")
        [delivery] = await queue.receive(1, lease_seconds=30)
        await queue.delete(delivery.receipt)
        account.plan = spoil("delete message", Fault.BUSY)
        with pytest.raises(LeaseLost):
            await queue.delete(delivery.receipt)


async def test_put_if_absent_with_a_lost_answer_is_already_exists_with_our_bytes(azurite_url: str) -> None:
    """The repeated request gets 409; whoever puts compares what lies there, as the contract says."""
    async with faulty_store(azurite_url) as (account, store):
        account.plan = spoil("put", Fault.LOSE_ANSWER)
        with pytest.raises(AlreadyExists):
            await store.put("outcome", b"mine", if_absent=True)
        blob = await store.get("outcome")
        assert blob is not None
        assert blob.data == b"mine"


async def test_put_if_match_with_a_lost_answer_is_condition_failed(azurite_url: str) -> None:
    """The first attempt changed the etag that the second one asks for."""
    async with faulty_store(azurite_url) as (account, store):
        etag = await store.put("control", b"1")
        account.plan = spoil("put", Fault.LOSE_ANSWER)
        with pytest.raises(ConditionFailed):
            await store.put("control", b"2", if_match=etag)


async def test_blob_delete_with_a_lost_answer_is_done(azurite_url: str) -> None:
    """As with messages; a delete of what was never there still says so."""
    async with faulty_store(azurite_url) as (account, store):
        etag = await store.put("x", b"1")
        account.plan = spoil("delete", Fault.LOSE_ANSWER)
        await store.delete("x", if_match=etag)
        with pytest.raises(NotFound):
            await store.delete("x")


async def test_append_with_a_lost_answer_is_condition_failed_and_appended_once(azurite_url: str) -> None:
    """The position guards against a second copy; the writer looks at the length."""
    async with faulty_store(azurite_url) as (account, store):
        assert await store.append("log", b"abc", at=0) == 3
        account.plan = spoil("append", Fault.LOSE_ANSWER)
        with pytest.raises(ConditionFailed):
            await store.append("log", b"def", at=3)
        assert (await store.head("log")).size == 6


# --- what is repeated and what is not


@pytest.mark.parametrize(
    ("fault", "maybe_done"),
    [
        (Fault.BUSY, False),
        (Fault.BROKEN, True),
        (Fault.RESET, True),
        (Fault.TRUNCATE, True),
        (Fault.GARBLE, True),
    ],
)
async def test_send_says_whether_it_may_have_been_done(azurite_url: str, fault: Fault, maybe_done: bool) -> None:
    """Only where the service says that it did nothing, nothing was done. It is one request either way."""
    async with faulty_queue(azurite_url) as (account, queue):
        account.plan = spoil("send", fault)
        with pytest.raises(Unreachable) as caught:
            await queue.send("one")
        assert caught.value.maybe_done is maybe_done
        assert account.kinds() == ["send"]


async def test_nobody_listening_is_repeated_and_surely_not_done(azurite_url: str) -> None:
    """A refused connection is the one case in which even a send goes again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        place = replace(azure_place(azurite_url), queue_url=f"http://127.0.0.1:{port}/devstoreaccount1")
        async with opened(place, budget_seconds=0.5) as transport:
            with pytest.raises(Unreachable) as caught:
                await transport.queue(fresh_name(), app="test").send("one")
        assert not caught.value.maybe_done


async def test_send_waits_for_a_service_that_is_just_coming_up(azurite_url: str) -> None:
    """Refused connections within the budget do not reach the caller."""
    async with faulty_account(azurite_url) as account, opened(account.place) as direct:
        name = fresh_name()
        await direct.queue(name, app="test").create()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        late = replace(account.place, queue_url=f"http://127.0.0.1:{port}/devstoreaccount1")
        async with opened(late) as transport:
            sending = asyncio.create_task(transport.queue(name, app="test").send("one"))
            await asyncio.sleep(0.3)
            upstream = urlsplit(account.place.queue_url).port or 0
            server = await asyncio.start_server(lambda r, w: pipe(r, w, upstream), "127.0.0.1", port)
            async with server:
                await sending


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.BROKEN, Fault.RESET, Fault.TRUNCATE, Fault.LOSE_ANSWER])
async def test_a_burst_of_faults_does_not_reach_readers(azurite_url: str, fault: Fault) -> None:
    """Three in a row of each passing fault, and every harmless operation still answers, within a second or so."""
    async with faulty_store(azurite_url) as (account, store):
        await store.put("x", b"1" * 1000)
        for kind, operation in [
            ("get", lambda: store.get("x")),
            ("head", lambda: store.head("x")),
            ("put", lambda: store.put("y", b"2")),
            ("list", lambda: names_of(store)),
        ]:
            account.plan = spoil(kind, fault, fault, fault)
            assert await operation()
        assert await names_of(store) == ["x", "y"]


async def names_of(store: AzureStore, prefix: str = "") -> list[str]:
    return [info.name async for info in store.list(prefix)]


async def test_the_budget_ends_and_the_error_remembers_lost_answers(azurite_url: str) -> None:
    """An attempt that may have been carried out is not forgotten because the last one surely was not."""
    async with faulty_store(azurite_url, budget_seconds=0.5) as (account, store):
        first = spoil("put", Fault.LOSE_ANSWER)
        account.plan = lambda request: Fault.LOSE_ANSWER if first(request) is Fault.LOSE_ANSWER else Fault.BUSY
        begun = time.monotonic()
        with pytest.raises(Unreachable) as caught:
            await store.put("x", b"1")
        assert caught.value.maybe_done
        assert time.monotonic() - begun < 2
        assert len(account.requests) >= 2


@pytest.mark.parametrize("fault", [Fault.BROKEN, Fault.BUSY, Fault.RESET, Fault.TRUNCATE, Fault.LOSE_ANSWER])
async def test_the_sdk_repeats_nothing_by_itself(azurite_url: str, fault: Fault) -> None:
    """Without a budget each operation is one request, at once: neither the SDK nor its downloader sleeps and goes on."""
    async with faulty_store(azurite_url, budget_seconds=0) as (account, store):
        await store.put("x", b"1" * 1000)
        account.requests.clear()
        account.plan = spoil_all("get", fault)
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            await store.get("x")
        assert account.kinds() == ["get"]
        assert time.monotonic() - begun < 0.9


async def test_a_black_hole_ends(azurite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer at all ends after the read timeout, and a receive is not made again."""
    monkeypatch.setattr("ai4s.jobq.transports.azure.connection.READ_SECONDS", 0.5)
    async with faulty_queue(azurite_url) as (account, queue):
        account.plan = spoil_all("receive", Fault.BLACK_HOLE)
        begun = time.monotonic()
        with pytest.raises(Unreachable) as caught:
            await queue.receive(1, lease_seconds=30)
        assert time.monotonic() - begun < 5
        assert caught.value.maybe_done
        assert account.kinds() == ["receive"]


async def test_a_cancelled_request_stops_at_once(azurite_url: str) -> None:
    """A cancellation goes through retries and requests; it is neither swallowed nor turned into an error."""
    async with faulty_store(azurite_url, budget_seconds=60) as (account, store):
        account.plan = spoil_all("", Fault.BLACK_HOLE)
        task = asyncio.create_task(store.get("x"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_everything_ends_well_with_a_tenth_of_all_requests_spoilt(azurite_url: str) -> None:
    """Puts, reads and lists through random faults end with every blob there, whole."""
    async with faulty_store(azurite_url, budget_seconds=30) as (account, store):
        account.plan = at_random(0.1, seed=7)
        for number in range(60):
            await store.put(f"b/{number:02}", str(number).encode())
        found = [await store.get(name) for name in await names_of(store, "b/")]
        assert [blob.data for blob in found if blob] == [str(number).encode() for number in range(60)]


# --- what an operation costs


async def test_receive_is_one_request(azurite_url: str) -> None:
    """However many come back: fewer than asked for, none, or as many as asked for."""
    async with faulty_queue(azurite_url) as (account, queue):
        for number in range(3):
            await queue.send(str(number))
        for n, come in [(1, 1), (32, 2), (32, 0)]:
            account.requests.clear()
            assert len(await queue.receive(n, lease_seconds=30)) == come
            assert account.kinds() == ["receive"]


async def test_each_operation_is_one_request(azurite_url: str) -> None:
    """What the costs in the documentation rest on."""
    async with faulty_store(azurite_url) as (account, store):
        for expected, operation in [
            ("put", lambda: store.put("x", b"1" * 8 * 1024 * 1024, if_absent=True)),
            ("get", lambda: store.get("x")),
            ("get", lambda: store.get("x", start=5, length=100)),
            ("head", lambda: store.head("x")),
            ("list", lambda: names_of(store)),
            ("delete", lambda: store.delete("x")),
        ]:
            account.requests.clear()
            await operation()
            assert account.kinds() == [expected]


async def test_unchanged_blob_costs_one_request_and_no_body(azurite_url: str) -> None:
    """A poller with If-None-Match reads nothing."""
    async with faulty_store(azurite_url) as (account, store):
        etag = await store.put("x", b"1")
        account.requests.clear()
        assert await store.get("x", if_none_match=etag) is None
        assert account.kinds() == ["get"]


async def test_server_time_costs_at_most_one_request(azurite_url: str) -> None:
    """The first answer tells the time, and later ones carry it on."""
    async with faulty_account(azurite_url) as account, opened(account.place) as transport:
        first = await transport.server_time()
        assert abs(first - time.time()) < 2
        assert await transport.server_time() >= first
        assert len(account.requests) == 1
