"""The checkpoints of a pack's calls: first the blob, then its name in the pack's message, as for single calls.

Next: `pack.py`, which renews the message; `../checkpointing.py`, the task's side.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from .. import layout
from ..errors import AccessDenied, LeaseLost, MessageError, Unreachable
from ..ledger import Ledger
from ..message import Checkpoint, PackHeader
from ..printable import printable
from .jobs import Answer, Load, Save
from .lease import Lease
from .pack_calls import PackCalls
from .settlement import drop_checkpoint

log = logging.getLogger("ai4s.jobq.worker")

MOST_KEPT = 200
"""Checkpoints that a pack's message can name beside all else; what comes on top of them is not kept."""


class PackCheckpoints:
    """Serves the requests of one delivery's calls; `renew` puts what is kept now into the message."""

    def __init__(self, ledger: Ledger, header: PackHeader, calls: PackCalls, *, lease: Lease, token: str) -> None:
        self._ledger, self._header, self._calls, self.lease, self._token = ledger, header, calls, lease, token
        self._number = 0
        self.renew: Callable[[], Awaitable[None]]

    async def serve(self, path: Path, request: Save | Load) -> Answer:
        """Save what lies at the path for one of the calls, or put its last checkpoint there."""
        index = self._header.first + request.place
        try:
            if isinstance(request, Load):
                return await self._load(path, request, index)
            return Answer(request.request, done=await self._save(path, request, index))
        except OSError as exc:
            return Answer(request.request, done=False, problem=f"The worker's scratch folder failed: {exc}")
        except (LeaseLost, Unreachable, AccessDenied) as exc:
            log.warning("A checkpoint of call %s may be lost: %s", self._name(index), exc)
            return Answer(request.request, done=False)

    async def _save(self, path: Path, request: Save, index: int) -> bool:
        older = self._calls.checkpoints.get(index)
        if index not in self._calls.open or (older is None and len(self._calls.checkpoints) >= MOST_KEPT):
            return False
        self._number += 1
        number, charge = self._number, self._calls.charge_of(index)
        spill = await self.lease.patiently(lambda: self._ledger.keep_checkpoint(self._name(index), self._token, number, path))
        made = Checkpoint(self._token, number, spill, request.form, deaths=charge.deaths, preemptions=charge.preemptions)
        self._calls.checkpoints[index] = made
        try:
            await self.lease.patiently(self.renew)
        except BaseException:
            if older is None:
                self._calls.checkpoints.pop(index, None)
            else:
                self._calls.checkpoints[index] = older
            raise
        if older is not None:
            await drop_checkpoint(self._ledger, self._name(index), older)
        return True

    async def _load(self, path: Path, request: Load, index: int) -> Answer:
        last = self._calls.checkpoints.get(index)
        if last is None:
            return Answer(request.request, done=False)
        try:
            await self.lease.patiently(lambda: self._ledger.checkpoint_to(self._name(index), last, path))
        except MessageError as exc:
            log.error("Call %s begins anew, since its checkpoint cannot be used: %s", self._name(index), printable(str(exc)))
            return Answer(request.request, done=False)
        return Answer(request.request, done=True, form=last.form)

    def _name(self, index: int) -> str:
        return layout.packed_call_id(self._header.batch, index)
