"""How much memory children hold, whether the kernel has killed somebody for want of it, and how this process keeps its own small.

Next: `executors.py`, which replaces or ends the children that hold too much.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""

KERNEL_COUNTS = Path("/proc/vmstat")
MIB, GIB = 1024**2, 1024**3


def held_bytes(pid: int) -> int:
    """The resident memory of a process; 0 for one that has ended."""
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def held_by_trees(roots: Iterable[int]) -> dict[int, int]:
    """The resident memory of each of these processes with all that it has started; one look at the machine's processes."""
    started: dict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter(["ppid"]):
        started[process.info["ppid"] or 0].append(process.pid)
    return {root: sum(map(held_bytes, _tree(root, started))) for root in roots}


def _tree(root: int, started: Mapping[int, list[int]]) -> Iterator[int]:
    yield root
    for child in started.get(root, []):
        yield from _tree(child, started)


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


def use_one_heap() -> None:
    """Have all threads of this process, which must not have started any yet, use one heap.

    glibc gives threads heaps of their own, and keeps in each what its thread has freed: blocks that are read on one thread and sent
    from another took twice the memory. Another C library than glibc has nothing to be told.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def readable(size: int) -> str:
    """A size for people.

    >>> readable(300 * 1024**2), readable(5 * 1024**3 // 2)
    ('300 MiB', '2.5 GiB')
    """
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
