"""Every error that this project raises, as one tree under `JobQError`.

    JobQError
    ├── DeclarationError          a task, app or option that cannot be (also a ValueError)
    ├── ConfigurationError        a place, key or setting that cannot be used (also a ValueError)
    ├── NotSerializable           an argument or result that the codec refuses (also a TypeError)
    ├── HandleAsArgument          a handle where a value belongs (also a TypeError)
    ├── WouldDeadlock             a task waits for another call's result
    ├── KeyConflict               a key that was used with other arguments
    ├── BatchConflict             a batch's name that was used for something else
    ├── MapInterrupted            the source of a map raised; carries the batch of what was submitted
    ├── NotFinished               forget() of a call that has no outcome yet
    ├── ResultTimeout             a wait that ran out (also a TimeoutError)
    ├── ProcessDied               a process of `run_in_process` ended before its function did
    ├── CommandFailed             a shell command ended with another exit code than 0; carries it, and the end of the output
    ├── CallError                 a call ended without a value; carries id, attempts, worker
    │   ├── TaskFailed            its exception could not be rebuilt here
    │   ├── WorkerDied            its process died too often
    │   ├── CallTimedOut          it ran longer than its timeout
    │   ├── CallExpired           nobody took it before it expired
    │   ├── CallCancelled         somebody cancelled it
    │   ├── CallRefused           its message could not be run by any worker
    │   └── ResultGone            its outcome was forgotten
    ├── MessageError              what lies in storage cannot be read
    │   ├── Malformed             not in our format, or damaged
    │   ├── SignatureInvalid      unsigned or wrongly signed where a key is configured
    │   └── Unfit                 sound, but not for this process (later version, unknown task, …)
    └── TransportError            the storage said no, or nothing
        ├── Unreachable           no answer, or a passing fault; `maybe_done` says if it may have happened
        ├── AccessDenied          401 or 403
        ├── NotFound              no such blob, queue or container
        ├── AlreadyExists         put-if-absent found something
        ├── ConditionFailed       If-Match found something else
        ├── LeaseLost             the receipt no longer holds the message
        └── PlaceTaken            the queue or container belongs to another app

A class's docstring is its default message. `Retry` is no error: a task raises it to ask for another attempt.
"""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any


class JobQError(Exception):
    """Something in ai4s.jobq went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))


class DeclarationError(JobQError, ValueError):
    """This app, task or option cannot be declared."""


class ConfigurationError(JobQError, ValueError):
    """This place, key or setting cannot be used."""


class NotSerializable(JobQError, TypeError):
    """The codec cannot turn this value into bytes, or back."""


class HandleAsArgument(JobQError, TypeError):
    """A handle is not an argument: pass handle.result(), or the value itself."""


class WouldDeadlock(JobQError, RuntimeError):
    """A task must not wait for another call: its slot would be blocked for the call that it waits for."""


class KeyConflict(JobQError):
    """This key was used before with other arguments."""


class BatchConflict(JobQError):
    """This name of a batch was used before, for something else."""


class MapInterrupted(JobQError):
    """Submitting a batch was interrupted."""

    def __init__(self, message: str | None = None, *, batch: Any = None) -> None:
        super().__init__(message)
        self.batch = batch
        """The batch of all calls that were submitted before."""


class NotFinished(JobQError):
    """The call has no outcome yet: wait for it, or cancel it first."""


class ResultTimeout(JobQError, TimeoutError):
    """No outcome within the time given; the call goes on."""


class ProcessDied(JobQError):
    """The process that ran a function for run_in_process ended without an answer."""


class CommandFailed(JobQError):
    """A shell command failed."""

    def __init__(self, message: str | None = None, *, exit_code: int = 1, output: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """As bash says it: 128 and the signal's number for one that a signal ended."""
        self.output = output
        """The end of what it wrote to stdout and stderr, without the secrets that are known to be some."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_command_failed, (str(self), self.exit_code, self.output))


def _rebuild_command_failed(message: str, exit_code: int, output: str) -> CommandFailed:
    return CommandFailed(message, exit_code=exit_code, output=output)


class CallError(JobQError):
    """The call ended without a value."""

    def __init__(self, message: str | None = None, *, call_id: str = "", attempts: int = 0, worker: str = "") -> None:
        super().__init__(message)
        self.call_id = call_id
        self.attempts = attempts
        self.worker = worker

    def __reduce__(self) -> tuple[object, ...]:
        fields = {"call_id": self.call_id, "attempts": self.attempts, "worker": self.worker}
        return (_rebuild_call_error, (type(self), str(self), fields))


def _rebuild_call_error(kind: type[CallError], message: str, fields: dict[str, Any]) -> CallError:
    return kind(message, **fields)


class TaskFailed(CallError):
    """The task raised an exception that cannot be rebuilt here."""


class WorkerDied(CallError):
    """The process that ran the call died, too often to try again."""


class CallTimedOut(CallError):
    """The call ran longer than its timeout."""


class CallExpired(CallError):
    """The call expired before a worker took it."""


class CallCancelled(CallError):
    """The call was cancelled."""


class CallRefused(CallError):
    """No worker could run the call's message."""


class ResultGone(CallError):
    """The call's outcome was forgotten or removed."""


class MessageError(JobQError):
    """What lies in storage cannot be read."""


class Malformed(MessageError):
    """The bytes are not in our format, or are damaged."""


class SignatureInvalid(MessageError):
    """A key is configured, and these bytes are not signed with it."""


class Unfit(MessageError):
    """The message is sound, but not for this process."""


class TransportError(JobQError):
    """The storage did not do as asked."""


class Unreachable(TransportError):
    """The storage gave no answer, or a passing fault."""

    def __init__(self, message: str | None = None, *, maybe_done: bool = True) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class AccessDenied(TransportError):
    """The storage refused these credentials, or they lack a right."""

    def __init__(self, message: str | None = None, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown
        """Whether the credentials themselves were refused, rather than a right that they lack."""


class NotFound(TransportError):
    """There is no such blob, queue or container."""


class AlreadyExists(TransportError):
    """Something of this name is there already."""


class ConditionFailed(TransportError):
    """The blob has changed since it was read."""


class LeaseLost(TransportError):
    """The receipt no longer holds the message."""


class PlaceTaken(TransportError):
    """The queue or container belongs to another app."""


LONGEST_RETRY_SECONDS = 365 * 24 * 3600


class Retry(Exception):
    """Raised by a task to ask for another attempt, within its `retries`.

    Args:
        delay: seconds (or a timedelta) until the next attempt, 0 or more; None takes the task's backoff.

    Raises DeclarationError for any other delay.
    """

    def __init__(self, delay: float | timedelta | None = None) -> None:
        super().__init__(delay)
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        # Written so that NaN fails as well.
        if seconds is not None and not (isinstance(seconds, (int, float)) and 0 <= seconds <= LONGEST_RETRY_SECONDS):
            raise DeclarationError(
                f"Retry(delay=…) takes seconds from 0 to {LONGEST_RETRY_SECONDS}, or a timedelta; got {delay!r}."
            )
        self.delay_seconds = seconds
