"""Retries and keyed re-runs that are cut short at every request, and that run into each other: the next run ends once.

A letter is there until the message of the next run is, and a success is never superseded (`World.look` sees to that).

Next: `test_attempt.py` for the same of workers.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from failure_points import (
    CLIENT,
    QUEUE,
    TASK,
    Crash,
    Fault,
    Numbered,
    Points,
    Process,
    Task,
    ThroughTransport,
    Turns,
    WorkerProcess,
    World,
    drain,
    opened,
)

from ai4s.jobq import Handle, layout, reruns
from ai4s.jobq.client import Client
from ai4s.jobq.dead_letters import DeadLetters, Retried
from ai4s.jobq.errors import NotFinished, ResultGone, Unreachable
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.letters import make_choice
from ai4s.jobq.lifecycle import Preempted
from ai4s.jobq.message import Call, Cause, Checkpoint, Failure, Spill, State
from ai4s.jobq.options import CallOptions
from ai4s.jobq.submission import Order, _submit_keyed
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.local.store import LocalStore
from ai4s.jobq.worker.executors import Ending
from ai4s.jobq.worker.jobs import Job, Kind, Report

RAISED = Failure(Cause.RAISED, "ValueError", "no", "the traceback")
CALL = Call(id=layout.call_id(CLIENT, 7), task=TASK, queue=QUEUE, arguments=b"arguments", sent=1.0)
KEYED = replace(CALL, id=layout.keyed_call_id("0" * 40))
NEXT = reruns.next_run(CALL, 2.0)
Step = Callable[[Ledger], Awaitable[Any]]

every_fault = pytest.mark.parametrize(
    "fault",
    [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ANSWER_LOST, Fault.NOT_DONE],
    ids=lambda fault: fault.name.lower(),
)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are tried again are tried at once, and the claim of one that died is taken over at once."""
    real_sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real_sleep(0))
    monkeypatch.setattr(reruns, "CLAIM_SECONDS", 0)


def ends(*reports: Report) -> Task:
    """A task whose runs come to these, one after the other."""

    async def task(process: WorkerProcess, job: Job) -> Ending:
        return reports[job.call.run - 1]

    return task


FAILS = Report(1, Kind.RAISED, failure=RAISED)
RETURNS = Report(1, Kind.RETURNED, value=b"value")
fails_once = ends(FAILS, RETURNS)


def letters_of(world: World) -> DeadLetters:
    """The dead letters of a world's app."""
    return DeadLetters(Client(world.app, f"local://{world.transport.place.folder}", ()))


def retrying(world: World, *ids: str) -> Callable[[Ledger], Awaitable[Retried]]:
    """The retry of these, or of all."""
    letters = letters_of(world)
    return partial(letters._retry, make_choice(letters._client.name, ids, {}))


def purging(world: World) -> Step:
    """The purge of all letters."""
    letters = letters_of(world)
    return partial(letters._purge, make_choice(letters._client.name, (), {}))


def asking_with_key(world: World, *, rerun_failed: bool = True) -> Callable[[Ledger], Awaitable[Handle[Any]]]:
    """A submission with a key that asks for the next run if the call has failed."""
    client = letters_of(world)._client

    async def ask(ledger: Ledger) -> Handle[Any]:
        order = Order(KEYED, (), CallOptions(rerun_failed=rerun_failed), expires_seconds=None)
        return await _submit_keyed(client, ledger, KEYED, ledger.send, order=order)

    return ask


def callers_ledger(world: World, points: Points) -> Ledger:
    """The ledger of a caller whose requests may fail."""
    return Ledger(ThroughTransport(world.transport, Process(points, world)), world.app, world.ledger.wire.keyring)


async def disturbed(step: Step, ledger: Ledger) -> None:
    """A step of a caller that dies in it, or is told that it failed."""
    with suppress(Crash, Unreachable):
        await step(ledger)


