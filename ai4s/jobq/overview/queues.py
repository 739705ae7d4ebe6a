"""An app's queues as a person looks after them: `app.queues` says how full they are, who works, what lies there; and clears.

Nothing here takes a message, but `clear`. What is counted is about right, not exact: the storage counts messages approximately, and
a pack's calls end while its message stays.

Next: `backlog.py` for calls in packs, `fleet.py` for workers, `glance.py` for messages, `clearing.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from .. import layout
from ..batches import BatchLedger
from ..client import Client
from ..errors import AccessDenied, JobQError, NotFound
from ..ledger import Ledger
from ..message import Control
from ..printable import printable
from ..retry import whole_number
from ..transports.base import MAX_RECEIVE
from . import clearing, fleet
from .backlog import OpenBatch, open_batches
from .clearing import Cleared
from .fleet import WorkerStatus
from .glance import Peeked, peeked

__all__ = ["Cleared", "OpenBatch", "Peeked", "QueueStatus", "Queues", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How a queue stands.

    `messages` counts all of them, also those that workers hold and those that are delayed. `calls` is about how many calls these
    are: a pack counts as what is still to be done of it. `drained_at` is when it was drained last, in epoch seconds by the server's
    clock, 0 if it never was.
    """

    name: str
    messages: int
    calls: int
    paused: bool = False
    drained_at: float = 0.0


class Queues:
    """The queues of an app: `app.queues`. Each method has an async twin with the prefix `a`.

    All but `clear` only look. Raises NotFound where the app has no queue yet.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> _Statuses:
        """How each of the app's queues stands, by name; some requests for each queue, and a listing of all batches.

        Found are all queues of the app where one may list them; else those which tasks, workers, orders and dead letters name.
        """
        return self._client.run(self.statuses)

    async def alist(self) -> _Statuses:
        """As `list`."""
        return await self._client.arun(self.statuses)

    def depth(self, queue: str | None = None) -> int:
        """How many messages lie in a queue, or in all of them: one request for each, after one that finds them."""
        return self._client.run(lambda ledger: self._depth(ledger, self._checked(queue)))

    async def adepth(self, queue: str | None = None) -> int:
        """As `depth`."""
        return await self._client.arun(lambda ledger: self._depth(ledger, self._checked(queue)))

    def workers(self) -> _Workers:
        """What the app's workers last said of themselves, by id; those that have ended are among them for a day. One listing."""
        return self._client.run(fleet.workers)

    async def aworkers(self) -> _Workers:
        """As `workers`."""
        return await self._client.arun(fleet.workers)

    def batches(self) -> _Batches:
        """The batches with calls still to be done. Two listings, which grow with what all batches left, and a read for each."""
        return self._client.run(self._batches)

    async def abatches(self) -> _Batches:
        """As `batches`."""
        return await self._client.arun(self._batches)

    def peek(self, n: int = 1, queue: str = layout.DEFAULT_QUEUE) -> _Messages:
        """Up to `n` messages, at most 32, that a worker could take now, in no particular order. They stay as they are."""
        return self._client.run(self._peeking(n, queue))

    async def apeek(self, n: int = 1, queue: str = layout.DEFAULT_QUEUE) -> _Messages:
        """As `peek`."""
        return await self._client.arun(self._peeking(n, queue))

    def clear(self, queue: str = layout.DEFAULT_QUEUE, *, force: bool = False) -> Cleared:
        """Cancel all calls that wait in a queue.

        Args:
            queue: one of the app's.
            force: remove all messages at once, whatever they are, also those of calls that run. No outcome is written: who waits
                for such a call waits in vain, and a batch never ends.

        Without `force`, each call that waits gets the outcome "cancelled" and its message goes. Of packs the whole batch is asked
        to stop, which the next worker that comes by carries out. Left alone is what cannot be received now (calls that run or are
        delayed), and what cannot be read. If this raises, repeat it.
        """
        return self._client.run(lambda ledger: clearing.clear(ledger, self._named(queue), force=force))

    async def aclear(self, queue: str = layout.DEFAULT_QUEUE, *, force: bool = False) -> Cleared:
        """As `clear`."""
        return await self._client.arun(lambda ledger: clearing.clear(ledger, self._named(queue), force=force))

    def __repr__(self) -> str:
        return f"<Queues of {self._client.name} at {self._client.place.label}>"

    def _named(self, queue: str) -> str:
        return layout.check_queue_name(self._client.name, queue)

    def _checked(self, queue: str | None) -> str | None:
        return None if queue is None else self._named(queue)

    async def statuses(self, ledger: Ledger) -> _Statuses:
        """See `list`."""
        names = await self.names(ledger)
        batches = await _open_batches(ledger)
        return [*await asyncio.gather(*(_status(ledger, name, batches) for name in names))]

    async def _depth(self, ledger: Ledger, queue: str | None) -> int:
        names = await self.names(ledger) if queue is None else [queue]
        return sum(await asyncio.gather(*(_depth(ledger, name) for name in names)))

    async def _batches(self, ledger: Ledger) -> _Batches:
        found = await open_batches(ledger)
        running = fleet.running_calls(await fleet.workers(ledger)) if found else {}
        return [replace(batch, running=min(batch.waiting, running.get(batch.id, 0))) for batch in found]

    def _peeking(self, n: int, queue: str) -> Callable[[Ledger], Coroutine[Any, Any, _Messages]]:
        wanted, name = min(whole_number("n", n, least=1), MAX_RECEIVE), self._named(queue)
        return lambda ledger: self.messages(ledger, wanted, name)

    async def messages(self, ledger: Ledger, n: int, queue: str) -> _Messages:
        """See `peek`."""
        texts = await (await ledger.queue(queue)).peek(n)
        found = [peeked(text, queue, ledger.wire) for text in texts]
        tasks = {batch: await _task_of(ledger, batch) for batch in {each.id for each in found if each.kind == "pack"}}
        return [replace(each, task=tasks[each.id]) if each.kind == "pack" else each for each in found]

    async def names(self, ledger: Ledger) -> _Names:
        """The app's queues that are there, the default one first: see `list`. Raises NotFound if there is none."""
        try:
            listed = await ledger.transport.queues(ledger.app)
        except AccessDenied as exc:
            if exc.unknown:
                raise
            found = await self._names_told_of(ledger)
        else:
            found = {name for queue, app in listed.items() if (name := layout.queue_of(ledger.app, queue, app)) is not None}
        if not found:
            raise NotFound(f"There is no queue of the app {ledger.app!r} at {self._client.place.label} yet.")
        return sorted(found, key=lambda name: (name != layout.DEFAULT_QUEUE, name))

    async def _names_told_of(self, ledger: Ledger) -> set[str]:
        """Names that the storage tells of beside the queues, of those that are there."""
        told = set(self._client.queues)
        store = await ledger.store()
        with suppress(NotFound):
            for prefix in (layout.CONTROL, layout.DEAD_LETTERS):
                told |= {info.name.split("/")[1] async for info in store.list(prefix)}
            told |= {name for worker in await fleet.workers(ledger) for name in worker.queues}
        asked = await asyncio.gather(*(_is_there(ledger, name) for name in sorted(told)))
        return {name for name, there in zip(sorted(told), asked, strict=True) if there}


