"""What `app.put` gives: a name for an object that lies in storage once, for any number of calls to be passed.

It is pickled as a name of some 200 bytes. Where a task's arguments are decoded, and only there, unpickling it asks the worker and
gives the object itself; anywhere else it gives the name, whose `get` reads the object.

Next: `worker/shelf.py`, which is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from .buffers import Readable
from .client import Client
from .codec import Codec, Encoded, Guard, codec_named
from .errors import Malformed, NotSerializable, Unfit
from .ledger import Ledger
from .message import Spill
from .payload import python_minor

T_co = TypeVar("T_co", covariant=True)

MARK = __name__.encode()
"""Stands in every pickle that holds a Stored."""


@dataclass(frozen=True, slots=True, repr=False)
class Stored(Generic[T_co]):
    """An object that `app.put` has stored. Picklable; it carries no secret. Two are equal if their bytes are.

    `sha256` names its bytes, as `app.gc(payloads=...)` wants them; `size` counts them. `python` is the version that can decode it,
    where code travels in it.
    """

    client: Client = field(compare=False)
    sha256: str
    size: int
    python: str | None = field(default=None, compare=False)

    @property
    def arg(self) -> T_co:
        """This, for a type checker: as an argument of a task it stands for the object. `f.delay(ref)` does the same unchecked."""
        return cast("T_co", self)

    def get(self) -> T_co:
        """Read the object here: anew each time, for the caller alone.

        Raises Malformed if its payload is gone (`app.put` it again) or damaged, NotSerializable if it cannot be decoded here, Unfit
        where it holds code of another Python.
        """
        return cast("T_co", decode(self, self.client.run(self._read)))

    async def aget(self) -> T_co:
        """As `get`."""
        return cast("T_co", decode(self, await self.client.arun(self._read)))

    async def _read(self, ledger: Ledger) -> bytearray:
        try:
            return await ledger.payload(Spill(self.size, self.sha256))
        except Malformed as exc:
            raise Malformed(gone(self, str(exc))) from exc

    def __repr__(self) -> str:
        return f"<Stored {self.sha256[:12]} ({self.size} bytes) of {self.client.name} at {self.client.place.label}>"

    def __reduce__(self) -> tuple[object, ...]:
        return (_unpickled, (self.client, self.sha256, self.size, self.python))


Resolve = Callable[[Stored[Any]], Any]
_RESOLVE: ContextVar[Resolve | None] = ContextVar("jobq_resolve", default=None)


def _unpickled(client: Client, sha256: str, size: int, python: str | None) -> Any:
    stored: Stored[Any] = Stored(client, sha256, size, python)
    resolve = _RESOLVE.get()
    return stored if resolve is None else resolve(stored)


@contextmanager
def resolving(resolve: Resolve) -> Iterator[None]:
    """What is unpickled meanwhile gives objects in place of their names."""
    token = _RESOLVE.set(resolve)
    try:
        yield
    finally:
        _RESOLVE.reset(token)


@dataclass(frozen=True, slots=True)
class ResolvingCodec:
    """A codec whose values hold objects where names were encoded."""

    plain: Codec
    resolve: Resolve

    @property
    def name(self) -> str:
        return self.plain.name

    @property
    def allows_pickle(self) -> bool:
        return self.plain.allows_pickle

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        return self.plain.errors

    def dumps(self, value: object, guard: Guard | None = None) -> Encoded:
        return self.plain.dumps(value, guard)

    def loads(self, data: Readable) -> Any:
        """See `Codec.loads`; raises Unresolved if an object cannot be had."""
        if not may_name(data):
            return self.plain.loads(data)
        with resolving(self.resolve):
            return self.plain.loads(data)

    def loads_each(self, several: Iterable[bytes]) -> Iterator[Any]:
        """See `Codec.loads_each`."""
        return map(self.loads, several)


def may_name(data: Readable) -> bool:
    """Whether these bytes may hold a Stored. Of what is large, it is not worth the reading to know for sure."""
    return not isinstance(data, bytes) or MARK in data


async def put(client: Client, value: Encoded, ledger: Ledger) -> Stored[Any]:
    """Upload an encoded object unless it is there."""
    found = await ledger.publish_large(value.parts)
    return Stored(client, found.sha256, found.size, python_minor() if value.has_code else None)


def decode(stored: Stored[Any], data: Readable) -> Any:
    """The object in its bytes, which were verified. Raises Unfit, NotSerializable."""
    if stored.python not in (None, python_minor()):
        raise Unfit(f"{stored!r} holds code of Python {stored.python}, and this is {python_minor()}.")
    return codec_named("cloudpickle").loads(data)


def gone(stored: Stored[Any], why: str) -> str:
    """What to say where an object cannot be had."""
    return f"What app.put stored as {stored.sha256[:12]}… in {stored.client.name} cannot be had: {why} Put it again with app.put."


def refuse(value: object) -> None:
    """A guard for codecs that know plain data only."""
    if isinstance(value, Stored):
        raise NotSerializable(
            "What app.put returns is no plain data, and this task takes no other: declare it with codec='cloudpickle'."
        )
