"""A batch as a notebook shows it: a bar and a table, in plain HTML that brings no script and no colour of text or background.

Every text is escaped: ids, names of tasks and exceptions are what users wrote.

Next: back to `onlooking.py`.
"""

from __future__ import annotations

from html import escape

from ..printable import printable
from .tally import BatchTally

PARTS = (("succeeded", "#2e8b57"), ("failed", "#c0392b"), ("cancelled", "#b8860b"))
"""Of the bar, with colours that can be told apart on a light page and on a dark one."""

MOST_ERRORS = 5


def batch_html(name: str, tally: BatchTally) -> str:
    """A batch as it stood."""
    counts = {"succeeded": tally.succeeded, "failed": tally.failed, "cancelled": tally.cancelled + tally.expired}
    left = "" if tally.seconds_left is None else f"{tally.seconds_left:,.0f} s"
    rows = {
        "Task": tally.task,
        "Done": f"{tally.done:,} of {tally.calls:,}{'' if tally.submitted_all else ' and more'}",
        **{part.capitalize(): f"{counts[part]:,}" for part, _ in PARTS},
        "Rate": f"{tally.rate:.3g}/s" if tally.rate else "",
        "Time left": left if tally.waiting else "",
        "Errors": ", ".join(f"{error} ({count:,})" for error, count in tally.errors.most_common(MOST_ERRORS)),
    }
    return _framed(name, f"{_bar(counts, tally.calls)}{_table(rows)}")


def problem_html(name: str, why: str) -> str:
    """A batch of which nothing can be told now."""
    return _framed(name, f"<div>{_text(why)}</div>")


def _framed(name: str, inner: str) -> str:
    return f'<div style="max-width:36em"><div><b>{_text(name)}</b></div>{inner}</div>'


def _bar(counts: dict[str, int], calls: int) -> str:
    widths = ((part, colour, 100 * counts[part] / calls if calls else 0.0) for part, colour in PARTS)
    parts = "".join(
        f'<span style="display:inline-block;height:100%;width:{width:.2f}%;background:{colour}" title="{part}"></span>'
        for part, colour, width in widths
        if width
    )
    done = sum(counts.values())
    said = f'role="img" aria-label="{done:,} of {calls:,} calls done"'
    return f'<div {said} style="height:0.8em;border:1px solid #888;font-size:1em;line-height:0;white-space:nowrap">{parts}</div>'


def _table(rows: dict[str, str]) -> str:
    cells = (
        f'<tr><th style="text-align:left">{_text(head)}</th><td>{_text(said)}</td></tr>' for head, said in rows.items() if said
    )
    return f"<table>{''.join(cells)}</table>"


def _text(text: str) -> str:
    return escape(printable(text))
