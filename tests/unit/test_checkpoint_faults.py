"""Checkpoints under faults: what `save` said is kept is found by the next attempt, and a zombie's never takes its place.

Next: `test_checkpointing.py` for the task's side, `../acceptance/test_checkpoints.py` for real workers.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from failure_points import Crash, Fault, Numbered, WorkerProcess, World, opened
from scenarios import CALL, Scenario, every_fault, explore, play, returned

from ai4s.jobq.lifecycle import MAX_IDLE_PREEMPTIONS, Preempted
from ai4s.jobq.message import Form, State
from ai4s.jobq.worker.executors import Ending
from ai4s.jobq.worker.jobs import Job, Load, Save

pytestmark = pytest.mark.usefixtures("without_pauses", "without_waiting_for_the_disk")


def read(job: Job) -> str:
    """What was put at a job's checkpoint path."""
    return Path(job.checkpoint_path).read_text()


def write(job: Job, text: str) -> None:
    """Put something at a job's checkpoint path."""
    Path(job.checkpoint_path).write_text(text)


class Steps:
    """A task of several steps that saves after each, and then dies or is preempted; it returns what it has got to."""

    def __init__(self, steps: int, ending: Ending | type[Crash], *, saves: bool = True) -> None:
        self._steps, self._ending, self._saves = steps, ending, saves
        self.kept: dict[str, int] = {}
        self.loaded: list[int] = []

    async def __call__(self, process: WorkerProcess, job: Job) -> Ending:
        """One attempt: go on from the checkpoint by one step."""
        reached = await self._load(process, job)
        if reached < self._steps:
            reached += 1
            if self._saves:
                await self._save(process, job, reached)
        if reached == self._steps:
            return returned(str(reached).encode())
        if isinstance(self._ending, type):
            process.die()
            raise self._ending
        return self._ending

    async def _load(self, process: WorkerProcess, job: Job) -> int:
        assert process.serve is not None
        answer = await process.serve(Load(job.number, 1))
        reached = int(read(job)) if answer.done else 0
        assert reached >= self.kept.get(process.here.app, 0), "a checkpoint that was surely kept is lost"
        self.loaded.append(reached)
        return reached

    async def _save(self, process: WorkerProcess, job: Job, reached: int) -> None:
        assert process.serve is not None
        write(job, str(reached))
        answer = await process.serve(Save(job.number, 1, Form.VALUE))
        if answer.done:
            self.kept[process.here.app] = reached


@every_fault
async def test_a_death_goes_on_from_the_last_checkpoint(tmp_path: Path, fault: Fault) -> None:
    """Each attempt ends in a death, more often than may be; but deaths are counted from the last checkpoint on."""
    call = replace(CALL, max_deaths=4)
    scenario = Scenario(Steps(6, Crash), State.SUCCEEDED, 6, 5, call, value=b"6", counts_attempts=False)
    await explore(tmp_path, scenario, fault)


@every_fault
async def test_a_preemption_goes_on_from_the_last_checkpoint(tmp_path: Path, fault: Fault) -> None:
    """More preemptions than are free without progress, with a step of progress in each."""
    steps = MAX_IDLE_PREEMPTIONS + 2
    task = Steps(steps, Preempted())
    scenario = Scenario(task, State.SUCCEEDED, steps, steps, replace(CALL, max_deaths=5), value=str(steps).encode())
    async with opened(tmp_path / "place") as transport:
        whole = await play(transport, tmp_path, scenario, {})
        assert task.loaded == list(range(steps))
        for number in range(len(whole.asked)):
            await play(transport, tmp_path, scenario, {number: fault})


async def test_preemptions_without_a_checkpoint_end_it(tmp_path: Path) -> None:
    """A task that saves nothing gets nowhere, and is told so."""
    async with opened(tmp_path / "place") as transport:
        steps = Steps(3, Preempted(), saves=False)
        await play(transport, tmp_path, Scenario(steps, State.FAILED, MAX_IDLE_PREEMPTIONS, MAX_IDLE_PREEMPTIONS), {})


async def test_a_save_is_two_requests_and_the_removal_of_the_older_one(tmp_path: Path) -> None:
    """The blob comes first, then its name in the message, and only then the older blob goes."""
    async with opened(tmp_path / "place") as transport:
        played = await play(transport, tmp_path, Scenario(Steps(2, Preempted()), State.SUCCEEDED, 2, 2), {})
        first = ["receive", "put checkpoints", "renew", "release"]
        second = ["receive", "get results", "renew", "get checkpoints", "put checkpoints", "renew", "delete checkpoints"]
        assert played.asked == [*first, *second, "put results", "delete checkpoints", "delete"]


async def test_nothing_is_left_of_a_call_that_succeeded(tmp_path: Path) -> None:
    """Its last checkpoint goes before its message does."""
    async with opened(tmp_path / "place") as transport:
        played = await play(transport, tmp_path, Scenario(Steps(3, Preempted()), State.SUCCEEDED, 3, 3), {})
        assert [info.name async for info in played.world.store.list("checkpoints/")] == []


async def test_a_zombies_checkpoint_never_takes_its_successors_place(tmp_path: Path) -> None:
    """Two workers have the call; the one whose lease is gone saves last, is told that it counts for nothing, and it does."""
    async with opened(tmp_path / "place") as transport:
        world, points = World(transport, tmp_path), Numbered()
        world.one_at_a_time = False
        await world.send(CALL)
        saved: list[tuple[str, bool]] = []
        zombie_may_go_on, zombie_runs = asyncio.Event(), asyncio.Event()

        async def save(process: WorkerProcess, job: Job, what: str) -> None:
            assert process.serve is not None
            write(job, what)
            saved.append((what, (await process.serve(Save(job.number, 1, Form.VALUE))).done))

        async def zombie(process: WorkerProcess, job: Job) -> Ending:
            zombie_runs.set()
            await zombie_may_go_on.wait()
            await save(process, job, "zombie")
            return Preempted()

        async def successor(process: WorkerProcess, job: Job) -> Ending:
            await save(process, job, "successor")
            zombie_may_go_on.set()
            await frozen
            return Preempted()

        frozen = asyncio.ensure_future(WorkerProcess(points, world, zombie).live())
        await zombie_runs.wait()
        await world.make_visible()
        await WorkerProcess(points, world, successor).live()
        assert saved == [("successor", True), ("zombie", False)]

        found: list[str] = []

        async def third(process: WorkerProcess, job: Job) -> Ending:
            assert process.serve is not None
            assert (await process.serve(Load(job.number, 1))).form is Form.VALUE
            found.append(read(job))
            return returned()

        await world.make_visible()
        await WorkerProcess(points, world, third).live()
        assert found == ["successor"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "swapped"])
async def test_a_damaged_checkpoint_is_none(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """The call begins anew, and the log says why; wrong bytes are never handed to the task."""
    async with opened(tmp_path / "place") as transport:
        world, points = World(transport, tmp_path), Numbered()
        await world.send(CALL)
        task = Steps(2, Preempted())
        await WorkerProcess(points, world, task).live()
        (name,) = [info.name async for info in world.store.list("checkpoints/")]
        await (world.store.delete(name) if damage == "missing" else world.store.put(name, b"" if damage == "truncated" else b"9"))
        task.kept.clear()
        await world.make_visible()
        await WorkerProcess(points, world, task).live()
        assert task.loaded == [0, 0]
        assert "begins anew, since its checkpoint cannot be used" in caplog.text
