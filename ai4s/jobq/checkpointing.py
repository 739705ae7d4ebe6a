"""Checkpoints as a task sees them: save what was done so far, and go on from there after the next start, on whatever machine.

Values pass through the call's codec, folders as tar files. Where the bytes go is left to a `Vault`: in a worker's child that is
its supervisor, which writes the blob and names it in the call's message.

Next: `worker/checkpoints.py`, the supervisor's side.
"""

from __future__ import annotations

import asyncio
import tarfile
from pathlib import Path
from typing import Any, Protocol

from .codec import Codec
from .errors import JobQError
from .message import Form


class Vault(Protocol):
    """Where checkpoints are kept; its methods block."""

    @property
    def path(self) -> Path:
        """The file by which a checkpoint passes, in either direction."""

    def save(self, form: Form) -> bool:
        """Keep the file at `path`; whether the next attempt will surely find it."""

    def load(self) -> Form | None:
        """Put the last checkpoint at `path`; None if there is none."""


class Checkpointing:
    """`jobq.current().checkpoint`: what one call keeps for its next attempt. A newer checkpoint takes the place of the older one.

    Each method has an async twin with the prefix `a`, which works on a thread. Use it from one thread or coroutine at a time.
    """

    def __init__(self, vault: Vault, codec: Codec) -> None:
        self._vault, self._codec = vault, codec

    def save(self, value: object) -> bool:
        """Keep `value` for the next attempt; durable when this returns.

        Returns:
            whether the next attempt will surely find it. False if this attempt has lost its lease, in which case another may be
            running already, or if the storage did not answer for as long as the lease lasted.

        Raises:
            NotSerializable: the call's codec cannot encode it.
            JobQError: this machine's disk is full or cannot be written.

        Costs two storage requests, and one to remove the older checkpoint: save every minute rather than every second.
        """
        self._vault.path.write_bytes(self._codec.dumps(value).data)
        return self._kept(Form.VALUE)

    def load(self, default: Any = None) -> Any:
        """What the last attempt that saved something saved last; `default` if there is nothing, or if it is damaged.

        Raises JobQError if a folder was saved.
        """
        if self._found(Form.VALUE):
            return self._codec.loads(self._taken())
        return default

    def save_dir(self, path: str | Path) -> bool:
        """Keep a folder, with all that is in it, for the next attempt; else as `save`."""
        folder = Path(path)
        if not folder.is_dir():
            raise JobQError(f"save_dir wants a folder; {str(folder)!r} is none.")
        with tarfile.open(self._vault.path, "w") as archive:
            archive.add(folder, arcname=".")
        return self._kept(Form.FOLDER)

    def restore_dir(self, path: str | Path) -> bool:
        """Put the last folder saved at `path`, which is made if need be, over what is there; whether there was one.

        Raises JobQError if a value was saved.
        """
        if not self._found(Form.FOLDER):
            return False
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(self._vault.path) as archive:
            archive.extractall(folder, filter="data")
        self._vault.path.unlink()
        return True

    async def asave(self, value: object) -> bool:
        """As `save`."""
        return await asyncio.to_thread(self.save, value)

    async def aload(self, default: Any = None) -> Any:
        """As `load`."""
        return await asyncio.to_thread(self.load, default)

    async def asave_dir(self, path: str | Path) -> bool:
        """As `save_dir`."""
        return await asyncio.to_thread(self.save_dir, path)

    async def arestore_dir(self, path: str | Path) -> bool:
        """As `restore_dir`."""
        return await asyncio.to_thread(self.restore_dir, path)

    def _kept(self, form: Form) -> bool:
        try:
            return self._vault.save(form)
        finally:
            self._vault.path.unlink(missing_ok=True)

    def _found(self, wanted: Form) -> bool:
        form = self._vault.load()
        if form not in (None, wanted):
            right = "restore_dir()" if form is Form.FOLDER else "load()"
            raise JobQError(f"The last checkpoint holds a {form}: take it with {right}.")
        return form is not None

    def _taken(self) -> bytes:
        data = self._vault.path.read_bytes()
        self._vault.path.unlink()
        return data
