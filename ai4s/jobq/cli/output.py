"""How answers are shown: a table on a terminal, tab-separated lines where they are piped, one JSON object a line on request.

Whatever users or tasks wrote is shown as text: control characters and terminal escapes are spelled out.

Next: back to the verb.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click

from ..printable import printable

Row = Mapping[str, Any]

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def show(rows: Iterable[Row], columns: tuple[str, ...], *, as_json: bool = False) -> None:
    """Show rows as they come; on a terminal once all are there. `columns` names what people see; JSON has all of each row."""
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    elif sys.stdout.isatty():
        _show_table(rows, columns)
    else:
        click.echo("\t".join(columns))
        for row in rows:
            click.echo("\t".join(told(row.get(column)) for column in columns))


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


def _show_table(rows: Iterable[Row], columns: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(told(row.get(column))) for column in columns))
    Console().print(table)
