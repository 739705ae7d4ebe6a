"""Whatever a task raises becomes a record of bounded size, and comes out at the caller as that exception or as TaskFailed."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import (
    CallCancelled,
    CallError,
    CallExpired,
    CallRefused,
    CallTimedOut,
    JobQError,
    TaskFailed,
    Unfit,
    WorkerDied,
)
from ai4s.jobq.failures import MAX_EXCEPTION_BYTES, RemoteTraceback, exception_of, failure_of
from ai4s.jobq.message import Cause, Failure, Outcome, State
from ai4s.jobq.wire import Wire

CLOUDPICKLE, MSGPACK = codec_named("cloudpickle"), codec_named("msgpack")
MAX_RECORD_BYTES = 512 * 1024
ENDED = Outcome(
    call="abcdefgh234567ab-000000000007",
    run=1,
    state=State.FAILED,
    token="t",
    task="proj.f",
    queue="default",
    attempts=3,
    worker="w1",
)


def raised(exc: BaseException) -> BaseException:
    """The exception as it is after it was raised and caught."""
    try:
        raise exc
    except BaseException as caught:  # noqa: BLE001  # whatever it is
        return caught


def ended(failure: Failure, codec: str = "cloudpickle") -> Outcome:
    """A failed outcome, through its bytes."""
    wire, outcome = Wire("proj"), replace(ENDED, failure=failure, codec=codec)
    return wire.unseal_outcome(wire.seal_outcome(outcome), outcome.call, outcome.run)


def told(exc: BaseException, codec: Any = CLOUDPICKLE) -> BaseException:
    """What the caller of a task gets that raised this."""
    found = exception_of(ended(failure_of(raised(exc), codec), codec.name))
    assert found is not None
    return found


# Exceptions of all kinds.


class StrRaises(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class StrLeaves(Exception):
    """Its text ends the process."""

    def __str__(self) -> str:
        raise SystemExit(3)


class StrIsNone(Exception):
    """Its `str` is not even a text."""

    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # noqa: PLE0307  # that is the point


class TwoArguments(Exception):
    """Cannot be rebuilt from its args: the constructor wants what they do not hold."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


class LeavesOnUnpickle(Exception):
    """Ends the process when it is rebuilt."""

    def __reduce__(self) -> tuple[object, ...]:
        return (sys.exit, (4,))


class RaisesOursWhenPickled(Exception):
    """Holds something of ours that cannot be pickled here."""

    def __reduce__(self) -> tuple[object, ...]:
        raise JobQError("the place is not known")


class BecomesAnother(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> tuple[object, ...]:
        return (ValueError, ("another",))


class BecomesText(Exception):
    """Comes back as no exception at all."""

    def __reduce__(self) -> tuple[object, ...]:
        return (str, ("no exception",))


class HoldsALock(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class Huge(Exception):
    """A hundred megabytes."""

    def __init__(self) -> None:
        super().__init__("x" * 100_000_000)

    def __reduce__(self) -> tuple[object, ...]:
        return (Huge, ())


@dataclass(frozen=True, slots=True)
class Frozen(Exception):
    """Takes no attributes once it is made."""

    code: int


class Fine(Exception):
    """An ordinary exception of the user's."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.extra = {"code": code}


def named_at_length() -> Exception:
    """An exception whose class has a name of ten million characters."""
    return type("X" * 10**7, (Exception,), {})()


def with_note(note: object) -> Exception:
    """An exception with a note that is not a text."""
    exc = ValueError("noted")
    exc.__notes__ = [note] if note is not None else None
    return exc


def chained(n: int) -> Exception:
    """An exception with n causes before it."""
    exc: Exception = ValueError("the first")
    for i in range(n):
        later = ValueError(f"number {i}")
        later.__cause__, exc = exc, later
    return exc


def circular() -> Exception:
    """Two exceptions that cause each other."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


HARD: dict[str, BaseException] = {
    "plain": ValueError("plain"),
    "without text": ValueError(),
    "str raises": StrRaises(),
    "str leaves the process": StrLeaves(),
    "str is no text": StrIsNone(),
    "cannot be pickled": HoldsALock(),
    "cannot be rebuilt": TwoArguments("here", "this"),
    "leaves when rebuilt": LeavesOnUnpickle(),
    "ours when pickled": RaisesOursWhenPickled(),
    "becomes another": BecomesAnother(),
    "becomes a text": BecomesText(),
    "frozen": Frozen(3),
    "lone surrogates": ValueError("caf\udce9"),
    "control characters": ValueError("\x1b[2J\x00\r\n"),
    "a huge text": ValueError("x" * 10_000_000),
    "a huge name": named_at_length(),
    "a note that is no text": with_note(3),
    "a note whose str raises": with_note(StrRaises()),
    "notes that are no list": with_note(None),
    "a hundred causes": chained(100),
    "causes in a circle": circular(),
    "a group": ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [StrRaises(), TwoArguments("a", "b")])]),
    "a wide group": ExceptionGroup("many", [ValueError(str(i)) for i in range(2_000)]),
    "the end of the process": SystemExit(5),
    "an interrupt": KeyboardInterrupt(),
    "a generator's end": GeneratorExit(),
    "a system's error": FileNotFoundError(2, "No such file", "a\udce9b"),
    "a wrong decoding": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "a KeyError of bytes": KeyError(b"\xff"),
    "local": type("Local", (Exception,), {})("local"),
}


