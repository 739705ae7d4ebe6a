"""A worker follows what lies in `control/<queue>`: it pauses, ends, stops what was cancelled, and looks before it runs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from failure_points import CLIENT, QUEUE, TASK, opened

from ai4s.jobq import control, layout
from ai4s.jobq.errors import Unreachable
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.lifecycle import Cancelled
from ai4s.jobq.message import Call, Outcome, State
from ai4s.jobq.signing import Keyring
from ai4s.jobq.worker.interruptions import CANCEL, Interruptions
from ai4s.jobq.worker.orders import READ_SECONDS, Orders, Ways
from ai4s.jobq.worker.poller import Line
from ai4s.jobq.worker.shutdown import Shutdown, Why

CALL = Call(id=layout.call_id(CLIENT, 7), task=TASK, queue=QUEUE, arguments=b"", sent=1.0)
NUMBERS = itertools.count()


@dataclass
class Follower:
    """A worker that does nothing but follow; its queues are `default`, twice, and `gpu`."""

    ledger: Ledger
    lines: list[Line]
    interruptions: Interruptions
    shutdown: Shutdown
    orders: Orders

    @classmethod
    async def start(cls, ledger: Ledger) -> Follower:
        """One that has read its orders once."""
        lines = [Line(name, await ledger.queue(name)) for name in (QUEUE, "gpu", QUEUE)]
        interruptions, shutdown = Interruptions(), Shutdown(5)
        follower = cls(ledger, lines, interruptions, shutdown, Orders(ledger, lines, ways=Ways(interruptions, shutdown)))
        await follower.orders.read()
        return follower

    @property
    def paused(self) -> list[bool]:
        """Which of its lines are paused."""
        return [line.paused for line in self.lines]


@asynccontextmanager
async def a_ledger(folder: Path) -> AsyncIterator[Ledger]:
    """An app on a folder."""
    async with opened(folder) as transport:
        yield Ledger(transport, "orders", Keyring())


async def test_every_line_of_a_paused_queue_is_paused(tmp_path: Path) -> None:
    """Also where a queue stands in several groups; other queues go on."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        assert follower.paused == [False, False, False]

        await control.pause(ledger, QUEUE)
        await follower.orders.read()
        assert follower.paused == [True, False, True]

        await control.resume(ledger, QUEUE)
        await follower.orders.read()
        assert follower.paused == [False, False, False]


async def test_a_worker_that_starts_finds_its_queue_paused(tmp_path: Path) -> None:
    """It begins nothing, since it reads before it fetches."""
    async with a_ledger(tmp_path) as ledger:
        await control.pause(ledger, "gpu")
        assert (await Follower.start(ledger)).paused == [False, True, False]


async def test_a_drain_ends_the_workers_that_were_there(tmp_path: Path) -> None:
    """With code 0 and without a deadline; one that starts later works, until the next drain."""
    async with a_ledger(tmp_path) as ledger:
        early = await Follower.start(ledger)
        await control.drain(ledger, QUEUE)
        late = await Follower.start(ledger)
        await asyncio.gather(early.orders.read(), late.orders.read())
        assert early.shutdown.ending.is_set()
        assert early.shutdown.why is Why.DONE
        assert early.shutdown._timers == []
        assert not late.shutdown.draining.is_set()

        await control.drain(ledger, QUEUE)
        await late.orders.read()
        assert late.shutdown.ending.is_set()


async def test_a_drained_worker_still_hurries_when_its_machine_goes(tmp_path: Path) -> None:
    """SIGTERM means what it always means."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        await control.drain(ledger, QUEUE)
        await follower.orders.read()
        follower.shutdown.signalled("SIGTERM", Why.PREEMPTED)
        assert len(follower.shutdown._timers) == 2
        assert follower.shutdown.why is Why.PREEMPTED
        follower.shutdown._stop_timers()


async def test_a_cancelled_run_is_stopped_whenever_it_begins(tmp_path: Path) -> None:
    """Before the order is read, or just after; other runs go on."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        with follower.interruptions.watched(CALL) as running, follower.interruptions.watched(replace(CALL, run=2)) as other:
            await control.tell_cancelled(ledger, QUEUE, layout.run_id(CALL.id, 1))
            await follower.orders.read()
            assert running.result() is CANCEL
            assert isinstance(CANCEL.ending, Cancelled)
            assert not other.done()
        with follower.interruptions.watched(CALL) as begun_late:
            await follower.orders.read()
            assert begun_late.result() is CANCEL


async def test_calls_sent_before_a_cancel_are_worth_a_look(tmp_path: Path) -> None:
    """Those of the same queue, even if the sender's idea of the time was a second ahead."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        now = await ledger.transport.server_time()
        sent = replace(CALL, sent=now + 1)
        assert not follower.orders.may_be_cancelled(sent)

        await control.tell_cancelled(ledger, QUEUE, "another.r1")
        await follower.orders.read()
        assert follower.orders.may_be_cancelled(sent)
        assert not follower.orders.may_be_cancelled(replace(CALL, sent=now + 60))
        assert not follower.orders.may_be_cancelled(replace(sent, queue="gpu"))


async def test_what_was_known_stays_in_force_while_nothing_can_be_read(tmp_path: Path, monkeypatch: Any) -> None:
    """A paused queue does not begin to be served because of a fault, and what is cancelled is stopped all the same."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        await control.pause(ledger, QUEUE)
        await control.tell_cancelled(ledger, QUEUE, layout.run_id(CALL.id, 1))
        await follower.orders.read()

        async def unreachable(*args: object, **kwargs: object) -> None:
            raise Unreachable(maybe_done=False)

        monkeypatch.setattr(ledger, "control", unreachable)
        with follower.interruptions.watched(CALL) as running:
            await follower.orders.read()
            assert running.done()
        assert follower.paused == [True, False, True]


