"""The two folders of a command: the one that its next attempt finds again, and the one that is copied to where it stays."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folder_vault import FolderVault

from ai4s.jobq.checkpointing import Checkpointing, fingerprint
from ai4s.jobq.codec import SHELL_CODEC
from ai4s.jobq.errors import JobQError
from ai4s.jobq.shell import checkpoints as rules
from ai4s.jobq.shell.checkpoints import CheckpointFolder, checkpoint_folder
from ai4s.jobq.shell.dirsync import FLUSH_NAME, DirSync, SyncSettings, background_sync, sync_settings

LOG = logging.LoggerAdapter(logging.getLogger("ai4s.jobq.task.test"), {})


@pytest.fixture
def vault(tmp_path: Path) -> FolderVault:
    """A vault without anything in it."""
    (tmp_path / "vault").mkdir()
    return FolderVault(tmp_path / "vault")


@pytest.fixture
def checkpoint(vault: FolderVault) -> Checkpointing:
    """What a call has."""
    return Checkpointing(vault, SHELL_CODEC)


def until(condition: Callable[[], object]) -> None:
    """Look until a condition holds; fails where it never does."""
    give_up_at, pause = time.monotonic() + 30, threading.Event()
    while not condition():
        assert time.monotonic() < give_up_at
        pause.wait(0.01)


# checkpoints


def test_what_was_saved_is_there_in_the_next_attempt(checkpoint: Checkpointing, tmp_path: Path) -> None:
    """With what lies in folders within it."""
    with checkpoint_folder(checkpoint, tmp_path / "first", 180, LOG) as first:
        (first.path / "deep").mkdir()
        (first.path / "deep" / "step").write_text("7")
        first.save_last()
    with checkpoint_folder(checkpoint, tmp_path / "second", 180, LOG) as second:
        assert (second.path / "deep" / "step").read_text() == "7"


def test_a_folder_is_saved_when_it_is_due(checkpoint: Checkpointing, vault: FolderVault, tmp_path: Path) -> None:
    """On a thread, and only if something has changed."""
    with checkpoint_folder(checkpoint, tmp_path / "first", 0, LOG) as folder:
        (folder.path / "step").write_text("1")
        folder.look()
        folder.wait()
        assert vault.form is not None
        vault.form = None
        folder.look()
        folder.wait()
        assert vault.form is None


def test_a_folder_is_not_saved_before_it_is_due(checkpoint: Checkpointing, vault: FolderVault, tmp_path: Path) -> None:
    """Each save costs storage requests."""
    with checkpoint_folder(checkpoint, tmp_path / "first", 1000, LOG) as folder:
        (folder.path / "step").write_text("1")
        folder.look()
    assert vault.form is None


def test_an_empty_folder_is_not_saved(checkpoint: Checkpointing, vault: FolderVault, tmp_path: Path) -> None:
    """Most commands know nothing of it."""
    with checkpoint_folder(checkpoint, tmp_path / "first", 0, LOG) as folder:
        folder.save_last()
    assert vault.form is None


def test_what_was_only_restored_is_not_saved_again(checkpoint: Checkpointing, vault: FolderVault, tmp_path: Path) -> None:
    """It is there."""
    with checkpoint_folder(checkpoint, tmp_path / "first", 0, LOG) as folder:
        (folder.path / "step").write_text("1")
        folder.save_last()
    with checkpoint_folder(checkpoint, tmp_path / "second", 0, LOG) as folder:
        form, vault.form = vault.form, None
        folder.save_last()
    assert (form is not None, vault.form) == (True, None)


class Restless(Checkpointing):
    """In whose folder something changes while it is read, for the first so many times."""

    def __init__(self, vault: FolderVault, times: int) -> None:
        super().__init__(vault, SHELL_CODEC)
        self.times = times

    def save_dir(self, path: str | Path) -> bool:
        if self.times:
            self.times -= 1
            raise JobQError("what is in the folder has changed")
        return super().save_dir(path)


def test_a_folder_that_changes_is_tried_again(vault: FolderVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is the folder at one moment."""
    monkeypatch.setattr(rules, "PAUSE_SECONDS", 0)
    tmp_path.joinpath("folder").mkdir()
    folder = CheckpointFolder(Restless(vault, 3), tmp_path / "folder", 0, LOG)
    (folder.path / "step").write_text("1")
    folder.look()

    def is_saved() -> bool:
        folder.look()
        return vault.form is not None

    until(is_saved)
    folder.wait()


