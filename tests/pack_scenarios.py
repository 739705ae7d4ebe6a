"""Kinds of packs: what their calls come to, undisturbed; and their lives, with faults at the requests that are made.

Next: `unit/test_pack.py`, with a fault at each request; `faults/pack_lives.py`, with many.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from failure_points import Fault, Numbered
from pack_machine import quiet
from pack_world import DIES, LATE, Doing, PackWorker, PackWorld, Result, drain, play, raises, returns
from virtual_time import virtual_clocks

from ai4s.jobq.packing import Code

SOON = 4


def failing(*which: int, delay_seconds: float | None = None, until: int = 99) -> Doing:
    """These calls raise until this attempt; for good if there is none."""

    async def doing(worker: PackWorker, index: int, attempt: int) -> Result:
        is_bad = index in which and attempt < until
        return raises(retryable=until < 99, delay_seconds=delay_seconds) if is_bad else b""

    return doing


def ending_its_child(result: Result) -> Doing:
    """Call 3 ends its child in this way, for ever."""

    async def doing(worker: PackWorker, index: int, attempt: int) -> Result:
        return result if index == 3 else b""

    return doing


def slowly(seconds: float, then: Doing = returns) -> Doing:
    """Calls take their time."""

    async def doing(worker: PackWorker, index: int, attempt: int) -> Result:
        await asyncio.sleep(seconds)
        return await then(worker, index, attempt)

    return doing


def killing(which: int) -> Doing:
    """One call kills its worker, for ever."""

    async def doing(worker: PackWorker, index: int, attempt: int) -> Result:
        if index == which:
            worker.die()
        return b""

    return doing


@dataclass(frozen=True)
class Scenario:
    """A pack, what its calls come to, how many executions that takes undisturbed, and which of them fail."""

    count: int
    doing: Doing
    executions: int
    failed: frozenset[int] = frozenset()
    vector: int = 0


SCENARIOS = {
    "all succeed": Scenario(20, returns, 20),
    "a call alone": Scenario(1, returns, 1),
    "a failure": Scenario(20, failing(3), 20, frozenset({3})),
    "retries within the delivery": Scenario(8, failing(3, 4, delay_seconds=0.5, until=2), 10),
    "retries after a while": Scenario(8, failing(3, 4, delay_seconds=30, until=3), 12),
    "a call's child dies": Scenario(8, ending_its_child(DIES), 10, frozenset({3})),
    "a call takes too long": Scenario(8, ending_its_child(LATE), 10, frozenset({3})),
    "a slow pack is shared": Scenario(8, slowly(3.0), 8),
    "a pack outlives its first leases": Scenario(4, slowly(20.0, failing(1, delay_seconds=0.5, until=2)), 5),
    "a slice raises": Scenario(8, failing(2), 8 + 4 + 4 + 2 + 2 + 2, frozenset({2}), vector=8),
}


def life(folder: Path, scenario: Scenario, faults: dict[int, Fault]) -> tuple[PackWorld, list[str]]:
    """A pack's life with these faults; what must hold at every request is checked on the way."""
    points = Numbered(faults)

    async def work(world: PackWorld) -> None:
        await world.submit(scenario.count, vector=scenario.vector)
        await drain(world, lambda: PackWorker(points, world, scenario.doing))

    with quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        return play(folder, work), points.asked


def failures(world: PackWorld) -> set[int]:
    """Which calls have failed."""
    return {index for index in range(world.count) if world.outcome_of(index).code == Code.FAILED}
