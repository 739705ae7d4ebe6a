"""Scratch folders that are full or gone, and spilled bytes that are missing, cut off, or another call's.

A worker without a scratch folder cannot run a call, and nobody is charged with that; it gives up, and another one runs it. Bytes
that are not those that were spilled are an error that says so: of arguments, before the task runs; of a value, to who reads it; of
a checkpoint, which then counts as none. In no case may a task or a caller see others than they were meant to see.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness import TASKS, Expected, Experiment, Lab, Row, Trial, trial
from projects import until

from ai4s.jobq import Handle, layout
from ai4s.jobq.errors import Malformed
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Cause, Outcome, State
from ai4s.jobq.worker.runtime import MOST_HINDRANCES

BULK = 600_000
"""Bytes of arguments that are spilled, and more than the full disk holds."""

PLAIN = Expected()
DISK_BYTES = 256 * 1024
MISUSED = 2

TASKS_OF_SIZE = (
    TASKS
    + f"""
@app.task
def take(n, padding):
    executed(n)
    assert padding == bytes([n % 256]) * {BULK}, "these are not its arguments"
    return n

@app.task
def give(n):
    executed(n)
    return bytes([n % 256]) * (4 * {BULK})

@app.task(retries=1, retry_on=ConnectionError, backoff=0.05)
def go_on(n):
    executed(n)
    checkpoint = current().checkpoint
    found = checkpoint.load()
    if current().attempt == 1:
        checkpoint.save([n, "x" * 1000])
        note("saved", n)
        while not (HERE / "spoiled").exists():
            time.sleep(0.02)
        raise ConnectionError("from the checkpoint on")
    return found
