"""What `base.Store` promises."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from ai4s.jobq.errors import AlreadyExists, ConditionFailed, NotFound
from ai4s.jobq.parts import Parts
from ai4s.jobq.transports.base import Blob, BlobInfo, Store, Transport

T = TypeVar("T")
Listed = Callable[..., list[BlobInfo]]

KIB, MIB = 1024, 1024 * 1024
# Around the sizes where transports change how they store or send.
SIZES = (0, 1, 64 * KIB, 64 * KIB + 1, 3 * MIB, 9 * MIB + 7)


class Run(Protocol):
    def __call__(self, coroutine: Coroutine[object, object, T], /) -> T: ...


def noise(size: int) -> bytes:
    """Bytes of which no two ranges are alike."""
    return random.Random(size).randbytes(size)


def read(run: Run, store: Store, name: str) -> bytes:
    """A blob's bytes."""
    blob = run(store.get(name))
    assert blob is not None
    return blob.data


@pytest.mark.parametrize("size", SIZES)
def test_a_blob_is_read_as_it_was_put(run: Run, store: Store, other_store: Store, size: int) -> None:
    """Whatever the size, all bytes come back, from any transport."""
    data = noise(size)
    etag = run(store.put("a/b c.bin", data))
    blob = run(other_store.get("a/b c.bin"))
    assert blob is not None
    assert blob.data == data
    assert (blob.info.name, blob.info.size, blob.info.etag) == ("a/b c.bin", size, etag)


@pytest.mark.parametrize("size", SIZES)
def test_a_path_is_put_like_bytes(run: Run, store: Store, tmp_path: Path, size: int) -> None:
    """A file's bytes become the blob's, and later changes of the file do not."""
    source = tmp_path / "source"
    source.write_bytes(noise(size))
    run(store.put("x", source, metadata={"n": "1"}))
    source.write_bytes(b"other")
    assert read(run, store, "x") == noise(size)
    assert run(store.head("x")).metadata == {"n": "1"}


@pytest.mark.parametrize("size", [10, 200 * KIB])
def test_a_memoryview_is_put_like_bytes(run: Run, store: Store, size: int) -> None:
    """A view of a part of a buffer need not be copied first."""
    run(store.put("x", memoryview(noise(size + 10))[5:-5]))
    assert read(run, store, "x") == noise(size + 10)[5:-5]


@pytest.mark.parametrize("sizes", [(), (0,), (3, 0, 5), (60 * KIB, 60 * KIB), (5 * MIB, 1, 4 * MIB + 3), (MIB,) * 13])
def test_parts_are_put_like_bytes(run: Run, store: Store, sizes: tuple[int, ...]) -> None:
    """Pieces of memory, wherever they begin and end, become one blob, under the same conditions."""
    pieces = [noise(size) for size in sizes]
    parts = Parts.of(*(piece if number % 2 else bytearray(piece) for number, piece in enumerate(pieces)))
    run(store.put("x", parts, metadata={"n": "1"}, if_absent=True))
    assert read(run, store, "x") == b"".join(pieces)
    assert run(store.head("x")).metadata == {"n": "1"}
    with pytest.raises(AlreadyExists):
        run(store.put("x", parts, if_absent=True))


@pytest.mark.parametrize("sizes", [(5, 9), (5, 200 * KIB), (200 * KIB, 5), (200 * KIB, 300 * KIB)])
def test_a_put_replaces_a_blob(run: Run, store: Store, sizes: tuple[int, int]) -> None:
    """Without a condition the last one wins, with its own metadata and a new etag."""
    first = run(store.put("x", noise(sizes[0]), metadata={"old": "1"}))
    second = run(store.put("x", noise(sizes[1])))
    assert first != second
    assert read(run, store, "x") == noise(sizes[1])
    assert run(store.head("x")).metadata == {}


@pytest.mark.parametrize("size", [5, 200 * KIB, 9 * MIB])
def test_put_if_absent_refuses_an_existing_blob(run: Run, store: Store, size: int) -> None:
    """What is there stays."""
    run(store.put("x", b"first", if_absent=True))
    with pytest.raises(AlreadyExists):
        run(store.put("x", noise(size), if_absent=True))
    assert read(run, store, "x") == b"first"


