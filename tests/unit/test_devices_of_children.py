"""A device belongs to one child's process until that has ended, whatever calls come, end, die or are stopped."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any, ClassVar

import pytest

from ai4s.jobq.lifecycle import Cancelled
from ai4s.jobq.message import NO_NEEDS, Call, Pool, Resources
from ai4s.jobq.worker import executors as module
from ai4s.jobq.worker.child_process import ChildDied
from ai4s.jobq.worker.devices import VISIBLE, Hardware
from ai4s.jobq.worker.executors import Executors, Work
from ai4s.jobq.worker.gates import Share
from ai4s.jobq.worker.interruptions import Stop
from ai4s.jobq.worker.jobs import Answer, ChildSetup, Job, Kind, Notice, Outfit, Ready, Report
from ai4s.jobq.worker.limits import ChildLimits
from ai4s.jobq.worker.slots import Slots

DEVICES = ("a", "b", "c")


async def serve(_: object) -> Answer:
    """No job here asks for anything."""
    return Answer(0, done=False)


class FakeChild:
    """A child without a process: takes its time to start and to end, and may die of a job."""

    living: ClassVar[list[FakeChild]] = []
    calls_per_gpu = 1
    rng = random.Random(0)

    def __init__(self, setup: ChildSetup, variables: dict[str, str]) -> None:
        self.setup, self.outfit, self.variables = setup, setup.outfit, variables
        self.load = self.given = 0
        self.alive, self.pid = True, 0

    @classmethod
    async def start(cls, setup: ChildSetup, variables: dict[str, str]) -> tuple[FakeChild, Ready]:
        """One more, among those that live."""
        child = cls(setup, variables)
        if setup.pool is Pool.PROCESS:
            cls.living.append(child)
            cls.check()
        try:
            await cls.pause()
        except asyncio.CancelledError:
            await child.end()
            raise
        return child, Ready()

    @classmethod
    async def pause(cls) -> None:
        """Some turns of the loop."""
        for _ in range(cls.rng.randrange(4)):
            await asyncio.sleep(0)

    @classmethod
    def check(cls) -> None:
        """No device has more children than it may."""
        users = Counter(device for child in cls.living for device in child.outfit.devices or ())
        for child in cls.living:
            devices = child.outfit.devices or ()
            for device in devices:
                assert users[device] <= (1 if len(devices) > 1 else cls.calls_per_gpu), f"{users} of {child.outfit}"

    async def run(self, job: Job, *_: object, **__: object) -> Report:
        """Run a job: to its end, or to the child's."""
        await self.pause()
        if not self.alive or self.rng.random() < 0.2:
            on_purpose = not self.alive
            await self.end()
            raise ChildDied("killed", on_purpose=on_purpose, jobs=1)
        return Report(job.number, Kind.RETURNED)

    async def end(self) -> None:
        """End, not at once."""
        self.alive = False
        try:
            await self.pause()
        finally:
            if self in self.living:
                self.living.remove(self)

    async def retire(self) -> None:
        """As a child without jobs: it closes what it has, and until then nobody has killed it."""
        await self.pause()
        await self.end()

    async def kill(self, _: float = 0) -> None:
        """As a child that has to go."""
        await self.end()

    def tell(self, _: Notice) -> None:
        """It does not matter here."""


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> type[FakeChild]:
    """Children without processes."""
    monkeypatch.setattr(module, "Child", FakeChild)
    FakeChild.living = []
    return FakeChild


def job(number: int, pool: Pool = Pool.PROCESS) -> Job:
    """A job whose call is of this pool."""
    return Job(number, Call("x", "f", "default", b"", 0, pool=pool), "", "")


def work(number: int, share: Share, *, pool: Pool = Pool.PROCESS, shipped: tuple[str, ...] = ()) -> Work:
    """What runs a job with this share."""
    stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
    return Work(job(number, pool), shipped, stop, serve, share=share)


