"""The check of the experiments: a copy of the package without one of its rules, which they must notice.

A rule is removed by a change of the source, which must be found there. The workers import the copy, and say so; what the
experiment then complains of must be what the rule prevents, so that a copy that merely does not start is not taken for noticed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import burials
import long_calls
import zombies
from harness import Experiment, Lab, Row, run_safely

import ai4s.jobq


@dataclass(frozen=True)
class Mutant:
    """A rule, the file that has it, and a pattern of its source with what takes its place.

    `complaint` is what the experiment says that misses it.
    """

    rule: str
    file: str
    source: str
    without: str
    experiment: Experiment
    complaint: str


@dataclass(frozen=True)
class Size:
    """The experiment's short form is enough to notice."""


ZOMBIES, LONG_CALLS, BURIALS = zombies.EXPERIMENTS[0], long_calls.EXPERIMENTS[0], burials.EXPERIMENTS[0]
MUTANTS: dict[str, Mutant] = {
    "mutant-put": Mutant(
        "put if absent",
        "ledger.py",
        r"(await store\.put\(name, self\.wire\.seal_outcome\(outcome\).*), if_absent=True\)",
        r"\1)",
        ZOMBIES,
        "has changed",
    ),
    "mutant-renewal": Mutant(
        "renewal of leases",
        "worker/lease.py",
        r"for lease in \[lease for lease in self\._leases if lease\.due\]:",
        "for lease in []:",
        LONG_CALLS,
        "executions too many",
    ),
    "mutant-burial": Mutant(
        "dead letter before deletion",
        "worker/settlement.py",
        r"( +)(await attempt\.lease\.patiently\(lambda: self\._ledger\.bury\()",
        r"\1await attempt.lease.patiently(attempt.lease.delete)\n\1\2",
        BURIALS,
        "is missing",
    ),
}


def package_without(mutant: Mutant, folder: Path) -> Path:
    """A copy of the package without the rule; the folder to import it from."""
    original = Path(ai4s.jobq.__file__).parent
    copy = folder / "ai4s" / "jobq"
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / mutant.file
    changed, times = re.subn(mutant.source, mutant.without, path.read_text())
    assert times == 1, f"{mutant.file} has not, or not only once: {mutant.source}"
    path.write_text(changed)
    return folder


def run(name: str, lab: Lab, place: str, size: Size) -> Row:
    mutant = MUTANTS[name]
    package = package_without(mutant, lab.new_folder(name))
    row = run_safely(mutant.experiment, replace(lab, package=package), place, mutant.experiment.short)
    noticed = [complaint for complaint in row.complaints if mutant.complaint in complaint]
    remark = f"noticed by {mutant.experiment.name}: {row.unexpected} unexpected, {row.duplicated} duplicated"
    found = Row(f"without {mutant.rule}", place, 0, faults=1, seconds=row.seconds, remark=remark if noticed else "")
    return found if noticed else found.but(f"{mutant.experiment.name} does not notice: {survival(row.complaints)}")


def survival(complaints: Sequence[str]) -> str:
    """What the experiment said instead."""
    return "; ".join(complaints) or "it passes"


def place_for(mutant: Mutant) -> str:
    """The quickest place that the experiment can be made at."""
    return mutant.experiment.places[0]


EXPERIMENTS = [
    Experiment(name, partial(run, name), full=[Size()], short=Size(), places=(place_for(mutant),))
    for name, mutant in MUTANTS.items()
]
