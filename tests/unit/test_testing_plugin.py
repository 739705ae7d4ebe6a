"""The pytest plugin, as a fresh project sees it: installed with the package, imported only by whoever uses it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_spy import depth

from ai4s.jobq import App, CallRefused, JobQError, NotSerializable, current
from ai4s.jobq.testing import inline, temporary_place

TASKS = """
import os
from ai4s.jobq import App, current

app = App("fresh-project")

@app.task
def square(x: int) -> int:
    return x * x

@app.task
def process() -> int:
    return os.getpid()

@app.task
def further(x: int) -> str:
    return square.delay(x).id

@app.task
async def shout(text: str) -> str:
    return text.upper()
"""

TESTS = """
import os
from proj import app, further, process, shout, square

def test_inline(jobq_inline):
    jobq_inline(app)
    assert square.delay(3).result() == 9
    assert process.delay().result() == os.getpid()
    assert shout.delay("a").result() == "A"

def test_worker(jobq_place, jobq_worker):
    jobq_worker(jobq_place(app))
    assert square.delay(3).result(timeout=60) == 9
    assert process.delay().result(timeout=60) != os.getpid()
    assert app.handle(further.delay(4).result(timeout=60)).result(timeout=60) == 16

def test_places_are_apart(jobq_place):
    jobq_place(app)
    assert square.delay(3).status() == "pending"
    assert app.client.url != os.environ.get("JOBQ_URL")

def test_fresh_app(jobq_app, jobq_worker):
    @jobq_app.task
    def double(x):
        return 2 * x

    jobq_worker(jobq_app, concurrency=2)
    assert double.delay(4).result(timeout=60) == 8
"""


def run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Pytest in a folder, as its owner would start it: nothing of this project's configuration is there."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JOBQ_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with tasks and tests, and nothing else."""
    (tmp_path / "proj.py").write_text(TASKS)
    (tmp_path / "test_proj.py").write_text(TESTS)
    return tmp_path


def test_a_fresh_project_can_use_the_fixtures(project: Path) -> None:
    """Without a line of configuration, with warnings as errors, and leaving nothing behind."""
    answer = run(project, "-W", "error")

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "4 passed" in answer.stdout
    assert not (project / ".jobq").exists()


def test_the_fixtures_keep_away_from_the_real_place(project: Path) -> None:
    """$JOBQ_URL may name the account where real work lies."""
    answer = run(project, JOBQ_URL=f"local://{project}/real")

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert not (project / "real").exists()


def test_the_fixtures_work_on_a_clusters_machine(project: Path) -> None:
    """Where a default folder would be refused."""
    answer = run(project, SLURM_JOB_ID="1")

    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_plugin_says_what_its_fixtures_do(project: Path) -> None:
    """`pytest --fixtures` shows them with their docstrings."""
    answer = run(project, "--fixtures")

    for fixture in ("jobq_app", "jobq_place", "jobq_worker", "jobq_inline"):
        assert fixture in answer.stdout
    assert "no docstring available" not in answer.stdout.partition("jobq_place")[2].partition("\n\n")[0]


def test_a_project_that_does_not_use_it_does_not_load_it(tmp_path: Path) -> None:
    """Every pytest run of an environment loads its plugins: this one costs nothing until a fixture is asked for."""
    (tmp_path / "test_other.py").write_text(
        "import sys\ndef test_nothing_is_loaded():\n"
        "    assert not {'azure', 'aiohttp', 'msgpack', 'cloudpickle'} & {name.partition('.')[0] for name in sys.modules}\n"
    )
    answer = run(tmp_path)

    assert answer.returncode == 0, answer.stdout + answer.stderr


# inline mode

app = App("inline-tests")


@app.task
def square(x: int) -> int:
    return x * x


@app.task(retries=2, retry_on=ConnectionError)
def flaky(log: list[int], until: int) -> int:
    if current().attempt < until:
        raise ConnectionError("not yet")
    return current().attempt


@app.task
def return_lock() -> object:
    import threading

    return threading.Lock()


@app.task(codec="msgpack")
def plain(x: object) -> object:
    return x


@app.task
async def twice(x: int) -> int:
    return 2 * x


@app.task
def submit_further(x: int) -> int:
    return int(square.delay(x).id.rpartition("-")[2]) + current().attempt


@app.task
def wait_for_further(x: int) -> int:
    return square.delay(x).result()


