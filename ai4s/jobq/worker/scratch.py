"""The worker's folder for bytes that are too large to pass through its memory, and for code that its children share.

A payload is fetched once for the whole worker. The folder goes with the worker. What `app.put` stored lies elsewhere, for all
workers of the machine.

Next: `attempt.py`.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .. import layout
from ..checkpointing import FOLDER
from ..config import CACHE_BYTES
from ..errors import AccessDenied, ConfigurationError, LeaseLost, MessageError, Unreachable
from ..ledger import Ledger
from ..message import Call, Spill
from ..printable import printable
from .cellar import Cellar
from .jobs import Answer, Fetch, Job, Load, Request, Save

log = logging.getLogger("ai4s.jobq.worker")

PREFIX, LOCK = "jobq-", "worker.lock"
ARGUMENTS, VALUE, CHECKPOINT, JOURNAL = ".in", ".out", ".checkpoint", ".journal"
YOUNG_SECONDS = 60.0
"""A folder that is just being made has a lock that nobody holds yet."""


Patiently = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Tries again what the storage does not do, as long as that makes sense for who asks."""


@dataclass(slots=True)
class JobFiles:
    """Where the large things of one job lie: its arguments, its value, a checkpoint on its way; and the journal of a chunk.

    `none_made` is set where it is known that there is none, as after most small calls: to look for four files takes its time.
    """

    number: int
    folder: Path
    none_made: bool = False

    @property
    def arguments(self) -> Path:
        return Path(self.at(ARGUMENTS))

    @property
    def value(self) -> Path:
        return Path(self.at(VALUE))

    @property
    def checkpoint(self) -> Path:
        return Path(self.at(CHECKPOINT))

    @property
    def journal(self) -> Path:
        return Path(self.at(JOURNAL))

    def at(self, ending: str) -> str:
        """One of them as text: a Path costs more than all that most jobs do with it."""
        return f"{self.folder}/{self.number}{ending}"

    def remove(self) -> None:
        """Remove those that are there."""
        for ending in (ARGUMENTS, VALUE, CHECKPOINT, JOURNAL):
            with suppress(FileNotFoundError):
                os.unlink(self.at(ending))  # noqa: PTH108  # (see `at`)
        if os.path.isdir(left := self.at(CHECKPOINT) + FOLDER):  # noqa: PTH112  # (see `at`)
            # Of a call whose process was killed. It may hold a great many files, and leases have to be renewed meanwhile.
            threading.Thread(target=shutil.rmtree, args=(left, True), name="jobq-remove", daemon=True).start()


class Scratch:
    """Files of one worker; made ready by `scratch_folder`."""

    def __init__(self, folder: Path, ledger: Ledger, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._folder, self._ledger, self._cellar = folder, ledger, Cellar(cache_bytes)
        self._numbers = itertools.count(1)
        self._fetching: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @contextmanager
    def job_files(self) -> Iterator[JobFiles]:
        """A job's number and its files, which are removed at the end of the block."""
        number = next(self._numbers)
        files = JobFiles(number, self._folder)
        try:
            yield files
        finally:
            if not files.none_made:
                files.remove()

    async def job(self, call: Call, files: JobFiles) -> Job:
        """A job with all that it needs on disk. Raises Malformed for missing or damaged blobs, OSError for a full disk."""
        if isinstance(call.arguments, Spill):
            await self._ledger.arguments_to(call, files.arguments)
        function = None if call.function is None else await self.payload(call.function)
        return Job(
            files.number,
            call,
            value_path=files.at(VALUE),
            checkpoint_path=files.at(CHECKPOINT),
            arguments_path=files.at(ARGUMENTS),
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

    async def common_arguments(self, batch: str, arguments: Spill) -> Path:
        """The file of the keyword arguments that all calls of a batch share, fetched if this worker has not got it yet."""
        layout.payload(arguments.sha256)  # raises Malformed for anything that could lead out of the folder
        path = self._folder / f"common-{arguments.sha256}"
        async with self._fetching[path.name]:
            if not path.exists():
                partial = path.with_suffix(".part")
                await self._ledger.spilled_to(layout.batch_arguments(batch, arguments.sha256), arguments, partial)
                partial.rename(path)
        return path

    def serving(
        self, checkpoints: Callable[[Save | Load], Awaitable[Answer]], patiently: Patiently
    ) -> Callable[[Request], Awaitable[Answer]]:
        """What answers all requests of a job: those for stored objects here, the others as `checkpoints` does."""

        async def serve(request: Request) -> Answer:
            return await (self._stored(request, patiently) if isinstance(request, Fetch) else checkpoints(request))

        return serve

    async def _stored(self, request: Fetch, patiently: Patiently) -> Answer:
        """The file of a stored object; a problem is one of the object. Where the machine or the storage failed, the log says it."""

        async def fetch(path: Path) -> None:
            await patiently(lambda: self._ledger.payload_to(request.sha256, path, request.size))

        try:
            layout.payload(request.sha256)  # raises Malformed for anything that could lead out of the folder
            path = await self._cellar.file(Spill(request.size, request.sha256), fetch)
        except MessageError as exc:
            return Answer(request.request, done=False, problem=str(exc))
        except (OSError, LeaseLost, Unreachable, AccessDenied) as exc:
            log.error("The stored object %s cannot be brought to this machine: %s", printable(request.sha256), printable(str(exc)))
            return Answer(request.request, done=False)
        return Answer(request.request, done=True, path=str(path))


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
        for _ in range(2):  # the first may be in the way of a thread that removes a part of it
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders whose lock nobody holds: the kernel takes it from a process that is killed, in containers too."""
    for path in parent.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > YOUNG_SECONDS:
                shutil.rmtree(path.parent, ignore_errors=True)