async def failed_world(transport: LocalTransport, folder: Path, call: Call = CALL) -> World:
    """A world in which the first run of the call has failed."""
    world = World(transport, folder)
    if layout.is_keyed(call.id):
        await asyncio.gather(world.ledger.store(), world.ledger.queue(QUEUE))
        await asking_with_key(world)(world.ledger)
        world.calls[layout.result(call.id, 1)] = call
    else:
        await world.send(call)
    await drain(world, partial(WorkerProcess, Numbered(), world, fails_once))
    assert (await world.letter(call)).outcome == world.outcome(call)
    world.executed.clear()
    return world


async def work_off(world: World, call: Call, task: Task = fails_once) -> None:
    """Have workers empty the queue, on which the call's second run may lie."""
    await world.make_visible()
    if world.depth:
        world.calls[layout.result(call.id, 2)] = replace(call, run=2)
        await drain(world, partial(WorkerProcess, Numbered(), world, task))


async def check_nothing_is_lost(world: World, call: Call) -> None:
    """The letter is there, or the message of the next run is."""
    blob = await reruns.letter_blob(world.ledger, layout.dead_letter(QUEUE, call.id, 1))
    assert blob.data or await world.queue.depth() > 0


async def check_it_succeeded(world: World, call: Call) -> None:
    """The second run ran once, and whoever has a handle of the first one gets its outcome; the letter is gone."""
    assert [(executed.id, executed.run) for executed in world.executed] == [(call.id, 2)]
    handle = Handle[Any](letters_of(world)._client, call.id)
    outcome = await handle.look(world.ledger)
    assert outcome is not None
    assert (outcome.state, outcome.run, handle.run) == (State.SUCCEEDED, 2, 2)
    letters = letters_of(world)
    assert await letters._list(make_choice(letters._client.name, (), {}), None, world.ledger) == []


@every_fault
@pytest.mark.parametrize("worker_first", [False, True], ids=["asked again at once", "asked again when it has run"])
async def test_a_retry_that_was_cut_short_can_be_repeated(tmp_path: Path, fault: Fault, worker_first: bool) -> None:
    """Wherever it was cut short, repeating it makes the next run end once, and its answer is the same handle."""
    async with opened(tmp_path / "place") as transport:
        for number in itertools.count():
            world, points = await failed_world(transport, tmp_path), Numbered({number: fault})
            await disturbed(retrying(world), callers_ledger(world, points))
            await check_nothing_is_lost(world, CALL)
            if worker_first:
                await work_off(world, CALL)
            again = await retrying(world, CALL.id)(world.ledger)
            assert [handle.id for handle in again.handles] == [CALL.id]
            await work_off(world, CALL)
            await check_it_succeeded(world, CALL)
            once_more = await retrying(world, CALL.id)(world.ledger)
            assert [(handle.id, handle.run) for handle in once_more.handles] == [(CALL.id, 2)]
            assert await world.queue.depth() == 0
            if number >= len(points.asked):
                assert {"put failed", "put retries", "send"} <= set(points.asked)
                return


@every_fault
@pytest.mark.parametrize("worker_first", [False, True], ids=["asked again at once", "asked again when it has run"])
@pytest.mark.parametrize("purged", [False, True], ids=["with a letter", "purged"])
async def test_a_keyed_rerun_that_was_cut_short_can_be_repeated(
    tmp_path: Path, fault: Fault, worker_first: bool, purged: bool
) -> None:
    """The same key asks again: one next run, which ends once, also where the letter was purged; then nothing is sent any more."""
    async with opened(tmp_path / "place") as transport:
        for number in itertools.count():
            world, points = await failed_world(transport, tmp_path, KEYED), Numbered({number: fault})
            if purged:
                await purging(world)(world.ledger)
            await disturbed(asking_with_key(world), callers_ledger(world, points))
            if worker_first:
                await work_off(world, KEYED)
            again = await asking_with_key(world)(world.ledger)
            assert (again.id, again.run) == (KEYED.id, 2)
            await work_off(world, KEYED)
            await check_it_succeeded(world, KEYED)
            once_more = await asking_with_key(world)(world.ledger)
            assert (once_more.id, once_more.run) == (KEYED.id, 2)
            assert await world.queue.depth() == 0
            if number >= len(points.asked):
                assert {"put failed", "put retries", "send"} <= set(points.asked)
                return


