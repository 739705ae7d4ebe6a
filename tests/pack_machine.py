"""Random histories of packs: several workers at a time that are killed, stand still, lose answers, and get messages twice.

Each history is played with real pack code on `pack_world.py`, with a seed that says everything; at its end nothing goes wrong any
more, and every call must have ended. What must hold at each request is checked there.

Next: `unit/test_pack_model.py`, which runs it, and without some of the rules.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from failure_points import Fault, Process
from pack_world import CALL, DIES, LATE, PackWorker, PackWorld, Result, play, raises
from virtual_time import virtual_clocks

from ai4s.jobq.lifecycle import Preempted

MOST_WORKERS = 4
MOST_LIVES = 120
"""Workers, one after the other on a machine, after which a message is taken to come again for ever: sound histories have 20."""

FAULTS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ANSWER_LOST, Fault.NOT_DONE)
FOR_EVER_SECONDS = 40 * 24 * 3600.0


@dataclass
class Tally:
    """What happened in all histories together."""

    runs: int = 0
    calls: int = 0
    executions: int = 0
    requests: int = 0
    entries: int = 0
    given: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    states: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Temper:
    """How a call behaves: how long it takes, and what its first attempts come to."""

    seconds: float
    results: tuple[Result, ...] = ()
    kills: bool = False


class Dice:
    """What goes wrong with requests, as long as there is trouble left."""

    def __init__(self, rng: random.Random, tally: Tally, trouble: int) -> None:
        self.rng, self.tally, self.trouble = rng, tally, trouble
        self.thaw: dict[Process, asyncio.Event] = {}

    async def reach(self, process: Process, label: str) -> Fault | None:
        self.tally.requests += 1
        await asyncio.sleep(self.rng.choice((0, 0, 0.01, 0.3)))
        await self.still(process)
        if self.trouble <= 0 or self.rng.random() > 0.12:
            return None
        self.trouble -= 1
        if self.rng.random() < 0.35:
            await self.freeze(process)
            return None
        fault = self.rng.choice(FAULTS)
        self.tally.faults[fault.name] += 1
        _disturb(process)
        return fault

    async def still(self, process: Process) -> None:
        """Wait until the process, and so all in it, goes on."""
        if (event := self.thaw.get(process)) is not None:
            await event.wait()

    async def freeze(self, process: Process) -> None:
        """The whole process stands still for a while, and does not notice."""
        if process in self.thaw:
            return
        self.tally.faults["FREEZE"] += 1
        _disturb(process)
        event = self.thaw[process] = asyncio.Event()
        await asyncio.sleep(self.rng.choice((5, 20, 60, 200, 700)))
        del self.thaw[process]
        event.set()


def _disturb(process: Process) -> None:
    assert isinstance(process, PackWorker)
    process.model.disturbed += 1


class History:
    """One of them."""

    def __init__(self, seed: int, tally: Tally) -> None:
        self.rng, self.tally = random.Random(seed), tally
        self.dice = Dice(self.rng, tally, self.rng.randint(0, 12))
        rng = self.rng
        self.count = rng.choice((1, 2, 3, 5, 8, 13, 30))
        pace = rng.choice((0.01, 0.3, 2.0, 6.0, 20.0))
        self.tempers = [self._temper(pace) for _ in range(self.count)]
        self.vector = rng.choice((0, 0, 0, 0, 4))
        self.call = replace(CALL, expires=None, timeout_seconds=None)
        self.packs = rng.choice((1, 1, 2))
        self.duplicates = rng.choice((0, 0, 1, 2))

    def _temper(self, pace: float) -> Temper:
        rng = self.rng
        again: tuple[Result, ...] = (raises(delay_seconds=0.5), raises(delay_seconds=20), raises(), DIES, LATE, Preempted())
        results = tuple(rng.choice(again) for _ in range(rng.choice((0, 0, 0, 0, 1, 2, 4))))
        if rng.random() < 0.05:
            results = (raises(retryable=False),)
        return Temper(rng.uniform(0, 2 * pace), results, kills=rng.random() < 0.02)

    async def doing(self, worker: PackWorker, index: int, attempt: int) -> Result:
        temper = self.tempers[index]
        await asyncio.sleep(temper.seconds)
        await self.dice.still(worker)
        if temper.kills:
            worker.die()
        if self.dice.trouble > 0 and self.rng.random() < 0.02:
            self.dice.trouble -= 1
            worker.die()
        return temper.results[attempt - 1] if attempt <= len(temper.results) else b""

    async def live(self, world: PackWorld) -> None:
        """The whole of it."""
        share = -(-self.count // self.packs)
        for pack, first in enumerate(range(0, self.count, share)):
            await world.submit(min(share, self.count - first), self.call, vector=self.vector, first=first, pack=pack)
        living = [asyncio.create_task(self._work(world)) for _ in range(self.rng.randint(1, MOST_WORKERS))]
        copying = asyncio.create_task(self._copy(world))
        try:
            await asyncio.gather(*living)
        finally:
            for task in (copying, *living):
                task.cancel()
            await asyncio.gather(copying, *living, return_exceptions=True)
        self.tally.runs += 1
        self.tally.calls += self.count
        self.tally.executions += len(world.ran)
        self.tally.entries += len(world.entries)
        self.tally.given += sum(bool(entry.gives) for entry in world.entries.values())
        self.tally.states.update(outcome.code for entry in world.entries.values() for outcome in entry.outcomes)
        self._judge(world)

    async def _work(self, world: PackWorld) -> None:
        """One machine: worker after worker, until there is nothing to do."""
        for _ in range(MOST_LIVES):
            if not world.messages:
                return
            worker = PackWorker(self.dice, world, self.doing)
            while worker.alive and world.messages:
                await worker.live()
                await asyncio.sleep(self.rng.choice((0.1, 1, 10)))
        raise AssertionError("a message comes again for ever")

    async def _copy(self, world: PackWorld) -> None:
        """Some messages are there twice."""
        for _ in range(self.duplicates):
            await asyncio.sleep(self.rng.choice((0.0, 1.0, 10.0, 60.0)))
            if world.messages:
                body = self.rng.choice(list(world.messages.values())).body
                await world.batch.send(replace(world.header_of(body), resent=True, mark=None))

    def _judge(self, world: PackWorld) -> None:
        world.check_is_whole()
        for index, temper in enumerate(self.tempers):
            outcome = world.outcome_of(index)
            if outcome.code == 2 and outcome.failure.type:
                errors = sum(getattr(each, "failure", None) is not None for each in temper.results)
                assert errors > self.call.retries or any(getattr(each, "retryable", True) is False for each in temper.results)
            if temper.kills:
                assert outcome.code == 2, "a call that kills its worker has succeeded"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the workers' log, which costs more than the work."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # by who has died
            yield
    finally:
        logging.disable(before)


def one(seed: int, tally: Tally, folder: Path) -> None:
    """Play the history of this seed; raises AssertionError if a promise was broken."""
    state = random.getstate()
    random.seed(seed)
    try:
        play(folder, History(seed, tally).live)
    finally:
        random.setstate(state)


def run(runs: int, *, seed: int = 0) -> Tally:
    """So many histories; raises AssertionError, with its seed, for the first one that breaks a promise."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="jobq-packs-") as folder, quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        for n in range(seed, seed + runs):
            try:
                one(n, tally, Path(folder))
            except Exception as exc:
                raise AssertionError(f"History {n}: {_first(exc)!r}") from exc
    return tally


def _first(exc: BaseException) -> BaseException:
    return _first(exc.exceptions[0]) if isinstance(exc, BaseExceptionGroup) else exc
