"""Chapter 6: code that workers don't have.

A task in a module travels as its name, and the worker imports it. What no worker could import (a lambda, a closure, a function of a
notebook or of the script that you run) travels by value, with what it refers to. You need not do anything for it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ai4s.jobq import App

app = App("by-value")

pytestmark = pytest.mark.usefixtures("worker")


def cube(x: int) -> int:
    return x**3


def test_submit_calls_any_function_elsewhere() -> None:
    """As `concurrent.futures` has it: the function need not be a task."""
    assert app.submit(cube, 3).result(timeout=60) == 27
    assert app.submit(lambda x: x + 1, 3).result(timeout=60) == 4


def test_a_closure_takes_its_surroundings_along() -> None:
    """As they are when the call is made."""
    offset = 10

    def shift(x: int) -> int:
        return x + offset

    assert app.submit(shift, 1).result(timeout=60) == 11
    offset = 20
    assert app.submit(shift, 1).result(timeout=60) == 21


def test_a_local_function_can_be_a_task_with_options() -> None:
    """`app.task` works on it as on any other; `delay` and `options` do, too."""
    tries = [ConnectionError("once"), ConnectionError("twice")]

    @app.task(retries=2, backoff=0)
    def stubborn(x: int) -> int:
        from ai4s.jobq import current

        if current().attempt <= len(tries):
            raise tries[current().attempt - 1]
        return x

    assert stubborn.delay(5).result(timeout=60) == 5


def test_an_async_function_can_be_submitted() -> None:
    """It runs on the worker's event loop."""

    async def greet(name: str) -> str:
        return f"hello {name}"

    assert app.submit(greet, "ada").result(timeout=60) == "hello ada"


def test_functions_and_classes_can_be_arguments() -> None:
    """They are values like others."""

    class Doubler:
        def __call__(self, x: int) -> int:
            return 2 * x

    assert app.submit(map_list, Doubler(), [1, 2]).result(timeout=60) == [2, 4]


def map_list(function: object, values: list[int]) -> list[int]:
    assert callable(function)
    return [function(value) for value in values]


PROGRAM = """
from ai4s.jobq import App

app = App("one-file")

def helper(x):
    return x + 1

@app.task
def step(x):
    return helper(x) * 2

if __name__ == "__main__":
    with app.worker(concurrency=1):
        print(step.delay(4).result(timeout=60))
"""


def test_a_program_of_one_file_needs_no_module(tmp_path: Path) -> None:
    """A script that you run, or a notebook: its functions call each other on the worker as they do here."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    environment = {**os.environ, "JOBQ_URL": f"local://{tmp_path}/place"}
    answer = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120, check=False)

    assert answer.stdout == "10\n", answer.stderr


MODULE = """
class Atom:
    def __init__(self, z):
        self.z = z

def heavier(atom):
    return Atom(atom.z + 1)
"""


def test_ship_sends_a_module_of_yours_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For workers that run elsewhere, and have not installed it. The module arrives as it is, classes and all."""
    (tmp_path / "chemistry.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    chemistry = importlib.import_module("chemistry")
    sending = App(app.name, app.client.url, ship=[chemistry])

    atom = sending.submit(chemistry.heavier, chemistry.Atom(6)).result(timeout=60)

    assert isinstance(atom, chemistry.Atom)
    assert atom.z == 7
    sending.close()
