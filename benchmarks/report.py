"""docs/performance.md and its plot, made of the JSON that the benchmarks have left: `python benchmarks/report.py`.

Nobody writes that page by hand; a test compares it with what this makes. Where there is a reference, only the ratio is shown: both
values stand in the JSON, and neither says anything about another storage than the emulator they were measured on.

Next: `figures.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from figures import RESULTS, Figure, Result, Series, number

PAGE = RESULTS.parent.parent / "docs" / "performance.md"
PLOT = PAGE.with_suffix(".svg")
GROUPS = (
    "throughput", "single_calls", "vector", "dealing", "large_data", "shell_work", "downloads", "telemetry", "dashboard", "growth",
)  # fmt: skip

INTRODUCTION = """\
# Performance

Each figure stands beside its reference, measured in the same run, on the same machine and storage: the emulator Azurite, or
a folder. What is claimed is the ratio, or the number of storage requests; the speed of an emulator says nothing about the service.
This page is made from `benchmarks/results/` by `benchmarks/report.py`; a test sees to it that nobody edits it.

```sh
nox -s bench                                    # everything: installs the references, measures, makes this page
nox -s bench -- --only throughput dealing       # some of it
nox -s bench -- --short --output somewhere      # see that it works; judge nothing by it
```
"""

READING = """\
*Result* is ours over the reference's, or our own value where there is no reference; *wanted* bounds it, and is empty where a
comparison is told without a bound. The bounds were set beforehand.
"""


def load(folder: Path = RESULTS) -> list[Result]:
    """All results there are, in the order of the page; raises ValueError for one in small sizes."""
    found = [Result.load(path) for name in GROUPS if (path := folder / f"{name}.json").exists()]
    for result in found:
        if result.short:
            raise ValueError(f"{result.group} was measured with --short: nothing to judge by, and nothing to publish")
    return found


def page(results: Sequence[Result]) -> str:
    """The text of docs/performance.md."""
    parts = [INTRODUCTION, READING]
    if any(result.series for result in results):
        parts.append(f"![Growth of cost and memory]({PLOT.name})\n")
    parts += ["\n".join(section(result)) for result in results]
    return "\n".join(parts)


def section(result: Result) -> Iterator[str]:
    """One benchmark: where it was measured, its table, its notes."""
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    yield f"## {result.title}\n"
    yield f"{result.date}; {result.machine}; {versions}; messages on a queue at a time: {result.depth or 'one or none'}.\n"
    yield "| figure | beside | result | wanted | kept |"
    yield "| --- | --- | --- | --- | --- |"
    for one in result.figures:
        yield f"| {' | '.join(row(one))} |"
    notes = dict.fromkeys(f"{one.reference_name or one.name}: {one.note}." for one in result.figures if one.note)
    yield from ["", *(f"- {note}" for note in notes)] if notes else []
    yield ""


def row(one: Figure) -> tuple[str, ...]:
    shown = f"{number(one.ours)} {one.unit}" if one.ratio is None else f"{number(one.ratio)} x"
    kept = {None: "", True: "yes", False: "**no**"}[one.holds]
    return one.name, one.reference_name, shown, one.wanted.replace(">=", "≥").replace("<=", "≤"), kept


def plot(results: Sequence[Result], path: Path) -> None:
    """The lines that the results hold, one panel for each pair of units."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same lines give the same file, and text stays text.
    mpl.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    panels: dict[tuple[str, str], list[Series]] = {}
    for result in results:
        for series in result.series:
            panels.setdefault((series.x_unit, series.y_unit), []).append(series)
    if not panels:
        return
    drawn, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False, layout="constrained")
    for ((x_unit, y_unit), lines), axis in zip(panels.items(), axes[0], strict=True):
        for series in lines:
            axis.plot(series.x, series.y, label=series.name, marker="o" if len(series.x) < 20 else "", markersize=3)
        axis.set(xlabel=x_unit, ylabel=y_unit, ylim=(0, None))
        if max(lines[0].x) >= 1000 * min(lines[0].x) > 0:
            axis.set_xscale("log")
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    drawn.savefig(path, metadata={"Date": None})


def write() -> None:
    """Write the page and its plot."""
    results = load()
    PAGE.write_text(page(results), encoding="utf-8")
    plot(results, PLOT)
    print(f"Wrote {PAGE.name} and {PLOT.name}.")


if __name__ == "__main__":
    write()
