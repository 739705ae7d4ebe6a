"""docs/performance.md says what the benchmarks have found, and nothing else."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of the benchmarks as `python benchmarks` does; all of them are forgotten afterwards."""
    names = {path.stem for path in BENCHMARKS.glob("*.py")} - {"__main__"}
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)  # another module of that name comes back afterwards
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def frame(benchmark_module: Callable[[str], Any]) -> Any:
    """The module that makes the page."""
    return benchmark_module("report")


def test_the_page_is_what_the_results_give(frame: Any) -> None:
    """An edit by hand, or results without a new page, are found: run `python benchmarks/report.py`."""
    assert frame.PAGE.read_text(encoding="utf-8") == frame.page(frame.load())


def test_results_agree_with_themselves(frame: Any) -> None:
    """What follows from a figure's values, and is kept beside them, was not edited either."""
    paths = sorted(frame.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        kept = json.loads(path.read_text(encoding="utf-8"))["figures"]
        assert kept == [figure.to_json() for figure in frame.Result.load(path).figures], path.name


def test_every_group_is_a_program(frame: Any) -> None:
    """What `python benchmarks` runs is there."""
    assert [name for name in frame.GROUPS if not (BENCHMARKS / f"{name}.py").exists()] == []


def test_a_perfect_dealer_gives_each_call_to_the_first_free_slot(benchmark_module: Callable[[str], Any]) -> None:
    """The reference of `dealing.py`: long calls first leave nothing to wait for, long calls last do."""
    makespan = benchmark_module("dealing").greedy_makespan
    assert makespan([1.0] * 8, 4) == 2
    assert makespan([4.0] + [1.0] * 4, 2) == 4
    assert makespan([1.0] * 4 + [4.0], 2) == 6


def test_small_sizes_are_not_published(frame: Any, tmp_path: Path) -> None:
    """A look at whether the benchmarks work gives no page."""
    frame.Result("vector", "Vector tasks", [], short=True).save(tmp_path / "vector.json")
    with pytest.raises(ValueError, match="vector was measured with --short"):
        frame.load(tmp_path)


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ({"ours": 5, "reference": 2, "at_least": 2.5}, True),
        ({"ours": 5, "reference": 2, "at_least": 2.6}, False),
        ({"ours": 5, "reference": 2, "at_most": 2.5}, True),
        ({"ours": 5, "at_most": 4}, False),
        ({"ours": 5, "reference": 2}, None),
    ],
)
def test_bounds_are_on_the_ratio_or_on_ours(frame: Any, values: dict[str, float], holds: bool | None) -> None:
    """A figure holds by its ratio where it has a reference, by its own value where it has none, and without a bound not at all."""
    figure = frame.Figure("a", unit="s", **values)
    assert figure.holds is holds
    assert frame.Figure.from_json(json.loads(json.dumps(figure.to_json()))) == figure


def test_a_section_shows_ratios_and_bounds(frame: Any) -> None:
    """A row shows the ratio where there is a reference, the value where there is none, and whether the bound is kept."""
    figures = [
        frame.Figure("rate", 90.0, "calls/s", 100.0, "bare loops", at_least=0.8),
        frame.Figure("requests", 0.5, "requests", at_most=0.02, note="all included"),
    ]
    lines = list(frame.section(frame.Result("group", "Some calls", figures)))
    assert "| rate | bare loops | 0.9 x | ≥ 0.8 | yes |" in lines
    assert "| requests |  | 0.5 requests | ≤ 0.02 | **no** |" in lines
    assert "- requests: all included." in lines
