"""Cores and memory that the kernel grants to this process, which is often less than its machine has.

A container's quota, or the cores that a cluster's job is bound to, count as they are when this is asked.

Next: `process_work.py` and `worker/devices.py`, which share them out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

GROUP_FOLDER, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, and what a container's quota leaves of them; at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([bound, *_quotas()])))


def usable_memory_bytes() -> int:
    """Memory that this process and its children may hold together: the machine's, or what a container is limited to."""
    limits = (_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes") for folder in _groups("memory"))
    return int(min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)]))


def _quotas() -> Iterator[float]:
    """In cores. Source: cgroup-v2 `cpu.max`, "QUOTA PERIOD" with "max" for none; v1 `cpu.cfs_quota_us`, -1 for none."""
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield float(quota) / float(period)
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota_us is not None and period_us and quota_us > 0:
            yield quota_us / period_us


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups: its own and those above, each of which may limit it."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = GROUP_FOLDER / controllers if controllers else GROUP_FOLDER
            own = root / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _number(path: Path) -> float | None:
    with suppress(OSError, ValueError):
        return float(path.read_text())
    return None
