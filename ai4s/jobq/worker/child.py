"""A child process: imports user code, runs jobs, reports. It ends with its supervisor, even if that is killed.

A reader thread takes frames from the socket, so that the end of the supervisor is noticed while a task computes. Plain
functions run on the main thread, one at a time; coroutines on an event loop, many at a time; `pool="thread"` tasks on
threads beside that loop.

Next: `execution.py`, which runs one job.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from ..call_records import make_call_records
from ..config import read_settings
from ..errors import ConfigurationError, JobQError
from ..message import Pool
from ..printable import redacted
from ..sessions import end_session, group_of
from ..sigterm import Sigterm
from ..telemetry.tasks import trace_tasks
from .child_records import show_records
from .chunks import ChunkRun
from .execution import Desk, Execution, Functions
from .jobs import (
    LENGTH_BYTES,
    Answer,
    Cancel,
    ChildSetup,
    Chunk,
    Ending,
    Heard,
    Job,
    Notice,
    Progressed,
    Ready,
    Recall,
    Recalled,
    Report,
    Request,
    Said,
    from_body,
    to_frame,
)
from .progress_sender import ProgressSender
from .registry import load, ready
from .streams import hear
from .voices import Voices

PR_SET_PDEATHSIG = 1
REPORT_LOST = 70
"""Exit code of a child that could not say what came of a job."""


class Channel:
    """The child's end of the socket; sending is safe from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()
        self._asked: dict[int, Future[Answer]] = {}
        self._requests = itertools.count(1)
        self._process = os.getpid()

    def receive(self) -> Any:
        """The next message, or None at the end."""
        head = self._file.read(LENGTH_BYTES)
        body = self._file.read(int.from_bytes(head, "big")) if len(head) == LENGTH_BYTES else b""
        return from_body(body) if body else None

    def send(self, message: Ready | Report | Recalled | Heard | Request | Progressed | Said) -> None:
        """Send one message."""
        with self._lock:
            self._connection.sendall(to_frame(message))

    def offer(self, said: Said, patience_seconds: float) -> bool:
        """Send it if that can be done at once, or as soon as that, and nobody is just sending."""
        if not self._has_room(patience_seconds) or not self._lock.acquire(blocking=False):
            return False
        try:
            self._connection.sendall(to_frame(said))
        except OSError:  # nobody is at the other end any more, which others will notice
            return False
        finally:
            self._lock.release()
        return True

    def _has_room(self, patience_seconds: float) -> bool:
        """Whether something can be sent, now or that soon; it says no long before there is no room at all."""
        room = select.poll()  # each time anew: one that another thread waits for raises
        room.register(self._connection, select.POLLOUT)
        return bool(room.poll(1000 * patience_seconds))

    def ask(self, request: Callable[[int], Request]) -> Answer:
        """Send a request, made of its number, and wait for its answer. Raises JobQError in a fork, where none would come."""
        if os.getpid() != self._process:
            raise JobQError("Checkpoints and stored objects are for the process that runs the task, and not for a fork of it.")
        number = next(self._requests)
        answer = self._asked[number] = Future()
        self.send(request(number))
        return answer.result()

    def answered(self, answer: Answer) -> None:
        """Hand an answer to who asked."""
        if asked := self._asked.pop(answer.request, None):
            asked.set_result(answer)


