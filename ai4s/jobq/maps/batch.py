"""Batch: all calls of one `map`, from any process, days later. Outcomes in order or as they come, progress, cancel, retry.

A batch holds nothing but an id and a client; what it knows of its calls it reads from the log. Every method that asks the
storage has an async twin with the prefix `a`, and `for` and `async for` both work.

Next: `reading.py` for how outcomes are read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import aclosing, closing
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from .. import control, layout
from ..batches import BatchLedger, PackInfo, outcome_of
from ..client import Client
from ..clock import boottime
from ..errors import DeclarationError, JobQError, Malformed, NotSerializable
from ..handle import Handle
from ..ledger import Ledger
from ..message import BatchMeta
from ..message import Outcome as Record
from ..running import refuse_to_wait
from ..waiting import GROWTH_OF_BATCHES, Pace
from . import removal as batch_removal
from . import retrying as batch_retrying
from .onlooking import Onlooking
from .outcomes import Outcome, Source
from .progress_bar import Bar, progress_bar
from .reading import LONGEST_INDEX, Extent, Found, Reading, Search, failed

R = TypeVar("R", covariant=True)
T = TypeVar("T")
OnError = Literal["raise", "return"]

META_SECONDS = 30.0
"""How long it is believed that nobody has removed the batch."""

KEPT_KEYS = 16
"""Packs whose keys are kept while outcomes are handed out."""


class Batch(Onlooking, Generic[R]):
    """The calls of one `map`. Made by it, or by `app.batch(id)`. Picklable; it carries no secret.

    Iterating gives the values in the order of the items, and raises what the first call raised that failed.
    """

    def __init__(self, client: Client, batch_id: str, infos: list[PackInfo] | None = None, *, codec: str | None = None) -> None:
        self.id = batch_id
        self.client = client
        self._infos, self._codec = infos, codec
        self._meta: BatchMeta | None = None
        self._meta_read = 0.0
        self._keys: dict[int, tuple[str, ...]] = {}
        self.known = self._extent()
        """What handles of its calls know of its size."""

    # outcomes

    def __iter__(self) -> Iterator[R]:
        # Closed here, at once: an exception keeps what it passed through for as long as somebody looks at it.
        with closing(self._parts(self._found, None, in_order=True)) as parts:
            for found in parts:
                source = self.client.run(self._source)
                if any(each.outcome.code for each in found):
                    yield from (Outcome(source, each).value for each in found)
                else:  # without making more of each than its value: there may be a hundred thousand a second
                    yield from source.codec.loads_each(each.outcome.data for each in found)

    async def __aiter__(self) -> AsyncIterator[R]:
        async with aclosing(self.aoutcomes(None, in_order=True)) as outcomes:
            async for outcome in outcomes:
                yield await outcome.avalue()

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self.aresults().__await__()

    def as_completed(self, timeout: float | None = None) -> Outcomes[R]:
        """The outcomes as calls end, in whatever way, by `for` or by `async for`.

        Args:
            timeout: seconds for all of them together; None waits for ever.

        Raises ResultTimeout, while iterating, when time is up.
        """
        return Outcomes(self, timeout)

    def results(self, on_error: OnError = "raise", timeout: float | None = None) -> list[Any]:
        """The values of all calls, in the order of the items.

        Args:
            on_error: "raise" what the first call raised that failed, or "return" what each failed call raised in its place.
            timeout: seconds; None waits for ever.

        Raises ResultTimeout when time is up, and what `Handle.result` raises.
        """
        _check_on_error(on_error)
        with closing(self.outcomes(timeout, in_order=True)) as outcomes:
            return [_value(outcome, on_error) for outcome in outcomes]

    async def aresults(self, on_error: OnError = "raise", timeout: float | None = None) -> list[Any]:
        """As `results`."""
        _check_on_error(on_error)
        async with aclosing(self.aoutcomes(timeout, in_order=True)) as outcomes:
            return [await _avalue(outcome, on_error) async for outcome in outcomes]

    def failures(self) -> list[Outcome[R]]:
        """The calls that have failed so far, by index; those that run again are not among them."""
        return self.client.run(self._failures)

    async def afailures(self) -> list[Outcome[R]]:
        """As `failures`."""
        return await self.client.arun(self._failures)

    def handle(self, index: int) -> Handle[R]:
        """A handle of one call. Raises DeclarationError for an index that cannot be."""
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < LONGEST_INDEX:
            raise DeclarationError(f"index is the place of an item, from 0 on; got {index!r}.")
        return BatchHandle(self, index)

    # orders

    def cancel(self) -> None:
        """End all calls as cancelled that have not ended. Within 10 s workers stop what runs, as for `Handle.cancel`.

        It is workers who end them: where none serves the queue, they have not ended before one comes by. After an error of the
        storage it may or may not be cancelled; repeat it.
        """
        self.client.run(self._cancel)

    async def acancel(self) -> None:
        """As `cancel`."""
        await self.client.arun(self._cancel)

    async def _cancel(self, ledger: Ledger) -> None:
        meta = await self.meta(ledger)
        # First the request, then word of it: who hears of it looks for the request.
        await BatchLedger(ledger, self.id).request_cancel()
        await control.tell_cancelled(ledger, meta.call.queue, self.id)

    def retry_failures(self) -> int:
        """Run all calls again that have failed; returns how many. Their outcomes are those of the new run, once it has ended.

        Calls of an earlier retry that still run are left alone. After an error, ask again: what was begun is finished.
        Raises NotFinished if somebody else asks at the same moment.
        """
        count = self.client.run(self.run_failures)
        self.client.run_taken()
        return count

    async def aretry_failures(self) -> int:
        """As `retry_failures`."""
        count = await self.client.arun(self.run_failures)
        await self.client.arun_taken()
        return count

    async def run_failures(self, ledger: Ledger) -> int:
        """Have failures run again; see `retry_failures`."""
        return await batch_retrying.run_failures(self.client, ledger, self.id, await self.meta(ledger))

    def forget(self) -> None:
        """Remove the batch and all that was kept for its calls, its dead letter too; from then on reading it raises ResultGone.

        Raises NotFinished unless all calls have ended. Where it is cut short, ask again, or leave the rest to `app.gc`.
        """
        self.client.run(self._forget)

    async def aforget(self) -> None:
        """As `forget`."""
        await self.client.arun(self._forget)

    async def _forget(self, ledger: Ledger) -> None:
        self._meta = self._infos = None
        await batch_removal.forget(ledger, self.id)

    # inner workings

    async def meta(self, ledger: Ledger) -> BatchMeta:
        """What the calls have in common; raises JobQError if there is no such batch, ResultGone if it was removed."""
        if self._meta is None or boottime() - self._meta_read > META_SECONDS:
            self._meta, self._meta_read = await BatchLedger(ledger, self.id).meta(), boottime()
        if self._meta is None:
            raise JobQError(f"There is no batch {self.id!r} of the app {self.client.name!r} at {self.client.place.label}.")
        if self._codec not in (None, self._meta.call.codec):
            # Outcomes in another codec than the task's could have a pickle decoded for one that was declared safe.
            raise Malformed(f"Batch {self.id} is encoded with {self._meta.call.codec!r}, and its task with {self._codec!r}.")
        return self._meta

    def _extent(self) -> Extent:
        """What is known of its size: all of it where this process submitted it."""
        if self._infos is None:
            return Extent()
        return Extent({info.pack: info for info in self._infos}, is_whole=True)

    def outcomes(self, timeout: float | None, *, in_order: bool) -> Generator[Outcome[R], None, None]:
        """All outcomes; see `as_completed`."""
        with closing(self._parts(self.more, timeout, in_order=in_order)) as parts:
            for outcomes in parts:
                yield from outcomes

    def _parts(
        self, read: Callable[..., Coroutine[Any, Any, list[T]]], timeout: float | None, *, in_order: bool
    ) -> Generator[list[T], None, None]:
        """What `read` makes of all outcomes, many at a time."""
        refuse_to_wait(self.id)
        self._meta = None  # it may have been removed since
        reading = Reading(self._extent(), in_order=in_order, pace=Pace(timeout, GROWTH_OF_BATCHES))
        with progress_bar(self.id) as bar:
            while part := self.client.run(partial(read, reading, bar=bar)):
                yield part

    async def aoutcomes(self, timeout: float | None, *, in_order: bool) -> AsyncGenerator[Outcome[R], None]:
        """As `outcomes`."""
        refuse_to_wait(self.id)
        self._meta = None
        reading = Reading(self._extent(), in_order=in_order, pace=Pace(timeout, GROWTH_OF_BATCHES))
        with progress_bar(self.id) as bar:
            while found := await self.client.arun(partial(self.more, reading, bar=bar)):
                for outcome in found:
                    yield outcome

    async def more(self, reading: Reading, ledger: Ledger, *, bar: Bar | None = None) -> list[Outcome[R]]:
        """Outcomes that are new, of those that this reading has not handed out yet; none once it has them all."""
        found, batch = await self._found(reading, ledger, bar=bar), BatchLedger(ledger, self.id)
        source = await self._source(ledger)
        if not source.meta.keyed:
            return [Outcome(source, each) for each in found]
        return [await self._outcome(batch, source, reading.extent, each) for each in found]

    async def _source(self, ledger: Ledger) -> Source:
        return Source.of(self.client, self.id, await self.meta(ledger))

    async def _found(self, reading: Reading, ledger: Ledger, *, bar: Bar | None = None) -> list[Found]:
        await self.meta(ledger)
        batch = BatchLedger(ledger, self.id)

        async def wait(since: float) -> None:
            if bar is not None:
                bar.show(reading.done, reading.total)
            await self.client.note_silence(ledger, since)
            await self.client.arun_taken()
            await self.meta(ledger)

        found = await reading.more(batch, wait)
        if bar is not None:
            bar.show(reading.done, reading.total)
        return found

    async def _outcome(self, batch: BatchLedger, source: Source, extent: Extent, found: Found) -> Outcome[R]:
        outcome, key = found.outcome, None
        if source.meta.keyed and (info := extent.pack_of(outcome.at)) is not None:
            if (keys := self._keys.get(info.pack)) is None:
                keys = self._keys[info.pack] = await batch.keys(info)
                while len(self._keys) > KEPT_KEYS:
                    del self._keys[next(iter(self._keys))]
            key = keys[outcome.at - info.indices.start]
        return Outcome(source, found, key)

    async def _failures(self, ledger: Ledger) -> list[Outcome[R]]:
        meta, batch, extent = await self.meta(ledger), BatchLedger(ledger, self.id), Extent()
        await extent.look(batch)
        source = Source.of(self.client, self.id, meta)
        return [await self._outcome(batch, source, extent, found) for found in await failed(batch, extent)]

    def __repr__(self) -> str:
        return f"<Batch {self.id} of {self.client.name} at {self.client.place.label}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[str, str, str]:
        return (self.client.place.label, self.client.name, self.id)

    def __reduce__(self) -> tuple[object, ...]:
        return (_unpickled, (self.client, self.id, self._codec))


class Outcomes(Generic[R]):
    """A batch's outcomes as they come, by `for` or by `async for`, once."""

    def __init__(self, batch: Batch[R], timeout: float | None) -> None:
        self._batch, self._timeout = batch, timeout

    def __iter__(self) -> Iterator[Outcome[R]]:
        return self._batch.outcomes(self._timeout, in_order=False)

    def __aiter__(self) -> AsyncIterator[Outcome[R]]:
        return self._batch.aoutcomes(self._timeout, in_order=False)


