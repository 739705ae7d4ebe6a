"""A child seen from the supervisor: a process group, a socket to it, and the jobs that it has.

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
from contextlib import suppress

from .jobs import LENGTH_BYTES, Cancel, ChildSetup, Job, Ready, Report, from_body, to_frame

log = logging.getLogger("ai4s.jobq.worker")

GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for a process group that has to go."""


class ChildDied(Exception):
    """The child's process ended; the text says how. `on_purpose` says that the supervisor wanted it."""

    def __init__(self, cause: str, *, on_purpose: bool) -> None:
        super().__init__(cause)
        self.on_purpose = on_purpose


class Child:
    """One running child; made ready by `start`."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, setup: ChildSetup) -> None:
        self.setup = setup
        self.load = 0  # jobs that its owner has promised to it
        self._jobs: dict[int, asyncio.Future[Report]] = {}
        self._process, self._reader, self._writer = process, reader, writer
        self._killed = False
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, setup: ChildSetup) -> tuple[Child, Ready]:
        """Start a process, hand it its setup, and wait for its first answer. A child that dies first answers with a problem."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ai4s.jobq.worker.child", str(theirs.fileno()),
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer, setup)
        try:
            ready = await child._introduce()
        except BaseException:
            await child.kill()
            raise
        return child, ready

    async def _introduce(self) -> Ready:
        self._writer.write(to_frame(self.setup))
        try:
            first = await self._receive()
        except (asyncio.IncompleteReadError, ConnectionError):
            return Ready(problem=f"A child process ended while it started ({await self._cause()}).")
        assert isinstance(first, Ready)
        self._reading = asyncio.create_task(self._read())
        return first

    @property
    def alive(self) -> bool:
        """Whether it can still be given jobs."""
        return self._reading is not None and not self._reading.done() and not self._killed

    async def run(self, job: Job) -> Report:
        """Have a job run; raises ChildDied if the process ends first. Cancelling this leaves the job running."""
        future: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._jobs[job.number] = future
        try:
            if not self.alive:
                raise ChildDied("it had ended before", on_purpose=self._killed)
            self._writer.write(to_frame(job))
            return await future
        finally:
            self._jobs.pop(job.number, None)

    def cancel(self, job: Job) -> None:
        """Ask a child with an event loop to cancel a job."""
        if self.alive:
            self._writer.write(to_frame(Cancel(job.number)))

    async def retire(self) -> None:
        """End a child without jobs in good order: it closes its resources; one that takes too long is killed."""
        if self.alive:
            self._writer.write_eof()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        """End the whole process group: SIGTERM, and SIGKILL for what is left after the grace period."""
        self._killed = True
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
        # Also when the leader went in time: what it started may not have.
        self._signal(signal.SIGKILL)
        await self._process.wait()
        if self._reading is not None:
            await self._reading
        self._writer.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    async def _read(self) -> None:
        try:
            while True:
                message = await self._receive()
                assert isinstance(message, Report)
                future = self._jobs.get(message.number)
                if future is not None and not future.done():
                    future.set_result(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
        except Exception:  # whatever it said, it cannot be trusted to say more
            log.exception("A child process said something that makes no sense; it is ended.")
        finally:
            # It may live on with its end closed, and nothing more can come of it.
            self._signal(signal.SIGKILL)
            cause = await self._cause()
            for future in self._jobs.values():
                if not future.done():
                    future.set_exception(ChildDied(cause, on_purpose=self._killed))

    async def _receive(self) -> object:
        length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
        return from_body(await self._reader.readexactly(length))

    async def _cause(self) -> str:
        code = await self._process.wait()
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
