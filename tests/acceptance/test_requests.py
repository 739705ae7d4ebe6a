"""What work and waiting cost, in requests to a real account behind a counting proxy; and waking, where there is no server."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from fault_proxy import FaultyAccount, counted_kind, faulty_account
from projects import NewProject, Project, new_project, until

from ai4s.jobq import as_completed
from ai4s.jobq.transports.base import MAX_RECEIVE
from ai4s.jobq.worker.slots import PROBE_MESSAGES

TASKS = """
@app.task
def square(x):
    return x * x

@app.task
def run_for(seconds):
    time.sleep(seconds)

@app.task
async def wait_for(seconds):
    await asyncio.sleep(seconds)
"""


IDLE_SECONDS = 30.0  # after which a worker that nobody wakes looks every 4 to 5 s


@dataclass
class Sleeper:
    """A project on a folder, and since when its worker has had nothing to do."""

    project: Project
    since: float


@pytest.fixture(scope="module", autouse=True)
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sleeper]:
    """A worker that falls asleep while the other tests of this module run."""
    folder = tmp_path_factory.mktemp("sleeper")
    with new_project(folder / "project", f"local://{folder}/place", TASKS) as project:
        project.worker("--concurrency", "1")
        yield Sleeper(project, time.monotonic())


class Counting:
    """An account behind a proxy on a thread of its own, so that processes can use it while the test waits."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counting-proxy")
        self._thread.start()
        self._stack = AsyncExitStack()
        self._account: FaultyAccount = self._run(self._stack.enter_async_context(faulty_account(url)))

    def _run(self, work: object) -> FaultyAccount:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)  # type: ignore[arg-type]  # a coroutine

    @property
    def url(self) -> str:
        """The account, for others."""
        return self._account.url

    def counts(self) -> Counter[str]:
        """Requests so far, by kind."""
        return Counter(self._account.kinds())

    def counted(self) -> Counter[str]:
        """Requests so far, by the kinds that transports count."""
        return Counter(map(counted_kind, list(self._account.requests)))

    def close(self) -> None:
        """End the proxy and its thread."""
        self._run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def worker_side(azurite_url: str) -> Iterator[Counting]:
    """A proxy that only workers go through: the producer of these tests asks the account itself."""
    counting = Counting(azurite_url)
    try:
        yield counting
    finally:
        counting.close()


def at(project: Project, counting: Counting) -> dict[str, str]:
    """What leads a worker through the proxy."""
    return {"JOBQ_URL": counting.url}


