"""A SIGTERM to all processes of a worker at once, as Slurm, systemd and others send it: what runs is told, and has its time.

One worker has something of every kind to do when that happens. What dies of it directly cannot know that it is a preemption, and
waits for the word that the worker ends.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from projects import NewProject, Project, WorkerProcess, alive, until

from ai4s.jobq import CommandFailed
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call, Charges, PackHeader
from ai4s.jobq.worker.pack_calls import charges_of

PREEMPTED = 75
ONE_PREEMPTION = Charges(preemptions=1)
TASKS = """
from ai4s.jobq import Retry, preempted, run_in_process

if "SLOW_IMPORT" in os.environ:
    note("importing", os.getpid())
    time.sleep(1)

def until_go(listens):
    note("begun", os.getpid())
    while not (HERE / "go").exists():
        if listens and preempted():
            raise Retry()
        time.sleep(0.02)
    return current().attempt

@app.task
def saves():
    done = current().checkpoint.load(0)
    note("begun", done)
    while not (done or preempted()):
        time.sleep(0.02)
    if done:
        return done
    current().checkpoint.save(7)
    raise Retry()

@app.task
def does_not_listen():
    return until_go(listens=False)

@app.task
def computes_in_c():
    note("begun", os.getpid())
    return sum(range(0 if (HERE / "go").exists() else 10**12))

@app.task
def has_the_default_action():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return until_go(listens=True)

@app.task
def runs_a_program():
    note("begun", os.getpid())
    subprocess.run(["sleep", "0" if (HERE / "go").exists() else "1000"], check=True)

@app.task
def exits_on_sigterm():
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    try:
        return until_go(listens=False)
    finally:
        signal.signal(signal.SIGTERM, before)

@app.task
async def on_a_loop():
    note("begun", os.getpid())
    while not (HERE / "go").exists():
        if preempted():
            raise Retry()
        await asyncio.sleep(0.02)
    return current().attempt

@app.task
async def beside_a_loop():
    return await run_in_process(in_a_helper)

def in_a_helper():
    note("begun", os.getpid())
    while not (HERE / "told").exists():
        time.sleep(0.02)
    return "still here"

@app.task
def in_a_pack(n):
    return until_go(listens=True)
"""

VALUES = {
    "saves": 7, "does_not_listen": 2, "computes_in_c": 0, "has_the_default_action": 2, "runs_a_program": None,
    "exits_on_sigterm": 2, "on_a_loop": 2,
}  # fmt: skip
"""What their second attempts return."""

COMMANDS = {
    "dies": 'test -e "$HERE/go" && exit 0; echo $$ >> "$HERE/begun"; sleep 1000',
    "exits with 0": 'test -e "$HERE/go" && exit 0; trap "exit 0" TERM; echo $$ >> "$HERE/begun"; while :; do sleep 0.02; done',
}


def everyone(worker: WorkerProcess) -> list[int]:
    """The supervisor, its children, and all that is in their sessions."""
    sessions, found = set(worker.children), [worker.pid]
    for path in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if os.getsid(int(path.name)) in sessions:
                found.append(int(path.name))
    return sorted(found)


def tell(pids: list[int]) -> None:
    """SIGTERM to these, one right after the other."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def messages(project: Project) -> list[Call | PackHeader]:
    """What lies on the queue, which stays there."""
    deliveries = project.take()

    async def unsealed(ledger: Ledger) -> list[Call | PackHeader]:
        return [ledger.wire.unseal_delivery(delivery, "default") for delivery in deliveries]

    for delivery in deliveries:
        project.give_back(delivery)
    return project.app.client.run(unsealed)


def test_all_that_ran_goes_back_uncharged_and_runs_elsewhere(new: NewProject) -> None:
    """What heard of the end gives itself back, with its checkpoint; the rest is stopped at the end of the grace period. What died
    of the signal itself, or because a program of its own did, is no failure either.
    """
    project = new(TASKS)
    worker = project.worker("--concurrency", "10", "--grace", "4s", HERE=str(project.folder))
    handles = {name: project.task(name).delay() for name in VALUES} | {name: project.app.shell(COMMANDS[name]) for name in COMMANDS}
    helper = project.task("beside_a_loop").delay()
    batches = [project.task("in_a_pack").map([1]), project.app.shell.map([COMMANDS["dies"]])]
    until(lambda: len(project.lines("begun")) == len(handles) + 1 + len(batches), what="all of them running")
    hit = everyone(worker)
    tell(hit)
    (project.folder / "told").touch()
    assert worker.wait() == PREEMPTED, worker.log
    until(lambda: not any(alive(pid) for pid in hit), what="the end of all processes")

    left = messages(project)
    calls = {message.id: message for message in left if isinstance(message, Call)}
    assert {name: charges_of(calls[handle.id]) for name, handle in handles.items()} == dict.fromkeys(handles, ONE_PREEMPTION), (
        worker.log
    )
    assert [name for name, handle in handles.items() if calls[handle.id].checkpoint is not None] == ["saves"]
    packs = [message for message in left if isinstance(message, PackHeader)]
    assert [charged.charges for pack in packs for charged in pack.charged] == [ONE_PREEMPTION] * len(batches), worker.log
    # If there was time enough; it did not die of the signal.
    assert helper.result(timeout=1) == "still here" if helper.done() else charges_of(calls[helper.id]) == ONE_PREEMPTION, worker.log

    (project.folder / "go").touch()
    project.worker("--concurrency", "2", HERE=str(project.folder))
    values = {name: handle.result(timeout=60) for name, handle in handles.items()}
    assert values == {**VALUES, **{name: values[name] for name in COMMANDS}}
    assert batches[0].results(timeout=60) == [2]
    assert [result.exit_code for result in (*batches[1].results(timeout=60), *(values[name] for name in COMMANDS))] == [0] * 3


# Without the supervisor.


def strays(worker: WorkerProcess) -> list[int]:
    """All but the supervisor."""
    return [pid for pid in everyone(worker) if pid != worker.pid]


def test_a_stray_sigterm_ends_no_task(new: NewProject) -> None:
    """Children, and what guards them, take it while the user's modules are imported and while a task runs, again and again."""
    project = new(TASKS)
    worker = project.worker("--concurrency", "1", ready=False, SLOW_IMPORT="1")
    until(lambda: project.lines("importing"), what="a child that starts")
    tell(strays(worker))
    worker.until_ready()
    handle = project.task("does_not_listen").delay()
    until(lambda: project.lines("begun"), what="a running task")
    hit, pause = strays(worker), threading.Event()
    for _ in range(3):
        tell(hit)
        pause.wait(0.2)
    (project.folder / "go").touch()
    assert handle.result(timeout=30) == 1
    assert all(alive(pid) for pid in hit)
    assert len(project.lines("importing")) == 1


def test_a_command_that_dies_of_a_stray_sigterm_has_failed(new: NewProject) -> None:
    """Nobody says that the worker ends."""
    project = new()
    worker = project.worker("--concurrency", "1", HERE=str(project.folder))
    handle = project.app.shell(COMMANDS["dies"])
    until(lambda: project.lines("begun"), what="a running command")
    tell(strays(worker))
    with pytest.raises(CommandFailed) as caught:
        handle.result(timeout=30)
    assert caught.value.exit_code == 143
