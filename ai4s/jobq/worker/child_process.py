"""A child seen from the supervisor: a session of processes, a socket to it, and the jobs that it has.

Every job given to a child ends in a report or in ChildDied with the cause; there is no third way.

Next: `executors.py`, which keeps children for each kind of task.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from ..call_progress import MAX_MESSAGE_CHARS, CallProgress
from ..clock import boottime
from ..errors import Malformed
from ..sessions import catches, end_session
from .jobs import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    Answer,
    Cancel,
    ChildSetup,
    Chunk,
    Ending,
    Frame,
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
from .memory import kernel_kills
from .shutdown import cancel_and_wait

log = logging.getLogger("ai4s.jobq.worker")

GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for a child that has to go."""

DEAF_SECONDS = 0.2
"""A child that has said nothing of its SIGTERM for so long is in C code, and holds the GIL."""

LAST_WORDS_SECONDS = 1.0
"""For the last reports of a process that has ended, or the end of one that says no more."""


class ChildDied(Exception):
    """The child's process ended; the text says how. `on_purpose` says that no job caused it, `jobs` how many it had then.

    `astray`: by a SIGTERM that was not the supervisor's.
    """

    def __init__(self, cause: str, *, on_purpose: bool, jobs: int, astray: bool = False) -> None:
        super().__init__(cause)
        self.on_purpose, self.jobs, self.astray = on_purpose, jobs, astray


Serve = Callable[[Request], Awaitable[Answer]]
Hear = Callable[[int], None]
"""Told how many calls of a chunk, from its end, will not be run."""


HearProgress = Callable[[int, CallProgress], None]
"""Told which call of a chunk, by its place, is how far."""


def ignore_progress(place: int, progress: CallProgress) -> None:
    """Hears what nobody wants to know."""


HearSaid = Callable[[Said], None]
"""Told what a job's call has printed and logged."""


def ignore_said(said: Said) -> None:
    """Hears what nobody wants to keep."""


def ignore(count: int) -> None:
    """Hears what does not matter: a job has nothing to take back."""


@dataclass(slots=True)
class _Running:
    """A job in a child: its report to come, who serves its requests, and those that are being served."""

    report: asyncio.Future[Report]
    serve: Serve
    recalled: Hear
    progressed: HearProgress
    said: HearSaid
    context: Context = field(default_factory=copy_context)
    """Of whoever has it run: what is asked of the storage for its requests is charged there, and not to the child."""
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def hear(self, message: Recalled | Said | Progressed) -> None:
        """Take what nobody answers."""
        if isinstance(message, Recalled):
            self.recalled(message.count)
        elif isinstance(message, Said):
            self.said(message)
        else:
            shown = message.message[:MAX_MESSAGE_CHARS]
            self.progressed(message.place, CallProgress(message.done, message.total, shown))


