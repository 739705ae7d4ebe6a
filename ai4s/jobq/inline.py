"""Inline mode: a call is run at once where it was made, through the real codec, wire and store.

The budgets are those of a worker; only what takes time (delays, leases, timeouts) and child processes are left out.

Next: `worker/execution.py`, which runs the call; `inline_packs.py` for those of a map; `testing.py`, which users see.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import shutil
import threading
from collections import ChainMap
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .app import App
from .errors import JobQError, Malformed
from .inline_packs import InlinePacks
from .ledger import Ledger
from .lifecycle import Bury, Decision, Finish, Happening, Raised, Refused, Retry, Succeeded, decide
from .message import SHELL_TASK, Call, DeadLetter, Form, Outcome, Pool, Spill, State
from .shell.calls import shell_task
from .submission import Send
from .transports.base import Receipt
from .worker.execution import Desk, Execution, Functions
from .worker.jobs import Answer, Fetch, Job, Kind, Report, Request, Save

T = TypeVar("T")

WORKER = "inline"


class Inline:
    """Takes calls in place of the queues of `app`; keeps its files in `folder`, by call, so that a call's next run finds them."""

    def __init__(self, app: App, folder: Path) -> None:
        self._client, self._folder = app.client, folder
        self._kept: dict[Path, Form] = {}
        tasks = ChainMap({}, app.tasks, {SHELL_TASK: shell_task(app.client)})
        self._execution = Execution(Functions(tasks), Desk(WORKER, self._answer, app.client))
        self._count = itertools.count(1)
        self._numbers: dict[str, int] = {}
        self._packs = InlinePacks(app.client, folder, self._execution, WORKER, partial(next, self._count))
        self.take_pack, self.run_taken = self._packs.take, self._packs.run_taken

    def __call__(self, work: Callable[[Ledger, Send], Coroutine[Any, Any, T]]) -> T:
        """Do as ever what sends calls, but for the last step, and run what would have been sent."""
        taken: list[Call] = []

        async def take(ledger: Ledger, call: Call, /, delay_seconds: float = 0) -> Receipt | None:
            sealed, text = await ledger.sealed(call)
            taken.append(ledger.wire.unseal_call(text, sealed.queue))
            return None

        done = self._client.run(lambda ledger: work(ledger, take))
        for call in taken:
            self._run(call)
        self.run_taken()
        return done

    def _run(self, call: Call) -> None:
        token, number = secrets.token_hex(8), self._numbers.setdefault(call.id, next(self._count))
        while True:
            job = self._client.run(partial(self._job, call, number))
            happening = self._client.run(partial(self._happening, job, token, self._report(job)))
            decision = decide(happening, call, jitter=0)
            if not isinstance(decision, Retry):
                break
            call = decision.call
        self._client.run(partial(self._end, call, token, decision))

    def _answer(self, numbered: Callable[[int], Request]) -> Answer:
        """Keep a checkpoint beside the file by which it passes, for the next attempt of the same call; or fetch what was stored."""
        request = numbered(0)
        if isinstance(request, Fetch):
            return self._client.run(partial(self._stored, request))
        passing = self._checkpoint_path(request.number)
        kept = passing.with_suffix(f".{request.place}.kept")
        if isinstance(request, Save):
            self._kept[kept] = request.form
            passing.replace(kept)
            return Answer(request.request, done=True)
        if kept not in self._kept:
            return Answer(request.request, done=False)
        shutil.copyfile(kept, passing)
        return Answer(request.request, done=True, form=self._kept[kept])

    async def _stored(self, request: Fetch, ledger: Ledger) -> Answer:
        path = self._folder / request.sha256
        try:
            if not path.exists():
                await ledger.payload_to(request.sha256, path, request.size)
        except Malformed as exc:
            path.unlink(missing_ok=True)
            return Answer(request.request, done=False, problem=str(exc))
        return Answer(request.request, done=True, path=str(path))

    def _checkpoint_path(self, number: int) -> Path:
        return self._folder / f"{number}.checkpoint"

    def _report(self, job: Job) -> Report:
        if job.call.pool is not Pool.ASYNC:
            return self._execution.run(job)
        reports: list[Report] = []
        # A thread of its own: there may be a running loop on this one, as in a notebook.
        thread = threading.Thread(target=lambda: reports.append(asyncio.run(self._execution.arun(job))))
        thread.start()
        thread.join()
        return reports[0]

    async def _job(self, call: Call, number: int, ledger: Ledger) -> Job:
        arguments, function = self._folder / f"{number}.in", self._folder / (call.function or "none")
        if isinstance(call.arguments, Spill):
            arguments.unlink(missing_ok=True)  # an earlier attempt may have it mapped still
            await ledger.arguments_to(call, arguments)
        if call.function is not None and not function.exists():
            await ledger.payload_to(call.function, function)
        value, checkpoint = str(self._folder / f"{number}.out"), str(self._checkpoint_path(number))
        return Job(number, call, value, checkpoint, str(arguments), str(function))

    async def _happening(self, job: Job, token: str, report: Report, ledger: Ledger) -> Happening:
        if report.kind is Kind.RETURNED:
            data = Path(job.value_path) if report.value is None else report.value
            return Succeeded(await ledger.keep_value(job.call.id, token, data))
        assert report.failure is not None
        if report.kind is Kind.HINDERED:
            raise OSError(report.failure.message)
        if report.kind is Kind.UNFIT:
            return Refused(report.failure, deliveries=1, age_seconds=0)
        return Raised(report.failure, report.retryable, report.delay_seconds)

    async def _end(self, call: Call, token: str, decision: Decision, ledger: Ledger) -> None:
        outcome = Outcome(
            call=call.id,
            run=call.run,
            state=State.SUCCEEDED,
            token=token,
            task=call.task,
            queue=call.queue,
            codec=call.codec,
            attempts=call.attempt,
            worker=WORKER,
        )
        match decision:
            case Finish(state, value):
                await ledger.commit(replace(outcome, state=state, value=value))
            case Bury(failure):
                failed = await ledger.commit(replace(outcome, state=State.FAILED, failure=failure))
                await ledger.bury(DeadLetter(str(failure.cause), failed, call), call.queue, call.id, call.run)
            case _:
                raise JobQError(f"Call {call.id} of {call.task} cannot be run inline: the app has no such task.")