async def test_a_key_alone_asks_for_no_other_run(tmp_path: Path) -> None:
    """Without the option the failed call is returned, and nothing is sent or written."""
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path, KEYED)
        points = Numbered()
        handle = await asking_with_key(world, rerun_failed=False)(callers_ledger(world, points))
        assert await handle.has_ended(world.ledger)
        assert handle.run == 1
        assert "send" not in points.asked
        assert "put retries" not in points.asked


@every_fault
async def test_a_purge_that_was_cut_short_can_be_repeated(tmp_path: Path, fault: Fault) -> None:
    """The letter goes for good, though its worker comes back to write it; the outcome stays."""
    async with opened(tmp_path / "place") as transport:
        for number in itertools.count():
            world, points = await failed_world(transport, tmp_path), Numbered({number: fault})
            letter = await world.letter(CALL)
            await disturbed(purging(world), callers_ledger(world, points))
            await purging(world)(world.ledger)
            await world.ledger.bury(letter, QUEUE, CALL.id, 1)
            again = await retrying(world, CALL.id)(world.ledger)
            assert (again.handles, list(again.left)) == ([], [CALL.id])
            outcome = world.outcome(CALL)
            assert outcome is not None
            assert outcome.state is State.FAILED
            if number >= len(points.asked):
                return


@every_fault
async def test_a_message_that_is_put_back_is_not_lost(tmp_path: Path, fault: Fault) -> None:
    """Until it lies on the queue again, its letter is there; repeated, there is at least one of it."""
    async with opened(tmp_path / "place") as transport:
        for number in itertools.count():
            world, points = World(transport, tmp_path), Numbered({number: fault})
            await world.send_text("garbage")
            await drain(world, partial(WorkerProcess, Numbered(), world, fails_once))
            (name,) = world.letters
            await disturbed(retrying(world), callers_ledger(world, points))
            assert (await reruns.letter_blob(world.ledger, name)).data or await world.bodies() == ["garbage"]
            await retrying(world)(world.ledger)
            assert set(await world.bodies()) == {"garbage"}
            assert not (await reruns.letter_blob(world.ledger, name)).data
            if number >= len(points.asked):
                assert await world.bodies() == ["garbage"]
                return


@every_fault
async def test_a_forget_of_several_runs_can_be_repeated(tmp_path: Path, fault: Fault) -> None:
    """Every run gets its tombstone, and no marker and no letter is left, wherever it was cut short."""
    async with opened(tmp_path / "place") as transport:
        for number in itertools.count():
            world, points = await failed_world(transport, tmp_path), Numbered({number: fault})
            await retrying(world)(world.ledger)
            await work_off(world, CALL)
            forget = partial(reruns.forget, call=CALL.id)
            transport_between = ThroughTransport(transport, Process(points))  # no witness: here outcomes may change
            await disturbed(forget, Ledger(transport_between, world.app, world.ledger.wire.keyring))
            with suppress(ResultGone):
                await forget(world.ledger)
            sizes = [info.size async for info in world.store.list(layout.RESULTS, with_metadata=True)]
            assert sizes == [0, 0]
            assert [info.name async for info in world.store.list(layout.RETRIES)] == []
            letter = await reruns.letter_blob(world.ledger, layout.dead_letter(QUEUE, CALL.id, 1))
            assert (letter.etag is None, letter.data) == (False, b"")
            with pytest.raises(ResultGone):
                await forget(world.ledger)
            if number >= len(points.asked):
                return


async def test_a_call_that_runs_again_is_not_forgotten(tmp_path: Path) -> None:
    """Its newest run has no outcome yet, and nothing is touched."""
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path)
        await retrying(world)(world.ledger)
        with pytest.raises(NotFinished):
            await reruns.forget(world.ledger, CALL.id)
        await work_off(world, CALL)
        await check_it_succeeded(world, CALL)


