"""Running one call's function, and putting what comes of it into bytes. User code runs here and nowhere else.

Whatever the user's code does short of ending the process, a report comes out.

Next: back to the supervisor, `attempt.py`, which settles by the report.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..buffers import Readable, mapped
from ..call_progress import CallProgress
from ..checkpointing import Checkpointing
from ..client import Client
from ..codec import Codec, Hindered, Unresolved, codec_of, unpickled
from ..errors import DeclarationError, JobQError, NotSerializable, Retry, Unfit
from ..failures import failure_of
from ..message import Call, Cause, Failure, Form, Spill
from ..payload import ByValue
from ..printable import describe, kind
from ..retry import RetryPolicy
from ..running import RunningCall, Support, running
from ..sigterm import Sigterm
from ..stored import ResolvingCodec, Stored, may_name
from ..task import Task
from ..telemetry.context import attached
from .jobs import MAX_INLINE_BYTES, Answer, Chunk, Job, Kind, Load, Notice, Report, Save
from .shelf import Ask, OtherPython, Shelf
from .voices import CallVoice, Voices


@dataclass(frozen=True, slots=True)
class Found:
    """A call's function and its policy."""

    function: Callable[..., Any]
    policy: RetryPolicy
    codec: Codec


class Functions:
    """The functions that this process can run: the registry's by name, others by value, each unpickled once."""

    def __init__(self, tasks: Mapping[str, Task[..., Any, Any]]) -> None:
        self._tasks = tasks
        self._by_value: dict[str, Found] = {}

    def find(self, job: Job | Chunk) -> Found:
        """The job's function. Names are looked up, never imported.

        Raises Unfit for an unknown one, NotSerializable for code that cannot be rebuilt.
        """
        call = job.call
        if call.function is None:
            return self._registered(call)
        if call.function not in self._by_value:
            self._by_value[call.function] = _unpickled(job)
        return self._by_value[call.function]

    def _registered(self, call: Call) -> Found:
        task = self._tasks.get(call.task)
        if task is None:
            raise Unfit(f"This worker knows no task {call.task!r}.")
        codec = task.declared.codec
        if call.codec != codec.name:
            # Else whoever can write a message could have a pickle decoded for a task that was declared safe.
            raise Unfit(f"It is encoded with {call.codec!r}, and the task is declared with codec={codec.name!r} here.")
        return Found(task.function, task.declared.policy, codec)


def _unpickled(job: Job | Chunk) -> Found:
    assert job.function_path is not None
    try:
        made = unpickled(Path(job.function_path).read_bytes())
    except (Exception, SystemExit, GeneratorExit) as exc:
        hint = " App(ship=[…]) sends a local module along." if isinstance(exc, ModuleNotFoundError) else ""
        told = f"The worker cannot rebuild the function of {job.call.task}: {kind(exc)}: {describe(exc)}.{hint}"
        raise NotSerializable(told) from exc
    if not isinstance(made, ByValue):
        raise NotSerializable(f"The function of {job.call.task} is not what its call says.")
    return Found(made.function, made.policy, codec_of(job.call.codec))


def _unheard(number: int, place: int, progress: CallProgress) -> None:
    """Nobody wants to know how far a call is."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Whom jobs here work for: the worker's id, how to ask it for something, the app's client in this process, and whom to tell how
    far a job's call is."""

    worker: str
    ask: Ask
    client: Client | None = None
    say: Callable[[int, int, CallProgress], None] = _unheard
    voices: Voices | None = None
    """Who hears what calls print and log; None where nobody does."""


@dataclass(frozen=True, slots=True)
class JobVault:
    """Checkpoints of one job, kept by the supervisor."""

    number: int
    place: int
    path: Path
    ask: Ask

    def save(self, form: Form) -> bool:
        """See `checkpointing.Vault`."""
        return self._answer(lambda request: Save(self.number, request, form, self.place)).done

    def load(self) -> Form | None:
        """See `checkpointing.Vault`."""
        return self._answer(lambda request: Load(self.number, request, self.place)).form

    def _answer(self, request: Callable[[int], Save | Load]) -> Answer:
        answer = self.ask(request)
        if answer.problem is not None:
            raise JobQError(answer.problem)
        return answer


