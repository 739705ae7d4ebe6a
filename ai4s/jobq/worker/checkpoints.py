"""The checkpoints of one attempt, as its supervisor keeps them: first the blob, then its name in the message.

Whoever gets the message next finds the last checkpoint that was named in it. A zombie may still write a blob of its own; naming it
takes the receipt, which it has no more.

Next: `../checkpointing.py`, the task's side.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import AccessDenied, LeaseLost, MessageError, Unreachable
from ..ledger import Ledger
from ..message import Call, Checkpoint, Form
from ..printable import printable
from .jobs import Answer, Load, Save
from .settlement import Attempt, drop_checkpoint
from .shutdown import cancel_and_wait

log = logging.getLogger("ai4s.jobq.worker")


@asynccontextmanager
async def opened_checkpoints(ledger: Ledger, attempt: Attempt, path: Path) -> AsyncIterator[Checkpoints]:
    """The checkpoints of an attempt for the length of its run."""
    checkpoints = Checkpoints(ledger, attempt, path)
    try:
        yield checkpoints
    finally:
        await checkpoints.close()


class Checkpoints:
    """Serves the requests of one attempt, one at a time; `call` says the newest checkpoint that is surely kept."""

    def __init__(self, ledger: Ledger, attempt: Attempt, path: Path) -> None:
        self.call = attempt.call
        self._ledger, self._attempt, self._path = ledger, attempt, path
        self._number = 0
        self._naming: asyncio.Task[None] | None = None
        self.asked = False
        """Whether there was any request, and so perhaps a file."""

    async def serve(self, request: Save | Load) -> Answer:
        """Save what lies at the path, or put the last checkpoint there."""
        self.asked = True
        try:
            if isinstance(request, Load):
                return await self._load(request)
            await self._save(request.form)
        except OSError as exc:
            return Answer(request.request, done=False, problem=f"The worker's scratch folder failed: {exc}")
        except (LeaseLost, Unreachable, AccessDenied) as exc:
            log.warning("A checkpoint of call %s may be lost: %s", self.call.id, exc)
            return Answer(request.request, done=False)
        return Answer(request.request, done=True)

    async def close(self) -> None:
        """Leave nothing under way, where the attempt itself was cut off."""
        if self._naming is not None:
            await cancel_and_wait(self._naming)

    async def finish(self) -> Call:
        """Wait for a name that is on its way into the message; returns the call with the newest checkpoint that is surely kept."""
        if self._naming is not None:
            await asyncio.wait((self._naming,))
        return self.call

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
        older = self.call.checkpoint
        # Not to be stopped together with the job: a renewal whose answer nobody reads voids the receipt.
        self._naming = asyncio.create_task(self._name(made))
        await asyncio.shield(self._naming)
        if older is not None:
            await drop_checkpoint(self._ledger, self.call.id, older)

    async def _name(self, made: Checkpoint) -> None:
        attempt, lease, newer = self._attempt, self._attempt.lease, replace(self.call, checkpoint=made)
        _, text = await self._ledger.sealed(replace(newer, mark=attempt.token if attempt.redelivered else None))
        await lease.patiently(lambda: lease.renew(text))
        self.call = newer

    async def _load(self, request: Load) -> Answer:
        last = self.call.checkpoint
        if last is None:
            return Answer(request.request, done=False)
        try:
            await self._attempt.lease.patiently(lambda: self._ledger.checkpoint_to(self.call.id, last, self._path))
        except MessageError as exc:
            log.error("Call %s begins anew, since its checkpoint cannot be used: %s", self.call.id, printable(str(exc)))
            return Answer(request.request, done=False)
        return Answer(request.request, done=True, form=last.form)
