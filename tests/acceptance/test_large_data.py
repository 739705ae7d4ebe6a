"""Large arrays through real workers: equal values, small supervisors, and objects that a machine fetches once for all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from projects import NewProject, Project, peak_memory, until

from ai4s.jobq import CallRefused, Stored, gather

TASKS = """
import numpy as np

@app.task
def double(array):
    array *= 2
    return array

@app.task
async def adouble(array):
    array *= 2
    return array

@app.task
def look(table, x):
    return float(table["a"][x]), table["a"].flags.writeable, id(table), os.getpid()

@app.task
async def alook(table, x):
    return float(table["a"][x]), table["a"].flags.writeable, id(table), os.getpid()

@app.task
def offset(x, table):
    return int(table["a"][x])

@app.task
def spread(n):
    return app.put(np.arange(n))

@app.task
def wait_for(table, path):
    note("begun", os.getpid())
    while not os.path.exists(path):
        time.sleep(0.01)
    return float(table["a"].sum())
"""

MIB = 1024 * 1024
GROWTH = 64 * MIB


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the workers of a test keep their files."""
    (folder := tmp_path / "temporary").mkdir()
    return folder


def files(temporary: Path) -> list[Path]:
    """What the machine holds of stored objects."""
    return sorted(path for folder in temporary.glob("jobq-cache-*") for path in folder.iterdir())


@pytest.mark.parametrize("name", ["double", "adouble"])
def test_arrays_come_and_go(new: NewProject, place_url: str, name: str) -> None:
    """Of any size, changed by a task in its own memory, and free to be changed by the caller."""
    project = new(TASKS, url=place_url)
    project.worker("--concurrency", "1")
    for size in (10, 20_000, 300_000, 3_000_000):
        array = np.arange(size)
        result = project.task(name).delay(array).result(timeout=120)
        result += 1
        assert np.array_equal(result, 2 * array + 1)


