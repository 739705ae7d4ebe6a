"""A worker's scratch folder: its own while it lives, and nobody's for long after it was killed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from ai4s.jobq.errors import ConfigurationError
from ai4s.jobq.worker.scratch import LOCK, YOUNG_SECONDS, scratch_folder


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch folders lie here and nowhere else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def made_long_ago(folder: Path) -> Path:
    """The folder, as if it had been there for a while."""
    lock = folder / LOCK
    then = lock.stat().st_mtime - YOUNG_SECONDS - 1
    os.utime(lock, (then, then))
    return folder


def test_a_scratch_folder_goes_with_its_worker(tmp_path: Path) -> None:
    """With all that is in it."""
    with scratch_folder() as folder:
        (folder / "1.in").write_text("arguments")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_worker_goes_with_the_next_one(tmp_path: Path) -> None:
    """Nobody holds its lock any more."""
    left = tmp_path / "jobq-left"
    left.mkdir()
    (left / LOCK).touch()
    (left / "1.in").write_text("arguments")
    made_long_ago(left)
    with scratch_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_the_folder_of_a_living_worker_stays() -> None:
    """Its lock is held, however old it is."""
    with scratch_folder() as older:
        made_long_ago(older)
        with scratch_folder() as newer:
            assert older.exists()
            assert older != newer


def test_a_folder_that_is_just_being_made_stays(tmp_path: Path) -> None:
    """Its worker has not come to hold the lock yet."""
    (tmp_path / "jobq-young").mkdir()
    (tmp_path / "jobq-young" / LOCK).touch()
    with scratch_folder():
        assert (tmp_path / "jobq-young").exists()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """A folder without a worker's lock may be anybody's."""
    (tmp_path / "jobq-notes").mkdir()
    with scratch_folder():
        assert (tmp_path / "jobq-notes").exists()


def test_a_machine_without_room_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The worker cannot start, and says what to do."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="set TMPDIR"), scratch_folder():
        pass
