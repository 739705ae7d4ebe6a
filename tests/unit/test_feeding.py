"""From a source of items to packs: what may be mapped, what is skipped, and what becomes of a source that fails or is slow."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from logged import headers, inputs, keys
from storage_spy import between, depth

from ai4s.jobq import App, DeclarationError, HandleAsArgument, MapInterrupted, NotSerializable
from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.codec import codec_named
from ai4s.jobq.maps import feeding, pack_maker, sources
from ai4s.jobq.packing import MAX_ITEM_BYTES, Layout

declared = App("feeding-unit")


@declared.task
def step(x: Any, y: Any = None, *, z: Any = None) -> Any:
    return x


@declared.task(codec="msgpack")
def plain(x: Any) -> Any:
    return x


@declared.task(vector=4)
def many(xs: list[Any]) -> list[Any]:
    return xs


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's tasks, on an empty store, without a worker."""
    return jobq_place(declared)


def items(app: App, batch: str) -> list[Any]:
    """The arguments of all calls that are there, in their order; single ones as they are."""
    codec, found = codec_named("cloudpickle"), []
    for header in headers(app):
        read = app.client.run(lambda ledger, header=header: BatchLedger(ledger, batch).input(header))
        for piece in read.pieces(range(header.count)):
            rows = [codec.loads(data) for data in piece.items()] if piece.layout is Layout.ALONE else codec.loads(piece.data)
            found += [row[0] if piece.layout is not Layout.SINGLE and len(row) == 1 else row for row in rows]
    return found


def until_sent(app: App) -> list[int]:
    """Wait until something is on the queue; how many calls each pack has."""
    give_up = time.monotonic() + 30
    while not (found := headers(app)) and time.monotonic() < give_up:
        time.sleep(0.05)
    return [header.count for header in found]


# What may be mapped.


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (step.map, r"map wants an iterable for each positional argument, as in .*step\.map\(range\(10\)\)"),
        (lambda: step.map([1], key="k"), "key is a function of an item; got 'k'"),
        (lambda: step.map([1], skip=True), "skip is a function of an item; got True"),
        (lambda: step.map([1], pack=0), "pack must be a whole number, 1 or more; got 0|pack must be .*1"),
        (lambda: step.map([1], pack=5000), "pack must be from 1 to 4096; got 5000"),
        (lambda: step.map([1], pack="8"), "pack must be"),
        (lambda: step.map([1], kwargs=[1]), r"kwargs is a dict of keyword arguments; got \[1\]"),
        (lambda: step.map([1], kwargs={1: 2}), "kwargs is a dict of keyword arguments"),
        (lambda: step.map([1], batch=""), "A batch's name is 1 to 60 lower-case letters, digits and single hyphens"),
        (lambda: step.map([1], batch=7), "as in 'campaign-1'; got 7"),
        (lambda: step.map([1], batch="a/b"), "as in 'campaign-1'; got 'a/b'"),
        (lambda: step.options(key="k").map([1]), r"options\(key=…\) is for a single call; map takes key="),
    ],
)
def test_wrong_options_are_refused_with_what_would_be_right(wrong: Callable[[], Any], said: str, app: App) -> None:
    """Before anything is sent."""
    with pytest.raises(DeclarationError, match=said):
        wrong()
    assert depth(app) == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: step.map([1], [2], [3]), "too many positional arguments"),
        (lambda: step.map([1], kwargs={"w": 1}), "got an unexpected keyword argument 'w'"),
        (lambda: step.map([1], kwargs={"x": 1}), "multiple values for argument 'x'"),
        (lambda: step.map(1), "not iterable|must support iteration"),
    ],
)
def test_arguments_must_fit_the_signature(wrong: Callable[[], Any], said: str, app: App) -> None:
    """As for a direct call."""
    with pytest.raises(TypeError, match=said):
        wrong()
    assert depth(app) == 0