# Where `list` is a method, it is no type.
_Names = list[str]
_Statuses = list[QueueStatus]
_Workers = list[WorkerStatus]
_Batches = list[OpenBatch]
_Messages = list[Peeked]


async def _open_batches(ledger: Ledger) -> _Batches:
    try:
        return await open_batches(ledger)
    except NotFound:  # queues that ai4s-jobq 3.x made have no container beside them
        return []


async def _status(ledger: Ledger, name: str, batches: _Batches) -> QueueStatus:
    messages, control = await asyncio.gather(_depth(ledger, name), _control(ledger, name))
    here = [batch for batch in batches if batch.queue == name]
    in_packs, packs = sum(batch.waiting for batch in here), sum(batch.messages for batch in here)
    # Packs whose messages were dropped are counted by their batches still; where there is no message, no call waits.
    calls = in_packs + max(0, messages - packs) if messages else 0
    return QueueStatus(name, messages, calls, control.paused, control.drained_at)


async def _depth(ledger: Ledger, name: str) -> int:
    return await (await ledger.queue(name)).depth()


async def _control(ledger: Ledger, name: str) -> Control:
    try:
        found = await ledger.control(name)
    except NotFound:
        return Control()
    return found[0] if found else Control()


async def _is_there(ledger: Ledger, name: str) -> bool:
    try:
        layout.check_queue_name(ledger.app, name)
        await ledger.transport.queue(layout.queue_name(ledger.app, name), app=ledger.app).check()
    except JobQError as exc:
        # Who may not look may be able to count: what else is wrong comes out then.
        return isinstance(exc, AccessDenied) and name == layout.DEFAULT_QUEUE
    return True


async def _task_of(ledger: Ledger, batch: str) -> str:
    try:
        meta = await BatchLedger(ledger, batch).meta()
    except JobQError:  # gone, or not for this process: its packs are shown all the same
        return ""
    return printable(meta.call.task) if meta else ""
