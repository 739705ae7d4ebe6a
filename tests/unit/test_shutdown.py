"""How a worker's end begins, becomes shorter, and is called off. Times are made up: a loop whose clock the test moves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from ai4s.jobq.message import Pool
from ai4s.jobq.worker import shutdown as subject
from ai4s.jobq.worker.current_calls import CurrentCalls
from ai4s.jobq.worker.jobs import ChildSetup
from ai4s.jobq.worker.runtime import Plan, Worker
from ai4s.jobq.worker.shutdown import LEAVING_SECONDS, Shutdown, Why, unless
from ai4s.jobq.worker.slots import Slots

GRACE, PATIENCE = 100.0, 120.0
Play = Callable[[Callable[["Stage"], Coroutine[Any, Any, None]]], None]


class Stage:
    """A shutdown, and a clock that jumps to the next timer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.ended: list[float] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(subject, "boottime", lambda: self.now)
        self.shutdown = Shutdown(GRACE, at_last=lambda: self.ended.append(self.now), patience_seconds=PATIENCE)

    async def pass_seconds(self, seconds: float) -> None:
        """Let time pass, in steps of a tenth of a second."""
        until = self.now + seconds
        while self.now < until - 1e-6:
            self.now = round(self.now + 0.1, 3)
            for _ in range(3):
                await asyncio.sleep(0)

    async def seconds_until(self, event: asyncio.Event, within: float = 200) -> float:
        """How long it takes until `event` is set."""
        began = self.now
        while not event.is_set():
            assert self.now < began + within, "it was never set"
            await self.pass_seconds(0.1)
        return self.now - began

    @property
    def state(self) -> str:
        """The steps that were taken: of draining, ending, leaving, over."""
        events = (self.shutdown.draining, self.shutdown.ending, self.shutdown.leaving, self.shutdown.over)
        return "".join(letter for letter, event in zip("delo", events, strict=True) if event.is_set())


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs a scene on a loop with a made-up clock."""

    def run(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            with monkeypatch.context() as patch:
                await scene(Stage(patch))

        asyncio.run(main())

    return run


def test_a_drain_leaves_before_the_grace_period_is_over(play: Play) -> None:
    """Most of it is for what runs, the last seconds for giving back, and at its end nobody is waited for."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.drain("told")
        assert (stage.state, stage.shutdown.why) == ("de", Why.DONE)
        assert await stage.seconds_until(stage.shutdown.leaving) == pytest.approx(GRACE - LEAVING_SECONDS, abs=0.2)
        assert await stage.seconds_until(stage.shutdown.over) == pytest.approx(LEAVING_SECONDS, abs=0.2)
        assert stage.ended == [stage.now]

    play(scene)


@pytest.mark.parametrize(
    ("seconds", "for_leaving", "whole"), [(60, 6, 60), (10, 3, 10), (4, 2.5, 4), (1, 2.5, 2.5), (-5, 2.5, 2.5)]
)
def test_a_short_time_keeps_enough_for_giving_back(play: Play, seconds: float, for_leaving: float, whole: float) -> None:
    """The less time there is, the larger the part that is kept; where there is none, it takes its time all the same."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", seconds)
        stage.shutdown.drain("told", Why.PREEMPTED)
        assert await stage.seconds_until(stage.shutdown.leaving) == pytest.approx(whole - for_leaving, abs=0.2)
        assert await stage.seconds_until(stage.shutdown.over) == pytest.approx(for_leaving, abs=0.2)
        assert (stage.state, stage.shutdown.why) == ("delo", Why.PREEMPTED)

    play(scene)


def test_a_notice_can_be_withdrawn(play: Play) -> None:
    """Draining ends, no timer is left, and a later notice begins anew."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", 30)
        assert stage.state == "d"
        turned = asyncio.create_task(stage.shutdown.until_turned())
        await stage.pass_seconds(10)
        assert not turned.done()
        stage.shutdown.withdraw("gone no more")
        await turned
        assert (stage.state, stage.shutdown.why) == ("", None)
        await stage.pass_seconds(100)
        assert stage.state == ""
        stage.shutdown.notice("gone", 30)
        assert await stage.seconds_until(stage.shutdown.leaving) == pytest.approx(24, abs=0.2)

    play(scene)


def test_a_notice_ends_in_waiting_for_the_machine_to_go(play: Play) -> None:
    """What runs is stopped in time, and then nothing happens by itself until long after the moment that was named."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", 30)
        turned = asyncio.create_task(stage.shutdown.until_turned())
        assert await stage.seconds_until(stage.shutdown.leaving) == pytest.approx(24, abs=0.2)
        await stage.pass_seconds(6 + PATIENCE - 1)
        assert (stage.state, stage.shutdown.why) == ("dl", Why.PREEMPTED)
        assert not turned.done()
        assert not stage.ended
        stage.shutdown.withdraw("not reached")
        await turned

    play(scene)


def test_a_worker_that_outlives_a_notice_goes_on(play: Play) -> None:
    """So long after the moment that it named; it is remembered, and the next one counts."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", 30, "event-1")
        for _ in range(20):
            await stage.pass_seconds(2)
            stage.shutdown.notice("gone", max(5.0, 30 - 2 * _), "event-1")
        began = stage.now
        while stage.shutdown.draining.is_set():
            await stage.pass_seconds(0.5)
            assert stage.now < began + 200
        assert stage.now - began == pytest.approx(30 + PATIENCE - 40, abs=1)
        assert (stage.state, stage.shutdown.why, stage.shutdown.outlived) == ("", None, {"event-1"})
        stage.shutdown.notice("gone", 30, "event-2")
        assert await stage.seconds_until(stage.shutdown.leaving) == pytest.approx(24, abs=0.2)

    play(scene)


