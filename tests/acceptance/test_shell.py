"""Shell commands on real workers: what they come to, how they are ended, and that nothing of them outlives what ran them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from projects import NewProject, Project, alive, new_project, until

from ai4s.jobq import CallCancelled, CallTimedOut, CommandFailed, Handle, ShellResult

PREEMPTED = 75
TASKS = """
@app.task(timeout=1)
def sleep_beside_a_group_of_its_own():
    note("pids", subprocess.Popen(["sleep", "1000"], process_group=0).pid)
    time.sleep(1000)
"""

SLEEPS = (
    "sleep 1000 & echo $! >> pids; echo $$ >> pids; echo $PPID >> child; echo $JOBQ_CHECKPOINT_DIR >> dir; "
    "echo ready >> begun; sleep 1000"
)
"""A command that would stay for long, with something beside it; it tells all their numbers."""

RESUMES = """
if [ -e "$JOBQ_CHECKPOINT_DIR/state" ]; then echo "attempt $JOBQ_ATTEMPT goes on from $(cat "$JOBQ_CHECKPOINT_DIR/state")"; exit; fi
trap 'echo 7 > "$JOBQ_CHECKPOINT_DIR/state"; exit 0' TERM
echo ready >> begun
for i in {1..1000}; do sleep 0.05; done
"""

DEAF = """
if [ $JOBQ_ATTEMPT = 1 ]; then trap '' TERM; echo $$ >> pids; echo ready >> begun; for i in {1..1000}; do sleep 0.05; done; fi
echo again
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with a worker of two slots, for as long as this module's tests run."""
    folder = tmp_path_factory.mktemp("shell")
    with new_project(folder / "project", f"local://{folder}/place", TASKS) as made:
        made.worker("--concurrency", "2")
        yield made


def here(project: Project, cmd: str) -> str:
    """A command that runs in a fresh folder, in which it may write what a test is to know."""
    folder = project.folder / f"run-{len(list(project.folder.iterdir()))}"
    folder.mkdir()
    return f"cd {folder}; {cmd}"


def started(project: Project, cmd: str, submit: Callable[[str], Handle[ShellResult]]) -> tuple[Handle[ShellResult], Path]:
    """A command that runs, and its folder."""
    placed = here(project, cmd)
    folder = Path(placed.partition(";")[0].removeprefix("cd "))
    handle = submit(placed)
    until((folder / "begun").exists, what="the command begins")
    return handle, folder


def all_gone(folder: Path) -> bool:
    """Whether nothing that a command has told of lives any more."""
    pids = [int(line) for line in (folder / "pids").read_text().split()]
    assert pids
    until(lambda: not any(map(lives, pids)), what=f"{pids} end")
    return True


def lives(pid: int) -> bool:
    """Whether a process of these tests lives; its number may be another's by now."""
    with suppress(OSError):
        return alive(pid) and any(word in Path(f"/proc/{pid}/cmdline").read_bytes() for word in (b"1000", b"pids"))
    return False


def test_commands_come_to_what_their_exit_codes_say(project: Project) -> None:
    """Values, failures and output come back; the log of the worker shows each line with the call's id."""
    succeeded = project.app.shell("echo $A; echo to stderr >&2", env={"A": "it is"})
    failed = project.app.shell("echo why; exit 3")
    assert succeeded.result(60).exit_code == 0
    with pytest.raises(CommandFailed) as caught:
        failed.result(60)
    assert (caught.value.exit_code, caught.value.output) == (3, "why\n")
    worker = project.workers[0]
    worker.until_says(f"INFO    [{succeeded.id} attempt 1] it is")
    worker.until_says(f"WARNING [{succeeded.id} attempt 1] to stderr")
    assert "jobq.shell" in worker.log


def test_failures_are_tried_again(project: Project) -> None:
    """As long as retries last, and the exit code allows it."""
    again = project.app.shell.options(retries=1)
    assert again('[ "$JOBQ_ATTEMPT" = 2 ] && echo "$JOBQ_ATTEMPT" || exit 75', retry_exit=75).result(60).output == "2\n"
    with pytest.raises(CommandFailed):
        again('[ "$JOBQ_ATTEMPT" = 2 ] || exit 2', fail_exit=2).result(60)


