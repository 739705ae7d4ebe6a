"""How much memory children hold, and whether the kernel has killed somebody for want of it.

Next: `executors.py`, which replaces or ends the children that hold too much.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

KERNEL_COUNTS = Path("/proc/vmstat")
GIB = 1024**3


def held_bytes(pid: int, *, with_descendants: bool) -> int:
    """The resident memory of a process, and of what it has started; 0 for one that has ended."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        total = process.memory_info().rss
        for child in process.children(recursive=True) if with_descendants else []:
            with suppress(psutil.Error):
                total += child.memory_info().rss
    return int(total)


def kernel_kills() -> int:
    """How often this machine's kernel has killed a process for want of memory, in containers too; 0 where it does not say.

    Source: `oom_kill` of /proc/vmstat, Linux 4.13 and later.
    """
    with suppress(OSError):
        for line in KERNEL_COUNTS.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / GIB:.2f} GiB"
