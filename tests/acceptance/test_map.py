"""Maps with real workers, on a folder and on a storage account: values, failures, deaths, cancelling, resuming, costs."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from projects import NewProject, Project, until
from storage_spy import counted
from test_requests import Counting

from ai4s.jobq import CallCancelled, CallTimedOut, MapInterrupted, WorkerDied

TASKS = """
from ai4s.jobq import Retry

@app.task
def square(x):
    return x * x

@app.task
def noted(x):
    note("ran", x)
    return x

@app.task(retries=2, backoff=0)
def flaky(x):
    note("ran", f"{x} {current().attempt}")
    if x % 7 == 3 and current().attempt < 3:
        raise ConnectionError(x)
    return current().attempt

@app.task(retries=1)
def asks(x):
    if current().attempt == 1 and x == 2:
        raise Retry(delay=0.2)
    return x

@app.task(max_deaths=1)
def dies(x):
    note("ran", x)
    if x == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

@app.task(timeout=1)
def slow(x):
    note("ran", x)
    if x == 3:
        time.sleep(60)
    return x

@app.task
def sleeps(seconds):
    note("began", seconds)
    time.sleep(seconds)
    return seconds

@app.task(retries=1, backoff=0)
def saves(x):
    if current().attempt == 1:
        current().checkpoint.save(x)
        raise ConnectionError(x)
    return current().checkpoint.load()

@app.task
def doubled(data):
    return data * 2

@app.task
def unserializable(x):
    return threading.Lock() if x == 1 else x

@app.task
def with_table(x, table):
    return table[x]

@app.task
def who(_):
    return current().id, current().queue

@app.task
def submits(n):
    return square.map(range(n)).id

@app.task
async def async_square(x):
    await asyncio.sleep(0)
    return x * x

@app.task(pool="thread")
def thread_square(x):
    return x * x

@app.task(codec="msgpack")
def plain(x):
    return {"x": x}

@app.task(vector=16)
def vector(xs, factor=1):
    note("vector", len(xs))
    return [factor * x for x in xs]

@app.task(vector=16)
def some_fail(xs):
    return [ValueError(x) if x % 10 == 7 else x for x in xs]

@app.task(vector=16)
def too_few(xs):
    return xs[1:]

@app.task(vector=16, max_deaths=1)
def vector_dies(xs):
    if 21 in xs:
        os.kill(os.getpid(), signal.SIGKILL)
    return xs

@app.task(vector=8, timeout=1)
def vector_slow(xs):
    if 5 in xs:
        time.sleep(60)
    return xs

@app.task(vector=16)
def vector_raises(xs):
    if 21 in xs:
        raise ValueError("21 is bad")
    return xs
