"""What supervisor and child say to each other, as frames over a socket pair: a length, then a msgpack map.

Large values do not pass: they lie in files of the worker's scratch folder, and the frames name them.

Next: `child.py`, which runs jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, get_args

import msgpack

from ..errors import Malformed
from ..fields import from_map, to_map
from ..message import Call, Failure, Form, Pool
from ..packing import Piece

LENGTH_BYTES = 4
MAX_INLINE_BYTES = 1024 * 1024
"""A value above this goes by way of a file."""

MAX_FRAME_BYTES = 8 * MAX_INLINE_BYTES
"""Far above every honest frame; what claims to be longer was written by something else."""


@dataclass(frozen=True, slots=True)
class Served:
    """An app as a worker needs it: where it lies, and how its records are signed."""

    app: str
    url: str = field(repr=False)
    signing_keys: tuple[str, ...] = field(default=(), repr=False)
    create: bool = True
    result_ttl_seconds: float | None = None


class Outfit(NamedTuple):
    """In what the children of one kind differ: their shipped modules, the devices that they see, how many threads libraries start.

    None where nothing is said of them.
    """

    shipped: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class ChildSetup:
    """The first frame: what a child serves and how. `target` is `module:app`; without it, `served` says what that would.

    With `emulate_tty`, shell commands find a terminal. `log_format` is how its log records are written; without
    `logs`, nobody hears what tasks say.
    """

    worker: str
    pool: Pool = Pool.PROCESS
    capacity: int = 1
    target: str | None = None
    served: Served | None = None
    modules: tuple[str, ...] = ()
    search_path: tuple[str, ...] = ()
    shipped: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = None
    threads: int | None = None
    emulate_tty: bool = False
    log_format: str = "text"
    logs: bool = True

    @property
    def outfit(self) -> Outfit:
        """What it is started with and keeps."""
        return Outfit(self.shipped, self.devices, self.threads)


@dataclass(frozen=True, slots=True)
class Ready:
    """A child's first answer: its app, the tasks that it can run and where each runs ("proj.square=process"), and the queues
    that they name; or why it cannot start."""

    served: Served | None = None
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """Run this call. Paths are None where there is nothing to read from them.

    `value_path` is where a large value goes; a checkpoint lies at `checkpoint_path` on its way in either direction.
    """

    number: int
    call: Call
    value_path: str
    checkpoint_path: str
    arguments_path: str | None = None
    function_path: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Run these calls of a batch, one after the other, and write down in a journal how each went.

    `call` is what they have in common, with their keyword arguments; `first` and `places` (packed numbers) give their indices,
    `attempts` (likewise) the number of the attempt of each. With `vector`, up to so many of them at a time are one list for the
    function. Paths as in Job; a value that is large goes to `value_path` with the call's place at the end.
    """

    number: int
    call: Call
    first: int
    places: bytes
    attempts: bytes
    pieces: tuple[Piece, ...]
    journal_path: str
    value_path: str
    checkpoint_path: str
    vector: int = 0
    arguments_path: str | None = None
    common_path: str | None = None
    function_path: str | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """Give back what has not begun of the chunk of this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Recalled:
    """How many calls, from the chunk's end, have not begun and never will."""

    number: int
    count: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the job of this number, if it runs on an event loop."""

    number: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Whether the worker is about to end: all jobs of the child may ask."""

    preempted: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """SIGTERM is about to come from the supervisor: one that comes without this word was not meant for the child."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A child's answer to `Ending`, if it lives on: what runs there is left to handle SIGTERM in its own way."""


@dataclass(frozen=True, slots=True)
class Save:
    """A job's request: keep the file at its checkpoint path. `request` tells it from others of the same child.

    `place` says which call of a chunk asks.
    """

    number: int
    request: int
    form: Form
    place: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """A job's request: put its last checkpoint at its checkpoint path."""

    number: int
    request: int
    place: int = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """A job's request: have the object of this digest and size in a file of this machine."""

    number: int
    request: int
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a job's task says it is; `place` says which call of a chunk. Nobody answers."""

    number: int
    place: int
    done: float
    total: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """Whole lines that the call at this place of a job has said, as they lie in its log.

    With `tail_only` they are for its outcome alone, if it fails, and not all that there were.
    """

    number: int
    place: int
    text: str
    tail_only: bool = False


Request = Save | Load | Fetch


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request: whether it was done, the form of what was loaded, the path of what was fetched, or why it could not
    be. None goes without."""

    request: int
    done: bool
    form: Form | None = None
    problem: str | None = None
    path: str | None = None


class Kind(StrEnum):
    """How a job ended. `GIVEN_BACK`: the task asked for another attempt when it had been told that the worker ends.

    `DONE`: what became of a chunk's calls stands in its journal, and what does not has not begun.
    """

    RETURNED = "returned"
    RAISED = "raised"
    UNFIT = "unfit"
    HINDERED = "hindered"
    GIVEN_BACK = "given back"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a job: a value (here or in its file), a failure, or that this child cannot run it; and how long the task ran."""

    number: int
    kind: Kind
    value: bytes | None = None
    failure: Failure | None = None
    retryable: bool = False
    delay_seconds: float | None = None
    seconds: float = 0


Frame = (
    ChildSetup | Ready | Job | Chunk | Recall | Recalled | Cancel | Notice | Ending | Heard | Request | Progressed | Said | Answer
    | Report
)  # fmt: skip
_KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Frame)}


def to_frame(message: Frame) -> bytes:
    """The bytes of a message, its length before it."""
    body: bytes = msgpack.packb([type(message).__name__, to_map(message)])
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def from_body(body: bytes) -> Frame:
    """The message in a frame's body; raises MessageError if it is none."""
    try:
        kind, values = msgpack.unpackb(body)
        message: Frame = from_map(_KINDS[kind], values)
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as exc:
        raise Malformed(f"These {len(body)} bytes are no frame ({type(exc).__name__}).") from exc
    return message
