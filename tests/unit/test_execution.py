"""Running one call's function: whatever the user's code does short of ending the process, a report comes out that can be sent."""

from __future__ import annotations

import asyncio
import math
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from ai4s.jobq.app import App
from ai4s.jobq.client import Client
from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import JobQError, Retry
from ai4s.jobq.failures import exception_of
from ai4s.jobq.layout import sha256_of
from ai4s.jobq.message import Call, Cause, Failure, Outcome, Pool, Spill, State
from ai4s.jobq.payload import function_payload
from ai4s.jobq.retry import RetryPolicy
from ai4s.jobq.running import RunningCall, current, current_or_none
from ai4s.jobq.stored import Stored
from ai4s.jobq.worker.execution import Desk, Execution, Functions
from ai4s.jobq.worker.jobs import LENGTH_BYTES, MAX_INLINE_BYTES, Answer, Fetch, Job, Kind, Report, Request, from_body, to_frame

APP = App("proj")
CLOUDPICKLE, MSGPACK = codec_named("cloudpickle"), codec_named("msgpack")


class OnlyHere(Exception):
    """An exception of the user's."""


class Unsendable:
    """Cannot be pickled."""

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("not this")


class OursWhenPickled:
    """Raises an error of ours when it is pickled."""

    def __reduce__(self) -> tuple[object, ...]:
        raise JobQError("the place is not known")


@APP.task
def add(x: int, y: int = 0) -> int:
    """Add."""
    return x + y


@APP.task
async def slowly_add(x: int, y: int = 0) -> int:
    """Add, after others had their turn."""
    await asyncio.sleep(0)
    return x + y


@APP.task
def throw(exc: BaseException) -> None:
    """Raise what it is given."""
    raise exc


@APP.task
async def slowly_throw(exc: BaseException) -> None:
    """Raise what it is given, on a loop."""
    await asyncio.sleep(0)
    raise exc


@APP.task(retry_on=(OSError,))
def throw_system(exc: BaseException) -> None:
    """Raise what it is given; only a system's errors earn a retry."""
    raise exc


@APP.task
def ask_again(delay: Any = None) -> None:
    """Ask for another attempt."""
    raise Retry(delay)


@APP.task
def ask_again_because() -> None:
    """Ask for another attempt, and say why."""
    try:
        raise OnlyHere("the reason")
    except OnlyHere as exc:
        raise Retry(5) from exc


@APP.task
def give(kind: str) -> object:
    """Return something that cannot be sent."""
    return {"unsendable": Unsendable, "ours": OursWhenPickled, "lambda": lambda: (x for x in "ab")}[kind]()


@APP.task
def many_bytes(n: int) -> bytes:
    """Return so many bytes."""
    return bytes(n)


@APP.task
def ones(n: int) -> Any:
    """Return an array."""
    return np.ones(n)


@APP.task
def zero_first(array: Any) -> float:
    """Change an argument."""
    array[0] = 0
    return float(array.sum())


@APP.task
async def slowly_zero_first(array: Any) -> float:
    """Change an argument, on a loop."""
    await asyncio.sleep(0)
    array[0] = 0
    return float(array.sum())


@APP.task
def throw_named(data: bytes) -> None:
    """Raise what is in these bytes."""
    raise pickle.loads(data)[0]


@APP.task
def who() -> RunningCall:
    """Return what the call knows of itself."""
    return current()


