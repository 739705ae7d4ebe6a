"""What `top` shows: an app at a glance, fitted to a terminal; also as plain lines. Nothing is read here.

Whatever users or tasks wrote is shown as text. Each section gets what it needs of the lines there are, and the long ones share the
rest.

Next: `top.py`, which asks and shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from ..printable import printable
from .looking import lasting
from .output import GAP, fitting

Row = Mapping[str, Any]
Cell = Callable[[Row], str]

BAR_CHARS = 10
GAP_LINES = 2
"""Of a section: a line before it, and its head."""

WIDE_CHARS = 110
"""From here on there is room for columns of the second rank."""

MOST_LINES = 400
"""Of a picture that is not for a screen."""

TROUBLE, FAINT, HEAD, SECTION = "bold red", "dim", "bold", "cyan"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known: the dashboard's overview and workers, how old that is in seconds (None: nothing yet), and what is wrong."""

    overview: Row
    workers: Sequence[Row] = ()
    age_seconds: float | None = None
    problem: str = ""
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Column:
    """A column: what stands in it, and whether it needs a wide screen.

    Where there is no room, texts give way first, then names, which people copy, and numbers never.
    """

    name: str
    cell: Cell
    is_number: bool = False
    is_name: bool = False
    is_extra: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Rows of one kind, the most interesting first. `style` says how a row looks."""

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Row]
    style: Callable[[Row], str] = field(default=lambda row: "")


class Picture:
    """A snapshot as rich shows it: as many rows as there is room for. `hint` is the last line."""

    def __init__(self, snapshot: Snapshot, hint: str = "") -> None:
        self._snapshot, self._hint = snapshot, hint

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        height = options.height or MOST_LINES
        head = [*_head(self._snapshot, width)][: max(1, height - bool(self._hint))]
        sections = [section for section in _sections(self._snapshot, ascii_only=options.ascii_only) if section.rows]
        room = height - len(head) - bool(self._hint) - GAP_LINES * len(sections)
        parts: list[Any] = head
        for section, count in zip(sections, shared_out([len(each.rows) for each in sections], room), strict=True):
            if count:
                parts += [Text(), _table(section, count, width)]
        if not any(worker["is_live"] for worker in self._snapshot.workers) and self._snapshot.age_seconds is not None:
            parts.append(Text("No worker is at work.", FAINT))
        if self._hint:
            parts.append(Text(self._hint, FAINT))
        yield Group(*parts)


def shared_out(wanted: Sequence[int], room: int) -> list[int]:
    """How many rows each section gets: who wants little gets it, and the others share the rest evenly.

    >>> shared_out([2, 50, 50], 20)
    [2, 9, 9]
    >>> shared_out([1, 1], 20)
    [1, 1]
    """
    given, left = [0] * len(wanted), max(0, room)
    for place in sorted(range(len(wanted)), key=lambda place: wanted[place]):
        share = left // (len(wanted) - sum(1 for each in given if each)) if left else 0
        given[place] = min(wanted[place], share)
        left -= given[place]
    return given


def bar(share: float, chars: int = BAR_CHARS, *, ascii_only: bool = False) -> str:
    """A share of 1 as a bar."""
    full, rest = ("#", ".") if ascii_only else ("█", "░")
    count = int(min(1.0, max(0.0, share)) * chars)
    return full * count + rest * (chars - count)


def amount(number: float | None) -> str:
    """A count in few characters: 950, 12,345, 3.4M."""
    if number is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}"


def size(count: float | None) -> str:
    """Bytes in few characters: 512M, 1.5G."""
    if not count:
        return ""
    for unit, each in (("T", 2**40), ("G", 2**30), ("M", 2**20)):
        if count >= each:
            return f"{count / each:.3g}{unit}" if count < 100 * each else f"{count / each:.0f}{unit}"
    return "<1M"


def speed(per_second: float | None) -> str:
    """Calls a second, or a minute or an hour where that is easier to read."""
    if not per_second:
        return ""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if per_second * seconds >= 1 or unit == "h":
            return f"{per_second * seconds:.3g}/{unit}" if per_second * seconds < 1000 else f"{per_second * seconds:,.0f}/{unit}"
    return ""


# the head


def _head(snapshot: Snapshot, width: int) -> Iterator[Text]:
    said = snapshot.overview
    age = "nothing read yet" if snapshot.age_seconds is None else f"{lasting(snapshot.age_seconds)} old"
    name = Text(printable(f"{said['app']} at {said['place']}"), HEAD)
    name.truncate(max(1, width - len(age) - 2), overflow="ellipsis")
    yield Text.assemble(name, " " * max(2, width - name.cell_len - len(age)), (age, TROUBLE if snapshot.problem else FAINT))
    if snapshot.problem:
        yield _line(printable(snapshot.problem), width, TROUBLE)
    if snapshot.age_seconds is not None:
        yield from (_line(line, width) for line in _joined(_facts(snapshot), width))


def _joined(facts: Iterator[str], width: int) -> Iterator[str]:
    line = ""
    for fact in facts:
        longer = f"{line} · {fact}" if line else fact
        if line and cell_len(longer) > width:
            yield line
            longer = fact
        line = longer
    yield line


def _line(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style, no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    return line


def _facts(snapshot: Snapshot) -> Iterator[str]:
    said, live = snapshot.overview, [worker for worker in snapshot.workers if worker["is_live"]]
    silent = sum(worker["state"] == "silent" for worker in snapshot.workers)
    yield f"{len(live)} worker{'s' * (len(live) != 1)}{f' ({silent} silent)' if silent else ''}"
    yield f"{amount(said['running'])} of {amount(said['workers']['slots'])} slots busy"
    yield f"{amount(said['calls_left'])} calls left"
    if per_second := speed(said["throughput"]["per_second"]):
        yield f"{per_second} end"
    if said["seconds_left"]:
        yield f"{lasting(said['seconds_left'])} to go"
    if (rate := said["success"]["rate"]) is not None:
        yield f"{rate:.1%} succeeded"
    if letters := said["dead_letters"]["total"]:
        yield f"{amount(letters)} dead letters"


# the sections


def _sections(snapshot: Snapshot, *, ascii_only: bool) -> Iterator[Section]:
    def gauge(share: float) -> str:
        return f"{share:>4.0%} {bar(share, ascii_only=ascii_only)}"

    yield Section("queue", _QUEUE_COLUMNS, snapshot.overview.get("queues", ()), lambda row: TROUBLE if row["paused"] else "")
    yield Section("batch", _batch_columns(gauge), snapshot.overview.get("batches", ()))
    yield Section("worker", _WORKER_COLUMNS, _workers(snapshot), _worker_style)
    yield Section("running", _call_columns(gauge), _calls(snapshot))


_QUEUE_COLUMNS = (
    Column("queue", lambda row: row["name"], is_name=True),
    Column("messages", lambda row: amount(row["messages"]), is_number=True),
    Column("calls", lambda row: amount(row["calls"]), is_number=True),
    Column("oldest", lambda row: lasting(row["oldest_seconds"]), is_number=True),
    Column("state", lambda row: "paused" if row["paused"] else "open"),
)


def _batch_columns(gauge: Callable[[float], str]) -> tuple[Column, ...]:
    return (
        Column("batch", lambda row: row["id"], is_name=True),
        Column("task", lambda row: row["task"], is_extra=True),
        Column("done", lambda row: gauge(_done(row) / row["calls"]) if row["calls"] else "", is_number=True),
        Column("of", lambda row: amount(row["calls"]), is_number=True),
        Column("running", lambda row: amount(row["running"]), is_number=True, is_extra=True),
        Column("failed", lambda row: amount(row["failed"]), is_number=True),
        Column("rate", lambda row: speed(row["rate"]), is_number=True),
        Column("left", lambda row: "stopping" if row["is_cancelled"] else lasting(row["seconds_left"]), is_number=True),
    )


def _done(batch: Row) -> int:
    return int(batch["succeeded"] + batch["failed"] + batch["cancelled"])


_WORKER_COLUMNS = (
    Column("worker", lambda row: row["id"], is_name=True),
    Column("where", lambda row: row["environment"], is_extra=True),
    Column("slots", lambda row: f"{row['running']}/{row['slots']}", is_number=True),
    Column("cpu", lambda row: f"{row['cpu_percent']:.0f}%" if row["cpu_percent"] is not None else "", is_number=True),
    Column("mem", lambda row: size(row["memory_bytes"]), is_number=True),
    Column("ok", lambda row: amount(row["succeeded"]), is_number=True),
    Column("failed", lambda row: amount(row["failed"]), is_number=True),
    Column("lost", lambda row: amount(row["lost"]), is_number=True, is_extra=True),
    Column("rate", lambda row: speed(row["rate"]), is_number=True),
    Column("heard", lambda row: lasting(row["heard_seconds"]), is_number=True),
    Column("state", lambda row: f"{row['state']}: {row['trouble']}" if row["trouble"] else row["state"]),
)


def _workers(snapshot: Snapshot) -> list[Row]:
    """Those in trouble first, then the busiest; what fell silent comes last, and what ended in good order not at all."""
    told = [worker for worker in snapshot.workers if worker["state"] != "stopped"]
    return sorted(told, key=lambda row: (not row["is_live"], not row["trouble"], -row["running"], row["id"]))


def _worker_style(worker: Row) -> str:
    return TROUBLE if worker["trouble"] else FAINT if not worker["is_live"] else ""


def _call_columns(gauge: Callable[[float], str]) -> tuple[Column, ...]:
    return (
        Column("running call", lambda row: row["id"], is_name=True),
        Column("task", lambda row: row["task"].rpartition(".")[2]),
        Column("worker", lambda row: row["worker"], is_extra=True),
        Column("for", lambda row: lasting(row["seconds"]), is_number=True),
        Column("progress", lambda row: _progress(row["progress"], gauge), is_number=True),
        Column("", lambda row: row["progress"]["message"] if row["progress"] else ""),
    )


def _progress(progress: Row | None, gauge: Callable[[float], str]) -> str:
    if progress is None:
        return ""
    done, total = progress["done"], progress["total"]
    return gauge(done / total) if total else f"{done:,.10g}"


def _calls(snapshot: Snapshot) -> list[Row]:
    """What runs for longest first."""
    told = [{**call, "worker": worker["id"]} for worker in snapshot.workers if worker["is_live"] for call in worker["calls"]]
    return sorted(told, key=lambda call: -call["seconds"])


def _table(section: Section, count: int, width: int) -> Table:
    columns = [column for column in section.columns if width >= WIDE_CHARS or not column.is_extra]
    hidden = f" ({count:,} of {len(section.rows):,})" if count < len(section.rows) else ""
    heads = [f"{column.name}{'' if place else hidden}" for place, column in enumerate(columns)]
    rows = [[printable(column.cell(row)) for column in columns] for row in section.rows[:count]]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style=SECTION)
    for column, head, chars in zip(columns, heads, _widths(columns, [heads, *rows], width), strict=True):
        justify: Literal["right", "left"] = "right" if column.is_number else "left"
        table.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis", width=chars)
    for row, cells in zip(section.rows, rows, strict=False):
        table.add_row(*map(Text, cells), style=section.style(row))
    return table


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """As wide as what stands in them; where that is too much, the longest texts give way, then names, and then all."""
    wanted = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    room = width - GAP * (len(columns) - 1)
    for fixed in ([column.is_number or column.is_name for column in columns], [column.is_number for column in columns]):
        if (widths := fitting(wanted, fixed, room)) is not None:
            return widths
    return wanted