@every_fault
async def test_a_cancel_ends_the_newest_run(tmp_path: Path, fault: Fault) -> None:
    """A handle that knows only the first run cancels the second, and the first stays failed; cut short, it can be repeated."""
    async with opened(tmp_path / "place") as transport:
        for number in itertools.count():
            world, points = await failed_world(transport, tmp_path), Numbered({number: fault})
            await retrying(world)(world.ledger)
            world.calls[layout.result(CALL.id, 2)] = NEXT
            handle = Handle[Any](letters_of(world)._client, CALL.id)
            await disturbed(handle._cancel, callers_ledger(world, points))
            assert await handle._cancel(world.ledger)
            assert handle.run == 2
            await drain(world, partial(WorkerProcess, Numbered(), world, fails_once))
            assert world.executed == []
            first, second = world.outcome(CALL), world.outcome(NEXT)
            assert first is not None
            assert second is not None
            assert (first.state, second.state) == (State.FAILED, State.CANCELLED)
            if number >= len(points.asked):
                return


# The next run itself.


async def test_the_next_run_has_full_budgets(tmp_path: Path) -> None:
    """Nothing that the failed run used up, and no bound that has passed, is held against it."""
    used = replace(
        CALL, errors=3, deaths=2, preemptions=4, alone=True, mark="m" * 16, eta=5.0, expires=10.0,
        checkpoint=Checkpoint("c" * 16, 2, Spill(3, "0" * 64), deaths=1, preemptions=2),
    )  # fmt: skip
    fresh = reruns.next_run(used, now=20.0)
    assert (fresh.id, fresh.run, fresh.attempt, fresh.resent, fresh.sent) == (CALL.id, 2, 1, True, 20.0)
    assert (fresh.mark, fresh.alone, fresh.eta, fresh.expires) == (None, False, None, None)
    assert fresh.checkpoint == Checkpoint("c" * 16, 2, Spill(3, "0" * 64))
    assert reruns.next_run(used, now=9.0).expires == 10.0


async def test_preemptions_of_the_next_run_count_from_nothing(tmp_path: Path) -> None:
    """A checkpoint that had seen preemptions gives the next run no more of them than any other has."""
    checkpoint = Checkpoint("c" * 16, 1, Spill(3, "0" * 64), preemptions=4)
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path, replace(CALL, preemptions=4, checkpoint=checkpoint))
        await retrying(world)(world.ledger)

        async def preempted(process: WorkerProcess, job: Job) -> Ending:
            return Preempted()

        await work_off(world, CALL, preempted)
        assert len(world.executed) == 5


async def test_a_keyed_rerun_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    """What the submission cannot know, the letter does."""
    checkpoint = Checkpoint("c" * 16, 1, Spill(3, "0" * 64), deaths=1)
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path, KEYED)
        letter = await world.letter(KEYED)
        assert letter.call is not None
        name = layout.dead_letter(QUEUE, KEYED.id, 1)
        better = replace(letter, call=replace(letter.call, checkpoint=checkpoint))
        await world.store.put(name, world.ledger.wire.seal(better, name))
        await asking_with_key(world)(world.ledger)
        (text,) = await world.bodies()
        assert world.ledger.wire.unseal_call(text, QUEUE).checkpoint == replace(checkpoint, deaths=0)


async def test_several_runs_follow_each_other(tmp_path: Path) -> None:
    """Each failure has a letter of its own, only the newest is listed, and a handle of the first run finds the last one."""
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path)
        letters, handle = letters_of(world), Handle[Any](letters_of(world)._client, CALL.id)
        for run in range(2, 12):
            (found,) = await letters._list(make_choice(letters._client.name, (), {}), None, world.ledger)
            assert (found.id, found.run) == (CALL.id, run - 1)
            await retrying(world)(world.ledger)
            world.calls[layout.result(CALL.id, run)] = replace(CALL, run=run)
            await drain(world, partial(WorkerProcess, Numbered(), world, ends(*[FAILS] * 10, RETURNS)))
        outcome = await handle.look(world.ledger)
        assert outcome is not None
        assert (outcome.state, outcome.run) == (State.SUCCEEDED, 11)


