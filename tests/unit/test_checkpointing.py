"""Checkpoints as a task sees them: what was saved is what is loaded, values and folders, from sync and async code."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from folder_vault import FolderVault

from ai4s.jobq import current
from ai4s.jobq.checkpointing import Checkpointing
from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import JobQError, NotSerializable
from ai4s.jobq.message import Form
from ai4s.jobq.running import RunningCall, Support, running

CALL = RunningCall(id="abcdefgh234567ab-000000000007", run=1, attempt=1, task="t", queue="default", worker="w", root="r")


@pytest.fixture
def vault(tmp_path: Path) -> FolderVault:
    """A vault without anything in it."""
    (tmp_path / "vault").mkdir()
    return FolderVault(tmp_path / "vault")


@pytest.fixture
def checkpoint(vault: FolderVault) -> Checkpointing:
    """What a task of the default codec has."""
    return Checkpointing(vault, codec_named("cloudpickle"))


@pytest.mark.parametrize("value", [None, 0, b"x" * 100_000, {"step": 7, "weights": [1.5, 2.5]}], ids=lambda value: str(value)[:20])
def test_what_was_saved_is_loaded(checkpoint: Checkpointing, vault: FolderVault, value: object) -> None:
    """Any value that the codec takes, None included; the file by which it passes does not stay."""
    assert checkpoint.save(value) is True
    assert checkpoint.load("nothing") == value
    assert not vault.path.exists()


def test_without_a_checkpoint_there_is_the_default(checkpoint: Checkpointing, tmp_path: Path) -> None:
    """So that a first attempt needs no case of its own."""
    assert checkpoint.load() is None
    assert checkpoint.load(0) == 0
    assert checkpoint.restore_dir(tmp_path / "out") is False
    assert not (tmp_path / "out").exists()


def test_the_newest_one_counts(checkpoint: Checkpointing) -> None:
    """Each takes the place of the one before."""
    checkpoint.save(1)
    checkpoint.save(2)
    assert checkpoint.load() == 2


def test_whether_it_is_kept_is_said(tmp_path: Path) -> None:
    """An attempt that has lost its lease is told that nobody will find what it saved."""
    vault = FolderVault(tmp_path, keeps=False)
    assert Checkpointing(vault, codec_named("cloudpickle")).save(1) is False
    assert not vault.path.exists()


def test_the_codec_of_the_call_is_used(vault: FolderVault) -> None:
    """A task that was declared safe has no pickles in its checkpoints either."""
    checkpoint = Checkpointing(vault, codec_named("msgpack"))
    checkpoint.save({"step": 3})
    assert checkpoint.load() == {"step": 3}
    with pytest.raises(NotSerializable):
        checkpoint.save(object())


def test_a_folder_comes_back_as_it_was(checkpoint: Checkpointing, tmp_path: Path) -> None:
    """Files, folders, links within it and modes; over what is there."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "model.bin").write_bytes(bytes(range(256)) * 1000)
    (source / "run.sh").write_text("echo")
    (source / "run.sh").chmod(0o755)
    Path(source / "link").symlink_to("run.sh")
    target.mkdir()
    (target / "run.sh").write_text("older")
    assert checkpoint.save_dir(source) is True
    assert checkpoint.restore_dir(str(target)) is True
    assert (target / "deep" / "er" / "model.bin").read_bytes() == bytes(range(256)) * 1000
    assert (target / "run.sh").read_text() == "echo"
    assert os.access(target / "run.sh", os.X_OK)
    assert (target / "link").readlink() == Path("run.sh")


def test_a_folder_that_is_none_is_refused(checkpoint: Checkpointing, tmp_path: Path) -> None:
    """The error names what was given."""
    with pytest.raises(JobQError, match="missing"):
        checkpoint.save_dir(tmp_path / "missing")


def test_values_and_folders_are_not_mistaken_for_each_other(checkpoint: Checkpointing, tmp_path: Path) -> None:
    """The error says which method takes what is there."""
    checkpoint.save(1)
    with pytest.raises(JobQError, match=r"load\(\)"):
        checkpoint.restore_dir(tmp_path / "out")
    (tmp_path / "in").mkdir()
    checkpoint.save_dir(tmp_path / "in")
    with pytest.raises(JobQError, match=r"restore_dir\(\)"):
        checkpoint.load()


async def test_the_async_twins_do_the_same(checkpoint: Checkpointing, tmp_path: Path) -> None:
    """From a coroutine, without holding up its loop."""
    assert await checkpoint.asave([1]) is True
    assert await checkpoint.aload() == [1]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("text")
    assert await checkpoint.asave_dir(tmp_path / "in") is True
    assert await checkpoint.arestore_dir(tmp_path / "out") is True
    assert (tmp_path / "out" / "file").read_text() == "text"


def test_only_the_running_call_has_one(checkpoint: Checkpointing) -> None:
    """A record of a call that is not the running one has no checkpoint to write to."""
    with running(CALL, Support(checkpoint, threading.Event())):
        assert current().checkpoint is checkpoint
    with pytest.raises(JobQError, match="only inside the running task"):
        _ = CALL.checkpoint


@pytest.mark.parametrize("aim", ["/etc/passwd", "../outside"])
def test_links_out_of_a_folder_are_refused_when_it_is_saved(checkpoint: Checkpointing, tmp_path: Path, aim: str) -> None:
    """And not when it is restored, where nobody could do anything about it any more."""
    (tmp_path / "in").mkdir()
    Path(tmp_path / "in" / "latest").symlink_to(aim)
    with pytest.raises(JobQError, match="latest"):
        checkpoint.save_dir(tmp_path / "in")
    assert checkpoint.load() is None


def test_pipes_in_a_folder_are_refused(checkpoint: Checkpointing, tmp_path: Path) -> None:
    """They cannot be kept."""
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe")
    with pytest.raises(JobQError, match="pipe"):
        checkpoint.save_dir(tmp_path / "in")


def test_a_link_to_a_folder_is_saved_as_that_folder(checkpoint: Checkpointing, tmp_path: Path) -> None:
    """As is common on clusters, where results lie on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("text")
    Path(tmp_path / "out").symlink_to("disk")
    assert checkpoint.save_dir(tmp_path / "out") is True
    assert checkpoint.restore_dir(tmp_path / "restored") is True
    assert (tmp_path / "restored" / "file").read_text() == "text"


def test_what_leads_out_of_the_folder_is_not_restored(checkpoint: Checkpointing, vault: FolderVault, tmp_path: Path) -> None:
    """Whoever can write to the place could otherwise write anywhere on the worker."""
    vault.path.write_bytes(packed("../stolen"))
    vault.save(Form.FOLDER)
    with pytest.raises(JobQError, match="stolen"):
        checkpoint.restore_dir(tmp_path / "out")
    assert not (tmp_path / "stolen").exists()


def packed(name: str) -> bytes:
    """A tar file with one file of this name in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def test_a_disk_that_does_not_take_it_is_told(tmp_path: Path) -> None:
    """With what to do about it, and nothing half-written."""
    checkpoint = Checkpointing(FolderVault(tmp_path / "missing"), codec_named("cloudpickle"))
    with pytest.raises(JobQError, match="TMPDIR needs room"):
        checkpoint.save(1)


def test_two_saves_at_a_time_wait_for_each_other(checkpoint: Checkpointing) -> None:
    """They pass by the same file."""
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(checkpoint.save, ["x" * size for size in range(0, 200_000, 1_000)]))
    assert set(checkpoint.load()) == {"x"}
