"""From packs to storage: in which order a batch's records come to be there, and that whoever goes on with it loses nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from logged import headers, inputs, keys, log_entry, total
from storage_spy import Crash, between, blobs, counted, crash_before, depth

from ai4s.jobq import App, BatchConflict, MapInterrupted, Unreachable, layout
from ai4s.jobq.maps import mapping
from ai4s.jobq.message import BatchTotal
from ai4s.jobq.packing import MAX_ITEM_BYTES

declared = App("mapping-unit")


@declared.task
def square(x: int, *, y: Any = None) -> int:
    return x * x


@declared.task
def cube(x: int) -> int:
    return x * x * x


@declared.task(queue="other")
def elsewhere(x: int) -> int:
    return x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's tasks, on an empty store, without a worker."""
    return jobq_place(declared)


# What is there when it returns.


def test_all_is_durable_when_map_returns(app: App) -> None:
    """Inputs, messages, and a total that says that no more is to come."""
    batch = square.map(range(100))
    packs = inputs(app, batch.id)
    assert [info.indices for info in packs] == [range(8), range(8, 24), range(24, 56), range(56, 100)]
    assert [header.log for header in headers(app)] == ["000000", "000001", "000002", "000003"]
    assert total(app, batch.id) == BatchTotal(100, 4, ended=True)


def test_a_batch_without_calls_says_so(app: App) -> None:
    """Nothing is on the queue, and a reader knows that nothing will be."""
    batch = square.map([])
    assert depth(app) == 0
    assert total(app, batch.id) == BatchTotal(0, 0, ended=True)


def test_an_input_is_there_before_its_message_and_before_the_next_input(app: App) -> None:
    """So a crash leaves no message without input, and no gap."""
    events: list[str] = []
    put = 0

    async def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal put
        if found.__name__ == "send":
            assert put > sum(event == "sent" for event in events), "a message without its input"
        events.append(f"begin {args[0]}" if found.__name__ == "put" else "sending")
        answer = await found(*args, **kwargs)
        events.append(f"end {args[0]}" if found.__name__ == "put" else "sent")
        put += "/in/" in events[-1]
        return answer

    with between(app, around):
        square.map(range(200), batch="b", pack=10)
    names = ["meta", *(f"in/{n:06d}" for n in range(20)), "total"]
    puts = [event for event in events if "batches/" in event]
    assert puts == [f"{step} batches/b/{name}" for name in names for step in ("begin", "end")]
    assert events.index("begin batches/b/total") > max(n for n, event in enumerate(events) if event == "sent")


def test_at_most_eight_messages_are_on_their_way(app: App) -> None:
    """So a crash leaves at most eight packs without one; and the packs that follow wait."""
    waiting, most = 0, 0

    async def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal waiting, most
        if found.__name__ == "send":
            waiting += 1
            most = max(most, waiting)
            for _ in range(50):  # as long as the others can do anything
                await asyncio.sleep(0)
            waiting -= 1
        return await found(*args, **kwargs)

    with between(app, around):
        square.map(range(500), pack=5, batch="b")
    assert 1 < most <= mapping.UNACKNOWLEDGED
    assert depth(app) == len(inputs(app, "b")) == 100


def test_memory_stays_flat(app: App) -> None:
    """While the storage does not answer, no more than a few packs are taken from the source."""
    taken, stands, release = 0, threading.Event(), threading.Event()

    async def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if "/in/" in str(args[:1]):
            await asyncio.to_thread(release.wait)
        return await found(*args, **kwargs)

    def source() -> Iterator[int]:
        nonlocal taken
        for taken in range(1000):
            if taken == 10 * mapping.PACKS_AHEAD:
                stands.set()
            yield taken

    with between(app, around):
        mapped = threading.Thread(target=lambda: square.map(source(), pack=10, batch="b"))
        mapped.start()
        assert stands.wait(30)
        most = taken
        release.set()
        mapped.join(30)
    assert most <= 10 * (mapping.PACKS_AHEAD + 1)
    assert len(inputs(app, "b")) == 100


def test_ten_thousand_calls_cost_few_requests(app: App) -> None:
    """Two a pack and a few for the whole: far below a hundredth of a request for each call."""
    with counted(app) as requests:
        square.map(range(10_000))
    assert sum(requests.values()) < 40, requests


