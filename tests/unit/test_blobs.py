"""Blobs of users: there and back, as files, folders and streams, with what can go wrong on the way."""

from __future__ import annotations

import asyncio
import os
import pickle
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import pytest

from ai4s.jobq import App, Blobs, DeclarationError, Fed, JobQError, current
from ai4s.jobq.blobs import containers, whole_files
from ai4s.jobq.blobs.containers import FIRST_BYTES, REQUESTS_AT_ONCE, Container, Containers
from ai4s.jobq.blobs.files import BUFFER_BYTES, Ranges
from ai4s.jobq.errors import AccessDenied, AlreadyExists, NotFound, Unreachable
from ai4s.jobq.machine_files import PART
from ai4s.jobq.running import RunningCall, running
from ai4s.jobq.spill import BLOCK_BYTES
from ai4s.jobq.transports.base import Blob, BlobInfo
from ai4s.jobq.transports.place import LocalPlace

T = TypeVar("T")

LARGE = FIRST_BYTES + BLOCK_BYTES + 12_345
NAMES = [
    "plain.txt",
    "a b+c",
    "50%.csv",
    "a%41b",
    "what?x=1#y&z",
    "ünï/ḧ",
    "a..b",
    "q'\"",
    "deep/er/and/deeper",
    "全\u3000角",
    "a\u00a0b\u200dc",
]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's machine keeps its files."""
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(params=["local", "azurite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    """An app at a folder, and then at a storage account."""
    url = request.getfixturevalue("azurite_url") if request.param == "azurite" else f"local://{tmp_path / 'place'}"
    app = App("blobs-unit", url)
    yield app
    app.close()


@pytest.fixture
def blobs(app: App) -> Blobs:
    """A new container."""
    return app.blobs(f"data-{uuid.uuid4().hex}", create=True)


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_cache(temporary: Path) -> list[Path]:
    """What the machine has kept."""
    return [path for path in temporary.rglob("*") if path.is_file()]


# At both places.


@pytest.mark.parametrize("name", NAMES)
def test_bytes_come_back_under_any_name(blobs: Blobs, tmp_path: Path, name: str) -> None:
    """Whatever the name means in a URL."""
    blobs.write(name, name.encode())
    assert blobs.read(name) == name.encode()
    assert blobs.download(name, tmp_path / "file").read_bytes() == name.encode()
    assert list(blobs.list(name[:1])) == [name]


@pytest.mark.parametrize("size", [0, 1, FIRST_BYTES, FIRST_BYTES + 1, LARGE])
def test_files_of_any_size_go_there_and_back(blobs: Blobs, tmp_path: Path, size: int) -> None:
    """In one request or in blocks; and nothing is left beside them."""
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    blobs.upload(tmp_path / "source", "folder/blob")
    (target := tmp_path / "new" / "target").parent.mkdir()
    target.write_bytes(b"old")
    for cache in (False, True, True):
        assert blobs.download("folder/blob", target, cache=cache) == target
        assert target.read_bytes() == data
    assert blobs.read("folder/blob") == data
    assert [path.name for path in target.parent.iterdir()] == ["target"]


async def test_the_async_twins_do_the_same(blobs: Blobs, tmp_path: Path) -> None:
    """From any loop."""
    await blobs.awrite("a/b", b"1")
    (tmp_path / "file").write_bytes(b"2")
    await blobs.aupload(tmp_path / "file", "a/c")
    assert await blobs.aread("a/c") == b"2"
    assert [name async for name in blobs.alist()] == ["a/b", "a/c"]
    assert (await blobs.adownload("a/b", tmp_path / "down")).read_bytes() == b"1"
    assert await blobs.adownload_folder("a", tmp_path / "folder") == 2
    assert await blobs.aupload_folder(tmp_path / "folder", "copy") == 2
    assert await blobs.aread("copy/b") == b"1"
    assert await blobs.aexists("a/b")
    await blobs.adelete("a/b")
    assert not await blobs.aexists("a/b")
    with pytest.raises(AlreadyExists):
        await blobs.awrite("a/c", b"3", overwrite=False)


def test_folders_go_there_and_back(blobs: Blobs, tmp_path: Path) -> None:
    """With empty files, folders in folders, and large files; what is not complete is left out."""
    source = tmp_path / "source"
    files = {"a.txt": b"a", "sub/b.bin": os.urandom(LARGE), "sub/deep/er/c": b"", **{f"many/{x}": b"%d" % x for x in range(50)}}
    for name, data in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    (source / f"{whole_files.PART}0").write_bytes(b"half")
    assert blobs.upload_folder(source, "in/") == len(files)
    blobs.write("input", b"not below the folder")
    assert sorted(blobs.list()) == sorted([*(f"in/{name}" for name in files), "input"])
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_bytes(b"kept")
    assert blobs.download_folder("in", tmp_path / "target") == len(files)
    assert tree(tmp_path / "target") == {**files, "mine": b"kept"}
    assert blobs.download_folder("", tmp_path / "all") == len(files) + 1


def test_a_folder_that_is_not_there_is_an_error_when_it_is_uploaded(blobs: Blobs, tmp_path: Path) -> None:
    """And no empty success."""
    with pytest.raises(FileNotFoundError):
        blobs.upload_folder(tmp_path / "nowhere", "in")
    with pytest.raises(FileNotFoundError):
        blobs.upload(tmp_path / "nowhere", "in")


def test_what_is_no_file_is_not_waited_for(jobq_app: App, tmp_path: Path) -> None:
    """Nobody may ever write to a pipe."""
    os.mkfifo(tmp_path / "pipe")
    blobs = jobq_app.blobs("data", create=True)
    for upload in (lambda: blobs.upload(tmp_path / "pipe", "x"), lambda: blobs.upload_folder(tmp_path, "in")):
        with pytest.raises(JobQError, match=r"pipe is a pipe, a socket or a device"):
            upload()
    with pytest.raises(IsADirectoryError):
        blobs.upload(tmp_path, "x")
    assert list(blobs.list()) == []


def test_a_missing_blob_is_named(blobs: Blobs, tmp_path: Path) -> None:
    """And what is there stays."""
    (tmp_path / "file").write_bytes(b"old")
    for ask in (
        lambda: blobs.read("no"),
        lambda: blobs.download("no", tmp_path / "file"),
        lambda: blobs.download("no", tmp_path / "file", cache=True),
        lambda: blobs.open("no"),
    ):
        with pytest.raises(NotFound, match=f"There is no blob 'no' in container '{blobs.container}' of "):
            ask()
    assert not blobs.exists("no")
    blobs.delete("no")
    assert list(blobs.list()) == []
    assert blobs.download_folder("no", tmp_path / "none") == 0
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_missing_container_is_an_error_that_says_what_to_do(app: App, tmp_path: Path) -> None:
    """Whatever is asked of it, and never "no blob"."""
    blobs = app.blobs(f"none-{uuid.uuid4().hex}")
    for ask in (
        lambda: blobs.exists("x"),
        lambda: blobs.read("x"),
        lambda: blobs.write("x", b""),
        lambda: blobs.delete("x"),
        lambda: list(blobs.list()),
        lambda: blobs.download_folder("", tmp_path),
        lambda: blobs.download("x", tmp_path / "x", cache=True),
    ):
        with pytest.raises(NotFound, match=r"There is no container 'none-.*' at .* create=True\) to have it made"):
            ask()
    app.blobs(blobs.container, create=True).write("x", b"1")
    assert blobs.read("x") == b"1"


def test_a_blob_is_read_as_a_file(blobs: Blobs) -> None:
    """From anywhere in it, in order or not, by whatever reads files."""
    data = os.urandom(LARGE)
    blobs.write("big", data)
    with blobs.open("big") as file:
        assert file.read(10) == data[:10]
        assert file.seek(-7, os.SEEK_END) == LARGE - 7
        assert file.read() == data[-7:]
        assert file.read(1) == b""
        file.seek(1000)
        file.seek(5, os.SEEK_CUR)
        assert file.read(BLOCK_BYTES) == data[1005 : 1005 + BLOCK_BYTES]
        file.seek(LARGE + 100)
        assert file.read(1) == b""
        file.seek(0)
        assert b"".join(iter(lambda: file.read(100_000), b"")) == data
        with pytest.raises(ValueError, match="no place -1, 0 in a blob"):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    blobs.write("pickle", pickle.dumps({"a": 1}))
    with blobs.open("pickle") as file:
        assert pickle.load(file) == {"a": 1}


async def test_a_blob_is_streamed(blobs: Blobs) -> None:
    """Block by block, by a coroutine."""
    data = os.urandom(LARGE)
    await blobs.awrite("big", data)
    async with blobs.aopen("big") as file:
        assert (file.size, await file.read(5)) == (LARGE, data[:5])
        assert b"".join([block async for block in file]) == data[5:]
        assert (file.tell(), file.seek(-3, os.SEEK_END), await file.read()) == (LARGE, LARGE - 3, data[-3:])
        file.seek(LARGE - BLOCK_BYTES - 1)
        assert await file.read(BLOCK_BYTES) == data[-BLOCK_BYTES - 1 : -1]


def test_all_of_a_blob_is_read_in_large_steps(jobq_app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is a hop to another thread."""
    blobs, data, steps = jobq_app.blobs("data", create=True), os.urandom(LARGE), 0
    blobs.write("big", data)
    read = Ranges.read

    async def counted(self: Ranges, start: int, most: int, ledger: Any = None) -> bytes:
        nonlocal steps
        steps += 1
        return await read(self, start, most, ledger)

    monkeypatch.setattr(Ranges, "read", counted)
    with blobs.open("big") as file:
        assert file.read(3) + file.read() == data
        assert file.read() == b""
    assert steps < 12


def test_a_blob_that_is_replaced_while_it_is_read_is_an_error(blobs: Blobs) -> None:
    """And never a mixture."""
    blobs.write("big", bytes(LARGE))
    with blobs.open("big") as file:
        file.read(10)
        blobs.write("big", b"1" * LARGE)
        file.seek(LARGE - 10)
        with pytest.raises(JobQError, match="The blob 'big' was replaced while it was read: open it again"):
            file.read()


def test_the_cache_gives_what_is_there_now(blobs: Blobs, tmp_path: Path, temporary: Path) -> None:
    """A copy, of the version that the storage has: neither a later change in a task's file nor a damaged file shows."""
    blobs.write("x", b"first")
    path = blobs.download("x", tmp_path / "x", cache=True)
    path.write_bytes(b"mine")
    assert blobs.download("x", tmp_path / "y", cache=True).read_bytes() == b"first"
    blobs.write("x", b"second")
    assert blobs.download("x", tmp_path / "x", cache=True).read_bytes() == b"second"
    (kept,) = in_cache(temporary)
    with kept.open("r+b") as file:
        file.truncate(3)
    assert blobs.download("x", tmp_path / "x", cache=True).read_bytes() == b"second"
    assert blobs.download_folder("", tmp_path / "folder", cache=True) == 1
    assert tree(tmp_path / "folder") == {"x": b"second"}


# Names, places, and what a Blobs is.


@pytest.mark.parametrize(
    "wrong", ["", "/a", "../a", "a/../b", "a/./b", "a/..", "a\\b", "a\nb", "a\0", "\ud800", "x" * 1025, 3, None]
)
def test_names_that_lead_elsewhere_are_refused(jobq_app: App, wrong: Any, tmp_path: Path) -> None:
    """Before any request."""
    blobs = jobq_app.blobs("data")
    with pytest.raises(DeclarationError, match="A blob's name is 1 to 1024 characters"):
        blobs.download(wrong, tmp_path / "x")
    with pytest.raises(DeclarationError, match="A blob's name is"):
        blobs.write(wrong, b"")


@pytest.mark.parametrize("wrong", ["..", "a/../b", None, 0, b""])
def test_prefixes_are_checked(jobq_app: App, wrong: Any, tmp_path: Path) -> None:
    """What is missing by mistake is not the whole container."""
    blobs = jobq_app.blobs("data", create=True)
    blobs.write("x", b"1")
    with pytest.raises(DeclarationError, match="A blob's name is"):
        blobs.download_folder(wrong, tmp_path)
    assert blobs.download_folder("/", tmp_path) == 1


@pytest.mark.parametrize("wrong", ["text", 5, None])
def test_only_bytes_are_written(jobq_app: App, wrong: Any) -> None:
    """A number would be so many zeros."""
    with pytest.raises(TypeError, match="A blob holds bytes; got"):
        jobq_app.blobs("data", create=True).write("x", wrong)


def test_a_file_whose_name_can_be_no_blobs_is_an_error(jobq_app: App, tmp_path: Path) -> None:
    """And not left out."""
    (tmp_path / "a\nb").touch()
    with pytest.raises(DeclarationError, match="A blob's name is"):
        jobq_app.blobs("data", create=True).upload_folder(tmp_path, "in")


def test_a_listing_may_be_left_early(jobq_app: App) -> None:
    """And be listed by a coroutine on the loop that lists it."""
    blobs = jobq_app.blobs("data", create=True)
    for x in range(5):
        blobs.write(str(x), b"")
    assert next(blobs.list()) == "0"

    async def names(prefix: str) -> AsyncIterator[str]:
        async for name in blobs.alist(prefix):
            yield name

    told: list[Fed] = []
    jobq_app.task(lambda name: name).map(names, seeds=["1", "2"], report=told.append)
    assert told[-1] == Fed(2, 0, 2)


@pytest.mark.parametrize("wrong", ["", "ab", "UPPER", "a--b", "-ab", "x" * 64, "a/b/c", "Account/data", "account/", 3, None])
def test_names_of_containers_are_checked(jobq_app: App, wrong: Any) -> None:
    """With an example of a right one."""
    with pytest.raises(DeclarationError, match="as in 'my-data', or in another account 'account/my-data'"):
        jobq_app.blobs(wrong)


def test_the_apps_own_container_is_not_for_tasks(jobq_app: App) -> None:
    """Its names are not the user's."""
    with pytest.raises(DeclarationError, match="'jobq-test-app' is the app's own"):
        jobq_app.blobs("jobq-test-app")


def test_the_own_account_by_name_is_the_own_place(azurite_url: str) -> None:
    """With the right that the app has there."""
    app = App("blobs-unit", azurite_url)
    name = f"data-{uuid.uuid4().hex}"
    app.blobs(f"devstoreaccount1/{name}", create=True).write("x", b"1")
    assert app.blobs(name).read("x") == b"1"
    app.close()


def test_another_account_is_opened_once_for_all(jobq_app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Entra ID, also for threads and coroutines that come at the same time; it is closed with the app's own connections."""
    opened: list[str] = []
    fakes = FakeTransport()

    async def open_transport(place: Any, *, environ: Any) -> FakeTransport:
        opened.append(place.label)
        await asyncio.sleep(0)
        if len(opened) == 1:
            raise Unreachable("no token yet", maybe_done=False)
        return fakes

    monkeypatch.setattr(containers, "open_transport", open_transport)
    with pytest.raises(Unreachable):
        jobq_app.blobs("other/data").read("x")

    async def read() -> list[bytes]:
        return await asyncio.gather(*(jobq_app.blobs(f"other/data-{x % 2}").aread("x") for x in range(10)))

    assert asyncio.run(read()) == [b"x"] * 10
    assert jobq_app.blobs("other/data").read("x") == b"x"
    assert opened == ["azure://other"] * 2
    jobq_app.close()
    assert fakes.is_closed


def test_blobs_travel(jobq_app: App) -> None:
    """They are a name, and no connection."""
    blobs = jobq_app.blobs("data", create=True)
    blobs.write("x", b"1")
    assert cloudpickle.loads(cloudpickle.dumps(blobs)).read("x") == b"1"
    assert repr(blobs) == "<Blobs of data>"


def test_blobs_of_the_running_call_are_for_its_task() -> None:
    """Elsewhere there are those of the app."""
    call = RunningCall("c", 1, 1, "t", "default", "w", "c")
    with running(call), pytest.raises(JobQError, match=r"only inside the running task; elsewhere there is app\.blobs"):
        current().blobs("data")


def test_inline_calls_have_blobs(jobq_inline: Callable[[App], App]) -> None:
    """Sync and async tasks, in the test's own process."""
    app = jobq_inline(App("blobs-inline"))

    @app.task
    def write(x: int) -> None:
        current().blobs("data", create=True).write(str(x), b"1")

    @app.task
    async def read(x: int) -> bytes:
        return await current().blobs("data").aread(str(x))

    write.delay(1).result()
    assert list(read.map([1])) == [b"1"]


# On a storage that this test plays.


class FakeTransport:
    """A place with one store for all containers."""

    def __init__(self, store: FakeStore | None = None) -> None:
        self._store, self.is_closed = store or FakeStore({"x": b"x"}), False

    def store(self, container: str) -> FakeStore:
        return self._store

    async def close(self) -> None:
        self.is_closed = True


class FakeStore:
    """Blobs in memory; `on_get` is asked before each read, and may change them. Only what reading needs."""

    def __init__(self, data: dict[str, bytes]) -> None:
        self.data, self.version = data, 1
        self.asked: list[tuple[int, int]] = []
        self.on_get: Callable[[], Awaitable[None]] | None = None
        self.on_check: Exception | None = None
        self.cut = 0

    async def get(self, name: str, *, start: int = 0, length: int, if_none_match: str | None = None) -> Blob | None:
        self.asked.append((start, length))
        if self.on_get is not None:
            await self.on_get()
        if if_none_match == str(self.version):
            return None
        data = self.data[name][start : start + length]
        return Blob(BlobInfo(name, len(self.data[name]), str(self.version), 0.0), data[: len(data) - self.cut if start else None])

    async def check(self) -> None:
        if self.on_check is not None:
            raise self.on_check

    async def head(self, name: str) -> BlobInfo:
        raise NotFound(name)

    async def list(self, prefix: str, *, with_metadata: bool) -> AsyncIterator[BlobInfo]:
        for name, data in self.data.items():
            if name.startswith(prefix):
                yield BlobInfo(name, len(data), str(self.version), 0.0, {"hdi_isfolder": "true"} if name.endswith("marker") else {})


async def container(store: FakeStore, *, cache_bytes: int = 10**9) -> Container:
    """A container of that store."""
    transport: Any = FakeTransport(store)
    return await Containers({}, cache_bytes).container(LocalPlace(Path("/nowhere")), "data", transport)


@pytest.mark.parametrize("name", ["in/../../evil", "in//etc/passwd", "in/./x", "in/..", "in/a/", "in/a\0b"])
async def test_no_blob_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Whoever could write to the container cannot write elsewhere on the worker's disk."""
    store = FakeStore({name: b"evil"})
    with pytest.raises(JobQError, match="cannot be a file below"):
        await (await container(store)).download_folder("in/", tmp_path / "target")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
async def test_a_file_and_a_folder_of_one_name_are_an_error(tmp_path: Path, names: tuple[str, str]) -> None:
    """That says which blob, and not which part of a file."""
    store = FakeStore({f"in/{name}": b"1" for name in names})
    with pytest.raises(JobQError, match=r"The blob 'in/a(/b)?' cannot be a file below .*: a folder is there"):
        await (await container(store)).download_folder("in/", tmp_path)
    assert not [path for path in tree(tmp_path) if whole_files.PART in path]


async def test_a_right_to_blobs_alone_is_enough() -> None:
    """Who may not look at the container takes it to be there."""
    store = FakeStore({})
    store.on_check = AccessDenied()
    found = await container(store)
    assert not await found.exists("x")


async def test_marks_of_folders_are_no_files(tmp_path: Path) -> None:
    """As accounts with hierarchical names list them."""
    store = FakeStore({"in/": b"", "in/sub/": b"", "in/marker": b"", "in/marker/x": b"1"})
    assert await (await container(store)).download_folder("in/", tmp_path) == 1
    assert tree(tmp_path) == {"marker/x": b"1"}


async def test_a_download_of_a_blob_that_is_replaced_begins_again(tmp_path: Path) -> None:
    """What comes out is of one version."""
    store = FakeStore({"x": b"1" * LARGE})

    async def replace() -> None:
        if len(store.asked) == 3:
            store.data, store.version = {"x": b"2" * (LARGE - 5)}, 2

    store.on_get = replace
    found = await container(store)
    await found.download("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"2" * (LARGE - 5)
    store.asked.clear()
    store.data, store.version = {"x": b"1" * LARGE}, 1
    assert await found.read("x") == b"2" * (LARGE - 5)


@pytest.mark.parametrize("cached", [False, True])
async def test_a_blob_that_is_never_the_same_is_given_up(tmp_path: Path, cached: bool) -> None:
    """And leaves nothing behind."""
    store = FakeStore({"x": bytes(LARGE)})

    async def replace() -> None:
        store.version += 1

    store.on_get = replace
    with pytest.raises(Unreachable, match="it was replaced 5 times"):
        await (await container(store)).download("x", tmp_path / "target" / "x", cached=cached)
    assert tree(tmp_path) == {}


async def test_bytes_that_are_missing_are_noticed(tmp_path: Path) -> None:
    """The old file stays."""
    store = FakeStore({"x": bytes(LARGE)})
    store.cut = 1
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(Unreachable, match="bytes came instead of"):
        await (await container(store)).download("x", tmp_path / "x")
    assert tree(tmp_path) == {"x": b"old"}


async def test_a_cancelled_download_leaves_nothing(tmp_path: Path) -> None:
    """Neither a part beside the file nor one in the cache."""
    for cached in (False, True):
        store, in_blocks = FakeStore({"x": bytes(LARGE)}), asyncio.Event()

        async def wait(store: FakeStore = store, in_blocks: asyncio.Event = in_blocks) -> None:
            if len(store.asked) > 1:
                in_blocks.set()
                await asyncio.Event().wait()

        store.on_get = wait
        download = asyncio.create_task((await container(store)).download("x", tmp_path / "target" / "x", cached=cached))
        await in_blocks.wait()
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
    assert tree(tmp_path) == {}


async def test_a_cancelled_download_is_over_when_the_disk_is(tmp_path: Path) -> None:
    """What a thread wrote later could get into the file of the next download."""
    is_writing, may_go_on = threading.Event(), threading.Event()

    def write() -> None:
        is_writing.set()
        may_go_on.wait(60)
        (tmp_path / "x").touch()
        raise OSError(28, "No space left on device")

    writing = asyncio.create_task(whole_files.to_its_end(write))
    await asyncio.to_thread(is_writing.wait, 60)
    writing.cancel()
    await asyncio.sleep(0.01)
    assert not writing.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (tmp_path / "x").exists()


async def test_large_downloads_that_wait_hold_no_more_than_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the beginning of its blob in memory by then, and a task may gather over thousands."""
    monkeypatch.setattr(containers, "DOWNLOADS_AT_ONCE", 6)
    store, begun, over, most = FakeStore({"x": bytes(LARGE)}), 0, 0, 0

    async def count() -> None:
        nonlocal begun, most
        begun += store.asked[-1][0] == 0
        most = max(most, begun - over)

    async def download(to: Path) -> None:
        nonlocal over
        await found.download("x", to)
        over += 1

    store.on_get = count
    found = await container(store)
    await asyncio.gather(*(download(tmp_path / str(x)) for x in range(20)))
    assert (most, len(tree(tmp_path))) == (6, 20)


async def test_requests_of_a_process_are_bounded(tmp_path: Path) -> None:
    """However many ask at the same time."""
    store, now, most = FakeStore({"x": b"1"}), 0, 0

    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    store.on_get = count
    found = await container(store)
    await asyncio.gather(*(found.read("x") for _ in range(5 * REQUESTS_AT_ONCE)))
    assert most == REQUESTS_AT_ONCE


async def test_many_who_want_one_blob_fetch_it_once(tmp_path: Path) -> None:
    """With the cache: one fetches the blocks, the others only ask for the beginning."""
    store = FakeStore({"x": os.urandom(LARGE)})
    found = await container(store)
    await asyncio.gather(*(found.download("x", tmp_path / str(x), cached=True) for x in range(4)))
    assert all((tmp_path / str(x)).read_bytes() == store.data["x"] for x in range(4))
    assert len([start for start, _ in store.asked if start]) == -(-(LARGE - FIRST_BYTES) // BLOCK_BYTES)


async def test_what_the_cache_has_costs_one_small_answer(tmp_path: Path, temporary: Path) -> None:
    """And what is too large for it, or has nowhere to lie, is fetched as without it."""
    store = FakeStore({"x": bytes(FIRST_BYTES + 1)})
    found = await container(store)
    await found.download("x", tmp_path / "x", cached=True)
    store.asked.clear()
    await found.download("x", tmp_path / "x", cached=True)
    assert store.asked == [(0, FIRST_BYTES)]
    small = await container(store, cache_bytes=FIRST_BYTES)
    (kept,) = in_cache(temporary)
    kept.unlink()
    await small.download("x", tmp_path / "y", cached=True)
    assert not in_cache(temporary)
    kept.parent.chmod(0o777)
    await found.download("x", tmp_path / "z", cached=True)
    assert {(tmp_path / name).stat().st_size for name in "xyz"} == {FIRST_BYTES + 1}


async def test_a_part_that_a_killed_process_left_does_no_harm(tmp_path: Path, temporary: Path) -> None:
    """Longer than what comes now, it would stand behind it."""
    store = FakeStore({"x": b"short"})
    found = await container(store)
    await found.download("x", tmp_path / "x", cached=True)
    (kept,) = in_cache(temporary)
    kept.unlink()
    kept.with_suffix(PART).write_bytes(bytes(1000))
    for _ in range(2):
        await found.download("x", tmp_path / "x", cached=True)
        assert (tmp_path / "x").read_bytes() == b"short"


async def test_reading_in_order_runs_ahead_and_jumping_does_not(jobq_app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges grow while they follow each other; a jump asks for a small one."""
    store = FakeStore({"x": os.urandom(8 * BLOCK_BYTES)})

    async def open_transport(place: Any, *, environ: Any) -> FakeTransport:
        return FakeTransport(store)

    monkeypatch.setattr(containers, "open_transport", open_transport)
    async with jobq_app.blobs("other/data").aopen("x") as file:
        assert b"".join([block async for block in file]) == store.data["x"]
        starts = [start for start, _ in store.asked]
        assert starts == sorted(set(starts))
        assert max(length for _, length in store.asked) == BLOCK_BYTES
        assert len(starts) < 16
        store.asked.clear()
        file.seek(100)
        await file.read(10)
        file.seek(5 * BLOCK_BYTES)
        await file.read(10)
        assert store.asked == [(100, BUFFER_BYTES), (5 * BLOCK_BYTES, BUFFER_BYTES)]
