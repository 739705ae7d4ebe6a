"""The real client of ai4s-jobq 3.13 and this version at one queue: each runs what the other has sent, and takes over from it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from old_client import OldClient, installed
from projects import NewProject, Project, environment, program

from ai4s.jobq import State, version3
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import SHELL_TASK, Call
from ai4s.jobq.old_letters import OldLetters

TASKS = """
@app.task(name="jobq.v3", codec="msgpack")
def run(**kwargs):
    if kwargs.get("fail"):
        raise ValueError("so it went")
    return sorted(kwargs)
"""


@pytest.fixture(scope="session")
def old_python() -> Path:
    """A Python that has the old client."""
    return installed()


@pytest.fixture
def old(old_python: Path, azurite_url: str, tmp_path: Path) -> OldClient:
    """The old client at this session's Azurite."""
    home = tmp_path / "home"
    home.mkdir()
    return OldClient(old_python, azurite_url, home)


def texts_on(project: Project, queue: str) -> list[str]:
    """What lies on a queue of the storage."""

    async def peek(ledger: Ledger) -> list[str]:
        return await ledger.transport.queue(queue, app=project.app_name).peek(32)

    found = project.app.client.run(peek)
    assert isinstance(found, list)
    return found


def test_our_worker_runs_what_the_old_client_has_pushed(new: NewProject, old: OldClient, azurite_url: str) -> None:
    """Shell commands and keyword arguments; with retries, which count down in place; a last failure is a dead letter of ours."""
    project = new(TASKS, url=azurite_url)
    old.command(project.app_name, "push", "-c", f"echo $WORD >> {project.folder}/words", "-e", "WORD=hello")
    old.command(project.app_name, "push", text=f'{{"path": "a/b", "size": 3}}\ntouch {project.folder}/from-stdin\n')
    shell, failing, kwargs, raising = old.push(
        project.app_name,
        ("echo $JOBQ_CALL_ID; printf '%s' \"$0\"", 0),
        ({"cmd": "echo again >> runs; exit 3", "cwd": str(project.folder)}, 1),
        ({"x": 1, "deep": {"y": [1.5, None]}}, 0),
        ({"fail": True}, 0),
    )
    worker = project.worker("--until-empty", ready=False)
    assert worker.wait() == 0
    assert project.lines("words") == ["hello"]
    assert (project.folder / "from-stdin").exists()
    result = project.app.handle(shell).result(timeout=5)
    assert (result.exit_code, result.output) == (0, f"{project.app.handle(shell).id}\nbash")
    assert project.app.handle(kwargs).result(timeout=5) == ["deep", "x"]
    assert project.lines("runs") == ["again"] * 2
    assert {letter.id for letter in project.app.dead_letters.list()} == {project.app.handle(each).id for each in (failing, raising)}
    (letter,) = project.app.dead_letters.list(task=SHELL_TASK)
    assert (letter.attempts, letter.error) == (2, "ai4s.jobq.errors.CommandFailed")
    assert project.depth() == 0


def test_an_old_worker_runs_what_ours_has_pushed_put_back_and_given_up(new: NewProject, old: OldClient, azurite_url: str) -> None:
    """Text of ours is text of its own; a message that ours retried is taken over; what it gives up, ours can retry."""
    project = new(url=azurite_url)
    runs = f"{project.folder}/runs"
    push(project, "-c", f"echo pushed-$WORD >> {runs}", "-e", "WORD=hello")
    project.send_text(version3.text(f"echo failing >> {runs}; exit 3", num_retries=1))
    put_back_by_ours(project, version3.text(f"echo put-back >> {runs}; exit 4", num_retries=2))

    old.command(project.app_name, "worker", "-n", "1", "--max-consecutive-failures", "9")
    assert sorted(project.lines("runs")) == ["failing"] * 2 + ["pushed-hello"] + ["put-back"] * 2
    assert project.depth() == 0

    letters = OldLetters(project.app.client)
    assert sorted(letter.kwargs["cmd"].split()[1] for letter in letters.peek()) == ["failing", "put-back"]
    assert all("jobq" not in json.loads(text) for text in texts_on(project, f"{project.app_name}-failed"))
    resent = letters.retry()
    assert (len(resent.handles), letters.count()) == (2, 0)
    assert project.worker("--until-empty", ready=False).wait() == 0
    assert {handle.status() for handle in resent.handles} == {State.FAILED}
    assert len(project.lines("runs")) == 7


def push(project: Project, *options: str) -> None:
    """Push with our command line, for old workers."""
    command = [*program("jobq"), f"devstoreaccount1/{project.app_name}", "push", "--format", "v3", *options]
    answer = subprocess.run(
        command, env=environment(JOBQ_CONNECTION_STRING=project.url), capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr


def put_back_by_ours(project: Project, text: str) -> None:
    """Have a message fail once under a worker of ours, which leaves in it what it must remember."""
    project.send_text(text)

    async def fail(ledger: Ledger) -> None:
        queue = await ledger.queue("default")
        for delivery in await queue.receive(32, lease_seconds=30):
            call = ledger.wire.unseal_delivery(delivery, "default")
            assert isinstance(call, Call)
            is_meant = delivery.body == text
            changed = replace(call, errors=1, deaths=1, mark="ab" * 8) if is_meant else call
            await queue.release(delivery.receipt, body=(await ledger.sealed(changed))[1] if is_meant else None)

    project.app.client.run(fail)
