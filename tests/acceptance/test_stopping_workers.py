"""How workers end: by themselves, when told to, and when told twice; and what becomes of what they had."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import Any

import pytest
from projects import NewProject, Project, WorkerProcess, alive, until

from ai4s.jobq import Handle, as_completed

TASKS = """
@app.task
def square(x):
    return x * x

@app.task
def run_for(seconds):
    note("begun", current().attempt)
    time.sleep(seconds)
    return current().worker

@app.task
def until_told():
    note("begun", current().attempt)
    give_up_at = time.time() + 60
    while not (HERE / "go").exists():
        if time.time() > give_up_at:
            raise TimeoutError
        time.sleep(0.02)
    return current().worker

@app.task
async def until_told_on_a_loop():
    note("begun", current().attempt)
    while not (HERE / "go").exists():
        await asyncio.sleep(0.02)
    return current().worker

@app.task
def stuck():
    note("begun", current().attempt)
    if current().attempt == 1:
        time.sleep(1000)
    return current().worker

@app.task
async def stuck_on_a_loop():
    note("begun", current().attempt)
    if current().attempt == 1:
        await asyncio.sleep(1000)
    return current().worker
"""

GRACE = ["--grace", "20s"]
PREEMPTED = 75  # the exit code that asks to be started again
FREE_SECONDS = 2.0  # in which what has not begun must be there for others

# Which signal it was makes no difference to a place.
signals_and_places = pytest.mark.parametrize(
    ("place_url", "number", "code"),
    [("local", signal.SIGTERM, PREEMPTED), ("local", signal.SIGINT, 0), ("azurite", signal.SIGTERM, PREEMPTED)],
    indirect=["place_url"],
)


@pytest.fixture
def project(new: NewProject) -> Project:
    """A project on a folder."""
    return new(TASKS)


@pytest.fixture
def anywhere(new: NewProject, place_url: str) -> Project:
    """A project on a folder, and then on a storage account."""
    return new(TASKS, url=place_url)


def worker_ids(project: Project) -> list[str]:
    """The ids of the workers that have shown themselves."""
    return [name.removeprefix("workers/") for name in project.names("workers/")]


def begun(project: Project, calls: int) -> None:
    """Wait until so many attempts have begun."""
    until(lambda: len(project.lines("begun")) >= calls, what=f"{calls} running calls")


# By themselves.


def test_until_empty_ends_when_all_is_done(anywhere: Project) -> None:
    """`--until-empty` does what there is, and ends with code 0 and an empty queue."""
    handles = [anywhere.task("square").delay(n) for n in range(20)]
    worker = anywhere.worker("--until-empty", "--concurrency", "2", ready=False)
    assert worker.wait() == 0, worker.log
    assert [handle.result(timeout=1) for handle in handles] == [n * n for n in range(20)]
    assert anywhere.depth() == 0


def test_until_empty_ends_although_it_refused_a_message(project: Project) -> None:
    """A message that this worker put aside does not keep it from ending, and lies there still."""
    from test_bad_input import send_forged

    send_forged(project, task="elsewhere.cube")
    handle = project.task("square").delay(3)
    worker = project.worker("--until-empty", "--concurrency", "1", ready=False)
    assert worker.wait() == 0, worker.log
    assert handle.result(timeout=1) == 9
    assert project.depth() == 1


def test_until_empty_waits_for_what_another_worker_holds(project: Project) -> None:
    """While somebody else holds a message, the queue is not empty: it might come back."""
    other = project.worker("--concurrency", "1")
    handle = project.task("until_told").delay()
    begun(project, 1)
    worker = project.worker("--until-empty", "--concurrency", "1")
    # It has looked often by the time that another one, which also refuses something, would have ended.
    project.task("square").delay(3).result(timeout=30)
    with pytest.raises(AssertionError, match="still runs"):
        worker.wait(within=3)
    (project.folder / "go").touch()
    assert worker.wait() == 0
    assert handle.result(timeout=30) != ""
    assert alive(other.pid)


def test_until_idle_ends_after_a_while_without_work(project: Project) -> None:
    """`--until-idle 1s` works first, and ends with code 0 when nothing has come for a second."""
    handle = project.task("run_for").delay(1.5)
    worker = project.worker("--until-idle", "1s", "--concurrency", "1", ready=False)
    assert worker.wait() == 0, worker.log
    assert handle.done()


def test_a_time_limit_ends_it_in_good_order(project: Project) -> None:
    """`--time-limit` takes nothing new from then on, lets what runs finish, leaves the rest to others; the exit code is its own."""
    handles = [project.task("run_for").delay(1.5) for _ in range(4)]
    worker = project.worker("--time-limit", "1s", "--concurrency", "1", ready=False)
    assert worker.wait() == PREEMPTED, worker.log
    done = [handle for handle in handles if handle.done()]
    assert 1 <= len(done) <= 2
    assert project.depth() == 4 - len(done)
    until(lambda: project.visible() == 4 - len(done), 10, "the rest to be there for others")


# When told to.


@signals_and_places
def test_a_signal_lets_what_runs_finish(anywhere: Project, number: signal.Signals, code: int) -> None:
    """After one signal what runs is finished and counted, nothing new begins, and the exit code says who wanted it."""
    worker = anywhere.worker("--concurrency", "2", *GRACE)
    running = [anywhere.task("until_told").delay(), anywhere.task("until_told_on_a_loop").delay()]
    begun(anywhere, 2)
    worker.signal(number)
    worker.until_says(f"{number.name} received")
    late = anywhere.task("square").delay(3)
    (anywhere.folder / "go").touch()
    assert worker.wait() == code, worker.log
    assert [handle.result(timeout=1) for handle in running] == [worker_ids(anywhere)[0]] * 2
    assert not late.done()
    assert anywhere.depth() == 1


def test_what_has_not_begun_goes_back_at_once(anywhere: Project) -> None:
    """Calls that were fetched ahead are there for another worker within two seconds of the signal, uncharged."""
    worker = anywhere.worker("--concurrency", "1", *GRACE)
    # Short calls teach the worker to fetch ahead.
    assert [handle.result(timeout=30) for handle in [anywhere.task("square").delay(n) for n in range(40)]]
    running = anywhere.task("until_told").delay()
    begun(anywhere, 1)
    waiting = [anywhere.task("square").delay(n) for n in range(30)]
    until(lambda: anywhere.visible() < 20, 20, "calls that were fetched ahead")
    worker.signal(signal.SIGTERM)
    began = time.monotonic()
    until(lambda: anywhere.visible() == 30, 20, "30 visible messages")
    assert time.monotonic() - began < FREE_SECONDS + 3, "two seconds, and some for a busy machine"
    helper = anywhere.worker("--concurrency", "1")
    assert [handle.result(timeout=30) for handle in waiting] == [n * n for n in range(30)]
    (anywhere.folder / "go").touch()
    assert worker.wait() == PREEMPTED, worker.log
    assert running.result(timeout=30)
    assert alive(helper.pid)


@pytest.mark.parametrize("name", ["stuck", "stuck_on_a_loop"])
def test_what_outlasts_the_grace_period_runs_elsewhere(project: Project, name: str) -> None:
    """When the grace period is over, what still runs is given back, and another worker takes it at once."""
    first = project.worker("--concurrency", "1", "--grace", "1s")
    handle = project.task(name).delay()
    begun(project, 1)
    second = project.worker("--concurrency", "1")
    first.signal(signal.SIGTERM)
    assert first.wait(20) == PREEMPTED, first.log
    assert handle.result(timeout=15) in worker_ids(project)
    assert project.lines("begun") == ["1", "2"]
    assert alive(second.pid)


@signals_and_places
def test_a_second_signal_gives_everything_back_now(anywhere: Project, number: signal.Signals, code: int) -> None:
    """The second signal ends the worker long before its grace period, and everything is on the queue, visible."""
    worker = anywhere.worker("--concurrency", "2", "--grace", "10m")
    handles = [anywhere.task("stuck").delay(), anywhere.task("stuck").delay(), anywhere.task("stuck_on_a_loop").delay()]
    begun(anywhere, 3)
    children = worker.children
    worker.signal(number)
    worker.until_says(f"{number.name} received")
    # What comes at once after the first one is taken for its echo.
    until(lambda: worker.signal(number) or "given back now" in worker.log, what="a second signal that counts")
    assert worker.wait(30) == code, worker.log
    assert not any(alive(child) for child in children)
    assert anywhere.visible() == len(handles)
    anywhere.worker("--concurrency", "2")
    assert all(handle.exception(timeout=30) is None for handle in handles)
    assert sorted(anywhere.lines("begun")) == ["1"] * 3 + ["2"] * 3


def test_a_signal_ends_an_idle_worker_at_once(anywhere: Project) -> None:
    """A worker without work ends with the first signal, and says that it has stopped."""
    worker = anywhere.worker("--concurrency", "2", *GRACE)
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == PREEMPTED
    assert "Worker " in worker.log.splitlines()[-1]


def test_a_signal_ends_a_worker_that_still_imports(new: NewProject) -> None:
    """While the user's module is still being imported, a signal ends the worker too, and does not wait for the import."""
    project = new("""
        if "SLOW" in os.environ:
            note("importing", 1)
            time.sleep(1000)
    """)
    worker = project.worker(ready=False, SLOW="1")
    until(lambda: project.lines("importing"), what="an import that hangs")
    worker.signal(signal.SIGTERM)
    worker.wait(20)
    assert worker.children == []


