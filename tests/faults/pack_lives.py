"""Each step of the pack protocol with a death at it, and random histories: real code, in memory, on a clock that flies.

Next: `../unit/test_pack.py` for the scenarios, `../pack_machine.py` for the histories.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import pack_machine
from failure_points import Fault
from harness import Experiment, Lab, Row
from pack_mutants import MUTANTS
from pack_scenarios import SCENARIOS, SOON, failures, life

DEATHS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)


@dataclass(frozen=True)
class Size:
    """How often there is a death at each request; all but the first have company, by the dice. So many histories."""

    rounds: int = 20
    histories: int = 3000
    seed: int = 1
    rules: int = len(MUTANTS)


def run_steps(lab: Lab, place: str, size: Size) -> Row:
    began, dice, folder = time.monotonic(), random.Random(size.seed), lab.new_folder("pack steps")
    lives = faults_made = points = 0
    wrong: list[str] = []
    for name, scenario in SCENARIOS.items():
        asked = life(folder, scenario, {})[1]
        points += 2 * len(asked)
        for at, death in ((at, death) for at in range(len(asked)) for death in DEATHS):
            for number in range(size.rounds):
                faults = {at: death} | ({at + dice.randint(1, SOON): dice.choice(list(Fault))} if number else {})
                lives, faults_made = lives + 1, faults_made + len(faults)
                try:
                    world, _ = life(folder, scenario, faults)
                    assert failures(world) >= scenario.failed
                except AssertionError as exc:
                    wrong.append(f"{name}: {faults}: {exc}"[:600])
    remark = f"{points} points in {len(SCENARIOS)} kinds of packs, {size.rounds} times each"
    seconds = round(time.monotonic() - began, 1)
    row = Row("death at every step of a pack", place, lives, faults_made, unexpected=len(wrong), seconds=seconds, remark=remark)
    return row.but(*wrong[:5])


def run_model(lab: Lab, place: str, size: Size) -> Row:
    began = time.monotonic()
    tally = pack_machine.run(size.histories, seed=size.seed)
    unnoticed = [name for name in list(MUTANTS)[: size.rules] if not _is_noticed(name)]
    remark = (
        f"{tally.runs} histories, {tally.requests} requests, {tally.entries} log entries, {tally.given} of which give calls away; "
        f"{size.rules} rules taken out, each noticed"
    )
    seconds = round(time.monotonic() - began, 1)
    row = Row("model of packs", place, tally.calls, tally.faults.total(), seconds=seconds, remark=remark)
    return row.but(*[f"{name!r} is not noticed" for name in unnoticed])


def _is_noticed(name: str) -> bool:
    with MUTANTS[name]():
        try:
            pack_machine.run(400)
        except AssertionError:
            return True
    return False


EXPERIMENTS = [
    Experiment("pack-steps", run_steps, full=[Size()], short=Size(rounds=1), places=("-",)),
    Experiment("pack-model", run_model, full=[Size()], short=Size(histories=20, rules=1), places=("-",)),
]
