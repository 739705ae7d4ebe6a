"""The other end of `app.worker()`: reads its assignment from standard input, works, and ends when that input does.

Next: `runtime.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

from ..background import READY, Assignment
from ..call_records import make_call_records
from ..config import read_settings
from ..errors import JobQError
from ..message import Pool
from .jobs import ChildSetup, Served
from .runtime import Plan, run_worker
from .shutdown import Shutdown, exit_soon
from .status import new_worker_id


def main() -> int:
    """Returns the exit code: 0, or 2 if the worker could not start, with the reason on standard output."""
    answer = _own_standard_output()
    assignment = Assignment.from_line(sys.stdin.readline())
    try:
        asyncio.run(_work(assignment, answer))
    except JobQError as exc:
        answer(str(exc).replace("\n", " "))
        return 2
    return 0


def _own_standard_output() -> Callable[[str], None]:
    """Keep standard output for the answer; what tasks print goes to standard error, like all that they have to say."""
    channel = os.dup(1)
    os.dup2(2, 1)
    os.set_inheritable(channel, False)

    def answer(line: str) -> None:
        os.write(channel, f"{line}\n".encode())

    return answer


async def _work(assignment: Assignment, answer: Callable[[str], None]) -> None:
    patience_seconds = read_settings().preemption_timeout_seconds
    shutdown = Shutdown(grace_seconds=25.0, at_last=lambda: exit_soon(0), patience_seconds=patience_seconds)
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), _at_end_of_input, loop, shutdown)
    plan = _plan(assignment)
    make_call_records(plan.setup.worker)
    await run_worker(plan, ready=lambda: answer(READY), shutdown=shutdown)


def _at_end_of_input(loop: asyncio.AbstractEventLoop, shutdown: Shutdown) -> None:
    """Nothing follows the assignment, so what can be read is the end: the program that wanted this work is done, or gone."""
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        shutdown.drain("The program that started this worker is done")


def _plan(assignment: Assignment) -> Plan:
    served = Served(assignment.app, assignment.url, assignment.signing_keys, assignment.create, assignment.result_ttl_seconds)
    setup = ChildSetup(
        worker=new_worker_id(),
        pool=Pool.PROCESS,
        served=served,
        modules=assignment.modules,
        search_path=assignment.search_path,
        logs=read_settings().logs,
    )
    return Plan(
        setup,
        queues=(",".join(assignment.queues),),
        concurrency=assignment.concurrency,
        async_concurrency=assignment.async_concurrency,
    )


if __name__ == "__main__":
    sys.exit(main())