@pytest.mark.parametrize("size", [5, 200 * KIB])
def test_concurrent_puts_if_absent_have_one_winner(run: Run, store: Store, other_store: Store, size: int) -> None:
    """However many try, over whichever transport, exactly one is told that it wrote, and its bytes lie there."""

    async def attempt(target: Store, number: int) -> int | None:
        try:
            await target.put("x", bytes([number]) * size, if_absent=True)
        except AlreadyExists:
            return None
        return number

    async def scenario() -> None:
        attempts = (attempt(target, 2 * i + j) for i in range(8) for j, target in enumerate((store, other_store)))
        [winner] = [number for number in await asyncio.gather(*attempts) if number is not None]
        blob = await store.get("x")
        assert blob is not None
        assert blob.data == bytes([winner]) * size

    run(scenario())


@pytest.mark.parametrize("size", [5, 200 * KIB, 9 * MIB])
def test_put_if_match_needs_the_current_etag(run: Run, store: Store, size: int) -> None:
    """A write based on an old reading is refused."""
    first = run(store.put("x", b"1"))
    second = run(store.put("x", b"2", if_match=first))
    with pytest.raises(ConditionFailed):
        run(store.put("x", noise(size), if_match=first))
    assert read(run, store, "x") == b"2"
    run(store.put("x", noise(size), if_match=second))
    assert read(run, store, "x") == noise(size)


def test_put_if_match_of_a_deleted_blob_fails(run: Run, store: Store) -> None:
    """A blob that is gone has no etag to match."""
    etag = run(store.put("x", b"1"))
    run(store.delete("x"))
    with pytest.raises(ConditionFailed):
        run(store.put("x", b"2", if_match=etag))


def test_concurrent_updates_lose_nothing(run: Run, store: Store, other_store: Store) -> None:
    """Read, change, write back if unchanged: every increment counts."""

    async def increment(target: Store) -> None:
        while True:
            blob = await target.get("n")
            assert blob is not None
            try:
                await target.put("n", b"%d" % (int(blob.data) + 1), if_match=blob.info.etag)
            except ConditionFailed:
                continue
            return

    async def scenario() -> None:
        await store.put("n", b"0")
        await asyncio.gather(*(increment(target) for target in (store, other_store) for _ in range(5)))

    run(scenario())
    assert read(run, store, "n") == b"10"