@APP.task
async def slowly_who() -> RunningCall:
    """Return what the call knows of itself, after others had their turn."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return current()


@APP.task
async def wait_for_ever() -> None:
    """Wait until it is cancelled."""
    await asyncio.Event().wait()


@APP.task(codec="msgpack")
def safely_add(x: int, y: int = 0) -> int:
    """Add plain data."""
    return x + y


@APP.task(codec="msgpack")
def give_a_set() -> set[int]:
    """Return what msgpack does not take."""
    return {1}


CALL = Call(id="abcdefgh234567ab-000000000007", task="test_execution.add", queue="default", arguments=b"", sent=1.0)


def job(function: Any, *args: object, folder: Path | None = None, **kwargs: object) -> Job:
    """A job for a task of this module."""
    call = replace(
        CALL,
        task=function.name,
        codec=function.declared.codec.name,
        pool=function.declared.pool,
        arguments=function.declared.codec.dumps((args, kwargs)).data,
    )
    return Job(3, call, *(str((folder or Path("/nonexistent")) / name) for name in ("3.out", "3.checkpoint")))


def _unasked(request: Callable[[int], Request]) -> Answer:
    raise AssertionError(f"nobody saves anything here, and yet: {request(1)}")


def execution() -> Execution:
    """An execution with the tasks of this module."""
    return Execution(Functions(APP.tasks), Desk("w1", _unasked))


def ran(what: Job) -> Report:
    """The report of a job, as the supervisor gets it."""
    report = asyncio.run(execution().arun(what)) if what.call.pool is Pool.ASYNC else execution().run(what)
    assert current_or_none() is None
    over = from_body(to_frame(report)[LENGTH_BYTES:])
    assert isinstance(over, Report)
    assert over == report
    assert over.number == what.number
    return over


def failed(report: Report) -> Failure:
    """The failure of a report that has one."""
    assert report.kind is Kind.RAISED
    assert report.failure is not None
    return report.failure


# Values.


@pytest.mark.parametrize("task", [add, slowly_add, safely_add], ids=lambda task: task.name)
def test_a_function_runs_with_its_arguments(task: Any) -> None:
    """Positions and names arrive, in any pool and codec, and the value comes back."""
    report = ran(job(task, 2, y=3))
    assert report.kind is Kind.RETURNED
    assert report.value is not None
    assert task.declared.codec.loads(report.value) == 5
    assert report.seconds >= 0


def test_a_value_as_large_as_a_frame_may_be_comes_in_it(tmp_path: Path) -> None:
    """And makes no file."""
    report = ran(job(many_bytes, MAX_INLINE_BYTES - 100, folder=tmp_path))
    assert report.value is not None
    assert list(tmp_path.iterdir()) == []


def test_a_large_array_comes_as_a_file(tmp_path: Path) -> None:
    """Piece by piece, and as large as it is."""
    report = ran(job(ones, 1_000_000, folder=tmp_path))
    assert report == Report(3, Kind.RETURNED, seconds=report.seconds)
    assert np.array_equal(CLOUDPICKLE.loads((tmp_path / "3.out").read_bytes()), np.ones(1_000_000))


def spilled(what: Job, folder: Path) -> Job:
    """The job with its arguments in a file."""
    data = what.call.arguments
    assert isinstance(data, bytes)
    (path := folder / "3.in").write_bytes(data)
    return replace(what, call=replace(what.call, arguments=Spill(len(data), sha256_of(data))), arguments_path=str(path))


@pytest.mark.parametrize("name", ["zero_first", "slowly_zero_first"])
def test_arguments_in_a_file_may_be_changed_by_the_task(name: str, tmp_path: Path) -> None:
    """In its memory; the file, which is mapped and not read, stays as it was."""
    what = spilled(job(APP.tasks[f"test_execution.{name}"], np.ones(1_000_000), folder=tmp_path), tmp_path)
    before = (tmp_path / "3.in").read_bytes()
    assert CLOUDPICKLE.loads(ran(what).value or b"") == 999_999.0
    assert (tmp_path / "3.in").read_bytes() == before


def test_plain_data_in_a_file_is_read(tmp_path: Path) -> None:
    """By the safe codec too."""
    assert MSGPACK.loads(ran(spilled(job(safely_add, 3, y=4), tmp_path)).value or b"") == 7


def test_a_function_that_holds_a_large_array_is_rebuilt(tmp_path: Path) -> None:
    """Its payload is no plain pickle."""
    weights = np.ones(100_000)
    (path := tmp_path / "function").write_bytes(payload := function_payload(lambda: float(weights.sum()), RetryPolicy()))
    call = replace(CALL, function=sha256_of(payload), task="<lambda>", arguments=CLOUDPICKLE.dumps(((), {})).data)
    assert CLOUDPICKLE.loads(ran(replace(job(add), call=call, function_path=str(path))).value or b"") == 100_000.0


def stored(value: object, folder: Path) -> tuple[Stored[Any], Path]:
    """A value that was put, and its file."""
    data = CLOUDPICKLE.dumps(value).data
    (path := folder / "stored").write_bytes(data)
    return Stored(Client("proj", f"local://{folder}", None), sha256_of(data), len(data)), path


@pytest.mark.parametrize("function", [add, slowly_add], ids=["plain", "async"])
def test_a_stored_argument_is_the_object(function: Any, tmp_path: Path) -> None:
    """The supervisor is asked for its file, once in a process."""
    ref, path = stored(5, tmp_path)
    asked: list[Any] = []

    def answer(request: Callable[[int], Any]) -> Answer:
        asked.append(request(1))
        return Answer(1, done=True, path=str(path))

    execution = Execution(Functions(APP.tasks), Desk("w1", answer))
    for y in (1, 2):
        what = job(function, ref, y=y)
        report = asyncio.run(execution.arun(what)) if function is slowly_add else execution.run(what)
        assert CLOUDPICKLE.loads(report.value or b"") == 5 + y
    assert asked == [Fetch(3, 1, ref.sha256, ref.size)]


@pytest.mark.parametrize("function", [add, slowly_add], ids=["plain", "async"])
@pytest.mark.parametrize(
    ("answer", "kind", "python"),
    [
        (Answer(1, done=False, problem="It is missing."), Kind.RAISED, None),
        (Answer(1, done=False), Kind.HINDERED, None),
        (Answer(1, done=True, path="/nonexistent"), Kind.HINDERED, None),
        (Answer(1, done=True, path="{path}"), Kind.UNFIT, "2.7"),
    ],
    ids=["gone", "hindered", "removed again and again", "another Python"],
)
def test_a_stored_argument_that_cannot_be_had_is_told(
    function: Any, answer: Answer, kind: Kind, python: str | None, tmp_path: Path
) -> None:
    """It fails its call only if it is gone for good: else the call goes back, or to a worker of its Python."""
    ref, path = stored(5, tmp_path)
    ref = replace(ref, python=python)
    answer = replace(answer, path=answer.path and answer.path.format(path=path))
    execution = Execution(Functions(APP.tasks), Desk("w1", lambda request: answer))
    what = job(function, [ref])
    report = asyncio.run(execution.arun(what)) if function is slowly_add else execution.run(what)
    assert report.kind is kind
    assert report.failure is not None
    assert report.failure.cause is Cause.REFUSED
    assert not report.retryable


def test_an_exception_that_names_an_object_is_reported_as_any(tmp_path: Path) -> None:
    """To see that it survives pickling, its names are not resolved."""
    ref, _ = stored(5, tmp_path)
    data = codec_named("cloudpickle").dumps((OnlyHere(ref),)).data
    failure = failed(ran(job(throw_named, data)))
    assert failure.type.endswith("OnlyHere")
    assert failure.exception is not None


def test_a_larger_value_comes_as_a_file(tmp_path: Path) -> None:
    """The report says that it returned, and the file holds the encoded value."""
    report = ran(job(many_bytes, MAX_INLINE_BYTES, folder=tmp_path))
    assert (report.kind, report.value) == (Kind.RETURNED, None)
    assert CLOUDPICKLE.loads((tmp_path / "3.out").read_bytes()) == bytes(MAX_INLINE_BYTES)


def test_a_value_that_the_disk_does_not_take_is_the_workers_trouble() -> None:
    """A full or missing scratch folder is no failure of the task; the report says so, and why."""
    report = ran(job(many_bytes, MAX_INLINE_BYTES))
    assert report.kind is Kind.HINDERED
    assert report.failure is not None
    assert report.failure.type == "FileNotFoundError"


@pytest.mark.parametrize("kind", ["unsendable", "ours", "lambda"])
def test_a_value_that_cannot_be_sent_fails_the_call(kind: str) -> None:
    """The error names the type; running it again would not help."""
    report = ran(job(give, kind))
    assert "NotSerializable" in failed(report).type
    assert not report.retryable


def test_a_value_that_the_codec_refuses_fails_the_call_as_text() -> None:
    """With the safe codec there is no pickle in the report, not even of the error."""
    failure = failed(ran(job(give_a_set)))
    assert "set" in failure.message
    assert failure.exception is None


# Arguments.


@pytest.mark.parametrize("spilled", [False, True], ids=["in the call", "in a file"])
def test_arguments_come_from_the_call_or_from_a_file(spilled: bool, tmp_path: Path) -> None:
    """What was spilled has been fetched to a file."""
    made = job(add, 2, y=3)
    if spilled:
        data = made.call.arguments
        assert isinstance(data, bytes)
        (path := tmp_path / "3.in").write_bytes(data)
        made = replace(made, call=replace(made.call, arguments=Spill(len(data), sha256_of(data))), arguments_path=str(path))
    report = ran(made)
    assert report.value is not None
    assert CLOUDPICKLE.loads(report.value) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        CLOUDPICKLE.dumps(None).data,
        CLOUDPICKLE.dumps(()).data,
        CLOUDPICKLE.dumps(((1,),)).data,
        CLOUDPICKLE.dumps(((1,), {}, 3)).data,
        CLOUDPICKLE.dumps((1, {})).data,
        CLOUDPICKLE.dumps(((1,), [])).data,
        CLOUDPICKLE.dumps("ab").data,
    ],
    ids=["empty", "garbage", "null", "nothing", "one", "three", "a number", "a list", "a text"],
)
def test_arguments_that_are_none_fail_the_call(data: bytes) -> None:
    """Damaged arguments are a failure that says so, not a crash; and no retry is wasted on them."""
    report = ran(replace(job(add), call=replace(CALL, arguments=data)))
    assert "NotSerializable" in failed(report).type
    assert not report.retryable


@pytest.mark.parametrize("kwargs", [{"z": 1}, {}, {3: 4}], ids=repr)
def test_arguments_that_do_not_fit_fail_the_call(kwargs: dict[Any, Any]) -> None:
    """The TypeError of the call is that of the task."""
    report = ran(replace(job(add), call=replace(CALL, arguments=CLOUDPICKLE.dumps(((), kwargs)).data)))
    assert failed(report).type == "TypeError"


# Which function.


@pytest.mark.parametrize("name", ["os.system", "__import__", "test_execution.missing", "", "builtins.eval", "test_execution"])
def test_an_unknown_task_is_unfit(name: str) -> None:
    """Names are looked up, never imported: what is not registered is for another worker."""
    report = ran(replace(job(add), call=replace(CALL, task=name, arguments=CLOUDPICKLE.dumps((("true",), {})).data)))
    assert report.kind is Kind.UNFIT
    assert report.failure is not None
    assert report.failure.cause is Cause.REFUSED


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_message_does_not_choose_pickle_for_a_safe_task(tmp_path: Path) -> None:
    """A task that is declared msgpack decodes no pickle, whatever its message says."""
    canary = tmp_path / "canary"
    call = replace(CALL, task=safely_add.name, codec="cloudpickle", arguments=pickle.dumps(((Canary(canary),), {})))
    report = ran(replace(job(safely_add), call=call))
    assert report.kind is not Kind.RETURNED
    assert not canary.exists()


def test_an_unknown_codec_is_unfit() -> None:
    """A later version's codec is for a later worker; nothing is decoded and nothing crashes."""
    for task in (add, slowly_add):
        made = job(task, 1)
        assert ran(replace(made, call=replace(made.call, codec="zstd-pickle"))).kind is Kind.UNFIT


