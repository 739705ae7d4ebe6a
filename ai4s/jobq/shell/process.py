"""A command as a process group: started, read from, asked to end, and ended; nothing of it survives it.

One loop on the caller's thread does all of it. Whether to ask the command to end is asked by `should_stop`; SIGTERM to this
process is passed on at once. The group's leader is collected last, so that its number means this group as long as it is used.

Next: `../sessions.py` for what is signalled; `output.py`.
"""

from __future__ import annotations

import errno
import os
import pty
import selectors
import shutil
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..sessions import Offspring
from ..sigterm import WORD_SECONDS, Sigterm, nothing
from .output import Lines, Tail

LOOK_SECONDS = 0.2
"""How often to ask whether the command should stop; its output and its end are noticed at once."""

ORPHAN_SECONDS = 5.0
"""For what still holds the pipes when the command itself has ended."""

LAST_SECONDS = 1.0
"""For what was just killed to let go of the pipes; what has left the group never does."""

READ_BYTES = 64 * 1024
SIGNALLED = 128
"""A shell's exit code for a command that a signal has ended is this and the signal's number."""


class NoBashError(Exception):
    """There is no bash on this machine."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, and how."""

    cmd: str
    environ: Mapping[str, str]
    cwd: str | None = None
    login: bool = False
    tty: bool = False
    kill_seconds: float = 600.0
    """From SIGTERM to SIGKILL; 0 for never."""

    variable: str = ""
    """`NAME=value` of its environment, by which what it starts is known in whatever group."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Whom to ask and to tell while a command runs: whether it should stop, each line, what is odd, and each look at it."""

    should_stop: Callable[[], bool]
    out: Callable[[str], None]
    err: Callable[[str], None]
    warn: Callable[[str], None]
    look: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, as bash says it; `stopped`: it had been asked to, by us or by who asks the whole worker."""

    exit_code: int
    output: str
    stopped: bool


def run_to_end(launch: Launch, watcher: Watcher, sigterm: Sigterm) -> Ended:
    """Run a command until it has ended, and all that it has started in its group. Raises OSError if it cannot start."""
    with _started(launch) as (process, descriptors):
        return _Run(process, watcher, launch, sigterm).to_end(*descriptors)


@contextmanager
def passing_sigterm() -> Iterator[Sigterm]:
    """Take SIGTERM for the length of the block, at whose end it has its usual effect after all.

    Only on the main thread can a process do so; elsewhere it has that effect at once.
    """
    handler = signal.getsignal(signal.SIGTERM)
    # Outside a worker's child nobody announces it.
    sigterm = handler if isinstance(handler, Sigterm) else Sigterm(announced=True)
    if threading.current_thread() is not threading.main_thread():
        yield sigterm
        return
    with sigterm.passing():
        yield sigterm


@contextmanager
def _started(launch: Launch) -> Iterator[tuple[subprocess.Popen[bytes], tuple[int, int]]]:
    """The process, and our ends of its stdout and stderr."""
    pairs = [_terminal() if launch.tty else os.pipe() for _ in range(2)]
    try:
        (out, their_out), (err, their_err) = pairs
        try:
            process = subprocess.Popen(
                ["bash", *(["--login"] if launch.login else []), "-c", launch.cmd],
                executable=_bash(launch.environ), stdin=subprocess.DEVNULL, stdout=their_out, stderr=their_err,
                cwd=launch.cwd, env=launch.environ, process_group=0,
            )  # fmt: skip
        finally:
            os.close(their_out)
            os.close(their_err)
        yield process, (out, err)
    finally:
        for ours, _ in pairs:
            with suppress(OSError):
                os.close(ours)


def _bash(environ: Mapping[str, str]) -> str:
    """Where bash is: for the command's own PATH, which may lead nowhere, or else for this process's."""
    found = shutil.which("bash", path=environ.get("PATH", "")) or shutil.which("bash")
    if found is None:
        raise NoBashError("This machine has no bash, which shell commands need: install it, or set PATH.")
    return str(Path(found).absolute())


def _terminal() -> tuple[int, int]:
    """Our end of a terminal, and the command's; what it writes arrives as it is, without a carriage return at each line's end."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    return ours, theirs


