"""Experiments in small sizes, as tests: the lab, and the folders in which the experiments find what they are made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "acceptance"))

from harness import Lab


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Lab:
    """A lab in a folder of this test's own; Azurite is the one of all tests."""

    def azurite() -> str:
        url = request.getfixturevalue("azurite_url")
        assert isinstance(url, str)
        return url

    return Lab(tmp_path, azurite)
