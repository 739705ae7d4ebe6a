"""Handles: a call's id and the way back to its outcome, from any process, days later.

A handle holds nothing but an id and a client. It means the newest run: of a failed call that was retried, the retry. Outcomes are
immutable, so a success that was read once is kept.
Every method that asks the storage has an async twin with the prefix `a`.

Next: `gathering.py` for many at once, `waiting.py` for how it looks, `failures.py` for what it raises.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

from . import control, layout, reruns
from .call_progress import CallProgress
from .client import Client
from .codec import codec_of
from .errors import LeaseLost, Malformed, NotFound, ResultGone
from .failures import exception_of
from .ledger import Ledger
from .log_lines import LogLine
from .logs import LogReader
from .message import Outcome, State
from .overview import fleet as fleets
from .running import refuse_to_wait
from .transports.base import Receipt
from .waiting import Pace

R = TypeVar("R", covariant=True)

PROGRESS_SECONDS = 2.0
"""For how long what the workers said is asked for only once; they say it anew every 15 s at most."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A call's message as its sender knows it: the receipt takes it back while nobody has it."""

    queue: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Ending(Generic[R]):
    """What a call came to. The error is raised where the caller is, so that its traceback holds none of our inner frames."""

    value: R | None = None
    error: BaseException | None = None

    def unwrap(self) -> R:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return cast("R", self.value)