def test_a_time_limit_within_the_grace_period_cuts_nothing_short(project: Project) -> None:
    """A time limit that comes while the worker already ends is no second signal: what runs keeps its grace period."""
    worker = project.worker("--concurrency", "1", "--time-limit", "3s", "--grace", "30s")
    handle = project.task("run_for").delay(5)
    begun(project, 1)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == PREEMPTED, worker.log
    assert handle.done()
    assert project.lines("begun") == ["1"]


def test_the_first_signal_to_a_worker_that_ends_cuts_nothing_short(project: Project) -> None:
    """A cluster that signals just when the time limit was reached has asked once: what runs keeps its grace period."""
    worker = project.worker("--concurrency", "1", "--time-limit", "1s", *GRACE)
    handle = project.task("until_told").delay()
    begun(project, 1)
    worker.until_says("The time limit is reached")
    worker.signal(signal.SIGTERM)
    worker.until_says("SIGTERM received")
    (project.folder / "go").touch()
    assert worker.wait() == PREEMPTED, worker.log
    assert handle.done()
    assert "given back now" not in worker.log


# What they leave.


def test_a_worker_shows_itself_and_says_when_it_stopped(anywhere: Project) -> None:
    """`workers/<id>` holds the state and the counts; the id is the one that outcomes name; two workers have two."""
    workers = [anywhere.worker("--concurrency", "1"), anywhere.worker("--concurrency", "1")]
    until(lambda: len(worker_ids(anywhere)) == 2, 30, "two workers")
    done_by = anywhere.task("run_for").delay(0.1).result(timeout=30)
    assert done_by in worker_ids(anywhere)
    stop(workers)
    states = metadata(anywhere)
    assert {numbers["state"] for numbers in states.values()} == {"stopped"}
    assert states[done_by]["succeeded"] == "1"
    assert {int(numbers["pid"]) for numbers in states.values()} == {worker.pid for worker in workers}