@pytest.mark.parametrize("codec", [CLOUDPICKLE, MSGPACK], ids=["cloudpickle", "msgpack"])
@pytest.mark.parametrize("name", HARD)
def test_every_exception_becomes_a_record(name: str, codec: Any) -> None:
    """Whatever an exception does in str, repr or pickling, a record of bounded size comes out that can be stored and read."""
    failure = failure_of(raised(HARD[name]), codec)
    assert failure.cause is Cause.RAISED
    assert failure.type
    assert failure.traceback
    outcome = ended(failure, codec.name)
    assert outcome.failure == failure
    assert len(Wire("proj").seal_outcome(outcome)) < MAX_RECORD_BYTES
    assert len(msgpack.packb([failure.type, failure.message, failure.traceback])) < MAX_RECORD_BYTES


@pytest.mark.parametrize("codec", [CLOUDPICKLE, MSGPACK], ids=["cloudpickle", "msgpack"])
@pytest.mark.parametrize("name", HARD)
def test_every_record_becomes_an_exception(name: str, codec: Any) -> None:
    """The caller gets the task's exception or a CallError, with the remote traceback as its cause, and never an error of ours."""
    exc = told(HARD[name], codec)
    assert isinstance(exc, (type(HARD[name]), TaskFailed))
    assert isinstance(exc.__cause__, RemoteTraceback)
    assert "Traceback" in str(exc.__cause__) or "cannot be shown" in str(exc.__cause__)


@pytest.mark.parametrize("name", ["the end of the process", "an interrupt", "a generator's end"])
def test_what_would_end_the_caller_comes_as_task_failed(name: str) -> None:
    """A task that called sys.exit() has failed; raising SystemExit (or a cancellation) again would end the program that waits."""
    assert isinstance(told(HARD[name]), TaskFailed)


def test_an_ordinary_exception_comes_back_as_it_was() -> None:
    """Type, arguments and attributes survive."""
    exc = told(Fine(7))
    assert type(exc) is Fine
    assert exc.args == (7,)
    assert exc.extra == {"code": 7}


def test_a_group_comes_back_with_what_is_in_it() -> None:
    """An exception group is rebuilt whole."""
    exc = told(ExceptionGroup("both", [ValueError("one"), Fine(2)]))
    assert isinstance(exc, ExceptionGroup)
    assert [type(each) for each in exc.exceptions] == [ValueError, Fine]


def test_a_frozen_exception_is_raised_with_its_remote_traceback() -> None:
    """An exception that refuses attributes still gets its cause, or becomes TaskFailed; setting it breaks nothing."""
    exc = told(Frozen(3))
    assert isinstance(exc, (Frozen, TaskFailed))
    assert isinstance(exc.__cause__, RemoteTraceback)


@pytest.mark.parametrize(
    "name", ["cannot be pickled", "cannot be rebuilt", "ours when pickled", "becomes another", "becomes a text"]
)
def test_what_cannot_be_rebuilt_is_told_as_text(name: str) -> None:
    """TaskFailed says which call of which task failed, after how many attempts, and how."""
    exc = told(HARD[name])
    assert isinstance(exc, TaskFailed)
    assert (exc.call_id, exc.attempts, exc.worker) == (ENDED.call, 3, "w1")
    for part in (ENDED.call, "proj.f", "3 attempt", type(HARD[name]).__name__):
        assert part in str(exc)


def test_a_huge_exception_is_not_kept() -> None:
    """An exception whose pickle is large is told as text."""
    failure = failure_of(raised(ValueError("x" * (MAX_EXCEPTION_BYTES + 1))), CLOUDPICKLE)
    assert failure.exception is None
    assert len(failure.message) <= 4_000


@pytest.mark.parametrize("name", ["lone surrogates", "a system's error"])
def test_text_that_is_no_unicode_still_travels(name: str) -> None:
    """File names may hold bytes that are no text; an error that quotes one reaches its caller."""
    failure = failure_of(raised(HARD[name]), MSGPACK)
    assert "caf" in failure.message or "No such file" in failure.message
    msgpack.packb([failure.type, failure.message, failure.traceback])


def test_msgpack_keeps_no_pickle() -> None:
    """With the safe codec an exception is text and nothing else."""
    failure = failure_of(raised(ValueError("plain")), MSGPACK)
    assert failure.exception is None
    exc = exception_of(ended(failure, "msgpack"))
    assert type(exc) is TaskFailed
    assert "ValueError: plain" in str(exc)