async def test_a_late_copy_of_a_retried_run_changes_nothing(tmp_path: Path) -> None:
    """A duplicate of the first run's message finds its outcome: it runs nothing, and does not put the letter back."""
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path)
        await retrying(world)(world.ledger)
        await work_off(world, CALL)
        executed = len(world.executed)
        await world.ledger.send(replace(CALL, resent=True))
        await drain(world, partial(WorkerProcess, Numbered(), world, fails_once))
        assert len(world.executed) == executed, "the copy has run"
        await check_it_succeeded(world, CALL)


async def test_an_outcome_that_gc_removed_comes_back_with_the_retry(tmp_path: Path) -> None:
    """Without it, nobody who waits for the first run would look for the second; the letter knows it."""
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path)
        await world.store.delete(layout.result(CALL.id, 1))
        world.seen.clear()
        await retrying(world)(world.ledger)
        await work_off(world, CALL)
        await check_it_succeeded(world, CALL)


# Several at a time.


async def interleave(world: World, steps: list[Step], rng: random.Random) -> None:
    """Let these run into each other, request by request, with up to two faults."""
    turns, faults_left = Turns(), rng.randrange(3)
    works: dict[Process, asyncio.Task[None]] = {}
    for step in steps:
        process = Process(turns, world)
        ledger = Ledger(ThroughTransport(world.transport, process), world.app, world.ledger.wire.keyring)
        works[process] = asyncio.create_task(disturbed(step, ledger))
        await turns.until_still(process, works[process])
    while turns.waiting:
        process = rng.choice(list(turns.waiting))
        fault = rng.choice([Fault.CRASH_BEFORE, Fault.CRASH_AFTER]) if faults_left and rng.random() < 0.1 else None
        faults_left -= fault is not None
        turns.let_go(process, fault)
        await turns.until_still(process, works[process])
    await asyncio.gather(*works.values())


async def play(transport: LocalTransport, folder: Path, seed: int) -> None:
    """One random history of retries and a purge, and what must hold once the retry has been asked for again."""
    rng = random.Random(seed)
    world = await failed_world(transport, folder, KEYED)
    with_key = rng.random() < 0.5
    steps: list[Step] = [retrying(world), retrying(world, KEYED.id), purging(world)]
    steps += [asking_with_key(world)] * 2 if with_key else []
    rng.shuffle(steps)
    await interleave(world, steps, rng)
    if with_key:
        await asking_with_key(world)(world.ledger)
    again = await retrying(world, KEYED.id)(world.ledger)
    is_asked_for = await reruns.is_asked_for(world.ledger, KEYED.id, 2)
    await work_off(world, KEYED)
    if is_asked_for:
        await check_it_succeeded(world, KEYED)
    else:
        assert again.left
        assert not with_key
        assert world.executed == []


async def play_all(folder: Path, seeds: range) -> None:
    """Many random histories."""
    async with opened(folder / "place") as transport:
        for seed in seeds:
            try:
                await play(transport, folder, seed)
            except AssertionError as exc:
                exc.add_note(f"With seed {seed}.")
                raise


async def test_retries_and_a_purge_that_run_into_each_other_lose_nothing(tmp_path: Path) -> None:
    """Either the letter is purged and nobody waits for another run, or the next run ends once."""
    await play_all(tmp_path, range(150))


# Several at a time, and nobody dies.


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, without_pauses: None) -> None:
    """A claim is left to whoever has it for longer than any test takes."""
    monkeypatch.setattr(reruns, "CLAIM_SECONDS", 3600)


