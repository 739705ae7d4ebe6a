"""`import ai4s.jobq` is cheap: nothing that talks to a network or serializes is loaded before it is used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

LIST_MODULES = "import sys, ai4s.jobq; print(*sys.modules, sep='\\n')"


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The top-level names that are loaded after a bare import, in a process of its own."""
    answer = subprocess.run([sys.executable, "-c", LIST_MODULES], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in answer.stdout.split()}


@pytest.mark.parametrize("package", ["azure", "aiohttp", "msgpack", "cloudpickle", "click", "rich"])
def test_importing_the_package_loads_no(package: str, loaded: set[str]) -> None:
    """Whoever only imports the package pays for none of its dependencies."""
    assert "ai4s" in loaded
    assert package not in loaded


def test_star_import_and_dir_offer_the_same_names() -> None:
    """Names that are resolved lazily can be seen and completed, and each of them is really there."""
    package = importlib.import_module("ai4s.jobq")

    assert set(package.__all__) <= set(dir(package))
    missing = [name for name in package.__all__ if not hasattr(package, name)]
    assert missing == []
