"""The gate deals out no more than there is, keeps the order of arrival among those that want the same, and forgets nobody."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.message import NO_NEEDS, Call, Pool, Resources
from ai4s.jobq.worker.devices import Hardware
from ai4s.jobq.worker.gates import Gate, Share

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
CPUS, MEMORY, DEVICES, CALLS_PER_GPU = 4, 100, ("a", "b", "c"), 2
HARDWARE = Hardware(cpus=CPUS, memory_bytes=MEMORY, devices=DEVICES, calls_per_gpu=CALLS_PER_GPU)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Runs:
    """Calls that take their share, note it, and hold it until they are told."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.needs: list[Resources] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.ends: list[asyncio.Event] = []
        self.held: dict[int, Share] = {}
        self.began: list[int] = []

    def start(self, needs: Resources) -> int:
        """One more call; returns its number."""
        self.needs.append(needs)
        self.ends.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._run(len(self.tasks))))
        return len(self.tasks) - 1

    async def _run(self, number: int) -> None:
        share = await self.gate.take(self.needs[number])
        self.began.append(number)
        self.held[number] = share
        try:
            await self.ends[number].wait()
        finally:
            del self.held[number]
            self.gate.give(share)

    async def end(self) -> None:
        """Let all end."""
        for event in self.ends:
            event.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def mib(number: int) -> Resources:
    """Needs of memory alone."""
    return Resources(memory_bytes=number)


async def test_what_declares_nothing_passes() -> None:
    """Also while others wait."""
    runs = Runs(Gate(HARDWARE))
    runs.start(mib(100))
    runs.start(mib(100))
    await settle()
    for _ in range(10):
        runs.start(NO_NEEDS)
    await settle()
    assert runs.began == [0, *range(2, 12)]
    await runs.end()


async def test_small_ones_do_not_overtake_a_large_one_for_ever() -> None:
    """Who wants something of the same waits behind it, though there would be enough for it now; who wants other things does not."""
    runs = Runs(Gate(HARDWARE))
    first, large = runs.start(mib(40)), runs.start(mib(100))
    await settle()
    small, other = runs.start(mib(1)), runs.start(Resources(cpus=1))
    await settle()
    assert runs.began == [first, other]
    runs.ends[first].set()
    await settle()
    assert runs.began == [first, other, large]
    runs.ends[large].set()
    await settle()
    assert runs.began[-1] == small
    await runs.end()


async def test_who_gives_up_lets_those_behind_it_pass() -> None:
    """A large call that was cancelled while it waited holds nobody up."""
    runs = Runs(Gate(HARDWARE))
    runs.start(mib(40))
    large = runs.start(mib(100))
    small = runs.start(mib(1))
    await settle()
    runs.tasks[large].cancel()
    await settle()
    assert runs.began == [0, small]
    assert runs.gate.waiting == 0
    await runs.end()


async def test_a_share_that_comes_too_late_goes_on() -> None:
    """A call that is cancelled at the moment in which its turn comes gives its share back."""
    gate = Gate(HARDWARE)
    first = await gate.take(mib(100))
    second, third = (asyncio.create_task(gate.take(mib(100))) for _ in range(2))
    await settle()
    gate.give(first)
    second.cancel()
    await settle()
    assert second.cancelled()
    assert third.result() == Share(memory_bytes=100, devices=())


async def test_one_device_each_and_whole_ones_for_who_wants_several() -> None:
    """Calls spread over devices; several of them are had without any neighbour."""
    runs = Runs(Gate(HARDWARE))
    singles = [runs.start(Resources(gpus=1)) for _ in range(4)]
    await settle()
    assert Counter(runs.held[number].devices for number in singles) == {("a",): 2, ("b",): 1, ("c",): 1}
    pair = runs.start(Resources(gpus=2))
    await settle()
    assert pair not in runs.began
    for number in singles[1:3]:
        runs.ends[number].set()
    await settle()
    assert runs.held[pair].devices == ("b", "c")
    await runs.end()


async def test_devices_are_not_spoken_of_where_there_are_none() -> None:
    """None where the worker was not told of any; none of them where a call wants none."""
    assert (await Gate(Hardware()).take(NO_NEEDS)).devices is None
    assert (await Gate(HARDWARE).take(NO_NEEDS)).devices == ()


def test_a_process_has_a_device_unless_its_call_says_otherwise() -> None:
    """Where there are devices; event loops see all of them and hold none."""
    call = Call(id="x", task="f", queue="default", arguments=b"", sent=0)

    def needs(gate: Gate, pool: Pool, resources: Resources) -> Resources:
        return gate.needs(Call("x", "f", "default", b"", 0, pool=pool, resources=resources))

    assert Gate(HARDWARE).needs(call) == Resources(gpus=1)
    assert needs(Gate(HARDWARE), Pool.PROCESS, Resources(gpus=0, cpus=2)) == Resources(gpus=0, cpus=2)
    assert needs(Gate(HARDWARE), Pool.PROCESS, Resources(cpus=2)) == Resources(gpus=1, cpus=2)
    assert needs(Gate(HARDWARE), Pool.ASYNC, NO_NEEDS) == NO_NEEDS
    assert Gate(Hardware()).needs(call) == NO_NEEDS