def main(descriptor: int, watched: int) -> Channel:
    """Serve the supervisor at the other end of this socket until it says no more; returns what was still open then."""
    os.set_inheritable(descriptor, False)  # what a task starts must not hold the supervisor's line open
    connection = socket.socket(fileno=descriptor)
    _die_with_parent()
    _guard_session(connection, watched)
    sigterm = _handled_sigterm()
    channel = Channel(connection)
    setup = channel.receive()
    assert isinstance(setup, ChildSetup)
    make_call_records(setup.worker)
    try:
        client, tasks = load(setup)
        settings = read_settings()
        trace_tasks(setup.worker, settings.environ, settings.environment_name)
        is_configured = bool(logging.getLogger().handlers)
        show_records(setup.log_format)
        channel.send(ready(client, tasks))
    except ConfigurationError as exc:
        channel.send(Ready(problem=str(exc)))
        return channel
    except BaseException as exc:  # noqa: BLE001  # user code runs while its module is imported
        channel.send(Ready(problem=_import_problem(setup, exc)))
        return channel
    voices = Voices(channel, shares_process=setup.pool is not Pool.PROCESS) if setup.logs else None
    if voices is not None:
        hear(voices, is_configured=is_configured)
    desk = Desk(setup.worker, channel.ask, client, ProgressSender(channel.send).say, voices)
    execution = Execution(Functions(tasks), desk, sigterm)
    if setup.pool is Pool.PROCESS:
        _serve_jobs(channel, execution)
    else:
        asyncio.run(_serve_loop(channel, execution, setup.capacity))
    return channel


def _import_problem(setup: ChildSetup, exc: BaseException) -> str:
    text = "".join(traceback.format_exception(exc, limit=-5)).strip()
    return redacted(
        f"{setup.target or ', '.join(setup.modules)}: the module raised {type(exc).__name__} when it was imported.\n{text}"
    )


def _handled_sigterm() -> Sigterm:
    """Before any code of the user's is loaded: the supervisor has kept SIGTERM from this process until now."""
    sigterm = Sigterm.installed()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return sigterm


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, as a task that holds the GIL would never notice."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _guard_session(connection: socket.socket, watched: int) -> None:
    """Fork a guard that kills this session when the supervisor is gone, with all that tasks have started in it.

    This process may be dead by then, or in a loop that never looks. The guard watches a pipe whose other end only the supervisor
    has. It is forked twice, so that no task finds a child that it did not start, and without exec, as no thread runs yet.
    It ends with the group, which the supervisor ends when this process has.
    """
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        os.close(watched)
        return
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which reaches all of a group, and all of a container: it goes with the session
    connection.close()  # held open here, it would hide from the supervisor that the child has closed its own
    os.read(watched, 1)  # nothing is ever written: it returns at the end
    own = os.getpid()
    end_session(os.getsid(0), spare=lambda pid: pid == own)
    os._exit(0)


def _end_with_supervisor() -> None:
    """End this process, and what it has started: first what is in groups of its own, as the guard is in this one."""
    own = os.getpgid(0)
    end_session(os.getsid(0), spare=lambda pid: group_of(pid) == own)
    os.killpg(0, signal.SIGKILL)


def _serve_jobs(channel: Channel, execution: Execution) -> None:
    """Run jobs one after the other on the main thread, where signals and most libraries want to be."""
    jobs: queue.SimpleQueue[Job | ChunkRun | None] = queue.SimpleQueue()
    busy = threading.Event()
    reading = partial(_read_jobs, channel, execution, jobs, busy)
    threading.Thread(target=reading, name="jobq-reader", daemon=True).start()
    process = os.getpid()
    while (job := jobs.get()) is not None:
        execution.sigterm.renew()
        report = job.run() if isinstance(job, ChunkRun) else execution.run(job)
        if os.getpid() != process:
            os._exit(0)  # the task forked, and this is the copy: one report is enough, and nobody will talk to it
        # Before the report: once it has it, the supervisor may close the socket, and that must not look like its death.
        busy.clear()
        channel.send(report)


Jobs = queue.SimpleQueue[Job | ChunkRun | None]


def _read_jobs(channel: Channel, execution: Execution, jobs: Jobs, busy: threading.Event) -> None:
    chunk: ChunkRun | None = None
    while (message := channel.receive()) is not None:
        if isinstance(message, Job | Chunk):
            busy.set()
            job = ChunkRun(message, execution) if isinstance(message, Chunk) else message
            chunk = job if isinstance(job, ChunkRun) else None
            jobs.put(job)
        elif isinstance(message, Recall):
            _recall(channel, chunk, message)
        else:
            _take(message, channel, execution)
    if busy.is_set():
        # Nobody is left to take the report; what the task started goes with it.
        _end_with_supervisor()
    jobs.put(None)


