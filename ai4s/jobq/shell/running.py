"""Running a command as the call that it is: its environment, its folders, and what its end counts as.

A command that was asked to end is given back whatever its exit code says: 0 after SIGTERM proves nothing. Which failures are tried
again is decided here alone, by raising `Retry` for them.

Next: `process.py`, then `checkpoints.py` and `dirsync.py`.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..client import Client
from ..codec import Hindered
from ..config import read_settings
from ..errors import CommandFailed, Retry
from ..layout import queue_name
from ..log_lines import ERR, OUT, KeptLine
from ..printable import redacted
from ..running import RunningCall, current, preempted, say
from ..shell_result import ShellResult
from ..sigterm import Sigterm
from .checkpoints import CheckpointFolder, checkpoint_folder
from .dirsync import background_sync, sync_settings
from .output import last_lines
from .process import Ended, Launch, NoBashError, Watcher, passing_sigterm, run_to_end

SHOWN_CHARS = 200
"""So much of a command stands in the message of its failure."""

EXHAUSTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Errors of a machine that has no disk, no processes or no memory left: the call goes back uncharged."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command and its settings, as they arrived."""

    cmd: str
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    bg_dirsync_to: str | None = None
    retry_exit: tuple[int, ...] = ()
    fail_exit: tuple[int, ...] = ()

    def may_retry(self, exit_code: int) -> bool:
        """Whether to try again after this exit code, as long as retries last."""
        return exit_code not in self.fail_exit and (not self.retry_exit or exit_code in self.retry_exit)


class Runner:
    """Runs commands for the app of this client, in a worker's child; one at a time."""

    def __init__(self, client: Client, *, emulate_tty: bool = False) -> None:
        self._client, self._emulate_tty = client, emulate_tty

    def run(  # noqa: PLR0913  # the arguments of calls that travel
        self,
        cmd: str | Mapping[str, Any],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        bg_dirsync_to: str | None = None,
        retry_exit: tuple[int, ...] = (),
        fail_exit: tuple[int, ...] = (),
    ) -> ShellResult:
        """Run a command to its end; `cmd` may be a map of it and of settings that go before the others.

        Raises CommandFailed for another exit code than 0, which `Retry` stands before if it may be tried again.
        """
        settings = {"cmd": cmd} if isinstance(cmd, str) else cmd
        command = replace(Command("", env, cwd, bg_dirsync_to, tuple(retry_exit), tuple(fail_exit)), **settings)
        try:
            with passing_sigterm() as sigterm:
                return self._run(command, sigterm)
        except CommandFailed as exc:
            if command.may_retry(exc.exit_code):
                raise Retry from exc
            raise
        except (Retry, Hindered):
            raise
        except NoBashError as exc:
            raise Hindered(str(exc)) from exc
        except Exception as exc:  # of this machine, mostly: another one may do better
            if isinstance(exc, OSError) and exc.errno in EXHAUSTED:
                raise Hindered(f"This machine cannot run the command: {exc}") from exc
            raise Retry from exc

    def _run(self, command: Command, sigterm: Sigterm) -> ShellResult:
        call, settings, began = current(), read_settings(), time.monotonic()
        if preempted():
            raise Retry
        with _folder_of(call) as folder, ExitStack() as stack:
            environ = self._environ(call, command)
            checkpoints = stack.enter_context(
                checkpoint_folder(call.checkpoint, folder / "checkpoint", settings.shell_checkpoint_seconds, call.logger)
            )
            environ["JOBQ_CHECKPOINT_DIR"] = str(checkpoints.path)
            if command.bg_dirsync_to is not None:
                source, aim = folder / "dirsync", Path(command.cwd or ".") / command.bg_dirsync_to
                environ["AMLT_DIRSYNC_DIR"] = str(source)
                stack.enter_context(background_sync(source, aim, sync_settings(environ), call.logger))
            launch = Launch(
                command.cmd, environ, command.cwd, variable=f"JOBQ_CALL_ID={call.id}",
                login=settings.login_shell, tty=self._emulate_tty, kill_seconds=settings.kill_timeout_seconds,
            )  # fmt: skip
            ended = run_to_end(launch, _watcher(call, checkpoints), sigterm)
            if ended.stopped:
                checkpoints.save_last()
                raise Retry
            return _result(command, ended, time.monotonic() - began)

    def _environ(self, call: RunningCall, command: Command) -> dict[str, str]:
        queue = f"{self._client.place.label.removeprefix('azure://')}/{queue_name(self._client.name, call.queue)}"
        return {
            "PYTHONUNBUFFERED": "1",
            **read_settings().environ,
            **(command.env or {}),
            "JOBQ_QUEUE_NAME": queue,
            "JOBQ_CALL_ID": call.id,
            "JOBQ_TASK_ID": call.id,
            "JOBQ_ATTEMPT": str(call.attempt),
        }


@contextmanager
def _folder_of(call: RunningCall) -> Iterator[Path]:
    """A fresh folder for what this attempt needs, which goes with it."""
    folder = call.checkpoint.folder
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # Of a name of its own: an earlier call of the same chunk may have left what cannot be removed, or what still writes.
        yield folder / secrets.token_hex(4)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watcher(call: RunningCall, checkpoints: CheckpointFolder) -> Watcher:
    log = call.logger

    def out(line: str) -> None:
        say(OUT, line)
        log.info("%s", KeptLine(line))

    def err(line: str) -> None:
        say(ERR, line)
        # As ai4s-jobq 3.x did: what comes by stderr is seen even where only warnings are.
        log.warning("%s", KeptLine(line))

    return Watcher(
        should_stop=preempted,
        out=out,
        err=err,
        warn=lambda line: log.warning("%s", line),
        look=checkpoints.look,
    )


def _result(command: Command, ended: Ended, seconds: float) -> ShellResult:
    """The value of a command that succeeded; raises CommandFailed."""
    if ended.exit_code == 0:
        return ShellResult(0, ended.output, seconds)
    shown = command.cmd if len(command.cmd) <= SHOWN_CHARS else f"{command.cmd[:SHOWN_CHARS]}…"
    said = last_lines(ended.output)
    message = f"Command {shown!r} failed with exit code {ended.exit_code}" + (f":\n{said}" if said else ".")
    raise CommandFailed(redacted(message), exit_code=ended.exit_code, output=redacted(ended.output))
