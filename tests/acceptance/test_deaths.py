"""Processes that die: a task's child, the worker, and what they started. The right call is charged, and the rest goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from projects import NewProject, Project, alive, new_project, until

from ai4s.jobq import as_completed
from ai4s.jobq.errors import CallTimedOut, WorkerDied
from ai4s.jobq.worker.lease import FIRST_LEASE_SECONDS

TASKS = """
import ctypes

@app.task
def square(x):
    return x * x

@app.task(max_deaths=1)
def leave(code):
    os._exit(code)

@app.task(max_deaths=1)
def crash():
    ctypes.string_at(0)

@app.task(max_deaths=1)
def kill_own_process():
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(max_deaths=1)
async def leave_from_a_loop(code):
    os._exit(code)

@app.task(max_deaths=2, backoff=0.05)
def die_twice():
    note("deaths", current().attempt)
    os._exit(7)

@app.task(max_deaths=3, backoff=0.05)
def die_once():
    if current().attempt == 1:
        os._exit(7)
    return current().attempt

@app.task(max_deaths=1)
def crash_beside_what_it_started():
    os.system("sleep 1000 & echo $! >> " + str(HERE / "started"))
    os._exit(3)

@app.task(max_deaths=1)
def crash_beside_a_daemon():
    os.system("setsid sleep 1000 & echo $! >> " + str(HERE / "started"))
    os._exit(3)

@app.task(timeout=1)
def sleep_with_a_grandchild():
    process = subprocess.Popen(["sleep", "1000"])
    note("grandchildren", process.pid)
    process.wait()

@app.task
def compute_beside_a_grandchild():
    note("grandchildren", subprocess.Popen(["sleep", "1000"]).pid)
    return sum(range(10**12))

@app.task
async def sleep_on_a_loop_with_a_grandchild():
    note("grandchildren", subprocess.Popen(["sleep", "1000"]).pid)
    await asyncio.sleep(1000)

@app.task(timeout=1)
def sleep_with_a_daemon():
    os.system("setsid sleep 1000 & echo $! >> " + str(HERE / "started"))
    time.sleep(1000)

@app.task(timeout=1)
def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)

@app.task(timeout=1)
def compute_in_c():
    return sum(range(10**12))

@app.task(timeout=0.5, retries=2, backoff=0.05)
def slow_twice():
    if current().attempt < 3:
        time.sleep(1000)
    return current().attempt

@app.task(timeout=1)
async def sleep_on_a_loop():
    try:
        await asyncio.sleep(1000)
    finally:
        note("cancelled", current().id)

@app.task
async def short_sleep(seconds):
    await asyncio.sleep(seconds)
    return os.getpid()

@app.task(timeout=1)
async def block_the_loop():
    time.sleep(1000)

@app.task
def write_to_every_descriptor():
    for number in range(3, 64):
        try:
            os.write(number, b"garbage" * 100)
        except OSError:
            pass
    return "done"

@app.task
def close_every_descriptor():
    os.closerange(3, 64)
    return "done"

@app.task
def fork_and_both_return():
    pid = os.fork()
    if pid:
        note("grandchildren", pid)
    return "parent" if pid else "child"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with a worker of two slots, for as long as this module's tests run."""
    folder = tmp_path_factory.mktemp("deaths")
    with new_project(folder / "project", f"local://{folder}/place", TASKS) as made:
        made.worker("--concurrency", "2")
        try:
            yield made
        finally:
            end_started(made)


@pytest.fixture
def own(new: NewProject) -> Iterator[Project]:
    """A project with a worker for one test: for tasks that might take it along."""
    made = new(TASKS)
    made.worker("--concurrency", "2")
    try:
        yield made
    finally:
        end_started(made)


def end_started(project: Project) -> None:
    """End what tasks have left behind: its numbers may long be those of other processes."""
    for pid in map(int, project.lines("started") + project.lines("grandchildren")):
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if command == b"sleep\x001000\x00" or b"ai4s.jobq.worker.child" in command:
                os.kill(pid, signal.SIGKILL)


def serves(project: Project) -> bool:
    """Whether both slots of the worker are there for the next call."""
    return [handle.result(timeout=30) for handle in [project.task("square").delay(n) for n in range(8)]] == [
        n * n for n in range(8)
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "cause"),
    [
        ("leave", (0,), "exit code 0"),
        ("leave", (3,), "exit code 3"),
        ("crash", (), "signal SIGSEGV"),
        ("kill_own_process", (), "signal SIGKILL"),
        ("leave_from_a_loop", (5,), "exit code 5"),
    ],
)
def test_a_death_is_named_and_charged_to_its_own_call(project: Project, name: str, arguments: tuple[int, ...], cause: str) -> None:
    """A child that dies ends its call as WorkerDied with the cause, leaves a dead letter, and harms no sibling."""
    siblings = [project.task("short_sleep").delay(0.2)] if name != "leave_from_a_loop" else []
    handle = project.task(name).delay(*arguments)
    siblings += [project.task("square").delay(n) for n in range(4)]
    with pytest.raises(WorkerDied, match=cause) as caught:
        handle.result(timeout=30)
    assert (caught.value.call_id, caught.value.attempts) == (handle.id, 1)
    assert caught.value.worker
    assert all(sibling.exception(timeout=30) is None for sibling in siblings)
    assert f"failed/default/{handle.id}.r1" in project.names("failed/")
    assert serves(project)


