"""The kinds of values that options take: durations, sizes, and pairs for the environment.

Next: `worker.py` and the other verbs, which use them.
"""

from __future__ import annotations

import re
from typing import Any

import click

SIZES = {"m": 1024**2, "g": 1024**3}
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Seconds, from `90s`, `10m`, `24h` or `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value))
        if not match:
            self.fail(f"{value!r} is no duration; write 90s, 10m, 24h or 7d.", param, ctx)
        return float(match[1]) * UNITS[match[2]]


class Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Bytes, from `500m`, `2g` or `1.5g`: powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([mg])", str(value).lower())
        size = int(float(match[1]) * SIZES[match[2]]) if match else 0
        if size < SIZES["m"]:
            self.fail(f"{value!r} is no size of 1m or more; write 500m or 2g.", param, ctx)
        return size


class Pair(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A name and a value, from `NAME=VALUE`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, found, text = str(value).partition("=")
        if not found or not name:
            self.fail(f"{value!r} is no NAME=VALUE.", param, ctx)
        return name, text


class ExitCodes(click.ParamType):  # type: ignore[type-arg]  # (the same)
    """Exit codes, from `75,137`."""

    name = "codes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        codes = value.split(",") if isinstance(value, str) else value
        if not all(str(code).strip().isdecimal() and 1 <= int(code) <= 255 for code in codes):
            self.fail(f"{value!r} are no exit codes; write 75,137.", param, ctx)
        return tuple(map(int, codes))


class Regex(click.ParamType):  # type: ignore[type-arg]  # (the same)
    """The text of a regular expression."""

    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            re.compile(str(value))
        except re.error as exc:
            self.fail(f"{value!r} is no regular expression: {exc}.", param, ctx)
        return str(value)
