"""What waits for more than a slot leaves the slots to others, and the queue to other workers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.message import NO_NEEDS, Call, Pool, Resources
from ai4s.jobq.transports.base import MAX_RECEIVE
from ai4s.jobq.worker.devices import Hardware
from ai4s.jobq.worker.gates import Share
from ai4s.jobq.worker.slots import PACKS_A_FETCH, PROBE_MESSAGES, Closed, Slots

PROCESS = Pool.PROCESS
LARGE, SMALL = Resources(memory_bytes=60), Resources(memory_bytes=10)
HARDWARE = Hardware(cpus=4, memory_bytes=100)
GPU = Resources(gpus=1)


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def made(size: int = 4, hardware: Hardware = HARDWARE, clock: Clock | None = None) -> Slots:
    """Slots for plain functions; nothing else is in play."""
    return Slots(dict.fromkeys(Pool, size), {PROCESS}, clock or Clock(), hardware)


class Runs:
    """Calls that take what they need and hold it until they are told."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.began: list[int] = []
        self.ends: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, needs: Resources = NO_NEEDS, pool: Pool = PROCESS) -> None:
        """One more."""
        self.ends.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._run(len(self.tasks), needs, pool)))

    async def _run(self, number: int, needs: Resources, pool: Pool) -> None:
        async with self.slots.take(pool, needs):
            self.began.append(number)
            await self.ends[number].wait()

    async def end(self) -> None:
        """Let all end."""
        for event in self.ends:
            event.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_a_large_call_that_waits_takes_no_slot() -> None:
    """Others begin, and there is room for more of them."""
    slots = made(3)
    runs = Runs(slots)
    runs.start(LARGE)
    runs.start(LARGE)
    runs.start()
    await settle()
    assert runs.began == [0, 2]
    assert slots.running == 2
    assert slots.room() == 1
    assert slots.busy
    runs.ends[0].set()
    await settle()
    assert runs.began == [0, 2, 1]
    await runs.end()
    assert not slots.busy
    assert slots.room() == 3


async def test_of_long_calls_that_do_not_fit_now_one_waits() -> None:
    """So that it gets its turn; the others go back to workers that may have room, and the queue is asked more rarely."""
    clock = Clock()
    slots = made(3, clock=clock)
    runs = Runs(slots)
    runs.start(LARGE)
    await settle()
    assert slots.welcome(PROCESS, LARGE)
    runs.start(LARGE)
    await settle()
    assert slots.room() == 2
    assert not slots.welcome(PROCESS, LARGE)
    assert not slots.welcome(PROCESS, SMALL)
    assert slots.welcome(PROCESS)
    assert slots.room() == 0
    clock.now += 1
    assert slots.room() == min(2, PROBE_MESSAGES)
    runs.ends[0].set()
    await settle()
    assert slots.room() == 2
    await runs.end()


async def test_probes_that_bring_something_to_do_become_more_frequent() -> None:
    """And those that do not become rarer, up to one in 5 s."""
    clock = Clock()
    slots = made(3, clock=clock)
    runs = Runs(slots)
    runs.start(LARGE)
    runs.start(LARGE)
    await settle()

    def pause_seconds(*brought: Resources) -> float:
        for needs in brought:
            slots.welcome(PROCESS, needs)
        start = clock.now
        while slots.room() == 0:
            clock.now += 0.01
        return clock.now - start

    fruitless = [pause_seconds(LARGE, LARGE) for _ in range(7)]
    assert fruitless == pytest.approx([0.25, 0.5, 1, 2, 4, 5, 5], abs=0.02)
    fruitful = [pause_seconds(LARGE, NO_NEEDS, NO_NEEDS) for _ in range(6)]
    assert fruitful == pytest.approx([1.25, 0.625, 0.3125, 0.25, 0.25, 0.25], abs=0.02)
    await runs.end()


async def test_short_calls_with_a_device_each_are_fetched_ahead() -> None:
    """About a second's worth of them waits here, and no more are fetched meanwhile."""
    clock = Clock()
    slots = made(2, Hardware(devices=("0", "1")), clock)
    needs = slots.needs(Call("x", "f", "default", b"", 0))
    assert needs == GPU
    async with slots.take(PROCESS, needs):
        clock.now += 0.1
    slots.took(PROCESS, 0.1)
    runs = Runs(slots)
    for _ in range(2 + 19):
        assert slots.welcome(PROCESS, needs)
        runs.start(needs)
        await settle()
    assert slots.running == 2
    assert slots.room() == 0  # one more is not worth a request
    assert slots.welcome(PROCESS, needs)
    for event in runs.ends[:15]:
        event.set()
        await settle()
    assert slots.room() == 16
    await runs.end()
    assert slots.room() == 22


async def test_however_short_others_are_of_long_ones_one_waits() -> None:
    """How long a call holds what it needs tells, and not how long those took that need nothing."""
    clock = Clock()
    slots = made(3, clock=clock)
    async with slots.take(PROCESS, LARGE):
        clock.now += 600
    slots.took(PROCESS, 0.001)
    runs = Runs(slots)
    for _ in range(2):
        assert slots.welcome(PROCESS, LARGE)
        runs.start(LARGE)
        await settle()
    assert not slots.welcome(PROCESS, LARGE)
    assert slots.welcome(PROCESS)
    await runs.end()


async def test_long_calls_with_a_device_each_are_not_fetched_ahead() -> None:
    """As many as there are devices, though there are more slots."""
    slots = made(2, Hardware(devices=("0", "1")))
    runs = Runs(slots)
    runs.start(GPU)
    runs.start(GPU)
    await settle()
    assert slots.room() == 0
    await runs.end()