def test_deaths_are_counted_up_to_the_limit(project: Project) -> None:
    """`max_deaths=2` ends a call with its second death, and each attempt has its number."""
    with pytest.raises(WorkerDied) as caught:
        project.task("die_twice").delay().result(timeout=30)
    assert caught.value.attempts == 2
    assert project.lines("deaths") == ["1", "2"]


def test_a_call_survives_a_death_below_the_limit(project: Project) -> None:
    """A call whose child died once runs again, as attempt 2."""
    assert project.task("die_once").delay().result(timeout=30) == 2


@pytest.mark.parametrize("name", ["crash_beside_what_it_started", "crash_beside_a_daemon"])
def test_a_death_is_noticed_while_what_the_task_started_lives(own: Project, name: str) -> None:
    """A process that a task left behind holds the child's descriptors open; the child's death is noticed nevertheless."""
    with pytest.raises(WorkerDied, match="exit code 3"):
        own.task(name).delay().result(timeout=20)
    assert serves(own)


def test_a_dead_child_s_own_process_group_goes_with_it(own: Project) -> None:
    """What a task started in its process group does not outlive the child that crashed."""
    known = len(own.lines("started"))
    own.task("crash_beside_what_it_started").delay().exception(timeout=20)
    pid = int(until(lambda: own.lines("started")[known:], 20)[0])
    until(lambda: not alive(pid), 20, "the end of what the crashed child had started")


def test_many_deaths_leave_no_descriptors_behind(own: Project) -> None:
    """After thirty deaths the worker has no more open files than after five."""

    def open_files() -> int:
        return len(list(Path(f"/proc/{own.workers[0].pid}/fd").iterdir()))

    def die(times: int) -> int:
        for handle in [own.task("leave").delay(1) for _ in range(times)]:
            handle.exception(timeout=60)
        assert serves(own)
        return open_files()

    assert die(30) <= die(5) + 4


# Timeouts.


def test_a_timeout_ends_the_whole_process_group(own: Project) -> None:
    """A call that takes too long ends as CallTimedOut, and what it started ends with it."""
    with pytest.raises(CallTimedOut, match="timeout of 1 s"):
        own.task("sleep_with_a_grandchild").delay().result(timeout=30)
    pid = int(own.lines("grandchildren")[-1])
    until(lambda: not alive(pid), 20, "the end of the grandchild")
    assert serves(own)


@pytest.mark.parametrize("name", ["ignore_sigterm", "compute_in_c", "sleep_with_a_daemon"])
def test_a_timeout_ends_what_does_not_listen(own: Project, name: str) -> None:
    """A call that ignores SIGTERM, holds the interpreter's lock, or has left a daemon behind ends in time all the same."""
    with pytest.raises(CallTimedOut):
        own.task(name).delay().result(timeout=30)
    assert serves(own)


def test_a_timeout_is_an_error_that_retries_cover(project: Project) -> None:
    """Two timeouts and a success: with two retries, the call's value counts."""
    assert project.task("slow_twice").delay().result(timeout=30) == 3


def test_an_async_timeout_cancels_the_call_alone(project: Project) -> None:
    """A coroutine that takes too long is cancelled, with its cleanup, and its neighbours on the loop go on in the same process."""
    before = project.task("short_sleep").delay(0.0).result(timeout=30)
    neighbour = project.task("short_sleep").delay(2.5)
    handle = project.task("sleep_on_a_loop").delay()
    with pytest.raises(CallTimedOut):
        handle.result(timeout=30)
    assert neighbour.result(timeout=30) == before
    assert handle.id in project.lines("cancelled")


def test_a_blocked_loop_is_replaced_and_its_neighbours_run_again(own: Project) -> None:
    """A coroutine that blocks its loop past its timeout fails alone: calls beside it run again elsewhere and succeed."""
    neighbours = [own.task("short_sleep").delay(0.5) for _ in range(5)]
    with pytest.raises(CallTimedOut):
        own.task("block_the_loop").delay().result(timeout=40)
    assert all(neighbour.exception(timeout=40) is None for neighbour in neighbours)


# Vandals.


