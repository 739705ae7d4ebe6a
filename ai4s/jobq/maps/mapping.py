"""Submitting a batch: items to packs, packs to storage while the source still gives items, and back pressure in between.

A pack's input is there before its message, and before the next one's input; at most eight messages are on their way. So a crash
leaves at most eight packs without a message, which whoever resumes the batch sends again: the inputs say which ones have theirs.
When a submission has returned, all calls are durable; when it raised, those that were taken from the source are.

Next: `pack_maker.py` for the packs, `batch.py` for what the caller gets; on the other side, `worker/pack.py`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from .. import layout
from ..batches import BatchLedger, PackInfo, first_header
from ..client import Client
from ..codec import Codec
from ..errors import BatchConflict
from ..ledger import Ledger
from ..message import BatchMeta, BatchTotal, PackHeader, Spill
from ..packing import key_digest
from ..parts import Parts
from ..payload import python_minor
from ..requests_made import Requests, charged_to
from ..submission import Order, guard, timed
from ..wire import MAX_PACK_CALLS
from .pack_maker import MAX_COPIED_BYTES, Encode, MadePack

UNACKNOWLEDGED = 8
"""Pack messages on their way at a time, and so the packs that may lack one after a crash."""

PACKS_AHEAD = 4
"""Packs that wait to be put: enough to hide a request's latency, few enough to stay small."""

PARTIAL_SECONDS = 1.0
"""How long an item waits, about, for the pack to be full that it is in."""

LOOK_SECONDS = 0.25
"""Between two looks whether one has waited for so long."""

UPLOADS_IN_FLIGHT = 8
"""Large arguments of one pack that are put at a time."""


class SendPack(Protocol):
    """The step that puts a pack's message on its queue."""

    async def __call__(self, ledger: Ledger, pack: PackHeader, /, delay_seconds: float = 0) -> None: ...


@dataclass(frozen=True, slots=True)
class MapPlan:
    """What is to be submitted, but for the items: `order` holds the call that all have in common, with their keyword arguments."""

    batch: str
    order: Order
    codec: Codec
    vector: int = 0
    limit: int | None = None
    most: int = MAX_PACK_CALLS
    keyed: bool = False


@dataclass(slots=True)
class _Progress:
    """How far a submission is: the next pack's number, the next call's index, and what was put."""

    pack: int = 0
    index: int = 0
    infos: list[PackInfo] = field(default_factory=list)

    def note(self, info: PackInfo) -> None:
        self.pack, self.index = info.pack + 1, info.indices.stop
        self.infos.append(info)


