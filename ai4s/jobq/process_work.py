"""CPU work inside an async task: `await jobq.run_in_process(fn, ...)`, in processes that belong to this one.

As many as there are cores, each made when one is needed, kept, and held by a thread that hands it one function at a time: a
process that dies takes one function with it and nothing else. They are fresh interpreters, never forks. They lie in this process's
group, where what ends a worker's child ends them too; one whose parent is gone ends by itself.

Next: back to `running.py`; `main` here is the other end.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import functools
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar, cast

from .codec import codec_named
from .errors import DeclarationError, NotSerializable, ProcessDied, TaskFailed
from .failures import RemoteTraceback, failure_of
from .granted import usable_cores

P = ParamSpec("P")
R = TypeVar("R")

LENGTH_BYTES = 8
PR_SET_PDEATHSIG = 1


async def run_in_process(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a plain function in another process of this machine, so that it takes no time from the event loop.

    It runs as soon as one of as many processes as there are cores is free. Function, arguments and value travel by cloudpickle:
    lambdas and closures will do; what they refer to is copied. What it raises is raised here; as TaskFailed, if it is an exit or
    would mean something else here, as StopIteration does. `current()` is not known there.
    Cancelling the wait kills the process, and whatever the function was at is left as it is.

    Raises DeclarationError for what is no plain function, NotSerializable for what cannot travel, ProcessDied if the process ends
    before the function does. Works outside a worker as well.
    """
    if not callable(fn) or inspect.iscoroutinefunction(fn):
        raise DeclarationError(f"run_in_process takes a plain function and its arguments; got {fn!r}.")
    errand = _Errand(functools.partial(fn, *args, **kwargs))
    future = _processes().threads.submit(errand.run)
    try:
        return cast("R", await asyncio.wrap_future(future))
    except asyncio.CancelledError:
        errand.abandon()
        raise


class _Process:
    """A process that runs functions, one at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno())], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            except BaseException:
                ours.close()
                raise
        self._line = _Line(ours)
        self._line.send(codec_named("cloudpickle").dumps(list(sys.path)).data)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def run(self, work: bytes) -> bytes:
        """Have something run; its answer. Raises ProcessDied."""
        try:
            self._line.send(work)
            answer = self._line.receive()
        except ConnectionError:
            answer = b""
        if not answer:
            self.end()
            raise ProcessDied(f"The process that ran a function for run_in_process ended without an answer: {self._cause()}.")
        return answer

    def _cause(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"exit code {code}"
        known = {number.value: number.name for number in signal.Signals}  # not all: those for real time have no names
        return f"signal {known.get(-code, -code)}"

    def kill(self) -> None:
        """End it at once, from any thread."""
        self._process.kill()

    def end(self) -> None:
        """Close the line, and wait until it has ended: by itself, as it says no more, or killed."""
        self._line.close()
        self._process.wait()


class _Processes:
    """The processes of this one."""

    def __init__(self, size: int) -> None:
        self.pid = os.getpid()
        self.threads = ThreadPoolExecutor(size, "jobq-process")
        self._of_thread = threading.local()
        self._all: set[_Process] = set()

    def mine(self) -> _Process:
        """The process of this thread, made if there is none."""
        process: _Process | None = getattr(self._of_thread, "process", None)
        if process is None or not process.lives:
            self.forget()
            process = self._of_thread.process = _Process()
            self._all.add(process)
        return process

    def forget(self) -> None:
        """End this thread's process; the next one is new."""
        process: _Process | None = getattr(self._of_thread, "process", None)
        if process is not None:
            self._all.discard(process)
            self._of_thread.process = None
            _end([process])

    def close(self) -> None:
        """End all of them, if this is the process that they belong to."""
        if self.pid == os.getpid():
            self.threads.shutdown(wait=False, cancel_futures=True)
            _end(list(self._all))


def _end(processes: list[_Process]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.end()


# What an interpreter has one of: nobody else could hold it for functions that run in tasks and plain scripts alike.
_MADE: list[_Processes] = []
_MAKING = threading.Lock()


def _processes() -> _Processes:
    with _MAKING:
        if not _MADE or _MADE[-1].pid != os.getpid():
            _MADE[:] = [_Processes(usable_cores())]
            atexit.register(_MADE[-1].close)
        return _MADE[-1]


class _Errand:
    """One function on its way through a process."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._is_abandoned = False

    def run(self) -> Any:
        """Run it, on one of the pool's threads; raises what it raises."""
        codec, processes = codec_named("cloudpickle"), _processes()
        work, process = codec.dumps(self._work).data, processes.mine()
        with self._lock:
            if self._is_abandoned:
                return None
            self._process = process
        try:
            answer = process.run(work)
        finally:
            with self._lock:
                self._process = None
            if self._is_abandoned or not process.lives:
                processes.forget()
        value, failure = codec.loads(answer)
        if failure is not None:
            raise _raised(*failure)
        return value

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._is_abandoned = True
            if self._process is not None:
                self._process.kill()


def _raised(kind: str, message: str, traceback: str, exception: bytes | None) -> BaseException:
    error: BaseException = TaskFailed(f"A function that run_in_process ran raised {kind}: {message}")
    if exception is not None:
        try:
            found = codec_named("cloudpickle").loads(exception)
        except NotSerializable:
            found = None
        # What is no Exception would end the caller rather than inform it; and of a future, these two would mean something else.
        error = found if isinstance(found, Exception) and not isinstance(found, StopIteration | CancelledError) else error
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(traceback))
    return error


class _Line:
    """One end of the connection between the two: frames of a length and as many bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")

    def send(self, data: bytes) -> None:
        """Send a frame. Raises ConnectionError."""
        self._connection.sendall(len(data).to_bytes(LENGTH_BYTES, "big"))
        self._connection.sendall(data)

    def receive(self) -> bytes:
        """The next frame; nothing at the end. Raises ConnectionError."""
        head = self._file.read(LENGTH_BYTES)
        length = int.from_bytes(head, "big")
        data = self._file.read(length) if len(head) == LENGTH_BYTES else b""
        return data if len(data) == length else b""

    def close(self) -> None:
        """Close this end."""
        self._file.close()
        self._connection.close()


def main(descriptor: int) -> None:
    """Run what comes over this socket until nothing more does."""
    os.set_inheritable(descriptor, False)  # what a function starts must not hold the line open
    # A terminal's Ctrl-C is for the process that waits; it ends this one if it wants to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A SIGTERM that is meant ends that process, and this one with it. Not ignored, as what the function starts would inherit that.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if sys.platform == "linux":
        # With the thread that holds this process: a function that holds the GIL would never notice that it has gone.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    line, codec = _Line(socket.socket(fileno=descriptor)), codec_named("cloudpickle")
    sys.path[:] = codec.loads(line.receive())
    process = os.getpid()
    while work := line.receive():
        answer = _answer(work)
        if os.getpid() != process:
            os._exit(0)  # the function forked, and this is the copy: its answer would be taken for the next function's
        line.send(answer)


def _answer(work: bytes) -> bytes:
    codec = codec_named("cloudpickle")
    try:
        return codec.dumps((codec.loads(work)(), None)).data
    except BaseException as exc:  # noqa: BLE001  # user code may raise anything, SystemExit included
        failure = failure_of(exc, codec)
        return codec.dumps((None, (failure.type, failure.message, failure.traceback, failure.exception))).data


if __name__ == "__main__":
    main(int(sys.argv[1]))
