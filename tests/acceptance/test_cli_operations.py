"""The verbs that look after an app, as real processes beside a real worker. What each does is looked at in `unit/test_cli_*.py`."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from gate import gate_in
from projects import NewProject, Project, environment, program, until

TASKS = """
import pathlib
from gate import Gate

@app.task
def stop_at(folder):
    Gate(pathlib.Path(folder)).pass_through()

@app.task
def fail(x):
    raise ValueError(f"no {x}")
"""

TESTS = str(Path(__file__).parents[1])


def verb(project: Project, *words: str, input: str = "") -> subprocess.CompletedProcess[str]:
    """Run a verb on the project's app in its folder; not at a terminal."""
    command = [*program("jobq"), project.target, *words]
    variables = environment(PYTHONPATH=f"{project.folder}:{TESTS}")
    return subprocess.run(
        command, cwd=project.folder, env=variables, input=input, capture_output=True, text=True, timeout=60, check=False
    )


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What a verb said with --json."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_operators_day(new: NewProject, azurite_url: str, tmp_path: Path) -> None:
    """A worker is seen at work, what failed is found and run again, what waits is cleared, and the setup is sound all the while."""
    project = new(TASKS, url=azurite_url)
    with gate_in(tmp_path) as gate:
        running, failed = project.task("stop_at").delay(str(tmp_path)), project.task("fail").delay("luck")
        project.worker("--concurrency", "2", PYTHONPATH=f"{project.folder}:{TESTS}")
        gate.wait_until_reached()
        until(lambda: [letter.id for letter in project.app.dead_letters.list()] == [failed.id])

        examined = verb(project, "doctor")
        assert examined.returncode == 0, examined.stdout
        assert not [line for line in examined.stdout.splitlines() if line.startswith("FAILED")]
        (worker,) = [line for line in records(verb(project, "status", "--json")) if line["kind"] == "worker"]
        assert worker["state"] == "working"
        assert worker["queues"] == ["default"]

        assert records(verb(project, "failed", "retry", "--error", "no luck", "--json")) == [{"id": failed.id, "retry": "run 2"}]
        gate.open()
        running.result(timeout=60)
    project.workers[0].signal(signal.SIGTERM)
    project.workers[0].wait()

    waiting = project.task("fail").map(range(3), pack=3)
    single = project.task("fail").delay(1)
    cleared = verb(project, "clear")
    assert cleared.returncode == 0, cleared.stderr
    assert waiting.id in cleared.stdout
    assert single.status() == "cancelled"


def test_a_reader_that_goes_away_ends_the_verb_quietly(new: NewProject) -> None:
    """As `| head -1` does; no traceback."""
    project = new(TASKS)
    for number in range(3):
        project.task("fail").delay(number)
    command = f"{program('jobq')[0]} {project.target} peek -n 32 --json | head -1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=project.folder, env=environment(PYTHONPATH=f"{project.folder}:{TESTS}"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["task"].endswith("fail")
    assert done.stderr == ""