"""


@pytest.fixture
def project(new: NewProject, place_url: str) -> Project:
    """A project at either place, with a worker."""
    made = new(TASKS, url=place_url)
    made.worker("--concurrency", "2")
    return made


def test_ten_thousand_calls(project: Project) -> None:
    """In order; submitting takes a few requests. Who reads looks again and again, in pauses that grow."""
    with counted(project.app) as requests:
        batch = project.task("square").map(range(10_000))
        assert list(batch) == [x * x for x in range(10_000)]
    assert requests["put"] + requests["send"] <= 40, requests
    assert requests["get"] + requests["list"] < 500, requests
    progress = batch.progress()
    assert (progress.done, progress.failed, progress.total) == (10_000, 0, 10_000)
    until(lambda: project.depth() == 0, what="all messages to be gone")


def test_few_calls(project: Project) -> None:
    """From none on."""
    for items in (0, 1, 2, 9):
        assert list(project.task("square").map(range(items))) == [x * x for x in range(items)]


def test_every_pool(project: Project) -> None:
    """Processes, event loops, threads."""
    for name in ("square", "async_square", "thread_square"):
        assert list(project.task(name).map(range(300))) == [x * x for x in range(300)], name


def test_plain_data(project: Project) -> None:
    """With the safe codec."""
    assert list(project.task("plain").map([1, [2], "3"])) == [{"x": 1}, {"x": [2]}, {"x": "3"}]


def test_by_value(project: Project) -> None:
    """A function that workers cannot import travels once."""
    power = 3
    assert list(project.app.task(lambda x: x**power).map(range(50))) == [x**3 for x in range(50)]
    assert len(project.names("payloads/")) == 1


def test_values_and_arguments_of_all_sizes(project: Project) -> None:
    """In the pack, beside it, in blocks."""
    items = [os.urandom(size) for size in (1, 40_000, 100_000, 300_000, 9_000_000)]
    assert list(project.task("doubled").map(items)) == [data * 2 for data in items]


def test_keyword_arguments_of_all_sizes(project: Project) -> None:
    """Small ones lie with the batch, large ones beside it, stored ones are fetched."""
    small = {x: -x for x in range(100)}
    large = {x: bytes([x]) * 10_000 for x in range(100)}
    task = project.task("with_table")
    for table in (small, large):
        assert list(task.map(range(100), kwargs={"table": table})) == [table[x] for x in range(100)]
        assert list(task.map(range(100), kwargs={"table": project.app.put(table)})) == [table[x] for x in range(100)]


def test_each_call_is_retried_for_itself(project: Project) -> None:
    """Those that succeeded are not run again."""
    results = list(project.task("flaky").map(range(50)))
    assert results == [3 if x % 7 == 3 else 1 for x in range(50)]
    ran = Counter(line.split()[0] for line in project.lines("ran"))
    assert ran == {str(x): 3 if x % 7 == 3 else 1 for x in range(50)}


def test_a_call_may_ask_for_another_attempt_and_keep_a_checkpoint(project: Project) -> None:
    """As a single call may."""
    assert list(project.task("asks").map(range(5))) == list(range(5))
    assert list(project.task("saves").map(range(5))) == list(range(5))


def test_a_death_is_charged_to_the_call_that_died(project: Project) -> None:
    """What ended before it is kept, what comes after it runs once."""
    results = project.task("dies").map(range(40)).results(on_error="return", timeout=60)
    assert isinstance(results[13], WorkerDied)
    assert [x for n, x in enumerate(results) if n != 13] == [x for x in range(40) if x != 13]
    assert Counter(project.lines("ran")) == {str(x): 1 for x in range(40)}


def test_a_timeout_is_charged_to_the_call_that_ran_too_long(project: Project) -> None:
    """Each call has the whole time."""
    results = project.task("slow").map(range(8)).results(on_error="return", timeout=60)
    assert isinstance(results[3], CallTimedOut)
    assert [x for x in results if isinstance(x, int)] == [0, 1, 2, 4, 5, 6, 7]
    assert Counter(project.lines("ran"))["3"] == 1


def test_what_cannot_travel_back_fails_alone(project: Project) -> None:
    """And the error says so."""
    zero, error, two = project.task("unserializable").map(range(3)).results(on_error="return", timeout=60)
    assert (zero, two) == (0, 2)
    assert "cannot travel" in str(error)


def test_a_killed_worker_loses_nothing(new: NewProject, place_url: str) -> None:
    """Another one goes on with what was not logged; a value that was read stays."""
    project = new(TASKS, url=place_url)
    first = project.worker("--concurrency", "2", "--lease", "10s")
    batch = project.task("sleeps").map([0.02] * 300, pack=100)
    until(lambda: len(project.lines("began")) > 50, what="calls to run")
    os.kill(first.pid, signal.SIGKILL)
    project.worker("--concurrency", "2")
    assert batch.results(timeout=120) == [0.02] * 300


def test_calls_know_who_they_are(project: Project) -> None:
    """The batch's name and their place; on the queue that was chosen."""
    project.worker("--concurrency", "1", "--queue", "gpu")
    batch = project.task("who").options(queue="gpu").map("abc", batch="named-1")
    assert batch.results(timeout=60) == [(f"named-1.{n}", "gpu") for n in range(3)]


def test_a_task_may_map(project: Project) -> None:
    """It returns the batch's id, since it must not wait for it."""
    batch = project.app.batch(project.task("submits").delay(20).result(timeout=60))
    assert list(batch) == [x * x for x in range(20)]


