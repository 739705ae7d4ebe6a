"""The checkpoints of one attempt, as its supervisor keeps them: first the blob, then its name in the message.

Whoever gets the message next finds the last checkpoint that was named in it. A zombie may still write a blob of its own; naming it
takes the receipt, which it has no more.

Next: `../checkpointing.py`, the task's side.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ..errors import AccessDenied, LeaseLost, MessageError, Unreachable
from ..ledger import Ledger
from ..message import Checkpoint, Form
from ..printable import printable
from .jobs import Answer, Load, Save
from .settlement import Attempt, drop_checkpoint

log = logging.getLogger("ai4s.jobq.worker")


class Checkpoints:
    """Serves the requests of one attempt, one at a time; `call` says the newest checkpoint that is surely kept."""

    def __init__(self, ledger: Ledger, attempt: Attempt, path: Path) -> None:
        self.call = attempt.call
        self._ledger, self._attempt, self._path = ledger, attempt, path
        self._number = 0

    async def serve(self, request: Save | Load) -> Answer:
        """Save what lies at the path, or put the last checkpoint there."""
        try:
            if isinstance(request, Load):
                return await self._load(request)
            await self._save(request.form)
        except OSError as exc:
            return Answer(request.number, done=False, problem=f"The worker's scratch folder failed: {exc}")
        except (LeaseLost, Unreachable, AccessDenied) as exc:
            log.warning("A checkpoint of call %s may be lost: %s", self.call.id, exc)
            return Answer(request.number, done=False)
        return Answer(request.number, done=True)

    async def _save(self, form: Form) -> None:
        attempt, lease = self._attempt, self._attempt.lease
        self._number += 1
        made = Checkpoint(
            attempt.token,
            self._number,
            await lease.patiently(lambda: self._ledger.keep_checkpoint(self.call.id, attempt.token, self._number, self._path)),
            form,
            deaths=self.call.deaths,
            preemptions=self.call.preemptions,
        )
        newer, older = replace(self.call, checkpoint=made), self.call.checkpoint
        _, text = await self._ledger.sealed(replace(newer, mark=attempt.token if attempt.redelivered else None))
        await lease.patiently(lambda: lease.renew(text))
        self.call = newer
        if older is not None:
            await drop_checkpoint(self._ledger, self.call, older)

    async def _load(self, request: Load) -> Answer:
        last = self.call.checkpoint
        if last is None:
            return Answer(request.number, done=False)
        try:
            await self._attempt.lease.patiently(lambda: self._ledger.checkpoint_to(self.call.id, last, self._path))
        except MessageError as exc:
            log.error("Call %s begins anew, since its checkpoint cannot be used: %s", self.call.id, printable(str(exc)))
            return Answer(request.number, done=False)
        return Answer(request.number, done=True, form=last.form)
