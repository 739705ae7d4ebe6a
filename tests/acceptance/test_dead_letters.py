"""Calls that failed for good, retried with real workers: whoever waited for the call gets the value of its next run."""

from __future__ import annotations

import pytest
from projects import NewProject, Project, until

from ai4s.jobq import State, WorkerDied, as_completed, gather
from ai4s.jobq.dead_letters import Letter

TASKS = """
def mended():
    return (HERE / "mended").exists()

@app.task
def divide(a, b):
    note("runs", f"{current().id} {current().run}")
    return a / (b or int(mended()))

@app.task(max_deaths=1)
def poison(x):
    if not mended():
        os._exit(7)
    return x

@app.task(retries=1, backoff=0.05)
def count(n):
    checkpoint = current().checkpoint
    begun_at = checkpoint.load(0)
    for number in range(begun_at, n):
        if number == 2 and not mended():
            raise RuntimeError("stuck")
        note("counted", number)
        checkpoint.save(number + 1)
    return begun_at
"""


@pytest.fixture
def project(new: NewProject, place_url: str) -> Project:
    """A project with a worker, in a folder and in a storage account."""
    made = new(TASKS, url=place_url)
    made.worker("--concurrency", "2")
    return made


def until_listed(project: Project, but: str = "") -> Letter:
    """The first dead letter that is listed, other than this one."""
    return until(lambda: [letter for letter in project.app.dead_letters.list() if letter.id != but])[0]


def mend(project: Project) -> None:
    """Remove the cause of the failures."""
    (project.folder / "mended").touch()


def test_a_failed_call_is_listed_retried_and_ends_well(project: Project) -> None:
    """It is listed with its cause and traceback; after the retry the original handle gives the value, from every process."""
    handle = project.task("divide").delay(6, 0)
    with pytest.raises(ZeroDivisionError):
        handle.result(timeout=60)
    letters = project.app.dead_letters
    letter = until_listed(project)
    assert (letter.id, letter.cause, letter.error, letter.attempts) == (handle.id, "raised", "ZeroDivisionError", 1)
    assert letter.task.endswith(".divide")
    assert "in divide" in letter.traceback
    assert letters.get(handle.id) == letter

    mend(project)
    done = letters.retry(handle.id)
    assert done.handles == [handle]
    assert handle.result(timeout=60) == 6
    assert project.app.handle(handle.id).result(timeout=60) == 6
    assert gather(*done.handles, timeout=60) == [6]
    assert project.lines("runs") == [f"{handle.id} 1", f"{handle.id} 2"]
    assert letters.list() == []
    assert project.depth() == 0
    assert letters.retry(handle.id).handles == [handle]
    assert (project.depth(), handle.run, handle.status()) == (0, 2, State.SUCCEEDED)


def test_another_process_finds_the_last_of_several_retries(project: Project) -> None:
    """A handle made of the id alone follows the chain of runs, each of which failed but the last."""
    handle = project.task("divide").delay(6, 0)
    for run in (1, 2):
        assert isinstance(handle.exception(timeout=60), ZeroDivisionError)
        if run == 2:
            mend(project)
        assert project.app.dead_letters.retry(handle.id).handles == [handle]
    done = project.run(
        "elsewhere.py",
        f"""
        from {project.module.__name__} import app
        handle = app.handle({handle.id!r})
        print(handle.result(timeout=60), handle.run)
        """,
    )
    assert done.stdout.split() == ["6.0", "3"], done.stderr


def test_a_poison_call_is_retried_when_its_cause_is_gone(project: Project) -> None:
    """It has all its deaths again; until its cause is gone, it is a dead letter again, and takes nobody along."""
    poisoned = project.task("poison").delay(5)
    good = [project.task("divide").delay(n, 1) for n in range(6)]
    with pytest.raises(WorkerDied):
        poisoned.result(timeout=60)
    letter = until_listed(project)
    assert (letter.id, letter.run, letter.cause) == (poisoned.id, 1, "died")
    assert "exit code 7" in letter.message

    project.app.dead_letters.retry(poisoned.id)
    with pytest.raises(WorkerDied):
        poisoned.result(timeout=60)
    mend(project)
    project.app.dead_letters.retry(poisoned.id)
    assert poisoned.result(timeout=60) == 5
    assert gather(*good, timeout=60) == list(range(6))
    assert project.app.dead_letters.list() == []


def test_a_retry_goes_on_from_the_checkpoint(project: Project) -> None:
    """What the failed run has saved is not done again."""
    handle = project.task("count").delay(5)
    with pytest.raises(RuntimeError, match="stuck"):
        handle.result(timeout=60)
    assert project.lines("counted") == ["0", "1"]
    mend(project)
    project.app.dead_letters.retry(handle.id)
    assert handle.result(timeout=60) == 2
    assert project.lines("counted") == ["0", "1", "2", "3", "4"]


def test_purged_and_filtered_letters(project: Project) -> None:
    """Filters choose; what is purged is gone, and its call stays failed."""
    bad = [project.task("divide").delay(n, 0) for n in range(12)]
    poisoned = project.task("poison").delay(1)
    failed = list(as_completed([*bad, poisoned], timeout=60))
    assert len(failed) == 13
    letters = project.app.dead_letters
    until(lambda: len(letters.list()) == 13)
    assert {letter.id for letter in letters.list(task="divide")} == {handle.id for handle in bad}
    assert [letter.id for letter in letters.list(cause="died")] == [poisoned.id]
    assert letters.list(older_than=3600) == []
    assert len(letters.list(newer_than=3600)) == 13

    assert letters.purge(cause="died") == [poisoned.id]
    assert list(letters.retry(poisoned.id).left) == [poisoned.id]
    mend(project)
    assert len(letters.retry(task="divide").handles) == 12
    assert gather(*bad, timeout=60) == [float(n) for n in range(12)]
    assert poisoned.status() == "failed"
    assert letters.list() == []


def test_a_message_that_nobody_could_read_is_put_back(project: Project) -> None:
    """Its text goes back as it was, and is given up again under a new id if it still cannot be read."""
    good = project.task("divide").delay(1, 1)
    project.send_text("garbage")
    assert good.result(timeout=60) == 1
    letters = project.app.dead_letters
    first = until_listed(project)
    assert (first.cause, first.raw) == ("unreadable", "garbage")
    assert letters.retry(cause="unreadable").put_back == [first.id]
    second = until_listed(project, but=first.id)
    assert second.raw == "garbage"
    assert letters.purge(second.id) == [second.id]
    assert (letters.list(), project.depth()) == ([], 0)


def test_a_key_asks_for_a_failed_call_again(project: Project) -> None:
    """With `rerun_failed`, the same key and arguments run the call again; a success they leave alone."""
    divide = project.task("divide")
    first = divide.options(key="k").delay(8, 0)
    with pytest.raises(ZeroDivisionError):
        first.result(timeout=60)
    with pytest.raises(ZeroDivisionError):
        divide.options(key="k").delay(8, 0).result(timeout=60)
    mend(project)
    again = divide.options(key="k", rerun_failed=True).delay(8, 0)
    assert again.result(timeout=60) == 8
    assert first.result(timeout=60) == 8
    assert divide.options(key="k", rerun_failed=True).delay(8, 0).result(timeout=60) == 8
    assert project.lines("runs") == [f"{first.id} 1", f"{first.id} 2"]
    assert project.app.dead_letters.list() == []