def test_calls_that_expire_or_wait(project: Project) -> None:
    """Each option of a single call holds for all of them."""
    task = project.task("square")
    assert {outcome.state for outcome in task.options(countdown=2, expires=1).map(range(10)).as_completed(timeout=60)} == {
        "expired"
    }
    assert task.options(countdown=0.5).map(range(10)).results(timeout=60)[3] == 9


# Vector tasks.


def test_vectors(project: Project) -> None:
    """Slices of at most so many items, each item with its own outcome."""
    assert project.task("vector").map(range(500)).results(timeout=60) == list(range(500))
    sizes = [int(line) for line in project.lines("vector")]
    assert sum(sizes) == 500
    assert max(sizes) == 16
    assert project.task("vector").map(range(20), kwargs={"factor": 3}).results(timeout=60) == [3 * x for x in range(20)]
    large = [bytes([x]) * 300_000 for x in range(5)]
    assert project.task("vector").map(large).results(timeout=60) == large
    pairs = list(zip("abc", range(3), strict=True))
    assert project.task("vector").map(pairs, kwargs={"factor": 2}).results(timeout=60) == [2 * pair for pair in pairs]


def test_items_of_a_vector_may_fail(project: Project) -> None:
    """By an exception in their place."""
    results = project.task("some_fail").map(range(40)).results(on_error="return", timeout=60)
    assert [n for n, result in enumerate(results) if isinstance(result, ValueError)] == [7, 17, 27, 37]
    assert [result for result in results if isinstance(result, int)] == [x for x in range(40) if x % 10 != 7]


@pytest.mark.parametrize(("name", "culprit", "error"), [("vector_raises", 21, ValueError), ("vector_dies", 21, WorkerDied)])
def test_a_slice_that_fails_is_halved_until_the_culprit_is_alone(
    name: str, culprit: int, error: type[Exception], project: Project
) -> None:
    """All others have their values."""
    results = project.task(name).map(range(40)).results(on_error="return", timeout=60)
    assert isinstance(results[culprit], error)
    assert [x for x in results if isinstance(x, int)] == [x for x in range(40) if x != culprit]


def test_a_slice_that_takes_too_long_is_halved_too(project: Project) -> None:
    """Each part has the whole time again."""
    results = project.task("vector_slow").map(range(8)).results(on_error="return", timeout=60)
    assert isinstance(results[5], CallTimedOut)
    assert [x for x in results if isinstance(x, int)] == [0, 1, 2, 3, 4, 6, 7]


def test_a_list_of_the_wrong_length_fails_its_items(project: Project) -> None:
    """The error says how many were due."""
    results = project.task("too_few").map(range(3)).results(on_error="return", timeout=60)
    assert all("one is due for each" in str(result) for result in results)


# Orders.


def test_cancelling_stops_what_runs_and_what_waits(project: Project) -> None:
    """Within some seconds; values that came before stay."""
    task = project.task("sleeps")
    batch = task.map([0, *[60] * 10], pack=20)
    assert batch.handle(0).result(timeout=60) == 0
    until(lambda: "60" in project.lines("began"), what="a long call to run")
    batch.cancel()
    outcomes = sorted(batch.as_completed(timeout=60), key=lambda outcome: outcome.index)
    assert [outcome.state for outcome in outcomes] == ["succeeded", *["cancelled"] * 10]
    with pytest.raises(CallCancelled):
        batch.results(timeout=60)
    assert task.map([0]).results(timeout=60) == [0]


def test_failures_run_again_from_another_process(project: Project, tmp_path: Path) -> None:
    """A second time too; only they run."""
    needed = tmp_path / "needed"
    path, folder = str(needed), str(project.folder / "ran")

    def read(x: int) -> str:
        with Path(folder).open("a") as ran:
            ran.write(f"{x}\n")
        return Path(path).open().read() if x % 5 == 0 else "fine"

    batch = project.app.task(read).map(range(20))
    assert sum(not outcome.ok for outcome in batch.as_completed(timeout=60)) == 4
    again = project.run("again.py", f"from {project.module.__name__} import app\nprint(app.batch({batch.id!r}).retry_failures())\n")
    assert again.stdout == "4\n", again.stderr
    assert sum(not outcome.ok for outcome in batch.as_completed(timeout=60)) == 4
    needed.write_text("there")
    assert batch.retry_failures() == 4
    assert batch.results(timeout=60) == ["there" if x % 5 == 0 else "fine" for x in range(20)]
    assert Counter(project.lines("ran")) == {str(x): 3 if x % 5 == 0 else 1 for x in range(20)}
    assert batch.progress().failed == 0


