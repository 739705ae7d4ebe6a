"""What a transport counts: each request by its kind, the same ones on a folder as on Azure."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from fault_proxy import Fault, FaultyAccount, counted_kind, faulty_account, fresh_name, opened, spoil

from ai4s.jobq.errors import AlreadyExists, JobQError, NotFound
from ai4s.jobq.requests_made import KINDS, Requests, charged_to, from_text, to_text
from ai4s.jobq.transports.azure import blocks, store
from ai4s.jobq.transports.base import Queue, Store, Transport
from ai4s.jobq.transports.local import as_azure

T = TypeVar("T")
MEBIBYTE = 1024 * 1024


class Run(Protocol):
    def __call__(self, coroutine: Coroutine[object, object, T], /) -> T: ...


@pytest.fixture(params=["local", "azurite"])
def place_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Both that count; what tests keep in memory does not."""
    return f"local://{tmp_path}/place" if request.param == "local" else str(request.getfixturevalue("azurite_url"))


@contextlib.contextmanager
def counted(transport: Transport, **expected: int) -> Iterator[None]:
    """These requests are made in this block, and no others; refusals are part of it."""
    before = transport.requests.snapshot()
    with contextlib.suppress(JobQError):
        yield
    assert transport.requests.since(before) == expected


def test_each_operation_of_a_queue_counts_once(run: Run, transport: Transport, unique: str) -> None:
    """Also one that is refused; a release is an update like a renewal."""
    queue = transport.queue(unique, app="test")
    for kind, operation in (
        ("queue_send", lambda: queue.send("nowhere")),
        ("queue_other", queue.create),
        ("queue_depth", queue.check),
        ("queue_depth", queue.depth),
        ("queue_peek", lambda: queue.peek(5)),
        ("queue_receive", lambda: queue.receive(32, lease_seconds=30)),
        ("queue_other", queue.clear),
        ("queue_other", lambda: transport.queues(unique)),
    ):
        with counted(transport, **{kind: 1}):
            run(operation())  # type: ignore[arg-type]  # coroutines of several types


def test_a_message_costs_what_is_done_with_it(run: Run, transport: Transport, unique: str) -> None:
    """Sent, received, renewed, released and deleted, also with a receipt that is void."""
    queue = transport.queue(unique, app="test")
    run(queue.create())
    with counted(transport, queue_send=2, queue_receive=1, queue_renew=2, queue_delete=2):
        run(_use_messages(queue))


async def _use_messages(queue: Queue) -> None:
    for body in ("a", "b"):
        await queue.send(body)
    first, second = await queue.receive(32, lease_seconds=30)
    renewed = await queue.renew(first.receipt, lease_seconds=30)
    await queue.release(second.receipt)
    await queue.delete(renewed)
    await queue.delete(first.receipt)


def test_small_blobs_cost_a_request_each_way(run: Run, transport: Transport, unique: str) -> None:
    """Written, read, looked at, deleted: one request each, whether it is there or not."""
    files = transport.store(unique)
    for kind, operation in (
        ("blob_put", lambda: files.put("nowhere", b"x")),
        ("blob_other", files.create),
        ("blob_other", files.check),
        ("blob_put", lambda: files.put("a", b"x", if_absent=True)),
        ("blob_put", lambda: files.put("a", b"x", if_absent=True)),
        ("blob_get", lambda: files.get("a")),
        ("blob_get", lambda: files.get("b")),
        ("blob_head", lambda: files.get("a", length=0)),
        ("blob_head", lambda: files.head("a")),
        ("blob_head", lambda: files.head("b")),
        ("blob_delete", lambda: files.delete("a")),
        ("blob_delete", lambda: files.delete("a")),
    ):
        with counted(transport, **{kind: 1}):
            run(operation())  # type: ignore[arg-type]


def test_an_unchanged_blob_costs_a_read(run: Run, transport: Transport, unique: str) -> None:
    """A read under a condition is billed whether it brings something or not; an empty blob needs a second look."""
    files = _container(run, transport, unique)
    etag = run(files.put("a", b"x"))
    run(files.put("empty", b""))
    with counted(transport, blob_get=1):
        assert run(files.get("a", if_none_match=etag)) is None
    with counted(transport, blob_get=1, blob_head=1):
        run(files.get("empty"))


def test_a_large_blob_costs_a_request_for_each_piece(run: Run, transport: Transport, unique: str, tmp_path: Path) -> None:
    """Blocks of 4 MiB and their commit; ranges of 8 MiB; and one look where it must not be there yet."""
    files, data = _container(run, transport, unique), bytes(9 * MEBIBYTE)
    with counted(transport, blob_put=4):
        run(files.put("a", data))
    with counted(transport, blob_put=4, blob_head=1):
        run(files.put("b", data, if_absent=True))
    with counted(transport, blob_head=1), pytest.raises(AlreadyExists):
        run(files.put("b", data, if_absent=True))
    with counted(transport, blob_get=2):
        assert run(_length(files.get("a"))) == len(data)
    streamed = tmp_path / "streamed"
    streamed.write_bytes(bytes(5 * MEBIBYTE))
    with counted(transport, blob_put=3):
        run(files.put("c", streamed))