def by_value(function: Any, folder: Path, policy: RetryPolicy = RetryPolicy()) -> Job:  # noqa: B008  # frozen
    """A job whose function travels with it."""
    data = function_payload(function, policy)
    (path := folder / sha256_of(data)).write_bytes(data)
    call = replace(CALL, function=sha256_of(data), task="__main__.f@x", arguments=CLOUDPICKLE.dumps(((2,), {})).data)
    return Job(3, call, str(folder / "3.out"), str(folder / "3.checkpoint"), function_path=str(path))


def test_a_function_by_value_is_unpickled_once(tmp_path: Path) -> None:
    """Its module-level state lasts from call to call, as it would if it were imported."""
    seen: list[int] = []
    made = by_value(lambda x: (seen.append(x), len(seen))[1], tmp_path)
    here = execution()
    reports = [here.run(made) for _ in range(3)]
    Path(made.function_path or "").unlink()
    reports.append(here.run(made))
    assert [CLOUDPICKLE.loads(report.value or b"") for report in reports] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", pickle.dumps(len), pickle.dumps(None), msgpack.packb({"function": 1})],
    ids=["empty", "garbage", "a bare function", "nothing", "a map"],
)
def test_code_that_is_none_fails_the_call(data: bytes, tmp_path: Path) -> None:
    """What is no function with its policy is a failure that says so."""
    made = by_value(lambda x: x, tmp_path)
    Path(made.function_path or "").write_bytes(data)
    report = ran(made)
    assert "NotSerializable" in failed(report).type
    assert not report.retryable


