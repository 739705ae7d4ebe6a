"""A pack's delivery, with what can go wrong at every request of it."""

from __future__ import annotations

import asyncio
import logging
import zlib
from pathlib import Path

import pytest
from failure_points import Fault, Numbered
from pack_machine import quiet
from pack_scenarios import SCENARIOS, SOON, Scenario, failures, killing, life, slowly
from pack_world import CALL, Doing, PackWorker, PackWorld, Result, drain, play, raises, returns
from virtual_time import virtual_clocks

from ai4s.jobq.lifecycle import Preempted
from ai4s.jobq.message import Cause, EntryHead
from ai4s.jobq.packing import Code, Packed, entry_bytes


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_call_ends_once_whatever_happens_at_a_request(tmp_path: Path, name: str) -> None:
    """A fault at each request in turn, and after a death another one soon: calls end once, as they should, and uncharged."""
    scenario = SCENARIOS[name]
    whole, asked = life(tmp_path, scenario, {})
    assert len(whole.ran) == scenario.executions
    assert failures(whole) == scenario.failed
    for at in range(len(asked)):
        for fault in Fault:
            world, again = life(tmp_path, scenario, {at: fault})
            assert failures(world) == scenario.failed, f"{fault} at {at}, {asked[at]}"
            last = min(at + SOON, len(again) - 1) if fault is Fault.CRASH_AFTER else at
            for second in range(at + 1, last + 1):
                life(tmp_path, scenario, {at: fault, second: Fault.CRASH_AFTER})


@pytest.mark.parametrize("count", [1, 6, 200])
def test_only_the_call_that_kills_workers_is_charged(tmp_path: Path, count: int) -> None:
    """A call that takes its whole worker with it ends as died, in few deliveries, and its siblings are not charged."""
    culprit = count // 2
    world, _ = life(tmp_path, Scenario(count, killing(culprit), 0), {})
    assert failures(world) == {culprit}
    assert world.outcome_of(culprit).failure.cause is Cause.DIED
    assert world.outcome_of(culprit).attempts == CALL.max_deaths
    assert world.crashes <= 3 + CALL.max_deaths
    assert {world.outcome_of(index).attempts for index in range(count) if index != culprit} <= {1}


def test_a_preempted_call_is_charged_and_its_siblings_are_not(tmp_path: Path) -> None:
    """What ran when the worker had to go counts a preemption; what waited counts nothing."""

    async def doing(worker: PackWorker, index: int, attempt: int) -> Result:
        return Preempted() if index == 3 and attempt == 1 else b""

    world, _ = life(tmp_path, Scenario(8, doing, 9), {})
    assert [world.outcome_of(index).attempts for index in range(8)] == [1, 1, 1, 2, 1, 1, 1, 1]


async def _unsent(world: PackWorld, doing: Doing) -> tuple[PackWorker, asyncio.Event]:
    """A worker that gives calls away, whose storage takes no message from now on, and that has lost its lease meanwhile."""
    points = Numbered()
    worker, sending = PackWorker(points, world, doing), asyncio.Event()
    reach = points.reach

    async def refuse(process: PackWorker, label: str) -> Fault | None:
        await reach(process, label)
        if label != "send":
            return None
        sending.set()
        worker.lead_seconds += 1000
        return Fault.NOT_DONE

    points.reach = refuse  # type: ignore[method-assign,assignment]
    return worker, sending


def test_a_pack_is_not_deleted_before_the_message_of_what_it_gave_away_is_out(tmp_path: Path) -> None:
    """The storage takes the entry and not the message, the lease runs out, all else is logged: the next delivery sends it."""

    async def work(world: PackWorld) -> None:
        await world.submit(4)
        worker, sending = await _unsent(world, slowly(5.0))
        await worker.live()
        assert sending.is_set()
        assert world.messages
        await drain(world, lambda: PackWorker(Numbered(), world, returns))

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        assert not failures(play(tmp_path, work))


def test_values_of_a_worker_that_lost_its_lease_count_and_failures_do_not(tmp_path: Path) -> None:
    """A worker comes back from standing still: what it returned is logged unless another has ended it, what it raised is not."""

    async def zombie(worker: PackWorker, index: int, attempt: int) -> Result:
        if index == 2:
            await worker.model.take_away()
            worker.lead_seconds += 1000
        return raises(retryable=False) if index == 1 else b""

    async def work(world: PackWorld) -> None:
        await world.submit(4)
        await PackWorker(Numbered(), world, zombie).live()
        assert (0, 1) in world.ended
        assert (1, 1) not in world.ended
        await drain(world, lambda: PackWorker(Numbered(), world, returns))

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        assert not failures(play(tmp_path, work))