def test_a_cancelled_batch_can_have_its_failures_run_again(project: Project) -> None:
    """Who asks for that after cancelling means it."""
    batch = project.app.task(lambda x: 1 / x).map([0, 1])
    assert sum(1 for _ in batch.as_completed(timeout=60)) == 2
    batch.cancel()
    assert batch.retry_failures() == 1
    assert isinstance(batch.results(on_error="return", timeout=60)[0], ZeroDivisionError)


# Producers.

PRODUCER = """
import os, signal, sys
from {module} import noted

def items():
    for n in range(1000):
        if n == {dies_at}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield n

noted.map(items(), batch="campaign", key=str)
"""


@pytest.mark.parametrize(
    ("place_url", "dies_at"),
    [("local", 0), ("local", 5), ("local", 300), ("local", 999), ("azurite", 300)],
    indirect=["place_url"],
)
def test_a_campaign_goes_on_after_a_crash_of_its_producer(dies_at: int, project: Project) -> None:
    """The values are all there, and only calls whose message may have been lost may run twice."""
    crashed = project.run("produce.py", PRODUCER.format(module=project.module.__name__, dies_at=dies_at))
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    batch = project.task("noted").map(range(1000), batch="campaign", key=str)
    outcomes = {outcome.key: outcome.value for outcome in batch.as_completed(timeout=60)}
    assert outcomes == {str(n): n for n in range(1000)}
    twice = [int(x) for x, times in Counter(project.lines("ran")).items() if times > 1]
    # Packs double in size: of what was submitted by then, these are the last two or three.
    assert len(twice) <= 3 * (dies_at + 8) // 4, twice


def test_two_producers_of_one_campaign(project: Project) -> None:
    """Between them they submit each item once, and whoever ends first sees that the other's last messages are there."""
    both = threading.Barrier(2)

    def items(first: int) -> Iterator[int]:
        both.wait(60)
        yield from range(first, first + 1000)

    def produce(first: int) -> None:
        project.task("noted").map(items(first), batch="campaign", key=str)

    producers = [threading.Thread(target=produce, args=(first,)) for first in (0, 500)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join(60)
    assert sorted(project.app.batch("campaign").results(timeout=60)) == list(range(1500))
    assert set(project.lines("ran")) == {str(n) for n in range(1500)}


def test_an_interrupted_map_goes_on(project: Project) -> None:
    """What was submitted has its values."""

    def items() -> Iterator[int]:
        yield from range(100)
        raise OSError("the list ends here")

    with pytest.raises(MapInterrupted) as caught:
        project.task("square").map(items())
    assert caught.value.batch.results(timeout=60) == [x * x for x in range(100)]


# What it costs.


@pytest.fixture
def worker_side(azurite_url: str) -> Iterator[Counting]:
    """A proxy that only workers go through."""
    counting = Counting(azurite_url)
    try:
        yield counting
    finally:
        counting.close()


def test_a_hundredth_of_a_request_for_each_call(
    new: NewProject, azurite_url: str, worker_side: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both sides together, start and end of the worker included."""
    monkeypatch.setenv("JOBQ_URL", azurite_url)
    project = new("\napp = App(app.name)\n" + TASKS, url=azurite_url)
    calls = 20_000
    with counted(project.app) as requests:
        project.worker("--concurrency", "2", JOBQ_URL=worker_side.url)
        assert sum(1 for _ in project.task("square").map(range(calls))) == calls
        until(lambda: project.depth() == 0, what="an empty queue")
    spent = worker_side.counts()
    assert sum(requests.values()) + sum(spent.values()) < 0.02 * calls, (requests, spent)
