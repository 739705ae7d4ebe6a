"""What Azure's limits do to blobs and bodies: uploads in blocks, and text that its XML cannot carry.

Next: `test_azure_transport.py` for lost answers; `test_azure_rights.py` for keys and tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path

import pytest
from azure.storage.queue import QueueServiceClient as SyncQueues
from fault_proxy import (
    Fault,
    azure_place,
    faulty_queue,
    faulty_store,
    spoil,
)

from ai4s.jobq.errors import AlreadyExists, ConditionFailed, Unreachable
from ai4s.jobq.transports.azure import AzureTransport
from ai4s.jobq.transports.azure.server_clock import ServerClock

# --- large blobs


async def test_large_file_goes_in_blocks_under_one_condition(azurite_url: str, tmp_path: Path) -> None:
    """Readers see nothing before the commit, and the commit keeps the condition."""
    content = bytes(range(256)) * 4 * 1024 * 9 + b"end"
    file = tmp_path / "large"
    file.write_bytes(content)
    async with faulty_store(azurite_url) as (account, store):
        await store.put("x", file, metadata={"n": "1"}, if_absent=True)
        assert account.kinds() == ["head", "stage", "stage", "stage", "commit"]
        blob = await store.get("x")
        assert blob is not None
        assert blob.data == content
        assert (await store.head("x")).metadata == {"n": "1"}
        with pytest.raises(AlreadyExists):
            await store.put("x", file, if_absent=True)
        with pytest.raises(ConditionFailed):
            await store.put("x", memoryview(content), if_match='"0x1"')


async def test_large_upload_survives_faults_in_every_step(azurite_url: str) -> None:
    """Blocks and the commit are repeated; a commit whose answer was lost does no harm."""
    content = b"0123456789abcdef" * 600_000
    async with faulty_store(azurite_url, budget_seconds=20) as (account, store):
        faults = {"stage": [Fault.RESET, Fault.LOSE_ANSWER, Fault.BROKEN], "commit": [Fault.LOSE_ANSWER, Fault.BUSY]}
        account.plan = lambda request: faults[request.kind].pop() if faults.get(request.kind) else Fault.NONE
        await store.put("x", content)
        blob = await store.get("x", length=len(content))
        assert blob is not None
        assert blob.data == content


async def test_two_writers_of_one_large_blob_do_not_mix(azurite_url: str) -> None:
    """Whoever commits first throws the other's blocks away; the other begins again, and one of the two stands whole."""
    contents = [bytes([letter]) * 9_000_000 for letter in b"ab"]
    async with faulty_store(azurite_url, budget_seconds=20) as (_, store):
        for _ in range(3):
            await asyncio.gather(*(store.put("x", content) for content in contents))
            blob = await store.get("x")
            assert blob is not None
            assert blob.data in contents


# --- messages that spoil answers


async def test_control_character_does_not_keep_others_from_being_received(azurite_url: str) -> None:
    """Azurite answers 500 to every batch that holds one; single receives get past it."""
    async with faulty_queue(azurite_url) as (_, queue):
        for number in range(3):
            await queue.send(str(number))
        await send_raw(azurite_url, queue.name, "\x01bad")
        got: set[str] = set()
        deadline = time.monotonic() + 15
        while len(got) < 3 and time.monotonic() < deadline:
            with contextlib.suppress(Unreachable):
                for delivery in await queue.receive(32, lease_seconds=1):
                    got.add(delivery.body)
                    await queue.delete(delivery.receipt)
            await asyncio.sleep(0.05)
        assert got == {"0", "1", "2"}


async def send_raw(url: str, name: str, text: str) -> None:
    """Send what the transport refuses to send."""
    place = azure_place(url)
    with SyncQueues(place.queue_url, {"account_name": place.account, "account_key": place.key}) as queues:
        await asyncio.to_thread(queues.get_queue_client(name).send_message, text)


async def test_unreadable_answer_makes_the_next_receives_single(azurite_url: str) -> None:
    """After an answer that is no XML the next receives ask for one message each."""
    async with faulty_queue(azurite_url) as (account, queue):
        await queue.send("one")
        account.plan = spoil("receive", Fault.GARBLE)
        with pytest.raises(Unreachable):
            await queue.receive(32, lease_seconds=30)
        await queue.receive(32, lease_seconds=30)
        assert [request.query["numofmessages"] for request in account.requests[1:]] == [["32"], ["1"]]


@pytest.mark.parametrize("body", ["\x00", "a\x0bb", "a\rb", "\ud800", "\ufffe"])
async def test_what_xml_cannot_carry_is_refused(azurite_url: str, body: str) -> None:
    """Before any request, so that it cannot spoil the batches of others."""
    async with faulty_queue(azurite_url) as (account, queue):
        with pytest.raises(ValueError, match=r"XML text|surrogates"):
            await queue.send(body)
        assert account.requests == []


@pytest.mark.parametrize("body", ["", " ", "\n", "  a\n\tb  ", "<&>\"'", "ä€😀", "x" * 65536])
async def test_bodies_come_back_as_they_were(azurite_url: str, body: str) -> None:
    """No encoding of the SDK is in the way, and none is needed."""
    async with faulty_queue(azurite_url) as (_, queue):
        await queue.send(body)
        [delivery] = await queue.receive(1, lease_seconds=30)
        assert delivery.body == body


async def test_closed_transport_leaves_nothing_open(azurite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """No session is left behind; pytest turns the warning into an error, and asyncio would log it."""
    with caplog.at_level(logging.ERROR):
        transport = await AzureTransport.open(azure_place(azurite_url))
        await transport.server_time()
        await transport.close()
        await transport.close()
        await asyncio.sleep(0)
    assert caplog.records == []


def test_server_clock_takes_the_largest_bound_and_follows_a_step_back() -> None:
    """A Date is cut to seconds, so later ones only help if they say more; a clock that was set back is believed."""
    now = [100.0]
    clock = ServerClock(lambda: now[0])
    clock.note("Thu, 01 Jan 2026 00:00:10 GMT")
    base = clock.now()
    now[0] = 100.9
    clock.note("Thu, 01 Jan 2026 00:00:11 GMT")
    assert clock.now() == pytest.approx(base + 1)
    now[0] = 102.5
    clock.note("Thu, 01 Jan 2026 00:00:12 GMT")
    assert clock.now() == pytest.approx(base + 2.6)
    clock.note("Thu, 01 Jan 2026 00:00:01 GMT")
    assert clock.now() == pytest.approx(base - 9)
