"""Clocks. Leases run on the one that goes on while a machine sleeps and that nobody can set.

CLOCK_BOOTTIME exists on Linux; elsewhere the monotonic clock stands in, which may stop while the machine sleeps.
"""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds on a clock that never goes back and counts the time asleep; its zero means nothing."""
    boot_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(boot_clock)