# More cancels than the list holds.


async def cancel(ledger: Ledger, call: Call) -> None:
    """As `Handle.cancel` does."""
    await ledger.commit(Outcome(call=call.id, run=call.run, state=State.CANCELLED, token="a" * 16))
    await control.tell_cancelled(ledger, call.queue, layout.run_id(call.id, call.run))


async def cancel_others(ledger: Ledger, number: int) -> None:
    """So many calls, which run nowhere."""
    for _ in range(number):
        await control.tell_cancelled(ledger, QUEUE, f"another-{next(NUMBERS)}.r1")


def looks(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls whose outcomes are read from now on."""
    asked: list[str] = []
    real = ledger.outcome

    async def outcome(call: str, run: int) -> Outcome | None:
        asked.append(call)
        return await real(call, run)

    monkeypatch.setattr(ledger, "outcome", outcome)
    return asked


@pytest.fixture
def short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cancelled runs are listed."""
    monkeypatch.setattr(control, "MOST_REMEMBERED", 3)


@pytest.mark.usefixtures("short_list")
async def test_a_cancelled_run_is_stopped_though_many_others_pushed_it_off_the_list(tmp_path: Path) -> None:
    """Between two reads; what was not cancelled goes on."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        with follower.interruptions.watched(CALL) as running, follower.interruptions.watched(replace(CALL, run=2)) as other:
            await follower.orders.read()
            await cancel(ledger, CALL)
            await cancel_others(ledger, 3)
            await follower.orders.read()
            assert running.result() is CANCEL
            assert not other.done()


@pytest.mark.usefixtures("short_list")
async def test_a_cancelled_and_forgotten_run_is_stopped_too(tmp_path: Path) -> None:
    """Its tombstone says that it has ended."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        with follower.interruptions.watched(CALL) as running:
            await cancel(ledger, CALL)
            await ledger.forget(CALL.id, CALL.run)
            await cancel_others(ledger, 3)
            await follower.orders.read()
            assert running.result() is CANCEL


@pytest.mark.usefixtures("short_list")
async def test_an_attempt_that_begins_after_its_run_left_the_list_is_stopped(tmp_path: Path) -> None:
    """It was about to begin, and had looked already, when the run was cancelled; and no read found more than the list holds."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        await cancel(ledger, CALL)
        for _ in range(2):
            await follower.orders.read()
            await cancel_others(ledger, 2)
        with follower.interruptions.watched(CALL) as begun_late:
            await follower.orders.read()
            assert begun_late.result() is CANCEL


@pytest.mark.usefixtures("short_list")
async def test_outcomes_are_looked_at_only_where_a_cancel_may_have_been_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while the list shows all; then once each, and none of a call that was sent later, or of another queue."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        asked = looks(ledger, monkeypatch)
        later = replace(CALL, id=layout.call_id(CLIENT, 8), sent=await ledger.transport.server_time() + 60)
        elsewhere = replace(CALL, id=layout.call_id(CLIENT, 9), queue="gpu")
        watched = follower.interruptions.watched
        with watched(CALL), watched(later), watched(elsewhere):
            for _ in range(4):
                await cancel_others(ledger, 1)
                await follower.orders.read()
            assert asked == []

            await cancel_others(ledger, 4)
            for _ in range(2):
                await follower.orders.read()
            assert asked == [CALL.id]


@pytest.mark.usefixtures("short_list")
async def test_a_look_that_failed_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next read, though nothing else was cancelled meanwhile."""
    async with a_ledger(tmp_path) as ledger:
        follower = await Follower.start(ledger)
        real = ledger.outcome

        async def unreachable(*args: object) -> None:
            raise Unreachable(maybe_done=False)

        with follower.interruptions.watched(CALL) as running:
            await cancel(ledger, CALL)
            await cancel_others(ledger, 3)
            monkeypatch.setattr(ledger, "outcome", unreachable)
            await follower.orders.read()
            assert not running.done()

            monkeypatch.setattr(ledger, "outcome", real)
            await follower.orders.read()
            assert running.result() is CANCEL


async def test_orders_that_cannot_be_read_at_the_start_end_nobody(tmp_path: Path, monkeypatch: Any) -> None:
    """A drain of long ago, which is read later, is none of this worker's."""
    async with a_ledger(tmp_path) as ledger:
        await control.drain(ledger, QUEUE)
        real = ledger.control

        async def unreachable(*args: object, **kwargs: object) -> None:
            raise Unreachable(maybe_done=False)

        monkeypatch.setattr(ledger, "control", unreachable)
        follower = await Follower.start(ledger)
        monkeypatch.setattr(ledger, "control", real)
        await follower.orders.read()
        assert not follower.shutdown.draining.is_set()


def test_a_cancelled_process_has_ended_within_ten_seconds() -> None:
    """Even one that does not heed SIGTERM, with time left for the read itself."""
    assert READ_SECONDS + CANCEL.grace_seconds < 10
