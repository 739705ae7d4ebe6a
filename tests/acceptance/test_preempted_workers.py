"""Machines that are taken back: what a worker does in its last seconds, and that they are the last ones.

A worker is told by SIGTERM, by its time limit, or by a notice of the machine's metadata service; what it has goes back uncharged.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest
import storage_spy
from fault_proxy import Fault, FaultyAccount, faulty_account, spoil_all
from metadata_server import MetadataServer, metadata_server
from projects import NewProject, Project, WorkerProcess, alive, until

from ai4s.jobq import WorkerDied
from ai4s.jobq.message import Call

PREEMPTED = 75
FREE_SECONDS = 2.0
"""In which what has not begun must be there for others."""

BUSY_SECONDS = 10.0
"""What a machine with much else to do may add to a time that is measured here."""

TASKS = """
from ai4s.jobq import Retry, preempted

if "SLOW_IMPORT" in os.environ:
    note("importing", os.getpid())
    time.sleep(1.5)

def until_preempted():
    note("begun", current().attempt)
    for _ in range(3000):
        if preempted():
            return True
        time.sleep(0.02)
    return False

@app.task
def square(x):
    return x * x

@app.task
def preempted_now():
    return preempted()

@app.task
def in_a_process():
    return until_preempted()

@app.task(pool="thread")
def on_a_thread():
    return until_preempted()

@app.task
async def on_a_loop():
    note("begun", current().attempt)
    for _ in range(3000):
        if preempted():
            return True
        await asyncio.sleep(0.02)
    return False

@app.task
def in_steps(saves=True):
    done = current().checkpoint.load(0)
    note("begun", done)
    while not (HERE / "go").exists():
        if preempted():
            if saves:
                current().checkpoint.save(done + 1)
            raise Retry()
        time.sleep(0.02)
    return done

@app.task
def careless(finishes=2):
    note("begun", current().attempt)
    while current().attempt < finishes:
        time.sleep(0.1)
    return current().attempt

@app.task
def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("begun", current().attempt)
    time.sleep(1000)

@app.task
def sees_it_come_and_go():
    note("begun", current().attempt)
    while not preempted():
        time.sleep(0.02)
    note("told", 1)
    while preempted():
        time.sleep(0.02)
    return current().attempt
