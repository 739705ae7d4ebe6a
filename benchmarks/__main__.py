"""All benchmarks, one after the other, each in a process of its own: `python benchmarks [--only NAME ...] [--short]`.

Each writes `results/<name>.json`; docs/performance.md is made of them at the end. A bound that is missed makes the exit code 1.

Next: `figures.py` for what they write.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import report
from figures import RESULTS, Result, table
from report import GROUPS

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="NAME", help=", ".join(GROUPS))
    parser.add_argument("--short", action="store_true", help="small sizes: see that they work; judge nothing by them")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="where the results go")
    given = parser.parse_args()
    broken = [group for group in given.only if not run(group, given.output, short=given.short)]
    results = [
        Result.load(path) for group in given.only if (path := given.output / f"{group}.json").exists() and group not in broken
    ]
    figures = [figure for result in results for figure in result.figures]
    print(f"\n{table(figures)}")
    for group in broken:
        print(f"{group}: did not end well; it says why above")
    if given.output == RESULTS and not (given.short or broken):
        report.write()
    missed = [figure.name for figure in figures if figure.holds is False]
    return 1 if broken or (missed and not given.short) else 0


def run(group: str, output: Path, *, short: bool) -> bool:
    """Run one group to its end; whether it ended well."""
    print(f"\n== {group}", flush=True)
    command = [sys.executable, str(HERE / f"{group}.py"), "--output", str(output), *(["--short"] if short else [])]
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
