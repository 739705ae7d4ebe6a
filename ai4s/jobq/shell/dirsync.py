"""`$AMLT_DIRSYNC_DIR`: what a command writes there is copied to another folder, mostly one that is mounted, while it runs.

A file is copied when it is new or has changed, beside its aim and then renamed, so that nobody sees half of one. The last look
comes when the command has ended, however it has; what could not be copied then is an error, as it would be lost with this machine.

Next: `running.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..errors import JobQError

Log = logging.LoggerAdapter[logging.Logger]
FLUSH_NAME = ".amlt_flush_upload"
"""A file of this name asks for a copy now; it is removed once that is done."""

FLUSH_LOOK_SECONDS = 1.0
PARTIAL = ".jobq-partial"
"""Ends the name of a file that is being copied, which is of that copy's own: another machine may be at the same file."""

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """How to copy: how often, on how many threads, which files, and whether they are removed once they were copied."""

    every_seconds: float = 30.0
    threads: int = 5
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    delete: bool = False

    def wants(self, name: str) -> bool:
        """Whether to copy the file, or look into the folder, of this path: an excluded one only if it is included as well."""
        if name == FLUSH_NAME:
            return False
        return not _fits(name, self.exclude) or _fits(name, self.include)


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) or fnmatch(Path(name).name, pattern) for pattern in patterns)


def sync_settings(environ: Mapping[str, str]) -> SyncSettings:
    """The settings in a command's environment; raises JobQError for what is no number."""
    try:
        return SyncSettings(
            every_seconds=max(0.1, float(environ.get("AMLT_DIRSYNC_FREQ") or 30)),
            threads=max(1, int(environ.get("AMLT_DIRSYNC_N_THREADS") or 5)),
            include=tuple(environ.get("AMLT_DIRSYNC_INCLUDE", "").split()),
            exclude=tuple(environ.get("AMLT_DIRSYNC_EXCLUDE", "").split()),
            delete=environ.get("AMLT_DELETE_AFTER_COPY", "").lower() in ("1", "true", "yes", "y"),
        )
    except ValueError as exc:
        raise JobQError(f"AMLT_DIRSYNC_FREQ and AMLT_DIRSYNC_N_THREADS are numbers ({exc}).") from exc


class DirSync:
    """Copies from `source` to `aim`; made ready by `background_sync`."""

    def __init__(self, source: Path, aim: Path, settings: SyncSettings, log: Log) -> None:
        self._source, self._aim, self._settings, self._log = source, aim, settings, log
        self._copied: dict[str, Stamp] = {}
        self._over = threading.Event()

    def keep(self) -> None:
        """Copy from time to time, or when the command asks for it, until it is over."""
        waited, flush = 0.0, self._source / FLUSH_NAME
        pause = min(FLUSH_LOOK_SECONDS, self._settings.every_seconds)
        while not self._over.wait(pause):
            waited += pause
            asked = flush.exists()
            if asked or waited >= self._settings.every_seconds:
                waited = 0.0
                for problem in self.copy():
                    self._log.warning("A file of $AMLT_DIRSYNC_DIR is not copied yet: %s", problem)
            if asked:
                with suppress(OSError):
                    flush.unlink()

    def end(self) -> None:
        """Have `keep` return."""
        self._over.set()

    def copy(self) -> list[str]:
        """Copy what is new or has changed; returns what could not be."""
        unread: list[str] = []
        with ThreadPoolExecutor(self._settings.threads, "jobq-dirsync") as threads:
            problems = [problem for problem in threads.map(self._copy_if_new, self._names(unread)) if problem]
        return unread + problems

    def _names(self, unread: list[str]) -> Iterator[str]:
        """The files that are wanted, by their paths within the folder; and why folders cannot be read, in `unread`."""

        def note(exc: OSError) -> None:
            if not isinstance(exc, FileNotFoundError):  # it was removed meanwhile
                unread.append(str(exc))

        for place, folders, files in os.walk(self._source, onerror=note):
            within = os.path.relpath(place, self._source)
            folders[:] = [name for name in folders if self._settings.wants(os.path.normpath(f"{within}/{name}"))]
            names = (os.path.normpath(f"{within}/{name}") for name in files)
            yield from (name for name in names if self._settings.wants(name))

    def _copy_if_new(self, name: str) -> str:
        """Copy one file unless that was done; returns why it could not be, if so."""
        source = self._source / name
        try:
            status = source.stat()
            if not stat.S_ISREG(status.st_mode):
                return ""  # a socket or a pipe, which holds nothing
            stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if self._copied.get(name) != stamp:
                if not self._is_there(name, status):
                    self._copy(source, self._aim / name)
                self._copied[name] = stamp
            if self._settings.delete and _stamp(source) == stamp:
                source.unlink()
        except FileNotFoundError as exc:
            # What the command has removed or renamed meanwhile is no loss.
            return str(exc) if source.exists() else ""
        except OSError as exc:
            return str(exc) if exc.errno != errno.ELOOP else ""  # a link that leads back to itself, and to no file
        return ""

    def _is_there(self, name: str, status: os.stat_result) -> bool:
        """Whether an earlier attempt has copied this very file.

        What is newer there may be another one all the same: some programs give a file the time of the one that it was made from.
        """
        if name in self._copied:
            return False
        try:
            there = (self._aim / name).stat()
        except FileNotFoundError:
            return False
        return there.st_size == status.st_size and there.st_mtime_ns == status.st_mtime_ns

    def _copy(self, source: Path, aim: Path) -> None:
        aim.parent.mkdir(parents=True, exist_ok=True)
        partial = aim.with_name(f".{secrets.token_hex(8)}{PARTIAL}")
        try:
            shutil.copyfile(source, partial)
            with suppress(OSError):  # a mounted store may keep neither times nor rights
                shutil.copystat(source, partial)
            partial.replace(aim)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def background_sync(source: Path, aim: Path, settings: SyncSettings, log: Log) -> Iterator[None]:
    """Copy what comes into `source`, which is made, to `aim`, for the length of the block and once more at its end.

    Raises JobQError if then something could not be copied.
    """
    source.mkdir(parents=True)
    sync = DirSync(source, aim, settings, log)
    keeping = threading.Thread(target=sync.keep, name="jobq-dirsync", daemon=True)
    keeping.start()
    try:
        yield
    finally:
        sync.end()
        keeping.join()
        problems = sync.copy()
        for problem in problems:
            log.error("A file of $AMLT_DIRSYNC_DIR could not be copied: %s", problem)
    if problems:
        raise JobQError(f"{len(problems)} file(s) of $AMLT_DIRSYNC_DIR could not be copied to {aim}, such as: {problems[0]}")
