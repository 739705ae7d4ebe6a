"""`$JOBQ_CHECKPOINT_DIR`: a folder that the next attempt of a command finds again, on whatever machine.

It is looked at from time to time, and saved, on a thread, if something in it has changed; and once more when the command was made
to end. What is saved is the folder at one moment: one that changes meanwhile is tried again.

Next: `../checkpointing.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpointing import Checkpointing, fingerprint
from ..errors import JobQError

Log = logging.LoggerAdapter[logging.Logger]
TRIES, PAUSE_SECONDS = 5, 1.0
"""How often a folder that changes while it is read is tried, before it must wait for its next turn."""


class CheckpointFolder:
    """The folder of one attempt; made ready by `checkpoint_folder`."""

    def __init__(self, checkpoint: Checkpointing, path: Path, every_seconds: float, log: Log) -> None:
        self.path = path
        self._checkpoint, self._every_seconds, self._log = checkpoint, every_seconds, log
        self._saved = fingerprint(path)
        self._due = time.monotonic() + every_seconds
        self._saving: threading.Thread | None = None
        self._over = threading.Event()

    def look(self) -> None:
        """Begin to save it if that is due. Returns at once."""
        if time.monotonic() < self._due or (self._saving is not None and self._saving.is_alive()):
            return
        self._due = time.monotonic() + self._every_seconds
        self._saving = threading.Thread(target=self._save_in_peace, name="jobq-checkpoint", daemon=True)
        self._saving.start()

    def wait(self) -> None:
        """Wait for a save that is under way; it tries no more than once from now on."""
        self._over.set()
        if self._saving is not None:
            self._saving.join()

    def save_last(self) -> None:
        """Save what the command has left, now that it has ended."""
        self.wait()
        self._save_in_peace()

    def _save_in_peace(self) -> None:
        """Save what has changed, and at worst say that it was not."""
        try:
            self._save()
        except (JobQError, OSError) as exc:
            self._log.warning("$JOBQ_CHECKPOINT_DIR was not saved: %s", exc)

    def _save(self) -> None:
        tries = 0
        while True:
            found = fingerprint(self.path)
            if found in (self._saved, frozenset()):
                return
            try:
                if self._checkpoint.save_dir(self.path):
                    self._saved = found
                    size = sum(each[1] for each in found)
                    self._log.info("$JOBQ_CHECKPOINT_DIR is saved: %d file(s), %d bytes.", len(found), size)
                return
            except JobQError:
                tries += 1
                if tries == TRIES or self._over.wait(PAUSE_SECONDS):
                    raise


@contextmanager
def checkpoint_folder(checkpoint: Checkpointing, path: Path, every_seconds: float, log: Log) -> Iterator[CheckpointFolder]:
    """A fresh folder at `path`, with what the last attempt has saved in it; it goes with the block.

    Raises JobQError if what was saved cannot be restored on this machine.
    """
    path.mkdir(parents=True)
    if checkpoint.restore_dir(path):
        log.info("$JOBQ_CHECKPOINT_DIR is what an earlier attempt has saved.")
    folder = CheckpointFolder(checkpoint, path, every_seconds, log)
    try:
        yield folder
    finally:
        folder.wait()
