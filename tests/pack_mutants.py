"""Rules of the pack protocol, each removed for the length of a block: whoever plays histories must notice.

Next: `unit/test_pack_model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from ai4s.jobq import layout
from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.packing import Code, Entry, Packed
from ai4s.jobq.worker import pack_log
from ai4s.jobq.worker.pack import _PackRun
from ai4s.jobq.worker.pack_calls import PackCalls
from ai4s.jobq.worker.pack_log import PackLog


def late_outcomes_kept() -> AbstractContextManager[Any]:
    """What ends after another entry has it is logged all the same."""

    def end(self: PackCalls, outcome: Packed) -> None:
        self.running.discard(outcome.at)
        self.pending.setdefault(outcome.at, outcome)

    return patch.object(PackCalls, "end", end)


def plain_puts() -> AbstractContextManager[Any]:
    """An entry replaces the one that stands."""

    async def put_entry(self: BatchLedger, log: str, seq: int, data: bytes, metadata: Mapping[str, str]) -> bool:
        await (await self.ledger.store()).put(layout.log_entry(self.batch, log, seq), data, metadata={})
        return True

    return patch.object(BatchLedger, "put_entry", put_entry)


def sent_before_given() -> AbstractContextManager[Any]:
    """The message of what is given away goes out before the entry that says so."""
    give = PackLog._give

    async def early(self: PackLog, wanted: Any) -> int:
        if given := [index for index in wanted if index in self._calls.open]:
            await self._batch.send(
                replace(self._header, **self._calls.part(given), log=f"{self._header.log}.000099", pos=0, mark=None)
            )
        return await give(self, wanted)

    return patch.object(PackLog, "_give", early)


def effects_after_pos() -> AbstractContextManager[Any]:
    """The message says that an entry is done with before what follows from it is."""
    follow = PackLog._follow

    async def late(self: PackLog) -> None:
        if self._owed is not None:
            self.pos += 1
            try:
                await self._lease.refresh()
            finally:
                self.pos -= 1
        await follow(self)

    return patch.object(PackLog, "_follow", late)


def blind_redeliveries() -> AbstractContextManager[Any]:
    """Nobody reads the log of a pack that comes again."""

    async def catch_up(self: PackLog) -> None: ...

    return patch.object(PackLog, "catch_up", catch_up)


def folds_without_sending() -> AbstractContextManager[Any]:
    """Whoever finds that another has given calls away believes that their message is out."""
    fold = PackLog._fold

    async def believe(self: PackLog, entry: Entry) -> None:
        given = entry.gives
        await fold(self, replace(entry, gives=()))
        self._calls.remove((), given)

    return patch.object(PackLog, "_fold", believe)


def zombies_log_failures() -> AbstractContextManager[Any]:
    """Failures are logged under a lost lease."""
    return patch.object(pack_log, "_VALUES", tuple(Code))


def unmarked_deliveries() -> AbstractContextManager[Any]:
    """A delivery leaves no mark, so that nobody learns of its death."""

    async def renew(self: _PackRun) -> None:
        header = self._calls.header(self._header, pos=self._log.pos, mark=None)
        await self._lease.renew(self._shop.ledger.sealed_pack(header))

    return patch.object(_PackRun, "_renew", renew)


def deleted_while_open() -> AbstractContextManager[Any]:
    """A pack's message goes although calls of it are open."""

    async def settle(self: _PackRun, rest_seconds: float) -> None:
        await self._lease.patiently(self._lease.delete)

    return patch.object(_PackRun, "_settle", settle)


MUTANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "late outcomes kept": late_outcomes_kept,
    "without put-if-absent": plain_puts,
    "sent before given": sent_before_given,
    "pos passes before effects": effects_after_pos,
    "without a look at redelivery": blind_redeliveries,
    "folded gifts not sent again": folds_without_sending,
    "failures under a lost lease": zombies_log_failures,
    "without a start mark": unmarked_deliveries,
    "deleted while calls are open": deleted_while_open,
}