def test_handles_are_no_arguments(app: App) -> None:
    """Neither as an item nor among the keyword arguments."""
    handle = step.delay(1)
    with pytest.raises(MapInterrupted) as caught:
        step.map([handle])
    assert isinstance(caught.value.__cause__, HandleAsArgument)
    with pytest.raises(HandleAsArgument):
        step.map([1], kwargs={"z": handle})


def test_a_vector_task_takes_one_iterable(app: App) -> None:
    """Its function gets one list, whose items may be tuples."""
    with pytest.raises(DeclarationError, match=r"give it one iterable, as in .*many\.map\(zip\(a, b\)\)"):
        many.map([1], [2])
    many.map(zip([1], [2], strict=True), batch="b")
    assert items(app, "b") == [(1, 2)]


def test_a_vector_task_is_not_delayed(app: App) -> None:
    """The error says how it is called."""
    with pytest.raises(DeclarationError, match=r"give it items by map, as in .*many\.map\(\[item\]\)"):
        many.delay([1])


# Sources.


def test_several_sources_end_with_the_shortest(app: App) -> None:
    """The others may be endless."""
    step.map([1, 2, 3], iter(lambda: "y", None), batch="b")
    assert items(app, "b") == [(1, "y"), (2, "y"), (3, "y")]


async def test_async_sources_and_plain_ones(app: App) -> None:
    """Side by side; the shortest ends them, and they are closed."""
    closed = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 7
        finally:
            closed.append(True)

    await step.amap(endless(), [1, 2], batch="b")
    assert items(app, "b") == [(7, 1), (7, 2)]


async def test_a_long_plain_source_leaves_the_loop_its_turns(app: App) -> None:
    """Even if nothing of it is submitted."""
    await step.amap(range(5000), batch="b", key=str)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    await step.amap(range(5000), batch="b", key=str)
    beside.cancel()
    assert turns > 10


@pytest.mark.parametrize("with_skip", [False, True])
def test_a_slow_source_does_not_hold_back_what_it_gave(with_skip: bool, app: App) -> None:
    """Before it gives the next item, the first ones are on the queue, though their pack is not full."""
    gone = []

    def source() -> Iterator[int]:
        yield 1
        yield 2
        gone.append(until_sent(app))
        yield 3

    step.map(source(), batch="b", skip=(lambda _: False) if with_skip else None)
    assert gone == [[2]]
    assert items(app, "b") == [1, 2, 3]


async def test_a_slow_async_source_does_not_hold_back_what_it_gave(app: App) -> None:
    """As above."""

    async def source() -> AsyncIterator[int]:
        yield 1
        await asyncio.to_thread(until_sent, app)
        yield 2

    async def never(_: int) -> bool:
        return False

    await asyncio.wait_for(step.amap(source(), batch="b", skip=never), 30)
    assert items(app, "b") == [1, 2]