async def without_faults(world: World, steps: list[Step], rng: random.Random) -> None:
    """Let these run into each other, request by request; whoever waits looks again when it has its turn."""
    turns = Turns()
    works: dict[Process, asyncio.Task[Any]] = {}
    for step in steps:
        process = Process(turns, world)
        ledger = Ledger(ThroughTransport(world.transport, process), world.app, world.ledger.wire.keyring)
        works[process] = asyncio.create_task(step(ledger))  # type: ignore[arg-type]  # they are coroutines
        await turns.until_still(process, works[process])
    while turns.waiting:
        process = rng.choice(list(turns.waiting))
        turns.let_go(process, None)
        await turns.until_still(process, works[process])


async def send_once(folder: Path, seeds: range) -> None:
    """Many random histories of several who retry one call at the same time, by id, by filter and by key."""
    async with opened(folder / "place") as transport:
        for seed in seeds:
            rng = random.Random(seed)
            world = await failed_world(transport, folder, KEYED)
            if seed % 3 == 0:
                await purging(world)(world.ledger)
            steps: list[Step] = [retrying(world), retrying(world, KEYED.id), asking_with_key(world), asking_with_key(world)]
            await without_faults(world, rng.sample(steps[2:] if seed % 3 == 0 else steps, 2), rng)
            assert await world.queue.depth() == 1, f"With seed {seed}."
            await work_off(world, KEYED)
            await check_it_succeeded(world, KEYED)


async def test_several_retries_at_a_time_send_one_message(tmp_path: Path, patient: None) -> None:
    """One sends, and the others wait until it has; also of a letter that was purged, if they ask by key."""
    await send_once(tmp_path, range(60))


async def test_a_message_is_put_back_once_by_several(tmp_path: Path, patient: None) -> None:
    """Its text lies on the queue once."""
    async with opened(tmp_path / "place") as transport:
        for seed in range(20):
            world = World(transport, tmp_path)
            await world.send_text("garbage")
            await drain(world, partial(WorkerProcess, Numbered(), world, fails_once))
            await without_faults(world, [retrying(world), retrying(world)], random.Random(seed))
            assert await world.bodies() == ["garbage"]


async def test_without_waiting_several_would_send(tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The histories above fail where nobody waits."""

    async def never(ledger: Ledger, letter: reruns.LetterBlob) -> bool:
        return False

    monkeypatch.setattr(reruns, "_is_held", never)
    with pytest.raises(AssertionError):
        await send_once(tmp_path, range(60))


@pytest.mark.parametrize("by_key", [False, True], ids=["by id", "by key"])
async def test_the_claim_of_one_who_died_is_taken_over_when_it_is_old(
    tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch, by_key: bool
) -> None:
    """Until then whoever asks again waits, since the other may be about to send."""
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path, KEYED)
        step: Step = asking_with_key(world) if by_key else retrying(world, KEYED.id)
        looks, looked_again = 0, asyncio.Event()
        is_held = reruns._is_held

        async def look(ledger: Ledger, letter: reruns.LetterBlob) -> bool:
            nonlocal looks
            looks += 1
            if looks >= 5:
                looked_again.set()
            return await is_held(ledger, letter)

        await retrying_that_dies_before_it_sends(world)
        monkeypatch.setattr(reruns, "_is_held", look)
        again = asyncio.ensure_future(step(world.ledger))
        await looked_again.wait()
        assert (again.done(), await world.queue.depth()) == (False, 0)

        monkeypatch.setattr(reruns, "CLAIM_SECONDS", 0)
        await again
        assert await world.queue.depth() == 1
        await work_off(world, KEYED)
        await check_it_succeeded(world, KEYED)


async def retrying_that_dies_before_it_sends(world: World) -> None:
    """It has claimed the letter, and put the marker."""
    undisturbed, points = await failed_world(world.transport, world.folder, KEYED), Numbered()
    await retrying(undisturbed)(callers_ledger(undisturbed, points))
    dies = Numbered({points.asked.index("send"): Fault.CRASH_BEFORE})
    await disturbed(retrying(world), callers_ledger(world, dies))


async def test_a_claim_whose_answer_was_lost_is_known_again(tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that repeats the write is told that the letter has changed: by itself, so there is nobody to wait for."""
    put = LocalStore.put

    async def repeated(store: LocalStore, name: str, data: Any, **options: Any) -> str:
        etag = await put(store, name, data, **options)
        return await put(store, name, data, **options) if "claim" in (options.get("metadata") or {}) else etag

    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path)
        monkeypatch.setattr(LocalStore, "put", repeated)
        done = await retrying(world, CALL.id)(world.ledger)
        assert [handle.id for handle in done.handles] == [CALL.id]
        assert await world.queue.depth() == 1