async def test_closing_sends_back_who_waits_for_its_share() -> None:
    """As it does those that wait for a slot; what comes then goes back as well."""
    slots = made()
    runs = Runs(slots)
    runs.start(LARGE)
    runs.start(LARGE)
    await settle()
    slots.close()
    runs.start(SMALL)
    await settle()
    assert [type(task.exception()) for task in runs.tasks[1:]] == [Closed, Closed]
    await runs.end()
    slots.open()
    assert not slots.busy


async def test_who_gets_its_share_when_the_worker_closes_does_not_begin() -> None:
    """And gives its share back."""
    slots = made()
    runs = Runs(slots)
    async with slots.take(PROCESS, LARGE):
        runs.start(LARGE)
        await settle()
    slots.close()
    await settle()
    assert type(runs.tasks[0].exception()) is Closed
    slots.open()
    assert slots.is_free(PROCESS, Resources(memory_bytes=100))


async def test_who_gives_up_waiting_for_a_slot_gives_its_share_back() -> None:
    """The next one has it."""
    slots = made(1)
    runs = Runs(slots)
    runs.start()
    runs.start(LARGE)
    runs.start(LARGE)
    await settle()
    runs.tasks[1].cancel()
    await settle()
    runs.ends[0].set()
    await settle()
    assert runs.began == [0, 2]
    await runs.end()


async def test_who_waits_for_room_wakes_when_a_share_is_given_back() -> None:
    """And when somebody gives up waiting for one."""
    slots = made(2, Hardware(devices=("0",)))
    runs = Runs(slots)
    for _ in range(2):
        runs.start(GPU)
    await settle()
    assert not slots.welcome(PROCESS, GPU)
    assert slots.room() == 0
    waiting = asyncio.create_task(slots.until_room())
    await settle()
    assert not waiting.done()
    runs.tasks[1].cancel()
    await waiting
    assert slots.room() == 1
    await runs.end()


async def test_who_is_cancelled_as_something_changes_waits_no_more() -> None:
    """A worker that drains would wait for room, which there may be none of for hours."""
    slots = made(1, Hardware(devices=("0",)))
    runs = Runs(slots)
    for _ in range(2):
        runs.start(GPU)
    await settle()
    assert not slots.welcome(PROCESS, GPU)
    waiting = asyncio.create_task(slots.until_room())
    await settle()
    slots.took(PROCESS, 3600)
    waiting.cancel()
    await settle()
    assert waiting.cancelled()
    await runs.end()


# Packs.


async def test_a_pack_that_cannot_use_all_slots_leaves_room() -> None:
    """For what needs nothing of what its calls need, and for no more of that than there are slots."""
    slots = made(3)
    runs = Runs(slots)
    async with slots.pack(PROCESS, 1000, 0, LARGE) as turn:
        assert turn is not None
        assert turn.width == 1
        runs.start(LARGE)  # its dealer's: one runs, the next one waits
        runs.start(LARGE)
        await settle()
        assert slots.room() == PACKS_A_FETCH
        runs.start()
        await settle()
        assert slots.room() == 1
        async with slots.pack(PROCESS, 1000, 0) as another:
            assert another is not None
            assert slots.room() == 0
    await runs.end()


async def test_of_packs_that_want_the_same_one_waits() -> None:
    """The next goes back to other workers, and the queue is asked more rarely."""
    slots = made(3)
    runs = Runs(slots)
    async with slots.pack(PROCESS, 1000, 0, LARGE):
        runs.start(LARGE)
        runs.start(LARGE)
        await settle()
        async with slots.pack(PROCESS, 1000, 0, LARGE) as second:
            assert second is None
        assert slots.room() == 0
    await runs.end()


# All together.


sizes = st.lists(st.tuples(st.sampled_from([NO_NEEDS, SMALL, LARGE, GPU]), st.integers(0, 60), st.booleans()), max_size=40)


@settings(derandomize=True, deadline=None, database=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(sizes)
def test_nothing_is_lost_whatever_comes_and_goes(steps: list[tuple[Resources, int, bool]]) -> None:
    """In the end all slots and all of the hardware are free, and whatever was not cancelled has run."""

    async def scenario() -> None:
        slots = made(2, Hardware(cpus=1, memory_bytes=100, devices=("0",)))
        runs = Runs(slots)
        for needs, number, cancels in steps:
            runs.start(needs)
            if number < len(runs.tasks):
                runs.tasks[number].cancel() if cancels else runs.ends[number].set()
            if number % 2:
                await asyncio.sleep(0)
        await runs.end()
        assert all(task.cancelled() or number in runs.began for number, task in enumerate(runs.tasks))
        assert not slots.busy
        assert slots.room() == 2
        async with slots.take(PROCESS, Resources(1, 1, 100)) as share:
            assert share == Share(1, 100, ("0",))

    asyncio.run(scenario())


async def test_room_never_exceeds_a_receive_with_gates() -> None:
    """Whatever the sizes."""
    assert made(500).room() == MAX_RECEIVE


@pytest.mark.parametrize(("needs", "width"), [(NO_NEEDS, 4), (LARGE, 1), (SMALL, 4), (Resources(memory_bytes=40), 2)])
def test_width_is_what_slots_and_gate_allow(needs: Resources, width: int) -> None:
    """The lesser of both."""
    assert made().width(PROCESS, needs) == width