class Child:
    """One running child; made ready by `start`."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, setup: ChildSetup) -> None:
        self.setup, self.outfit = setup, setup.outfit
        self.load = 0  # jobs that its owner has promised to it
        self.given = 0  # jobs that it was ever promised
        self._jobs: dict[int, _Running] = {}
        self._process, self._reader, self._writer = process, reader, writer
        self._killed = self._heard = False
        self._condemned: str | None = None
        self._kernel_kills = kernel_kills()
        self._lifeline: int | None = None
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, setup: ChildSetup, variables: Mapping[str, str] | None = None) -> tuple[Child, Ready]:
        """Start a process, hand it its setup, and wait for its first answer. A child that dies first answers with a problem.

        `variables` are its environment, in place of the worker's own.
        """
        ours, theirs = socket.socketpair()
        watched, lifeline = os.pipe()
        try:
            process = await _spawn(theirs.fileno(), watched, variables)
        except BaseException:
            ours.close()
            os.close(lifeline)
            raise
        finally:
            theirs.close()
            os.close(watched)
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer, setup)
        child._lifeline = lifeline
        try:
            ready = await child._introduce()
        except BaseException:
            await child.kill(0)  # it does not listen yet
            raise
        return child, ready

    async def _introduce(self) -> Ready:
        self._writer.write(to_frame(self.setup))
        try:
            first = await self._receive()
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._process.wait()
            return Ready(problem=f"A child process ended while it started ({self._cause()}).")
        assert isinstance(first, Ready)
        self._serving = asyncio.create_task(self._serve())
        return first

    @property
    def alive(self) -> bool:
        """Whether it can still be given jobs."""
        return self._serving is not None and not self._serving.done() and not self._killed

    async def run(
        self,
        job: Job | Chunk,
        serve: Serve,
        recalled: Hear = ignore,
        *,
        progressed: HearProgress = ignore_progress,
        said: HearSaid = ignore_said,
    ) -> Report:
        """Have a job run, and its requests served; raises ChildDied if the process ends first.

        Cancelling this leaves the job running.
        """
        running = _Running(asyncio.get_running_loop().create_future(), serve, recalled, progressed, said)
        self._jobs[job.number] = running
        try:
            if not self.alive:
                raise ChildDied("it had ended before", on_purpose=True, jobs=1)
            self._writer.write(to_frame(job))
            return await running.report
        finally:
            self._jobs.pop(job.number, None)
            await cancel_and_wait(*running.serving)

    def tell(self, notice: Notice) -> None:
        """Have its jobs know whether the worker is about to end."""
        if self.alive:
            self._writer.write(to_frame(notice))

    def recall(self, number: int) -> None:
        """Have a chunk give back what has not begun, if it runs here."""
        if self.alive and number in self._jobs:
            self._writer.write(to_frame(Recall(number)))

    def cancel(self, job: Job | Chunk) -> None:
        """Ask a child with an event loop to cancel a job."""
        if self.alive:
            self._writer.write(to_frame(Cancel(job.number)))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def condemn(self, cause: str) -> None:
        """End it at once, as a death of what it runs, with this cause."""
        self._condemned = cause
        self._end()

    async def retire(self) -> None:
        """End a child without jobs in good order: it closes its resources; one that takes too long is killed."""
        if self.alive:
            self._writer.write_eof()
            await self._ends_within(GRACE_SECONDS)
        await self.kill(0)

    async def kill(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """SIGTERM to its process group, and after the grace period, if there is one, SIGKILL to all that is left of its session."""
        self._killed = True
        if grace_seconds > 0:
            await self._ask_to_end(grace_seconds)
        # Also when the leader went in time: what it started may not have.
        self._end()
        await self._process.wait()
        if self._serving is not None:
            await self._serving
        self._let_go()

    def _let_go(self) -> None:
        """Close our ends of the socket and of the guard's pipe, once the process is no more."""
        self._writer.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    async def _ask_to_end(self, grace_seconds: float) -> None:
        """Announce SIGTERM, send it, and wait for the end.

        It gets past a child's handler by the announcement, which one that is in C code may not be able to read. That handler
        is called once: another SIGTERM ends such a child, unless a task's own handler is there, which is not so short-lived.
        """
        if self._serving is not None and not self._serving.done():
            self._writer.write(to_frame(Ending()))
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        give_up_at = boottime() + grace_seconds
        while not (self._heard or await self._ends_within(min(DEAF_SECONDS, grace_seconds))) and boottime() < give_up_at:
            if not (self._heard or catches(self._process.pid, signal.SIGTERM)):
                with suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGTERM)
        await self._ends_within(give_up_at - boottime())

    async def _ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return self._process.returncode is not None

    def _end(self) -> None:
        """SIGKILL to all of its session: what it has started may be in groups of its own, as shell commands are."""
        # Once we have let go of it, nothing of the session is left, and its number may be another's.
        if self._lifeline is not None:
            end_session(self._process.pid)

    async def _serve(self) -> None:
        """Take reports until the process ends or makes no sense any more; then end what is left of it, and all its jobs.

        The process is watched as well as the socket: whatever it started may hold its end of the socket open.
        """
        reading, ending = asyncio.create_task(self._read()), asyncio.create_task(self._process.wait())
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        # Give the other one a moment: the last reports to be read, or a process that closed its end to go by itself.
        await asyncio.wait({reading, ending}, timeout=LAST_WORDS_SECONDS)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        # The session's number is not given to others while anything of it lives; what lives is what has to go.
        self._end()
        await ending
        died = ChildDied(self._cause(), on_purpose=self._killed, jobs=len(self._jobs), astray=self._ended_astray)
        for running in self._jobs.values():
            if not running.report.done():
                running.report.set_exception(died)
        self._let_go()

    async def _read(self) -> None:
        try:
            while True:
                self._take(await self._receive())
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except Exception:  # whatever it said, it cannot be trusted to say more
            log.exception("A child process said something that makes no sense; it is ended.")

    def _take(self, message: Frame) -> None:
        if isinstance(message, Heard):
            self._heard = True
            return
        assert isinstance(message, Report | Recalled | Request | Progressed | Said)
        running = self._jobs.get(message.number)
        if isinstance(message, Recalled | Said | Progressed):
            if running is not None:
                running.hear(message)
        elif running is None or running.report.done():
            if not isinstance(message, Report):
                self._answer(Answer(message.request, done=False))  # of a job that is over; its thread waits all the same
        elif isinstance(message, Report):
            running.report.set_result(message)
        else:
            serving = asyncio.create_task(self._serve_request(running.serve, message), context=running.context)
            running.serving.add(serving)
            serving.add_done_callback(running.serving.discard)

    async def _serve_request(self, serve: Serve, request: Request) -> None:
        answer = Answer(request.request, done=False)
        try:
            answer = await serve(request)
        finally:
            self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        # Also while it is being ended: a task may save when it gets its SIGTERM.
        if self._serving is not None and not self._serving.done():
            self._writer.write(to_frame(answer))

    async def _receive(self) -> Frame:
        length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
        if length > MAX_FRAME_BYTES:
            raise Malformed(f"A frame of {length} bytes was announced; somebody else wrote to the child's socket.")
        return from_body(await self._reader.readexactly(length))

    @property
    def _ended_astray(self) -> bool:
        return self._process.returncode == -signal.SIGTERM and not self._killed and self._condemned is None

    def _cause(self) -> str:
        code = self._process.returncode
        assert code is not None
        if self._condemned is not None:
            return self._condemned
        if code >= 0:
            return f"exit code {code}"
        # Another process of this machine may have been meant, but a SIGKILL out of the blue has mostly this reason.
        starved = code == -signal.SIGKILL and kernel_kills() > self._kernel_kills
        return f"signal {signal.Signals(-code).name}{', most likely by the kernel, for want of memory' if starved else ''}"


async def _spawn(connection: int, watched: int, variables: Mapping[str, str] | None) -> Process:
    """Start a child with its end of the socket, and the end of the pipe that its guard watches; it reads no standard input.

    It starts with SIGTERM blocked, until it can tell one that is meant for it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ai4s.jobq.worker.child", str(connection), str(watched),
            stdin=asyncio.subprocess.DEVNULL, pass_fds=[connection, watched], start_new_session=True, env=variables,
        )  # fmt: skip
    finally:
        # Perhaps while others wait here: the process is started before the first wait.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
