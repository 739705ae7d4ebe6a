"""The real client of ai4s-jobq 3.13, in an environment of its own: installed once into the checkout's `.tools`, and kept.

Next: `test_old_client.py`, which has it push to our workers, and work for our producers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projects import environment

REQUIREMENT = "ai4s-jobq==3.13.*"
TOOLS = Path(__file__).resolve().parents[2] / ".tools"
LONGEST_SECONDS = 300.0

PUSH = """
import asyncio, json, sys
from ai4s.jobq import JobQ

async def push(place, queue, tasks):
    async with JobQ.from_connection_string(queue, connection_string=place) as jobq:
        return [(await jobq.push(kwargs, num_retries=num_retries)).job_id for kwargs, num_retries in tasks]

print(json.dumps(asyncio.run(push(*json.loads(sys.stdin.read())))))
"""


@dataclass(frozen=True)
class OldClient:
    """Its command line and its API, at one place (a connection string)."""

    python: Path
    place: str
    home: Path

    def command(self, queue: str, *options: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run `ai4s-jobq ACCOUNT/QUEUE ...` to its end."""
        account = "devstoreaccount1"
        return self._run(
            str(self.python.with_name("ai4s-jobq")), "--conn-str", self.place, f"{account}/{queue}", *options, text=text
        )

    def push(self, queue: str, *tasks: tuple[dict[str, Any] | str, int]) -> list[str]:
        """Push keyword arguments, with so many retries each; returns what the queue calls the messages."""
        found = json.loads(self._run(str(self.python), "-c", PUSH, text=json.dumps([self.place, queue, tasks])).stdout)
        assert isinstance(found, list)
        return found

    def _run(self, *command: str, text: str | None) -> subprocess.CompletedProcess[str]:
        # A home of its own, since it keeps files there and looks for those of others.
        answer = subprocess.run(
            command, input=text or "", capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False,
            env=environment(HOME=str(self.home)), cwd=self.home,
        )  # fmt: skip
        assert answer.returncode == 0, f"{command[0]} ended with {answer.returncode}:\n{answer.stdout}{answer.stderr}"
        return answer


def installed() -> Path:
    """The Python that has it; installed by whoever comes first, while the others wait."""
    version = hashlib.sha256(f"{sys.version}\n{REQUIREMENT}".encode()).hexdigest()[:8]
    folder = TOOLS / f"ai4s-jobq-3.13-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    python, done = folder / "bin" / "python", folder / "installed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            # Without a pip of its own: then a Python without ensurepip will do.
            venv.create(folder, symlinks=True)
            pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
            answer = subprocess.run([*pip, "install", "-q", REQUIREMENT], capture_output=True, text=True, check=False)
            assert answer.returncode == 0, f"{REQUIREMENT} cannot be installed:\n{answer.stderr[-2000:]}"
            done.touch()
    return python