def test_an_entry_that_cannot_be_read_ends_in_a_dead_letter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody put garbage where the next entry goes: the pack's message is kept for a person, and the worker goes on."""

    async def work(world: PackWorld) -> None:
        header = await world.submit(4)
        await world.store.put("batches/batch-1/log/000000/000000", b"garbage")
        world.place.changed.clear()
        world.count = 0
        await PackWorker(Numbered(), world, returns).live()
        assert not world.messages
        letters = [name for name in world.place.containers[world.store.container] if name.startswith("failed/")]
        assert len(letters) == 1
        assert header.batch not in letters[0]

    caplog.set_level(logging.CRITICAL)
    with virtual_clocks("ai4s.jobq.ledger.boottime"):
        play(tmp_path, work)


def test_a_forged_request_to_cancel_counts_for_nothing(tmp_path: Path) -> None:
    """What does not prove that it is the app's cancels no batch, and buries none."""

    async def work(world: PackWorld) -> None:
        await world.submit(4)
        await world.store.put("batches/batch-1/cancelled", b"garbage")
        worker = PackWorker(Numbered(), world, returns)
        worker.attempts._orders.may_be_cancelled = lambda call: True  # type: ignore[method-assign]
        await worker.live()
        assert {world.outcome_of(index).code for index in range(4)} == {Code.VALUE}

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        play(tmp_path, work)


def test_a_cancelled_batch_ends_where_it_is(tmp_path: Path) -> None:
    """A request that a running pack hears of ends what runs and all that waits, at once."""

    async def work(world: PackWorld) -> None:
        await world.submit(40)
        worker = PackWorker(Numbered(), world, slowly(5.0))
        living = asyncio.create_task(worker.live())
        await asyncio.sleep(0.5)
        worker.attempts._interruptions.cancel(["batch-1"])
        await living
        assert not world.messages
        assert len(world.ran) == 2
        assert {world.outcome_of(index).code for index in range(2, 40)} == {Code.CANCELLED}

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        play(tmp_path, work)


SPOILT = {"empty": b"", "garbage": b"garbage", "missing": None, "a bomb": zlib.compress(bytes(10_000_000))}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_calls_whose_input_was_spoilt_fail_and_the_worker_goes_on(tmp_path: Path, spoilt: bytes | None) -> None:
    """What is not the input that the message binds runs nothing: each call ends as refused, and the next pack is worked on."""

    async def work(world: PackWorld) -> None:
        header = await world.submit(4)
        name = "batches/batch-1/in/000000"
        await world.store.delete(name)
        if spoilt is not None:
            await world.store.put(name, spoilt)
        assert header.input.size != len(spoilt or b"")
        await world.submit(4, first=4, pack=1)
        worker = PackWorker(Numbered(), world, returns)
        await worker.live()
        await worker.live()
        assert [world.outcome_of(index).code for index in range(8)] == [Code.FAILED] * 4 + [Code.VALUE] * 4
        assert world.outcome_of(0).failure.cause is Cause.REFUSED
        assert {each.index for each in world.ran} == {4, 5, 6, 7}

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        play(tmp_path, work)


def test_an_entry_of_somebody_else_s_calls_stops_the_pack_for_a_person(tmp_path: Path) -> None:
    """Sealed as it should be, it tells of a call that is not in the pack: nothing of it is believed, and nothing overwritten."""

    async def work(world: PackWorld) -> None:
        await world.submit(4)
        name = "batches/batch-1/log/000000/000000"
        head, theirs = EntryHead("t", "w", 1.0, 0, "", gives="0-2"), Packed(9, 0, 1, 0.0, b"")
        forged = entry_bytes(world.ledger.wire, name, head=head, outcomes=[theirs])
        await world.store.put(name, forged)
        world.place.changed.clear()
        world.count = 0
        await PackWorker(Numbered(), world, returns).live()
        assert not world.messages
        assert world.place.containers[world.store.container][name].data == forged
        assert [name for name in world.place.containers[world.store.container] if name.startswith("failed/")]

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        play(tmp_path, work)


def test_a_pack_of_a_batch_that_was_removed_goes_without_a_trace(tmp_path: Path) -> None:
    """Its worker knew the batch before: it writes no failures where nobody looks any more."""

    async def work(world: PackWorld) -> None:
        await world.submit(4)
        worker = PackWorker(Numbered(), world, returns)
        await worker.live()
        await world.submit(4, first=4, pack=1)
        for name in ("batches/batch-1/in/000000", "batches/batch-1/in/000001"):
            await world.store.delete(name)
        await world.store.put("batches/batch-1/meta", b"")
        world.count = 4
        await worker.live()
        assert not world.messages
        assert {log for log, _ in world.entries} == {"000000"}

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        play(tmp_path, work)
