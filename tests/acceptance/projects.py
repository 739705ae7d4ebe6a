"""A user's project in a folder of its own, and the workers that are started in it as real processes.

A project is one module with an app and its tasks, written by the test and imported by both sides. Every process started here
is stopped by its own id. Nothing waits for a fixed time: `until` looks again and again, up to a deadline that only a fault reaches.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ai4s.jobq import App
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call, DeadLetter
from ai4s.jobq.transports.base import Delivery

T = TypeVar("T")
NewProject = Callable[..., "Project"]
SOON = 60.0  # seconds; far more than anything here takes on a busy machine


def until(condition: Callable[[], T], within: float = SOON, what: str = "") -> T:
    """Look until `condition()` is true, and return what it returned; fails after `within` seconds."""
    give_up_at, pause = time.monotonic() + within, threading.Event()
    while not (found := condition()):
        assert time.monotonic() < give_up_at, f"not within {within:g} s: {what or condition}"
        pause.wait(0.02)
    return found


def alive(pid: int) -> bool:
    """Whether a process lives; one that has ended and only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    """The processes that this one has started and that live."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdigit() and (path / "stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(path.name))
    return [child for child in found if alive(child)]


def peak_memory(pid: int) -> int:
    """The most bytes of memory that a process has had."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


def program(name: str) -> list[str]:
    """The command line of one of the project's commands, with this Python."""
    return [str(Path(sys.executable).with_name(name))]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would lead a worker elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBQ_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **changes}


@dataclass
class WorkerProcess:
    """A `jobq-worker` that was started by a test, and its log."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """All that it and its children have said."""
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self.process.pid

    @property
    def children(self) -> list[int]:
        """The children that live now."""
        return children_of(self.pid)

    def until_says(self, text: str, within: float = SOON) -> WorkerProcess:
        """Wait until the log holds `text`."""

        def said() -> bool:
            if text in self.log:
                return True
            assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.log}"
            return False

        until(said, within, f"{text!r} in the log:\n{self.log}")
        return self

    def until_ready(self) -> WorkerProcess:
        """Wait until it takes messages."""
        return self.until_says(" serves app ")

    def signal(self, number: signal.Signals) -> None:
        """Send the supervisor a signal."""
        self.process.send_signal(number)

    def wait(self, within: float = SOON) -> int:
        """The exit code, once it has ended."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker still runs after {within:g} s:\n{self.log}") from None

    def kill(self) -> None:
        """End the supervisor at once; its children have to see to themselves."""
        self.process.kill()
        self.process.wait()


@dataclass
class Project:
    """A folder with a module of tasks, and the place where its calls lie."""

    folder: Path
    url: str
    app_name: str
    module: ModuleType
    workers: list[WorkerProcess] = field(default_factory=list)

    @property
    def app(self) -> App:
        """The app of the project's module, in this process."""
        app = self.module.app
        assert isinstance(app, App)
        return app

    @property
    def target(self) -> str:
        """What a worker is told to serve."""
        return f"{self.module.__name__}:app"

    def task(self, name: str) -> Any:
        """A task of the module."""
        return getattr(self.module, name)

    def worker(self, *options: str, target: str | None = None, ready: bool = True, **variables: str) -> WorkerProcess:
        """Start a worker in the project's folder; with `ready`, it takes messages when this returns."""
        log_path = self.folder / f"worker-{len(self.workers)}.log"
        command = [*program("jobq-worker"), target or self.target, *options]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment(**variables), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        worker = WorkerProcess(process, log_path)
        self.workers.append(worker)
        return worker.until_ready() if ready else worker

    def run(self, name: str, source: str, *, within: float = SOON, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script in the project's folder to its end."""
        path = self.folder / name
        path.write_text(textwrap.dedent(source))
        return subprocess.run(
            [sys.executable, str(path)], cwd=self.folder, env=environment(**variables),
            capture_output=True, text=True, timeout=within, check=False,
        )  # fmt: skip

    # What lies in storage.

    def send_text(self, text: str, queue: str = "default") -> None:
        """Put any text on a queue."""

        async def send(ledger: Ledger) -> None:
            await (await ledger.queue(queue)).send(text)

        self.app.client.run(send)

    def send_call(self, call: Call) -> None:
        """Put a call's message on its queue, as it is."""

        async def send(ledger: Ledger) -> None:
            await ledger.send(call)

        self.app.client.run(send)

    def take(self, queue: str = "default", lease_seconds: float = 60) -> list[Delivery]:
        """Take what is visible, as a worker would."""

        async def receive(ledger: Ledger) -> list[Delivery]:
            return await (await ledger.queue(queue)).receive(32, lease_seconds=lease_seconds)

        return self.app.client.run(receive)

    def give_back(self, delivery: Delivery, queue: str = "default") -> None:
        """Release what was taken, visible at once."""

        async def release(ledger: Ledger) -> None:
            await (await ledger.queue(queue)).release(delivery.receipt)

        self.app.client.run(release)

    def make_visible(self) -> None:
        """Let the delays of all messages in the project's folder be over: what no receipt can do, the folder's own clock does."""
        with contextlib.closing(sqlite3.connect(Path(self.url.removeprefix("local://")) / "jobq.db")) as database, database:
            database.execute("UPDATE messages SET visible_at = 0")

    def depth(self, queue: str = "default") -> int:
        """How many messages a queue holds, invisible ones included."""

        async def count(ledger: Ledger) -> int:
            return await (await ledger.queue(queue)).depth()

        return self.app.client.run(count)

    def visible(self, queue: str = "default") -> int:
        """How many messages of a queue a worker could take now."""

        async def count(ledger: Ledger) -> int:
            return len(await (await ledger.queue(queue)).peek(32))

        return self.app.client.run(count)

    def names(self, prefix: str) -> list[str]:
        """The names of blobs."""

        async def names(ledger: Ledger) -> list[str]:
            return [info.name async for info in (await ledger.store()).list(prefix)]

        return self.app.client.run(names)

    def dead_letters(self, queue: str = "default") -> list[DeadLetter]:
        """What was given up."""

        async def letters(ledger: Ledger) -> list[DeadLetter]:
            store = await ledger.store()
            names = [info.name async for info in store.list(f"failed/{queue}/")]
            blobs = [(name, await store.get(name)) for name in names]
            return [ledger.wire.unseal(DeadLetter, blob.data, name) for name, blob in blobs if blob]

        return self.app.client.run(letters)

    def lines(self, name: str) -> list[str]:
        """The lines that tasks have written to a file of the folder."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def close(self) -> None:
        """Stop every worker by its id, and forget the module."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        self.app.close()
        sys.modules.pop(self.module.__name__, None)
        importlib.invalidate_caches()


HEADER = """
import asyncio, os, pathlib, signal, subprocess, sys, threading, time
from ai4s.jobq import App, current

HERE = pathlib.Path(__file__).parent
app = App({name!r}, {url!r}{options})

def note(name, line):
    with open(HERE / name, "a") as file:
        file.write(f"{{line}}\\n")
"""


@contextlib.contextmanager
def new_project(folder: Path, url: str, source: str, options: str = "") -> Iterator[Project]:
    """A project whose module has an app and this source; its workers are stopped at the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:12]
    app_name, module_name = f"t{token}", f"tasks_{token}"
    header = HEADER.format(name=app_name, url=url, options=options and f", {options}")
    (folder / f"{module_name}.py").write_text(header + textwrap.dedent(source))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        project = Project(folder, url, app_name, importlib.import_module(module_name))
        try:
            yield project
        finally:
            project.close()
    finally:
        sys.path.remove(str(folder))
