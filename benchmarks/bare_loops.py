"""The reference: loops over the bare asynchronous SDK that make the requests of a single call, and nothing else.

A call costs a send, its share of a receive of up to 32, a put-if-absent, a delete, and a read of the outcome; whoever waits lists.
There are no leases, no child processes, no signing, no errors. The SDK is used as its documentation shows.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob.aio import BlobServiceClient, ContainerClient
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient

CONTAINER = "bare-loops"
READS_IN_FLIGHT = 16  # as many as `gather` has
POLL_SECONDS = 0.025


@asynccontextmanager
async def clients(url: str, queue: str) -> AsyncIterator[tuple[QueueClient, ContainerClient]]:
    async with QueueClient.from_connection_string(url, queue) as sender, BlobServiceClient.from_connection_string(url) as blobs:
        yield sender, blobs.get_container_client(CONTAINER)


async def prepare(url: str, queue: str) -> None:
    """Make the queue and the container."""
    async with clients(url, queue) as (sender, container):
        for make in (sender.create_queue, container.create_container):
            try:
                await make()
            except ResourceExistsError:
                continue


def work(url: str, queue: str, slots: int) -> None:
    """Receive, put, delete, for ever: the worker's process."""
    asyncio.run(_work(url, queue, slots))


async def _work(url: str, queue: str, slots: int) -> None:
    room = asyncio.Semaphore(slots)
    async with clients(url, queue) as (receiver, container), asyncio.TaskGroup() as group:
        while True:
            messages = await _receive(receiver)
            for message in messages:
                await room.acquire()
                group.create_task(_run(receiver, container, message, room))
            if not messages:
                await asyncio.sleep(POLL_SECONDS)


async def _receive(queue: QueueClient) -> list[QueueMessage]:
    """One page is one request; going on to the next one would be a second."""
    async for page in queue.receive_messages(messages_per_page=32, visibility_timeout=45).by_page():
        return [message async for message in page]
    return []


async def _run(receiver: QueueClient, container: ContainerClient, message: QueueMessage, room: asyncio.Semaphore) -> None:
    name, value = pickle.loads(base64.b64decode(message.content))
    await container.upload_blob(name, pickle.dumps(value), overwrite=False)
    await receiver.delete_message(message)
    room.release()


async def produce(url: str, queue: str, calls: int) -> float:
    """Send `calls` messages one after the other and read their outcomes; returns the seconds that it took."""
    run = os.urandom(6).hex()
    async with clients(url, queue) as (sender, container):
        began = time.perf_counter()
        for x in range(calls):
            await sender.send_message(_text(f"{run}/{x:06d}", x), time_to_live=-1)
        # There is nothing to be told by: whoever waits on this storage has to look.
        while len([name async for name in container.list_blob_names(name_starts_with=f"{run}/")]) < calls:
            await asyncio.sleep(POLL_SECONDS)
        room = asyncio.Semaphore(READS_IN_FLIGHT)
        values = await asyncio.gather(*(_read(container, f"{run}/{x:06d}", room) for x in range(calls)))
        seconds = time.perf_counter() - began
    assert values == list(range(calls))
    return seconds


async def one_after_the_other(url: str, calls: int) -> list[float]:
    """Seconds for each of `calls` rounds of the five requests in turn, with nobody to wait for: the sum of the bare requests."""
    run, measured, room = os.urandom(6).hex(), [], asyncio.Semaphore(1)
    await prepare(url, "bare-turns")
    async with clients(url, "bare-turns") as (queue, container):
        for x in range(calls):
            began = time.perf_counter()
            await queue.send_message(_text(f"{run}/{x:06d}", x), time_to_live=-1)
            (message,) = await _receive(queue)
            await container.upload_blob(f"{run}/{x:06d}", pickle.dumps(x), overwrite=False)
            assert await _read(container, f"{run}/{x:06d}", room) == x
            await queue.delete_message(message)
            measured.append(time.perf_counter() - began)
    return measured


async def _read(container: ContainerClient, name: str, room: asyncio.Semaphore) -> object:
    async with room:
        return pickle.loads(await (await container.download_blob(name)).readall())


def _text(name: str, value: int) -> str:
    return base64.b64encode(pickle.dumps((name, value))).decode()