def test_code_that_leaves_the_process_when_unpickled_fails_the_call(tmp_path: Path) -> None:
    """Unpickling runs the user's code as well."""

    class Leaves:
        def __reduce__(self) -> tuple[object, ...]:
            return (sys.exit, (3,))

    made = by_value(lambda x: x, tmp_path)
    Path(made.function_path or "").write_bytes(CLOUDPICKLE.dumps(Leaves()).data)
    assert failed(ran(made)).message


# Exceptions.

RAISED: dict[str, BaseException] = {
    "an error": ValueError("no"),
    "the user's": OnlyHere("no"),
    "the end of the process": SystemExit(3),
    "an interrupt": KeyboardInterrupt(),
    "a cancellation of its own": asyncio.CancelledError(),
    "the end of a generator": GeneratorExit(),
    "the end of an iterator": StopIteration(3),
    "the end of an async iterator": StopAsyncIteration(),
    "lone surrogates": ValueError("caf\udce9"),
    "a huge one": ValueError("x" * 5_000_000),
    "a group": ExceptionGroup("g", [ValueError("one")]),
    "an error of ours": JobQError("ours"),
}


@pytest.mark.parametrize("task", [throw, slowly_throw], ids=["plain", "on a loop"])
@pytest.mark.parametrize("name", RAISED)
def test_whatever_is_raised_becomes_a_report(name: str, task: Any) -> None:
    """Even what would end the process, and on a loop as well as on a thread."""
    report = ran(job(task, RAISED[name]))
    failure = failed(report)
    assert failure.cause is Cause.RAISED
    assert failure.traceback
    outcome = Outcome(CALL.id, 1, State.FAILED, "f" * 16, failure=failure)
    assert exception_of(outcome) is not None


