"""The real settlement code in random histories, in memory and on a clock of its own: see `tests/model_machine.py`.

Each history ends with a healthy worker and time; it has passed if at no moment a promise was broken. With one of the rules of the
protocol removed, some history must break one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import model_machine
from harness import Experiment, Lab, Row
from model_mutants import MUTANTS


@dataclass(frozen=True)
class Size:
    """So many histories; for the check so many at most for each rule, the first `rules` of them."""

    rounds: int = 5000
    seed: int = 1
    rules: int = len(MUTANTS)


def run(lab: Lab, place: str, size: Size) -> Row:
    began = time.monotonic()
    tally = model_machine.run(size.rounds, seed_number=size.seed)
    states = ", ".join(f"{number} {state}" for state, number in sorted(tally.states.items()))
    remark = f"{tally.runs} histories, {tally.executions} executions, {tally.requests} requests: {states}"
    row = Row(
        "random histories",
        place,
        tally.calls,
        faults=tally.faults.total(),
        seconds=round(time.monotonic() - began, 1),
        remark=remark,
    )
    return row if tally.runs >= size.rounds else row.but("fewer histories than asked for")


def run_mutants(lab: Lab, place: str, size: Size) -> Row:
    began, survivors = time.monotonic(), []
    rules = list(MUTANTS)[: size.rules]
    for rule in rules:
        try:
            with MUTANTS[rule]():
                model_machine.run(size.rounds, seed_number=size.seed, explain=False)
        except AssertionError:
            continue
        survivors.append(f"{size.rounds} histories do not notice: {rule}")
    remark = f"noticed: {', '.join(rules)}" if not survivors else ""
    return Row(
        "rules missing in histories", place, 0, faults=len(rules), seconds=round(time.monotonic() - began, 1), remark=remark
    ).but(*survivors)


EXPERIMENTS = [
    Experiment("model", run, full=[Size()], short=Size(rounds=50), places=("-",)),
    Experiment("mutant-model", run_mutants, full=[Size(rounds=400)], short=Size(rounds=400, rules=2), places=("-",)),
]
