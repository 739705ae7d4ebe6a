"""A real worker says what it runs and how far that is; another process asks."""

from __future__ import annotations

import signal

from projects import NewProject, until

from ai4s.jobq.call_progress import CallProgress

TASKS = """
import time
from pathlib import Path

def stay(said):
    for done in range(said + 1):
        current().progress(done, 40, f"step {done}")
    note("said", said)
    give_up = time.monotonic() + 60
    while not Path("go").exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    return said

@app.task
def single(said):
    return stay(said)

@app.task(pool="thread")
def threaded(said):
    return stay(said)
"""


def test_progress_is_seen_from_another_process(new: NewProject) -> None:
    """The newest word of a single call, of one on a thread, and of a batch's; with what the worker has counted and takes."""
    project = new(TASKS)
    worker = project.worker("--concurrency", "2")
    calls = [project.task("single").delay(10), project.task("threaded").delay(30)]
    batch = project.task("single").map([20])
    expected = [CallProgress(said, 40, f"step {said}") for said in (10, 30, 20)]
    handles = [*calls, batch.handle(0)]
    until(lambda: len(project.lines("said")) == 3)

    worker.signal(signal.SIGTERM)  # a worker that is to end says so at once, and what it runs then
    until(lambda: [handle.progress() for handle in handles] == expected)
    (status,) = project.app.queues.workers()
    assert (status.state, status.begun, status.running, status.more_calls) == ("draining", 3, 3, 0)
    assert {call.id for call in status.calls} == {handle.id for handle in handles}
    assert status.cpu_percent > 0
    assert status.memory_bytes > 2**20
    assert status.environment == "local"
    assert status.requests["queue_receive"] >= 1
    assert status.wait_times.total == 3

    (project.folder / "go").touch()
    worker.wait()
    assert [handle.result(30) for handle in handles] == [10, 30, 20]
    assert [handle.progress() for handle in handles] == [None] * 3
    (status,) = project.app.queues.workers()
    assert (status.state, status.succeeded, status.run_times.total, status.calls) == ("stopped", 3, 3, ())
