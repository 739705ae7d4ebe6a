"""The records that travel and stay: calls, outcomes, failures, dead letters.

Frozen data and nothing else: how they become bytes is in `wire.py`, what may follow from them in `lifecycle.py`.
A field with a default is left out of the bytes while it has that value, so adding one costs nothing.

Next: `lifecycle.py`, which decides what happens to a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SHELL_TASK = "jobq.shell"
"""The built-in task that runs a shell command; every worker has it."""

V3_TASK = "jobq.v3"
"""The task of messages of ai4s-jobq 3.x that are no shell commands; whoever has such messages declares it."""


class State(StrEnum):
    """How a run ended. Nothing else is ever stored as an outcome's state."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Cause(StrEnum):
    """Why a run failed, for the caller's error and for whoever reads the dead letter."""

    RAISED = "raised"
    TIMED_OUT = "timed out"
    DIED = "died"
    REFUSED = "refused"
    NEVER_FITS = "never fits"


class Pool(StrEnum):
    """Where a task runs: alone in a child process, on an event loop in a child, or on a thread of such a child."""

    PROCESS = "process"
    ASYNC = "async"
    THREAD = "thread"


@dataclass(frozen=True, slots=True)
class Spill:
    """Bytes that lie in a blob of their own. Its name follows from its owner, never from a message."""

    size: int
    sha256: str


class Form(StrEnum):
    """What a checkpoint holds: an encoded value, or a folder as a tar file."""

    VALUE = "value"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a call's last checkpoint lies, and its budgets at that time: deaths and preemptions are counted from it on.

    `token` is that of the attempt that saved it, `number` counts within the attempt; together they name the blob.
    """

    token: str
    number: int
    spill: Spill
    form: Form = Form.VALUE
    deaths: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds until the next attempt: `first * factor ** n`, at most `longest`, of which jitter takes up to half.

    Args:
        first: seconds after the first failure; above 0.
        factor: growth from one failure to the next; 1 or more.
        longest: upper bound in seconds.
    """

    first: float = 1.0
    factor: float = 2.0
    longest: float = 600.0

    def delay_seconds(self, failures_before: int, jitter: float) -> float:
        """The wait after a failure that `failures_before` others preceded; `jitter` is random in [0, 1).

        >>> backoff = Backoff(first=2, factor=3, longest=60)
        >>> [backoff.delay_seconds(failures, jitter=0) for failures in range(5)]
        [2.0, 6.0, 18.0, 54.0, 60.0]
        """
        try:
            grown = self.first * self.factor**failures_before
        except OverflowError:
            grown = self.longest
        return min(self.longest, grown) * (1 - jitter / 2)


@dataclass(frozen=True, slots=True)
class Version3:
    """What a message of ai4s-jobq 3.x said beside its budget, so that it can go back as one: `kwargs` is JSON text."""

    version: int
    id: str
    kwargs: str
    reply_requested: bool = False


@dataclass(frozen=True, slots=True)
class Resources:
    """What a call needs of its worker while it runs, in whole devices and cores; None where it declares nothing."""

    gpus: int | None = None
    cpus: int | None = None
    memory_bytes: int | None = None


NO_NEEDS = Resources()


@dataclass(frozen=True, slots=True)
class Call:
    """One invocation of a task, as it travels: what to run, within which bounds, and what happened so far.

    `arguments` is what the codec made of `(args, kwargs)`. `function` and `ship` name payloads by their SHA-256; `python`
    is stamped ("3.11") only where code travels by value. `sent`, `eta` and `expires` are epoch seconds by the server's clock.
    `mark` is the token of an attempt that began and has not settled; `alone` says that it must share no process from now on.
    `logs` says whether what it prints and logs is kept; None leaves that to what is usual: of single calls, and not of packs.
    `version3` is there where it came as a message of ai4s-jobq 3.x, and then it travels as one. `trace` is the context (W3C's
    traceparent) of the span that sent it, if there was one.
    """

    id: str
    task: str
    queue: str
    arguments: bytes | Spill
    sent: float
    run: int = 1
    codec: str = "cloudpickle"
    pool: Pool = Pool.PROCESS
    function: str | None = None
    ship: tuple[str, ...] = ()
    python: str | None = None
    retries: int = 0
    backoff: Backoff = Backoff()
    max_deaths: int = 3
    timeout_seconds: float | None = None
    resources: Resources = NO_NEEDS
    eta: float | None = None
    expires: float | None = None
    logs: bool | None = None
    root: str | None = None
    parent: str | None = None
    resent: bool = False
    errors: int = 0
    deaths: int = 0
    preemptions: int = 0
    alone: bool = False
    mark: str | None = None
    checkpoint: Checkpoint | None = None
    version3: Version3 | None = None
    trace: str | None = None

    @property
    def attempt(self) -> int:
        """The number of the attempt that comes next, or runs; the first is 1."""
        return 1 + self.errors + self.deaths + self.preemptions


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run did not succeed. `exception` is as the call's codec encodes it, where that can.

    `tail` is what a batch's call said last (see Outcome, which has it for single calls).
    """

    cause: Cause
    type: str
    message: str
    traceback: str = ""
    exception: bytes | None = None
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The immutable record that ends a run. `token` names the attempt (or canceller) that wrote it; times as in Call.

    `tail` is what its last attempt said last, in the lines of `log_lines`: at most 4 KiB of them, of a batch's call 2 KiB.
    """

    call: str
    run: int
    state: State
    token: str
    task: str = ""
    queue: str = ""
    codec: str = "cloudpickle"
    value: bytes | Spill | None = None
    failure: Failure | None = None
    attempts: int = 0
    worker: str = ""
    started: float | None = None
    ended: float | None = None
    tail: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A call that ended in failure, kept for a person: its outcome, its message, or what could be read of it.

    `call` is None where the message could not be read; then `raw` holds its text, whole, so that nothing is lost.
    """

    reason: str
    outcome: Outcome | None = None
    call: Call | None = None
    raw: str = ""


@dataclass(frozen=True, slots=True)
class RetryRecord:
    """That the next run of a call was asked for; `asked` is in epoch seconds by the server's clock."""

    asked: float