class Submission:
    """One batch on its way. Packs are offered in any order and put in that of their numbers. For the portal's loop."""

    def __init__(self, client: Client, plan: MapPlan, take_waiting: Callable[[], list[MadePack]], send: SendPack) -> None:
        self._client, self._plan, self._take_waiting, self._send = client, plan, take_waiting, send
        self._progress = _Progress()
        self.known_keys: set[bytes] = set()
        """Digests of the keys that were there, or that this submission has taken; it grows."""
        self._taken: set[bytes] = set()
        """Digests of the keys that others have put meanwhile."""
        self._unsent: set[int] = set()
        """Packs whose messages may not be there, others' among them."""
        self._token = secrets.token_hex(8)
        self._offered: dict[int, MadePack] = {}
        self._next = 0
        self._changed = asyncio.Condition()
        self._is_over = False
        self._error: BaseException | None = None
        self.queued = 0
        """Calls that this submission has put."""
        self.sent = 0
        """Messages that it has sent for them."""
        self._goes_on = False
        """Whether the batch was there before."""
        self._pumping: asyncio.Task[None]
        self._account = Requests()
        """What this submission asks of the storage; the total tells it."""

    @property
    def infos(self) -> list[PackInfo]:
        """The packs that were put so far."""
        return self._progress.infos

    async def begin(self, ledger: Ledger) -> None:
        """Say what the calls have in common, or find what is there of them already; from then on packs are taken.

        Raises BatchConflict if the name was used for something else, TransportError.
        """
        with charged_to(self._account):
            await self._begin(ledger)
            self._pumping = asyncio.create_task(self._pump(ledger))

    async def _begin(self, ledger: Ledger) -> None:
        self._batch = BatchLedger(ledger, self._plan.batch)
        now = await ledger.transport.server_time()
        self._call, self._delay_seconds = timed(self._plan.order, now)
        self._call = replace(self._call, id=layout.packed_call_id(self._plan.batch, 0))
        await self._client.publish(ledger, self._plan.order.payloads)
        await self._claim(ledger)

    async def offer(self, ledger: Ledger, made: MadePack) -> None:
        """Take a pack, once there is room, and wait until it is put if it borrows memory; raises what an earlier one met.

        May be repeated if it was cancelled.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._error is not None or self._has_room(made))
            if made.number >= self._next:
                self._offered[made.number] = made
                self._changed.notify_all()
            await self._changed.wait_for(lambda: self._error is not None or not made.borrows or made.number < self._next)
            if self._error is not None:
                raise self._error.with_traceback(None)

    def _has_room(self, made: MadePack) -> bool:
        """Whether a pack may be taken: the one that is next always, others while there are few, and not many bytes."""
        held_bytes = sum(each.large_bytes for each in self._offered.values())
        is_small = held_bytes + made.large_bytes <= MAX_COPIED_BYTES or not made.large
        return made.number <= self._next or (made.number < self._next + PACKS_AHEAD and is_small)

    async def finish(self, ledger: Ledger) -> list[PackInfo]:
        """Wait until all is durable and say how much it is; returns the packs. Raises TransportError."""
        async with self._changed:
            self._is_over = True
            self._changed.notify_all()
        # Shielded: who is interrupted while waiting here may wait again.
        await asyncio.shield(self._pumping)
        if self._error is not None:
            raise self._error.with_traceback(None)
        with charged_to(self._account):
            await self._finish(ledger)
        return self._progress.infos

    async def _finish(self, ledger: Ledger) -> None:
        if self._unsent:
            await self._resend(ledger, [info async for info in self._batch.packs()], self._unsent)
        total = BatchTotal(self._progress.index, self._progress.pack, ended=True)
        await self._batch.say_total(total)
        if self._goes_on:
            # An old batch may be removed while somebody goes on with it: who is that late hears of it now.
            await self._batch.meta()

    # what is there

    async def _claim(self, ledger: Ledger) -> None:
        call, order = self._call, self._plan.order
        if order.large is not None:
            call = replace(call, arguments=await self._batch.put_arguments(order.large))
        meta = BatchMeta(call, self._plan.vector, self._plan.keyed)
        if await self._batch.put_meta(meta):
            return
        self._goes_on = True
        standing = await self._batch.meta()
        infos = [info async for info in self._batch.packs()]
        problem = "It was just removed" if standing is None else _difference(standing, meta, has_packs=bool(infos))
        if standing is None or problem:
            raise BatchConflict(
                f"There is a batch {self._plan.batch!r} already. {problem}. "
                "To go on with it, map the same task with the same kwargs and with key=, as when it was begun; "
                "else give this one another name."
            )
        self._call = replace(standing.call, sent=self._call.sent)
        for info in infos:
            self.known_keys.update(await self._adopt(info))
        await self._resend(ledger, infos, {info.pack for info in infos})

    async def _resend(self, ledger: Ledger, infos: list[PackInfo], doubtful: set[int]) -> None:
        """Send the messages of packs that others have put, and may have died before sending; a log says that one was sent.

        Not the last ones alone: a message may have hung while those after it went through.
        """
        sent = await self._sent(infos)
        for info in infos:
            if info.pack >= sent and info.pack in doubtful and not await self._has_log(ledger, info.pack):
                await self._send(ledger, replace(self._header(info), resent=True), self._delay_seconds)

    async def _sent(self, infos: list[PackInfo]) -> int:
        """Below which number all packs have their messages for sure."""
        total = await self._batch.total()
        said = total.packs if total is not None and total.ended else 0
        return max([said, *(info.sent for info in infos)])

    async def _adopt(self, info: PackInfo) -> list[bytes]:
        """Count a pack that is there as one of this submission; returns the digests of its keys."""
        self._progress.note(info)
        return list(map(key_digest, await self._batch.keys(info)))

    async def _has_log(self, ledger: Ledger, pack: int) -> bool:
        store = await ledger.store()
        async for _ in store.list(layout.log_entries(self._plan.batch) + layout.root_log(pack), page=1):
            return True
        return False

    # packs

    async def _pump(self, ledger: Ledger) -> None:
        """Put one pack after the other; their messages may overtake each other."""
        sending = asyncio.Semaphore(UNACKNOWLEDGED)
        try:
            async with asyncio.TaskGroup() as group:
                while (made := await self._next_pack()) is not None:
                    info = await self._put(made)
                    await sending.acquire()
                    header = None if info is None else self._header(info, has_code=made.has_code)
                    group.create_task(self._send_one(ledger, header, sending))
                    await self._pass()
        except BaseExceptionGroup as failed:
            await self._fail(failed)

    async def _pass(self) -> None:
        async with self._changed:
            del self._offered[self._next]
            self._next += 1
            self._changed.notify_all()

    async def _fail(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):  # of which the others are consequences, or the same
            error = error.exceptions[0]
        self._error = error
        async with self._changed:
            self._changed.notify_all()

    async def _next_pack(self) -> MadePack | None:
        while True:
            async with self._changed:
                await self._look_for_news()
                if self._next in self._offered:
                    return self._offered[self._next]
                if self._is_over:
                    return None
            # The source is slow: what it has given so far goes out as it is. On a thread, since items are encoded there.
            self._offered.update((made.number, made) for made in await asyncio.to_thread(self._take_waiting))

    async def _look_for_news(self) -> None:
        # Not wait_for, which in Python 3.11 forgets a cancellation that comes together with the news.
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._changed.wait_for(self._has_news)

    def _has_news(self) -> bool:
        return self._next in self._offered or self._is_over

    async def _put(self, made: MadePack) -> PackInfo | None:
        """Put a pack's input under the next number; None if others have submitted all of its calls meanwhile."""
        progress, made = self._progress, self._without_taken(made)
        while made.count:
            content, sent = made.input(await self._spilled(made)), min(self._unsent, default=progress.pack)
            info = await self._batch.put_input(progress.pack, progress.index, content, sent=sent, token=self._token)
            if info is not None:
                progress.note(info)
                self.queued += made.count
                self._unsent.add(info.pack)
                return info
            await self._note_taken()
            made = self._without_taken(made)
        return None

    async def _spilled(self, made: MadePack) -> dict[int, Spill]:
        room = asyncio.Semaphore(UPLOADS_IN_FLIGHT)

        async def put(parts: Parts) -> Spill:
            async with room:
                return await self._batch.put_arguments(parts)

        async with asyncio.TaskGroup() as group:
            putting = {place: group.create_task(put(parts)) for place, parts in made.large.items()}
        return {place: task.result() for place, task in putting.items()}

    async def _note_taken(self) -> None:
        """Somebody else goes on with this batch at the same time: see what they have put."""
        if not self._plan.keyed:
            raise BatchConflict(
                f"Somebody else submits to the batch {self._plan.batch!r}: give yours another name, or map with key=."
            )
        async for info in self._batch.packs():
            if info.pack >= self._progress.pack:
                self._taken.update(await self._adopt(info))
                self._unsent.add(info.pack)

    def _without_taken(self, made: MadePack) -> MadePack:
        """The same pack without what others have put since this submission began."""
        if self._taken.isdisjoint(map(key_digest, made.keys)):
            return made
        return made.without(lambda key: key_digest(key) in self._taken, encoder(self._plan.codec), self._plan.codec)

    async def _send_one(self, ledger: Ledger, header: PackHeader | None, sending: asyncio.Semaphore) -> None:
        try:
            if header is not None:
                await self._send(ledger, header, self._delay_seconds)
                self.sent += 1
                self._unsent.discard(header.pack)
        finally:
            sending.release()

    def _header(self, info: PackInfo, *, has_code: bool = True) -> PackHeader:
        call = self._call
        python = call.python or (python_minor() if has_code else None)
        return replace(first_header(self._plan.batch, info, call), python=python, not_before=call.eta)


def encoder(codec: Codec) -> Encode:
    """How the arguments of one call are encoded, apart from the keyword arguments that all share."""
    return lambda row: codec.dumps(row, guard(codec))


def _difference(standing: BatchMeta, wanted: BatchMeta, *, has_packs: bool) -> str:
    """Why a submission cannot go on with a batch; nothing if it can."""
    there, here = standing.call, wanted.call
    if there.task != here.task:
        return f"It is of task {there.task}, and this is {here.task}"
    if standing.keyed != wanted.keyed or (has_packs and not wanted.keyed):
        return "It was begun with key=, and this is not" if standing.keyed else "It was begun without key="
    for what, one, other in (
        ("queue", there.queue, here.queue),
        ("codec", there.codec, here.codec),
        ("vector", standing.vector, wanted.vector),
    ):
        if one != other:
            return f"Its {what} is {one!r}, and here it is {other!r}"
    return "Its kwargs, as encoded, are others" if there.arguments != here.arguments else ""
