"""Logs of calls that real workers run: followed across deaths, kept whatever the task does, and in bounds.

Next: `../unit/test_voices.py` and `../unit/test_call_logs.py` for each step of the way.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from projects import NewProject, environment, peak_memory, program, until

from ai4s.jobq import LogLine, logs
from ai4s.jobq.errors import WorkerDied
from ai4s.jobq.log_lines import plain

TASKS = """
import logging, resource, sys

@app.task(max_deaths=5)
def steps(folder):
    # Who comes first speaks until it is killed, the second ends.
    try:
        os.mkdir(folder + "/began")
        began = True
    except FileExistsError:
        began = False
    print("first" if began else "second")
    number = 0
    while began:
        print("step", number, flush=True)
        number += 1
        time.sleep(0.2)
    logging.getLogger("lib").warning("logged")
    print("done")

@app.task(max_deaths=1)
def dies(how):
    print("last words")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), 9)

@app.task(retries=1, backoff=0.1)
def fails_once():
    print("attempt", current().attempt)
    if current().attempt == 1:
        raise ValueError("once")

@app.task
def flood(lines):
    line, began = "x" * 999, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(lines):
        print(line)
    print("the end")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began

@app.task
def speaks(number):
    if number % 2:
        print("number", number)
    if number == 3:
        raise ValueError(number)
    return number

@app.task
async def together(number):
    for part in range(3):
        print(number, part)
        await asyncio.sleep(0.01)
"""


def texts(lines: Any) -> list[str]:
    """What the task wrote."""
    return [line.text for line in lines if line.stream != "jobq"]


def test_a_log_is_followed_across_the_death_of_a_worker(new: NewProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From before the call begins to its last line; of what was said before the worker was killed, the last seconds may be lost."""
    monkeypatch.setattr(logs, "LONGEST_PAUSE_SECONDS", 0.5)
    project = new(TASKS)
    handle = project.task("steps").delay(str(tmp_path))
    heard: list[LogLine] = []
    following = threading.Thread(target=lambda: heard.extend(handle.logs(follow=True)))
    first = project.worker("--concurrency", "1", "--lease", "10s")
    following.start()
    until(lambda: "step 3" in texts(heard))
    first.kill()
    project.worker("--concurrency", "1", "--lease", "10s")
    handle.result(timeout=60)
    following.join()
    told = texts(heard)
    second = told.index("second")
    assert told[0] == "first"
    assert told[1:second] == [f"step {number}" for number in range(second - 1)]
    assert told[second:] == ["second", "WARNING lib: logged", "done"]
    assert [line.text for line in heard if line.stream == "jobq"] == [f"Attempt 1, by worker {name}" for name in workers(heard)]
    assert texts(handle.logs()) == texts(heard)


def workers(lines: list[LogLine]) -> list[str]:
    """Whose attempts they are, as our notes say; two different ones."""
    names = [line.text.rpartition(" ")[2] for line in lines if line.stream == "jobq"]
    assert len(set(names)) == len(names) == 2
    return names


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_last_words_of_a_process_that_dies_are_kept(new: NewProject, how: str) -> None:
    """However it ends: the outcome of the failure has them."""
    project = new(TASKS)
    project.worker("--concurrency", "1")
    handle = project.task("dies").delay(how)
    with pytest.raises(WorkerDied):
        handle.result(timeout=60)
    assert texts(handle.logs()) == ["last words"]


def test_calls_have_their_logs_at_both_places(new: NewProject, place_url: str) -> None:
    """Single calls, calls of a batch that asks for it, coroutines, shell commands; and by the command line."""
    project = new(TASKS, url=place_url)
    project.worker("--concurrency", "2")
    once = project.task("fails_once").delay()
    shell = project.app.shell("echo out; echo err >&2")
    batch = project.task("speaks").options(logs=True).map(range(6))
    quiet = project.task("speaks").map(range(6))
    loop = [project.task("together").delay(number) for number in range(4)]
    once.result(timeout=60)
    assert [(line.attempt, line.text) for line in once.logs() if line.stream != "jobq"] == [(1, "attempt 1"), (2, "attempt 2")]
    shell.result(timeout=60)
    assert {(line.stream, line.text) for line in shell.logs() if line.stream != "jobq"} == {("stdout", "out"), ("stderr", "err")}
    for number, handle in enumerate(loop):
        handle.result(timeout=60)
        assert texts(handle.logs()) == [f"{number} {part}" for part in range(3)]
    assert [outcome.ok for outcome in batch.as_completed(60)].count(False) == 1
    assert until(lambda: [texts(batch.handle(number).logs()) for number in (1, 3, 5)] == [["number 1"], ["number 3"], ["number 5"]])
    assert texts(batch.handle(2).logs()) == []
    failed = next(outcome for outcome in quiet.as_completed(60) if not outcome.ok)
    assert plain(failed.record.tail) == "number 3"
    assert texts(quiet.handle(3).logs()) == ["number 3"]
    assert texts(quiet.handle(1).logs()) == []
    command = [*program("jobq"), f"{place_url}/{project.app_name}", "logs", once.id]
    shown = subprocess.run(command, cwd=project.folder, env=environment(), capture_output=True, text=True, check=True)
    assert shown.stdout == "attempt 1\nattempt 2\n"
    assert "-- Attempt 2, by worker" in shown.stderr


def test_a_hundred_megabytes_are_cut_and_cost_neither_memory_nor_the_call(new: NewProject) -> None:
    """The first 16 MiB and the last lines are kept; neither process holds much of it at a time."""
    project = new(TASKS)
    worker = project.worker("--concurrency", "1")
    before = peak_memory(worker.pid)
    handle = project.task("flood").delay(100_000)
    assert handle.result(timeout=120) < 40_000, "KiB that the task's process has grown by"
    assert peak_memory(worker.pid) - before < 40_000_000
    found = until(lambda: list(handle.logs()) if handle.done() else None)
    assert found[-1].text == "the end"
    assert 14_000_000 < sum(len(line.text) for line in found) < 18_000_000
    assert any("too much to be kept" in line.text for line in found if line.stream == "jobq")


def test_without_logs_nothing_is_kept(new: NewProject) -> None:
    """A worker's switch, for those who print what others must not read."""
    project = new(TASKS)
    project.worker("--concurrency", "1", "--no-logs")
    handle = project.task("fails_once").delay()
    handle.result(timeout=60)
    assert list(handle.logs()) == []


def test_forgetting_a_call_forgets_its_log(new: NewProject) -> None:
    """With all that was stored for it."""
    project = new(TASKS)
    worker = project.worker("--concurrency", "1")
    handle = project.task("fails_once").delay()
    handle.result(timeout=60)
    assert until(lambda: texts(handle.logs()) == ["attempt 1", "attempt 2"])
    worker.signal(signal.SIGTERM)
    worker.wait()
    handle.forget()

    async def left(ledger: Any) -> list[str]:
        return [info.name async for info in (await ledger.store()).list("logs/")]

    assert project.app.client.run(left) == []
