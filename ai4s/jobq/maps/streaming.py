"""A map whose outcomes are read while it is still being submitted: `with f.stream(source) as outcomes`.

The source is iterated on a thread of its own (`astream`: as a task of the caller's loop), and waits when too much lies between it
and who reads: an endless source and a slow reader leave memory flat.

Next: `feeding.py` for the submission, `reading.py` for the outcomes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import takewhile
from types import TracebackType
from typing import Generic, Self, TypeVar

from ..batches import BatchLedger
from ..errors import DeclarationError, MapInterrupted
from ..running import refuse_to_wait
from ..waiting import GROWTH_OF_BATCHES, Pace
from .batch import Batch
from .feeding import Feed
from .outcomes import Outcome
from .pack_maker import Row
from .reading import Extent, Reading

R = TypeVar("R", covariant=True)

AHEAD = 10_000
"""Calls between the source and who reads, unless told otherwise."""


class _LiveExtent(Extent):
    """How large a batch is that this process still submits: no request tells more."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        self.error: BaseException | None = None
        """What ended the submission, of which messages may be missing then: not all that was put will come."""

    async def look(self, batch: BatchLedger) -> None:
        """Take over what was put since; raises what ended the submission."""
        if self.error is not None:
            raise self.error
        is_over = self._feed.is_over
        for info in self._feed.infos[len(self.infos) :]:
            self.infos[info.pack] = info
        self.is_whole = is_over


class _Gate:
    """Counts the calls between the source and who reads; the source waits here while there are too many."""

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._between = 0
        self._changed = threading.Condition()
        self.is_closed = False

    def pass_one(self) -> bool:
        """Wait until one more may pass; False if none may any more."""
        with self._changed:
            self._changed.wait_for(self._is_open)
            self._between += 1
            return not self.is_closed

    def pass_at_once(self) -> bool:
        """Pass, if one may, or none may any more."""
        with self._changed:
            if not self._is_open():
                return False
            self._between += 1
            return True

    def _is_open(self) -> bool:
        return self.is_closed or self._between < self._ahead

    def took(self, count: int) -> None:
        """So many were handed to who reads, or never became calls."""
        with self._changed:
            self._between -= count
            self._changed.notify_all()

    def close(self) -> None:
        """Let nothing pass any more."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


class _Streaming(Generic[R]):
    """What the two kinds of stream have in common."""

    def __init__(self, feed: Feed, ahead: int) -> None:
        refuse_to_wait(feed.name)
        self._feed, self._gate = feed, _Gate(ahead)
        self._extent = _LiveExtent(feed)
        self._reading = Reading(self._extent, in_order=False, pace=Pace(None, GROWTH_OF_BATCHES))
        self._error: BaseException | None = None
        self._is_read = False
        feed.on_skip = partial(self._gate.took, 1)
        self.batch: Batch[R] = Batch(feed.client, feed.name)
        """All calls of the stream, from now on and from any process."""

    def _check_begun(self) -> None:
        """Raise what kept the batch from being begun."""
        if self._error is not None and not self._feed.infos:
            raise self._error

    def _hand_over(self, outcome: Outcome[R]) -> None:
        """Let another one pass for an outcome of a call that has passed: what lay there before this stream never did."""
        if outcome.index >= self._feed.first_new:
            self._gate.took(1)

    def _submitted(self, error: BaseException | None) -> None:
        """Nothing more is submitted."""
        self._error = error
        if error is not None and not isinstance(error, MapInterrupted):
            self._extent.error = error
        self._feed.is_over = True
        self._feed.has_begun.set()

    def _end(self) -> None:
        """Every outcome was handed out: say so, or raise what the source raised."""
        self._is_read = True
        if self._error is not None:
            raise self._error


class Stream(_Streaming[R]):
    """Outcomes of a source's items, as they come, while it is still being submitted. Made by `f.stream`, used in a `with` block.

    Leaving the block before all was read submits nothing more and cancels what has not ended; if the source is just making an item,
    that is waited for.
    """

    def __init__(self, feed: Feed, ahead: int, rows: Iterable[Row]) -> None:
        super().__init__(feed, ahead)
        self._thread = threading.Thread(target=self._submit, args=(rows,), name="jobq-stream", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._gate.close()
        self._thread.join()
        if not self._is_read and self._feed.infos:
            self.batch.cancel()

    def __iter__(self) -> Iterator[Outcome[R]]:
        if self._thread.ident is None:
            raise DeclarationError("A stream is read inside its block: with task.stream(...) as outcomes: ...")
        self._feed.has_begun.wait()
        self._check_begun()
        while found := self._feed.client.run(partial(self.batch.more, self._reading)):
            for outcome in found:
                self._hand_over(outcome)
                yield outcome
        self._end()

    def _submit(self, rows: Iterable[Row]) -> None:
        error: BaseException | None = None
        try:
            self._feed.run(takewhile(lambda _: self._gate.pass_one(), rows))
        except BaseException as exc:  # noqa: BLE001  # it is raised where the outcomes are read
            error = exc
        self._submitted(error)


class AsyncStream(_Streaming[R]):
    """As `Stream`, in an `async with` block. Leaving that early cancels what the source waits for."""

    def __init__(self, feed: Feed, ahead: int, rows: AsyncGenerator[Row, None]) -> None:
        super().__init__(feed, ahead)
        self._rows = rows
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._submit())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        assert self._task is not None
        self._gate.close()
        if not self._is_read:
            self._task.cancel()  # the source may wait for something that never comes
        await self._task
        if not self._is_read and self._feed.infos:
            await self.batch.acancel()

    async def __aiter__(self) -> AsyncIterator[Outcome[R]]:
        if self._task is None:
            raise DeclarationError("A stream is read inside its block: async with task.astream(...) as outcomes: ...")
        await asyncio.to_thread(self._feed.has_begun.wait)
        self._check_begun()
        while found := await self._feed.client.arun(partial(self.batch.more, self._reading)):
            for outcome in found:
                self._hand_over(outcome)
                yield outcome
        self._end()

    async def _submit(self) -> None:
        error: BaseException | None = None
        try:
            await self._feed.arun(self._gated())
        except BaseException as exc:  # noqa: BLE001  # it is raised where the outcomes are read
            error = exc
        self._submitted(error)

    async def _gated(self) -> AsyncGenerator[Row, None]:
        async with aclosing(self._rows):
            async for row in self._rows:
                # On a thread where it has to wait: the caller's loop must go on.
                if not self._gate.pass_at_once():
                    await asyncio.to_thread(self._gate.pass_one)
                if self._gate.is_closed:
                    return
                yield row
