"""A hyper-parameter sweep with cross-validation: support vector machines that read the digits which scikit-learn ships.

Each fit is a call: 64 settings x 5 folds. They run on workers of this machine; with $JOBQ_URL set, on every machine as well
that runs `jobq-worker ACCOUNT/digits-sweep`. Then a plain loop computes the same, to see that the scores are equal.

    python examples/digits_sweep.py [--workers N] [--settings N] [--output sweep.png] [--no-check]
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from ai4s.jobq import App, as_completed

FOLDS = 5
PENALTIES = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
GAMMAS = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
GRID = list(itertools.product(PENALTIES, GAMMAS))

Setting = tuple[float, float]  # the penalty C and the kernel's gamma
Scores = dict[tuple[Setting, int], float]  # by setting and fold
T = TypeVar("T")

app = App("digits-sweep")
console = Console()


@app.task
def accuracy(setting: Setting, fold: int) -> float:
    """Fit a machine on all folds but one; return the share of that fold's digits which it reads correctly."""
    images, labels = load_digits(return_X_y=True)  # takes 10 ms; what takes longer belongs into an `@app.resource`
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(images, labels)
    train, test = list(folds)[fold]
    penalty, gamma = setting
    with threadpool_limits(1):  # the workers share the cores among themselves
        machine = SVC(C=penalty, gamma=gamma).fit(images[train], labels[train])
        return float(machine.score(images[test], labels[test]))


def sweep(calls: Sequence[tuple[Setting, int]], *, workers: int) -> Scores:
    """Every call on a worker; their scores arrive in the order in which they are done."""
    with app.worker(concurrency=workers):
        handles = {accuracy.delay(*call): call for call in calls}
        done = progress(as_completed(handles), total=len(calls), title="on workers")
        return {handles[handle]: handle.result() for handle in done}


def plain_loop(calls: Sequence[tuple[Setting, int]]) -> Scores:
    """The same without a queue: a task that is called is just a function."""
    return {call: accuracy(*call) for call in progress(calls, total=len(calls), title="plain loop")}


def progress(items: Iterable[T], *, total: int, title: str) -> Iterator[T]:
    """Pass the items on as they come, and draw how many there were."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield from bar.track(items, total=total, description=title)


def mean_scores(scores: Scores) -> dict[Setting, tuple[float, float]]:
    """Mean and standard deviation over the folds of each setting, the best first; of equals the smoother machine."""
    by_setting: dict[Setting, list[float]] = {}
    for (setting, _), score in sorted(scores.items()):
        by_setting.setdefault(setting, []).append(score)
    means = {setting: (float(np.mean(folds)), float(np.std(folds))) for setting, folds in by_setting.items()}
    return dict(sorted(means.items(), key=lambda item: (-item[1][0], item[0])))


def table_of_best(means: dict[Setting, tuple[float, float]], *, rows: int = 8) -> Table:
    """The best settings, for the terminal."""
    table = Table(title=f"The best of {len(means)} settings, over {FOLDS} folds", title_justify="left")
    for column in ("", "C", "gamma", "accuracy", "± std", "misread"):
        table.add_column(column, justify="right")
    for rank, ((penalty, gamma), (mean, spread)) in enumerate(list(means.items())[:rows], start=1):
        style = "bold green" if rank == 1 else None
        table.add_row(str(rank), f"{penalty:g}", f"{gamma:g}", f"{mean:.2%}", f"{spread:.2%}", f"{1 - mean:.2%}", style=style)
    return table


def plot(means: dict[Setting, tuple[float, float]], path: Path) -> None:
    """A map of the share of misread digits over both parameters, with the best setting framed."""
    misread = np.full((len(GAMMAS), len(PENALTIES)), np.nan)
    for (penalty, gamma), (mean, _) in means.items():
        misread[GAMMAS.index(gamma), PENALTIES.index(penalty)] = 1 - mean
    best = next(iter(means))
    column, row = PENALTIES.index(best[0]), GAMMAS.index(best[1])

    figure = Figure(figsize=(8.4, 7), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.pcolormesh(misread, cmap="YlGnBu", norm=LogNorm(0.008, 1), edgecolors="white", linewidth=1.5)
    for (y, x), share in np.ndenumerate(misread):
        if not np.isnan(share):
            axes.text(x + 0.5, y + 0.5, f"{share:.1%}", ha="center", va="center", color="white" if share > 0.1 else "#222222")
    axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="#e4572e", linewidth=3))
    axes.set_xticks(np.arange(len(PENALTIES)) + 0.5, [f"{value:g}" for value in PENALTIES])
    axes.set_yticks(np.arange(len(GAMMAS)) + 0.5, [f"{value:g}" for value in GAMMAS])
    axes.set(xlabel="penalty C", ylabel="gamma of the kernel")
    axes.set_title("Digits misread by a support vector machine", fontsize=15, fontweight="bold", pad=26)
    told = f"best: {misread[row, column]:.2%} at C = {best[0]:g}, gamma = {best[1]:g}"
    axes.text(0.5, 1.02, told, transform=axes.transAxes, ha="center", fontsize=12, color="#e4572e")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ticks=[0.01, 0.03, 0.1, 0.3, 1], format=PercentFormatter(1, decimals=0), pad=0.03)
    bar.set_label(f"misread, mean of {FOLDS} folds")
    bar.minorticks_off()
    bar.outline.set_visible(False)
    figure.savefig(path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes (default: one per core)")
    parser.add_argument("--settings", type=int, default=len(GRID), help=f"how many of the {len(GRID)} settings, spread evenly")
    parser.add_argument("--output", type=Path, default=Path("sweep.png"), help="where the plot goes (default: %(default)s)")
    parser.add_argument("--no-check", dest="check", action="store_false", help="skip the plain loop")
    options = parser.parse_args(argv)
    if not 1 <= options.settings <= len(GRID):
        parser.error(f"--settings must be between 1 and {len(GRID)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, show, check; the exit code is 1 if the loop's scores differ."""
    options = parse(argv)
    settings = [GRID[i * len(GRID) // options.settings] for i in range(options.settings)]
    calls = [(setting, fold) for setting in settings for fold in range(FOLDS)]

    started = time.perf_counter()
    scores = sweep(calls, workers=options.workers)
    seconds = time.perf_counter() - started

    means = mean_scores(scores)
    console.print(table_of_best(means))
    plot(means, options.output)
    console.print(f"Plot: {options.output.resolve()}", soft_wrap=True)
    console.print(f"{len(calls)} calls, {options.workers} at a time, took {seconds:.1f} s, the workers' start included.")
    if not options.check:
        return 0

    started = time.perf_counter()
    expected = plain_loop(calls)
    loop_seconds = time.perf_counter() - started
    wrong = [call for call in calls if scores[call] != expected[call]]
    times = f"{loop_seconds / seconds:.1f} times as long"
    console.print(f"The plain loop took {loop_seconds:.1f} s, {times}, on a machine of {os.cpu_count()} cores.")
    console.print(f"{len(calls) - len(wrong)} of {len(calls)} scores are equal.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
