"""The I/O-bound toolkit in real workers: blobs and side processes in tasks, and maps over listings of a storage."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

import pytest
from projects import NewProject, alive, until

from ai4s.jobq import Fed, ProcessDied

TASKS = """
from ai4s.jobq import run_in_process

@app.task
async def double(name, container):
    blobs = current().blobs(container)
    data = await blobs.aread(f"in/{name}")
    await blobs.awrite(f"out/{name}", data * 2)
    return os.getpid()

@app.task
def sizes(container, folder):
    blobs = current().blobs(container)
    blobs.download_folder("out", HERE / folder, cache=True)
    with blobs.open("in/0") as file:
        assert file.read() == b"0"
    sessions = {id(current().blobs(name).client.session) for name in (container, "another")}
    return {path.name: path.stat().st_size for path in (HERE / folder).iterdir()}, len(sessions)

@app.task
async def crunch(n):
    return await run_in_process(lambda: sum(x * x for x in range(n)))

@app.task
async def die_aside():
    await run_in_process(os._exit, 3)

def linger(name):
    (HERE / f"{name}.part").write_text(f"{os.getpid()} {os.getppid()}")
    (HERE / f"{name}.part").rename(HERE / name)
    time.sleep(1000)

@app.task
async def hold(name):
    await run_in_process(linger, name)

@app.task(timeout=2)
async def hold_briefly(name):
    await run_in_process(linger, name)
"""


def pids(folder: Path, name: str) -> list[int]:
    """The process that lingers, and the child that it belongs to."""
    until((folder / name).exists)
    return [int(pid) for pid in (folder / name).read_text().split()]


def test_tasks_move_data(new: NewProject, place_url: str) -> None:
    """A map over what is listed for several seeds; coroutines and plain functions; one set of connections in each child."""
    project, told = new(TASKS, url=place_url), list[Fed]()
    container = f"data-{uuid.uuid4().hex}"
    blobs = project.app.blobs(container, create=True)
    for x in range(20):
        blobs.write(f"in/{x}", str(x).encode())
    project.worker("--concurrency", "1")

    def names(prefix: int) -> list[str]:
        return [name.removeprefix("in/") for name in blobs.list(f"in/{prefix}")]

    batch = project.task("double").map(
        names, seeds=range(10), kwargs={"container": container}, skip=lambda name: name == "13", report=told.append
    )
    assert len(set(batch.results(timeout=60))) == 1
    assert told[-1] == Fed(20, 1, 19)
    found, sessions = project.task("sizes").delay(container, "got").result(timeout=60)
    assert found == {str(x): 2 * len(str(x)) for x in range(20) if x != 13}
    assert sessions == 1


def test_side_processes_end_with_their_call_their_child_and_their_worker(new: NewProject) -> None:
    """Whatever ends it: its own exit, a timeout, a cancel, the death of the child, and at last that of the supervisor."""
    project = new(TASKS)
    worker = project.worker("--concurrency", "1")
    assert project.task("crunch").delay(1000).result(timeout=60) == sum(x * x for x in range(1000))
    with pytest.raises(ProcessDied, match="exit code 3"):
        project.task("die_aside").delay().result(timeout=60)
    project.task("hold_briefly").delay("timeout")
    aside, child = pids(project.folder, "timeout")
    until(lambda: not alive(aside))
    assert alive(child)
    cancelled = project.task("hold").delay("cancel")
    aside, child = pids(project.folder, "cancel")
    cancelled.cancel()
    until(lambda: not alive(aside))
    assert alive(child)
    project.task("hold").delay("kill")
    aside, child = pids(project.folder, "kill")
    (project.folder / "kill").unlink()
    os.kill(child, signal.SIGKILL)
    until(lambda: not alive(aside))
    aside, child = pids(project.folder, "kill")
    worker.kill()
    until(lambda: not alive(aside) and not alive(child))
