"""Slots are handed over in order and never lost; room says how much to fetch, and whatever makes room wakes who waits for it."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.message import Pool
from ai4s.jobq.transports.base import MAX_RECEIVE
from ai4s.jobq.worker.slots import MAX_AHEAD, Closed, Slots

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)


def made(process: int = 2, thread: int = 2, async_: int = 200, in_play: set[Pool] | None = None) -> Slots:
    """Slots of these sizes; only plain functions are in play unless told otherwise."""
    return Slots({Pool.PROCESS: process, Pool.THREAD: thread, Pool.ASYNC: async_}, in_play or set())


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Runs:
    """Attempts that take a slot, note that they have it, and hold it until they are told."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.began: list[int] = []
        self.most = 0
        self.ends = [asyncio.Event() for _ in range(1000)]
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, pool: Pool = Pool.PROCESS) -> asyncio.Task[None]:
        """One more attempt."""
        self.tasks.append(asyncio.create_task(self._run(len(self.tasks), pool)))
        return self.tasks[-1]

    async def _run(self, number: int, pool: Pool) -> None:
        async with self.slots.take(pool):
            self.began.append(number)
            self.most = max(self.most, self.slots.running)
            await self.ends[number].wait()

    async def end(self) -> None:
        """Let all attempts end."""
        for event in self.ends:
            event.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


# Taking.


async def test_no_more_run_than_there_are_slots() -> None:
    """The rest waits, and begins in the order in which it came."""
    runs = Runs(made(process=2))
    for _ in range(6):
        runs.start()
    await settle()
    assert runs.began == [0, 1]
    runs.ends[1].set()
    await settle()
    assert runs.began == [0, 1, 2]
    await runs.end()
    assert runs.began == [0, 1, 2, 3, 4, 5]
    assert runs.most == 2
    assert runs.slots.running == 0
    assert not runs.slots.busy


async def test_nobody_overtakes_who_waits() -> None:
    """A slot that becomes free goes to who waits longest, not to who asks at that moment."""
    slots = made(process=1)
    runs = Runs(slots)
    first = runs.start()
    runs.start()
    await settle()
    runs.ends[0].set()
    await first
    runs.start()
    await settle()
    assert runs.began == [0, 1]
    await runs.end()


async def test_pools_do_not_take_each_others_slots() -> None:
    """A full pool keeps nobody of another from running."""
    runs = Runs(made(process=1, thread=1))
    for pool in (Pool.PROCESS, Pool.PROCESS, Pool.THREAD, Pool.ASYNC):
        runs.start(pool)
    await settle()
    assert runs.began == [0, 2, 3]
    await runs.end()


