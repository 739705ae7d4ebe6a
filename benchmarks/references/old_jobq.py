"""ai4s-jobq 3.13, this package's predecessor: `batch_enqueue`, and `pull_and_execute` in a loop in each worker process.

It keeps no results on storage queues, so a call adds to a tally and nobody reads a value. Its own `launch_workers` ends when the
queue is empty, asks for notices of preemption and runs each call in a further process; the loop here does none of that, and is
the quicker for it.

Next: `dramatiq_on_azure.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

from program import Run, Tally, main, tally, workers

from ai4s.jobq import EmptyQueue, JobQ, batch_enqueue

QUEUE = "old-jobq"
POLL_SECONDS = 0.025


async def produce(place: str, calls: int) -> None:
    async with JobQ.from_connection_string(QUEUE, connection_string=place) as queue:
        await batch_enqueue(queue, [{"x": x} for x in range(calls)], show_progress=False)


async def work(place: str, counted: Tally) -> None:
    async def no_op(x: int) -> None:
        counted.add()

    async with JobQ.from_connection_string(QUEUE, connection_string=place) as queue, queue.get_worker_interface() as receiver:
        while True:
            try:
                await queue.pull_and_execute(no_op, with_heartbeat=True, worker_interface=receiver)
            except EmptyQueue:
                await asyncio.sleep(POLL_SECONDS)


@contextlib.contextmanager
def serve(place: str, processes: int) -> Iterator[Run]:
    with tally() as counted, workers(*[[sys.executable, __file__, place, "worker", counted.path]] * processes):

        def run(calls: int) -> None:
            before = counted.count
            asyncio.run(produce(place, calls))
            counted.wait_for(before + calls)

        yield run


if __name__ == "__main__":
    if sys.argv[2] == "worker":
        asyncio.run(work(sys.argv[1], Tally(sys.argv[3])))
    else:
        main(serve)
