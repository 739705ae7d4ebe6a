"""Bounds on children: how many calls one serves, and how much memory it may hold.

Next: `test_deaths.py` for children that end by themselves.
"""

from __future__ import annotations

import pytest
from projects import NewProject

from ai4s.jobq import WorkerDied

SOURCE = """
    kept = []

    @app.task
    def pid():
        return os.getpid()

    @app.task
    async def loop_pid():
        return os.getpid()

    @app.task
    def keep(megabytes):
        kept.append(b"x" * (megabytes * 1024 * 1024))
        return os.getpid()

    @app.task(max_deaths=2)
    def grow(until_megabytes):
        held = []
        while len(held) < until_megabytes:
            held.append(b"x" * (1024 * 1024))
            time.sleep(0.001)
        time.sleep(60)

    @app.task(max_deaths=2)
    async def grow_on_a_loop(until_megabytes):
        held = []
        while len(held) < until_megabytes:
            held.append(b"x" * (1024 * 1024))
            await asyncio.sleep(0.001)
        await asyncio.sleep(60)

    @app.task
    def grow_elsewhere(megabytes):
        subprocess.run([sys.executable, "-c", f"import time; x = b'x' * ({megabytes} * 1024 * 1024); time.sleep(60)"])

    @app.task
    def wait_for(name):
        while not (HERE / name).exists():
            time.sleep(0.01)
        return current().attempt
"""


def test_a_child_serves_so_many_calls(new: NewProject) -> None:
    """And is replaced by another; coroutines share one until then, too."""
    project = new(SOURCE)
    project.worker("--concurrency", "1", "--max-calls-per-child", "3")
    for task in ("pid", "loop_pid"):
        pids = [project.task(task).delay().result(60) for _ in range(7)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]


def test_a_child_that_holds_much_is_replaced_between_calls(new: NewProject) -> None:
    """A leak fails no call: the child goes before it has no room left."""
    project = new(SOURCE)
    worker = project.worker("--concurrency", "1", "--max-memory-per-child", "300m")
    pids = [project.task("keep").delay(60).result(60) for _ in range(10)]
    assert 2 <= len(set(pids)) <= 5
    assert "goes back" not in worker.log


@pytest.mark.parametrize("task", ["grow", "grow_on_a_loop"])
def test_a_call_that_holds_too_much_dies_and_memory_is_the_cause(new: NewProject, task: str) -> None:
    """It is charged; its neighbours in other processes do not notice."""
    project = new(SOURCE)
    worker = project.worker("--concurrency", "2", "--max-memory-per-child", "300m")
    neighbour = project.task("wait_for").delay("go on")
    greedy = project.task(task).delay(500)
    with pytest.raises(WorkerDied, match=r"its memory grew to 0\.\d\d GiB, and a child may hold 0\.29 GiB") as caught:
        greedy.result(60)
    assert caught.value.attempts == 2
    (project.folder / "go on").touch()
    assert neighbour.result(60) == 1
    assert worker.process.poll() is None
    (letter,) = project.dead_letters()
    assert letter.reason == "died"


def test_memory_of_what_a_call_has_started_counts(new: NewProject) -> None:
    """The bound is on the child and all its descendants."""
    project = new(SOURCE)
    project.worker("--concurrency", "1", "--max-memory-per-child", "300m")
    with pytest.raises(WorkerDied, match="its memory grew"):
        project.task("grow_elsewhere").options(retries=0).delay(400).result(60)