def test_a_timeout_ends_all_of_a_command(project: Project) -> None:
    """What it had started, too; SIGTERM came first."""
    cmd = f"trap 'echo told >> heard; exit' TERM; {SLEEPS} & wait"
    handle, folder = started(project, cmd, lambda cmd: project.app.shell(cmd, timeout=1.5))
    with pytest.raises(CallTimedOut):
        handle.result(60)
    assert all_gone(folder)
    assert (folder / "heard").read_text() == "told\n"


def test_cancelling_ends_all_of_a_command(project: Project) -> None:
    """Within seconds, like any running call."""
    handle, folder = started(project, SLEEPS, project.app.shell)
    assert handle.cancel()
    assert all_gone(folder)
    with pytest.raises(CallCancelled):
        handle.result(60)


def test_the_death_of_a_child_ends_its_command(project: Project) -> None:
    """Which is then tried again elsewhere, as a death says nothing of the command."""
    handle, folder = started(project, f"if [ $JOBQ_ATTEMPT = 1 ]; then {SLEEPS}; fi; echo again", project.app.shell)
    os.kill(int((folder / "child").read_text()), signal.SIGKILL)
    assert all_gone(folder)
    assert handle.result(60).output == "again\n"
    left = Path((folder / "dir").read_text().strip()).parent
    until(lambda: not left.exists(), what="its folder goes")


def test_what_was_saved_outlives_a_death(new: NewProject) -> None:
    """A checkpoint folder is saved while the command runs, as nobody says when a machine dies."""
    own = new()
    worker = own.worker("--concurrency", "1", JOBQ_CHECKPOINT_SECONDS="0.2")
    save = f'if [ $JOBQ_ATTEMPT = 1 ]; then echo 7 > "$JOBQ_CHECKPOINT_DIR/state"; {SLEEPS}; fi; cat "$JOBQ_CHECKPOINT_DIR/state"'
    handle, folder = started(own, save, own.app.shell)
    worker.until_says("$JOBQ_CHECKPOINT_DIR is saved: 1 file(s), 2 bytes")
    os.kill(int((folder / "child").read_text()), signal.SIGKILL)
    assert handle.result(60).output == "7\n"


def test_a_group_of_a_tasks_own_ends_with_it(project: Project) -> None:
    """What a task has started stays within its child's session, and ends with that."""
    with pytest.raises(CallTimedOut):
        project.task("sleep_beside_a_group_of_its_own").delay().result(60)
    assert all_gone(project.folder)


def test_the_death_of_a_worker_ends_its_commands(new: NewProject) -> None:
    """A worker for an app at a place runs commands as well, and need not accept code for it."""
    own = new()
    worker = own.worker("--no-by-value", "--forever", "--concurrency", "1", target=f"{own.url}/{own.app_name}")
    _, folder = started(own, SLEEPS, own.app.shell)
    worker.kill()
    assert all_gone(folder)


def test_a_preempted_command_goes_on_elsewhere(new: NewProject, place_url: str) -> None:
    """What it saves in its checkpoint folder on SIGTERM is there for the next attempt; its exit code 0 proves nothing."""
    own = new(url=place_url)
    first = own.worker("--concurrency", "1", "--grace", "25s")
    handle, _ = started(own, RESUMES, own.app.shell)
    first.signal(signal.SIGTERM)
    assert first.wait() == PREEMPTED, first.log
    own.worker("--concurrency", "1")
    assert handle.result(60).output == "attempt 2 goes on from 7\n"


def test_a_pack_of_commands_is_preempted_and_goes_on(new: NewProject) -> None:
    """A command that does not hear SIGTERM is killed when its own time is up, and all of them end well on another worker."""
    own = new()
    first = own.worker("--concurrency", "1", "--grace", "25s", JOBQ_KILL_TIMEOUT="0.5")
    cmd = here(own, DEAF)
    folder = Path(cmd.partition(";")[0].removeprefix("cd "))
    batch = own.app.shell.map(["echo first", cmd, "test -t 1 && echo terminal", "echo last"], pack=4)
    until((folder / "begun").exists, what="the second command begins")
    first.signal(signal.SIGTERM)
    assert first.wait() == PREEMPTED, first.log
    assert all_gone(folder)
    assert "did not end within 0.5 s of SIGTERM" in first.log
    own.worker("--concurrency", "1", "--emulate-tty")
    assert [result.output for result in batch.results(timeout=60)] == ["first\n", "again\n", "terminal\n", "last\n"]
