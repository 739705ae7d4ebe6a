"""Checkpoints as a task sees them: save what was done so far, and go on from there after the next start, on whatever machine.

Values pass through the call's codec, folders as tar files. Where the bytes go is left to a `Vault`: in a worker's child that is
its supervisor, which writes the blob and names it in the call's message.

Next: `worker/checkpoints.py`, the supervisor's side.
"""

from __future__ import annotations

import asyncio
import os
import tarfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from .codec import Codec
from .errors import JobQError
from .message import Form

FOLDER = ".d"
"""What is added to the name of the file by which checkpoints pass."""


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

    Each method has an async twin with the prefix `a`, which works on a thread. Two at a time wait for each other.
    """

    def __init__(self, vault: Vault, codec: Codec) -> None:
        self._vault, self._codec = vault, codec
        self._one_at_a_time = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where this call may keep files while it runs; it is not made yet, and goes with the call, whatever ends that."""
        return self._vault.path.with_name(f"{self._vault.path.name}{FOLDER}")

    def save(self, value: object) -> bool:
        """Keep `value` for the next attempt; durable when this returns.

        Returns:
            whether the next attempt will surely find it. False if this attempt has lost its lease, in which case another may be
            running already, or if the storage did not answer for as long as the lease lasted.

        Raises:
            NotSerializable: the call's codec cannot encode it.
            JobQError: this machine's disk is full or cannot be written; or this is a fork of the process that runs the task.

        Costs two storage requests, and one to remove the older checkpoint: save every minute rather than every second.
        """
        encoded = self._codec.dumps(value)
        return self._keep(Form.VALUE, encoded.write)

    def load(self, default: Any = None) -> Any:
        """What the last attempt that saved something saved last; `default` if there is nothing, or if it is damaged.

        Raises JobQError if a folder was saved.
        """
        with self._one_at_a_time:
            if not self._found(Form.VALUE):
                return default
            data = self._vault.path.read_bytes()
            self._vault.path.unlink()
        return self._codec.loads(data)

    def save_dir(self, path: str | Path) -> bool:
        """Keep a folder, with all that is in it, for the next attempt; else as `save`.

        Links are kept as links, if they are relative and stay within the folder. Nothing may write there meanwhile.

        Raises JobQError, besides, for what is no folder, changes while it is read, or holds what could not be restored: other
        links, devices, pipes.
        """
        folder = Path(path).resolve()
        if not folder.is_dir():
            raise JobQError(f"save_dir wants a folder; {str(path)!r} is none.")
        return self._keep(Form.FOLDER, lambda packed: _pack(folder, packed))

    def restore_dir(self, path: str | Path) -> bool:
        """Put the last folder saved at `path`, which is made if need be, over what is there; whether there was one.

        Raises JobQError if a value was saved.
        """
        with self._one_at_a_time:
            if not self._found(Form.FOLDER):
                return False
            folder = Path(path)
            folder.mkdir(parents=True, exist_ok=True)
            _unpack(self._vault.path, folder)
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

    def _keep(self, form: Form, write: Callable[[Path], object]) -> bool:
        path = self._vault.path
        with self._one_at_a_time:
            try:
                write(path)
                return self._vault.save(form)
            except OSError as exc:
                told = f"The checkpoint could not be written ({exc}): a folder must not change meanwhile, and TMPDIR needs room."
                raise JobQError(told) from exc
            finally:
                path.unlink(missing_ok=True)

    def _found(self, wanted: Form) -> bool:
        form = self._vault.load()
        if form not in (None, wanted):
            right = "restore_dir()" if form is Form.FOLDER else "load()"
            raise JobQError(f"The last checkpoint holds a {form}: take it with {right}.")
        return form is not None


def fingerprint(folder: Path) -> frozenset[tuple[str, int, int]]:
    """What is in a folder, by path, size and time of the last change: two are equal if nothing has changed between them."""
    found = set()
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH118  # (see below)
        for name in (*names, *links):
            path = os.path.join(place, name)  # noqa: PTH118  # a Path for each of a hundred thousand files takes its time
            with suppress(FileNotFoundError):  # it was removed just now
                status = os.lstat(path)
                found.add((os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def _pack(folder: Path, packed: Path) -> None:
    before = fingerprint(folder)
    with tarfile.open(packed, "w") as archive:
        archive.add(folder, arcname=".", filter=_restorable)
    if fingerprint(folder) != before:
        raise OSError("what is in the folder has changed")


def _restorable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member, if `restore_dir` will take it, wherever that puts it."""
    return _checked(member, Path("/anywhere"))


def _unpack(packed: Path, folder: Path) -> None:
    root = folder.resolve()
    with tarfile.open(packed) as archive:
        # Python's own filters, which came with 3.11.4, are not there on every machine; where they are, one must be named.
        archive.extraction_filter = staticmethod(lambda member, path: member)
        archive.extractall(root, members=(_checked(member, root) for member in archive))


def _checked(member: tarfile.TarInfo, root: Path) -> tarfile.TarInfo:
    """The member as this user's; raises JobQError for what is no file, folder or link, or would lie or lead out of `root`."""
    path = root / member.name
    aims = [path]
    if member.issym():
        aims.append(path.parent / member.linkname)
    if member.islnk():
        aims.append(root / member.linkname)
    is_known = member.isreg() or member.isdir() or len(aims) > 1
    if not is_known or not all(aim.resolve().is_relative_to(root) for aim in aims):
        raise JobQError(
            f"A checkpoint cannot hold {member.name!r}: only files, folders, and relative links that stay within the folder."
        )
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    return member