def test_a_folder_that_never_rests_is_left_for_its_next_turn(
    vault: FolderVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, and the command goes on."""
    monkeypatch.setattr(rules, "PAUSE_SECONDS", 0)
    with checkpoint_folder(Restless(vault, 100), tmp_path / "first", 0, LOG) as folder:
        (folder.path / "step").write_text("1")
        folder.save_last()
    assert "was not saved: what is in the folder has changed" in caplog.text


def test_a_folder_that_is_torn_is_not_saved(checkpoint: Checkpointing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one state and half of another are none."""
    (tmp_path / "step").write_text("1")
    seen = iter([frozenset({("step", 1, 1)}), frozenset({("step", 1, 2)})])
    monkeypatch.setattr("ai4s.jobq.checkpointing.fingerprint", lambda folder: next(seen))
    with pytest.raises(JobQError, match="has changed"):
        checkpoint.save_dir(tmp_path)


def test_a_fingerprint_tells_folders_apart(tmp_path: Path) -> None:
    """By names, sizes and times, also of links to folders."""
    seen = {fingerprint(tmp_path)}
    (tmp_path / "a").write_text("1")
    seen.add(fingerprint(tmp_path))
    os.utime(tmp_path / "a", ns=(1, 1))
    seen.add(fingerprint(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    seen.add(fingerprint(tmp_path))
    for step in ("step-1", "step-2"):
        (tmp_path / step).mkdir()
        (tmp_path / "latest").unlink(missing_ok=True)
        (tmp_path / "latest").symlink_to(step)
        os.utime(tmp_path / "latest", ns=(1, len(seen)), follow_symlinks=False)
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 6
    assert fingerprint(tmp_path) in seen


# copies


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where a command writes."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def aim(tmp_path: Path) -> Path:
    """Where it stays; it is made when it is needed."""
    return tmp_path / "mounted" / "aim"


def contents(folder: Path) -> dict[str, str]:
    """All files below a folder, and what is in them."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_new_or_has_changed_is_copied(source: Path, aim: Path) -> None:
    """And nothing else; what lay there stays."""
    aim.mkdir(parents=True)
    (aim / "old").write_text("stays")
    (source / "deep").mkdir()
    (source / "deep" / "a").write_text("1")
    sync = DirSync(source, aim, SyncSettings(), LOG)
    assert sync.copy() == []
    assert contents(aim) == {"deep/a": "1", "old": "stays"}
    (aim / "deep" / "a").write_text("somebody's")
    assert sync.copy() == []
    assert contents(aim)["deep/a"] == "somebody's"
    (source / "deep" / "a").write_text("22")
    assert sync.copy() == []
    assert contents(aim)["deep/a"] == "22"


def test_what_an_earlier_attempt_has_copied_is_not_copied_again(source: Path, aim: Path) -> None:
    """It has the same size and time; what has another time is another file, even if the one that is there is newer."""
    (source / "a").write_text("1")
    os.utime(source / "a", (1_000_000, 1_000_000))
    aim.mkdir(parents=True)
    (aim / "a").write_text("2")
    os.utime(aim / "a", (1_000_000, 1_000_000))
    assert DirSync(source, aim, SyncSettings(), LOG).copy() == []
    assert contents(aim) == {"a": "2"}
    os.utime(aim / "a", (1_100_000, 1_100_000))
    assert DirSync(source, aim, SyncSettings(delete=True), LOG).copy() == []
    assert (contents(aim), contents(source)) == ({"a": "1"}, {})


def test_a_folder_that_cannot_be_read_is_a_problem(source: Path, aim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what is in it would be lost; of one that was just removed nothing is."""
    for name in ("closed", "removed"):
        (source / name).mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path if not path.endswith("removed") else f"{path}.gone")

    monkeypatch.setattr(os, "scandir", refuse)
    assert DirSync(source, aim, SyncSettings(), LOG).copy() == [f"[Errno 13] Permission denied: '{source / 'closed'}'"]


def test_what_is_no_file_is_passed_over(source: Path, aim: Path) -> None:
    """A pipe, a socket, a link to nothing or to itself: the attempt must not fail for want of them."""
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(source / "socket"))
        (source / "nothing").symlink_to("nowhere")
        (source / "itself").symlink_to("itself")
        (source / "a").write_text("1")
        assert DirSync(source, aim, SyncSettings(), LOG).copy() == []
    assert contents(aim) == {"a": "1"}


def test_patterns_say_what_is_copied(source: Path, aim: Path) -> None:
    """An excluded file is copied only if it is included as well; patterns fit names and paths."""
    for name in ("a.log", "keep.log", "b.txt"):
        (source / name).write_text(name)
    (source / "cache").mkdir()
    (source / "cache" / "c.txt").write_text("c")
    assert DirSync(source, aim, SyncSettings(include=("keep*",), exclude=("*.log", "cache")), LOG).copy() == []
    assert sorted(contents(aim)) == ["b.txt", "keep.log"]


def test_files_are_removed_once_they_were_copied(source: Path, aim: Path) -> None:
    """Where that is wanted."""
    (source / "a").write_text("1")
    assert DirSync(source, aim, SyncSettings(delete=True), LOG).copy() == []
    assert (contents(source), contents(aim)) == ({}, {"a": "1"})


def test_nobody_sees_half_a_file(source: Path, aim: Path) -> None:
    """A copy that fails leaves what was there before, and nothing beside it."""
    (source / "a").write_text("new")
    aim.mkdir(parents=True)
    (aim / "a").mkdir()  # in the way of the rename
    problems = DirSync(source, aim, SyncSettings(), LOG).copy()
    assert len(problems) == 1
    assert [path.name for path in aim.iterdir()] == ["a"]


def test_the_last_copy_comes_at_the_end(source: Path, aim: Path) -> None:
    """However soon that is."""
    with background_sync(source / "in", aim, SyncSettings(every_seconds=1000), LOG):
        (source / "in" / "a").write_text("1")
    assert contents(aim) == {"a": "1"}


def test_the_last_copy_comes_also_after_an_error(source: Path, aim: Path) -> None:
    """Which is the one that counts, then."""

    def fail() -> None:
        with background_sync(source / "in", aim, SyncSettings(), LOG):
            (source / "in" / "a").write_text("1")
            raise RuntimeError("of the command")

    with pytest.raises(RuntimeError, match="of the command"):
        fail()
    assert contents(aim) == {"a": "1"}


def test_what_could_not_be_copied_at_the_end_is_an_error(source: Path, tmp_path: Path) -> None:
    """It would be lost with this machine."""
    (tmp_path / "file").write_text("is no folder")
    with (
        pytest.raises(JobQError, match=r"1 file\(s\) of \$AMLT_DIRSYNC_DIR could not be copied"),
        background_sync(source / "in", tmp_path / "file", SyncSettings(), LOG),
    ):
        (source / "in" / "a").write_text("1")


def test_a_command_may_ask_for_a_copy(source: Path, aim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a file of a certain name, which is removed when that is done."""
    monkeypatch.setattr("ai4s.jobq.shell.dirsync.FLUSH_LOOK_SECONDS", 0.01)
    with background_sync(source / "in", aim, SyncSettings(every_seconds=1000), LOG):
        (source / "in" / "a").write_text("1")
        (source / "in" / FLUSH_NAME).touch()
        until(lambda: not (source / "in" / FLUSH_NAME).exists())
        assert contents(aim) == {"a": "1"}


def test_copies_are_made_from_time_to_time(source: Path, aim: Path) -> None:
    """While the command runs."""
    with background_sync(source / "in", aim, SyncSettings(every_seconds=0.01), LOG):
        (source / "in" / "a").write_text("1")
        until((aim / "a").exists)


def test_the_settings_are_those_of_the_environment() -> None:
    """With the names of ai4s-jobq 3.x; what is no number is an error."""
    assert sync_settings({}) == SyncSettings()
    told = {
        "AMLT_DIRSYNC_FREQ": "5",
        "AMLT_DIRSYNC_N_THREADS": "2",
        "AMLT_DIRSYNC_INCLUDE": "a b",
        "AMLT_DIRSYNC_EXCLUDE": "*.tmp",
        "AMLT_DELETE_AFTER_COPY": "true",
    }
    assert sync_settings(told) == SyncSettings(5.0, 2, ("a", "b"), ("*.tmp",), delete=True)
    with pytest.raises(JobQError, match="are numbers"):
        sync_settings({"AMLT_DIRSYNC_FREQ": "often"})