@pytest.fixture
def project(new: NewProject, azurite_url: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose place is the environment's: the producer's is the account, the worker's the proxy before it."""
    monkeypatch.setenv("JOBQ_URL", azurite_url)
    return new("\napp = App(app.name)\n" + TASKS, url=azurite_url)


def counted(counting: Counting, before: Counter[str]) -> Counter[str]:
    """Requests since then, by kind."""
    now = counting.counts()
    now.subtract(before)
    return +now


def test_a_call_costs_a_put_a_delete_and_its_share_of_a_receive(project: Project, worker_side: Counting) -> None:
    """A hundred short calls cost the worker one outcome and one deletion each, and far fewer receives than calls."""
    worker = project.worker("--concurrency", "2", **at(project, worker_side))
    assert project.task("square").delay(3).result(timeout=30) == 9
    until(lambda: project.depth() == 0, 30, "the first call's message to be gone")
    calls = 100
    before = worker_side.counts()
    handles = [project.task("square").delay(n) for n in range(calls)]
    assert sum(1 for _ in as_completed(handles, timeout=60)) == calls
    until(lambda: project.depth() == 0, 30, "an empty queue")
    spent = counted(worker_side, before)
    assert spent["put"] <= calls + 3, spent
    assert spent["delete message"] == calls, spent
    assert spent["get"] + spent["head"] <= 5, spent
    assert spent["update"] <= calls // 10, f"messages were handed back: {spent}\n{worker.log}"


def test_a_worker_knows_what_it_has_asked(project: Project, worker_side: Counting) -> None:
    """Its last status tells all but its own writing, to the request; and a batch tells what a map took."""
    square = project.task("square")
    worker = project.worker("--concurrency", "2", **at(project, worker_side))
    assert square.delay(3).result(timeout=30) == 9
    batch = square.map(range(200))
    assert sum(batch.results(timeout=60)) == sum(n * n for n in range(200))
    until(lambda: project.depth() == 0, 30, "an empty queue")
    worker.signal(signal.SIGTERM)
    worker.wait()
    (status,) = project.app.queues.workers()
    seen = worker_side.counted()
    assert +(seen - Counter(status.requests)) == {"blob_put": 1}
    assert not Counter(status.requests) - seen
    told = batch.cost().requests
    packs = len(project.names(f"batches/{batch.id}/in/"))
    assert told["queue_send"] == packs
    assert told["queue_delete"] == packs
    assert told["blob_put"] == len(project.names(f"batches/{batch.id}/"))


def test_an_idle_worker_asks_ever_more_rarely(project: Project, worker_side: Counting) -> None:
    """Some seconds after its last message, a worker asks its queue about once a second, and nothing else."""
    project.worker("--concurrency", "2", **at(project, worker_side))
    assert project.task("square").delay(3).result(timeout=30) == 9
    pause = threading.Event()
    pause.wait(7)
    middle = worker_side.counts()
    pause.wait(6)
    spent = counted(worker_side, middle)
    assert 2 <= spent["receive"] <= 14, spent
    assert sum(spent.values()) - spent["receive"] <= 3, spent


def test_long_calls_are_not_fetched_and_handed_back_over_and_over(project: Project, worker_side: Counting) -> None:
    """A backlog of long sync calls, in a project that also has coroutines, lies still: it is not received only to be released."""
    project.worker("--concurrency", "1", **at(project, worker_side))
    project.task("wait_for").delay(0).result(timeout=30)
    project.task("run_for").delay(1).result(timeout=30)
    begin = worker_side.counts()
    for _ in range(MAX_RECEIVE):
        project.task("run_for").delay(4)
    # What was fetched for the coroutines' room, before it was known that none of it is for them, has gone back.
    until(lambda: counted(worker_side, begin)["update"] and project.depth() - project.visible() <= 1, 30, "one that is held")
    before = worker_side.counts()
    threading.Event().wait(6)
    spent = counted(worker_side, before)
    # What it takes to run is not handed back; the rest are probes, after 0.25 s, 0.5 s, 1 s, 2 s, 4 s. No lease is due so soon.
    assert spent["update"] <= 5 * PROBE_MESSAGES, f"releases and renewals while two calls ran: {spent}"
    assert spent["receive"] <= 80, spent


def test_a_quiet_queue_is_not_asked_as_often_as_a_busy_one(project: Project, worker_side: Counting) -> None:
    """With two queues, the one without messages is asked ever more rarely, however busy the other one is."""
    project.worker("--queue", "busy,quiet", "--concurrency", "1", **at(project, worker_side))
    busy = project.task("square").options(queue="busy")
    give_up_at = time.monotonic() + 5
    while time.monotonic() < give_up_at:
        busy.delay(2).result(timeout=30)
    before = len(worker_side._account.requests)
    give_up_at, calls = time.monotonic() + 4, 0
    while time.monotonic() < give_up_at:
        busy.delay(2).result(timeout=30)
        calls += 1
    requests = list(worker_side._account.requests)[before:]
    quiet = [request for request in requests if request.kind == "receive" and request.path[0].endswith("-quiet")]
    assert len(quiet) <= 20, f"{len(quiet)} receives on the quiet queue during {calls} calls on the busy one"


def test_an_idle_worker_on_a_folder_is_woken_by_a_send(sleeper: Sleeper) -> None:
    """A worker that has been idle for long would look again in some seconds; a call from another process begins at once."""
    threading.Event().wait(max(0.0, sleeper.since + IDLE_SECONDS - time.monotonic()))
    began = time.monotonic()
    assert sleeper.project.task("square").delay(3).result(timeout=30) == 9
    assert time.monotonic() - began < 1.5