async def _length(reading: Awaitable[object]) -> int:
    return len((await reading).data)  # type: ignore[attr-defined]  # a Blob


def test_a_listing_costs_a_request_for_each_page(run: Run, transport: Transport, unique: str) -> None:
    """However many names there are on it, and one where there is none."""
    files = _container(run, transport, unique)
    for name in range(5):
        run(files.put(f"p/{name}", b""))
    with counted(transport, blob_list=3):
        run(_names(files, "p/", 2))
    with counted(transport, blob_list=1):
        run(_names(files, "q/", 2))


async def _names(files: Store, prefix: str, page: int) -> list[str]:
    return [info.name async for info in files.list(prefix, page=page)]


def test_an_append_costs_a_request_and_the_first_one_three(run: Run, transport: Transport, unique: str) -> None:
    """The first one finds nothing to append to, makes it, and goes again."""
    files = _container(run, transport, unique)
    with counted(transport, blob_append=2, blob_put=1):
        run(files.append("log", b"one", at=0))
    with counted(transport, blob_append=1):
        run(files.append("log", b"two", at=3))
    with counted(transport, blob_head=1):
        run(files.append("log", b"", at=6))


def _container(run: Run, transport: Transport, name: str) -> Store:
    files = transport.store(name)
    run(files.create())
    return files


def test_a_folder_counts_by_azures_sizes() -> None:
    """They are written down twice, as one of them must not import the SDK."""
    assert as_azure.SINGLE_BYTES == store.SINGLE_BYTES
    assert (as_azure.BLOCK_BYTES, as_azure.MAX_BLOCKS) == (blocks.BLOCK_BYTES, blocks.MAX_BLOCKS)


def test_repeats_count_as_often_as_they_went_out(run: Run, azurite_url: str) -> None:
    """Whatever a proxy before the account saw was counted, under the same kind."""

    async def scenario() -> tuple[dict[str, int], FaultyAccount]:
        async with faulty_account(azurite_url) as account, opened(account.place) as transport:
            files, queue = transport.store(fresh_name()), transport.queue(fresh_name(), app="test")
            await files.create()
            await queue.create()
            account.plan = spoil("put", Fault.BUSY, Fault.LOSE_ANSWER, Fault.RESET)
            await files.put("a", b"x")
            account.plan = spoil("get", Fault.TRUNCATE, Fault.BROKEN)
            await files.get("a")
            account.plan = spoil("delete message", Fault.LOSE_ANSWER)
            await _use_messages_once(queue)
            return transport.requests.snapshot(), account

    made, account = run(scenario())
    assert made == Counter(counted_kind(request) for request in account.requests)
    assert made["blob_put"] == 4


async def _use_messages_once(queue: Queue) -> None:
    await queue.send("a")
    (delivery,) = await queue.receive(1, lease_seconds=30)
    await queue.delete(delivery.receipt)


def test_an_unreachable_account_costs_nothing(run: Run, azurite_url: str) -> None:
    """What never left this machine is not billed."""

    async def scenario() -> dict[str, int]:
        async with faulty_account(azurite_url) as account:
            place = account.place
        async with opened(place, budget_seconds=0.01) as transport:
            with contextlib.suppress(JobQError):
                await transport.store(fresh_name()).create()
            return transport.requests.snapshot()

    assert run(scenario()) == {}


def test_requests_are_charged_to_who_makes_them(run: Run, transport: Transport, unique: str) -> None:
    """Two at work side by side are told apart, with the tasks that each of them begins; the transport counts all."""

    async def work(account: Requests, n: int) -> None:
        with charged_to(account):
            await asyncio.gather(*(_missing(transport.store(unique)) for _ in range(n)))

    async def both() -> None:
        await asyncio.gather(work(one, 2), work(two, 3))
        await _missing(transport.store(unique))

    one, two, before = Requests(), Requests(), transport.requests.snapshot()
    run(both())
    assert (one.snapshot(), two.snapshot()) == ({"blob_head": 2}, {"blob_head": 3})
    assert transport.requests.since(before) == {"blob_head": 6}


async def _missing(files: Store) -> None:
    with pytest.raises(NotFound):
        await files.head("missing")


def test_counts_survive_as_text() -> None:
    """Of a text that is none, what can be read is kept and the rest left out."""
    counts = dict.fromkeys(KINDS, 10**12)
    assert from_text(to_text(counts)) == counts
    assert from_text("qs:1,qr:-1,bp:x,:3,,bg:9999999999999999,bl:\u0663") == {"queue_send": 1}
