"""What came of a shell command that succeeded: the value of a call of the built-in task `jobq.shell`.

One that failed raises `CommandFailed`, which says the same.

Next: `shell/running.py`, which makes it; `codec.py`, by which it travels.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_OUTPUT_BYTES = 64 * 1024
"""So much of what a command has written is kept, from its end."""


@dataclass(frozen=True, slots=True)
class ShellResult:
    """How a command ended. `output` is the end of what it wrote to stdout and stderr, in the order in which it came."""

    exit_code: int
    output: str
    seconds: float
