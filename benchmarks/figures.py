"""What a benchmark says: figures, each beside its reference from the same run, and the file in which they are kept.

A benchmark is a module with a function that measures and returns figures; `report` is its command line. What is claimed is the
ratio to the reference, or a number of requests: the speed of an emulator is no service's speed. A bound is on the ratio where there
is a reference, on our own value where there is none.

Next: `__main__.py`, which runs all of them; `report.py`, which makes docs/performance.md of what they found.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("ai4s-jobq", "azure-storage-queue", "azure-storage-blob")


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity: ours, the reference's in the same unit, and the bound that it shall keep.

    `requests` counts storage requests per call, ours; `note` says what the numbers alone do not (depths, sizes, what a reference
    cannot do). A time has an upper bound (`at_most`), a rate a lower one (`at_least`); without either it is told and not judged.
    """

    name: str
    ours: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    at_least: float | None = None
    at_most: float | None = None
    requests: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the reference."""
        return self.ours / self.reference if self.reference else None

    @property
    def judged(self) -> float | None:
        """What the bound is on: the ratio, or ours where there is no reference by design."""
        return self.ours if self.reference is None else self.ratio

    @property
    def wanted(self) -> str:
        """The bound in words."""
        if self.at_least is not None:
            return f">= {self.at_least:.3g}"
        return "" if self.at_most is None else f"<= {self.at_most:.3g}"

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept; None without one."""
        if self.judged is None or not self.wanted:
            return None
        return self.judged >= self.at_least if self.at_least is not None else self.judged <= (self.at_most or 0)

    def to_json(self) -> dict[str, Any]:
        """All of it, with what follows from it, for readers without this class."""
        return {**asdict(self), "ratio": self.ratio, "wanted": self.wanted, "holds": self.holds}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Figure:
        """The figure of which `to_json` made these values."""
        return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one line in a plot: how something grows with something else."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    x_unit: str
    y_unit: str


def machine() -> str:
    """What it ran on, without saying whose it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def versions(*packages: str) -> dict[str, str]:
    """The versions of ours, of the SDK, and of these packages, as far as they are installed."""
    found = {}
    for name in (*PACKAGES, *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found, where and when. `depth` says how many messages lay on a queue at most."""

    group: str
    title: str
    figures: Sequence[Figure]
    depth: str = ""
    series: Sequence[Series] = ()
    short: bool = False
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date().isoformat())
    machine: str = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "figures": [figure.to_json() for figure in self.figures]}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values["figures"] = [Figure.from_json(figure) for figure in values["figures"]]
        values["series"] = [Series(**series) for series in values["series"]]
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Options:
    """What a benchmark was told: `short` asks for a look at whether it works, with sizes too small to judge by."""

    short: bool = False


def report(group: str, title: str, measure: Callable[[Options], Result | list[Figure]]) -> None:
    """The command line of a benchmark: measure, print, keep. `measure` returns figures, or a whole Result if it has more to say."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--short", action="store_true", help="small sizes: see that it works; judge nothing by it")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="where <group>.json is written")
    given = parser.parse_args()
    found = measure(Options(given.short))
    result = found if isinstance(found, Result) else Result(group, title, found, short=given.short)
    print(table(result.figures), flush=True)
    result.save(given.output / f"{group}.json")


def table(figures: Sequence[Figure]) -> str:
    """The figures as lines of text."""
    rows = [("figure", "ours", "reference", "ratio", "wanted", "holds")]
    for one in figures:
        reference = "" if one.reference is None else f"{number(one.reference)} {one.reference_name}"
        holds = "" if one.holds is None else "yes" if one.holds else "NO"
        ratio = "" if one.ratio is None else number(one.ratio)
        rows.append((f"{one.name}, {one.unit}", number(one.ours), reference, ratio, one.wanted, holds))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit("This is the frame; run `python benchmarks`.")
