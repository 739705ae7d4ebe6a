"""What counted requests come to.

Next: `of_app.py` for an app's; a batch's are in its tally, `maps/tally.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .prices import CLASSES, PRICED, Prices

SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What requests to storage come to: their number by kind, the whole amount, and the amounts by kind and by class.

    `currency` and `as_of`, a date, are those of the prices that were used. Bytes, and what is stored, are not in it.
    """

    requests: Mapping[str, int]
    amount: float
    currency: str
    as_of: str
    by_class: Mapping[str, float] = field(default_factory=dict)
    by_kind: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many requests there are."""
        return sum(self.requests.values())

    def __str__(self) -> str:
        return f"{self.total:,} requests, {money(self.amount, self.currency)} (prices as of {self.as_of})"


def cost_of(requests: Mapping[str, int], prices: Prices) -> Cost:
    """What these requests, by kind, cost at these prices; a kind that is not known counts, and costs nothing."""
    counted = {kind: number for kind, number in requests.items() if number > 0}
    per_request = {name: prices.per_10000_requests.get(name, 0.0) / 10_000 for name in PRICED}
    by_kind = {kind: number * per_request.get(CLASSES.get(kind, ""), 0.0) for kind, number in counted.items()}
    by_class = dict.fromkeys(PRICED, 0.0)
    for kind, amount in by_kind.items():
        if kind in CLASSES:
            by_class[CLASSES[kind]] += amount
    return Cost(counted, sum(by_kind.values()), prices.currency, prices.as_of, by_class, by_kind)


def money(amount: float, currency: str) -> str:
    """An amount as people read it: to the cent, or to two digits where it is less than that.

    >>> money(12.345, "USD"), money(0.00123, "USD"), money(3, "CHF")
    ('$12.35', '$0.0012', '3.00 CHF')
    """
    number = f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else _small(amount)
    return f"{SYMBOLS[currency]}{number}" if currency in SYMBOLS else f"{number} {currency}"


def _small(amount: float) -> str:
    return f"{float(f'{amount:.2g}'):.12f}".rstrip("0")