def test_a_withdrawal_after_what_ran_was_stopped_lets_the_worker_go_on(play: Play) -> None:
    """The event is none that it has outlived: should it come back, it counts."""

    async def scene(stage: Stage) -> None:
        for _ in range(2):
            stage.shutdown.notice("gone", 30, "event-1")
            await stage.seconds_until(stage.shutdown.leaving)
            stage.shutdown.withdraw("gone no more")
            assert (stage.state, stage.shutdown.why, stage.shutdown.outlived) == ("", None, set())
            await stage.pass_seconds(2 * PATIENCE)
            assert stage.state == ""

    play(scene)


@pytest.mark.parametrize("why", [Why.PREEMPTED, Why.STOPPED])
@pytest.mark.parametrize("after", [1, 20])
def test_a_signal_to_a_worker_that_waits_for_its_machine_to_go_ends_it_at_once(play: Play, why: Why, after: float) -> None:
    """As one that was preempted, whatever the signal is: what it has given back is there for the next one."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", 30)
        turned = asyncio.create_task(stage.shutdown.until_turned())
        await stage.seconds_until(stage.shutdown.leaving)
        await stage.pass_seconds(after)
        stage.shutdown.signalled("SIG", why)
        await turned
        assert (stage.state, stage.shutdown.why) == ("del", Why.PREEMPTED)
        stage.shutdown.withdraw("gone no more")
        assert stage.state == "del"
        assert await stage.seconds_until(stage.shutdown.over) <= LEAVING_SECONDS
        assert len(stage.ended) == 1

    play(scene)


def test_a_drained_worker_that_gets_a_notice_is_gone_before_its_machine(play: Play) -> None:
    """It has no reason to wait for anything when what it runs has ended."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", 30)
        stage.shutdown.finish("drained")
        assert stage.state == "de"
        assert await stage.seconds_until(stage.shutdown.leaving) == pytest.approx(24, abs=0.2)
        assert await stage.seconds_until(stage.shutdown.over) == pytest.approx(6, abs=0.2)

    play(scene)


def test_a_withdrawal_without_a_notice_changes_nothing(play: Play) -> None:
    """Neither for a worker that works, nor for one that ends for another reason."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.withdraw("gone no more")
        assert stage.state == ""
        stage.shutdown.signalled("SIGTERM", Why.PREEMPTED)
        stage.shutdown.withdraw("gone no more")
        assert stage.state == "de"
        assert await stage.seconds_until(stage.shutdown.over) == pytest.approx(GRACE, abs=0.2)

    play(scene)


@pytest.mark.parametrize(("left", "seconds"), [(30, 30), (GRACE * 3, GRACE)])
def test_a_signal_after_a_notice_never_gives_more_time(play: Play, left: float, seconds: float) -> None:
    """The machine goes when it goes; the grace period bounds what is left of it."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", left)
        stage.shutdown.signalled("SIGTERM", Why.PREEMPTED)
        stage.shutdown.withdraw("gone no more")
        assert stage.state == "de"
        assert await stage.seconds_until(stage.shutdown.over) == pytest.approx(seconds, abs=0.2)

    play(scene)


def test_a_notice_after_a_signal_leaves_less_time(play: Play) -> None:
    """A worker that has its grace period still goes before the machine does."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.signalled("SIGINT", Why.STOPPED)
        stage.shutdown.notice("gone", 20)
        assert stage.shutdown.why is Why.STOPPED
        assert await stage.seconds_until(stage.shutdown.over) == pytest.approx(20, abs=0.2)

    play(scene)


def test_a_notice_that_is_repeated_changes_nothing_unless_it_is_sooner(play: Play) -> None:
    """It comes every second, and its time has whole seconds; one that is much sooner counts."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", 60)
        for left in (60.4, 59.5, 100):
            stage.shutdown.notice("gone", left)
        await stage.pass_seconds(30)
        assert stage.state == "d"
        stage.shutdown.notice("gone", 10)
        assert await stage.seconds_until(stage.shutdown.leaving) == pytest.approx(7, abs=0.2)

    play(scene)