def test_inline_results_pass_through_the_codec(jobq_inline: Callable[[App], App]) -> None:
    """An argument is a copy, a tuple becomes a list with msgpack, and what can't travel is refused on its way back, too."""
    jobq_inline(app)

    assert plain.delay((1, 2)).result() == [1, 2]
    with pytest.raises(NotSerializable, match="lock"):
        return_lock.delay().result()


def test_inline_retries_spend_the_budget(jobq_inline: Callable[[App], App]) -> None:
    """Three attempts for `retries=2`, at once."""
    jobq_inline(app)

    assert flaky.delay([], 3).result() == 3
    with pytest.raises(ConnectionError):
        flaky.delay([], 4).result()


async def test_inline_mode_goes_with_async_programs(jobq_inline: Callable[[App], App]) -> None:
    """Tasks of either kind, where a loop runs already."""
    jobq_inline(app)

    assert await (await twice.adelay(3)) == 6
    assert await (await square.adelay(3)) == 9
    assert twice.delay(3).result() == 6


def test_inline_handles_are_handles(jobq_inline: Callable[[App], App]) -> None:
    """They can be found again by id, have a status, and are too late to cancel."""
    jobq_inline(app)
    handle = square.delay(3)

    assert app.handle(handle.id).result() == 9
    assert (handle.status(), handle.cancel()) == ("succeeded", False)
    assert depth(app) == 0


def test_inline_keys_run_once(jobq_inline: Callable[[App], App], tmp_path: Path) -> None:
    """As with a worker."""
    jobq_inline(app)
    log = tmp_path / "log"

    def append() -> int:
        with log.open("a") as file:
            return file.write("ran;")

    for _ in range(2):
        assert app.task(append).options(key="once").delay().result() == 4
    assert log.read_text() == "ran;"


def test_a_task_may_submit_further_calls_inline(jobq_inline: Callable[[App], App]) -> None:
    """They run within it; waiting for them is refused, as on a worker."""
    jobq_inline(app)

    assert submit_further.delay(3).result() > 0
    with pytest.raises(JobQError, match="must not wait for call"):
        wait_for_further.delay(3).result()


def test_inline_mode_ends_with_its_block(jobq_place: Callable[[App], App]) -> None:
    """Also when the block ends with an error."""
    jobq_place(app)
    with pytest.raises(ZeroDivisionError), inline(app):
        1 / 0  # noqa: B018  # the error is the point

    assert square.delay(3).status() == "pending"


def test_an_inline_call_of_a_task_that_nobody_declared_says_so(jobq_inline: Callable[[App], App]) -> None:
    """Its app has to be the one that is inline, with its tasks."""
    jobq_inline(app)
    stray = App(app.name, app.client.url)
    stray.task(name="stray")(square.function)
    stray.client.instead = app.client.instead

    with pytest.raises((CallRefused, JobQError), match="stray"):
        stray.tasks["stray"].delay(3).result()
    stray.close()


# maps inline


@app.task(retries=1)
def shaky(x: int, *, threads: bool = False) -> tuple[int, int, str]:
    if x == 3 and current().attempt == 1:
        raise ConnectionError("not yet")
    if x == 5:
        raise KeyError("five")
    return x, current().attempt, current().id


@app.task(vector=4)
def halves(xs: list[int]) -> list[float]:
    if 7 in xs:
        raise ValueError("seven")
    return [x / 2 for x in xs]


@app.task
def map_within(x: int) -> str:
    batch = square.map(range(x))
    return f"{current().attempt} {batch.id}"


@app.task
def step_by_step(x: int) -> int:
    checkpoint = current().checkpoint
    last = checkpoint.load(default=0)
    if last < x:
        checkpoint.save(last + 1)
        raise ConnectionError("one step at a time")
    return int(last)


def test_an_inline_map_runs_its_calls_at_once(jobq_inline: Callable[[App], App]) -> None:
    """In this process, with retries, and with an outcome for each, which is there when `map` returns."""
    jobq_inline(app)
    batch = shaky.map(range(8))

    assert depth(app) == 0
    assert batch.progress().done == 8
    found = batch.results(on_error="return")
    assert [value for value in found if isinstance(value, tuple)] == [
        (x, 2 if x == 3 else 1, f"{batch.id}.{x}") for x in range(8) if x != 5
    ]
    assert isinstance(found[5], KeyError)
    assert batch.handle(3).result()[1] == 2
    assert next(iter(app.batch(batch.id).as_completed())).worker == "inline"


