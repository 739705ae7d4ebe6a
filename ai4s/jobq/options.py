"""What can be said about a task when it is declared, and about a call when it is made; checked as soon as it is said.

Next: `task.py`, which carries both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from . import layout
from .codec import Codec, codec_named
from .errors import DeclarationError
from .message import NO_NEEDS, SHELL_TASK, Pool, Resources
from .printable import storable
from .retry import LONGEST_SECONDS, RetryPolicy, retry_policy, whole_number
from .wire import MAX_PACK_CALLS

TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.<>@-]{0,199}")
MAX_KEY_LENGTH = 1024
LEAST_MEMORY_BYTES, MAX_MEMORY_BYTES = 1024**2, 1024**5
"""What a task may declare. Less than a MiB is a number of gigabytes that somebody took for the unit."""

MEMORY_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
EARLIEST, LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9998, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The declared options of a task, all checked. Seconds where a unit is due; None means no bound."""

    name: str | None
    policy: RetryPolicy
    timeout_seconds: float | None
    expires_seconds: float | None
    queue: str
    codec: Codec
    pool: Pool
    vector: int = 0
    """The longest list that the function takes; 0 for one item at a time."""

    resources: Resources = NO_NEEDS
    logs: bool | None = None


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What `options()` changes for the calls of one configured copy; None leaves what the task says.

    `eta` and `expires_at` are epoch seconds; `lifted` names what the task says ("timeout", "expires", "gpus", …) and does not hold.
    """

    countdown_seconds: float = 0
    eta: float | None = None
    expires_seconds: float | None = None
    expires_at: float | None = None
    queue: str | None = None
    retries: int | None = None
    timeout_seconds: float | None = None
    key: str | None = None
    rerun_failed: bool = False
    resources: Resources = NO_NEEDS
    logs: bool | None = None
    lifted: frozenset[str] = frozenset()


TASK_DEFAULTS: Mapping[str, Any] = {
    "name": None,
    "retries": 0,
    "retry_on": (Exception,),
    "backoff": RetryPolicy().backoff,
    "max_deaths": 3,
    "timeout": None,
    "expires": None,
    "queue": layout.DEFAULT_QUEUE,
    "codec": "cloudpickle",
    "pool": None,
    "vector": None,
    "gpus": None,
    "cpus": None,
    "memory": None,
    "logs": None,
}


class CallChanges(TypedDict, total=False):
    """What `options()` takes; see there."""

    countdown: float | timedelta
    eta: datetime | None
    expires: float | timedelta | datetime | None
    queue: str
    retries: int
    timeout: float | timedelta | None
    key: str | None
    rerun_failed: bool
    gpus: int | None
    cpus: int | None
    memory: int | str | None
    logs: bool | None


CALL_OPTIONS = tuple(CallChanges.__annotations__)


def task_options(app: str, given: Mapping[str, Any], *, is_async: bool) -> TaskOptions:
    """Check what a decorator was given; raises DeclarationError that says what would be right."""
    _refuse_unknown("task", given, tuple(TASK_DEFAULTS))
    said = {**TASK_DEFAULTS, **given}
    return TaskOptions(
        name=None if said["name"] is None else _task_name(said["name"]),
        policy=retry_policy(**{name: said[name] for name in ("retries", "retry_on", "backoff", "max_deaths")}),
        timeout_seconds=_seconds_or_none("timeout", said["timeout"]),
        expires_seconds=_seconds_or_none("expires", said["expires"]),
        queue=layout.check_queue_name(app, said["queue"]),
        codec=codec_named(said["codec"]),
        pool=_pool(said["pool"], is_async=is_async, has_timeout=said["timeout"] is not None),
        vector=_vector(said["vector"], is_async=is_async),
        resources=_needs(_gpus(said["gpus"]), _cpus(said["cpus"]), _memory_bytes(said["memory"])),
        logs=_flag_or_none("logs", said["logs"]),
    )


def call_options(app: str, base: CallOptions, given: Mapping[str, Any], pool: Pool) -> CallOptions:
    """`base` with what `options()` was given; raises DeclarationError that says what would be right."""
    _refuse_unknown("call", given, CALL_OPTIONS)
    made = base
    for name, value in given.items():
        lifted = (made.lifted - {name}) | ({name} if value is None else set())
        made = replace(_CALL_SETTERS[name](app, made, value), lifted=lifted)
    if made.eta is not None and made.countdown_seconds:
        raise DeclarationError("Give countdown (seconds from now) or eta (a moment), not both.")
    if made.rerun_failed and made.key is None:
        raise DeclarationError("rerun_failed goes with a key; a call without one is retried by app.dead_letters.retry(id).")
    if made.timeout_seconds is not None:
        _refuse_thread_timeout(pool, has_timeout=True)
    return made


def _set_expires(app: str, base: CallOptions, value: object) -> CallOptions:
    if isinstance(value, datetime):
        return replace(base, expires_at=_moment("expires", value), expires_seconds=None)
    return replace(base, expires_seconds=_seconds_or_none("expires", value), expires_at=None)


_CALL_SETTERS: Mapping[str, Callable[[str, CallOptions, Any], CallOptions]] = {
    "countdown": lambda app, base, value: replace(base, countdown_seconds=seconds("countdown", value, least=0)),
    "eta": lambda app, base, value: replace(base, eta=None if value is None else _moment("eta", value)),
    "expires": _set_expires,
    "queue": lambda app, base, value: replace(base, queue=layout.check_queue_name(app, value)),
    "retries": lambda app, base, value: replace(base, retries=whole_number("retries", value, least=0)),
    "timeout": lambda app, base, value: replace(base, timeout_seconds=_seconds_or_none("timeout", value)),
    "key": lambda app, base, value: replace(base, key=_key(value)),
    "rerun_failed": lambda app, base, value: replace(base, rerun_failed=_flag("rerun_failed", value)),
    "gpus": lambda app, base, value: replace(base, resources=replace(base.resources, gpus=_gpus(value))),
    "cpus": lambda app, base, value: replace(base, resources=replace(base.resources, cpus=_cpus(value))),
    "memory": lambda app, base, value: replace(base, resources=replace(base.resources, memory_bytes=_memory_bytes(value))),
    "logs": lambda app, base, value: replace(base, logs=_flag_or_none("logs", value)),
}


def _refuse_unknown(what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise DeclarationError(f"{name!r} is not an option of a {what}.{hint} There are: {', '.join(known)}.")


def seconds(name: str, value: object, *, least: float) -> float:
    """A duration as seconds, from a number or a timedelta; raises DeclarationError."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    # Written so that NaN fails as well.
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number <= LONGEST_SECONDS:
        raise DeclarationError(
            f"{name} must be seconds, from {least:g} to {LONGEST_SECONDS:,} (ten years), or a timedelta; got {value!r}."
        )
    return float(number)