"""
)


class Spoil(StrEnum):
    """What happens to a blob."""

    MISSING = "missing"
    CUT_OFF = "cut off"
    SWAPPED = "another call's"


@dataclass(frozen=True)
class Size:
    """So many of each kind: there are three disks, and three ways to spoil each of three kinds of blobs."""

    each: int = 5


def run_disks(lab: Lab, place: str, size: Size) -> Row:
    with trial(lab, "scratch full, gone", place, source=TASKS_OF_SIZE) as it, it.watched():
        said = [*full(it, size), *gone(it, size)]
        it.worker("--concurrency", "2")
        it.until_empty()
        most = len(it.expected)  # a value that could not be written has been computed
        remark = "full and gone" if (it.project.folder / "mounted").exists() else "gone; none can be mounted here that is full"
        return it.row(faults=len(it.expected), most_duplicates=most, remark=remark).but(*[*said, *charged(it)][:5])


def run_blobs(lab: Lab, place: str, size: Size) -> Row:
    with trial(lab, "spoiled blobs", place, source=TASKS_OF_SIZE) as it, it.watched():
        refused = spoiled_arguments(it, size)
        worker = it.worker("--concurrency", str(3 * size.each + 1))
        anew = spoiled_checkpoints(it, size)
        values = [expect(it, "give", Expected()) for _ in range(3 * size.each + 1)]
        it.until_empty()
        said = wrong_refusals(it, refused) + lying_values(it, values)
        said += [] if worker.log.count("begins anew") == len(anew) else [f"not {len(anew)} damaged checkpoints in the log"]
        return it.row(faults=9 * size.each, remark=f"{size.each} of each kind and way").but(*said[:5])


def expect(it: Trial, task: str, expected: Expected, *arguments: Any) -> Handle[Any]:
    """Submit a call; its first argument is its number."""
    n = len(it.numbers)
    return it.expect(it.project.task(task).delay(n, *arguments), n, expected)


def take(it: Trial, expected: Expected = PLAIN) -> Handle[Any]:
    """Submit a call whose arguments are spilled, and are its own."""
    return expect(it, "take", expected, bytes([len(it.numbers) % 256]) * BULK)


# Disks.


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk at this folder with hardly any room; False where one cannot be had, without the right to."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full(it: Trial, size: Size) -> list[str]:
    """What is wrong with workers on a full disk, one with arguments that do not fit there, and one with values."""
    said = []
    for number, submit in enumerate((take, lambda it: expect(it, "give", Expected()))):
        folder = it.project.folder / f"disk-{number}"
        with small_disk(folder) as mounted:
            if mounted:
                (it.project.folder / "mounted").touch()
                said += hindered(it, size, folder, submit)
    return said


def gone(it: Trial, size: Size) -> list[str]:
    """What is wrong with a worker whose scratch folder somebody removes."""
    folder = it.project.folder / "disk-gone"
    folder.mkdir()

    def remove() -> None:
        for path in folder.iterdir():
            shutil.rmtree(path)

    return hindered(it, size, folder, take, remove)


def hindered(
    it: Trial, size: Size, folder: Path, submit: Callable[[Trial], Handle[Any]], spoil: Callable[[], object] = lambda: None
) -> list[str]:
    """What is wrong with how a worker with this scratch folder gives its calls back, and itself up."""
    worker = it.worker("--concurrency", "1", TMPDIR=str(folder))
    spoil()
    for _ in range(size.each):
        submit(it)
    until(lambda: worker.log.count("goes back, since") >= size.each or worker.process.poll() is not None, 60, worker.log)
    if size.each < MOST_HINDRANCES:
        worker.signal(signal.SIGTERM)
    code = worker.wait()
    if size.each >= MOST_HINDRANCES and (code != MISUSED or "could not begin calls any more" not in worker.log):
        return [f"the worker ended with {code}:\n{worker.log[-500:]}"]
    return [] if "Traceback" not in worker.log else [f"a traceback of ours:\n{worker.log[-500:]}"]


def charged(it: Trial) -> list[str]:
    """Those that were charged with a disk that was not theirs."""
    ended = [outcome for outcome in it.outcomes().values() if isinstance(outcome, Outcome)]
    return [f"{outcome.call} was charged: {outcome.attempts} attempts" for outcome in ended if outcome.attempts != 1]


# Blobs.


async def spoil(ledger: Ledger, name: str, other: str, how: Spoil) -> None:
    """Do this to a blob; `other` is one of its kind."""
    store = await ledger.store()
    if how is Spoil.MISSING:
        await store.delete(name)
        return
    blob = await store.get(other if how is Spoil.SWAPPED else name)
    assert blob is not None
    await store.put(name, blob.data if how is Spoil.SWAPPED else blob.data[: len(blob.data) // 2])


def spoil_all(it: Trial, names: list[str], sound: str) -> None:
    """Spoil these blobs, in turn in each way; the other one is sound."""
    for number, name in enumerate(names):
        how = list(Spoil)[number % 3]
        it.judge.client.run(lambda ledger, name=name, how=how: spoil(ledger, name, sound, how))  # type: ignore[misc]


def spoiled_arguments(it: Trial, size: Size) -> list[str]:
    """Calls whose arguments are spoiled before any worker sees them, and a sound one."""
    sound = take(it)
    refused = [take(it, Expected(State.FAILED, executions=0)).id for _ in range(3 * size.each)]
    spoil_all(it, [layout.arguments(call) for call in refused], layout.arguments(sound.id))
    return refused


def wrong_refusals(it: Trial, calls: list[str]) -> list[str]:
    """Those of these calls that do not say what is wrong with their arguments."""
    outcomes = it.outcomes()
    return [f"{call}: {outcomes.get(call)}" for call in calls if not says_why(outcomes.get(call))]


def says_why(outcome: Outcome | str | None) -> bool:
    """Whether a failure is a refusal that names the blob."""
    failure = outcome.failure if isinstance(outcome, Outcome) else None
    told = failure.message if failure and failure.cause is Cause.REFUSED else ""
    return "args/" in told and ("is missing" in told or "is not what was spilled" in told)


def spoiled_checkpoints(it: Trial, size: Size) -> list[str]:
    """Calls that are between two attempts while their checkpoints are spoiled: they begin anew, but for a sound one."""
    n = len(it.numbers)
    sound = expect(it, "go_on", Expected(value=[n, "x" * 1000], executions=2))
    calls = [sound.id, *(expect(it, "go_on", Expected(executions=2)).id for _ in range(3 * size.each))]
    until(lambda: len(it.project.lines("saved")) == len(calls), 60, "all checkpoints")
    names = {call: it.project.names(layout.checkpoints(call))[0] for call in calls}
    spoil_all(it, [names[call] for call in calls[1:]], names[sound.id])
    (it.project.folder / "spoiled").touch()
    return calls[1:]


def lying_values(it: Trial, handles: list[Handle[Any]]) -> list[str]:
    """Those whose value, spoiled after the call has ended, is given out, or is refused without a reason."""
    sound, *spoiled = [it.project.names(layout.values(handle.id))[0] for handle in handles]
    spoil_all(it, spoiled, sound)
    return [said for handle in handles[1:] if (said := lie(handle))]


def lie(handle: Handle[Any]) -> str:
    """What is wrong with how a spoiled value is told; nothing, if it is refused."""
    try:
        value = handle.result(timeout=60)
    except Malformed as exc:
        told = str(exc)
        return "" if "values/" in told and ("is missing" in told or "is not what was spilled" in told) else told
    return f"{handle.id} gave out {len(value)} bytes that are not its value"


EXPERIMENTS = [
    Experiment("disks", run_disks, full=[Size()], short=Size(each=1), places=("local",)),
    Experiment("spoiled-blobs", run_blobs, full=[Size()], short=Size(each=1), short_places=("azurite",)),
]