def test_a_storage_that_fails_is_said(app: App) -> None:
    """As it is, and nothing hangs."""

    async def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if "/in/000002" in str(args[:1]):
            raise Unreachable("no answer")
        return await found(*args, **kwargs)

    with between(app, around), pytest.raises(Unreachable, match="no answer"):
        square.map(range(100_000))


# Large arguments.


def test_large_arguments_are_named_by_what_they_are(app: App) -> None:
    """Not by the call: another producer may have had other ones for the same index."""
    data = b"x" * (MAX_ITEM_BYTES + 1)
    app.task(len).map([data, data, b"y" * (MAX_ITEM_BYTES + 1)], batch="b")
    assert len(blobs(app, "batches/b/args/")) == 2


def test_large_keyword_arguments_travel_once(app: App) -> None:
    """Beside the batch."""
    square.map(range(100), kwargs={"y": b"x" * 300_000}, batch="b")
    assert len(blobs(app, "batches/b/args/")) == 1


# Going on.


def resumed(items: int = 100, **options: Any) -> None:
    """Map the items of the batch `b` with their keys, again."""
    square.map(range(items), batch="b", key=str, **options)


def test_mapping_again_adds_what_is_new(app: App) -> None:
    """Keys tell; what is there keeps its index, and what is new comes after it."""
    square.map([3, 1, 4], batch="b", key=str)
    batch = square.map([1, 5, 9, 3], batch="b", key=str)
    assert keys(app, "b") == ["3", "1", "4", "5", "9"]
    assert total(app, "b") == BatchTotal(5, 2, ended=True)
    assert batch.progress().total == 5


def test_of_items_with_one_key_the_first_counts(app: App) -> None:
    """Within a batch, too."""
    square.map([1, 2, 1, 3, 2], batch="b", key=str)
    assert keys(app, "b") == ["1", "2", "3"]


@pytest.mark.parametrize("spared", range(0, 60, 3))
def test_a_producer_may_die_before_any_request(spared: int, app: App) -> None:
    """Whoever maps again completes the batch: each key once, and for each pack a message."""
    left = spared

    def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash
        return found(*args, **kwargs)

    with between(app, around), suppress(Crash):
        resumed(pack=5)
    resumed(pack=5)
    assert keys(app, "b") == [str(n) for n in range(100)]
    assert {header.pack for header in headers(app)} == {info.pack for info in inputs(app, "b")}
    assert total(app, "b") == BatchTotal(100, len(inputs(app, "b")), ended=True)


def test_a_message_that_may_be_missing_is_sent_again(app: App) -> None:
    """Marked, since it may be there twice."""
    with crash_before(app, "send"), pytest.raises(Crash):
        resumed(pack=5)
    lacking = [info.pack for info in inputs(app, "b")]
    assert 0 in lacking
    resumed(pack=5)
    assert [header.pack for header in headers(app) if header.resent] == lacking


def test_a_message_that_is_there_is_not_sent_again(app: App) -> None:
    """Each input says below which pack all have theirs, and a log says so of its own pack; at the end the total says it of all."""
    with crash_before(app, "put", "batches/b/total"), pytest.raises(Crash):
        resumed(pack=5)
    sent = max(info.sent for info in inputs(app, "b"))
    assert sent >= 20 - mapping.UNACKNOWLEDGED
    log_entry(app, "b", {95: 1}, log="000019")
    resumed(pack=5)
    assert [header.pack for header in headers(app) if header.resent] == list(range(sent, 19))
    before = depth(app)
    resumed(pack=5)
    assert depth(app) == before


def test_two_producers_with_the_same_items_send_each_pack_once(app: App) -> None:
    """An input with the same bytes may be somebody else's."""
    other_began, other_done = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        other_began.set()
        assert other_done.wait(60)
        yield from range(50)

    first = threading.Thread(target=lambda: square.map(source(), batch="b", key=str, pack=10))
    first.start()
    assert other_began.wait(60)
    square.map(range(50), batch="b", key=str, pack=10)
    other_done.set()
    first.join(60)
    assert [header.pack for header in headers(app)] == list(range(5))
    assert keys(app, "b") == [str(n) for n in range(50)]