@pytest.mark.parametrize("name", ["write_to_every_descriptor", "close_every_descriptor"])
def test_a_task_that_spoils_its_descriptors_ends(own: Project, name: str) -> None:
    """A task that writes to, or closes, descriptors that are not its own ends one way or the other, and the worker goes on."""
    own.task(name).delay().exception(timeout=40)
    assert serves(own)


def test_a_task_that_forks_answers_once(own: Project) -> None:
    """Where both sides of a fork return from the task, the call has one outcome, and only one process stays."""
    assert own.task("fork_and_both_return").delay().result(timeout=30) in ("parent", "child")
    assert serves(own)
    copy = int(own.lines("grandchildren")[0])
    until(lambda: not alive(copy), 10, "the end of the other side")


# Innocent neighbours on a loop.


def test_a_crash_on_a_loop_does_not_fail_its_neighbours(new: NewProject) -> None:
    """A coroutine that kills its process again and again ends as WorkerDied; long calls that share its loop do not."""
    project = new("""
        @app.task(backoff=0.1)
        async def crash():
            await asyncio.sleep(0.3)
            os._exit(1)

        @app.task(backoff=0.1)
        async def innocent():
            await asyncio.sleep(3)
            return "done"
    """)
    project.worker("--concurrency", "1")
    innocents = [project.task("innocent").delay() for _ in range(5)]
    with pytest.raises(WorkerDied):
        project.task("crash").delay().result(timeout=60)
    assert [handle.result(timeout=60) for handle in innocents] == ["done"] * 5


# The worker itself.

ENDLESS = """
@app.task
def square(x):
    return x * x

@app.task
def compute_in_c():
    note("pids", os.getpid())
    if (HERE / "again").exists():
        return "again"
    return sum(range(10**12))

@app.task
async def wait_long():
    note("pids", os.getpid())
    if not (HERE / "again").exists():
        await asyncio.sleep(1000)
    return "again"

@app.task
def sleep_long():
    note("pids", os.getpid())
    if not (HERE / "again").exists():
        time.sleep(1000)
    return "again"

@app.task
def ignore_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    note("pids", os.getpid())
    if not (HERE / "again").exists():
        while True:
            time.sleep(1000)
    return "again"
"""


def test_children_die_with_a_killed_worker_and_their_calls_run_elsewhere(new: NewProject) -> None:
    """SIGKILL of the supervisor ends every child within seconds; after the lease each call runs again, once."""
    project = new(ENDLESS)
    worker = project.worker("--concurrency", "4", "--lease", "10s")
    names = ["compute_in_c", "wait_long", "sleep_long", "ignore_signals"]
    handles = [project.task(name).delay() for name in names]
    until(lambda: len(project.lines("pids")) >= 4, 30, "all four calls running")
    short = [project.task("square").delay(n) for n in range(40)]
    children = worker.children
    assert {int(pid) for pid in project.lines("pids")} <= set(children)
    worker.kill()
    until(lambda: not any(alive(pid) for pid in children), 10, "the end of all children")
    (project.folder / "again").touch()
    project.worker("--concurrency", "3")
    done = {handle.id: handle.result(timeout=1) for handle in as_completed(handles, timeout=FIRST_LEASE_SECONDS + 60)}
    assert list(done.values()) == ["again"] * 4
    assert [handle.result(timeout=30) for handle in short] == [n * n for n in range(40)]
    until(lambda: project.depth() == 0, 30, "an empty queue")


@pytest.mark.parametrize("name", ["sleep_with_a_grandchild", "compute_beside_a_grandchild", "sleep_on_a_loop_with_a_grandchild"])
def test_what_a_task_started_dies_with_a_killed_worker(own: Project, name: str) -> None:
    """SIGKILL of the supervisor ends the processes that its tasks have started, too, be the task asleep or in a loop in C."""
    own.task(name).options(timeout=1000).delay()
    pid = int(until(lambda: own.lines("grandchildren"), what="the grandchild")[0])
    assert alive(pid)
    own.workers[0].kill()
    until(lambda: not alive(pid), 10, "the end of the grandchild")


def test_a_blocked_loop_times_out_nobody_but_who_blocks_it(new: NewProject) -> None:
    """A call that came to a blocked loop never had a chance: it runs alone next, and only the blocker is charged."""
    project = new("""
        @app.task(timeout=1)
        async def block():
            note("blocking", current().attempt)
            time.sleep(1000)

        @app.task(timeout=1)
        async def innocent():
            await asyncio.sleep(0.1)
            return current().attempt
    """)
    project.worker("--concurrency", "1")
    blocker = project.task("block").delay()
    until(lambda: project.lines("blocking"))
    assert project.task("innocent").delay().result(60) == 1
    with pytest.raises(CallTimedOut):
        blocker.result(60)
    assert project.lines("blocking") == ["1", "1"]
