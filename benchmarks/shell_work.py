"""Shell commands from the command line, pushed and worked off, beside ai4s-jobq 3.13 in the same run: what most of its users did.

Whole processes are timed, from start to exit: `push` reads one command a line, `worker -n 4` ends when its queue is empty.
Both versions take turns at one emulator, each at a queue of its own.

Next: `outside.py`, which installs the other.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import outside
from figures import Figure, Options, Result, report
from storage import on_azurite

TITLE = "Shell commands"
SLOTS = 4
COMMAND = "true"
ACCOUNT = "devstoreaccount1"


@dataclass(frozen=True)
class Sizes:
    """How many commands, how often."""

    commands: int = 500
    rounds: int = 3


@dataclass(frozen=True)
class CommandLine:
    """A version's program at a place, given by its connection string."""

    program: Path
    url: str
    home: str

    def seconds(self, queue: str, *arguments: str, text: str = "") -> float:
        """How long a command takes from start to exit; raises RuntimeError for one that fails."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBQ_")}
        began = time.perf_counter()
        answer = subprocess.run(
            [str(self.program), f"{ACCOUNT}/{queue}", *arguments], input=text, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.home,
            env={**kept, "HOME": self.home, "JOBQ_CONNECTION_STRING": self.url},
        )  # fmt: skip
        taken = time.perf_counter() - began
        if answer.returncode:
            raise RuntimeError(f"{answer.args} ended with {answer.returncode}:\n{answer.stdout[-4000:]}")
        return taken

    def round(self, commands: int) -> tuple[float, float]:
        """Seconds to push so many commands, and to work them off."""
        queue = f"bench-{uuid.uuid4().hex[:8]}"
        pushed = self.seconds(queue, "push", text=f"{COMMAND}\n" * commands)
        return pushed, self.seconds(queue, "worker", "-n", str(SLOTS))


def figures(url: str, home: str, sizes: Sizes) -> list[Figure]:
    """Rates of both, in turns."""
    ours = CommandLine(Path(sys.executable).with_name("jobq"), url, home)
    old_python = Path(outside.python_with(outside.OLD_JOBQ.requirements))
    theirs = CommandLine(old_python.with_name("ai4s-jobq"), url, home)
    rounds = [(ours.round(sizes.commands), theirs.round(sizes.commands)) for _ in range(sizes.rounds)]

    def rate(part: Callable[[tuple[float, float]], float], version: int) -> float:
        return sizes.commands / statistics.median(part(both[version]) for both in rounds)

    what = f"{sizes.commands:,} times `{COMMAND}`"
    parts: list[tuple[str, Callable[[tuple[float, float]], float], float | None]] = [
        (f"{what}, pushed and worked off with -n {SLOTS}", sum, 2),
        (f"{what}, pushed", lambda seconds: seconds[0], None),
        (f"{what}, worked off with -n {SLOTS}", lambda seconds: seconds[1], None),
    ]
    other = outside.OLD_JOBQ.name
    return [Figure(name, rate(part, 0), "commands/s", rate(part, 1), other, at_least=bound) for name, part, bound in parts]


def measure(options: Options) -> Result:
    """All figures of the group."""
    sizes = Sizes(commands=40, rounds=1) if options.short else Sizes()
    with on_azurite() as url, tempfile.TemporaryDirectory() as home:
        found = figures(url, home, sizes)
    return Result("shell_work", TITLE, found, f"at most {sizes.commands}", short=options.short)


if __name__ == "__main__":
    report("shell_work", TITLE, measure)