def growth(project: Project, mebibytes: int) -> int:
    """By how much the supervisor's peak of memory grows with an array of this size, in and out."""
    project.task("double").delay(np.ones(10)).result(timeout=60)
    before = peak_memory(project.workers[0].pid)
    array = np.random.default_rng(1).random(mebibytes * MIB // 8)
    handle = project.task("double").delay(array)
    assert np.array_equal(handle.result(timeout=120), 2 * array)
    handle.forget()
    return peak_memory(project.workers[0].pid) - before


def test_a_large_array_passes_a_folder_and_not_the_supervisor(new: NewProject) -> None:
    """256 MiB in and out grow its peak of memory by less than 64 MiB."""
    project = new(TASKS)
    project.worker("--concurrency", "1")
    assert growth(project, 256) < GROWTH


def test_a_large_array_passes_an_account_and_not_the_supervisor(new: NewProject, azurite_url: str) -> None:
    """64 MiB in and out grow its peak of memory by less than 64 MiB."""
    project = new(TASKS, url=azurite_url)
    project.worker("--concurrency", "1")
    assert growth(project, 64) < GROWTH


def test_a_stored_object_is_fetched_once_by_a_machine(new: NewProject, place_url: str, temporary: Path) -> None:
    """All processes of all workers share one file; each decodes it once, and sees it read-only."""
    project = new(TASKS, url=place_url)
    ref = project.app.put({"a": np.arange(1_000_000)})
    workers = [project.worker("--concurrency", "2", TMPDIR=str(temporary)) for _ in range(2)]
    calls = [project.task(name).delay(ref, x) for x in range(40) for name in ("look", "alook")]
    seen = gather(*calls, timeout=120)
    assert [value for value, *_ in seen] == [x for x in range(40) for _ in range(2)]
    assert not any(writeable for _, writeable, *_ in seen)
    assert len({(identity, pid) for *_, identity, pid in seen}) == len({pid for *_, pid in seen}) > 1
    assert [path.name for path in files(temporary)] == [ref.sha256]

    for worker in workers:
        worker.signal(signal.SIGTERM)
        worker.wait()
    project.app.gc(86400, payloads=[ref.sha256])
    project.worker("--concurrency", "1", TMPDIR=str(temporary))
    assert project.task("look").delay(ref, 7).result(timeout=60)[0] == 7.0, "the file stays for workers to come"


def test_an_object_that_is_gone_fails_its_call_and_no_other(new: NewProject, temporary: Path) -> None:
    """At once, saying what to do; put again, it is had."""
    project = new(TASKS)
    ref = project.app.put({"a": np.arange(100_000)})
    project.app.gc(86400, payloads=[ref.sha256])
    worker = project.worker("--concurrency", "1", TMPDIR=str(temporary))
    with pytest.raises(CallRefused, match=r"is missing\. Put it again with app\.put"):
        project.task("look").options(retries=3).delay(ref, 1).result(timeout=60)
    assert files(temporary) == []
    assert project.app.put({"a": np.arange(100_000)}) == ref
    assert project.task("look").delay(ref, 1).result(timeout=60)[0] == 1.0
    assert "attempt 2" not in worker.log


def test_a_machines_files_are_bounded(new: NewProject, temporary: Path) -> None:
    """JOBQ_CACHE_BYTES says how much they may take; what a task uses is readable although it had to go."""
    project = new(TASKS)
    refs = [project.app.put({"a": np.full(100_000, n)}) for n in range(4)]
    project.worker("--concurrency", "2", TMPDIR=str(temporary), JOBQ_CACHE_BYTES=str(2_000_000))
    held = project.task("wait_for").delay(refs[0], str(project.folder / "go"))
    until(lambda: project.lines("begun"))
    for n, ref in enumerate(refs[1:], 1):
        assert project.task("look").delay(ref, 5).result(timeout=60)[0] == float(n)
    assert refs[0].sha256 not in {path.name for path in files(temporary)}
    assert sum(path.stat().st_size for path in files(temporary)) <= 2_000_000
    (project.folder / "go").touch()
    assert held.result(timeout=60) == 0.0


def test_a_folder_for_files_that_cannot_be_used_gives_calls_back(new: NewProject, temporary: Path) -> None:
    """The machine is at fault, and not the call: another worker runs it."""
    project = new(TASKS)
    ref = project.app.put({"a": np.arange(100_000)})
    (temporary / f"jobq-cache-{os.getuid()}").write_text("in the way")
    worker = project.worker("--concurrency", "1", TMPDIR=str(temporary))
    handle = project.task("look").delay(ref, 3)
    worker.until_says("cannot be brought to this machine")
    worker.until_says("goes back, since this machine hindered it")
    worker.kill()
    (other := temporary / "other").mkdir()
    project.worker("--concurrency", "1", TMPDIR=str(other))
    assert handle.result(timeout=120)[0] == 3.0


def test_a_task_may_put_an_object_for_others(new: NewProject, temporary: Path) -> None:
    """What it returns is a name, which is passed on without the object's coming here."""
    project = new(TASKS)
    project.worker("--concurrency", "1", TMPDIR=str(temporary))
    ref = project.task("spread").delay(200_000).result(timeout=60)
    assert isinstance(ref, Stored)
    assert project.task("look").delay({"a": ref}, 9).result(timeout=60)[0] == 9.0
    assert np.array_equal(ref.get(), np.arange(200_000))


def test_the_calls_of_a_batch_share_a_stored_object(new: NewProject, place_url: str, temporary: Path) -> None:
    """As an item, among all items' keyword arguments, and beside arrays that are large themselves."""
    project = new(TASKS, url=place_url)
    table = {"a": np.arange(100_000)}
    ref = project.app.put(table)
    project.worker("--concurrency", "2", TMPDIR=str(temporary))
    look = project.task("look")
    assert [value for value, *_ in look.map([ref] * 30, range(30))] == list(range(30))
    assert [value for value, *_ in look.map([{"a": np.arange(9)}, ref, table], [5, 6, 7])] == [5, 6, 7]
    seen = list(project.task("offset").map(range(40), kwargs={"table": ref}))
    assert seen == list(range(40))
    doubled = list(project.task("double").map(np.full(size, size) for size in (10, 300_000, 2_000_000)))
    assert [(array.size, array[-1]) for array in doubled] == [(10, 20), (300_000, 600_000), (2_000_000, 4_000_000)]
    assert [path.name for path in files(temporary)] == [ref.sha256]


def test_an_object_that_is_gone_fails_its_calls_of_a_batch_and_no_others(new: NewProject, temporary: Path) -> None:
    """Those that do without it have their values."""
    project = new(TASKS)
    ref = project.app.put({"a": np.arange(100_000)})
    project.app.gc(86400, payloads=[ref.sha256])
    project.worker("--concurrency", "1", TMPDIR=str(temporary))
    batch = project.task("look").map([{"a": np.arange(9)}, ref, {"a": np.arange(7)}], [1, 2, 3])
    first, second, third = batch.results(on_error="return")
    assert (first[0], third[0]) == (1, 3)
    assert isinstance(second, CallRefused)
    assert "Put it again" in str(second)