def test_two_producers_at_once_submit_each_item_once(app: App) -> None:
    """Whoever finds a number taken adopts that pack, leaves out what is in it, and goes on behind it."""
    other_began, other_done = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        for n in range(60):
            if n == 30:
                other_began.set()
                assert other_done.wait(60)
            yield n

    first = threading.Thread(target=lambda: square.map(slow(), batch="b", key=str, pack=10))
    first.start()
    assert other_began.wait(60)
    square.map(range(100), batch="b", key=str, pack=7)
    other_done.set()
    first.join(60)
    assert sorted(map(int, keys(app, "b"))) == list(range(100))
    said = total(app, "b")
    assert said is not None
    assert said.calls == 100


def test_what_another_producer_left_unsent_is_sent_before_the_end_is_said(app: App) -> None:
    """Whoever reads the total may rely on it that all messages are there."""
    other = App(app.name, url=app.client.url)
    here, there = (each.task(lambda x: x, name="same") for each in (app, other))

    def source() -> Iterator[int]:
        yield 0
        with crash_before(other, "send"), pytest.raises(Crash):
            there.map([100], batch="b", key=str)
        yield 1

    here.map(source(), batch="b", key=str)
    other.close()
    assert keys(app, "b") == ["100", "0", "1"]
    assert [header.pack for header in headers(app)] == [0, 1]


def test_what_a_dead_producer_has_spilled_harms_nobody(app: App) -> None:
    """The same index may be another call's, with other arguments."""
    one, other = b"x" * 300_000, b"y" * 300_000
    task = app.task(len)
    with crash_before(app, "put", "batches/b/in/"), pytest.raises(Crash):
        task.map([one], batch="b", key=lambda data: data[:1].decode())
    task.map([other], batch="b", key=lambda data: data[:1].decode())
    assert len(blobs(app, "batches/b/args/")) == 2


@pytest.mark.parametrize(
    ("again", "reason"),
    [
        (lambda: cube.map([1], batch="b", key=str), "It is of task .*square, and this is .*cube"),
        (lambda: square.map([1], batch="b"), "It was begun with key=, and this is not"),
        (lambda: square.options(queue="gpu").map([1], batch="b", key=str), "Its queue is 'default', and here it is 'gpu'"),
        (lambda: square.map([1], batch="b", key=str, kwargs={"y": 2}), "Its kwargs, as encoded, are others"),
    ],
)
def test_a_name_is_not_used_for_something_else(again: Callable[[], Any], reason: str, app: App) -> None:
    """The error says what is different, and the source is not touched."""
    square.map([1], batch="b", key=str)
    with pytest.raises(BatchConflict, match=rf"There is a batch 'b' already. {reason}. To go on with it, map the same task"):
        again()


def test_a_batch_without_keys_is_not_gone_on_with(app: App) -> None:
    """Nobody could say what of it is there."""
    square.map([1], batch="b")
    with pytest.raises(BatchConflict, match="It was begun without key="):
        square.map([1], batch="b", key=str)


def test_two_producers_without_keys_collide(app: App) -> None:
    """One of them is told."""

    def source() -> Iterator[int]:
        yield 1
        app.client.run(_put_foreign_input)
        yield 2

    with pytest.raises(BatchConflict, match="Somebody else submits to the batch 'b'"):
        square.map(source(), batch="b")


async def _put_foreign_input(ledger: Any) -> None:
    await (await ledger.store()).put(layout.pack_input("b", 0), b"x", metadata={"first": "0", "count": "1"}, if_absent=True)


def test_options_of_the_first_submission_stay(app: App) -> None:
    """All calls of a batch have the same."""
    square.options(retries=3).map([1], batch="b", key=str)
    square.options(retries=5).map([1, 2], batch="b", key=str)
    meta = app.client.run(app.batch("b").meta)
    assert meta.call.retries == 3


def test_delays_are_those_of_each_submission(app: App) -> None:
    """A message that may not run yet is not visible."""
    batch = square.options(countdown=3600).map([1])
    assert headers(app) == []
    assert depth(app) == 1
    assert inputs(app, batch.id)[0].indices == range(1)


def test_what_a_source_gave_before_it_raised_is_durable(app: App) -> None:
    """Packs that were not full too."""

    def source() -> Iterator[int]:
        yield from range(30)
        raise OSError

    with pytest.raises(MapInterrupted) as caught:
        square.map(source())
    assert sum(len(info.indices) for info in inputs(app, caught.value.batch.id)) == 30
    assert total(app, caught.value.batch.id) == BatchTotal(30, 3, ended=True)
