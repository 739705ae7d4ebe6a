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
    from .blobs.blobs import Blobs
    from .cost.costs import Cost
    from .errors import (
        AccessDenied,
        BatchConflict,
        CallCancelled,
        CallError,
        CallExpired,
        CallRefused,
        CallTimedOut,
        CommandFailed,
        ConfigurationError,
        DeclarationError,
        HandleAsArgument,
        JobQError,
        KeyConflict,
        MapInterrupted,
        NotFinished,
        NotSerializable,
        ProcessDied,
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
    from .log_lines import LogLine
    from .maps.batch import Batch
    from .maps.fed import Fed
    from .maps.outcomes import Outcome
    from .maps.progress import Progress
    from .maps.tally import BatchTally
    from .message import Backoff, State
    from .named_task import task_named
    from .process_work import run_in_process
    from .running import current, preempted
    from .shell_result import ShellResult
    from .stored import Stored
    from .task import Task

_HOMES = {
    "app": ("App",),
    "maps.batch": ("Batch",),
    "maps.tally": ("BatchTally",),
    "cost.costs": ("Cost",),
    "blobs.blobs": ("Blobs",),
    "log_lines": ("LogLine",),
    "maps.outcomes": ("Outcome",),
    "process_work": ("run_in_process",),
    "maps.progress": ("Progress",),
    "running": ("current", "preempted"),
    "errors": (
        "AccessDenied",
        "BatchConflict",
        "CallCancelled",
        "CallError",
        "CallExpired",
        "CallRefused",
        "CallTimedOut",
        "CommandFailed",
        "ConfigurationError",
        "DeclarationError",
        "HandleAsArgument",
        "JobQError",
        "KeyConflict",
        "MapInterrupted",
        "NotFinished",
        "NotSerializable",
        "ProcessDied",
        "ResultGone",
        "ResultTimeout",
        "Retry",
        "TaskFailed",
        "Unreachable",
        "WorkerDied",
        "WouldDeadlock",
    ),
    "maps.fed": ("Fed",),
    "gathering": ("agather", "as_completed", "await_", "gather", "wait"),
    "handle": ("Handle",),
    "message": ("Backoff", "State"),
    "named_task": ("task_named",),
    "shell_result": ("ShellResult",),
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
    "BatchTally",
    "Blobs",
    "CallCancelled",
    "CallError",
    "CallExpired",
    "CallRefused",
    "CallTimedOut",
    "CommandFailed",
    "ConfigurationError",
    "Cost",
    "DeclarationError",
    "Fed",
    "Handle",
    "HandleAsArgument",
    "JobQError",
    "KeyConflict",
    "LogLine",
    "MapInterrupted",
    "NotFinished",
    "NotSerializable",
    "Outcome",
    "ProcessDied",
    "Progress",
    "ResultGone",
    "ResultTimeout",
    "Retry",
    "ShellResult",
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
    "run_in_process",
    "task_named",
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
