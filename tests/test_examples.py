"""The programs in examples/ do what they say, as a reader runs them: as scripts, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TIMEOUT_SECONDS = 120


def run(folder: Path, name: str, *arguments: str) -> str:
    """What an example prints; fails if it does not end well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBQ_")}
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quickstart_prints_five_results(tmp_path: Path) -> None:
    """A sync, an async and a flaky task all bring their results."""
    lines = run(tmp_path, "quickstart.py").splitlines()
    results = {line.partition(": ")[2] for line in lines}
    assert results == {"168", "1229", "9592", "ANYONE HOME?", "got through"}


def test_sweep_agrees_with_a_plain_loop(tmp_path: Path) -> None:
    """A part of the sweep computes on workers what a loop computes, and draws it."""
    output = run(tmp_path, "digits_sweep.py", "--settings", "4", "--workers", "2", "--output", "sweep.png")
    assert "20 of 20 scores are equal" in output
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_sweep_says_how_many_settings_there_are(tmp_path: Path) -> None:
    """A wrong option ends at once with a word on what would be right."""
    command = [sys.executable, str(EXAMPLES / "digits_sweep.py"), "--settings", "65"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode == 2
    assert "between 1 and 64" in done.stderr