@pytest.mark.parametrize("size", [1000, 200 * KIB, 17 * MIB])
def test_a_range_is_cut_out(run: Run, store: Store, size: int) -> None:
    """A range brings its own bytes, fewer at the end and none past it, and always the whole blob's size."""
    data = noise(size)
    etag = run(store.put("x", data))
    for start, length in ((0, 10), (7, 100), (size // 2, None), (size - 3, 10), (size, 10), (size + 5, None), (3, 0)):
        blob = run(store.get("x", start=start, length=length))
        assert blob is not None
        assert blob.data == data[start:][:length]
        assert (blob.info.size, blob.info.etag) == (size, etag)


def test_a_range_of_an_empty_blob_is_empty(run: Run, store: Store) -> None:
    """There is nothing to cut from, which is no error."""
    run(store.put("x", b""))
    blob = run(store.get("x", start=0, length=10))
    assert blob is not None
    assert (blob.data, blob.info.size) == (b"", 0)


def test_an_unchanged_blob_is_not_read_again(run: Run, store: Store) -> None:
    """A poller that names the etag it has gets None until there is something new."""
    etag = run(store.put("x", b"1"))
    assert run(store.get("x", if_none_match=etag)) is None
    run(store.put("x", b"2"))
    blob = run(store.get("x", if_none_match=etag))
    assert blob is not None
    assert blob.data == b"2"


def test_head_tells_all_but_the_bytes(run: Run, store: Store) -> None:
    """Size, etag, metadata and time, as they were put."""
    etag = run(store.put("x", b"12345", metadata={"count": "3", "note2": "a b; c=d"}))
    info = run(store.head("x"))
    assert (info.name, info.size, info.etag) == ("x", 5, etag)
    assert info.metadata == {"count": "3", "note2": "a b; c=d"}
    assert abs(info.modified - time.time()) < 60


def test_an_empty_metadata_value_is_a_text(run: Run, store: Store, listed: Listed) -> None:
    """Wherever it is read: those who look on take every value for a string."""
    run(store.put("x", b"1", metadata={"said": "", "count": "3"}))
    (info,) = listed("x", with_metadata=True)
    assert info.metadata == run(store.head("x")).metadata == {"said": "", "count": "3"}


def test_an_absent_blob_is_not_found(run: Run, store: Store) -> None:
    """Reading, asking for and deleting what is not there say so."""
    for request in (store.get("x"), store.get("x", if_none_match='"1"'), store.head("x"), store.delete("x")):
        with pytest.raises(NotFound):
            run(request)


def test_a_check_tells_whether_the_container_is_there(run: Run, store: Store, transport: Transport, unique: str) -> None:
    """Where a container may not be made, it can still be seen to be there."""
    run(store.check())
    for _ in range(2):
        with pytest.raises(NotFound):
            run(transport.store(f"{unique}-absent").check())


def test_an_absent_container_is_not_found(run: Run, transport: Transport, unique: str) -> None:
    """Nothing makes a container but `create`."""
    absent = transport.store(unique)

    async def list_all() -> list[BlobInfo]:
        return [info async for info in absent.list("")]

    requests: list[Coroutine[object, object, object]] = [
        absent.put("x", b"1"),
        absent.put("x", b"1", if_absent=True),
        absent.put("x", noise(200 * KIB)),
        absent.get("x"),
        absent.head("x"),
        absent.delete("x"),
        absent.append("x", b"1", at=0),
        list_all(),
    ]
    for request in requests:
        with pytest.raises(NotFound):
            run(request)


@pytest.mark.parametrize("size", [5, 200 * KIB])
def test_a_deleted_blob_is_gone(run: Run, store: Store, size: int) -> None:
    """It is neither read nor listed, and its name is free."""
    run(store.put("x", noise(size)))
    run(store.delete("x"))
    with pytest.raises(NotFound):
        run(store.get("x"))
    run(store.put("x", b"again", if_absent=True))
    assert read(run, store, "x") == b"again"


def test_delete_if_match_spares_a_changed_blob(run: Run, store: Store) -> None:
    """What was written since it was read is not deleted."""
    old = run(store.put("x", b"1"))
    new = run(store.put("x", b"2"))
    with pytest.raises(ConditionFailed):
        run(store.delete("x", if_match=old))
    assert read(run, store, "x") == b"2"
    run(store.delete("x", if_match=new))
    with pytest.raises(NotFound):
        run(store.delete("x", if_match=new))


def test_a_listing_is_in_order(run: Run, store: Store, listed: Listed) -> None:
    """Names come sorted by their bytes, whatever the order they were put in."""
    names = ["b/1", "a", "b", "a/2", "a/10", "B", "b-1", "b/1/x", "~"]
    for name in names:
        run(store.put(name, b""))
    assert [info.name for info in listed("")] == sorted(names)


def test_a_listing_keeps_to_its_prefix(run: Run, store: Store, listed: Listed) -> None:
    """A prefix is plain text: no character of it is special."""
    for name in ("a/1", "a/2", "ab/1", "a_/1", "a%/1", "A/1", "a"):
        run(store.put(name, b""))
    assert [info.name for info in listed("a/")] == ["a/1", "a/2"]
    assert [info.name for info in listed("a_")] == ["a_/1"]
    assert [info.name for info in listed("a%")] == ["a%/1"]
    assert listed("none") == []


def test_a_listing_with_metadata_tells_all(run: Run, store: Store, listed: Listed) -> None:
    """Asked for metadata, a listing tells what a head would."""
    for i in range(3):
        run(store.put(f"x/{i}", b"1" * i, metadata={"i": str(i)} if i else None))
    assert listed("x/", with_metadata=True) == [run(store.head(f"x/{i}")) for i in range(3)]
    assert [info.metadata for info in listed("x/", with_metadata=True)] == [{}, {"i": "1"}, {"i": "2"}]


def test_a_long_listing_is_whole(run: Run, store: Store) -> None:
    """More names than two pages hold: each is there, once, in order."""
    names = [f"n/{i:05}" for i in range(1_050)]

    async def put_all_and_list() -> list[str]:
        for at in range(0, len(names), 50):
            await asyncio.gather(*(store.put(name, b"") for name in names[at : at + 50]))
        return [info.name async for info in store.list("n/", page=500)]

    assert run(put_all_and_list()) == names


def test_a_listing_in_small_pages_is_the_same(run: Run, store: Store) -> None:
    """Only the number of requests is another, and how much comes at a time."""

    async def listed(page: int, *, with_metadata: bool) -> list[BlobInfo]:
        return [info async for info in store.list("x/", with_metadata=with_metadata, page=page)]

    for i in range(7):
        run(store.put(f"x/{i}", b"", metadata={"i": str(i)}))
    for with_metadata in (True, False):
        whole = run(listed(5000, with_metadata=with_metadata))
        assert len(whole) == 7
        assert run(listed(3, with_metadata=with_metadata)) == whole
        assert run(listed(7, with_metadata=with_metadata)) == whole


def test_a_listing_survives_changes(run: Run, store: Store) -> None:
    """Blobs that are put and deleted meanwhile do not hide or double those that stay."""

    async def scenario() -> list[str]:
        for i in range(20):
            await store.put(f"keep/{i:02}", b"")
            await store.put(f"keep/{i:02}-gone", b"")
        seen = []
        async for info in store.list("keep/"):
            seen.append(info.name)
            if info.name.endswith("-gone"):
                await store.delete(info.name)
                await store.put(f"{info.name}-new", b"")
        return seen

    seen = run(scenario())
    assert [name for name in seen if name.count("-") == 0] == [f"keep/{i:02}" for i in range(20)]


def test_appends_add_up(run: Run, store: Store, other_store: Store) -> None:
    """The first append makes the blob; each returns the new length, and a range may span several."""
    data, length = noise(1 * MIB), 0
    for stop in (10, 20, 100 * KIB, 100 * KIB + 1, MIB):
        assert run(store.append("log", data[length:stop], at=length)) == stop
        length = stop
    assert read(run, other_store, "log") == data
    blob = run(other_store.get("log", start=15, length=100 * KIB))
    assert blob is not None
    assert (blob.data, blob.info.size) == (data[15:][: 100 * KIB], MIB)


def test_an_append_at_the_wrong_place_fails(run: Run, store: Store) -> None:
    """A writer that does not know the length adds nothing."""
    with pytest.raises(ConditionFailed):
        run(store.append("log", b"x", at=3))
    run(store.append("log", b"abc", at=0))
    for at in (0, 2, 4):
        with pytest.raises(ConditionFailed):
            run(store.append("log", b"x", at=at))
    assert read(run, store, "log") == b"abc"


def test_an_append_changes_the_etag(run: Run, store: Store) -> None:
    """A poller notices that a log has grown."""
    run(store.append("log", b"abc", at=0))
    etag = run(store.head("log")).etag
    assert run(store.get("log", if_none_match=etag)) is None
    run(store.append("log", b"d", at=3))
    assert run(store.get("log", if_none_match=etag)) is not None


@pytest.mark.parametrize("size", [3, 200 * KIB])
def test_of_concurrent_appends_one_wins(run: Run, store: Store, other_store: Store, size: int) -> None:
    """Several at the same place: one is added, and the others know that they were not."""

    async def attempt(target: Store, number: int) -> int | None:
        try:
            await target.append("log", bytes([number]) * size, at=3)
        except ConditionFailed:
            return None
        return number

    async def scenario() -> list[int | None]:
        await store.append("log", b"abc", at=0)
        attempts = (attempt(target, 2 * i + j) for i in range(5) for j, target in enumerate((store, other_store)))
        return await asyncio.gather(*attempts)

    [winner] = [number for number in run(scenario()) if number is not None]
    assert read(run, store, "log") == b"abc" + bytes([winner]) * size


def test_the_largest_append_is_taken(run: Run, store: Store) -> None:
    """Four MiB go in at once."""
    assert run(store.append("log", noise(4 * MIB), at=0)) == 4 * MIB
    assert read(run, store, "log") == noise(4 * MIB)


def test_creating_a_container_again_is_fine(run: Run, store: Store, open_another: Callable[[], Transport], unique: str) -> None:
    """Twice, or several at the same moment: it stays as it is."""
    run(store.put("x", b"1"))
    stores = [store, open_another().store(unique), open_another().store(f"{unique}b")]

    async def scenario() -> None:
        await asyncio.gather(*(one.create() for one in stores for _ in range(4)))

    run(scenario())
    assert read(run, store, "x") == b"1"


def test_containers_are_apart(run: Run, store: Store, transport: Transport, unique: str) -> None:
    """The same name in two containers means two blobs."""
    neighbour = transport.store(f"{unique}b")
    run(neighbour.create())
    run(store.put("x", b"1"))
    run(neighbour.put("x", b"2", if_absent=True))
    run(neighbour.delete("x"))
    assert read(run, store, "x") == b"1"


@pytest.mark.parametrize("size", [1000, 200 * KIB])
def test_readers_see_old_or_new_and_never_a_part(run: Run, store: Store, other_store: Store, size: int) -> None:
    """While a blob is overwritten again and again, each reading is one of the whole versions."""

    async def overwrite() -> None:
        for number in range(30):
            await store.put("x", bytes([number]) * size)

    async def look() -> Blob:
        blob = await other_store.get("x")
        assert blob is not None
        return blob

    async def scenario() -> None:
        await store.put("x", bytes(size))
        writing = asyncio.ensure_future(overwrite())
        while not writing.done():
            data = (await look()).data
            assert data == data[:1] * size
        await writing

    run(scenario())
