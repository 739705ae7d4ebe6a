"""All experiments in full size: `nox -s faults`, or `python tests/faults [--only NAMES] [--places local] [--calls 200] [--short]`.

Prints a row for each as it ends. A run of all in full size also writes them, as JSON and as a table, to `results/`; any other
only where `--output` says. The exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent.parent / "acceptance"))

from azurite import running_azurite
from catalogue import experiments
from harness import Experiment, Lab, Row, run_safely

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ("fault", "place", "calls", "faults", "lost", "unexpected", "duplicated", "bound 3/N", "seconds", "passed", "remark")
HEAD = (f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |")
SIZES = ("calls", "faults", "rounds", "workers", "seed")
"""What of an experiment's size can be chosen on the command line."""


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="nox -s faults --", description="Experiments with faults.")
    names = [experiment.name for experiment in experiments()]
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--places", type=lambda text: text.split(","), default=["local", "azurite", "-"])
    parser.add_argument("--short", action="store_true", help="the small sizes of the ordinary tests")
    for size in SIZES:
        parser.add_argument(f"--{size}", type=int, help="instead of what is usual")
    parser.add_argument("--output", type=Path, help="a .json; the .md goes beside it")
    chosen = parser.parse_args(arguments)
    if not arguments:
        chosen.output = RESULTS / "faults.json"
    unknown = set(chosen.only) - set(names)
    if unknown:
        parser.error(f"no such experiment: {', '.join(unknown)}")
    # Producers and the judge meet the faults too, and say so; the rows say what came of it.
    logging.getLogger("ai4s.jobq").setLevel(logging.CRITICAL)
    rows = []
    print(*HEAD, sep="\n", flush=True)
    for experiment, place, size in plan(chosen):
        with laboratory() as lab:
            rows.append(run_safely(experiment, lab, place, size))
        print(line(rows[-1]), *(f"\n    {complaint}" for complaint in rows[-1].complaints), flush=True)
        if chosen.output:
            write(chosen.output, rows)
    return int(not all(row.passed for row in rows))


def plan(chosen: argparse.Namespace) -> Iterator[tuple[Experiment, str, Any]]:
    """What to run where in which size."""
    for experiment in experiments():
        if experiment.name not in chosen.only:
            continue
        for place in experiment.places:
            if place in chosen.places:
                for size in [experiment.short] if chosen.short else experiment.full:
                    yield experiment, place, resized(size, chosen)


def resized(size: Any, chosen: argparse.Namespace) -> Any:
    """A size with what the command line says instead."""
    given = {name: getattr(chosen, name) for name in SIZES if getattr(chosen, name) is not None}
    return replace(size, **{field.name: given[field.name] for field in fields(size) if field.name in given})


@contextmanager
def laboratory() -> Iterator[Lab]:
    """A lab whose Azurite is started when it is first asked for; each row has its own, so that none finds the others' blobs."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)))
        azurite: Callable[[], str] = cache(lambda: stack.enter_context(running_azurite()))
        yield Lab(folder, azurite)


def cells(row: Row) -> list[str]:
    """A row as the table has it."""
    values = {**asdict(row), "bound 3/N": f"{row.bound:.2g}" if row.calls else "-", "passed": "pass" if row.passed else "FAIL"}
    return [str(values[column]) for column in COLUMNS]


def line(row: Row) -> str:
    """A row as a line of a table."""
    return f"| {' | '.join(cells(row))} |"


def write(output: Path, rows: list[Row]) -> None:
    """Everything so far, as JSON and as a table."""
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    figures = [{**asdict(row), "bound": row.bound, "passed": row.passed} for row in rows]
    output.write_text(json.dumps({"measured on": machine, "rows": figures}, indent=2) + "\n")
    output.with_suffix(".md").write_text("\n".join([*HEAD, *map(line, rows)]) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