async def test_a_failing_attempt_gives_its_slot_back() -> None:
    """Whatever ends an attempt, its slot is free afterwards."""
    slots = made(process=1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with slots.take(Pool.PROCESS):
                raise RuntimeError
    assert slots.running == 0
    assert slots.room() == 1


async def test_who_stops_waiting_is_passed_over() -> None:
    """A waiter that was cancelled gets no slot, and keeps none from others."""
    runs = Runs(made(process=1))
    for _ in range(3):
        runs.start()
    await settle()
    runs.tasks[1].cancel()
    await settle()
    runs.ends[0].set()
    await settle()
    assert runs.began == [0, 2]
    await runs.end()
    assert runs.slots.running == 0


async def test_a_slot_given_to_someone_who_just_left_goes_to_the_next() -> None:
    """Cancelled after the slot was handed over and before it could begin, it passes the slot on."""
    slots = made(process=1)
    runs = Runs(slots)
    async with slots.take(Pool.PROCESS):
        runs.start()
        runs.start()
        await settle()
    # Nothing else has run since the slot was given to the first of them.
    runs.tasks[0].cancel()
    await settle()
    assert runs.began == [1]
    await runs.end()
    assert slots.running == 0


@SAME_EACH_TIME
@given(st.lists(st.tuples(st.sampled_from(["start", "cancel", "end", "turn"]), st.integers(0, 30)), max_size=60))
def test_no_slot_is_lost_or_made(steps: list[tuple[str, int]]) -> None:
    """Whatever comes, ends or leaves: never too many run, nobody waits beside a free slot, and in the end all are free."""

    async def scenario() -> None:
        slots = made(process=3)
        runs = Runs(slots)
        for step, number in steps:
            if step == "start":
                runs.start()
            elif step == "cancel" and number < len(runs.tasks):
                runs.tasks[number].cancel()
            elif step == "end":
                runs.ends[number].set()
            else:
                await asyncio.sleep(0)
        await settle()
        assert runs.most <= 3
        waiting = [task for number, task in enumerate(runs.tasks) if not task.done() and number not in runs.began]
        assert not waiting or slots.running == 3
        await runs.end()
        assert slots.running == 0
        assert not slots.busy
        assert slots.room() == 3

    asyncio.run(scenario())


# Closing.


async def test_closing_sends_back_who_waits_and_who_comes() -> None:
    """What has not begun never will; what runs goes on."""
    slots = made(process=1)
    runs = Runs(slots)
    for _ in range(3):
        runs.start()
    await settle()
    slots.close()
    runs.start()
    await settle()
    assert [type(task.exception()) for task in runs.tasks[1:]] == [Closed] * 3
    assert not runs.tasks[0].done()
    assert slots.running == 1
    await runs.end()
    assert runs.tasks[0].exception() is None
    assert not slots.busy


# Room.


async def test_room_is_what_is_free_while_nothing_is_known() -> None:
    """Before the first call ended, nothing is fetched ahead."""
    slots = made(process=4)
    assert slots.room() == 4
    async with slots.take(Pool.PROCESS):
        assert slots.room() == 3
        with slots.arriving(), slots.arriving():
            assert slots.room() == 1
    assert slots.room() == 4


@pytest.mark.parametrize(
    ("seconds", "ahead"),
    [(600.0, 0), (4.1, 0), (2.0, 2), (1.0, 4), (0.5, 8), (0.02, MAX_AHEAD), (1e-9, MAX_AHEAD), (0.0, MAX_AHEAD)],
)
async def test_short_calls_are_fetched_ahead(seconds: float, ahead: int) -> None:
    """About a second's worth, at most 64; none where calls take minutes."""
    slots = made(process=4)
    slots.took(Pool.PROCESS, seconds)
    assert slots.room() == min(MAX_RECEIVE, 4 + ahead)


async def test_a_change_of_pace_is_followed() -> None:
    """When calls become long, fetching ahead ends after a few of them."""
    slots = made(process=4)
    for _ in range(50):
        slots.took(Pool.PROCESS, 0.01)
    assert slots.room() == MAX_RECEIVE
    for _ in range(3):
        slots.took(Pool.PROCESS, 60.0)
    assert slots.room() == 4


async def test_who_waits_here_takes_room() -> None:
    """Messages that were fetched ahead count until they run."""
    slots = made(process=1)
    slots.took(Pool.PROCESS, 0.1)
    runs = Runs(slots)
    for _ in range(5):
        runs.start()
    await settle()
    assert slots.room() == 1 + 10 - 5
    await runs.end()


async def test_little_room_is_not_worth_a_request() -> None:
    """While calls wait here, no more are fetched until half of what is held ahead is worked off."""
    slots = made(process=2)
    slots.took(Pool.PROCESS, 0.001)
    runs = Runs(slots)
    for _ in range(2 + MAX_AHEAD):
        runs.start()
    await settle()
    rooms = []
    for event in runs.ends[: 2 + MAX_AHEAD]:
        event.set()
        await settle()
        rooms.append(slots.room())
    assert rooms[: MAX_AHEAD // 2] == [0] * (MAX_AHEAD // 2 - 1) + [MAX_RECEIVE]
    assert set(rooms[MAX_AHEAD // 2 :]) == {MAX_RECEIVE}
    await runs.end()


async def test_room_is_that_of_the_pools_in_play() -> None:
    """Two hundred idle coroutine slots are no room until a coroutine task is known."""
    slots = made(process=2)
    assert (slots.room(), slots.total) == (2, 2)
    assert slots.welcome(Pool.ASYNC)
    assert (slots.room(), slots.total) == (MAX_RECEIVE, 202)


async def test_room_is_never_negative_or_more_than_one_receive_brings() -> None:
    """Between 0 and 32."""
    slots = made(process=500)
    assert slots.room() == MAX_RECEIVE
    few = made(process=1)
    with few.arriving(), few.arriving(), few.arriving():
        assert few.room() == 0


async def test_a_call_is_welcome_while_its_pool_has_room() -> None:
    """Fetched for another pool's room, a call of a full pool goes back to other workers."""
    slots = made(process=1, in_play={Pool.ASYNC})
    runs = Runs(slots)
    assert slots.welcome(Pool.PROCESS)
    runs.start()
    runs.start()
    await settle()
    assert not slots.welcome(Pool.PROCESS)
    assert slots.welcome(Pool.ASYNC)
    await runs.end()
    assert slots.welcome(Pool.PROCESS)


# Crowding: a queue that holds calls for a full pool as well.


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Crowded:
    """A full pool of plain functions beside an empty one of coroutines, and a call for the full one that had to go back."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.slots = Slots({Pool.PROCESS: 1, Pool.THREAD: 1, Pool.ASYNC: 200}, {Pool.ASYNC}, self.clock)
        self.runs = Runs(self.slots)

    async def fill(self) -> None:
        """Fill the pool, and one more."""
        self.runs.start()
        self.runs.start()
        await settle()

    def turn_away(self) -> None:
        """One more call for the full pool comes along."""
        assert not self.slots.welcome(Pool.PROCESS)

    def pause_seconds(self) -> float:
        """How long nothing is fetched from now on."""
        start = self.clock.now
        while self.slots.room() == 0:
            self.clock.now += 0.01
            assert self.clock.now < start + 60
        return self.clock.now - start


async def test_a_crowded_queue_is_only_probed() -> None:
    """After calls for a full pool had to go back, a few messages are fetched from time to time, ever more rarely."""
    here = Crowded()
    await here.fill()
    assert here.slots.room() == MAX_RECEIVE
    pauses = []
    for _ in range(8):
        here.turn_away()
        pauses.append(here.pause_seconds())
        assert 0 < here.slots.room() < MAX_RECEIVE / 2
    assert pauses[0] < 0.5
    assert all(later >= earlier for earlier, later in itertools.pairwise(pauses))
    assert 4 < pauses[-1] < 6
    await here.runs.end()


async def test_several_calls_of_one_fetch_crowd_once() -> None:
    """What came along with one receive lengthens the pause once, not for each call."""
    here = Crowded()
    await here.fill()
    for _ in range(30):
        here.turn_away()
    assert here.pause_seconds() < 0.5
    await here.runs.end()


async def test_a_queue_that_has_been_calm_is_fetched_from_as_before() -> None:
    """Half a minute without a call for the full pool ends the caution."""
    here = Crowded()
    await here.fill()
    here.turn_away()
    here.clock.now += 40
    assert here.slots.room() == MAX_RECEIVE
    here.turn_away()
    assert here.pause_seconds() < 0.5
    await here.runs.end()


async def test_a_pool_that_was_full_and_has_room_is_fetched_for() -> None:
    """As many as the tightest pool can take cannot crowd it."""
    here = Crowded()
    await here.fill()
    here.turn_away()
    assert here.slots.room() == 0
    await here.runs.end()
    assert here.slots.room() == 1


async def test_who_waits_for_room_wakes_for_a_probe() -> None:
    """A worker whose every slot but the full pool's is free does not sleep until one of its long calls ends."""
    slots = made(process=1, in_play={Pool.ASYNC})
    runs = Runs(slots)
    runs.start()
    runs.start()
    await settle()
    assert not slots.welcome(Pool.PROCESS)
    assert slots.room() == 0
    async with asyncio.timeout(10):
        await slots.until_room()
    assert slots.room() > 0
    await runs.end()


# Waiting for room.


async def waiting_for_room(slots: Slots) -> asyncio.Task[None]:
    """Somebody who waits for room and has not got any."""
    waiting = asyncio.create_task(slots.until_room())
    await settle()
    assert not waiting.done()
    return waiting


async def test_room_that_is_there_is_not_waited_for() -> None:
    """Not even for a moment."""
    async with asyncio.timeout(2):
        await made().until_room()


async def test_the_end_of_an_attempt_makes_room() -> None:
    """Whoever waits for room is woken when a slot is given back."""
    slots = made(process=1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(slots.take(Pool.PROCESS))
        waiting = await waiting_for_room(slots)
        await stack.aclose()
        async with asyncio.timeout(2):
            await waiting


async def test_a_delivery_that_came_to_nothing_makes_room() -> None:
    """A message that was buried or put aside while it was read never takes a slot; its end wakes the fetcher as well."""
    slots = made(process=1)
    with slots.arriving():
        waiting = await waiting_for_room(slots)
    async with asyncio.timeout(2):
        await waiting


async def test_a_waiter_that_leaves_makes_room() -> None:
    """One that was waiting for a slot and was cancelled is room again."""
    slots = made(process=1)
    slots.took(Pool.PROCESS, 1.0)
    runs = Runs(slots)
    runs.start()
    runs.start()
    await settle()
    waiting = await waiting_for_room(slots)
    runs.tasks[1].cancel()
    async with asyncio.timeout(2):
        await waiting
    await runs.end()


async def test_a_new_pool_makes_room() -> None:
    """The first task of another pool brings its slots into play for who waits."""
    slots = made(process=1)
    async with slots.take(Pool.PROCESS):
        waiting = await waiting_for_room(slots)
        slots.welcome(Pool.ASYNC)
        async with asyncio.timeout(2):
            await waiting


async def test_a_call_that_turned_out_to_be_short_makes_room() -> None:
    """As soon as a first run time is known, more may be fetched, though the slot is not given back yet."""
    slots = made(process=1)
    async with slots.take(Pool.PROCESS):
        waiting = await waiting_for_room(slots)
        slots.took(Pool.PROCESS, 0.01)
        async with asyncio.timeout(2):
            await waiting


async def test_busy_is_who_runs_waits_or_arrives() -> None:
    """A worker is done only when none of its deliveries is at hand."""
    slots = made(process=1)
    assert not slots.busy
    with slots.arriving():
        assert slots.busy
    runs = Runs(slots)
    runs.start()
    await settle()
    assert slots.busy
    await runs.end()
    assert not slots.busy