"""


@dataclass
class Way:
    """How a worker is told that it has to go, what it must be started with for that, and what makes it go."""

    tell: Callable[[WorkerProcess], object]
    variables: dict[str, str] = field(default_factory=dict)
    end: Callable[[WorkerProcess], object] = lambda worker: None

    def gone(self, worker: WorkerProcess) -> None:
        """See it end as one that was preempted, now that it has given back what it had."""
        self.end(worker)
        assert worker.wait() == PREEMPTED, worker.log


@pytest.fixture
def azure() -> Iterator[MetadataServer]:
    """A metadata service of the machine on which the workers run."""
    with metadata_server() as server:
        yield server


@pytest.fixture(params=["signal", "notice"])
def way(request: pytest.FixtureRequest) -> Way:
    """SIGTERM, and then an event that Azure announces."""
    if request.param == "signal":
        return Way(lambda worker: worker.signal(signal.SIGTERM))
    azure = request.getfixturevalue("azure")
    # It waits for its machine to go, which ends processes first.
    end = partial(WorkerProcess.signal, number=signal.SIGTERM)
    return Way(lambda worker: azure.announce(seconds=6), {"JOBQ_METADATA_URL": azure.url}, end)


@pytest.fixture
def anywhere(new: NewProject, place_url: str) -> Project:
    """A project on a folder, and then on a storage account."""
    return new(TASKS, url=place_url)


@pytest.fixture
def project(new: NewProject) -> Project:
    """A project on a folder."""
    return new(TASKS)


# A worker learns in the same way at either place that its machine goes.
ways_and_places = pytest.mark.parametrize(
    ("place_url", "way"), [("local", "signal"), ("local", "notice"), ("azurite", "signal")], indirect=True
)


def begun(project: Project, attempts: int) -> None:
    """Wait until so many attempts have begun."""
    until(lambda: len(project.lines("begun")) >= attempts, what=f"{attempts} running attempts")


def returned(project: Project) -> Call:
    """The one call that lies on the queue, visible."""
    (call,) = until(lambda: storage_spy.calls(project.app), what="a call that was given back")
    return call


# What runs, and what waits.


@ways_and_places
def test_what_waits_goes_back_and_what_runs_is_told(anywhere: Project, way: Way) -> None:
    """Calls that were fetched ahead are visible within two seconds; tasks of every kind learn that they have to end, and may."""
    worker = anywhere.worker("--concurrency", "1", "--grace", "12s", **way.variables)
    # Short calls teach the worker to fetch ahead.
    assert [handle.result(timeout=30) for handle in [anywhere.task("square").delay(n) for n in range(40)]]
    running = [anywhere.task(name).delay() for name in ("in_a_process", "on_a_thread", "on_a_loop")]
    begun(anywhere, 3)
    waiting = [anywhere.task("square").delay(n) for n in range(25)]
    until(lambda: anywhere.visible() < 20, what="calls that were fetched ahead")
    way.tell(worker)
    worker.until_says("no new work")
    began = time.monotonic()
    until(lambda: anywhere.visible() == 25, what="25 visible messages")
    assert time.monotonic() - began < FREE_SECONDS + BUSY_SECONDS
    assert [handle.result(timeout=30) for handle in running] == [True] * 3
    anywhere.worker("--concurrency", "1")
    assert [handle.result(timeout=30) for handle in waiting] == [n * n for n in range(25)]
    way.gone(worker)


@ways_and_places
def test_a_task_that_saves_and_asks_for_another_attempt_goes_on_from_there(anywhere: Project, way: Way) -> None:
    """A checkpoint and `raise Retry()`: the call is back at once, uncharged, and its next attempt loads the checkpoint."""
    worker = anywhere.worker("--concurrency", "1", "--grace", "12s", **way.variables)
    handle = anywhere.task("in_steps").delay()
    begun(anywhere, 1)
    way.tell(worker)
    call = returned(anywhere)
    assert (call.errors, call.deaths, call.preemptions) == (0, 0, 1)
    assert call.checkpoint is not None
    assert call.mark is None
    way.gone(worker)
    (anywhere.folder / "go").touch()
    anywhere.worker("--concurrency", "1")
    assert handle.result(timeout=30) == 1
    assert anywhere.lines("begun") == ["0", "1"]


@ways_and_places
def test_a_task_that_does_not_care_is_stopped_and_given_back(anywhere: Project, way: Way) -> None:
    """Within the time there is, uncharged, whether it runs alone or with others in one process."""
    worker = anywhere.worker("--concurrency", "2", "--grace", "5s", **way.variables)
    handle = anywhere.task("careless").delay()
    begun(anywhere, 1)
    way.tell(worker)
    worker.until_says("no new work")
    began = time.monotonic()
    call = returned(anywhere)
    assert time.monotonic() - began < 7 + BUSY_SECONDS
    way.gone(worker)
    assert (call.errors, call.deaths, call.preemptions, call.mark) == (0, 0, 1, None)
    anywhere.worker("--concurrency", "1")
    assert handle.result(timeout=30) == 2


def test_a_time_limit_tells_what_runs(project: Project) -> None:
    """It is a preemption as well: tasks hear of it, and the exit code is the same."""
    worker = project.worker("--concurrency", "1", "--time-limit", "1s", "--grace", "12s", ready=False)
    handle = project.task("in_a_process").delay()
    begun(project, 1)
    assert worker.wait() == PREEMPTED, worker.log
    assert handle.result(timeout=1) is True


def test_a_child_that_starts_while_the_worker_drains_is_told(project: Project) -> None:
    """A call that is already on its way to a new process hears of the end like all others."""
    worker = project.worker("--concurrency", "1", "--grace", "50s", SLOW_IMPORT="1")
    handle = project.task("on_a_loop").delay()
    until(lambda: len(project.lines("importing")) == 2, what="a second process, for the call")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == PREEMPTED, worker.log
    assert handle.result(timeout=1) is True


# Notices.


def test_a_notice_that_is_withdrawn_lets_the_worker_go_on(anywhere: Project, azure: MetadataServer) -> None:
    """It takes nothing while it stands; then it takes work again, and what ran through it is told that all is well."""
    worker = anywhere.worker("--concurrency", "1", JOBQ_METADATA_URL=azure.url)
    running = anywhere.task("sees_it_come_and_go").delay()
    begun(anywhere, 1)
    event = azure.announce(seconds=60)
    until(lambda: anywhere.lines("told"), what="a task that is told")
    waiting = anywhere.task("square").delay(3)
    azure.until_answered()
    assert anywhere.visible() == 1
    azure.withdraw(event)
    worker.until_says("going on")
    assert running.result(timeout=30) == 1
    assert waiting.result(timeout=30) == 9
    worker.signal(signal.SIGINT)
    assert worker.wait() == 0, worker.log


def test_a_worker_whose_machine_stays_goes_on(project: Project, azure: MetadataServer) -> None:
    """It gives back what it runs, waits, and works again some time after the machine was to go, whatever is still announced."""
    worker = project.worker("--concurrency", "1", JOBQ_METADATA_URL=azure.url, JOBQ_PREEMPTION_TIMEOUT="1")
    handle = project.task("careless").delay()
    begun(project, 1)
    azure.announce(seconds=5)
    assert returned(project).preemptions == 1
    assert "waits for its machine to go" in worker.log
    worker.until_says("going on")
    assert "still there 1 s after" in worker.log
    assert handle.result(timeout=30) == 2
    assert project.task("preempted_now").delay().result(timeout=30) is False
    azure.until_answered()
    assert worker.log.count("no new work") == 1
    worker.signal(signal.SIGTERM)
    assert worker.wait() == PREEMPTED, worker.log


def test_a_notice_for_another_machine_is_ignored(project: Project, azure: MetadataServer) -> None:
    """A neighbour that goes is no reason to stop."""
    worker = project.worker("--concurrency", "1", JOBQ_METADATA_URL=azure.url)
    azure.announce(machines=("a-neighbour",), seconds=1)
    azure.until_answered(3)
    assert project.task("square").delay(3).result(timeout=30) == 9
    worker.signal(signal.SIGINT)
    assert worker.wait() == 0, worker.log
    assert "no new work" not in worker.log.partition("SIGINT")[0]


def test_a_metadata_service_that_hangs_delays_nothing(project: Project, azure: MetadataServer) -> None:
    """Its first answer takes minutes on a fresh machine; work begins and ends without it."""
    azure.hang()
    worker = project.worker("--concurrency", "1", JOBQ_METADATA_URL=azure.url)
    assert project.task("square").delay(3).result(timeout=30) == 9
    worker.signal(signal.SIGINT)
    assert worker.wait(20) == 0, worker.log


def test_an_address_that_is_none_is_said_at_the_start(project: Project) -> None:
    """Exit code 2, with the variable's name."""
    worker = project.worker(ready=False, JOBQ_METADATA_URL="169.254.169.254")
    assert worker.wait() == 2
    assert "JOBQ_METADATA_URL" in worker.log