def _recall(channel: Channel, chunk: ChunkRun | None, message: Recall) -> None:
    if chunk is not None and chunk.chunk.number == message.number:
        channel.send(Recalled(message.number, chunk.take_back()))


def _take(message: Notice | Ending | Answer, channel: Channel, execution: Execution) -> None:
    """What is not for one loop or main thread to do."""
    if isinstance(message, Notice):
        execution.notice(message)
    elif isinstance(message, Ending):
        execution.sigterm.announce()
        channel.send(Heard())
    else:
        channel.answered(message)


async def _serve_loop(channel: Channel, execution: Execution, capacity: int) -> None:
    """Run each job as a task of this loop, or on a thread, until the supervisor closes the socket."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    server = _LoopServer(channel, execution, ThreadPoolExecutor(capacity, "jobq-task"))
    threading.Thread(target=_read_for_loop, args=(channel, loop, server, ended), name="jobq-reader", daemon=True).start()
    await ended.wait()
    if server.running:
        _end_with_supervisor()


def _read_for_loop(channel: Channel, loop: asyncio.AbstractEventLoop, server: _LoopServer, ended: asyncio.Event) -> None:
    while (message := channel.receive()) is not None:
        if isinstance(message, Job | Chunk | Cancel | Recall):
            loop.call_soon_threadsafe(server.take, message)
        else:
            _take(message, channel, server.execution)
    loop.call_soon_threadsafe(ended.set)


class _LoopServer:
    """The jobs that run on this loop, by number."""

    def __init__(self, channel: Channel, execution: Execution, threads: ThreadPoolExecutor) -> None:
        self.running: dict[int, asyncio.Task[None]] = {}
        self._chunks: dict[int, ChunkRun] = {}
        self._on_threads: set[int] = set()
        self._channel, self.execution, self._threads = channel, execution, threads

    def take(self, message: Job | Chunk | Cancel | Recall) -> None:
        """Begin a job, or cancel one, or take back what is left of it."""
        if isinstance(message, Recall):
            _recall(self._channel, self._chunks.get(message.number), message)
        elif isinstance(message, Job | Chunk):
            self.running[message.number] = asyncio.create_task(self._run(message))
        elif message.number in self.running and message.number not in self._on_threads:
            # A thread cannot be stopped: either it ends in time by itself, or this process is ended.
            self.running[message.number].cancel()

    async def _run(self, job: Job | Chunk) -> None:
        try:
            run, arun = self._ways(job)
            if job.call.pool is Pool.THREAD:
                self._on_threads.add(job.number)
                report = await asyncio.get_running_loop().run_in_executor(self._threads, run)
            else:
                report = await arun()
            self._channel.send(report)
        except BaseException:  # noqa: BLE001  # a job without a report would be waited for, for ever
            traceback.print_exc()
            os._exit(REPORT_LOST)
        finally:
            del self.running[job.number]
            self._chunks.pop(job.number, None)
            self._on_threads.discard(job.number)

    def _ways(self, job: Job | Chunk) -> tuple[Callable[[], Report], Callable[[], Coroutine[Any, Any, Report]]]:
        """How to run it: on a thread, and as a coroutine."""
        if isinstance(job, Job):
            return partial(self.execution.run, job), partial(self.execution.arun, job)
        chunk = self._chunks[job.number] = ChunkRun(job, self.execution)
        return chunk.run, chunk.arun


if __name__ == "__main__":
    # Open until the interpreter ends, resources' ends included: what closes it looks dead, and is killed a second later.
    kept_open = main(int(sys.argv[1]), int(sys.argv[2]))
