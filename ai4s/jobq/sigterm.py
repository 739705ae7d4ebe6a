"""SIGTERM in a worker's child: it ends the process if the supervisor has announced it, and is a stray one otherwise.

Slurm, systemd, containers and people signal a worker together with all that it has started, and no process can see who sent a
signal. A child that died of that would take its call along before the worker could tell it that the end comes. So the
supervisor says by the socket that it is about to send SIGTERM; without that word, one is noted and no more. What a child starts
or forks has the default action again, and a task that handles SIGTERM itself is not disturbed.

Next: `worker/child.py`, which installs it; `shell/process.py`, which passes an announced one on.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

WORD_SECONDS = 2.0
"""Who signals all processes of a worker reaches the supervisor as well: within this its notice is there."""

MAX_SIGNALS = 65536
"""More than a pipe holds."""

LEAST_DESCRIPTOR = 200
"""Above those that tasks use, and by mistake close, mostly."""

READ_SECONDS = 0.05
"""For the thread that reads what the supervisor has said before it sent a signal."""


def nothing() -> None:
    """What is done about an announced SIGTERM while there is nothing to do."""


class Sigterm:
    """The handler of SIGTERM. While it is `passing`, an announced one does not end the process: `act` is called instead.

    `came` says whether one has come since then.
    """

    def __init__(self, *, announced: bool = False) -> None:
        self.act: Callable[[], None] = nothing
        self.came = False
        self._announced = announced
        self._is_passing = self._is_waiting = False
        self._strayed_at: float | None = None
        self._arm: Callable[[], object] = nothing
        self._signals: tuple[int, int] | None = None

    @classmethod
    def installed(cls) -> Sigterm:
        """The handler of this process from now on, and of none that it forks. For the main thread."""
        made = cls()
        signal.signal(signal.SIGTERM, made)
        made._arm, made._signals = _arming(), _pipe()
        made.renew()
        # A fork must not lose one that comes before it has the default action again.
        masks = threading.local()
        os.register_at_fork(
            before=lambda: setattr(masks, "before", signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})),
            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, masks.before),
            after_in_child=lambda: made._leave_fork(masks.before),
        )
        return made

    def renew(self) -> None:
        """Handle SIGTERM again if a task has left it with its default action. For the main thread."""
        if self._signals is not None:
            with suppress(OSError, ValueError):  # a task has closed it
                signal.set_wakeup_fd(self._signals[1], warn_on_full_buffer=False)
        if not self._is_passing and signal.getsignal(signal.SIGTERM) in (self, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, self)
            self._arm()

    def announce(self) -> None:
        """SIGTERM is about to come. Returns if that does not end this process: it is being passed on, or a task handles it itself.

        For any thread: the main one may be in C code that lets others run and does not look for signals.
        """
        self._announced = True
        if self._is_in_place:
            if not self._is_passing:
                ctypes.CDLL(None).signal(signal.SIGTERM, None)
            # It may have come already, and been taken for a stray one.
            os.kill(os.getpid(), signal.SIGTERM)

    def wait_seconds(self) -> float | None:
        """How long to wait for the word that the worker ends, as it would explain what has just gone wrong; None for not at all."""
        if self._was_handled():  # if not here, then by the task
            self._strayed_at = time.monotonic()
        return None if self._strayed_at is None else max(0.0, self._strayed_at + WORD_SECONDS - time.monotonic())

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._announced:
            self._strayed_at = time.monotonic()
            self._go_on()
        elif self._is_passing:
            self.came = True
            self.act()
        else:
            self._end()

    @contextmanager
    def passing(self) -> Iterator[Sigterm]:
        """Have `act` called when SIGTERM comes, for the length of the block; at its end it has its usual effect after all."""
        before = signal.getsignal(signal.SIGTERM)
        self.came, self._is_passing = False, True
        # Not armed: the announcement repeats what may just have come, and the second one would end this process.
        signal.signal(signal.SIGTERM, self)
        try:
            yield self
        finally:
            self._is_passing = False
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            self._arm()
            if self.came:
                os.kill(os.getpid(), signal.SIGTERM)

    @property
    def _is_in_place(self) -> bool:
        return signal.getsignal(signal.SIGTERM) is self

    def _was_handled(self) -> bool:
        """Whether any handler has been called for SIGTERM since this was asked last."""
        with suppress(OSError):  # there is nothing to read, or the task has closed it
            return self._signals is not None and signal.SIGTERM in os.read(self._signals[0], MAX_SIGNALS)
        return False

    def _end(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _go_on(self) -> None:
        """Arm anew, once an announcement could be read: C code that looks for signals may let no other thread run."""
        if self._is_in_place and not (self._is_passing or self._is_waiting):
            signal.signal(signal.SIGTERM, self)
            self._is_waiting = True  # another one may come meanwhile
            time.sleep(READ_SECONDS)
            self._is_waiting = False
            self._arm()

    def _leave_fork(self, mask: set[int]) -> None:
        signal.set_wakeup_fd(-1)
        if self._is_in_place:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _pipe() -> tuple[int, int]:
    """The ends of a pipe for the interpreter to write a byte to for each signal that is handled, whoever handles it."""
    reading, writing = os.pipe()
    return _moved(reading), _moved(writing)


def _moved(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, LEAST_DESCRIPTOR)
    os.close(descriptor)
    os.set_blocking(moved, False)
    return moved


def _arming() -> Callable[[], object]:
    """What makes SIGTERM's handler be called once more only: the next SIGTERM but one ends the process by the kernel's hand.

    Else one that is in C code and holds the GIL could not be ended by SIGTERM at all. Where the C library cannot do so, that takes
    a SIGKILL, at the end of the grace period.
    """
    install = getattr(ctypes.CDLL(None), "sysv_signal", None) if sys.platform == "linux" else None
    if install is None:
        return nothing
    install.argtypes, install.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    # The interpreter's own function, which is the same for all handlers; it is not to be had but in exchange for another.
    interpreters = install(signal.SIGTERM, int(signal.SIG_IGN))
    install(signal.SIGTERM, interpreters)
    return partial(install, signal.SIGTERM, interpreters)