# Again and again.


def preempt(project: Project, attempts: int) -> None:
    """A worker that is told to go as soon as the call runs for the so-manieth time."""
    worker = project.worker("--concurrency", "1", "--grace", "10s")
    begun(project, attempts)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == PREEMPTED, worker.log


def test_a_call_that_never_gets_on_ends_as_one_that_never_fits(project: Project) -> None:
    """Five preemptions without a checkpoint; the outcome says that it takes longer than the machines live."""
    handle = project.task("in_steps").delay(saves=False)
    for number in range(1, 6):
        assert not handle.done()
        preempt(project, number)
    with pytest.raises(WorkerDied, match="longer than these machines live"):
        handle.result(timeout=30)
    assert [letter.reason for letter in project.dead_letters()] == ["never fits"]
    assert project.depth() == 0


def test_a_call_that_gets_on_is_preempted_for_free(project: Project) -> None:
    """With a checkpoint each time it outlasts more preemptions than that."""
    handle = project.task("in_steps").delay()
    for number in range(1, 7):
        preempt(project, number)
    (project.folder / "go").touch()
    project.worker("--concurrency", "1")
    assert handle.result(timeout=30) == 6
    assert project.lines("begun") == [str(number) for number in range(7)]
    assert project.names("checkpoints/") == []


# In time, whatever happens.


@dataclass
class Cable:
    """What connects workers to their storage, to be cut."""

    url: str
    cut: Callable[[], object]


