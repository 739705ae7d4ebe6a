"""The types of the public API are pinned by the files in `tests/typing`, which a type checker reads and nobody runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_types_of_the_public_api_are_as_pinned() -> None:
    """What must be an error is one, what must not is none, and each value has the type that the files say."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "tests/typing"]

    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)

    assert answer.returncode == 0, f"\n{answer.stdout}{answer.stderr}"