def test_a_second_signal_leaves_at_once(play: Play) -> None:
    """It stops what runs, and some seconds later nobody is waited for; an echo of the first one does not."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.signalled("SIGTERM", Why.PREEMPTED)
        await stage.pass_seconds(0.2)
        stage.shutdown.signalled("SIGTERM", Why.PREEMPTED)
        assert stage.state == "de"
        await stage.pass_seconds(1)
        stage.shutdown.signalled("SIGINT", Why.STOPPED)
        assert (stage.state, stage.shutdown.why) == ("del", Why.PREEMPTED)
        assert await stage.seconds_until(stage.shutdown.over) == pytest.approx(LEAVING_SECONDS, abs=0.2)
        assert len(stage.ended) == 1
        await stage.pass_seconds(GRACE)
        assert len(stage.ended) == 1

    play(scene)


def test_the_first_signal_to_a_worker_that_ends_cuts_nothing_short(play: Play) -> None:
    """A cluster that signals when the time limit was just reached has asked once; the second time counts."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.drain("the limit", Why.PREEMPTED)
        await stage.pass_seconds(5)
        stage.shutdown.signalled("SIGTERM", Why.PREEMPTED)
        assert stage.state == "de"
        await stage.pass_seconds(1)
        stage.shutdown.signalled("SIGTERM", Why.PREEMPTED)
        assert stage.state == "del"

    play(scene)


@pytest.mark.parametrize("why", list(Why))
def test_the_first_reason_to_end_stays(play: Play, why: Why) -> None:
    """What ends a worker is said by whoever began; a notice, which may be withdrawn, gives way to it."""

    async def scene(stage: Stage) -> None:
        stage.shutdown.notice("gone", 30)
        stage.shutdown.drain("told", why)
        stage.shutdown.drain("told again", Why.DONE)
        assert stage.shutdown.why is why

    play(scene)


def test_work_is_cancelled_by_its_event_only() -> None:
    """`unless` gives what the work gave, raises what it raised, and None if the event came first, when the work has ended."""

    async def scene() -> None:
        event, ended = asyncio.Event(), []

        async def work(value: int | None) -> int:
            try:
                if value is None:
                    await asyncio.Event().wait()
                    raise AssertionError
                return 1 // value
            finally:
                ended.append(value)

        assert await unless(event, work(1)) == 1
        with pytest.raises(ZeroDivisionError):
            await unless(event, work(0))
        asyncio.get_running_loop().call_soon(event.set)
        assert await unless(event, work(None)) is None
        assert ended == [1, 0, None]

    asyncio.run(scene())


STUCK = """
import asyncio, sys, threading
from ai4s.jobq.worker.shutdown import exit_soon
async def main():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    await asyncio.sleep(0.1)
    exit_soon(75)
asyncio.run(main())
"""


def test_a_process_ends_although_a_thread_does_not() -> None:
    """A thread that looks up a name with no network holds up the end of the interpreter; not when it is over."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK], check=False, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "")
    assert time.monotonic() - began < 30


# The loop that takes work.


class SlowPoller:
    """A poller whose fetches end when they are told to, with nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Queue[asyncio.Event]()

    async def fetch(self, room: int) -> None:
        answered = asyncio.Event()
        self.asked.put_nowait(answered)
        await answered.wait()

    async def rest(self) -> None:
        await asyncio.sleep(0)


def slow_worker(poller: SlowPoller, shutdown: Shutdown, notices: list[bool]) -> Worker:
    """A worker of one slot that has nothing to run."""
    slots = Slots(dict.fromkeys(Pool, 1), {Pool.PROCESS})
    counts = SimpleNamespace(refused={}, hindered=0)
    tell = SimpleNamespace(tell=lambda notice: notices.append(notice.preempted))
    workshop = SimpleNamespace(slots=slots, executors=tell, counts=counts, current=CurrentCalls())
    attempts = SimpleNamespace(counts=counts)
    plan = Plan(ChildSetup("w"), queues=(), concurrency=1, async_concurrency=1)
    return Worker(plan, poller, attempts, workshop=workshop, shutdown=shutdown)  # type: ignore[arg-type]


async def test_a_notice_that_is_withdrawn_during_a_fetch_leaves_nothing_closed() -> None:
    """The fetch that was under way ends, and the worker takes work again with its slots open."""
    shutdown, poller, notices = Shutdown(GRACE), SlowPoller(), list[bool]()
    worker = slow_worker(poller, shutdown, notices)
    working = asyncio.create_task(worker.work())
    first = await poller.asked.get()
    shutdown.notice("gone", 60)
    for _ in range(5):
        await asyncio.sleep(0)
    assert notices == [True]
    shutdown.withdraw("gone no more")
    first.set()
    second = await asyncio.wait_for(poller.asked.get(), 30)
    assert notices == [True, False]
    async with worker._slots.take(Pool.PROCESS):
        pass
    shutdown.drain("told")
    second.set()
    await asyncio.wait_for(working, 30)
    assert notices == [True, False, True, True]


async def test_a_fetch_that_is_not_answered_is_given_up_when_it_is_over() -> None:
    """Not before: what it may have brought would be hidden from others until its leases end."""
    shutdown, poller = Shutdown(GRACE), SlowPoller()
    working = asyncio.create_task(slow_worker(poller, shutdown, []).work())
    await poller.asked.get()
    shutdown.drain("told")
    shutdown.leaving.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not working.done()
    shutdown.over.set()
    await asyncio.wait_for(working, 30)
