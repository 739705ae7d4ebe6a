"""The worker's folder for bytes that are too large to pass through its memory, and for code that its children share.

A payload is fetched once for the whole worker. The folder goes with the worker.

Next: `attempt.py`.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .. import layout
from ..errors import ConfigurationError
from ..ledger import Ledger
from ..message import Call, Spill
from .jobs import Job

PREFIX, LOCK = "jobq-", "worker.lock"
YOUNG_SECONDS = 60.0
"""A folder that is just being made has a lock that nobody holds yet."""


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Where the large things of one job lie: its arguments, its value, and a checkpoint on its way."""

    number: int
    arguments: Path
    value: Path
    checkpoint: Path


class Scratch:
    """Files of one worker; made ready by `scratch_folder`."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder, self._ledger = folder, ledger
        self._numbers = itertools.count(1)
        self._fetching: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @contextmanager
    def job_files(self) -> Iterator[JobFiles]:
        """A job's number and its files, which are removed at the end of the block."""
        number = next(self._numbers)
        files = JobFiles(number, *(self._folder / f"{number}.{end}" for end in ("in", "out", "checkpoint")))
        try:
            yield files
        finally:
            for path in (files.arguments, files.value, files.checkpoint):
                path.unlink(missing_ok=True)

    async def job(self, call: Call, files: JobFiles) -> Job:
        """A job with all that it needs on disk. Raises Malformed for missing or damaged blobs, OSError for a full disk."""
        if isinstance(call.arguments, Spill):
            await self._ledger.arguments_to(call, files.arguments)
        function = None if call.function is None else await self.payload(call.function)
        return Job(
            files.number,
            call,
            value_path=str(files.value),
            checkpoint_path=str(files.checkpoint),
            arguments_path=str(files.arguments),
            function_path=None if function is None else str(function),
        )

    async def payload(self, sha256: str) -> Path:
        """The file of a payload, fetched if this worker has not got it yet."""
        layout.payload(sha256)  # raises Malformed for anything that could lead out of the folder
        path = self._folder / sha256
        async with self._fetching[sha256]:
            if not path.exists():
                partial = path.with_suffix(".part")
                await self._ledger.payload_to(sha256, partial)
                partial.rename(path)
        return path


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A fresh folder for one worker, removed at the end of the block; those that killed workers have left go first.

    Raises ConfigurationError if none can be made.
    """
    try:
        _remove_abandoned(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as exc:
        raise ConfigurationError(f"No folder for temporary files can be made ({exc}): free some room, or set TMPDIR.") from exc
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders whose lock nobody holds: the kernel takes it from a process that is killed, in containers too."""
    for path in parent.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > YOUNG_SECONDS:
                shutil.rmtree(path.parent, ignore_errors=True)
