"""The worker's folder for bytes that are too large to pass through its memory, and for code that its children share.

A payload is fetched once for the whole worker. The folder goes with the worker.

Next: `attempt.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import layout
from ..ledger import Ledger
from ..message import Call, Spill
from .jobs import Job


class Scratch:
    """Files of one worker; made ready by `scratch_folder`."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder, self._ledger = folder, ledger
        self._numbers = itertools.count(1)
        self._fetching: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @contextmanager
    def job_files(self) -> Iterator[tuple[int, Path, Path]]:
        """A job's number and its two files, of arguments and of the value, removed at the end of the block."""
        number = next(self._numbers)
        arguments, value = self._folder / f"{number}.in", self._folder / f"{number}.out"
        try:
            yield number, arguments, value
        finally:
            arguments.unlink(missing_ok=True)
            value.unlink(missing_ok=True)

    async def job(self, call: Call, number: int, arguments: Path, value: Path) -> Job:
        """A job with all that it needs on disk. Raises Malformed for missing or damaged blobs, OSError for a full disk."""
        if isinstance(call.arguments, Spill):
            await self._ledger.arguments_to(call, arguments)
        function = None if call.function is None else await self.payload(call.function)
        return Job(number, call, str(value), str(arguments), None if function is None else str(function))

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
    """A fresh folder for one worker, removed at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="jobq-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