class Execution:
    """Runs jobs in this process with these functions, on behalf of this worker."""

    def __init__(self, functions: Functions, desk: Desk, sigterm: Sigterm | None = None) -> None:
        self._functions, self._desk, self._shelf = functions, desk, Shelf(desk.ask)
        self.sigterm = sigterm or Sigterm()
        self._preempted = threading.Event()
        self._notices = 0
        self.unanswered_notices = 0
        """To be given to `told_since` later: whether a task that runs from now on was told that the worker ends."""

    def notice(self, notice: Notice) -> None:
        """Have the tasks know, when they ask, whether the worker is about to end."""
        self._notices += notice.preempted
        self.unanswered_notices = self._notices - notice.preempted
        (self._preempted.set if notice.preempted else self._preempted.clear)()

    def run(self, job: Job) -> Report:
        """Run a job whose function is a plain one."""
        try:
            found, args, kwargs = self._prepared(job)
        except (NotSerializable, Unfit, Unresolved) as exc:
            return not_run(job, exc)
        began, notices = time.monotonic(), self.unanswered_notices
        try:
            with self._as_current(job, found):
                value = found.function(*args, **kwargs)
        except BaseException as exc:  # noqa: BLE001  # user code may raise anything, SystemExit included
            return replace(self.raised(job, found, exc, told=self.told_since(notices)), seconds=time.monotonic() - began)
        return replace(_returned(job, found.codec, value), seconds=time.monotonic() - began)

    async def arun(self, job: Job) -> Report:
        """Run a job whose function is a coroutine function; cancelling this cancels it."""
        try:
            found, args, kwargs = await self._aprepared(job)
        except (NotSerializable, Unfit, Unresolved) as exc:
            return not_run(job, exc)
        began, notices = time.monotonic(), self.unanswered_notices
        try:
            with self._as_current(job, found):
                value = await found.function(*args, **kwargs)
        except BaseException as exc:  # noqa: BLE001  # user code may raise anything; a cancelled job's report is not awaited
            return replace(self.raised(job, found, exc, told=self.told_since(notices)), seconds=time.monotonic() - began)
        return replace(_returned(job, found.codec, value), seconds=time.monotonic() - began)

    def _prepared(self, job: Job) -> tuple[Found, tuple[Any, ...], dict[str, Any]]:
        found = self._functions.find(job)
        args, kwargs = _arguments(self.resolving(job, found.codec).loads(_argument_bytes(job)))
        return found, args, kwargs

    async def _aprepared(self, job: Job) -> tuple[Found, tuple[Any, ...], dict[str, Any]]:
        """As `_prepared`, on a thread where it may take long: others run on this loop."""
        arguments = job.call.arguments
        is_quick = isinstance(arguments, bytes) and not may_name(arguments)
        return self._prepared(job) if is_quick else await asyncio.to_thread(self._prepared, job)

    def resolving(self, job: Job | Chunk, codec: Codec) -> Codec:
        """The codec for arguments of a job or chunk: what `app.put` returned comes out as the object that was put."""

        def find(stored: Stored[Any]) -> Any:
            return self._shelf.find(stored, job.number)

        return ResolvingCodec(codec, find)

    def told_since(self, unanswered: int) -> bool:
        """Whether it was told."""
        return self._notices > unanswered

    def raised(self, job: Job | Chunk, found: Found, exc: BaseException, *, told: bool) -> Report:
        """What came of a call that raised this."""
        # Also if the notice was withdrawn since: the task acted on what it had been told.
        if (isinstance(exc, Retry) and told) or self._is_explained():
            return Report(job.number, Kind.GIVEN_BACK)
        return _raised(job, found, exc)

    def _is_explained(self) -> bool:
        """Whether what went wrong may have come of a SIGTERM to all processes of the worker, and so to those that the task started.

        Waits for the word that the worker ends, though others may run on this loop: mostly it is there, or comes in a moment.
        """
        seconds = self.sigterm.wait_seconds()
        return seconds is not None and self._preempted.wait(seconds)

    def find(self, job: Job | Chunk) -> Found:
        """The function of a job or chunk; raises as `Functions.find`."""
        return self._functions.find(job)

    def current(self, call: Call) -> RunningCall:
        """What the task hears of its call."""
        return RunningCall(
            id=call.id,
            run=call.run,
            attempt=call.attempt,
            task=call.task,
            queue=call.queue,
            worker=self._desk.worker,
            root=call.root or call.id,
            deadline=None if call.timeout_seconds is None else time.time() + call.timeout_seconds,
        )

    @contextmanager
    def _as_current(self, job: Job, found: Found) -> Iterator[None]:
        """For the length of the block a job's call is what runs, goes on with its trace, and is heard."""
        current, support = self.current(job.call), self._support(job, found)
        with attached(job.call.trace), self._heard(job) as voice, running(current, support, voice):
            yield

    @contextmanager
    def _heard(self, job: Job) -> Iterator[CallVoice | None]:
        """The voice of a job's call; what it has said is sent before its report is."""
        voices = self._desk.voices
        if voices is None or job.call.logs is False:
            yield None
            return
        voice = voices.of(job.number)
        voices.now_runs(lambda: voice)
        try:
            yield voice
        finally:
            voice.end()

    @property
    def voices(self) -> Voices | None:
        """Who hears what calls print and log."""
        return self._desk.voices

    def _support(self, job: Job, found: Found) -> Support:
        return self.support(job, found, 0)

    def support(self, job: Job | Chunk, found: Found, place: int) -> Support:
        """What is held ready for a job, or for the call at this place of a chunk."""
        vault = JobVault(job.number, place, Path(job.checkpoint_path), self._desk.ask)
        say = partial(self._desk.say, job.number, place)
        return Support(Checkpointing(vault, found.codec), self._preempted, self._desk.client, say)


