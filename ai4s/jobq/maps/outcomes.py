"""What became of one call of a batch, as its reader gets it: `Outcome`, whose value is decoded when it is asked for.

Next: `batch.py`, which hands them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from ..batches import outcome_of
from ..client import Client
from ..codec import Codec, codec_of
from ..failures import exception_of
from ..ledger import Ledger
from ..message import BatchMeta, State
from ..message import Outcome as Record
from ..packing import Code
from .reading import Found

R = TypeVar("R", covariant=True)
_VALUE = int(Code.VALUE)


@dataclass(frozen=True, slots=True)
class Source:
    """What all outcomes of a batch have in common."""

    client: Client
    batch: str
    meta: BatchMeta
    codec: Codec

    @classmethod
    def of(cls, client: Client, batch: str, meta: BatchMeta) -> Source:
        """The source of a batch's outcomes; raises Unfit for a codec that this version does not have."""
        return cls(client, batch, meta, codec_of(meta.call.codec))


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """How a call of a batch ended. `value` is what it returned, and raises what it raised. `key` is the text that `key=` gave."""

    source: Source
    found: Found
    key: str | None = None

    @property
    def index(self) -> int:
        """Its place among the items."""
        return self.found.outcome.at

    @property
    def state(self) -> State:
        """Succeeded, failed, cancelled or expired."""
        return Code(self.found.outcome.code).state

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.state is State.SUCCEEDED

    @property
    def attempts(self) -> int:
        """How many attempts it took."""
        return self.found.outcome.attempts

    @property
    def seconds(self) -> float:
        """How long the last attempt ran."""
        return self.found.outcome.seconds

    @property
    def worker(self) -> str:
        """The id of the worker that ran it."""
        return self.found.entry.worker

    @property
    def record(self) -> Record:
        """All that is known, as of a single call."""
        return outcome_of(self.source.meta, self.source.batch, self.found.entry, self.found.outcome, run=self.found.run)

    @property
    def error(self) -> BaseException | None:
        """What `value` raises; None for a success."""
        return None if self.ok else exception_of(self.record)

    @property
    def value(self) -> R:
        """What the call returned; raises what `Handle.result` raises. A large value is fetched now."""
        outcome = self.found.outcome
        if outcome.code == _VALUE:
            return cast("R", self.source.codec.loads(outcome.data))
        if (error := self.error) is not None:
            raise error
        return self._decoded(self.source.client.run(self._fetched))

    async def avalue(self) -> R:
        """As `value`, without blocking the event loop while a large value is fetched."""
        if self.found.outcome.code != Code.SPILLED:
            return self.value
        return self._decoded(await self.source.client.arun(self._fetched))

    async def _fetched(self, ledger: Ledger) -> bytes | bytearray:
        return await ledger.value(self.record)

    def _decoded(self, data: bytes | bytearray) -> R:
        return cast("R", self.source.codec.loads(data))

    def __repr__(self) -> str:
        return f"<Outcome {self.index} of batch {self.source.batch}: {self.state}>"