class BatchHandle(Handle[R]):
    """A handle of one call of a batch. It asks for that call alone: for many of them use the batch itself."""

    def __init__(self, batch: Batch[R], index: int) -> None:
        super().__init__(batch.client, layout.packed_call_id(batch.id, index))
        self._batch, self._index, self._search = batch, index, Search(index)

    async def look(self, ledger: Ledger) -> Record | None:
        """The outcome of the newest run if there is one now."""
        batch, meta = self._batch, await self._batch.meta(ledger)
        found = await self._search.look(BatchLedger(ledger, batch.id), batch.known)
        self._outcome = None if found is None else outcome_of(meta, batch.id, found.entry, found.outcome, run=found.run)
        self.run = found.run if found else self.run
        return self._outcome

    async def _cancel(self, ledger: Ledger) -> bool:
        raise JobQError(
            f"Call {self.id} belongs to a batch, which is cancelled as a whole: app.batch({self._batch.id!r}).cancel()."
        )

    async def _forget(self, ledger: Ledger) -> None:
        raise JobQError(f"Call {self.id} belongs to a batch, which goes as a whole: app.batch({self._batch.id!r}).forget().")

    def __reduce__(self) -> tuple[object, ...]:
        return (BatchHandle, (self._batch, self._index))


def _unpickled(client: Client, batch_id: str, codec: str | None) -> Batch[Any]:
    return Batch(client, batch_id, codec=codec)


def _check_on_error(on_error: object) -> None:
    if on_error not in ("raise", "return"):
        raise DeclarationError(f"on_error must be 'raise' or 'return'; got {on_error!r}.")


def _value(outcome: Outcome[Any], on_error: OnError) -> Any:
    if on_error == "return" and (error := outcome.error) is not None:
        return error
    try:
        return outcome.value
    except NotSerializable as exc:  # of a value that cannot be decoded here
        if on_error == "raise":
            raise
        return exc


async def _avalue(outcome: Outcome[Any], on_error: OnError) -> Any:
    if on_error == "return" and (error := outcome.error) is not None:
        return error
    try:
        return await outcome.avalue()
    except NotSerializable as exc:
        if on_error == "raise":
            raise
        return exc
