"""From a source of items to a submission: what is skipped, which keys are new, and packs that go out while the source still gives.

The source is iterated where the caller is: on its thread, or on its loop. What it gave before it raised is submitted all the same.

Next: `mapping.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import layout
from ..batches import PackInfo
from ..client import Client
from ..clock import boottime
from ..errors import DeclarationError, Malformed, MapInterrupted
from ..ledger import Ledger
from ..options import CallOptions
from ..packing import key_digest
from ..printable import storable
from ..retry import whole_number
from ..wire import MAX_PACK_CALLS
from .batch import Batch
from .fed import Report, Tally
from .mapping import PARTIAL_SECONDS, MapPlan, Submission, encoder
from .pack_maker import MadePack, PackMaker, Row

CHECKS_AT_ONCE = 32
"""Items of which `skip` is asked at a time, and how far the source may be ahead of the answers."""

MAX_KEY_LENGTH = 1024

ITEMS_A_BREATH = 256
"""Items of a plain iterable after which the caller's event loop gets its turn."""

WaitFor = Callable[[Awaitable[bool]], bool]
Skip = Callable[..., bool | Awaitable[bool]]
Key = Callable[..., str]


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What `map` was given, and of how many iterables (`arity`)."""

    arity: int
    kwargs: Mapping[str, Any] | None = None
    batch: str | None = None
    key: Key | None = None
    skip: Skip | None = None
    pack: int | None = None
    ahead: int | None = None
    report: Report | None = None

    @property
    def most(self) -> int:
        """Calls of a pack, at most: several packs must fit between the source and who reads."""
        return MAX_PACK_CALLS if self.ahead is None else max(1, min(MAX_PACK_CALLS, self.ahead // 4))


def check_map(task: str, chosen: MapOptions, options: CallOptions) -> dict[str, Any]:
    """The keyword arguments of all calls; raises DeclarationError for what cannot be."""
    if not chosen.arity:
        raise DeclarationError(f"map wants an iterable for each positional argument, as in {task}.map(range(10)).")
    if options.key is not None or options.rerun_failed:
        raise DeclarationError("options(key=…) is for a single call; map takes key=, which gives each item's key.")
    for name, value, of in (("key", chosen.key, "an item"), ("skip", chosen.skip, "an item"), ("report", chosen.report, "a Fed")):
        if value is not None and not callable(value):
            raise DeclarationError(f"{name} is a function of {of}; got {value!r}.")
    if chosen.pack is not None and whole_number("pack", chosen.pack, least=1) > MAX_PACK_CALLS:
        raise DeclarationError(f"pack must be from 1 to {MAX_PACK_CALLS}; got {chosen.pack!r}.")
    if chosen.batch is not None:
        check_batch_name(chosen.batch)
    if chosen.kwargs is not None and (
        not isinstance(chosen.kwargs, Mapping) or not all(isinstance(name, str) for name in chosen.kwargs)
    ):
        raise DeclarationError(f"kwargs is a dict of keyword arguments; got {chosen.kwargs!r}.")
    return dict(chosen.kwargs or {})


def check_batch_name(name: object) -> str:
    """`name` if a batch can have it; raises DeclarationError that says what would be right."""
    try:
        return layout.check_batch_id(name if isinstance(name, str) else "")
    except Malformed as exc:
        raise DeclarationError(
            f"A batch's name is 1 to {layout.MAX_BATCH_LENGTH} lower-case letters, digits and single hyphens, as in 'campaign-1'; "
            f"got {name!r}."
        ) from exc


class Feed:
    """One map: its source, and the submission that it feeds. Used once, by `run` or by `arun`."""

    def __init__(self, client: Client, plan: MapPlan, *, skip: Skip | None, key: Key | None) -> None:
        self.client, self.name, self._skip, self._key = client, plan.batch, skip, key
        self._codec, self._sending = plan.codec.name, plan.order.sending
        self._submission = Submission(client, plan, self._take_waiting, client.send_pack)
        self._lock = threading.Lock()
        """For all that follows: the source's thread adds to it, and another one takes what has waited for too long."""
        self._maker = PackMaker(encoder(plan.codec), plan.codec, limit=plan.limit, most=plan.most)
        self._oldest = 0.0
        self._asked: deque[tuple[Row, Future[bool]]] = deque()
        self._ready: deque[MadePack] = deque()
        self._in_hand: MadePack | None = None
        self._threads = ThreadPoolExecutor(CHECKS_AT_ONCE, "jobq-skip")
        self._source_error: BaseException | None = None
        self._item_error: BaseException | None = None
        """Of an item that was kept waiting: the first one in their order, after which none is taken."""
        self.on_skip: Callable[[], object] = bool
        """Told of each item that becomes no call."""
        self.tally = Tally()
        """Told how far this is."""
        self.has_begun, self.is_over = threading.Event(), False
        """Whether packs are taken, and whether no more are to come."""
        self.first_new = 0
        """The first index that was free when this began: those before it are of an earlier submission."""

    @property
    def infos(self) -> list[PackInfo]:
        """The packs that were put so far; it grows."""
        return self._submission.infos

    def run(self, rows: Iterable[Row]) -> Batch[Any]:
        """Submit all. Raises what the submission met, and MapInterrupted for what the source raised."""
        with closing(self.tally), self._sending:
            return self._run(rows)

    def _run(self, rows: Iterable[Row]) -> Batch[Any]:
        self.client.run(self._submission.begin)
        self._note_begin()
        error: BaseException | None = None
        try:
            with closing(self._until_it_raises(rows)) as given:
                for row in given:
                    self._take_in(row)
            while (answer := self._answer_due(1)) is not None:
                futures.wait([answer])
                self._admit()
        except BaseException as exc:  # noqa: BLE001  # it is raised again once what came before is safe
            error = exc
        self._close()
        self._offer()
        try:
            infos = self.client.run(self._submission.finish)
        except KeyboardInterrupt as exc:  # once: what was taken is to be safe, unless somebody insists
            infos, error = self.client.run(self._submission.finish), error or exc
        self.client.run_taken()
        return self._batch(infos, error)

    def _take_in(self, row: Row) -> None:
        self._enter(row, self._wait_for)
        while self._asked and (answer := self._answer_due(CHECKS_AT_ONCE)) is not None:
            futures.wait([answer])
            self._admit()
        if self._ready:
            self._offer()
        self.tally.tell(self._submission.queued)

    async def arun(self, rows: AsyncGenerator[Row, None]) -> Batch[Any]:
        """As `run`."""
        with closing(self.tally), self._sending:
            return await self._arun(rows)

    async def _arun(self, rows: AsyncGenerator[Row, None]) -> Batch[Any]:
        await self.client.arun(self._submission.begin)
        self._note_begin()
        error: BaseException | None = None
        wait_for = partial(_wait_on, asyncio.get_running_loop())
        try:
            async with aclosing(self._auntil_it_raises(rows)) as given:
                async for row in given:
                    await self._atake_in(row, wait_for)
            while (answer := self._answer_due(1)) is not None:
                await _answered(answer)
                self._admit()
        except BaseException as exc:  # noqa: BLE001  # it is raised again once what came before is safe
            error = exc
        self._close()
        await self._aoffer()
        try:
            infos = await self.client.arun(self._submission.finish)
        except asyncio.CancelledError as exc:
            infos, error = await self.client.arun(self._submission.finish), error or exc
        await self.client.arun_taken()
        return self._batch(infos, error)

    async def _atake_in(self, row: Row, wait_for: WaitFor) -> None:
        self._enter(row, wait_for)
        while (answer := self._answer_due(CHECKS_AT_ONCE)) is not None:
            await _answered(answer)
            self._admit()
        await self._aoffer()
        self.tally.tell(self._submission.queued)

    def _note_begin(self) -> None:
        self.first_new = self.infos[-1].indices.stop if self.infos else 0
        self.has_begun.set()

    def _batch(self, infos: list[PackInfo], error: BaseException | None) -> Batch[Any]:
        batch: Batch[Any] = Batch(self.client, self.name, infos, codec=self._codec)
        error = error or self._item_error or self._source_error
        self._sending.sent(messages=self._submission.sent, calls=self._submission.queued)
        try:
            self.tally.tell(self._submission.queued, now=True)
        except Exception as exc:  # noqa: BLE001  # the user's listener; what was submitted is safe by now
            error = error or exc
        if error is None:
            return batch
        calls = sum(len(info.indices) for info in infos)
        if not isinstance(error, Exception):
            error.add_note(f"{calls} calls were submitted before: app.batch({batch.id!r}).")
            raise error
        raise MapInterrupted(
            f"{type(error).__name__} after {calls} calls were submitted, which go on as batch {batch.id!r}: {error}", batch=batch
        ) from error

    # the source

    def _until_it_raises(self, rows: Iterable[Row]) -> Generator[Row, None, None]:
        try:
            yield from rows
        except GeneratorExit:
            raise
        except BaseException as exc:  # noqa: BLE001  # it is raised once what the source gave before is safe
            self._source_error = exc

    async def _auntil_it_raises(self, rows: AsyncGenerator[Row, None]) -> AsyncGenerator[Row, None]:
        given = 0
        try:
            async for row in rows:
                yield row
                given += 1
                if given % ITEMS_A_BREATH == 0:
                    await asyncio.sleep(0)
        except GeneratorExit:
            raise
        except BaseException as exc:  # noqa: BLE001  # as above
            self._source_error = exc
        finally:
            await rows.aclose()

    def _enter(self, row: Row, wait_for: WaitFor) -> None:
        """Take an item, or ask whether it is to be skipped."""
        self.tally.considered += 1
        if self._skip is None:
            with self._lock:
                self._take(row)
            return
        answer = self._threads.submit(_ask, self._skip, row, wait_for)
        with self._lock:
            self._asked.append((row, answer))
        self._admit()

    def _answer_due(self, most: int) -> Future[bool] | None:
        """The answer to be waited for, if there are so many items without one."""
        with self._lock:
            return self._asked[0][1] if len(self._asked) >= most else None

    def _wait_for(self, answer: Awaitable[bool]) -> bool:
        async def wait(_: Ledger) -> bool:
            return await answer

        return self.client.run(wait)

    def _admit(self) -> None:
        """Take the items, in their order, of which is known that they are not to be skipped; raises what `skip` raised."""
        with self._lock:
            while self._item_error is None and self._asked and self._asked[0][1].done():
                self._admit_one(*self._asked.popleft())
            if self._item_error is not None:
                raise self._item_error

    def _admit_one(self, row: Row, is_skipped: Future[bool]) -> None:
        try:
            if is_skipped.result():
                self._pass_over()
            else:
                self._take(row)
        except BaseException as exc:  # noqa: BLE001  # it is raised where the source is
            self._item_error = exc

    # packs

    def _take(self, row: Row) -> None:
        key = None if self._key is None else _checked_key(self._key(*row))
        if key is not None:
            digest = key_digest(key)
            if digest in self._submission.known_keys:
                self._pass_over()
                return
        if not self._maker.count:
            self._oldest = boottime()
        is_full = self._maker.add(row, key)
        if key is not None:
            self._submission.known_keys.add(digest)
        if is_full:
            self._ready.append(self._maker.take())

    def _pass_over(self) -> None:
        self.tally.skipped += 1
        self.on_skip()

    def _take_waiting(self) -> list[MadePack]:
        """What has waited for too long while the source gives nothing; on another thread than the source's."""
        with suppress(Exception):  # raised where the source is, too
            self._admit()
        with self._lock:
            if self._maker.count and boottime() - self._oldest >= PARTIAL_SECONDS:
                self._ready.append(self._maker.take())
            waiting = list(self._ready)
            self._ready.clear()
            return waiting

    def _close(self) -> None:
        """What is left is a pack."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            if self._maker.count:
                self._ready.append(self._maker.take())

    def _next_pack(self) -> MadePack | None:
        """The pack to be offered, until that is done: offering may be interrupted, and then begins anew."""
        with self._lock:
            if self._in_hand is None and self._ready:
                self._in_hand = self._ready.popleft()
            return self._in_hand

    def _offer(self) -> None:
        while (made := self._next_pack()) is not None:
            self.client.run(partial(_offered, self._submission, made))
            self._in_hand = None
            self.client.run_taken()

    async def _aoffer(self) -> None:
        while (made := self._next_pack()) is not None:
            await self.client.arun(partial(_offered, self._submission, made))
            self._in_hand = None
            await self.client.arun_taken()


async def _offered(submission: Submission, made: MadePack, ledger: Ledger) -> None:
    await submission.offer(ledger, made)


def _ask(skip: Skip, row: Row, wait_for: WaitFor) -> bool:
    answer: Any = skip(*row)
    return bool(wait_for(answer) if inspect.isawaitable(answer) else answer)


def _wait_on(loop: asyncio.AbstractEventLoop, answer: Awaitable[bool]) -> bool:
    async def wait() -> bool:
        return await answer

    return asyncio.run_coroutine_threadsafe(wait(), loop).result()


async def _answered(answer: Future[bool]) -> None:
    """Wait until it is there; what it is, `_admit` asks."""
    wrapped = asyncio.wrap_future(answer)
    wrapped.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait([wrapped])


def _checked_key(key: object) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_LENGTH or storable(key) != key:
        raise DeclarationError(
            f"key= gives each item a text of 1 to {MAX_KEY_LENGTH} characters that UTF-8 can hold; it gave {key!r}."
        )
    return key
