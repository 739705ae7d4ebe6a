"""What an app's workers and this process have asked of the storage, and what that comes to.

Each worker's status tells what it has asked since it started; a status stays for a day after the worker has ended, or until it is
swept. So this is the cost of the workers that are listed, whenever they began, and not of all that ever was.

Next: back to `app.py`.
"""

from __future__ import annotations

from collections import Counter

from .. import layout, requests_made
from ..config import read_settings
from ..ledger import Ledger
from .costs import Cost, cost_of
from .prices import read_prices


async def requests_of_app(ledger: Ledger) -> Counter[str]:
    """What the workers that are listed, and this process, have asked; one listing."""
    asked, store = Counter[str](), await ledger.store()
    async for info in store.list(layout.WORKERS, with_metadata=True):
        asked.update(requests_made.from_text(info.metadata.get("requests", "")))
    asked.update(ledger.transport.requests.snapshot())
    return asked


async def cost_of_app(ledger: Ledger) -> Cost:
    """What that comes to, at the prices that the environment names. Raises ConfigurationError for a file that holds none."""
    prices = read_prices(read_settings().prices_file)
    return cost_of(await requests_of_app(ledger), prices)