def test_errors_are_retryable_and_ends_are_not() -> None:
    """By default an Exception earns a retry, what means to leave the process does not."""
    assert ran(job(throw, ValueError())).retryable
    assert ran(job(throw, ExceptionGroup("g", [ValueError()]))).retryable
    assert not ran(job(throw, SystemExit())).retryable
    assert not ran(job(throw, KeyboardInterrupt())).retryable
    assert not ran(job(slowly_throw, asyncio.CancelledError())).retryable


def test_retry_on_is_asked_where_the_task_is() -> None:
    """The classes of the policy stay with the function."""
    assert ran(job(throw_system, FileNotFoundError())).retryable
    assert not ran(job(throw_system, ValueError())).retryable


def test_the_policy_of_a_function_by_value_travels_with_it(tmp_path: Path) -> None:
    """As do its classes, by value if need be."""

    class Local(Exception):
        pass

    def fail(_: int) -> None:
        raise Local

    assert ran(by_value(fail, tmp_path, RetryPolicy(retry_on=(Local,)))).retryable
    assert not ran(by_value(fail, tmp_path, RetryPolicy(retry_on=(OSError,)))).retryable


@pytest.mark.parametrize(
    ("delay", "seconds"), [(None, None), (0, 0), (2.5, 2.5), (7, 7), (timedelta(minutes=1), 60), (86_400 * 30, 86_400 * 30)]
)
def test_a_task_may_ask_for_another_attempt(delay: Any, seconds: float | None) -> None:
    """At once, later, or after the backoff of its policy."""
    report = ran(job(ask_again, delay))
    assert report.retryable
    assert report.delay_seconds == seconds


