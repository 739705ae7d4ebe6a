"""Fixtures for tests with real workers: places, and projects at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from projects import NewProject, Project, new_project

from ai4s.jobq.config import read_settings


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    """A folder of this test's own."""
    return f"local://{tmp_path / 'place'}"


@pytest.fixture(params=["local", "azurite"] if read_settings().environ.get("JOBQ_TEST_PLACES") == "all" else ["azurite"])
def place_url(request: pytest.FixtureRequest) -> str:
    """A storage account; with JOBQ_TEST_PLACES=all a folder, too.

    That a folder does what an account does is shown request by request in `conformance`, and of these tests only costs time.
    """
    found = request.getfixturevalue({"local": "local_url", "azurite": "azurite_url"}[request.param])
    assert isinstance(found, str)
    return found


@pytest.fixture
def new(tmp_path: Path, local_url: str) -> Iterator[NewProject]:
    """A function that makes a project from the source of its tasks, with a fresh app on a local place unless another is given."""
    with ExitStack() as stack:

        def make(source: str = "", *, url: str = "", options: str = "") -> Project:
            return stack.enter_context(new_project(tmp_path / "project", url or local_url, source, options))

        yield make