@dataclass(frozen=True, slots=True)
class Control:
    """What the workers of one queue are told beside its messages; moments in epoch seconds by the server's clock.

    `cancelled` names runs ("<call>.r<run>") that were cancelled lately and may be running, the newest last, and `cancels` counts
    all that were ever put there; `cancelled_at` is when the last of all was. Workers that find a later `drained_at` than when they
    started finish what they have and end.
    """

    paused: bool = False
    drained_at: float = 0
    cancelled_at: float = 0
    cancelled: tuple[str, ...] = ()
    cancels: int = 0


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What a key was used with: the SHA-256 of the arguments, and whether its call's message is surely on the queue."""

    arguments: str
    sent: bool = False


@dataclass(frozen=True, slots=True)
class BatchMeta:
    """What the calls of a batch have in common: `call` is the one of index 0 without its own arguments.

    Its `arguments` are the keyword arguments of all of them. `vector` is the longest list that the task takes, 0 for one item at a
    time. `keyed` says that each call's key was given.
    """

    call: Call
    vector: int = 0
    keyed: bool = False


@dataclass(frozen=True, slots=True)
class BatchTotal:
    """How many calls, in how many packs, were submitted for sure; `ended` says that no more are to come."""

    calls: int
    packs: int
    ended: bool = False


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """That somebody asked for something of a whole batch: to be cancelled, or (`run`, `todo`) for a run of what had failed.

    `asked` is in epoch seconds by the server's clock, `todo` a text of indices.
    """

    asked: float
    run: int = 1
    todo: str = ""


@dataclass(frozen=True, slots=True)
class HeldCheckpoint:
    """The last checkpoint of one of a pack's calls."""

    index: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Charges:
    """What one of a pack's calls has used up of its budgets, as in Call; `alone`: it must share no process."""

    errors: int = 0
    deaths: int = 0
    preemptions: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class ChargedCalls:
    """The calls, as a text of indices, that have used up the same."""

    calls: str
    charges: Charges


@dataclass(frozen=True, slots=True)
class PackHeader:
    """The message of a pack: which calls of a batch are still to be done, and where what became of them is logged.

    `input` binds the blob with their arguments, whose first index and count are `first` and `count`; `todo` is a text of indices.
    The log has entries up to `pos` whose effects are durable. `mark` is the token of a delivery that began and has not settled;
    `suspect` says that an earlier delivery of these calls killed its worker. Moments are in epoch seconds by the server's clock.
    """

    batch: str
    pack: int
    queue: str
    sent: float
    input: Spill
    first: int
    count: int
    todo: str
    log: str
    pos: int = 0
    run: int = 1
    python: str | None = None
    charged: tuple[ChargedCalls, ...] = ()
    checkpoints: tuple[HeldCheckpoint, ...] = ()
    not_before: float | None = None
    mark: str | None = None
    suspect: bool = False
    resent: bool = False

    @property
    def indices(self) -> range:
        """The indices of all calls whose arguments lie in the pack's input."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True)
class EntryHead:
    """What a log entry says before its values: `count` outcomes in columns, and the calls that were given to other workers.

    The columns are packed numbers, see `packing.py`; `size` and `sha256` bind the values that follow. `token` names its writer.
    """

    token: str
    worker: str
    ended: float
    size: int
    sha256: str
    count: int = 0
    columns: bytes = b""
    gives: str = ""