def test_msgpack_loads_no_pickle(tmp_path: Path) -> None:
    """A pickle in an outcome whose codec is the safe one is never loaded, whoever put it there."""
    canary = tmp_path / "canary"

    class Canary:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (canary,))

    failure = Failure(Cause.RAISED, "ValueError", "x", exception=CLOUDPICKLE.dumps(Canary()).data)
    assert type(exception_of(ended(failure, "msgpack"))) is TaskFailed
    assert not canary.exists()


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x80\x05K\x01."], ids=["empty", "garbage", "a number"])
def test_a_damaged_exception_is_told_as_text(data: bytes) -> None:
    """Bytes that are no pickle, or the pickle of something else, do no harm."""
    assert type(exception_of(ended(Failure(Cause.RAISED, "E", "x", exception=data)))) is TaskFailed


def test_an_outcome_of_a_later_codec_is_unfit() -> None:
    """A codec that this version does not know is said to be that, and not the user's mistake."""
    with pytest.raises(Unfit):
        exception_of(ended(Failure(Cause.RAISED, "E", "x", exception=b"x"), "zstd-pickle"))


# Tracebacks.


def test_the_traceback_shows_the_users_frames_and_none_of_ours() -> None:
    """Frames of this package at the beginning of a traceback are left out; the line that raised is there."""
    program = """
from ai4s.jobq.codec import codec_named
from ai4s.jobq.failures import failure_of
ours = {"__name__": "ai4s.jobq.worker.execution"}
exec(compile("def run(f):\\n    f()", "execution.py", "exec"), ours)
def deep(): raise ValueError("here")
def task(): deep()
try:
    ours["run"](task)
except ValueError as exc:
    exc.__traceback__ = exc.__traceback__.tb_next  # as it is in the worker, where the first frame is ours
    print(failure_of(exc, codec_named("msgpack")).traceback)
"""
    text = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True).stdout
    assert "execution.py" not in text
    assert "in task" in text
    assert "in deep" in text
    assert text.rstrip().endswith("ValueError: here")


def test_an_error_in_our_own_code_still_has_a_traceback() -> None:
    """If all frames are ours, they are shown: better than none."""
    with pytest.raises(ValueError, match="nonsense") as caught:
        codec_named("nonsense")
    assert caught.value.__traceback__ is not None
    ours_alone = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    assert "codec_named" in failure_of(ours_alone, MSGPACK).traceback


def test_notes_and_causes_are_in_the_traceback() -> None:
    """What was added with add_note, and what an exception came from, reach the caller as text."""
    exc = ValueError("outer")
    exc.__cause__ = KeyError("inner")
    exc.add_note("look here")
    text = failure_of(raised(exc), MSGPACK).traceback
    assert "look here" in text
    assert "KeyError: 'inner'" in text


def test_notes_come_back_with_the_exception() -> None:
    """Notes are part of an exception, and survive with it."""
    exc = ValueError("noted")
    exc.add_note("look here")
    assert told(exc).__notes__ == ["look here"]


def test_a_long_traceback_is_cut_in_the_middle() -> None:
    """Both ends of a long traceback are kept: where it began and what it came to."""

    def dive(n: int) -> None:
        exec(compile(f"def f{n}(go): go()", f"file{n}.py", "exec"), scope := {})  # a frame of its own for each level
        scope[f"f{n}"](lambda: dive(n - 1) if n else 1 / 0)  # type: ignore[index]

    try:
        dive(250)
    except ZeroDivisionError as exc:
        text = failure_of(exc, MSGPACK).traceback
    assert len(text) < 33_000
    assert "in dive" in text[:1_000]
    assert "cut" in text
    assert text.rstrip().endswith("ZeroDivisionError: division by zero")


def test_what_the_caller_sees_ends_with_the_remote_traceback_first() -> None:
    """Printed, the chain shows the remote traceback and then the exception, as if the line had been here."""
    exc = told(ValueError("boom"))
    shown = "".join(traceback.format_exception(exc))
    assert shown.index("in raised") < shown.index("direct cause") < shown.rindex("ValueError: boom")


# Outcomes that are no exception of the task's.


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (Cause.RAISED, TaskFailed),
        (Cause.TIMED_OUT, CallTimedOut),
        (Cause.DIED, WorkerDied),
        (Cause.REFUSED, CallRefused),
        (Cause.NEVER_FITS, WorkerDied),
    ],
)
def test_each_cause_has_its_error(cause: Cause, kind: type[CallError]) -> None:
    """Why a run failed decides what `result()` raises; no cause is without an error."""
    exc = exception_of(ended(Failure(cause, "", "because")))
    assert type(exc) is kind
    assert "because" in str(exc)


@pytest.mark.parametrize(("state", "kind"), [(State.CANCELLED, CallCancelled), (State.EXPIRED, CallExpired)])
def test_each_state_has_its_error(state: State, kind: type[CallError]) -> None:
    """A call that was cancelled or expired says so, with its id."""
    exc = exception_of(replace(ENDED, state=state))
    assert type(exc) is kind
    assert ENDED.call in str(exc)


def test_a_success_has_no_error() -> None:
    """A success raises nothing."""
    assert exception_of(replace(ENDED, state=State.SUCCEEDED)) is None


def test_a_failed_outcome_without_a_failure_is_task_failed() -> None:
    """A damaged outcome still tells that the call failed."""
    assert type(exception_of(ENDED)) is TaskFailed