def test_an_item_too_large_to_be_copied_is_put_before_the_next_is_asked_for(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the source may use its memory again."""
    monkeypatch.setattr(pack_maker, "MAX_COPIED_BYTES", MAX_ITEM_BYTES + 100)

    def source() -> Iterator[bytearray]:
        buffer = bytearray(2 * MAX_ITEM_BYTES)
        for n in range(3):
            buffer[:] = bytes([n]) * len(buffer)
            yield buffer

    step.map(source(), batch="b")
    assert [info.indices for info in inputs(app, "b")] == [range(1), range(1, 2), range(2, 3)]

    async def first_bytes(ledger: Any) -> list[int]:
        store = await ledger.store()
        names = [info.name async for info in store.list("batches/b/args/")]
        return [(await store.get(name)).data[1000] for name in names]

    assert sorted(app.client.run(first_bytes)) == [0, 1, 2]


# Sources that fail.


@pytest.mark.parametrize("with_skip", [False, True])
@pytest.mark.parametrize("after", [0, 1, 20, 100])
def test_what_was_given_before_an_error_is_submitted(after: int, with_skip: bool, app: App) -> None:
    """All of it, whether the source raised at once or midway."""

    def source() -> Iterator[int]:
        yield from range(after)
        raise OSError("gone")

    with pytest.raises(MapInterrupted, match=f"OSError after {after} calls were submitted, .*: gone") as caught:
        step.map(source(), skip=(lambda _: False) if with_skip else None)
    assert isinstance(caught.value.__cause__, OSError)
    assert items(app, caught.value.batch.id) == list(range(after))
    assert caught.value.batch.progress().total == after


async def test_an_async_source_that_raises(app: App) -> None:
    """As above."""

    async def source() -> AsyncIterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(MapInterrupted, match="OSError after 1 calls") as caught:
        await step.amap(source())
    assert items(app, caught.value.batch.id) == [1]


def test_an_interrupt_stays_one(app: App) -> None:
    """With a note that says how to go on."""

    def source() -> Iterator[int]:
        yield from range(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        step.map(source(), batch="b")
    assert caught.value.__notes__ == ["30 calls were submitted before: app.batch('b')."]
    assert items(app, "b") == list(range(30))


def test_an_interrupt_while_a_pack_is_handed_over_loses_nothing(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack is offered again."""
    run, raised = app.client.run, []

    def interrupted(work: Any) -> Any:
        if getattr(work, "func", None) is feeding._offered and not raised:
            raised.append(True)
            raise KeyboardInterrupt
        return run(work)

    monkeypatch.setattr(app.client, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step.map(range(100), batch="b")
    monkeypatch.undo()
    assert items(app, "b") == list(range(8))


async def test_a_cancelled_amap_leaves_what_it_had_taken(app: App) -> None:
    """Whoever cancels it is told after that was made durable."""
    stands = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        stands.set()
        await asyncio.Event().wait()

    mapping = asyncio.create_task(step.amap(source(), batch="b"))
    await stands.wait()
    mapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mapping
    assert items(app, "b") == [1]


def test_an_item_that_cannot_travel_ends_the_map_there(app: App) -> None:
    """What came before is submitted; what comes after it is not, so that indices stay those of the items."""
    with pytest.raises(MapInterrupted) as caught:
        step.map([1, 2, threading.Lock(), 3], batch="b")
    assert isinstance(caught.value.__cause__, NotSerializable)
    assert items(app, "b") == [1, 2]


def test_the_first_item_may_be_the_one_that_cannot_travel(app: App) -> None:
    """Then the batch is empty."""
    with pytest.raises(MapInterrupted, match="after 0 calls") as caught:
        step.map([threading.Lock()])
    assert list(caught.value.batch) == []


def test_plain_data_is_refused_item_by_item(app: App) -> None:
    """A number that the codec cannot hold does not take its neighbours along."""
    with pytest.raises(MapInterrupted, match="after 2 calls"):
        plain.map([1, 2, 2**70])


# Keys.


@pytest.mark.parametrize("key", [7, "", "x" * 1025, None, "\ud800"])
def test_a_key_is_a_text(key: Any, app: App) -> None:
    """Anything else ends the map at that item."""
    with pytest.raises(MapInterrupted, match="key= gives each item a text of 1 to 1024 characters"):
        step.map([1], key=lambda _: key)


def test_a_key_gets_what_the_task_gets(app: App) -> None:
    """Of several iterables, all arguments."""
    step.map([1, 2], "ab", batch="b", key=lambda x, y: f"{x}{y}")
    assert keys(app, "b") == ["1a", "2b"]


def test_a_key_that_raises_ends_the_map_there(app: App) -> None:
    """As a source that raises."""
    with pytest.raises(MapInterrupted, match="ZeroDivisionError after 1 calls"):
        step.map([1, 0, 2], key=lambda x: str(1 / x))


# Skipping.


async def is_odd(x: int, *_: Any) -> bool:
    """An async predicate."""
    await asyncio.sleep(0)
    return x % 2 == 1


@pytest.mark.parametrize("skip", [lambda x: x % 2 == 1, is_odd, lambda x, *_: is_odd(x)], ids=["plain", "async", "lambda"])
def test_what_is_to_be_skipped_is_no_call(skip: Any, app: App) -> None:
    """The rest keep their order. Whatever gives an awaitable is awaited."""
    step.map(range(100), batch="b", skip=skip)
    assert items(app, "b") == list(range(0, 100, 2))


@pytest.mark.parametrize("skip", [lambda x: x % 2 == 1, is_odd], ids=["plain", "async"])
async def test_skipping_in_async_programs(skip: Any, app: App) -> None:
    """The same; an async predicate runs on the program's own loop."""
    await step.amap(range(100), batch="b", skip=skip)
    assert items(app, "b") == list(range(0, 100, 2))


async def test_an_async_predicate_runs_on_the_callers_loop(app: App) -> None:
    """So it may use what belongs to that loop."""
    loops = set()

    async def skip(_: int) -> bool:
        loops.add(asyncio.get_running_loop())
        return False

    await step.amap(range(3), skip=skip)
    assert loops == {asyncio.get_running_loop()}


def test_all_may_be_skipped(app: App) -> None:
    """Then there is nothing to do."""
    assert list(step.map(range(10), skip=lambda _: True)) == []


@pytest.mark.parametrize("is_async", [False, True])
def test_many_items_are_asked_about_at_a_time(is_async: bool, app: App) -> None:
    """The answers come when all have been asked."""
    asked, all_asked = 0, threading.Barrier(feeding.CHECKS_AT_ONCE)

    def skip(_: int) -> bool:
        all_asked.wait(30)
        return False

    arrived = 0
    together: list[asyncio.Event] = []

    async def askip(_: int) -> bool:
        nonlocal arrived
        if not together:
            together.append(asyncio.Event())
        arrived += 1
        if arrived == feeding.CHECKS_AT_ONCE:
            together[0].set()
        await asyncio.wait_for(together[0].wait(), 30)
        return False

    step.map(range(feeding.CHECKS_AT_ONCE), batch="b", skip=askip if is_async else skip)
    assert len(items(app, "b")) == feeding.CHECKS_AT_ONCE
    assert asked == 0


def test_the_source_is_not_far_ahead_of_the_answers(app: App) -> None:
    """A slow predicate holds up the source."""
    answered, ahead = 0, 0

    def source() -> Iterator[int]:
        nonlocal ahead
        for n in range(200):
            ahead = max(ahead, n - answered)
            yield n

    def skip(_: int) -> bool:
        nonlocal answered
        answered += 1
        return True

    step.map(source(), skip=skip)
    assert ahead <= 2 * feeding.CHECKS_AT_ONCE


@pytest.mark.parametrize("is_async", [False, True])
def test_a_predicate_that_raises_ends_the_map_there(is_async: bool, app: App) -> None:
    """What came before it is submitted, and nothing after it."""

    def skip(x: int) -> bool:
        if x == 5:
            raise OSError("who knows")
        return False

    async def askip(x: int) -> bool:
        return skip(x)

    with pytest.raises(MapInterrupted, match=r"OSError after 5 calls .*who knows") as caught:
        step.map(range(100), batch="b", skip=askip if is_async else skip)
    assert isinstance(caught.value.__cause__, OSError)
    assert items(app, "b") == list(range(5))


def test_what_was_skipped_is_told(app: App) -> None:
    """Items without a call are counted where somebody reads along: skipped ones, and those whose key is there."""
    told = []
    feed = step._feed(feeding.MapOptions(1, skip=lambda x: x == 1, key=str))
    feed.on_skip = lambda: told.append(True)
    feed.run(sources.rows_of(([0, 1, 2, 0],)))
    assert len(told) == 2


def test_nothing_of_the_source_is_touched_if_the_batch_cannot_be_begun(app: App) -> None:
    """A source may be used only once."""

    def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise OSError("no disk")

    source = iter([1, 2])
    with between(app, around), pytest.raises(OSError, match="no disk"):
        step.map(source)
    assert next(source) == 1
