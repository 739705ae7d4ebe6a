"""Commands pushed, worked off and shown by the real commands as processes, and what becomes of a push that is cut short."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from projects import NewProject, Project, environment, program, until

from ai4s.jobq.cli.submitting import AT_ONCE
from ai4s.jobq.transports.place import AZURITE_KEY, AzurePlace, parse_place

EXAMPLE = "echo one line; echo another >&2; exit $CODE"


def settings(project: Project) -> tuple[str, dict[str, str]]:
    """TARGET and environment of a command that works with the project's place and app."""
    place = parse_place(project.url)
    if isinstance(place, AzurePlace):
        return f"{place.account}/{project.app_name}", environment(JOBQ_CONNECTION_STRING=project.url)
    return f"{project.url}/{project.app_name}", environment()


def run(project: Project, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    target, env = settings(project)
    return subprocess.run(
        [*program("jobq"), target, *words],
        cwd=project.folder, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def start(project: Project, *words: str) -> subprocess.Popen[str]:
    """Start a verb that reads what the test writes, and hears Ctrl-C whatever the test runner does with it."""
    target, env = settings(project)
    return subprocess.Popen(
        [*program("jobq"), target, *words],
        cwd=project.folder, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  # nothing else runs in between
    )  # fmt: skip


def test_commands_are_pushed_worked_off_and_shown(new: NewProject, place_url: str) -> None:
    """By lines, by -c and by JSON; who waits is told of each, and by the exit code; the worker ends when the queue is empty."""
    project = new(url=place_url)
    waiting = start(project, "push", "--wait", "--json", "-e", "CODE=3", "-c", EXAMPLE)
    until(lambda: project.depth() == 1)
    pushed = run(project, "push", stdin=f"CODE=0; {EXAMPLE}\n" + json.dumps({"cmd": EXAMPLE, "env": {"CODE": "0"}}))
    assert pushed.returncode == 0, pushed.stderr
    worked = run(project, "worker", "-n", "2")
    assert worked.returncode == 0, worked.stderr
    shown = run(project, "result", *pushed.stdout.split())
    assert (shown.returncode, shown.stdout) == (0, "one line\nanother\n" * 2)
    said = json.loads(waiting.communicate(timeout=60)[0])
    assert waiting.returncode == 1
    assert (said["state"], said["exit_code"], said["output"]) == ("failed", 3, "one line\nanother\n")


def test_a_command_line_of_3x_works_as_it_stands(new: NewProject, azurite_url: str) -> None:
    """`ai4s-jobq --conn-str … account/queue push -c …`, with options as they were."""
    project = new(url=azurite_url)
    target = f"devstoreaccount1/{project.app_name}"
    words = [*program("ai4s-jobq"), "--conn-str", azurite_url, target, "push", "-c", "true", "--num-retries", "1"]
    done = subprocess.run(
        [*words, "--num-workers", "10"],
        cwd=project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert AZURITE_KEY not in done.stderr
    assert project.depth() == 1


def test_pull_takes_one_call_and_no_more(new: NewProject) -> None:
    """With nothing to take it says so and ends at once; either way with code 0."""
    project = new()
    run(project, "push", "-c", "echo 1 >> ran", "-c", "echo 2 >> ran")
    assert run(project, "pull").returncode == 0
    assert (len(project.lines("ran")), project.depth()) == (1, 1)
    assert run(project, "pull").returncode == 0
    nothing = run(project, "pull")
    assert nothing.returncode == 0
    assert "No message is to be had now" in nothing.stderr
    assert len(project.lines("ran")) == 2


def test_failures_in_a_row_end_a_worker_that_was_told_so(new: NewProject) -> None:
    """With code 1 and a line that says so; what it has not begun is left to others."""
    project = new()
    run(project, "push", stdin="false\n" * 6)
    broken = run(project, "worker", "-n", "1", "--max-consecutive-failures", "2")
    assert broken.returncode == 1
    assert "3 attempts in a row failed" in broken.stderr.splitlines()[-1]
    assert len(project.dead_letters()) == 3
    assert project.visible() == 3


def test_an_interrupted_push_says_how_far_it_came(new: NewProject) -> None:
    """All that it had read is submitted, and the line to go on from is named."""
    project = new()
    push = start(project, "push")
    assert push.stdin is not None
    push.stdin.write("echo 1\n\necho 2\n")
    push.stdin.flush()
    until(lambda: project.depth() == 2)
    push.send_signal(signal.SIGINT)
    output, errors = push.communicate(timeout=60)
    assert push.returncode == 130
    assert "tail -n +4" in errors
    assert "Traceback" not in errors
    assert len(output.split()) == 2


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nothing_is_lost_when_nobody_reads_the_ids_any_more(new: NewProject, options: list[str]) -> None:
    """As with `| head -1`: the rest is submitted all the same, and quietly."""
    project = new()
    push = start(project, "push", *options)
    assert push.stdin is not None
    assert push.stdout is not None
    push.stdin.write("echo 1\n" * 2 * AT_ONCE)
    push.stdin.flush()
    assert push.stdout.readline()  # of a first one, since no more than so many are on their way at a time
    push.stdout.close()
    push.stdin.write("echo 2\n" * AT_ONCE)
    push.stdin.close()
    assert push.stderr is not None
    errors = push.stderr.read()
    push.stderr.close()
    assert push.wait(60) == 0, errors
    assert errors.splitlines() == [f"Submitted {3 * AT_ONCE} calls to {project.app_name} at {project.url}."]
    assert project.depth() == 3 * AT_ONCE