async def test_a_keyed_rerun_waits_for_a_letter_that_is_on_its_way(tmp_path: Path, patient: None) -> None:
    """A worker writes the outcome first, and who asks by key then goes on from what the letter says."""
    checkpoint = Checkpoint("c" * 16, 1, Spill(3, "0" * 64))
    async with opened(tmp_path / "place") as transport:
        world = await failed_world(transport, tmp_path, KEYED)
        letter = await world.letter(KEYED)
        assert letter.call is not None
        name = layout.dead_letter(QUEUE, KEYED.id, 1)
        await world.store.delete(name)
        turns = Turns()
        process = Process(turns)  # no witness: a letter that is missing would be noticed
        ledger = Ledger(ThroughTransport(world.transport, process), world.app, world.ledger.wire.keyring)
        asking = asyncio.ensure_future(asking_with_key(world)(ledger))
        looks = 0
        await turns.until_still(process, asking)  # type: ignore[arg-type]  # it is a task
        while turns.waiting:
            looks += turns.waiting[process][0] == "get failed"
            if looks == 3:
                better = replace(letter, call=replace(letter.call, checkpoint=checkpoint))
                await world.ledger.bury(better, QUEUE, KEYED.id, 1)
            turns.let_go(process, None)
            await turns.until_still(process, asking)  # type: ignore[arg-type]
        assert (await asking).run == 2
        (text,) = await world.bodies()
        assert world.ledger.wire.unseal_call(text, QUEUE).checkpoint == checkpoint


# Whether these tests would notice.


def claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge may come between the marker and the message."""

    async def unclaimed(ledger: Ledger, letter: reruns.LetterBlob, **_: Any) -> reruns.LetterBlob:
        return letter

    monkeypatch.setattr(reruns, "claim", unclaimed)


def lays_down_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The letter goes before the message is on the queue."""
    start = reruns.start

    async def hasty(ledger: Ledger, call: Call, letter: reruns.LetterBlob, send: Any) -> Any:
        await reruns._lay_down(ledger, letter)
        return await start(ledger, call, letter, send)

    monkeypatch.setattr(reruns, "start", hasty)


def puts_no_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who waits finds the next run."""

    async def nothing(ledger: Ledger, call: Call) -> bool:
        return True

    monkeypatch.setattr(reruns, "_ask", nothing)


def sends_unmarked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second copy of the next run's message does not say that it may be one."""
    send = Ledger.send

    async def plain(ledger: Ledger, call: Call, delay_seconds: float = 0) -> Any:
        return await send(ledger, replace(call, resent=False), delay_seconds)

    monkeypatch.setattr(Ledger, "send", plain)


def plain_puts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write looks at what lies there."""
    put = LocalStore.put

    async def plain(store: LocalStore, name: str, data: Any, **options: Any) -> str:
        return await put(store, name, data, metadata=options.get("metadata"))

    monkeypatch.setattr(LocalStore, "put", plain)


@pytest.mark.parametrize("mistake", [claims_nothing, plain_puts], ids=lambda mistake: mistake.__name__)
async def test_a_mistake_is_noticed_among_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The random histories that pass with the real code fail with this mistake in it."""
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        await play_all(tmp_path, range(600))


@pytest.mark.parametrize("mistake", [lays_down_first, puts_no_marker, sends_unmarked], ids=lambda mistake: mistake.__name__)
async def test_a_mistake_is_noticed_at_some_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """A retry that passes with the real code, cut short wherever, fails with this mistake in it."""
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        await test_a_retry_that_was_cut_short_can_be_repeated(tmp_path, Fault.CRASH_AFTER, worker_first=False)
