"""Run a great many Python calls on cheap machines that may vanish, with nothing but an Azure storage account.

The public names, resolved when they are first used: importing this package loads no SDK.

Next: `app.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .app import App
    from .batch import Batch
    from .errors import (
        AccessDenied,
        BatchConflict,
        CallCancelled,
        CallError,
        CallExpired,
        CallRefused,
        CallTimedOut,
        ConfigurationError,
        DeclarationError,
        HandleAsArgument,
        JobQError,
        KeyConflict,
        MapInterrupted,
        NotFinished,
        NotSerializable,
        ResultGone,
        ResultTimeout,
        Retry,
        TaskFailed,
        Unreachable,
        WorkerDied,
        WouldDeadlock,
    )
    from .gathering import agather, as_completed, await_, gather, wait
    from .handle import Handle
    from .message import Backoff, State
    from .outcomes import Outcome
    from .progress import Progress
    from .running import current, preempted
    from .stored import Stored
    from .task import Task

_HOMES = {
    "app": ("App",),
    "batch": ("Batch",),
    "outcomes": ("Outcome",),
    "progress": ("Progress",),
    "running": ("current", "preempted"),
    "errors": (
        "AccessDenied",
        "BatchConflict",
        "CallCancelled",
        "CallError",
        "CallExpired",
        "CallRefused",
        "CallTimedOut",
        "ConfigurationError",
        "DeclarationError",
        "HandleAsArgument",
        "JobQError",
        "KeyConflict",
        "MapInterrupted",
        "NotFinished",
        "NotSerializable",
        "ResultGone",
        "ResultTimeout",
        "Retry",
        "TaskFailed",
        "Unreachable",
        "WorkerDied",
        "WouldDeadlock",
    ),
    "gathering": ("agather", "as_completed", "await_", "gather", "wait"),
    "handle": ("Handle",),
    "message": ("Backoff", "State"),
    "stored": ("Stored",),
    "task": ("Task",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AccessDenied",
    "App",
    "Backoff",
    "Batch",
    "BatchConflict",
    "CallCancelled",
    "CallError",
    "CallExpired",
    "CallRefused",
    "CallTimedOut",
    "ConfigurationError",
    "DeclarationError",
    "Handle",
    "HandleAsArgument",
    "JobQError",
    "KeyConflict",
    "MapInterrupted",
    "NotFinished",
    "NotSerializable",
    "Outcome",
    "Progress",
    "ResultGone",
    "ResultTimeout",
    "Retry",
    "State",
    "Stored",
    "Task",
    "TaskFailed",
    "Unreachable",
    "WorkerDied",
    "WouldDeadlock",
    "__version__",
    "agather",
    "as_completed",
    "await_",
    "current",
    "gather",
    "preempted",
    "wait",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
