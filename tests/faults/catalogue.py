"""All experiments, in the order in which they are run. A new module is named here, and is then run by the program and the tests."""

from __future__ import annotations

from importlib import import_module

from harness import Experiment

MODULES = (
    "kills",
    "zombies",
    "long_calls",
    "burials",
    "lost_answers",
    "outages",
    "restarts",
    "denials",
    "poisons",
    "preemptions",
    "spoiled",
    "clocks",
    "model",
    "mutants",
    "steps",
    "packs",
    "pack_lives",
)


def experiments() -> list[Experiment]:
    """Those of all modules."""
    return [experiment for name in MODULES for experiment in import_module(name).EXPERIMENTS]
