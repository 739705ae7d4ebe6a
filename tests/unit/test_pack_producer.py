"""A producer of packs with a fault at each of its requests, and others that go on: each key is there once, and ends once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from failure_points import QUEUE, TASK, Crash, Fault, Numbered, Process, ThroughTransport
from pack_machine import quiet
from pack_world import BATCH, PackWorker, PackWorld, drain, play, returns
from virtual_time import virtual_clocks

from ai4s.jobq import layout
from ai4s.jobq.codec import codec_of
from ai4s.jobq.errors import TransportError
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.maps.mapping import MapPlan, Submission, encoder
from ai4s.jobq.maps.pack_maker import PackMaker
from ai4s.jobq.message import Call
from ai4s.jobq.options import CallOptions
from ai4s.jobq.packing import key_digest
from ai4s.jobq.signing import Keyring
from ai4s.jobq.submission import Order

CALLS, A_PACK = 24, 2
MOST_TRIES = 5
CODEC = codec_of("cloudpickle")
FAULTS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ANSWER_LOST, Fault.NOT_DONE)


class _Client:
    """What a submission needs of one."""

    async def publish(self, ledger: Ledger, payloads: tuple[bytes, ...]) -> tuple[str, ...]:
        return ()


async def submit(ledger: Ledger) -> None:
    """Map over the same items with the same keys, whatever is there of them."""
    call = Call(layout.packed_call_id(BATCH, 0), TASK, QUEUE, b"", sent=0)
    plan = MapPlan(BATCH, Order(call, (), CallOptions(), None), CODEC, keyed=True)
    submission = Submission(cast("Any", _Client()), plan, list, Ledger.send_pack)
    await submission.begin(ledger)
    maker = PackMaker(encoder(CODEC), CODEC, limit=A_PACK)
    for n in range(CALLS):
        if (digest := key_digest(str(n))) not in submission.known_keys:
            submission.known_keys.add(digest)
            if maker.add((n,), str(n)):
                await submission.offer(ledger, maker.take())
    if maker.count:
        await submission.offer(ledger, maker.take())
    await submission.finish(ledger)


async def attempt(world: PackWorld, points: Numbered) -> bool:
    """One producer; whether it lived to see that all is done."""
    process = Process(points, world)
    ledger = Ledger(ThroughTransport(world.transport, process), world.app, Keyring())
    process.starting = True
    await asyncio.gather(ledger.store(), ledger.queue(QUEUE))
    process.starting = False
    submitting = asyncio.create_task(submit(ledger))
    while process.alive and not submitting.done():
        await asyncio.wait({submitting}, timeout=0.5)
    submitting.cancel()
    others = asyncio.all_tasks() - {asyncio.current_task()} if not process.alive else {submitting}
    mine = [task for task in others if "Submission" in repr(task) or task is submitting]
    for task in mine:
        task.cancel()
    found = (await asyncio.gather(submitting, *mine, return_exceptions=True))[0]
    if isinstance(found, BaseException) and process.alive and not isinstance(found, TransportError):
        raise found
    return process.alive and found is None


def life(folder: Path, faults: dict[int, Fault]) -> list[str]:
    """A batch that is submitted with these faults by one producer after the other, and then worked off."""
    points = Numbered(faults)

    async def work(world: PackWorld) -> None:
        for _ in range(MOST_TRIES):
            if await attempt(world, points):
                break
        else:
            raise AssertionError("it cannot be submitted")
        infos = [info async for info in world.batch.packs()]
        keys = [key for info in infos for key in await world.batch.keys(info)]
        assert sorted(map(int, keys)) == list(range(CALLS))
        assert [info.indices.start for info in infos] == [sum(len(each.indices) for each in infos[:n]) for n in range(len(infos))]
        total = await world.batch.total()
        assert total is not None
        assert (total.calls, total.packs, total.ended) == (CALLS, len(infos), True)
        world.count = CALLS
        await drain(world, lambda: PackWorker(Numbered(), world, returns))
        world.check_is_whole()

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        play(folder, work)
    return points.asked


def test_a_batch_is_whole_whatever_happens_to_its_producer(tmp_path: Path) -> None:
    """Meta, inputs, messages, the total: a death, a lost answer, or none at each in turn, and then another death soon."""
    asked = life(tmp_path, {})
    for at in range(len(asked)):
        for fault in FAULTS:
            life(tmp_path, {at: fault})
        life(tmp_path, {at: Fault.CRASH_AFTER, at + 3: Fault.CRASH_AFTER})
        life(tmp_path, {at: Fault.CRASH_BEFORE, at + 9: Fault.ANSWER_LOST})


@pytest.mark.parametrize("stuck", range(0, 24, 3))
def test_a_message_that_never_goes_out_is_sent_by_who_resumes(tmp_path: Path, stuck: int) -> None:
    """One message hangs while those after it go through, and then the producer dies: its pack is not forgotten."""
    points = Numbered()
    reach, sends = points.reach, 0

    async def hang(process: Process, label: str) -> Fault | None:
        nonlocal sends
        fault = await reach(process, label)
        if label == "send":
            sends += 1
            if sends == 1 + stuck:
                await asyncio.sleep(30)
                process.alive = False
                raise Crash
        return fault

    points.reach = hang  # type: ignore[method-assign]

    async def work(world: PackWorld) -> None:
        while not await attempt(world, points):
            continue
        world.count = CALLS
        await drain(world, lambda: PackWorker(Numbered(), world, returns))
        world.check_is_whole()

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        play(tmp_path, work)
