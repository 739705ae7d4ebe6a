"""Objects that `app.put` stores: uploaded once, passed by name, had by tasks as themselves, shared on a machine in bounds."""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Awaitable, Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage_spy import blobs, calls, counted

from ai4s.jobq import App, CallRefused, HandleAsArgument, NotSerializable, Stored
from ai4s.jobq.codec import Hindered, Unresolved, codec_named
from ai4s.jobq.errors import Malformed, Unfit
from ai4s.jobq.layout import payload, sha256_of
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.machine_files import PART, cache_folder
from ai4s.jobq.message import Spill
from ai4s.jobq.payload import python_minor
from ai4s.jobq.stored import ResolvingCodec, may_name
from ai4s.jobq.worker import shelf
from ai4s.jobq.worker.cellar import Cellar
from ai4s.jobq.worker.jobs import Answer, Fetch
from ai4s.jobq.worker.shelf import Gone, OtherPython, Shelf

declared = App("stored")
CLOUDPICKLE = codec_named("cloudpickle")


@declared.task
def kind_and_sum(x: Any, *, more: Any = None) -> Any:
    return type(x).__name__, float(np.sum(x)), type(more).__name__


@declared.task
def change(x: Any) -> None:
    x[0] = 1


@declared.task
async def slow_sum(x: Any) -> float:
    await asyncio.sleep(0)
    return float(np.sum(x))


@declared.task
def same(x: Any, y: Any) -> bool:
    return x is y


@declared.task
def give_back(x: Any) -> Any:
    return declared.put([1, 2])


@declared.task(codec="msgpack")
def plain(x: Any) -> Any:
    return x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's tasks, on an empty store, without a worker."""
    return jobq_place(declared)


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's files lie here and nowhere else."""
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


# putting


@pytest.mark.parametrize("value", [1, [b"x" * 100_000], {"a": np.arange(100_000)}], ids=["small", "bytes", "array"])
def test_what_was_put_is_got(app: App, value: Any) -> None:
    """One payload, named by its digest and of the size that is said, and the object from it."""
    ref = app.put(value)
    assert blobs(app) == [payload(ref.sha256)]
    assert ref.sha256 == sha256_of(CLOUDPICKLE.dumps(value).data)
    assert ref.size == CLOUDPICKLE.dumps(value).size
    assert repr(ref.get()) == repr(value)


async def test_the_twins_do_the_same(app: App) -> None:
    """`aput` and `aget`, from a running loop."""
    ref = await app.aput({"a": 1})
    assert await ref.aget() == {"a": 1}
    assert ref == await asyncio.to_thread(app.put, {"a": 1})


def test_each_get_gives_an_object_of_ones_own(app: App) -> None:
    """Which may be changed."""
    ref = app.put(np.zeros(100_000))
    one = ref.get()
    one[:] = 1
    assert ref.get().max() == 0


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_an_object_is_uploaded_once(app: App, size: int) -> None:
    """A large one that is there is not even sent again."""
    ref = app.put(np.zeros(size, np.uint8))
    with counted(app) as requests:
        assert app.put(np.zeros(size, np.uint8)) == ref
    assert requests["put"] == (1 if size == 10 else 0)
    assert len(blobs(app)) == 1


def test_an_object_that_was_removed_is_uploaded_again(app: App) -> None:
    """Nobody relies on having put it before."""
    ref = app.put(np.zeros(1_000_000))
    app.gc(86400, payloads=[ref.sha256])
    assert blobs(app) == []
    assert app.put(np.zeros(1_000_000)) == ref
    assert len(blobs(app)) == 1


def test_an_object_that_was_damaged_is_mended_by_putting_it_again(app: App) -> None:
    """If its size tells."""
    ref = app.put(np.zeros(1_000_000))

    async def cut(ledger: Ledger) -> None:
        await (await ledger.store()).put(payload(ref.sha256), b"x" * 100)

    app.client.run(cut)
    with pytest.raises(Malformed, match="is not what was spilled there"):
        ref.get()
    assert app.put(np.zeros(1_000_000)).get().shape == (1_000_000,)


