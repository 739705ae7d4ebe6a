"""Bounds on children: how many calls one serves, and how much memory it may hold.

Next: `test_deaths.py` for children that end by themselves.
"""

from __future__ import annotations

import textwrap

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
    async def wait_on_a_loop(name):
        while not (HERE / name).exists():
            await asyncio.sleep(0.01)
        return current().attempt

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


def test_calls_that_come_together_are_dealt_to_several_children(new: NewProject) -> None:
    """However many coroutines wait, none of their processes gets more than its share."""
    project = new(SOURCE)
    handles = [project.task("loop_pid").delay() for _ in range(12)]
    project.worker("--concurrency", "1", "--max-calls-per-child", "3")
    pids = [handle.result(60) for handle in handles]
    assert sorted(pids.count(pid) for pid in set(pids)) == [3, 3, 3, 3]


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
    with pytest.raises(WorkerDied, match=r"its memory grew to \d{3} MiB, and a child may hold 300 MiB") as caught:
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


def test_worn_children_keep_nobody_waiting(new: NewProject) -> None:
    """Coroutines that go on for long in children that get no more calls leave the others their place."""
    project = new(SOURCE)
    project.worker("--max-calls-per-child", "1", "--async-concurrency", "20")
    waiting = [project.task("wait_on_a_loop").delay("go on") for _ in range(6)]
    assert isinstance(project.task("loop_pid").delay().result(60), int)
    (project.folder / "go on").touch()
    assert [handle.result(60) for handle in waiting] == [1] * 6


def test_a_bound_below_what_an_idle_child_holds_is_refused(new: NewProject) -> None:
    """Each call would die of it, and end as a dead letter within seconds."""
    project = new(SOURCE)
    worker = project.worker("--max-memory-per-child", "10m", ready=False)
    assert worker.wait() == 2
    assert "before it runs anything" in worker.log


def test_a_cancelled_call_takes_no_child_from_others(new: NewProject) -> None:
    """A call that is cancelled while the child is started that it came to first leaves that to those who wait for it too."""
    project = new("time.sleep(4 if 'worker.child' in ' '.join(sys.orig_argv) else 0)\n" + textwrap.dedent(SOURCE))
    handles = [project.task("loop_pid").delay() for _ in range(8)]
    worker = project.worker("--concurrency", "1")
    assert project.app.handle(handles[0].id).cancel()
    assert len({handle.result(60) for handle in handles[1:]}) == 1
    assert "goes back" not in worker.log