class _Run:
    """A command that was started."""

    def __init__(self, process: subprocess.Popen[bytes], watcher: Watcher, launch: Launch, sigterm: Sigterm) -> None:
        self._process, self._watcher, self._sigterm = process, watcher, sigterm
        self._kill_seconds, self._offspring = launch.kill_seconds, Offspring(process.pid, launch.variable)
        self._tail = Tail()
        self._open: dict[int, Lines] = {}
        self._stopped_at: float | None = None
        self._exit_code: int | None = None
        self._give_up_at = float("inf")
        self._word_by: float | None = None
        self._killed = False

    def to_end(self, out: int, err: int) -> Ended:
        """Watch it until it has ended; what is left of its group is killed, whatever happens here."""
        self._open = {out: Lines(self._watcher.out), err: Lines(self._watcher.err)}
        self._sigterm.act = self._stop
        try:
            if self._sigterm.came:
                self._stop()
            with selectors.DefaultSelector() as selector, _waking(selector, self._process.pid):
                for descriptor in self._open:
                    os.set_blocking(descriptor, False)
                    selector.register(descriptor, selectors.EVENT_READ)
                self._watch(selector)
        finally:
            self._sigterm.act = nothing
            # Before it is collected: until then no other group can have this number.
            self._offspring.signal(signal.SIGKILL)
            self._process.wait()
        assert self._exit_code is not None
        return Ended(self._exit_code, self._tail.text, stopped=self._stopped_at is not None)

    def _watch(self, selector: selectors.BaseSelector) -> None:
        while not self._is_over():
            for key, _ in selector.select(LOOK_SECONDS):
                if key.fd in self._open:
                    self._read(key.fd, selector)
                else:
                    selector.unregister(key.fd)
            self._look()
        for lines in self._open.values():
            lines.close()

    def _is_over(self) -> bool:
        if self._give_up_at == float("inf"):
            return False
        return not self._open or time.monotonic() > self._give_up_at + LAST_SECONDS

    def _read(self, descriptor: int, selector: selectors.BaseSelector) -> None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.EIO:  # which is how a terminal's end looks
                raise
            data = b""
        if data:
            self._tail.add(data)
            self._open[descriptor].add(data)
        else:
            selector.unregister(descriptor)
            self._open.pop(descriptor).close()

    def _look(self) -> None:
        now = time.monotonic()
        if not self._has_ended():
            self._watcher.look()
            if self._watcher.should_stop():
                self._stop()
        elif self._give_up_at == float("inf") and self._knows_why(now):
            self._give_up_at = self._when_to_give_up(now)
        if self._stopped_at is not None:
            if self._kill_seconds and now - self._stopped_at >= self._kill_seconds:
                self._kill(f"The command did not end within {self._kill_seconds:g} s of SIGTERM; it is killed.")
        elif now > self._give_up_at:
            self._kill(f"The command has ended, and what it left behind held its output for {ORPHAN_SECONDS:g} s; it is killed.")

    def _knows_why(self, now: float) -> bool:
        """Whether it is known why bash has ended. If by a SIGTERM that the worker got as well, then the word for that comes soon:
        it counts as ours, and what bash was running has had it, too.
        """
        if self._stopped_at is None and self._word_by is None:
            seconds = WORD_SECONDS if self._exit_code == SIGNALLED + signal.SIGTERM else self._sigterm.wait_seconds()
            self._word_by = None if seconds is None else now + seconds
        if self._stopped_at is not None or self._word_by is None:
            return True
        if self._watcher.should_stop() or self._sigterm.came:
            self._stopped_at = now
        return self._stopped_at is not None or now >= self._word_by

    def _when_to_give_up(self, now: float) -> float:
        """How long to wait, now that bash has ended, for what it has started."""
        if self._stopped_at is None:
            return now + ORPHAN_SECONDS
        # SIGTERM ends bash at once, but what it was running may need its time to save what it has.
        return float("inf") if self._offspring.lives() and not self._killed else now

    def _has_ended(self) -> bool:
        """Whether it has ended; it is not collected yet. Raises ChildProcessError if somebody else has done that.

        Asked of the system, as Popen takes such a process for one that succeeded.
        """
        if self._exit_code is None and not hasattr(os, "waitid"):
            code = self._process.poll()
            self._exit_code = code if code is None or code >= 0 else SIGNALLED - code
        elif self._exit_code is None:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                by_itself = found.si_code == os.CLD_EXITED
                self._exit_code = found.si_status if by_itself else SIGNALLED + found.si_status
        return self._exit_code is not None

    def _stop(self) -> None:
        """Ask it to end, once. Also from a signal handler, amid anything else."""
        if self._stopped_at is None and not self._has_ended():
            self._stopped_at = time.monotonic()
            self._offspring.signal(signal.SIGTERM)
            # One that was halted hears of it only now.
            self._offspring.signal(signal.SIGCONT)

    def _kill(self, why: str) -> None:
        if not self._killed:
            self._killed = True
            self._watcher.warn(why)
            self._offspring.signal(signal.SIGKILL)


@contextmanager
def _waking(selector: selectors.BaseSelector, pid: int) -> Iterator[None]:
    """Have the end of a process wake the selector, where the system can say it."""
    if not hasattr(os, "pidfd_open"):
        yield
        return
    descriptor = os.pidfd_open(pid)
    try:
        selector.register(descriptor, selectors.EVENT_READ)
        yield
    finally:
        os.close(descriptor)
