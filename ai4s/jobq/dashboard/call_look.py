"""One call, looked at: its outcome and those of its earlier runs, its dead letter or its message, its last checkpoint. Bytes only.

What cannot change any more is read once. A call that has not ended costs a read, a listing, and a peek at each queue that it may
lie in, each time that it is looked at; nobody can be asked where a message lies.

Next: `call_data.py`, which shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from .. import layout, reruns
from ..app import App
from ..batches import BatchLedger
from ..errors import JobQError, MessageError, NotFound, ResultGone
from ..handle import Handle
from ..ledger import Ledger
from ..maps.batch import Batch
from ..maps.reading import Extent
from ..message import Call, DeadLetter, Outcome, PackHeader, State
from ..transports.base import MAX_RECEIVE
from .arguments import Shown, shown_arguments, shown_item, spilled

MOST_QUEUES = 4
"""That are peeked at for a call whose queue nobody knows."""

MOST_RUNS = 20
"""Earlier runs that are told of."""


@dataclass(slots=True)
class Kept:
    """A checkpoint as a listing tells of it; `saved` is in epoch seconds by the server's clock."""

    number: int
    size: int
    saved: float


@dataclass(slots=True)
class Look:
    """What is known of a call. `message` is its call as it travels, from its dead letter or its queue."""

    outcome: Outcome | None = None
    is_forgotten: bool = False
    message: Call | None = None
    is_waiting: bool = False
    earlier: list[Outcome] = field(default_factory=list)
    arguments: Shown | None = None
    task: str = ""
    queue: str = ""
    checkpoint: Kept | None = None


class CallLook:
    """Looks at one call again and again. For the portal's loop."""

    def __init__(self, app: App, call: str) -> None:
        self._app, self._call = app, call
        self._handle: Handle[Any] = app.handle(call)
        self._look = Look()
        self._letters: dict[int, Call | None] = {}
        self._extent = Extent()

    @property
    def handle(self) -> Handle[Any]:
        """The call's."""
        return self._handle

    async def look(self, ledger: Ledger, queues: Iterable[str]) -> Look:
        """What is known now; `queues` are those that it may lie in. Raises JobQError for a call that its batch does not have."""
        look = self._look
        try:
            look.outcome = await self._handle.look(ledger)
        except ResultGone:
            look.outcome, look.is_forgotten = None, True
            return replace(look)
        if (batch := layout.batch_of(self._call)) is not None:
            await self._look_in_batch(ledger, batch)
        elif look.outcome is None:
            await self._look_for_message(ledger, queues)
        else:
            await self._look_back(ledger, look.outcome)
        if look.outcome is None or look.outcome.state is State.FAILED:
            look.checkpoint = await self._last_checkpoint(ledger)
        return replace(look, earlier=[*look.earlier])  # whoever shows it does so while this goes on

    # a single call

    async def _look_for_message(self, ledger: Ledger, queues: Iterable[str]) -> None:
        """Find it among the messages that could be received now: one that runs, is delayed, or waits farther back is not there."""
        self._look.is_waiting = False
        for queue in [*queues][:MOST_QUEUES]:
            with suppress(NotFound):
                texts = await (await ledger.queue(queue)).peek(MAX_RECEIVE)
                if (found := self._message_in(texts, queue, ledger)) is not None:
                    self._look.is_waiting = True
                    self._keep(found)
                    return

    def _message_in(self, texts: list[str], queue: str, ledger: Ledger) -> Call | None:
        for text in texts:
            with suppress(MessageError):
                found = ledger.wire.unseal_message(text, queue)
                if isinstance(found, Call) and found.id == self._call:
                    return found
        return None

    async def _look_back(self, ledger: Ledger, outcome: Outcome) -> None:
        """What came before the outcome: earlier runs, and where it failed, the call itself."""
        look = self._look
        look.task, look.queue = outcome.task, outcome.queue
        if outcome.state is State.FAILED and outcome.run not in self._letters:
            self._letters[outcome.run] = await self._letter(ledger, outcome)
        if (found := self._letters.get(outcome.run)) is not None:
            self._keep(found)
        known = {each.run for each in look.earlier}
        for run in range(max(1, outcome.run - MOST_RUNS), outcome.run):
            if run not in known:
                with suppress(JobQError):
                    found_before = await ledger.outcome(self._call, run)
                    look.earlier += [found_before] if found_before else []

    async def _letter(self, ledger: Ledger, outcome: Outcome) -> Call | None:
        with suppress(MessageError):
            letter = await reruns.letter_blob(ledger, layout.dead_letter(outcome.queue, outcome.call, outcome.run))
            if letter.data:
                return ledger.wire.unseal(DeadLetter, letter.data, letter.name).call
        return None

    def _keep(self, call: Call) -> None:
        look = self._look
        look.message, look.task, look.queue = call, call.task, call.queue
        look.arguments = look.arguments or shown_arguments(call)

    # a call of a batch

    async def _look_in_batch(self, ledger: Ledger, batch_id: str) -> None:
        look = self._look
        batch: Batch[Any] = self._app.batch(batch_id)
        if look.arguments is None:
            meta = await batch.meta(ledger)
            look.task, look.queue = meta.call.task, meta.call.queue
            look.arguments = await self._packed_arguments(BatchLedger(ledger, batch_id), meta.call)

    async def _packed_arguments(self, batch: BatchLedger, common: Call) -> Shown | None:
        index = int(self._call.rpartition(".")[2])
        await self._extent.look(batch)
        info = self._extent.pack_of(index)
        if info is None:
            return None
        header = PackHeader(
            batch=batch.batch,
            pack=info.pack,
            queue=common.queue,
            sent=common.sent,
            input=info.input,
            first=info.indices.start,
            count=len(info.indices),
            todo="",
            log=layout.root_log(info.pack),
        )
        try:
            found = await batch.input(header)
        except JobQError:
            return None  # its input was removed
        place = index - info.indices.start
        if place in found.spilled:
            return spilled(found.spilled[place])
        (piece,) = found.pieces([place])
        return shown_item(piece, common.codec)

    # both

    async def _last_checkpoint(self, ledger: Ledger) -> Kept | None:
        found: list[Kept] = []
        async for info in (await ledger.store()).list(layout.checkpoints(self._call), with_metadata=True):
            number = info.name.rpartition("-")[2]
            if number.isdecimal() and len(number) <= 15:
                found.append(Kept(int(number), info.size, info.modified))
        return max(found, key=lambda kept: kept.saved, default=None)