def _argument_bytes(job: Job) -> Readable:
    if isinstance(job.call.arguments, Spill):
        assert job.arguments_path is not None
        return mapped(Path(job.arguments_path), writable=True)
    return job.call.arguments


def _arguments(decoded: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    match decoded:
        case (list() | tuple() as args, dict() as kwargs):
            return tuple(args), kwargs
    raise NotSerializable("The call's arguments are not a pair of a list and a map.")


def not_run(job: Job | Chunk, exc: NotSerializable | Unfit | Unresolved) -> Report:
    """What to report of a call whose function or arguments cannot be had."""
    if isinstance(exc, Unfit | OtherPython):
        return Report(job.number, Kind.UNFIT, failure=Failure(Cause.REFUSED, "", str(exc)))
    if isinstance(exc, Unresolved):
        kind = Kind.HINDERED if isinstance(exc, Hindered) else Kind.RAISED
        return Report(job.number, kind, failure=Failure(Cause.REFUSED, "", str(exc)))
    failure = failure_of(exc, codec_of(job.call.codec))
    return Report(job.number, Kind.RAISED, failure=failure)


def _raised(job: Job | Chunk, found: Found, exc: BaseException) -> Report:
    if isinstance(exc, Unresolved):
        return not_run(job, exc)
    if isinstance(exc, Retry):
        # What made the task ask says more than that it asked, should no attempt be left.
        why = exc.__cause__ or exc.__context__ or exc
        failure = failure_of(why, found.codec)
        return Report(job.number, Kind.RAISED, failure=failure, retryable=True, delay_seconds=_delay_seconds(exc))
    return Report(job.number, Kind.RAISED, failure=failure_of(exc, found.codec), retryable=found.policy.covers(exc))


def _delay_seconds(retry: Retry) -> float | None:
    """The delay that was asked for, checked once more: the object is the user's, and may have been changed."""
    try:
        return Retry(retry.delay_seconds).delay_seconds
    except DeclarationError:
        return None


def _returned(job: Job, codec: Codec, value: object) -> Report:
    try:
        encoded = codec.dumps(value)
    except NotSerializable as exc:
        told = NotSerializable(f"What {job.call.task} returned cannot travel. {exc}")
        return Report(job.number, Kind.RAISED, failure=failure_of(told.with_traceback(exc.__traceback__), codec))
    if encoded.size <= MAX_INLINE_BYTES:
        return Report(job.number, Kind.RETURNED, value=encoded.data)
    try:
        encoded.write(Path(job.value_path))
    except OSError as exc:
        # A full disk of this machine's, which is neither the task's fault nor that of the next machine.
        return Report(job.number, Kind.HINDERED, failure=failure_of(exc, codec))
    return Report(job.number, Kind.RETURNED)