def test_what_cannot_travel_is_not_put(app: App) -> None:
    """Nor is a handle, wherever it stands."""
    with pytest.raises(NotSerializable, match="Lock"):
        app.put([multiprocessing.Lock()])
    handle = kind_and_sum.delay(1)
    with pytest.raises(HandleAsArgument):
        app.put({"a": [handle]})
    assert blobs(app, "payloads/") == []


def test_a_name_is_small_frozen_and_picklable(app: App) -> None:
    """It carries where it belongs, equals its copies, and can be a key."""
    ref = app.put(np.zeros(1_000_000))
    copy = pickle.loads(pickle.dumps(ref))
    assert (copy, hash(copy), copy.client) == (ref, hash(ref), app.client)
    assert len(pickle.dumps(ref)) < 400
    assert copy.get().shape == (1_000_000,)
    as_argument: Any = ref.arg
    assert as_argument is ref
    assert ref.sha256[:12] in repr(ref)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        ref.size = 0  # type: ignore[misc]


def test_what_is_gone_says_what_to_do(app: App) -> None:
    """Which object, of which app, and that it can be put again."""
    ref = app.put([1])
    app.gc(86400, payloads=[ref.sha256])
    with pytest.raises(Malformed, match=rf"app.put stored as {ref.sha256[:12]}… in stored .* is missing. Put it again"):
        ref.get()


def test_code_of_another_python_is_not_decoded(app: App) -> None:
    """A function in the object binds it to a version of Python."""
    assert app.put([1]).python is None
    ref = app.put(lambda: 1)
    assert ref.python == python_minor()
    assert ref.get()() == 1
    with pytest.raises(Unfit, match=r"code of Python 2\.7"):
        Stored(app.client, ref.sha256, ref.size, "2.7").get()


# passing


def test_a_task_gets_the_object(app: App, jobq_inline: Callable[[App], App]) -> None:
    """Anywhere in its arguments, in inline mode too, on loops as well as elsewhere."""
    jobq_inline(app)
    ref = app.put(np.arange(100_000))
    expected = ("ndarray", float(np.arange(100_000).sum()), "ndarray")
    assert kind_and_sum.delay(ref, more=ref).result() == expected
    assert slow_sum.delay(ref.arg).result() == expected[1]
    assert same.delay({"a": ref}, [ref]).result() is False
    assert same.delay(ref, ref).result()
    assert kind_and_sum.delay([1], more=(1, [{"deep": ref}])).result()[2] == "tuple"


def test_large_arguments_may_hold_names(app: App, jobq_inline: Callable[[App], App]) -> None:
    """Also where they are spilled."""
    jobq_inline(app)
    ref = app.put([1, 2])
    assert kind_and_sum.delay(np.ones(500_000), more=ref).result() == ("ndarray", 500_000.0, "list")


def test_a_call_with_a_name_is_small(app: App) -> None:
    """However large the object is."""
    ref = app.put(np.zeros(1_000_000))
    kind_and_sum.delay(ref)
    [call] = calls(app)
    assert isinstance(call.arguments, bytes)
    assert len(call.arguments) < 600
    assert may_name(call.arguments)


def test_an_object_may_hold_names_of_others(app: App, jobq_inline: Callable[[App], App]) -> None:
    """They are had in the same way."""
    jobq_inline(app)
    inner = app.put([1, 2, 3])
    assert kind_and_sum.delay(1, more=app.put((inner,))).result()[2] == "tuple"
    assert kind_and_sum.delay(app.put(inner)).result() == ("list", 6.0, "NoneType")


def test_a_name_that_a_task_returns_stays_a_name(app: App, jobq_inline: Callable[[App], App]) -> None:
    """Its caller reads it when it likes."""
    jobq_inline(app)
    ref = give_back.delay(app.put([0])).result()
    assert isinstance(ref, Stored)
    assert ref.get() == [1, 2]


