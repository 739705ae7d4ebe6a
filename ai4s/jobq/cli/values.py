"""The kinds of values that options take: durations, sizes, and pairs for the environment.

Next: `worker.py` and the other verbs, which use them.
"""

from __future__ import annotations

import re
from typing import Any

import click

SIZES = {"m": 1024**2, "g": 1024**3}
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Duration(click.ParamType[float]):
    """Seconds, from `90s`, `10m`, `24h` or `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value))
        if not match:
            self.fail(f"{value!r} is no duration; write 90s, 10m, 24h or 7d.", param, ctx)
        return float(match[1]) * UNITS[match[2]]


class Size(click.ParamType[int]):
    """Bytes, from `500m`, `2g` or `1.5g`: powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([mg])", str(value).lower())
        size = int(float(match[1]) * SIZES[match[2]]) if match else 0
        if size < SIZES["m"]:
            self.fail(f"{value!r} is no size of 1m or more; write 500m or 2g.", param, ctx)
        return size


class Pair(click.ParamType[tuple[str, str]]):
    """A name and a value, from `NAME=VALUE`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, found, text = str(value).partition("=")
        if not found or not name:
            self.fail(f"{value!r} is no NAME=VALUE.", param, ctx)
        return name, text
