"""What a real worker logs with `--log-format json`: its own lines and those of tasks, each with the call that it is about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

WORKER_SECONDS = 120.0

TASKS = """
import asyncio
import logging

from ai4s.jobq import App, current

app = App("logging-app", "local://{place}")
log = logging.getLogger("somebody.elses")


@app.task
def single() -> None:
    log.warning("in a process", extra={{"batch": "mine"}})
    log.info("nobody asked for this one")
    current().logger.info("by the call's logger")


@app.task(pool="thread")
def on_thread() -> None:
    log.warning("on a thread")


@app.task
async def coroutine(x: int) -> None:
    await asyncio.sleep(0)
    log.warning("in coroutine %d", x)


@app.task
def each(x: int) -> None:
    if x == 2:
        raise ValueError("two")
    log.warning("item %d", x)
"""


def lines_of(worker: subprocess.CompletedProcess[str]) -> Iterator[dict[str, Any]]:
    for line in worker.stderr.splitlines():
        found = json.loads(line)
        assert isinstance(found, dict)
        yield found


def test_every_line_says_which_call_it_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes, on threads, in coroutines, for each call of a pack; and the worker's own words about a call as well."""
    (tmp_path / "logging_tasks.py").write_text(TASKS.format(place=tmp_path / "place"))
    monkeypatch.syspath_prepend(tmp_path)
    tasks: Any = import_module("logging_tasks")
    with closing(tasks.app):
        single, thread = tasks.single.delay().id, tasks.on_thread.delay().id
        coroutines = [tasks.coroutine.delay(x).id for x in range(2)]
        batch = tasks.each.map(range(4)).id
        command = [sys.executable, "-m", "ai4s.jobq.cli", "logging_tasks:app", "worker", "-n", "1", "--until-empty"]
        worker = subprocess.run(
            [*command, "--log-format", "json"],
            cwd=tmp_path,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=WORKER_SECONDS,
            check=True,
        )
    found = list(lines_of(worker))
    said = {line["message"]: line for line in found}
    assert (said["in a process"]["call_id"], said["in a process"]["extra"]) == (single, {"batch": "mine"})
    assert said["by the call's logger"]["level"] == "INFO"
    assert said["on a thread"]["call_id"] == thread
    assert [said[f"in coroutine {x}"]["call_id"] for x in range(2)] == coroutines
    assert (said["item 3"]["call_id"], said["item 3"]["batch"], said["item 3"]["attempt"]) == (f"{batch}.3", batch, 1)
    assert "nobody asked for this one" not in said
    (failed,) = (line for line in found if "failed for good" in line["message"])
    assert (failed["call_id"], failed["task"], failed["level"]) == (f"{batch}.2", "logging_tasks.each", "ERROR")
    assert len({line["worker"] for line in found}) == 1
