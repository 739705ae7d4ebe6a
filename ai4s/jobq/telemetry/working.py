"""A worker's telemetry: what it tells of receiving, processing and settling, and what its children's spans belong to.

Unless something switches it on, a silent one hears all of it, and telling costs a call of a function.

Next: `opening.py`, which decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from ..message import Call
from ..transports.base import Delivery


class Process(Protocol):
    """One delivery that is worked on. `trace` is what its tasks' spans belong to."""

    @property
    def trace(self) -> str | None: ...

    def settling(self) -> AbstractContextManager[None]:
        """Its work is done, and within the block it is settled."""


class Seen(Protocol):
    """A call, as who counts calls tells of it."""

    @property
    def id(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def queue(self) -> str: ...

    @property
    def batch(self) -> str: ...

    @property
    def waited_seconds(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Gauges:
    """What a worker knows anyway, asked for when metrics are collected, on any thread.

    `slots`: how many, and how many run something. `counts`: what is counted since the worker began, by name (`dead`, `lost`,
    `preempted`). `requests`: by kind. `usage`: percent of a core, once that is known, and bytes. `depths`: messages of each
    queue as last counted.
    """

    slots: Callable[[], tuple[int, int]] = lambda: (0, 0)
    counts: Callable[[], Mapping[str, int]] = dict
    requests: Callable[[], Mapping[str, int]] = dict
    usage: Callable[[], tuple[float | None, int]] = lambda: (None, 0)
    depths: Mapping[str, int] = field(default_factory=dict)


class Telemetry(Protocol):
    """What a worker tells. All of it is quick, and none of it raises."""

    @property
    def has_metrics(self) -> bool:
        """Whether anybody reads numbers, so that it is worth a request to count a queue."""

    @property
    def is_on(self) -> bool:
        """Whether it is worth it to tell of single calls."""

    def show(self, gauges: Gauges) -> None:
        """Show what these read, from now on."""

    def received(self, queue: str, deliveries: Sequence[Delivery], seconds: float) -> None:
        """A receive has just been answered, after so long, with these."""

    def opened(self, delivery: Delivery, trace: str | None) -> None:
        """A delivery has been read: the context that it carries. Called for each one, also if it could not be read."""

    def processing(self, call: Call, *, batch: str | None = None, count: int = 1) -> AbstractContextManager[Process]:
        """For the block, a call is worked on, or `count` calls of a batch."""

    def began(self, call: Seen, number: int = 1, first: int = 1) -> None:
        """So many attempts at calls like this one begin, `first` of them at calls that waited as it did."""

    def succeeded(self, call: Seen, seconds: Sequence[float]) -> None:
        """Attempts at calls like this one, which took so long, gave a value each."""

    def ended(self, call: Seen, how: str, seconds: float, error: str = "") -> None:
        """An attempt has ended in another way."""


@dataclass(frozen=True, slots=True)
class _UntoldProcess:
    trace: str | None = None

    def settling(self) -> AbstractContextManager[None]:
        return nullcontext()


class Silent:
    """Tells nobody."""

    has_metrics = is_on = False

    def show(self, gauges: Gauges) -> None:
        """Nothing."""

    def received(self, queue: str, deliveries: Sequence[Delivery], seconds: float) -> None:
        """Nothing."""

    def opened(self, delivery: Delivery, trace: str | None) -> None:
        """Nothing."""

    def processing(self, call: Call, *, batch: str | None = None, count: int = 1) -> AbstractContextManager[Process]:
        """The producer's own context goes on to the task, which may have its own spans."""
        return nullcontext(_UntoldProcess(call.trace))

    def began(self, call: Seen, number: int = 1, first: int = 1) -> None:
        """Nothing."""

    def succeeded(self, call: Seen, seconds: Sequence[float]) -> None:
        """Nothing."""

    def ended(self, call: Seen, how: str, seconds: float, error: str = "") -> None:
        """Nothing."""


SILENT: Telemetry = Silent()


@dataclass(frozen=True, slots=True)
class Port:
    """Where metrics are to be had as Prometheus reads them; port 0 is any that is free."""

    number: int
    host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class About:
    """Whom a worker's telemetry is about."""

    app: str
    worker: str
    environment: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
