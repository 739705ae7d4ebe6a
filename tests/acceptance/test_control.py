"""Real workers that are told something beside their messages: cancel, pause, resume, drain."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from projects import NewProject, Project, WorkerProcess, alive, until

from ai4s.jobq import CallCancelled, Handle, control, layout
from ai4s.jobq.ledger import Ledger

TASKS = """
from ai4s.jobq import Retry

@app.task
def square(x):
    note("begun", "square")
    return x * x

@app.task
def with_a_program():
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    note("pids", os.getpid())
    note("pids", program.pid)
    program.wait()

@app.task
def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("pids", os.getpid())
    time.sleep(1000)

@app.task
async def on_a_loop(name):
    note("begun", name)
    try:
        while not (HERE / f"go-{name}").exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        note("cancelled", name)
        raise
    return name

@app.task(retries=5)
def later():
    note("begun", "later")
    raise Retry(delay=4)

@app.task
def until_told():
    note("begun", "until_told")
    while not (HERE / "go").exists():
        time.sleep(0.02)
    return current().worker
"""

STOPPED_SECONDS = 10.0
"""What is promised."""


@pytest.fixture
def project(new: NewProject, place_url: str) -> Project:
    """A project on a folder, and then on a storage account."""
    return new(TASKS, url=place_url)


@pytest.fixture
def local_project(new: NewProject) -> Project:
    """On a folder only, where the kind of place plays no part."""
    return new(TASKS)


def begun(project: Project, calls: int, name: str = "begun") -> list[str]:
    """Wait until so many lines were written."""
    until(lambda: len(project.lines(name)) >= calls, what=f"{calls} running calls")
    return project.lines(name)


def stops(worker: WorkerProcess, handle: Handle[Any], pids: list[int]) -> None:
    """Cancel, and see these processes end; the worker goes on."""
    assert handle.cancel()
    with pytest.raises(CallCancelled):
        handle.result(timeout=1)
    end(worker, pids)


def end(worker: WorkerProcess, pids: list[int]) -> None:
    """See these processes end, now that their calls are cancelled."""
    cancelled_at = time.monotonic()
    until(lambda: not any(alive(pid) for pid in pids), what=f"the end of {pids}:\n{worker.log}")
    # A busy machine may take longer for its part; an order that is not read takes for ever.
    assert time.monotonic() - cancelled_at < 3 * STOPPED_SECONDS


# Cancel.


def test_a_running_task_is_stopped_with_its_programs(project: Project) -> None:
    """Its process and what that has started; the next call runs, and nothing is left on the queue."""
    worker = project.worker("--concurrency", "1")
    handle = project.task("with_a_program").delay()
    stops(worker, handle, [int(line) for line in begun(project, 2, "pids")])

    assert project.task("square").delay(3).result(timeout=60) == 9
    until(lambda: project.depth() == 0)
    assert project.dead_letters() == []
    assert len(project.lines("pids")) == 2


def test_a_task_that_does_not_heed_sigterm_is_killed(local_project: Project) -> None:
    """By another handle of it, as it happens."""
    project = local_project
    worker = project.worker("--concurrency", "1")
    handle = project.task("stubborn").delay()
    stops(worker, project.app.handle(handle.id), [int(line) for line in begun(project, 1, "pids")])


def test_a_running_task_is_stopped_though_very_many_others_are_cancelled(project: Project) -> None:
    """More than the list that workers read can hold, just after it."""
    worker = project.worker("--concurrency", "1")
    handle = project.task("with_a_program").delay()
    pids = [int(line) for line in begun(project, 2, "pids")]
    others = [layout.run_id(layout.call_id("a" * 16, number), 1) for number in range(control.MOST_REMEMBERED + 100)]

    async def cancel_others(ledger: Ledger) -> None:
        await asyncio.gather(*(control.tell_cancelled(ledger, "default", run) for run in others))

    assert handle.cancel()
    project.app.client.run(cancel_others)
    end(worker, pids)


def test_a_running_coroutine_is_cancelled_and_its_neighbour_goes_on(project: Project) -> None:
    """They share a process, which lives."""
    project.worker("--concurrency", "1")
    handle, neighbour = (project.task("on_a_loop").delay(name) for name in ("one", "other"))
    begun(project, 2)
    assert handle.cancel()

    assert begun(project, 1, "cancelled") == ["one"]
    (project.folder / "go-other").touch()
    assert neighbour.result(timeout=60) == "other"
    until(lambda: project.depth() == 0)
    assert sorted(project.lines("begun")) == ["one", "other"]


def test_a_waiting_call_is_never_begun(project: Project) -> None:
    """Although its message stays until a worker comes to it, if that worker knows by then that something was cancelled."""
    project.worker("--concurrency", "1")
    first = project.task("until_told").delay()
    begun(project, 1)
    waiting = project.task("square").delay(3)
    assert project.app.handle(waiting.id).cancel()
    last = project.task("square").delay(4)

    # The slot is free when the worker has read of this, and so of what was cancelled before.
    assert first.cancel()
    assert last.result(timeout=60) == 16
    until(lambda: project.depth() == 0)
    assert project.lines("begun") == ["until_told", "square"]


def test_a_call_that_waits_for_its_next_attempt_gets_none(local_project: Project) -> None:
    """Its message goes when its time has come."""
    project = local_project
    project.worker("--concurrency", "1")
    handle = project.task("later").delay()
    begun(project, 1)
    assert handle.cancel()
    until(lambda: project.depth() == 0)
    assert project.lines("begun") == ["later"]


# Pause and resume.


def test_nothing_begins_while_a_queue_is_paused(project: Project) -> None:
    """What runs goes on; a worker that is to end with the queue empty waits."""
    worker = project.worker("--concurrency", "2")
    running = project.task("until_told").delay()
    begun(project, 1)
    project.app.pause()
    worker.until_says("Queue default is paused")
    handles = [project.task("square").delay(n) for n in range(5)]
    (project.folder / "go").touch()
    assert running.result(timeout=60)
    other = project.worker("--until-empty", "--concurrency", "2")
    with pytest.raises(AssertionError, match="still runs"):
        other.wait(within=1.5)
    assert project.lines("begun") == ["until_told"]

    project.app.resume()
    assert [handle.result(timeout=60) for handle in handles] == [0, 1, 4, 9, 16]
    assert other.wait() == 0


# Drain.


def test_a_drained_worker_finishes_and_ends_and_the_next_one_works(project: Project) -> None:
    """With code 0, having taken nothing new; its grace period does not matter."""
    worker = project.worker("--concurrency", "2", "--grace", "3s")
    running = project.task("until_told").delay()
    begun(project, 1)
    project.app.drain()
    worker.until_says("Queue default is drained")
    handle = project.task("square").delay(3)
    with pytest.raises(AssertionError, match="still runs"):
        worker.wait(within=4)
    assert project.lines("begun") == ["until_told"]
    (project.folder / "go").touch()
    assert worker.wait() == 0, worker.log
    assert running.result(timeout=1)

    later = project.worker("--concurrency", "2")
    assert handle.result(timeout=60) == 9
    assert later.process.poll() is None
