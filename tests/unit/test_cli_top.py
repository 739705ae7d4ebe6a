"""`top`: what it shows of an app, fitted to a terminal, and how it begins and ends on a real one."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from ai4s.jobq import App
from ai4s.jobq.cli import jobq
from ai4s.jobq.cli.top_picture import Picture, Snapshot, amount, shared_out, size, speed

EVIL = "\x1b[2J[red]evil[/red]"
ANSWER_SECONDS = 60.0


def worker(number: int, **changes: Any) -> dict[str, Any]:
    call = {"id": f"call-{number}", "task": f"proj.{EVIL}", "seconds": 100.0 + number}
    made = {
        "id": f"node-{number}-77-ab{number:02}",
        "environment": "slurm",
        "state": "working",
        "trouble": "",
        "running": 1,
        "slots": 2,
        "cpu_percent": 150.0,
        "memory_bytes": 3 * 2**30,
        "succeeded": 12345,
        "failed": 1,
        "lost": 0,
        "rate": 0.5,
        "heard_seconds": 5.0,
        "is_live": True,
        "calls": [{**call, "progress": {"done": 25.0, "total": 100.0, "message": EVIL}}],
    }
    return made | changes


def overview(**changes: Any) -> dict[str, Any]:
    queue = {"name": "default", "messages": 12, "calls": 1200, "oldest_seconds": 400.0, "paused": False}
    batch = {"id": "batch-1", "task": "proj.t", "calls": 1000, "succeeded": 400, "failed": 90, "cancelled": 10, "running": 2}
    made = {
        "app": "proj",
        "place": "azure://account",
        "running": 3,
        "workers": {"slots": 8},
        "throughput": {"per_second": 3.2},
        "success": {"rate": 0.99},
        "calls_left": 1200,
        "seconds_left": 400.0,
        "dead_letters": {"total": 53},
        "queues": [queue],
        "batches": [{**batch, "rate": 12.5, "seconds_left": 40.0, "is_cancelled": False}],
    }
    return made | changes


def shown(snapshot: Snapshot, width: int = 80, height: int | None = 24) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height or 25, force_terminal=False)
    console.print(Picture(snapshot, "q ends" if height else ""), height=height)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (40, 10), (20, 5), (20, 2)])
def test_a_picture_fits_its_terminal(width: int, height: int) -> None:
    """Whatever its size, and however much there is to see."""
    found = overview(batches=overview()["batches"] * 300, queues=overview()["queues"] * 20)
    lines = shown(Snapshot(found, [worker(number) for number in range(1000)], 1.0, "No answer.", 0.0), width, height)
    assert len(lines) <= height
    assert max(map(len, lines), default=0) <= width


def test_a_picture_shows_what_there_is() -> None:
    """Queues, batches, workers and what runs, with the age of all that; what somebody wrote is text."""
    text = "\n".join(shown(Snapshot(overview(), [worker(1)], 3.0, "", 0.0), 120))
    for said in ("proj at azure://account", "3s old", "1 worker ·", "1,200", "7m", " 50% █████░░░░░", "batch-1", "node-1-77-ab01"):
        assert said in text
    for said in ("150%", "3G", "12,345", "30/min", "call-1", " 25% ██░░░░░░░░", "53 dead letters", "\\x1b[2J[red]evil[/red]"):
        assert said in text
    assert "\x1b" not in text


def test_what_needs_a_look_comes_first() -> None:
    """Workers in trouble, then the busy ones; those that fell silent last, those that ended not at all; the longest call first."""
    found = [
        worker(1, running=0, calls=[]),
        worker(2, running=2),
        worker(3, trouble="Queue gpu: no rights"),
        worker(4, state="silent", is_live=False, heard_seconds=900.0),
        worker(5, state="stopped", is_live=False),
    ]
    text = "\n".join(shown(Snapshot(overview(), found, 1.0, "", 0.0), 140, 40))
    places = [text.index(f"node-{number}-") for number in (3, 2, 1, 4)]
    assert places == sorted(places)
    assert "node-5-" not in text
    assert text.index("call-3") < text.index("call-2")
    assert "1 silent" in text
    assert "working: Queue gpu: no rights" in text


def test_an_unreachable_account_is_said_beside_old_data() -> None:
    """What is known stays, with its age; before anything is known the picture says so."""
    text = "\n".join(shown(Snapshot(overview(), [worker(1)], 90.0, "The storage has not answered for 80 s.", 0.0)))
    assert "90s old" in text
    assert "The storage has not answered for 80 s." in text
    assert "node-1-" in text
    nothing = "\n".join(shown(Snapshot(overview(), [], None, "No answer.", 0.0)))
    assert "nothing read yet" in nothing
    assert "No worker" not in nothing


def test_an_empty_app_has_a_picture() -> None:
    """Without workers, and without a rate."""
    empty = overview(batches=[], throughput={"per_second": None}, success={"rate": None}, seconds_left=None)
    assert "No worker is at work." in shown(Snapshot(empty, [], 1.0, "", 0.0))


def test_numbers_are_short() -> None:
    """Enough to read at a glance."""
    assert [amount(number) for number in (None, 0, 12345, 3_400_000)] == ["", "0", "12,345", "3.4M"]
    assert [size(number) for number in (0, 5, 512 * 2**20, 1.5 * 2**30)] == ["", "<1M", "512M", "1.5G"]
    assert [speed(number) for number in (None, 2.5, 1 / 60, 1 / 3600, 12345.0)] == ["", "2.5/s", "1/min", "1/h", "12,345/s"]
    assert shared_out([2, 50, 50], 20) == [2, 9, 9]
    assert shared_out([5, 5], 0) == [0, 0]


@pytest.fixture
def place(tmp_path: Path) -> str:
    with closing(App("topped", f"local://{tmp_path}/place")) as app:
        app.task(_nothing).delay()
    return f"local://{tmp_path}/place/topped"


def _nothing() -> None:
    pass


def test_piped_it_is_one_picture(place: str) -> None:
    """Without colours, and it ends."""
    result = CliRunner().invoke(jobq, [place, "top"])
    assert result.exit_code == 0, result.output
    assert re.search(r"^default +1 +1 ", result.stdout, re.MULTILINE)
    assert "\x1b" not in result.stdout


def test_an_app_that_is_not_there_is_said(tmp_path: Path) -> None:
    """It is not made by looking."""
    result = CliRunner().invoke(jobq, [f"local://{tmp_path}/none", "top", "--once"])
    assert result.exit_code == 1
    assert "There is no place at" in result.output
    assert not list(tmp_path.iterdir())


def test_an_app_that_is_not_at_its_place_is_said(place: str) -> None:
    """As by every verb that looks."""
    result = CliRunner().invoke(jobq, [f"{place.rpartition('/')[0]}/other", "top", "--once"])
    assert result.exit_code == 1
    assert "There is no app 'other' at" in result.output


@pytest.mark.parametrize("end", ["key", "signal"])
def test_on_a_terminal_a_key_or_ctrl_c_ends_it(place: str, end: str) -> None:
    """And the terminal is as it was: the first screen, with a cursor."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ai4s.jobq.cli", place, "top"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        try:
            seen = _read_until(ours, lambda text: "q ends" in text and "default" in text)
            assert "\x1b[?1049h" in seen
            if end == "key":
                os.write(ours, b"q")
            else:
                process.send_signal(signal.SIGINT)
            rest = _read_until(ours, lambda text: "\x1b[?1049l" in text)
            assert "\x1b[?25h" in rest
            assert process.wait(ANSWER_SECONDS) == 0
        finally:
            process.kill()
            os.close(ours)


def _read_until(descriptor: int, is_enough: Callable[[str], bool]) -> str:
    text = ""
    while not is_enough(text):
        assert select.select([descriptor], [], [], ANSWER_SECONDS)[0], text
        text += os.read(descriptor, 65536).decode(errors="replace")
    return text


def test_status_in_json_has_what_the_lists_have(place: str) -> None:
    """Each line is an object that says its kind, for scripts."""
    result = CliRunner().invoke(jobq, [place, "status", "--json"])
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["kind"] for each in found] == ["queue"]
    assert found[0]["messages"] == 1