class Handle(Generic[R]):
    """The future of one call, on any machine. Picklable; it carries no secret.

    Two handles are equal if they mean the same call. Methods may be called from any thread; `await handle` from any loop.
    """

    def __init__(  # noqa: PLR0913  # it is made in three places of ours, and nowhere else
        self,
        client: Client,
        call: str,
        *,
        run: int = 1,
        codec: str | None = None,
        message: Sent | None = None,
        queue: str | None = None,
    ) -> None:
        self.id = call
        self.run = run
        self.client = client
        self._codec = codec
        self._message, self._queue = message, queue
        self._outcome: Outcome | None = None

    def result(self, timeout: float | None = None) -> R:
        """The call's value.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            ResultTimeout: no outcome in time; the call goes on.
            the task's own exception, with its remote traceback as the cause, if it can be rebuilt here; else TaskFailed.
            WorkerDied, CallTimedOut, CallExpired, CallCancelled, CallRefused, ResultGone: what they say.
            WouldDeadlock: inside a task.
        """
        refuse_to_wait(self.id)
        return self.client.run(lambda ledger: self.ending(ledger, timeout)).unwrap()

    async def aresult(self, timeout: float | None = None) -> R:
        """As `result`."""
        refuse_to_wait(self.id)
        return (await self.client.arun(lambda ledger: self.ending(ledger, timeout))).unwrap()

    def __await__(self) -> Generator[Any, None, R]:
        return self.aresult().__await__()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None for a success; waits as it does."""
        refuse_to_wait(self.id)
        return exception_of(self.client.run(lambda ledger: self._wait(ledger, timeout)))

    async def aexception(self, timeout: float | None = None) -> BaseException | None:
        """As `exception`."""
        refuse_to_wait(self.id)
        return exception_of(await self.client.arun(lambda ledger: self._wait(ledger, timeout)))

    def done(self) -> bool:
        """Whether the call has ended, in whatever way, forgotten included; one look, no waiting."""
        return self.client.run(self.has_ended)

    async def adone(self) -> bool:
        """As `done`."""
        return await self.client.arun(self.has_ended)

    def status(self) -> State | Literal["pending"]:
        """How the call ended, or "pending": waiting or running. One look; raises ResultGone for a forgotten call."""
        return _status(self.client.run(self.look))

    async def astatus(self) -> State | Literal["pending"]:
        """As `status`."""
        return _status(await self.client.arun(self.look))

    def logs(self, *, follow: bool = False) -> Iterator[LogLine]:
        """What the call has printed and logged, line by line: all its attempts in order, each begun by a line of ours.

        Args:
            follow: go on as more is said, until the call has ended; also before it has begun. Looks every 2 s, and less often, down
                to every 10 s, while nothing is new. What is said reaches the storage within about 6 s.

        Costs a read of the outcome, a listing, and a read for each attempt and MiB; following, a read or two for each look. A call
        of a batch has a log only if that was asked for with `logs=True`; without, the last lines of a failure are there. Raises
        ResultGone for a call that was forgotten, and WouldDeadlock for `follow` inside a task.
        """
        if follow:
            refuse_to_wait(self.id)
        return self._logs(LogReader(self.id, self.look, follow=follow))

    def alogs(self, *, follow: bool = False) -> AsyncIterator[LogLine]:
        """As `logs`, with `async for`."""
        if follow:
            refuse_to_wait(self.id)
        return self._alogs(LogReader(self.id, self.look, follow=follow))

    def _logs(self, reader: LogReader) -> Iterator[LogLine]:
        while (lines := self.client.run(reader.more)) is not None:
            yield from lines
            if not lines:
                self.client.run(lambda ledger: asyncio.sleep(reader.pause_seconds))

    async def _alogs(self, reader: LogReader) -> AsyncIterator[LogLine]:
        while (lines := await self.client.arun(reader.more)) is not None:
            for line in lines:
                yield line
            if not lines:
                await asyncio.sleep(reader.pause_seconds)

    def progress(self) -> CallProgress | None:
        """How far the call said it was, by `jobq.current().progress(…)`; None if it does not run, or said nothing.

        Workers speak every 15 s while busy. One listing of what they say, which all handles of this process share for 2 s; a read
        of a worker's whole status only where more calls run on it than a listing shows; and one look whether the call has ended
        since. Of a vector task's slice, the first call speaks for all.
        """
        return self.client.run(self._progress)

    async def aprogress(self) -> CallProgress | None:
        """As `progress`."""
        return await self.client.arun(self._progress)

    async def _progress(self, ledger: Ledger) -> CallProgress | None:
        if self._outcome is not None and self._outcome.state is not State.FAILED:
            return None
        try:
            fleet = await self.client.session.fleet.get(PROGRESS_SECONDS, lambda: fleets.workers(ledger))
        except NotFound:  # the container, before anything was written to it
            return None
        current = await fleets.find_call(ledger, fleet, self.id)
        if current is None or current.progress is None or await self.has_ended(ledger):
            return None
        return current.progress

    def cancel(self) -> bool:
        """End the call as cancelled unless it has ended; whether it counts as cancelled now.

        From then on no value of it counts. If an attempt is running, its worker stops it within 10 s, as long as it reaches the
        storage: a sync task's process gets SIGTERM, with its subprocesses, and SIGKILL after 5 s; an async task is cancelled.
        After an error of the storage it may or may not have been cancelled; repeat it, which does what was left undone.

        Nobody checks that the call was ever sent: for an id that never was, it leaves the outcome "cancelled" and returns True. For
        the id of a key that is not used yet, the first call with that key counts as cancelled from the start.
        """
        return self.client.run(self._cancel)

    async def acancel(self) -> bool:
        """As `cancel`."""
        return await self.client.arun(self._cancel)

    def forget(self) -> None:
        """Remove the outcome and what was spilled; from then on `result` raises ResultGone. Raises NotFinished before the end."""
        self.client.run(self._forget)

    async def aforget(self) -> None:
        """As `forget`."""
        await self.client.arun(self._forget)

    def __repr__(self) -> str:
        known = f" {self._outcome.state}" if self._outcome else ""
        return f"<Handle {self.id}{known} of {self.client.name} at {self.client.place.label}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[object, ...]:
        return (_unpickled, (self.client, self.id, {"run": self.run, "codec": self._codec, "queue": self._queue}))

    def _identity(self) -> tuple[str, str, str]:
        return (self.client.place.label, self.client.name, self.id)

    async def look(self, ledger: Ledger) -> Outcome | None:
        """The outcome of the newest run if there is one now; raises ResultGone if it was forgotten.

        A failure is looked at again each time, since somebody may have retried it: one read, if nobody has.
        """
        run, outcome = await reruns.newest(ledger, self.id, self.run, self._outcome)
        outcome = outcome and self._checked(outcome)
        if run > self.run:
            self.run, self._outcome, self._message = run, outcome, None
        elif run == self.run and self._outcome is None:  # else another thread was faster
            self._outcome = outcome
        return self._outcome

    def _checked(self, outcome: Outcome) -> Outcome:
        """Refuse an outcome in another codec than the call's: it could have a pickle decoded for a task declared safe."""
        holds_value = outcome.state in (State.SUCCEEDED, State.FAILED)
        if holds_value and self._codec not in (None, outcome.codec):
            raise Malformed(f"The outcome of call {self.id} is encoded with {outcome.codec!r}, and its task with {self._codec!r}.")
        return outcome

    async def has_ended(self, ledger: Ledger) -> bool:
        """Whether the newest run has ended, or was forgotten."""
        try:
            return await self.look(ledger) is not None
        except ResultGone:
            return True

    async def _wait(self, ledger: Ledger, timeout: float | None) -> Outcome:
        pace = Pace(timeout)
        while (outcome := await self.look(ledger)) is None:
            await asyncio.sleep(pace.pause_seconds(f"call {self.id}"))
            await self.client.note_silence(ledger, pace.started)
        return outcome

    async def ending(self, ledger: Ledger, timeout: float | None) -> Ending[R]:
        """The call's value or its error, once it has ended."""
        outcome = await self._wait(ledger, timeout)
        error = exception_of(outcome)
        if error is not None:
            return Ending(error=error)
        return Ending(codec_of(outcome.codec).loads(await ledger.value(outcome)))

    async def _cancel(self, ledger: Ledger) -> bool:
        wanted = Outcome(call=self.id, run=self.run, state=State.CANCELLED, token=secrets.token_hex(8))
        outcome = self._checked(await reruns.commit_newest(ledger, wanted))
        # Also if it was cancelled before: whoever did that may have died before the rest was done.
        if outcome.state is State.CANCELLED and not await self._take_back(ledger):
            run = layout.run_id(self.id, outcome.run)
            queues = self.client.queues if self._queue is None else {self._queue}
            await asyncio.gather(*(control.tell_cancelled(ledger, queue, run) for queue in sorted(queues)))
        self.run, self._outcome = outcome.run, outcome
        return outcome.state is State.CANCELLED

    async def _take_back(self, ledger: Ledger) -> bool:
        """Remove the message if nobody has received it."""
        if self._message is None:
            return False
        with suppress(LeaseLost):
            await (await ledger.queue(self._message.queue)).delete(self._message.receipt)
            return True
        return False

    async def _forget(self, ledger: Ledger) -> None:
        await reruns.forget(ledger, self.id)
        self._outcome = None


def _unpickled(client: Client, call: str, known: dict[str, Any]) -> Handle[Any]:
    return Handle(client, call, **known)


def _status(outcome: Outcome | None) -> State | Literal["pending"]:
    return outcome.state if outcome else "pending"