@pytest.mark.parametrize("delay", [-1, -0.5, math.nan, math.inf, -math.inf, 1e300, "5", b"5", [], object], ids=repr)
def test_a_retry_with_an_impossible_delay_is_still_a_report(delay: Any) -> None:
    """A wrong delay is the task's error, and told; it neither hangs nor kills anything."""
    report = ran(job(ask_again, delay))
    assert failed(report).type != ""
    assert report.delay_seconds is None


def test_a_delay_that_was_changed_afterwards_is_still_a_report() -> None:
    """`Retry` is an object of the user's once it is made."""
    exc = Retry(1)
    exc.delay_seconds = -5  # type: ignore[assignment]  # as anybody may
    assert failed(ran(job(throw, exc)))


def test_a_retry_says_why() -> None:
    """If no attempt is left, what made the task ask is what its caller sees."""
    report = ran(job(ask_again_because))
    assert report.delay_seconds == 5
    assert failed(report).type.endswith("OnlyHere")
    assert failed(report).message == "the reason"


# What a call knows of itself.


@pytest.mark.parametrize("task", [who, slowly_who], ids=["plain", "on a loop"])
def test_a_call_knows_itself(task: Any) -> None:
    """Id, run, attempt, task, queue, worker, root, and its deadline if it has a timeout."""
    made = job(task)
    call = replace(made.call, run=2, errors=1, deaths=2, root="abcdefgh234567ab-000000000001", timeout_seconds=60.0)
    report = ran(replace(made, call=call))
    found = CLOUDPICKLE.loads(report.value or b"")
    assert (found.id, found.run, found.attempt, found.task) == (call.id, 2, 4, task.name)
    assert (found.queue, found.worker, found.root) == ("default", "w1", "abcdefgh234567ab-000000000001")
    assert found.deadline is not None
    assert CLOUDPICKLE.loads(ran(made).value or b"").deadline is None


def test_calls_side_by_side_each_know_themselves() -> None:
    """On one loop, many at a time."""

    async def side_by_side() -> list[RunningCall]:
        here, made = execution(), job(slowly_who)
        jobs = [replace(made, number=n, call=replace(made.call, deaths=n)) for n in range(20)]
        return [CLOUDPICKLE.loads(report.value or b"") for report in await asyncio.gather(*map(here.arun, jobs))]

    assert [call.attempt for call in asyncio.run(side_by_side())] == list(range(1, 21))


def test_a_cancelled_call_ends_at_once() -> None:
    """A coroutine that the supervisor cancels ends, and the others on its loop go on."""

    async def scenario() -> tuple[object, Report]:
        here = execution()
        waiting = asyncio.create_task(here.arun(job(wait_for_ever)))
        other = asyncio.create_task(here.arun(job(slowly_add, 1, 2)))
        await asyncio.sleep(0)
        waiting.cancel()
        (ending,) = await asyncio.gather(waiting, return_exceptions=True)
        return ending, await other

    ending, other = asyncio.run(scenario())
    assert isinstance(ending, asyncio.CancelledError) or (isinstance(ending, Report) and ending.kind is Kind.RAISED)
    assert other.kind is Kind.RETURNED


def test_no_call_is_current_between_calls() -> None:
    """However a call ended, code that runs after it is in no call."""
    here = execution()
    assert here.run(job(throw, ValueError())).kind is Kind.RAISED
    assert current_or_none() is None
    assert here.run(job(add, 1, 1)).kind is Kind.RETURNED
    assert current_or_none() is None
