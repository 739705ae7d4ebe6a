"""From one byte to 200 MB, in arguments and results: equal values, and a supervisor whose memory does not grow with them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from projects import Project, new_project, peak_memory

TASKS = """
import hashlib, random

@app.task
def measure(data):
    return len(data), hashlib.sha256(data).hexdigest()

@app.task
def make(seed, size):
    return random.Random(seed).randbytes(size)

@app.task
def echo(data):
    return data

@app.task(codec="msgpack")
def plain_echo(data):
    return data
"""

KB, MB = 1024, 1_000_000
AROUND_THE_BOUNDS = [
    0,
    1,
    47 * KB,
    48 * KB,
    64 * KB - 1,
    64 * KB,
    64 * KB + 1,
    256 * KB,
    1024 * KB,
    1024 * KB + 1,
    8 * 1024 * KB + 1,
]
GROWTH = 64 * 1024 * KB


@pytest.fixture(scope="module")
def on_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project on a folder, with a worker."""
    folder = tmp_path_factory.mktemp("sizes")
    with new_project(folder / "project", f"local://{folder}/place", TASKS) as project:
        project.worker("--concurrency", "1")
        yield project


@pytest.fixture(scope="module")
def on_account(tmp_path_factory: pytest.TempPathFactory, azurite_url: str) -> Iterator[Project]:
    """A project on a storage account, with a worker."""
    with new_project(tmp_path_factory.mktemp("sizes-account"), azurite_url, TASKS) as project:
        project.worker("--concurrency", "1")
        yield project


def values_are_equal(project: Project, size: int) -> None:
    """Bytes of this size arrive as arguments, and come back as results."""
    data = random.Random(size).randbytes(size)
    there = project.task("measure").delay(data)
    back = project.task("make").delay(size, size)
    assert there.result(timeout=120) == (size, hashlib.sha256(data).hexdigest())
    assert back.result(timeout=120) == data
    forget(project, there, back)


def forget(project: Project, *handles: object) -> None:
    """Leave no room taken."""
    for handle in handles:
        handle.forget()  # type: ignore[attr-defined]  # handles


def growth(project: Project, size: int) -> int:
    """By how much the supervisor's peak of memory grows with arguments and results of this size."""
    assert project.task("measure").delay(b"warm").result(timeout=60)[0] == 4
    before = peak_memory(project.workers[0].pid)
    values_are_equal(project, size)
    return peak_memory(project.workers[0].pid) - before


@pytest.mark.parametrize("size", AROUND_THE_BOUNDS)
def test_values_of_any_size_pass_a_folder(on_folder: Project, size: int) -> None:
    """Around every bound between message, outcome, pipe and blob, values arrive as they were."""
    values_are_equal(on_folder, size)


@pytest.mark.parametrize("size", AROUND_THE_BOUNDS)
def test_values_of_any_size_pass_an_account(on_account: Project, size: int) -> None:
    """The same with real messages and blobs."""
    values_are_equal(on_account, size)


@pytest.mark.parametrize("size", [1, 40 * KB, 70 * KB, 2 * MB])
@pytest.mark.parametrize("name", ["echo", "plain_echo"])
def test_what_compresses_well_passes_too(on_folder: Project, name: str, size: int) -> None:
    """Sizes are bounded before and after compression: zeros and texts arrive as they were, by both codecs."""
    for data in (bytes(size), "ä" * size):
        handle = on_folder.task(name).delay(data)
        assert handle.result(timeout=60) == data
        forget(on_folder, handle)


def test_200_mb_pass_a_folder_and_not_the_supervisor(on_folder: Project) -> None:
    """200 MB in and out grow the supervisor's peak of memory by less than 64 MiB."""
    assert growth(on_folder, 200 * MB) < GROWTH


def test_50_mb_pass_an_account_and_not_the_supervisor(on_account: Project) -> None:
    """50 MB in and out grow the supervisor's peak of memory by less than 64 MiB."""
    assert growth(on_account, 50 * MB) < GROWTH


def test_nothing_of_the_values_is_left(on_folder: Project) -> None:
    """Once outcomes are forgotten, no spilled arguments or values are there."""
    handle = on_folder.task("echo").delay(bytes(random.Random(1).randbytes(2 * MB)))
    assert len(handle.result(timeout=60)) == 2 * MB
    assert on_folder.names("args/")
    assert on_folder.names("values/")
    handle.forget()
    assert on_folder.names("args/") + on_folder.names("values/") == []