@pytest.mark.parametrize(
    ("needs", "width"),
    [
        (NO_NEEDS, 10),
        (Resources(gpus=1), 6),
        (Resources(gpus=2), 1),
        (Resources(cpus=2), 2),
        (mib(30), 3),
        (Resources(gpus=1, cpus=1, memory_bytes=1), 4),
        (mib(1000), 1),
    ],
)
def test_width_says_how_many_fit_side_by_side(needs: Resources, width: int) -> None:
    """Of ten, as many as what is scarcest allows; one of those that never fit, which are turned away before."""
    assert Gate(HARDWARE).width(needs, 10) == width


async def test_turning_away_ends_all_waiting() -> None:
    """What runs keeps its share."""
    runs = Runs(Gate(HARDWARE))
    for _ in range(3):
        runs.start(mib(100))
    await settle()
    runs.gate.turn_away(RuntimeError("no more"))
    await settle()
    assert [task.done() for task in runs.tasks] == [False, True, True]
    assert runs.gate.waiting == 0
    await runs.end()
    assert runs.gate.is_open(mib(100))


needs = st.builds(
    Resources,
    gpus=st.none() | st.integers(0, 3),
    cpus=st.none() | st.integers(1, CPUS),
    memory_bytes=st.none() | st.integers(1, MEMORY),
)
steps = st.lists(st.tuples(st.sampled_from(["start", "start", "end", "cancel"]), needs, st.integers(0, 30)), max_size=40)


@SAME_EACH_TIME
@given(steps)
def test_whatever_comes_and_goes(done: list[tuple[str, Resources, int]]) -> None:
    """Never more than there is, first come first served among those that want the same, and nobody waits for what is free."""
    asyncio.run(come_and_go(done))


async def come_and_go(done: list[tuple[str, Resources, int]]) -> None:
    """Do these steps and look after each."""
    runs = Runs(Gate(HARDWARE))
    for what, wanted, which in done:
        if what == "start":
            runs.start(wanted)
        elif runs.tasks and what == "end":
            runs.ends[which % len(runs.tasks)].set()
        elif runs.tasks:
            runs.tasks[which % len(runs.tasks)].cancel()
        if which % 3:  # else the next step comes before this one has had its effect
            await settle()
            check(runs)
    await settle()
    check(runs)
    await runs.end()
    assert runs.gate.waiting == 0
    everything = Resources(len(DEVICES), CPUS, MEMORY)
    assert (await runs.gate.take(everything)).devices == DEVICES


def check(runs: Runs) -> None:
    """What holds once nothing moves."""
    shares = list(runs.held.values())
    cpus, memory = sum(share.cpus or 0 for share in shares), sum(share.memory_bytes for share in shares)
    assert cpus <= CPUS
    assert memory <= MEMORY
    loads = Counter(device for share in shares for device in share.devices or ())
    for share in shares:
        devices = share.devices or ()
        assert all(loads[device] <= (1 if len(devices) > 1 else CALLS_PER_GPU) for device in devices)
    for number, share in runs.held.items():
        assert len(share.devices or ()) == (runs.needs[number].gpus or 0)
    waiting = [number for number, task in enumerate(runs.tasks) if not task.done() and number not in runs.began]
    assert runs.gate.waiting == len(waiting)
    for number in waiting:
        wanted = runs.needs[number]
        overtaken_by = [later for later in runs.began if later > number and kinds(runs.needs[later]) & kinds(wanted)]
        assert not overtaken_by, (number, overtaken_by)
        in_front = [other for other in waiting if other < number and kinds(runs.needs[other]) & kinds(wanted)]
        whole = [device for device in DEVICES if not loads[device]]
        shared = [device for device in DEVICES if loads[device] < CALLS_PER_GPU and not is_whole(shares, device)]
        gpus = wanted.gpus or 0
        fits = (wanted.cpus or 0) <= CPUS - cpus and (wanted.memory_bytes or 0) <= MEMORY - memory
        fits = fits and gpus <= len(whole if gpus > 1 else shared)
        assert in_front or not fits, f"{number} waits for what is free"


def kinds(wanted: Resources) -> set[str]:
    """What is wanted some of."""
    return {name for name in ("gpus", "cpus", "memory_bytes") if getattr(wanted, name)}


def is_whole(shares: list[Share], device: str) -> bool:
    """Whether one call has this device and others for itself."""
    return any(device in (share.devices or ()) and len(share.devices or ()) > 1 for share in shares)