@pytest.mark.parametrize("calls_per_gpu", [1, 2])
@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("seed", range(6))
async def test_no_device_has_more_children_than_it_may(
    children: type[FakeChild], seed: int, limit: int | None, calls_per_gpu: int
) -> None:
    """Those that are about to end included; and every call has the devices that it needs, and runs at some time."""
    rng = children.rng = random.Random(seed)
    children.calls_per_gpu = calls_per_gpu
    hardware = Hardware(cpus=8, devices=DEVICES, calls_per_gpu=calls_per_gpu, threads=None)
    size = rng.choice([2, 4, 8])
    executors = Executors(ChildSetup("w"), ChildLimits(limit), concurrency=size, async_concurrency=1, hardware=hardware)
    slots = Slots(executors.sizes, {Pool.PROCESS}, hardware=hardware)
    await executors.first()
    ended = Counter[int]()

    async def call(number: int, needs: Resources, *, stopped: bool) -> None:
        shipped = (rng.choice("xy"),) if rng.random() < 0.3 else ()
        async with slots.take(Pool.PROCESS, needs) as share:
            assert len(share.devices or ()) == needs.gpus
            mine = work(number, share, shipped=shipped)
            running = asyncio.create_task(executors.run(mine))
            if stopped:
                await children.pause()
                mine.stop.set_result(Stop(Cancelled(), 1.0))
            await running
            children.check()
        ended[number] += 1

    wanted = [Resources(gpus=rng.choice([0, 1, 1, 1, 2, 3]), cpus=rng.choice([None, 2])) for _ in range(80)]
    calls = [asyncio.create_task(call(number, needs, stopped=rng.random() < 0.2)) for number, needs in enumerate(wanted)]
    async with asyncio.timeout(10):
        await asyncio.gather(*calls)
    assert len(ended) == 80
    await executors.close()
    assert children.living == []


async def test_children_are_kept_for_calls_like_their_last(children: type[FakeChild]) -> None:
    """The first one is of use to the first call; a call that declares cores gets a child with as many threads."""
    children.rng = random.Random(1)
    hardware = Hardware(cpus=8, devices=("a", "b"), threads=None)
    executors = Executors(ChildSetup("w"), ChildLimits(), concurrency=2, async_concurrency=1, hardware=hardware)
    slots = Slots(executors.sizes, {Pool.PROCESS}, hardware=hardware)
    await executors.first()
    first = children.living[0]
    assert first.outfit == Outfit((), ("a",), 4)
    assert first.variables[VISIBLE] == "a"
    async with slots.take(Pool.PROCESS, Resources(gpus=1)) as share:
        await executors.run(work(1, share))
        assert children.living[:1] == [first] or not first.alive
    async with slots.take(Pool.PROCESS, Resources(gpus=1, cpus=1)) as share:
        await executors.run(work(2, share))
    async with slots.take(Pool.ASYNC, NO_NEEDS) as share:
        await executors.run(work(3, share, pool=Pool.ASYNC))
    assert Outfit((), ("a",), 1) in [child.outfit for child in children.living] or not children.living
    await executors.close()


async def test_event_loops_see_all_devices(children: type[FakeChild], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at a time, beside those that have one for themselves; nothing is said to them of threads."""
    children.rng = random.Random(1)
    started: list[dict[str, Any]] = []
    start = FakeChild.start
    monkeypatch.setattr(FakeChild, "start", lambda setup, variables: started.append(variables) or start(setup, variables))
    hardware = Hardware(cpus=8, devices=("a", "b"), threads=None)
    executors = Executors(ChildSetup("w"), ChildLimits(), concurrency=2, async_concurrency=2, hardware=hardware)
    for number, shipped in enumerate([(), ("x",)]):
        await executors.run(work(number, Share(devices=()), pool=Pool.ASYNC, shipped=shipped))
    assert [variables[VISIBLE] for variables in started] == ["a,b", "a,b"]
    assert all("RAYON_NUM_THREADS" not in variables for variables in started)
    await executors.close()