def test_arrays_that_were_put_cannot_be_changed(app: App, jobq_inline: Callable[[App], App]) -> None:
    """Other calls see the same memory."""
    jobq_inline(app)
    with pytest.raises(ValueError, match="read-only"):
        change.delay(app.put(np.zeros(100_000))).result()


def test_a_call_whose_object_is_gone_is_refused(app: App, jobq_inline: Callable[[App], App]) -> None:
    """At once, with what to do, and not retried."""
    jobq_inline(app)
    ref = app.put(np.zeros(100_000))
    app.gc(86400, payloads=[ref.sha256])
    with pytest.raises(CallRefused, match=r"Put it again with app\.put"):
        kind_and_sum.delay(ref).result()


@pytest.mark.parametrize("wrap", [lambda ref: ref, lambda ref: [ref], lambda ref: {"a": (ref,)}])
def test_a_task_of_plain_data_refuses_a_name(app: App, wrap: Callable[[Any], Any]) -> None:
    """Where it is called, saying which codec takes it."""
    with pytest.raises(NotSerializable, match=r"What app\.put returns is no plain data.*codec='cloudpickle'"):
        plain.delay(wrap(app.put(1)))


# decoding


def test_names_are_resolved_only_where_arguments_are_decoded(app: App) -> None:
    """Elsewhere, and afterwards, unpickling one gives one; what fails to be had is told as it is."""
    ref = app.put([1])
    data = CLOUDPICKLE.dumps([ref, 5]).data
    asked: list[Stored[Any]] = []

    def resolve(stored: Stored[Any]) -> str:
        asked.append(stored)
        return "the object"

    def fail(stored: Stored[Any]) -> None:
        raise Gone("not there")

    codec = ResolvingCodec(CLOUDPICKLE, resolve)
    assert codec.loads(data) == codec.loads(bytearray(data)) == ["the object", 5]
    assert asked == [ref, ref]
    assert (codec.name, codec.allows_pickle, codec.dumps(1).data) == ("cloudpickle", True, CLOUDPICKLE.dumps(1).data)
    with pytest.raises(Unresolved, match="not there"):
        ResolvingCodec(CLOUDPICKLE, fail).loads(data)
    assert CLOUDPICKLE.loads(data) == [ref, 5]


# the shelf


class Supervisor:
    """Answers as a worker would, with files in a folder, and counts how often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Fetch] = []
        self.problem: str | None = None
        self.gone_first = 0

    def ask(self, request: Callable[[int], Any]) -> Answer:
        fetch = request(len(self.asked))
        assert isinstance(fetch, Fetch)
        self.asked.append(fetch)
        if self.problem is not None:
            return Answer(fetch.request, done=False, problem=self.problem or None)
        path = self.folder / ("elsewhere" if len(self.asked) <= self.gone_first else fetch.sha256)
        return Answer(fetch.request, done=True, path=str(path))

    def holds(self, app: App, value: object) -> Stored[Any]:
        """Have a file of this value."""
        data = CLOUDPICKLE.dumps(value).data
        (self.folder / sha256_of(data)).write_bytes(data)
        return Stored(app.client, sha256_of(data), len(data))


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    """One without files."""
    return Supervisor(tmp_path)


def test_a_process_decodes_an_object_once(app: App, supervisor: Supervisor) -> None:
    """A thousand calls see the same one."""
    ref, kept = supervisor.holds(app, np.zeros(100_000)), Shelf(supervisor.ask)
    first = kept.find(ref, 7)
    assert all(kept.find(ref, job) is first for job in range(1000))
    assert supervisor.asked == [Fetch(7, 0, ref.sha256, ref.size)]


def test_the_shelf_holds_few_objects(app: App, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least used go first, by number and by size; the newest stays however large it is."""
    monkeypatch.setattr(shelf, "MOST_OBJECTS", 3)
    refs, kept = [supervisor.holds(app, ["x" * n]) for n in range(4)], Shelf(supervisor.ask)
    for ref in [*refs[:3], refs[0], refs[3], refs[0], refs[2], refs[1]]:
        kept.find(ref, 1)
    assert [fetch.sha256 for fetch in supervisor.asked] == [ref.sha256 for ref in [*refs, refs[1]]]
    monkeypatch.setattr(shelf, "MOST_BYTES", 10)
    large, count = supervisor.holds(app, "x" * 1000), len(supervisor.asked)
    assert kept.find(large, 1) is kept.find(large, 1)
    kept.find(refs[0], 1)
    assert len(supervisor.asked) == count + 2


