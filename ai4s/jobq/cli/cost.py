"""What storage requests cost: `cost`, of the workers that are listed, or of one batch.

Next: `../cost/`, which reckons it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .looking import EXIT_CODES, opened
from .output import json_option, note, show
from .target import Chosen

if TYPE_CHECKING:
    from ..cost.costs import Cost

COLUMNS = ("kind", "requests", "class", "amount", "share")


@click.command("cost", short_help="Say what storage requests come to.", epilog=EXIT_CODES)
@click.option("--batch", "batch_id", metavar="ID", help="Of this batch; of all workers that are listed unless given.")
@json_option
@click.pass_obj
def verb(chosen: Chosen, batch_id: str | None, *, as_json: bool) -> None:
    """Say what the storage was asked, by kind, and what that comes to.

    Without --batch it is what the workers that are listed have asked since they started; those that ended stay listed for a day.
    Of a batch it is what its producer and its workers asked. Prices are those of the file that $JOBQ_PRICES names, or else round
    figures that come with the package.

    \b
    Examples:
      jobq myaccount/myproj cost
      jobq myaccount/myproj cost --batch evaluation-3
      JOBQ_PRICES=prices.json jobq myaccount/myproj cost --json
    """
    with opened(chosen) as app:
        found = app.batch(batch_id).cost() if batch_id is not None else app.cost()
    rows = _rows(found)
    total = {"kind": "total", "requests": found.total, "class": "", "amount": found.amount, "share": 1.0 if found.amount else 0.0}
    if as_json:
        told = {"currency": found.currency, "as_of": found.as_of}
        show(({**row, **told} for row in [*rows, total]), (), as_json=True)
        return
    show([_in_words(row, found.currency) for row in [*rows, total]], COLUMNS)
    note(f"Prices as of {found.as_of}; to change them, name a file of yours in JOBQ_PRICES.")


def _rows(found: Cost) -> list[dict[str, Any]]:
    from ..cost.prices import CLASSES

    ordered = sorted(found.requests, key=lambda kind: (-found.by_kind.get(kind, 0.0), -found.requests[kind], kind))
    return [
        {
            "kind": kind,
            "requests": found.requests[kind],
            "class": CLASSES.get(kind, ""),
            "amount": found.by_kind.get(kind, 0.0),
            "share": found.by_kind.get(kind, 0.0) / found.amount if found.amount else 0.0,
        }
        for kind in ordered
    ]


def _in_words(row: dict[str, Any], currency: str) -> dict[str, Any]:
    from ..cost.costs import money

    return {**row, "requests": f"{row['requests']:,}", "amount": money(row["amount"], currency), "share": f"{row['share']:.0%}"}
