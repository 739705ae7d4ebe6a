"""The bare prototype of packs: what is left of `map` without leases, signing, isolation and recovery; a bound on what it can reach.

The producer pickles lists of arguments into blobs and sends a message for each; a worker process receives, runs the calls of a pack
in a loop, puts their values as one blob and deletes the message; the producer lists, reads and has the values in order. The SDK is
used as its documentation shows, the functions are known to both sides.

Next: `../throughput.py`, which compares.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from collections.abc import AsyncIterator, Iterator

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob.aio import BlobServiceClient, ContainerClient
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient
from program import Run, main, workers

NAME = "bare-packs"
PACK = 4096  # calls, as many as ours hold at most
IN_FLIGHT = 8
POLL_SECONDS = 0.025


def no_op(x: int) -> int:
    return x


@contextlib.asynccontextmanager
async def clients(url: str) -> AsyncIterator[tuple[QueueClient, ContainerClient]]:
    async with QueueClient.from_connection_string(url, NAME) as queue, BlobServiceClient.from_connection_string(url) as blobs:
        yield queue, blobs.get_container_client(NAME)


async def prepare(url: str) -> None:
    async with clients(url) as (queue, container):
        for make in (queue.create_queue, container.create_container):
            with contextlib.suppress(ResourceExistsError):
                await make()


async def work(url: str) -> None:
    """Receive a pack, run its calls, put their values, delete: for ever."""
    async with clients(url) as (queue, container):
        while True:
            message = await queue.receive_message(visibility_timeout=45)
            if message is None:
                await asyncio.sleep(POLL_SECONDS)
            else:
                await run_pack(queue, container, message)


async def run_pack(queue: QueueClient, container: ContainerClient, message: QueueMessage) -> None:
    arguments = pickle.loads(await read(container, f"in/{message.content}"))
    values = [no_op(x) for x in arguments]
    await container.upload_blob(f"out/{message.content}", pickle.dumps(values))
    await queue.delete_message(message)


async def produce(url: str, calls: int) -> list[int]:
    """Submit so many calls in packs; their values in order."""
    run = os.urandom(6).hex()
    async with clients(url) as (queue, container):
        starts = range(0, calls, PACK)
        room = asyncio.Semaphore(IN_FLIGHT)

        async def submit(start: int) -> None:
            async with room:
                await container.upload_blob(f"in/{run}/{start:09d}", pickle.dumps(list(range(start, min(start + PACK, calls)))))
                await queue.send_message(f"{run}/{start:09d}", time_to_live=-1)

        await asyncio.gather(*(submit(start) for start in starts))
        return await collect(container, f"out/{run}/", len(starts))


async def collect(container: ContainerClient, prefix: str, packs: int) -> list[int]:
    """The values of all packs, each read as soon as a listing names it."""
    reads: dict[str, asyncio.Task[bytes]] = {}
    while len(reads) < packs:
        names = [name async for name in container.list_blob_names(name_starts_with=prefix)]
        new = [name for name in names if name not in reads]
        reads.update((name, asyncio.create_task(read(container, name))) for name in new)
        if not new:
            await asyncio.sleep(POLL_SECONDS)
    return [value for name in sorted(reads) for value in pickle.loads(await reads[name])]


async def read(container: ContainerClient, name: str) -> bytes:
    return await (await container.download_blob(name)).readall()


@contextlib.contextmanager
def serve(place: str, processes: int) -> Iterator[Run]:
    asyncio.run(prepare(place))
    with workers(*[[sys.executable, __file__, place, "worker"]] * processes):
        yield lambda calls: asyncio.run(produce(place, calls))


if __name__ == "__main__":
    if sys.argv[2] == "worker":
        asyncio.run(work(sys.argv[1]))
    else:
        main(serve)
