"""Packs whose calls die, hang or raise in real processes, beside siblings that do not: the right call is charged, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from projects import NewProject, Project, new_project, until

from ai4s.jobq.errors import CallTimedOut, WorkerDied
from ai4s.jobq.message import State

TASKS = """
import tempfile

def executed(n):
    with open(HERE / "executions", "a") as file:
        file.write(f"{n}\\n")

@app.task(max_deaths=1)
def dies_at_30(n):
    executed(n)
    if n == 30:
        os._exit(7)
    return n

@app.task(timeout=1, retries=0)
def hangs_at_30(n):
    executed(n)
    while n == 30:
        time.sleep(0.1)
    return n

@app.task(timeout=1, retries=0)
def ends_when_told_at_30(n):
    executed(n)
    if n == 30:
        told = []
        signal.signal(signal.SIGTERM, lambda *_: told.append(1))
        while not told:
            time.sleep(0.05)
        time.sleep(0.2)
    return n

@app.task(retries=1, retry_on=ConnectionError, backoff=0.05)
def raises_once_at_30(n):
    executed(n)
    if n == 30 and current().attempt == 1:
        raise ConnectionError("once more")
    return n

@app.task
def takes_the_worker_along_at_30(n):
    executed(n)
    if n == 30:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return n

@app.task
def writes_garbage_at_30(n):
    executed(n)
    if n == 30:
        opened = [os.readlink(path) for path in pathlib.Path("/proc/self/fd").iterdir() if path.exists()]
        for path in [path for path in opened if path.endswith(".journal")]:
            with open(path, "ab") as file:
                file.write(b"\\xff" * 100)
    return n

@app.task
def short_then_waits(n):
    executed(n)
    while n >= 20 and not (HERE / "go").exists():
        time.sleep(0.05)
    return n

@app.task(vector=64, max_deaths=1)
def vector_dies_at_30(items):
    for n in items:
        executed(n)
    if 30 in items:
        os._exit(7)
    return items
"""

CALLS = 200


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """One project with one worker, which lives through all of it."""
    folder = tmp_path_factory.mktemp("packs")
    with new_project(folder / "project", f"local://{folder / 'place'}", "import tempfile\n" + TASKS.replace("\\", "\\")) as made:
        made.worker("--concurrency", "2")
        yield made


def counted(project: Project) -> Counter[int]:
    """How often each call ran since the last time."""
    lines = Counter(map(int, project.lines("executions")))
    Path(project.folder / "executions").unlink()
    return lines


@pytest.mark.parametrize(
    ("task", "error"),
    [("dies_at_30", WorkerDied), ("hangs_at_30", CallTimedOut), ("writes_garbage_at_30", WorkerDied)],
)
def test_a_chunk_of_short_calls_pays_for_one_of_them_with_that_one(project: Project, task: str, error: type[Exception]) -> None:
    """A death, a hang, or garbage where outcomes are written: that call fails, its siblings have their values and ran once."""
    batch = project.task(task).map(range(CALLS))
    results = batch.results("return", timeout=60)
    assert [n for n in range(CALLS) if results[n] != n] == [30]
    assert isinstance(results[30], error)
    runs = counted(project)
    assert {n for n, times in runs.items() if times > 1} <= {30} | (set(range(31, CALLS)) if "garbage" in task else set())


def test_a_retry_in_a_chunk_is_the_call_s_own(project: Project) -> None:
    """A call that raises once runs twice; no other does."""
    outcomes = {outcome.index: outcome for outcome in project.task("raises_once_at_30").map(range(CALLS)).as_completed(timeout=60)}
    assert {n: outcome.attempts for n, outcome in outcomes.items() if outcome.attempts > 1} == {30: 2}
    assert counted(project) == Counter(range(CALLS)) + Counter([30])


def test_a_call_that_ends_when_its_time_is_up_does_not_cost_the_next_one(project: Project) -> None:
    """A task that returns on SIGTERM has its value, and what would have come next in its chunk is not stopped for it."""
    outcomes = {
        outcome.index: outcome for outcome in project.task("ends_when_told_at_30").map(range(CALLS)).as_completed(timeout=60)
    }
    assert {n for n, outcome in outcomes.items() if outcome.state is not State.SUCCEEDED} <= {30}
    assert {outcome.attempts for outcome in outcomes.values()} == {1}
    counted(project)


def test_a_slice_that_dies_is_halved_until_the_culprit_is_alone(project: Project) -> None:
    """Of a vector's items only the one that kills its process fails."""
    results = project.task("vector_dies_at_30").map(range(CALLS)).results("return", timeout=120)
    assert [n for n in range(CALLS) if results[n] != n] == [30]
    counted(project)


def test_what_was_flushed_before_a_kill_is_not_run_again(new: NewProject) -> None:
    """A worker is killed with a pack half done: the next one runs only what had no outcome in the log."""
    project = new("import tempfile\n" + TASKS.replace("\\", "\\"))
    batch = project.task("short_then_waits").map(range(24), pack=24)
    first = project.worker("--concurrency", "4", "--lease", "10s")
    until(lambda: batch.progress().done >= 20, what="20 logged")
    first.kill()
    (project.folder / "go").touch()
    project.worker("--concurrency", "4")
    assert list(batch.as_completed(timeout=120))
    runs = Counter(map(int, project.lines("executions")))
    assert {n for n, times in runs.items() if times > 1} <= set(range(20, 24))
    assert max(runs.values()) == 2
