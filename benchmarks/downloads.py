"""Many small downloads in async tasks, beside a bare loop over the SDK with the same concurrency.

    python benchmarks/downloads.py [--short] [--output FOLDER]

Each blob goes to a file. Ours twice: a call for each blob, of a `map` that one worker runs, from the beginning of the first call to
the end of the last one; and one call that downloads all. The loop has a process of its own, as the worker's child has.

Next: `figures.py` for the frame.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from azure.storage.blob.aio import BlobServiceClient, ContainerClient
from figures import Figure, Options, report

from ai4s.jobq import App, Blobs, current

# The emulator is installed and started by what the tests use; a second way to do so would be one too many.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from azurite import running_azurite

BLOBS, SHORT_BLOBS = 2000, 200
SIZE = 4096
AT_ONCE = 32
ROUNDS, SHORT_ROUNDS = 3, 1
CONTAINER = "downloads"


async def fetch(name: str, folder: str) -> tuple[float, float]:
    """Download one blob; when that began and ended."""
    began = time.time()
    await current().blobs(CONTAINER).adownload(name, f"{folder}/{name}")
    return began, time.time()


async def fetch_all(count: int, folder: str) -> tuple[float, float]:
    """Download all of them in one call."""
    blobs, began = current().blobs(CONTAINER), time.time()
    await asyncio.gather(*(blobs.adownload(str(x), f"{folder}/{x}") for x in range(count)))
    return began, time.time()


async def upload(blobs: Blobs, count: int) -> None:
    await asyncio.gather(*(blobs.awrite(str(x), bytes([x % 256]) * SIZE) for x in range(count)))


def bare(url: str, count: int, folder: str) -> float:
    """Seconds of the loop over the SDK."""
    return asyncio.run(_bare(url, count, Path(folder)))


async def _bare(url: str, count: int, folder: Path) -> float:
    async with BlobServiceClient.from_connection_string(url) as service:
        container = service.get_container_client(CONTAINER)
        await _loops(container, 1, folder)  # ours has its connection, too
        began = time.time()
        await _loops(container, count, folder)
        return time.time() - began


async def _loops(container: ContainerClient, count: int, folder: Path) -> None:
    numbers = iter(range(count))

    async def loop() -> None:
        for x in numbers:
            data = await (await container.download_blob(str(x))).readall()
            (folder / str(x)).write_bytes(data)

    await asyncio.gather(*(loop() for _ in range(AT_ONCE)))


def seconds_of(spans: list[tuple[float, float]]) -> float:
    """From the first beginning to the last end."""
    begun, ended = zip(*spans, strict=True)
    return float(max(ended) - min(begun))


def measure(options: Options) -> list[Figure]:
    count = SHORT_BLOBS if options.short else BLOBS
    rounds = SHORT_ROUNDS if options.short else ROUNDS
    runs = []
    with running_azurite() as url, tempfile.TemporaryDirectory() as folder:
        app = App("bench-downloads", url)
        blobs = app.blobs(CONTAINER, create=True)
        asyncio.run(upload(blobs, count))
        with (
            app.worker(1, async_concurrency=AT_ONCE),
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
        ):
            one, every = app.task(fetch), app.task(fetch_all)
            every.delay(1, folder).result()
            for _ in range(rounds):
                reference = process.submit(bare, url, count, folder).result()
                calls = seconds_of(one.map(map(str, range(count)), kwargs={"folder": folder}).results())
                runs.append((reference, calls, seconds_of([every.delay(count, folder).result()])))
        app.close()
    reference, calls, at_once = (count / statistics.median(seconds) for seconds in zip(*runs, strict=True))
    said = f"{count} blobs of {SIZE} bytes to files, {AT_ONCE} at a time; medians of {rounds} runs that take turns"
    name = f"{count} downloads"
    return [
        Figure(f"{name}, a call for each", calls, "blobs/s", reference, "bare aio loop", at_least=0.8, note=said),
        Figure(f"{name} in one call", at_once, "blobs/s", reference, "bare aio loop", at_least=0.8, note=said),
    ]


if __name__ == "__main__":
    report("downloads", "Many small downloads in async tasks, beside a bare loop over the SDK.", measure)
