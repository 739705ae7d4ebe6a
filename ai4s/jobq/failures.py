"""Exceptions to records and back: what a caller is told about a run that did not succeed.

A record always has the type, text and traceback as text; the encoded exception only where the codec takes it and it
survives a round trip, and holds no secret that the text is not to show. Whatever the user's exception does in `str`, `repr`
or pickling, a record comes out, of bounded size.

Next: `handle.py`, which raises what is made here.
"""

from __future__ import annotations

import traceback
from types import TracebackType

from .codec import Codec, codec_of
from .errors import (
    CallCancelled,
    CallError,
    CallExpired,
    CallRefused,
    CallTimedOut,
    CommandFailed,
    NotSerializable,
    TaskFailed,
    WorkerDied,
)
from .message import Cause, Failure, Outcome, State
from .printable import describe, has_secret, kind, redacted, storable

MAX_TYPE_CHARS = 200
MAX_TRACEBACK_CHARS = 32_000
MAX_EXCEPTION_BYTES = 72 * 1024
"""Room for the output of a command that failed, and what is said about it."""

_ERRORS: dict[Cause, type[CallError]] = {
    Cause.RAISED: TaskFailed,
    Cause.TIMED_OUT: CallTimedOut,
    Cause.DIED: WorkerDied,
    Cause.REFUSED: CallRefused,
    Cause.NEVER_FITS: WorkerDied,
}


class RemoteTraceback(Exception):
    """The traceback of another process; it stands as the cause of the exception that it belongs to."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def failure_of(exc: BaseException, codec: Codec) -> Failure:
    """What to keep of an exception that a task raised."""
    return Failure(
        cause=Cause.RAISED,
        type=kind(exc)[:MAX_TYPE_CHARS],
        message=describe(exc),
        # Of a command there is none that could be of interest: its own is in its output.
        traceback="" if isinstance(exc, CommandFailed) else _traceback(exc),
        exception=_encoded(exc, codec) if isinstance(exc, codec.errors) else None,
    )


def _traceback(exc: BaseException) -> str:
    try:
        lines = traceback.format_exception(type(exc), exc, _without_our_frames(exc))
    except Exception as oops:  # noqa: BLE001  # a note or a cause may be any object of the user's
        lines = [f"(its traceback cannot be shown: {type(oops).__name__})\n", *traceback.format_tb(exc.__traceback__)]
    return _cut(storable("".join(lines)))


def _cut(text: str) -> str:
    """`text` without its secrets, and without its middle if it is long."""
    if len(text) <= MAX_TRACEBACK_CHARS:
        return redacted(text)
    half = MAX_TRACEBACK_CHARS // 2
    # Not all of it is looked through, which may be 100 MB; so the end begins with a whole line, lest it begin amid a secret.
    return f"{redacted(text[:half])}\n… cut …\n{redacted(text[-half:].partition(chr(10))[2])}"


def _without_our_frames(exc: BaseException) -> TracebackType | None:
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("ai4s.jobq."):
        frames = frames.tb_next
    return frames or exc.__traceback__


def _encoded(exc: BaseException, codec: Codec) -> bytes | None:
    try:
        data = codec.dumps(exc).data
        if len(data) > MAX_EXCEPTION_BYTES or _tells(exc, data, codec) or type(codec.loads(data)) is not type(exc):
            return None
    except NotSerializable:
        return None
    return data


def _tells(exc: BaseException, data: bytes, codec: Codec) -> bool:
    """Whether a secret would travel in the pickle: as text in it, or in what its arguments and fields look like.

    Rebuilt without it, it would be another exception; so the caller gets TaskFailed, with the text that may be shown.
    """
    if isinstance(exc, CommandFailed) and not codec.allows_pickle:
        # All that travels is known here, and looked at text by text: side by side, two harmless ones may look like a secret.
        return has_secret(str(exc)) or has_secret(exc.output)
    try:
        return has_secret(data) or has_secret(f"{exc.args!r} {vars(exc)!r}")
    except BaseException:  # noqa: BLE001  # repr is user code
        return False


def exception_of(outcome: Outcome) -> BaseException | None:
    """What `result()` raises for this outcome, or None for a success."""
    if outcome.state is State.SUCCEEDED:
        return None
    if outcome.state is State.CANCELLED:
        return _call_error(CallCancelled, outcome, f"Call {outcome.call} was cancelled.")
    if outcome.state is State.EXPIRED:
        return _call_error(CallExpired, outcome, f"Call {outcome.call} of {outcome.task} expired before a worker took it.")
    failure = outcome.failure or Failure(Cause.RAISED, "", "The outcome does not say why.")
    exc = _rebuilt(failure, outcome.codec) or _call_error(_ERRORS[failure.cause], outcome, _sentence(outcome, failure))
    if failure.traceback:
        # Not by plain assignment: the class may forbid it, as a frozen dataclass does.
        BaseException.__setattr__(exc, "__cause__", RemoteTraceback(failure.traceback))
    return exc


def _rebuilt(failure: Failure, codec_name: str) -> BaseException | None:
    codec = codec_of(codec_name)
    if failure.exception is None or not codec.errors:
        return None
    try:
        exc = codec.loads(failure.exception)
    except NotSerializable:
        return None
    # What is no Exception (SystemExit, KeyboardInterrupt, CancelledError) would end the caller rather than inform it.
    return exc if isinstance(exc, Exception) else None


def _call_error(error: type[CallError], outcome: Outcome, message: str) -> CallError:
    return error(message, call_id=outcome.call, attempts=outcome.attempts, worker=outcome.worker)


def _sentence(outcome: Outcome, failure: Failure) -> str:
    what = f"{failure.type}: {failure.message}" if failure.type else failure.message
    return f"Call {outcome.call} of {outcome.task} failed after {outcome.attempts} attempt(s): {what}"