def test_an_inline_map_may_be_large(jobq_inline: Callable[[App], App]) -> None:
    """Many packs, and arguments and values that lie in blobs of their own."""
    jobq_inline(app)
    large = b"0123456789" * 50_000

    assert list(square.map(range(3_000))) == [x * x for x in range(3_000)]
    assert list(app.task(lambda data, times: data * times).map([large, b"", large], kwargs={"times": 2})) == [
        large * 2,
        b"",
        large * 2,
    ]
    assert list(app.task(lambda x, data: x + len(data)).map(range(3), kwargs={"data": large})) == [500_000, 500_001, 500_002]


def test_inline_vectors_get_lists(jobq_inline: Callable[[App], App]) -> None:
    """And one bad item fails alone."""
    jobq_inline(app)
    found = halves.map(range(12)).results(on_error="return")

    assert [value for index, value in enumerate(found) if index != 7] == [x / 2 for x in range(12) if x != 7]
    assert isinstance(found[7], ValueError)


async def test_inline_maps_go_with_async_programs(jobq_inline: Callable[[App], App]) -> None:
    """Tasks of either kind, where a loop runs already."""
    jobq_inline(app)

    assert await (await twice.amap(range(5))) == [0, 2, 4, 6, 8]
    assert list(twice.map(range(5))) == [0, 2, 4, 6, 8]
    assert [value async for value in await square.amap(range(5))] == [0, 1, 4, 9, 16]
    batch = await shaky.amap([5, 1])
    assert await batch.aretry_failures() == 1
    assert [outcome.index for outcome in await batch.afailures()] == [0]


def test_inline_failures_are_retried_at_once(jobq_inline: Callable[[App], App], tmp_path: Path) -> None:
    """From the batch, and from its dead letter."""
    jobq_inline(app)
    path = tmp_path / "mended"

    def read(index: int) -> str:
        return path.read_text() + str(index)

    batch = app.task(read).map(range(3))
    assert [type(outcome.error) for outcome in batch.failures()] == [FileNotFoundError] * 3
    assert batch.retry_failures() == 3
    (letter,) = app.dead_letters.list()
    assert (letter.id, letter.failures, letter.run) == (batch.id, 3, 2)

    path.write_text("x")
    assert app.dead_letters.retry(batch.id).batches == [batch]
    assert list(batch) == ["x0", "x1", "x2"]
    assert app.dead_letters.list() == []


def test_an_inline_task_may_map(jobq_inline: Callable[[App], App]) -> None:
    """Its calls run within it; afterwards it is still the one that runs."""
    jobq_inline(app)
    (told,) = map_within.map([4])
    attempt, batch = told.split()

    assert attempt == "1"
    assert list(app.batch(batch)) == [0, 1, 4, 9]


def test_inline_checkpoints_are_those_of_their_call(jobq_inline: Callable[[App], App]) -> None:
    """Of several calls of one map none finds another's."""
    jobq_inline(app)
    steps = app.task(step_by_step.function, name="steps", retries=5)

    assert list(steps.map([3, 0, 2, 4])) == [3, 0, 2, 4]


def test_an_inline_map_of_a_task_that_nobody_declared_says_so(jobq_inline: Callable[[App], App]) -> None:
    """As for single calls."""
    jobq_inline(app)
    stray = App(app.name, app.client.url)
    stray.task(name="stray-map")(square.function)
    stray.client.instead = app.client.instead

    with pytest.raises(JobQError, match="the app has no such task"):
        stray.tasks["stray-map"].map([3])
    stray.close()


# places

signed = App("signed-tests", signing_keys=["a key that is long enough"])


def test_a_moved_app_keeps_its_keys() -> None:
    """What is tested should be what runs: signed is signed."""
    before = signed.client.keyring.keys
    with temporary_place(signed):
        assert signed.client.keyring.keys == before
    assert signed.client.keyring.keys == before


def test_a_moved_app_comes_back(tmp_path: Path) -> None:
    """To where it was declared, whatever happened meanwhile."""
    home = App("signed-tests", f"local://{tmp_path}/home")
    with contextlib.suppress(ZeroDivisionError), temporary_place(home):
        assert home.client.url != f"local://{tmp_path}/home"
        raise ZeroDivisionError

    assert home.client.url == f"local://{tmp_path}/home"
    home.close()


def test_temporary_places_are_removed() -> None:
    """With all that was in them."""
    with temporary_place(app):
        square.delay(3)
        folder = Path(app.client.url.removeprefix("local://"))
        assert folder.is_dir()
    assert not folder.exists()
