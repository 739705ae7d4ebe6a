"""What may be changed from the page, where that was allowed: cancel, retry, purge; pause, resume and drain a queue.

Each does what the library's own method does, for at most MOST_IDS calls a time, and may be asked for again. A group of dead letters
is those that were seen: what has failed since is left for the next look.

Next: `../handle.py`, `../dead_letters.py`, `../maps/batch.py`, `../control.py`, which do it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from .. import layout
from ..errors import DeclarationError, JobQError
from ..ledger import Ledger
from ..maps.batch import Batch
from ..maps.retrying import run_failures
from ..printable import printable
from .failed_data import ids_of
from .letter_groups import MOST_IDS, Group
from .refresh import Refresh

AT_A_TIME = 16
"""Calls worked on at a time."""

Asked = dict[str, Any]
Done = dict[str, Any]


class Actions:
    """The actions by name. Each answers how many were `done`, what was `left` and why, and the first `problem`."""

    def __init__(self, refresh: Refresh) -> None:
        self._refresh, self._app = refresh, refresh.app
        self._by_name: dict[str, Callable[[Asked], Awaitable[Done]]] = {
            "cancel": self._cancel,
            "retry": self._retry,
            "purge": self._purge,
            "pause": lambda asked: self._order(asked, self._app.apause),
            "resume": lambda asked: self._order(asked, self._app.aresume),
            "drain": lambda asked: self._order(asked, self._app.adrain),
        }

    async def act(self, name: str, asked: Asked) -> Done:
        """Do it. Raises DeclarationError for what is no action, or says not of what."""
        if name not in self._by_name:
            raise DeclarationError(f"{name!r} is no action. There are: {', '.join(self._by_name)}.")
        try:
            return await self._by_name[name](asked)
        except DeclarationError:
            raise
        except JobQError as exc:
            return _done(0, {"": printable(str(exc))})

    async def _order(self, asked: Asked, order: Callable[[str], Awaitable[None]]) -> Done:
        queue = asked.get("queue")
        if not isinstance(queue, str) or queue not in self._refresh.seen.queues:
            raise DeclarationError(f"Say which of the app's queues is meant; got {queue!r}.")
        await order(queue)
        self._refresh.changed_orders(queue)
        return _done(1)

    async def _cancel(self, asked: Asked) -> Done:
        ids, left = self._ids(asked), dict[str, str]()
        # Where a call runs is not known, and tasks that would name their queues are not imported here.
        self._app.client.queues.update(self._refresh.seen.queues)

        async def cancel(each: str) -> None:
            if layout.batch_of(each):
                left[each] = "It belongs to a batch, which is cancelled as a whole."
            elif layout.CALL_ID.fullmatch(each):
                if not await self._app.handle(each, queue=_queue(asked)).acancel():
                    left[each] = "It had ended."
            else:
                await self._app.batch(each).acancel()

        await _for_each(ids, cancel, left)
        self._refresh.changed_batches()
        return _done(len(ids) - len(left), left)

    async def _retry(self, asked: Asked) -> Done:
        ids = self._ids(asked)
        seen = self._refresh.seen
        batches = [each for each in ids if each in seen.batches or each in seen.letters.batches or each == asked.get("batch")]
        single, left, done = [each for each in ids if each not in batches], dict[str, str](), [0]

        async def retry(each: str) -> None:
            done[0] += await _retry_batch(self._app.batch(each), _error(asked))

        await _for_each(batches, retry, left)
        if single:
            retried = await self._app.dead_letters.aretry(*single)
            left |= {each: printable(why) for each, why in retried.left.items()}
            done[0] += len(retried.handles) + len(retried.put_back)
        self._refresh.changed_letters()
        return _done(done[0], left)

    async def _purge(self, asked: Asked) -> Done:
        ids = self._ids(asked)
        purged = await self._app.dead_letters.apurge(*ids)
        self._refresh.changed_letters()
        why = "It is being retried, has calls that still run, or is there no more."
        return _done(len(purged), {each: why for each in ids if each not in purged})

    def _ids(self, asked: Asked) -> list[str]:
        """Which are meant; raises DeclarationError for none, for too many, and for what is no id."""
        ids = asked.get("ids", [asked["batch"]] if "batch" in asked else None)
        if isinstance(group := asked.get("group"), dict):
            ids = ids_of(self._refresh, Group(*(str(group.get(name, "")) for name in Group._fields)), str(group.get("batch") or ""))
        if not isinstance(ids, list) or not ids or not all(isinstance(each, str) and each for each in ids):
            raise DeclarationError("Say which are meant, by their ids; or there are none of them any more.")
        if len(ids) > MOST_IDS:
            raise DeclarationError(f"At most {MOST_IDS:,} at a time; these are {len(ids):,}.")
        return list(dict.fromkeys(ids))


async def _retry_batch(batch: Batch[Any], error: str) -> int:
    """Have the failures of a batch run again, those with this type of exception if one is named."""

    async def run(ledger: Ledger) -> int:
        return await run_failures(batch.client, ledger, batch.id, await batch.meta(ledger), error=error)

    count = await batch.client.arun(run)
    await batch.client.arun_taken()
    return count


def _error(asked: Asked) -> str:
    """The type of exception that is meant, of a group or of a batch's failures; empty for all."""
    group = asked.get("group")
    said = (group if isinstance(group, dict) else asked).get("error")
    return said if isinstance(said, str) else ""


def _queue(asked: Asked) -> str | None:
    queue = asked.get("queue")
    return queue if isinstance(queue, str) and queue else None


async def _for_each(ids: Iterable[str], work: Callable[[str], Awaitable[None]], left: dict[str, str]) -> None:
    """Do it for each, some at a time; what goes wrong with one is why that one is left."""
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(each: str) -> None:
        async with room:
            try:
                await work(each)
            except JobQError as exc:
                left[each] = printable(str(exc))

    await asyncio.gather(*map(one, ids))


def _done(count: int, left: dict[str, str] | None = None) -> Done:
    return {"done": count, "problem": next(iter((left or {}).values()), None), "left": left or {}}
