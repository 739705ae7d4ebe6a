"""How answers are shown: a table on a terminal, tab-separated lines where they are piped, one JSON object a line on request.

Whatever users or tasks wrote is shown as text: control characters and terminal escapes are spelled out.

Next: back to the verb.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, TextIO

import click

from ..printable import LOG_FORMAT, PlainFormatter, escaped, printable, storable

Row = Mapping[str, Any]

NAMES = frozenset({"id", "batch", "worker"})
"""Columns of what people copy into the next command."""

LEAST_WIDTH, GAP = 5, 2
"""Of any other column, and between two."""

EASY_WIDTH = 10
"""Before others get narrower than this, columns that can be spared are left out."""

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def show(rows: Iterable[Row], columns: tuple[str, ...], *, as_json: bool = False, spare: tuple[str, ...] = ()) -> None:
    """Show rows as they come; on a terminal once all are there. `columns` names what people see; JSON has all of each row.

    `spare` names those that a narrow terminal goes without, the first one first.
    """
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    lines = ([told(row.get(column)) for column in columns] for row in rows)
    if sys.stdout.isatty():
        _show_table(list(lines), columns, spare)
    else:
        _show_lines(chain([columns], lines))


def show_fields(row: Row, *, as_json: bool = False) -> None:
    """Show one thing, a field a line."""
    if as_json:
        click.echo(json.dumps(row))
        return
    width = max(map(len, row), default=0)
    for name, value in row.items():
        click.echo(f"{name:<{width}}  {told(value)}")


def told(value: object) -> str:
    """A value on one line."""
    return "" if value is None else printable(str(value))


def told_lines(text: str) -> str:
    """A text of several lines: as it is where it is piped, and fit for a terminal on one."""
    return storable(text) if not sys.stdout.isatty() else "\n".join(map(_told_line, text.split("\n")))


def note(text: str) -> None:
    """Say something beside the answer, on stderr."""
    click.echo(text, err=True)


@contextmanager
def logged(louder: int, base: int, formatter: logging.Formatter | None = None) -> Iterator[None]:
    """Log to stderr for the length of the block: from level `base` on, or more, or less; from 2 on, what others log as well.

    `formatter` writes the records; plain text unless given.
    """
    ours, root = logging.getLogger("ai4s.jobq"), logging.getLogger()
    before, before_root, handler = ours.level, root.level, _Stderr()
    handler.setFormatter(formatter or PlainFormatter(LOG_FORMAT))
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG if louder > 0 else min(logging.CRITICAL, base - 10 * louder))
    # What it says of each credential that does not work, our own line says of all.
    logging.getLogger("azure.identity").setLevel(logging.NOTSET if louder > 0 else logging.ERROR)
    root.setLevel({2: logging.INFO}.get(louder, logging.WARNING) if louder < 3 else logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(before)
        root.setLevel(before_root)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is when it writes: tests and progress bars put others in its place."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _told_line(line: str) -> str:
    return "\t".join(escaped(storable(part)) for part in line.removesuffix("\r").split("\t"))


def _show_lines(rows: Iterable[Iterable[str]]) -> None:
    for row in rows:
        click.echo("\t".join(row))


def _show_table(rows: list[list[str]], columns: tuple[str, ...], spare: tuple[str, ...]) -> None:
    """A line for each row. Names are shown whole, to be copied; where there is no room for that and a bit of the rest, lines."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    wanted = {column[0]: max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)}
    widths = _with_room(wanted, spare, console.width)
    if widths is None:
        _show_lines([list(columns), *rows])
        return
    heads = (Column(name, no_wrap=True, overflow="ellipsis", width=width) for name, width in widths.items())
    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for name, cell in zip(columns, row, strict=True) if name in widths))
    console.print(table)


def _with_room(wanted: dict[str, int], spare: tuple[str, ...], width: int) -> dict[str, int] | None:
    """Widths of the columns that are shown, as many as there is room for; None if there is none for those that must be."""
    for left_out in range(len(spare) + 1):
        kept = {name: wide for name, wide in wanted.items() if name not in spare[:left_out]}
        fixed, room = [name in NAMES for name in kept], width - GAP * (len(kept) - 1)
        least = EASY_WIDTH if left_out < len(spare) else LEAST_WIDTH
        if (widths := fitting(list(kept.values()), fixed, room, least)) is not None:
            return dict(zip(kept, widths, strict=True))
    return None


def fitting(wanted: list[int], fixed: list[bool], room: int, least: int = LEAST_WIDTH) -> list[int] | None:
    """Widths of columns that fit: the widest give way, but for those that are fixed; None if that is not enough."""
    widths = list(wanted)
    while sum(widths) > room:
        longest = max((width, place) for place, width in enumerate(widths) if not fixed[place]) if not all(fixed) else (0, 0)
        if longest[0] <= least:
            return None
        widths[longest[1]] -= 1
    return widths