def stop(workers: list[WorkerProcess]) -> None:
    """End them in good order."""
    for worker in workers:
        worker.signal(signal.SIGINT)
    assert [worker.wait() for worker in workers] == [0] * len(workers)


def metadata(project: Project) -> dict[str, dict[str, str]]:
    """What each worker says of itself."""
    from ai4s.jobq.ledger import Ledger

    async def listed(ledger: Ledger) -> dict[str, dict[str, str]]:
        found = (await ledger.store()).list("workers/", with_metadata=True)
        return {info.name.removeprefix("workers/"): dict(info.metadata) async for info in found}

    return project.app.client.run(listed)


def test_a_stopped_worker_leaves_no_scratch_behind(project: Project) -> None:
    """The folder for large values goes with the worker."""
    scratch = project.folder / "scratch"
    scratch.mkdir()
    worker = project.worker("--concurrency", "1", TMPDIR=str(scratch))
    assert list(scratch.iterdir())
    stop([worker])
    assert list(scratch.iterdir()) == []


def any_done(handles: list[Handle[Any]]) -> bool:
    return any(handle.done() for handle in handles)


def test_workers_that_come_and_go_lose_nothing(project: Project) -> None:
    """Calls that are submitted while workers start and stop all end, soon, each with its own value."""
    handles = []
    for kind in (signal.SIGTERM, signal.SIGINT) * 2:
        worker = project.worker("--concurrency", "2")
        handles += [project.task("square").delay(n) for n in range(50)]
        until(partial(any_done, handles[-50:]), 30, "a first result")
        worker.signal(kind)
        worker.wait()
    last = project.worker("--concurrency", "2")
    values = {handle.id: handle.result() for handle in as_completed(handles, timeout=30)}
    assert [values[handle.id] for handle in handles] == [n * n for n in range(50)] * 4
    until(lambda: project.depth() == 0, 10, "an empty queue")
    assert alive(last.pid)
