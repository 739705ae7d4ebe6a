"""What the chapters share: a worker for each, on an empty store of its own, and a gate for tasks that must wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import Gate, gate_in

from ai4s.jobq.testing import temporary_place


@pytest.fixture(scope="module")
def worker(request: pytest.FixtureRequest) -> Iterator[None]:
    """A worker for the chapter's `app`. In a program of yours: `with app.worker(): ...`, or `jobq-worker module:app` anywhere."""
    app = request.module.app
    with temporary_place(app), app.worker(concurrency=2):
        yield


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate where a task of the test's waits."""
    with gate_in(tmp_path) as made:
        yield made