def test_a_file_that_goes_before_it_is_opened_is_asked_for_again(app: App, supervisor: Supervisor) -> None:
    """It had to make room for another; that does not happen for ever."""
    ref = supervisor.holds(app, [1])
    supervisor.gone_first = 2
    assert Shelf(supervisor.ask).find(ref, 1) == [1]
    assert len(supervisor.asked) == 3
    supervisor.gone_first = 1000
    with pytest.raises(Hindered):
        Shelf(supervisor.ask).find(ref, 1)


def test_what_cannot_be_had_says_whose_fault_it_is(app: App, supervisor: Supervisor) -> None:
    """The object's, the machine's, or this Python's; the next call asks again."""
    ref, kept = supervisor.holds(app, [1]), Shelf(supervisor.ask)
    supervisor.problem = "It is damaged."
    with pytest.raises(Gone, match=r"It is damaged\. Put it again"):
        kept.find(ref, 1)
    supervisor.problem = ""
    supervisor.folder = Path("/nonexistent")
    with pytest.raises(Hindered):
        kept.find(ref, 1)
    supervisor.problem, supervisor.folder = None, Path(tempfile.gettempdir()).parent
    with pytest.raises(OtherPython):
        kept.find(Stored(app.client, ref.sha256, ref.size, "2.7"), 1)
    assert kept.find(ref, 1) == [1]


# the machine's files

Item = namedtuple("Item", "spill data")
Usage = namedtuple("Usage", "free")


def item(size: int, seed: int = 0) -> Item:
    """Bytes and what is said of them."""
    data = bytes([seed]) * size
    return Item(Spill(size, sha256_of(data)), data)


