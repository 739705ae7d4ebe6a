"""What others do with the same work: each reference in an environment of its own, made on first use and kept.

A reference is a program under `references/` and what must be installed for it. It is started with its workers, told how many calls
to make, and stopped: one after the other with ours, on the same storage, with as many worker processes.

    with outside.started(outside.CELERY, url, processes=2) as celery:
        rate = 500 / statistics.median(celery.seconds(500, rounds=3))

Next: `references/program.py`, the other end of the pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".tools" / "references"  # beside the emulator; git ignores it
WARM_UP_CALLS = 20
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Reference:
    """One program to compare with. Without `requirements` it runs with this Python and what is installed for ours."""

    name: str
    program: str
    requirements: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    note: str = ""


AZURE_SDK = ("azure-storage-queue", "azure-storage-blob", "azure-identity")
CELERY = Reference("Celery 5.7", "celery_on_azure.py", ("celery==5.7.*", *AZURE_SDK))
QUICK_CELERY = Reference(
    "Celery 5.7, polling every 25 ms", CELERY.program, CELERY.requirements, (("CELERY_POLL_SECONDS", "0.025"),)
)  # fmt: skip
OLD_JOBQ = Reference("ai4s-jobq 3.13", "old_jobq.py", ("ai4s-jobq==3.13.*",), note="no results: until the last call has run")
DRAMATIQ = Reference(
    "dramatiq-azure 2.0", "dramatiq_on_azure.py", ("dramatiq-azure==2.0.*",), note="no results: until the last call has run"
)
HUEY = Reference("huey 3 on SQLite, synced as ours", "huey_on_sqlite.py", ("huey==3.*",))
HUEY_AS_IT_COMES = Reference(
    "huey 3 on SQLite as it comes", HUEY.program, HUEY.requirements, (("HUEY_SYNCHRONOUS", "full"),), "it syncs the disk each time"
)  # fmt: skip
PROCESS_POOL = Reference("ProcessPoolExecutor", "process_pool.py", note="one machine, nothing outlives the program")
BARE_PACKS = Reference("bare packs", "bare_packs.py")


@dataclass(frozen=True)
class Started:
    """A reference whose workers run."""

    process: subprocess.Popen[str]
    log: IO[str]

    def seconds(self, calls: int, rounds: int = 1) -> list[float]:
        """Seconds of each of `rounds` times `calls` calls, from the first one sent to the last value read."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"calls": calls, "rounds": rounds}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}:\n{self.log.read()[-4000:]}")
        measured: list[float] = json.loads(answer)
        return measured


@contextlib.contextmanager
def started(reference: Reference, place: str, processes: int = 2) -> Iterator[Started]:
    """Start a reference at a place and let it make a few calls, so that all of it runs; stop it afterwards."""
    command = [python_with(reference.requirements), str(HERE / "references" / reference.program), place, str(processes)]
    environment = {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **dict(reference.variables)}
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as log:
        # A session of its own, so that all of it can be ended if it does not end by itself.
        process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True)
        try:
            running = Started(process, log)
            running.seconds(WARM_UP_CALLS)
            yield running
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    try:
        process.communicate(timeout=STOP_SECONDS)  # the end of its input is the end of its work
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def python_with(requirements: tuple[str, ...]) -> str:
    """A Python in an environment that has these installed; made on first use, while others who want it wait."""
    if not requirements:
        return sys.executable
    wanted = "\n".join((sys.version, *requirements))
    folder = ENVIRONMENTS / hashlib.sha256(wanted.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    python, done = folder / "bin" / "python", folder / "installed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            # `virtualenv` brings its own pip, so that a Python without ensurepip will do.
            must_run([sys.executable, "-m", "virtualenv", str(folder)])
            must_run([str(python), "-m", "pip", "install", *requirements])
            done.write_text(wanted + "\n", encoding="utf-8")
    return str(python)


def must_run(command: list[str]) -> None:
    """Run it quietly; fail with what it said."""
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {answer.returncode}:\n{answer.stdout[-2000:]}")
