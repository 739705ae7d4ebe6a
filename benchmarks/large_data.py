"""A large array there and back, beside the bare SDK with the same four transfers and the same concurrency.

    python benchmarks/large_data.py [--short] [--output FOLDER]

There: uploaded by the caller, downloaded to a file by the worker. Back: uploaded from a file, downloaded by the caller. What is
claimed is the ratio of the speeds, and the memory. Linux only: the kernel is asked for peaks of memory.

Next: `figures.py` for the frame.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from azure.storage.blob.aio import BlobServiceClient
from figures import Figure, Options, report

from ai4s.jobq import App
from ai4s.jobq.spill import BLOCK_BYTES, BLOCKS_IN_FLIGHT

# The emulator is installed and started by what the tests use; a second way to do so would be one too many.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from azurite import running_azurite

MIB = 1024 * 1024
MEBIBYTES, SHORT_MEBIBYTES = 1024, 64
ROUNDS = 3
SDK_SIZES = dict.fromkeys(("max_block_size", "max_single_put_size", "max_single_get_size", "max_chunk_get_size"), BLOCK_BYTES)


def echo(array: Any) -> Any:
    return array


def memory(kind: str, pid: int | str = "self") -> float:
    """MiB of a process: VmRSS now, VmHWM at its peak."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def forget_peak() -> None:
    """Have this process's peak of memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def ours(app: App, array: Any) -> tuple[float, float, float]:
    """Seconds there and back; MiB beyond the array while it was sent; MiB beyond the result while that was read."""
    task = app.task(echo)
    forget_peak()
    before, began = memory("VmRSS"), time.perf_counter()
    handle = task.delay(array)
    sent = memory("VmHWM") - before
    handle.status()
    forget_peak()
    before = memory("VmRSS")
    result = handle.result()
    seconds = time.perf_counter() - began
    read = memory("VmHWM") - before - result.nbytes / MIB
    assert np.array_equal(array, result)
    handle.forget()
    return seconds, sent, read


async def bare(url: str, array: Any, path: Path) -> float:
    """Seconds of the four transfers."""
    async with BlobServiceClient.from_connection_string(url, **SDK_SIZES) as service:
        container = service.get_container_client("bare")
        await container.create_container()
        data, parallel = array.tobytes(), {"max_concurrency": BLOCKS_IN_FLIGHT}
        began = time.perf_counter()
        await container.upload_blob("there", data, **parallel)
        with path.open("wb") as file:
            await (await container.download_blob("there", **parallel)).readinto(file)
        with path.open("rb") as file:
            await container.upload_blob("back", file, **parallel)
        result = await (await container.download_blob("back", **parallel)).readall()
        seconds = time.perf_counter() - began
        assert len(result) == len(data)
        await container.delete_container()
    return seconds


def measure_at(url: str, mebibytes: int, rounds: int) -> list[Figure]:
    """The figures of so large an array; ours and the bare SDK take turns."""
    array = np.random.default_rng(1).integers(0, 2**62, mebibytes * MIB // 8, dtype=np.int64)
    app = App("bench-large", url)
    with tempfile.TemporaryDirectory() as folder, app.worker(1) as worker:
        app.task(echo).delay(array[: MIB // 8]).result()
        runs = [(asyncio.run(bare(url, array, Path(folder, "bare"))), *ours(app, array)) for _ in range(rounds)]
        supervisor = memory("VmHWM", worker.pid)
    app.close()
    reference, seconds, sent, read = zip(*runs, strict=True)
    speed, bare_speed = (4 * mebibytes / statistics.median(times) for times in (seconds, reference))
    said = f"{mebibytes} MiB; four transfers of it, in blocks of {BLOCK_BYTES // MIB} MiB, {BLOCKS_IN_FLIGHT} at a time"
    name = f"{mebibytes} MiB array"
    return [
        Figure(f"{name} there and back", speed, "MiB/s", bare_speed, "bare SDK", at_least=0.8, note=said),
        Figure(f"{name}: the supervisor's peak of memory", supervisor, "MiB", at_most=200),
        Figure(f"{name}: memory beyond the array while it is sent", max(sent), "MiB", at_most=mebibytes),
        Figure(f"{name}: memory beyond the result while it is read", max(read), "MiB", at_most=mebibytes),
    ]


def measure(options: Options) -> list[Figure]:
    with running_azurite() as url:
        if options.short:
            return measure_at(url, SHORT_MEBIBYTES, 1)
        return measure_at(url, MEBIBYTES, ROUNDS)


if __name__ == "__main__":
    report("large_data", "A large array there and back, beside the bare SDK.", measure)
