"""The table of prices: what ten thousand requests cost, by what the storage bills them as, and when that was so.

The one that comes with the package holds round figures. `JOBQ_PRICES` names a file of the same form to use instead.

Next: `costs.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError

CLASSES = {
    "queue_send": "queue",
    "queue_receive": "queue",
    "queue_renew": "queue",
    "queue_delete": "queue",
    "queue_peek": "queue",
    "queue_depth": "queue",
    "queue_other": "queue",
    "blob_put": "write",
    "blob_append": "write",
    "blob_other": "write",
    "blob_list": "list",
    "blob_get": "read",
    "blob_head": "read",
    "blob_delete": "delete",
}
"""What each kind of request is billed as. All that is done with a queue costs the same."""

PRICED = tuple(dict.fromkeys(CLASSES.values()))
MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Prices:
    """What 10,000 requests cost, by class ("queue", "write", "list", "read", "delete"), in `currency`, as of a date."""

    as_of: str
    currency: str
    per_10000_requests: Mapping[str, float]


def read_prices(path: str | None = None) -> Prices:
    """The prices in this file, or those that come with the package. Raises ConfigurationError for a file that holds none."""
    source = "The prices of the package" if path is None else f"JOBQ_PRICES={path}"
    try:
        text = _text(path)
        return _prices(json.loads(text))
    except OSError as exc:
        raise ConfigurationError(f"{source}: the file cannot be read ({exc.strerror or exc}).") from exc
    except (ValueError, TypeError, LookupError, RecursionError) as exc:
        why = str(exc).partition("\n")[0][:200]
        raise ConfigurationError(
            f"{source}: {why}. It is JSON with as_of, currency and per_10000_requests, the prices of {', '.join(PRICED)}."
        ) from exc


def _text(path: str | None) -> str:
    if path is None:
        return files(__package__).joinpath("prices.json").read_text(encoding="utf-8")
    with Path(path).expanduser().open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"It is larger than {MOST_BYTES} bytes")
    return data.decode("utf-8")


def _prices(said: Any) -> Prices:
    if not isinstance(said, dict) or not isinstance(said.get("per_10000_requests"), dict):
        raise TypeError("It has no per_10000_requests")
    given = said["per_10000_requests"]
    missing = [name for name in PRICED if name not in given]
    if missing:
        raise ValueError(f"It has no price for {missing[0]}")
    unknown = [name for name in given if name not in PRICED]
    if unknown:
        raise ValueError(f"It has a price for {unknown[0][:40]!r}, which nothing is billed as")
    prices = {name: _price(name, given[name]) for name in PRICED}
    return Prices(_word(said, "as_of"), _word(said, "currency"), prices)


def _price(name: str, price: object) -> float:
    if isinstance(price, bool) or not isinstance(price, int | float) or not isfinite(price) or price < 0:
        raise ValueError(f"The price for {name} is {price!r:.40}, not a number of 0 or more")
    return float(price)


def _word(said: Mapping[str, object], name: str) -> str:
    word = said.get(name)
    if not isinstance(word, str) or not word.isprintable() or not 0 < len(word) <= 40:
        raise ValueError(f"{name} is {word!r:.60}, not a word")
    return word