class Source:
    """Gives bytes to whoever fetches them, and counts."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.fault: BaseException | None = None
        self.before: Callable[[], Awaitable[object]] | None = None

    async def have(self, cellar: Cellar, wanted: Item) -> Path:
        """The file of an item."""

        async def fetch(path: Path) -> None:
            self.fetched.append(wanted.spill.sha256)
            if self.before is not None:
                await self.before()
            await asyncio.to_thread(path.write_bytes, wanted.data[: len(wanted.data) // 2 if self.fault else None])
            if self.fault is not None:
                raise self.fault

        return await cellar.file(wanted.spill, fetch)


def held() -> list[str]:
    """The names in the folder."""
    return sorted(path.name for path in cache_folder().iterdir())


async def test_a_machine_fetches_a_file_once() -> None:
    """However many calls of however many workers want it, now and later."""
    source, wanted = Source(), item(1000)
    one, other = Cellar(10**9), Cellar(10**9)
    paths = await asyncio.gather(*(source.have(each, wanted) for each in [one, other] * 5))
    assert set(paths) == {cache_folder() / wanted.spill.sha256}
    assert (await source.have(Cellar(10**9), wanted)).read_bytes() == wanted.data
    assert len(source.fetched) == 1
    assert held() == [wanted.spill.sha256]


async def test_whoever_fetches_and_fails_leaves_nothing() -> None:
    """The next one fetches anew; so does one who waited."""
    source, wanted, cellar = Source(), item(1000), Cellar(10**9)
    for fault in (OSError(28, "No space left on device"), Malformed("gone"), asyncio.CancelledError()):
        source.fault = fault
        with pytest.raises(type(fault)):
            await source.have(cellar, wanted)
        assert held() == []
    source.fault = None
    assert (await source.have(cellar, wanted)).read_bytes() == wanted.data


async def test_a_fetch_that_is_cancelled_is_taken_over() -> None:
    """By another worker that waits for it."""
    source, wanted, begun = Source(), item(1000), asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    source.before = hang
    first = asyncio.create_task(source.have(Cellar(10**9), wanted))
    await begun.wait()
    source.before = None
    second = asyncio.create_task(source.have(Cellar(10**9), wanted))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).read_bytes() == wanted.data


@pytest.mark.parametrize("damage", [b"", b"short", bytes([9]) * 1000])
async def test_a_damaged_file_is_fetched_anew(damage: bytes) -> None:
    """A machine that crashed may have left it so: a worker hashes a file that it has not seen before."""
    source, wanted = Source(), item(1000)
    path = await source.have(Cellar(10**9), wanted)
    path.write_bytes(damage)
    assert (await source.have(Cellar(10**9), wanted)).read_bytes() == wanted.data


async def test_the_least_used_files_make_room() -> None:
    """Those that were used last stay; one that is mapped goes on to be read where it is."""
    source, cellar = Source(), Cellar(2_500)
    first, second, third = (item(1000, seed) for seed in range(3))
    for age, each in ((30, first), (20, second)):
        path = await source.have(cellar, each)
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))
    with (await source.have(cellar, first)).open("rb") as in_use:
        await source.have(cellar, third)
        assert held() == sorted([first.spill.sha256, third.spill.sha256])
        await source.have(cellar, item(2_400, 7))
        assert held() == [item(2_400, 7).spill.sha256]
        assert in_use.read() == first.data


async def test_a_file_larger_than_the_bound_is_had_all_the_same() -> None:
    """Its call could not run anywhere else either; it goes with the next one."""
    source, cellar = Source(), Cellar(100)
    assert (await source.have(cellar, item(1000))).exists()
    await source.have(cellar, item(10, 1))
    assert held() == [item(10, 1).spill.sha256]


async def test_a_disk_that_is_nearly_full_is_left_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the bound is."""
    source, cellar = Source(), Cellar(10**12)
    await source.have(cellar, item(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1500))
    await source.have(cellar, item(200, 1))
    assert held() == sorted([item(1000).spill.sha256, item(200, 1).spill.sha256])  # 1,200 of half of 1,500 + 1,000
    await source.have(cellar, item(400, 2))
    assert item(1000).spill.sha256 not in held()


async def test_what_killed_workers_left_goes_with_the_next_fetch() -> None:
    """Not what another one is writing now: it holds the lock."""
    source, folder = Source(), cache_folder()
    (folder / f"{'a' * 64}{PART}").write_bytes(b"left")
    with (folder / f"{'b' * 64}{PART}").open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        await source.have(Cellar(10**9), item(10))
        assert held() == sorted([item(10).spill.sha256, f"{'b' * 64}{PART}"])


async def test_a_file_that_another_worker_removes_at_once_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its fetch and its use."""
    source, wanted, real = Source(), item(1000), os.utime

    def removed_first(path: Path) -> None:
        if len(source.fetched) == 1:
            path.unlink()
        real(path)

    monkeypatch.setattr(os, "utime", removed_first)
    assert (await source.have(Cellar(10**9), wanted)).read_bytes() == wanted.data
    assert len(source.fetched) == 2


@pytest.fixture
def foreign(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What others could have put where our folder would be."""
    folder = cache_folder()
    folder.rmdir()
    if request.param == "open to others":
        folder.mkdir()
        folder.chmod(0o770)
    elif request.param == "a link":
        (tmp_path / "mine").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "mine")
    else:
        folder.touch()


@pytest.mark.parametrize("foreign", ["open to others", "a link", "a file"], indirect=True)
@pytest.mark.usefixtures("foreign")
async def test_a_folder_that_others_may_write_to_is_refused() -> None:
    """They could put anything there under any name."""
    source = Source()
    with pytest.raises((PermissionError, FileExistsError)):
        await source.have(Cellar(10**9), item(10))
    assert source.fetched == []


def test_the_folder_is_this_users_alone() -> None:
    """Whatever the mask for new files says."""
    before = os.umask(0)
    try:
        assert cache_folder().stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