@contextlib.contextmanager
def proxied(url: str) -> Iterator[FaultyAccount]:
    """A proxy before an account, on a thread of its own; nothing listens there any more after the block."""
    ready, stop = threading.Event(), threading.Event()
    made: list[FaultyAccount] = []

    async def serve() -> None:
        async with faulty_account(url) as account:
            made.append(account)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield made[0]
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def cable(request: pytest.FixtureRequest) -> Iterator[Cable]:
    """Connections are refused, broken off, or never answered; and a folder's database that another process keeps locked."""
    with contextlib.ExitStack() as stack:
        if request.param == "locked":
            url = request.getfixturevalue("local_url")
            yield Cable(url, lambda: stack.enter_context(locked(url.removeprefix("local://"))))
            return
        account = stack.enter_context(proxied(request.getfixturevalue("azurite_url")))
        faults = {"reset": Fault.RESET, "black hole": Fault.BLACK_HOLE}

        def cut() -> None:
            if request.param == "unplugged":
                stack.close()
            else:
                account.plan = spoil_all("", faults[request.param])

        yield Cable(account.url, cut)


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Nobody else writes to a place's database within the block."""
    with contextlib.closing(sqlite3.connect(f"{folder}/jobq.db", isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


GRACE_SECONDS, TEARDOWN_SECONDS, LEAVING_SECONDS = 3.0, 2.0, 6.0


@pytest.mark.parametrize(
    ("cable", "busy"),
    [("unplugged", True), ("reset", True), ("black hole", True), ("black hole", False), ("locked", True), ("locked", False)],
    indirect=["cable"],
)
def test_a_worker_without_storage_is_gone_in_time(new: NewProject, cable: Cable, busy: bool) -> None:
    """With nothing to do, or with calls that nobody takes back: the grace period is all that it has."""
    project = new(TASKS, url=cable.url)
    worker = project.worker("--concurrency", "2", "--grace", f"{GRACE_SECONDS:g}s")
    if busy:
        for name in ("careless", "stubborn", "on_a_loop"):
            project.task(name).delay()
        begun(project, 3)
    children = worker.children
    cable.cut()
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == PREEMPTED, worker.log
    assert time.monotonic() - began < GRACE_SECONDS + TEARDOWN_SECONDS + BUSY_SECONDS, worker.log
    until(lambda: not any(alive(child) for child in children), 10, "the end of its children")


@pytest.mark.parametrize("cable", ["black hole", "locked"], indirect=True)
def test_a_second_signal_without_storage_leaves_in_seconds(new: NewProject, cable: Cable) -> None:
    """However long the grace period, from the second signal on it is the few seconds that it takes to give up."""
    project = new(TASKS, url=cable.url)
    worker = project.worker("--concurrency", "1", "--grace", "10m")
    project.task("stubborn").delay()
    begun(project, 1)
    cable.cut()
    worker.signal(signal.SIGTERM)
    worker.until_says("no new work")
    began = time.monotonic()
    until(lambda: worker.signal(signal.SIGTERM) or "given back now" in worker.log, what="a second signal that counts")
    assert worker.wait() == PREEMPTED, worker.log
    assert time.monotonic() - began < LEAVING_SECONDS + TEARDOWN_SECONDS + BUSY_SECONDS, worker.log


def test_a_worker_that_cannot_start_for_want_of_storage_is_gone_at_once(new: NewProject, azurite_url: str) -> None:
    """It has nothing that it could give back."""
    with proxied(azurite_url) as account:
        account.plan = spoil_all("", Fault.BLACK_HOLE)
        project = new(TASKS, url=account.url)
        worker = project.worker("--concurrency", "1", "--grace", "10m", ready=False)
        until(lambda: account.requests, what="a request")
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == PREEMPTED, worker.log
        assert time.monotonic() - began < TEARDOWN_SECONDS + BUSY_SECONDS


def test_a_child_that_does_not_end_holds_nobody_up(new: NewProject) -> None:
    """A resource whose end hangs, in a process that ignores SIGTERM, is ended with the grace period."""
    project = new("""
        @app.resource
        def model():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            yield 1
            note("closing", 1)
            time.sleep(1000)

        @app.task
        def use():
            return model()
    """)
    worker = project.worker("--concurrency", "1", "--grace", "3s")
    assert project.task("use").delay().result(timeout=30) == 1
    children = worker.children
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == PREEMPTED, worker.log
    assert time.monotonic() - began < GRACE_SECONDS + TEARDOWN_SECONDS + BUSY_SECONDS
    until(lambda: not any(alive(child) for child in children), 10, "the end of its children")


def test_what_never_began_is_not_charged(new: NewProject) -> None:
    """Workers that have to go again and again while their children still import: the call runs in its first attempt."""
    project = new("""
        if "ai4s.jobq.worker.child" in " ".join(sys.orig_argv) and not (HERE / "quick").exists():
            time.sleep(3)

        @app.task
        async def attempt():
            return current().attempt
    """)
    handle = project.task("attempt").delay()
    for _ in range(6):
        worker = project.worker("--grace", "0s")
        until(lambda: project.visible() == 0)
        worker.signal(signal.SIGTERM)
        worker.wait()
    (project.folder / "quick").touch()
    project.worker()
    assert handle.result(60) == 1