def _seconds_or_none(name: str, value: object) -> float | None:
    if value is None:
        return None
    number = seconds(name, value, least=0)
    if number == 0:
        raise DeclarationError(f"{name} must be more than 0 seconds; leave it out, or give None, for no bound.")
    return number


def _moment(name: str, value: object) -> float:
    if not isinstance(value, datetime):
        raise DeclarationError(f"{name} must be a datetime with a time zone; got {value!r}. For seconds from now, use countdown.")
    if value.tzinfo is None:
        raise DeclarationError(f"{name} must have a time zone, as in datetime.now(timezone.utc); {value!r} has none.")
    if not EARLIEST <= value <= LATEST:
        raise DeclarationError(f"{name} must lie between the years 1970 and 9998; got {value!r}.")
    return value.timestamp()


def _task_name(name: object) -> str:
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise DeclarationError(
            f"A task's name is 1 to 200 letters, digits, dots, hyphens and underscores, as in 'proj.square'; got {name!r}."
        )
    if name == SHELL_TASK:
        raise DeclarationError(f"{name!r} is built in, and runs what app.shell(...) submits: take another name.")
    return name


def _key(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY_LENGTH):
        raise DeclarationError(f"key must be a text of 1 to {MAX_KEY_LENGTH} characters; got {value!r}.")
    if value is not None and storable(value) != value:
        raise DeclarationError(f"key must be text that UTF-8 can hold; got {value!r}.")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise DeclarationError(f"{name} must be True or False; got {value!r}.")
    return value


def _flag_or_none(name: str, value: object) -> bool | None:
    return None if value is None else _flag(name, value)


def _pool(value: object, *, is_async: bool, has_timeout: bool) -> Pool:
    if value is None:
        return Pool.ASYNC if is_async else Pool.PROCESS
    if not isinstance(value, str) or value not in set(Pool):
        raise DeclarationError(f"pool must be one of {', '.join(repr(str(pool)) for pool in Pool)}; got {value!r}.")
    pool = Pool(value)
    if is_async != (pool is Pool.ASYNC):
        right = "'async'" if is_async else "'process' or 'thread'"
        raise DeclarationError(f"pool={value!r} does not fit {'an async def' if is_async else 'a plain function'}: use {right}.")
    _refuse_thread_timeout(pool, has_timeout=has_timeout)
    return pool


def _vector(value: object, *, is_async: bool) -> int:
    if value is None:
        return 0
    if is_async:
        raise DeclarationError("vector goes with plain functions, which get a list of items; this one is an async def.")
    if whole_number("vector", value, least=1) > MAX_PACK_CALLS:
        raise DeclarationError(f"vector must be at most {MAX_PACK_CALLS}; got {value!r}.")
    return whole_number("vector", value, least=1)


def resources_of(task: TaskOptions, chosen: CallOptions) -> Resources:
    """What a call needs: what was chosen for it, else what its task declares, unless that was lifted."""
    said, own, lifted = chosen.resources, task.resources, chosen.lifted
    if said == NO_NEEDS and not lifted:
        return own
    return _needs(
        own.gpus if said.gpus is None and "gpus" not in lifted else said.gpus,
        own.cpus if said.cpus is None and "cpus" not in lifted else said.cpus,
        own.memory_bytes if said.memory_bytes is None and "memory" not in lifted else said.memory_bytes,
    )


def _needs(gpus: int | None, cpus: int | None, memory_bytes: int | None) -> Resources:
    """As a record; the one that all calls share that need nothing."""
    needs = Resources(gpus, cpus, memory_bytes)
    return NO_NEEDS if needs == NO_NEEDS else needs


def _gpus(value: object) -> int | None:
    return None if value is None else whole_number("gpus", value, least=0)


def _cpus(value: object) -> int | None:
    return None if value is None else whole_number("cpus", value, least=1)


def _memory_bytes(value: object) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT])(?:iB|B)?", value, re.IGNORECASE) if isinstance(value, str) else None
    number = int(float(match[1]) * MEMORY_UNITS[match[2].upper()]) if match else value
    if isinstance(number, bool) or not isinstance(number, int) or not LEAST_MEMORY_BYTES <= number <= MAX_MEMORY_BYTES:
        raise DeclarationError(f"memory must be a text such as '500M' or '8G', or bytes, from a MiB to a PiB; got {value!r}.")
    return number


def _refuse_thread_timeout(pool: Pool, *, has_timeout: bool) -> None:
    if pool is Pool.THREAD and has_timeout:
        raise DeclarationError("timeout does not go with pool='thread': a thread cannot be stopped from outside.")
