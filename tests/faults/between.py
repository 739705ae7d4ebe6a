"""The proxy of `fault_proxy.py` on a thread of its own, for trials whose producers and workers are to reach Azurite through it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fault_proxy import Fault, FaultyAccount, Plan, Request, faulty_account


@dataclass
class Between:
    """An account whose requests come by here; `plan` may be changed at any time."""

    account: FaultyAccount
    spoiled: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        """For those who are to meet the faults."""
        return self.account.url

    def follow(self, plan: Plan) -> None:
        """From now on, do what this plan says, and count."""

        def counting(request: Request) -> Fault:
            fault = plan(request)
            self.seen[request.kind] += 1
            self.spoiled[request.kind] += fault is not Fault.NONE
            self.account.requests.clear()  # counted, and not to be kept for minutes
            return fault

        self.account.plan = counting


@contextlib.contextmanager
def proxy_before(url: str) -> Iterator[Between]:
    """A proxy before the account at `url`, until the end of the block."""
    loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[FaultyAccount] = []

    async def serve() -> None:
        async with faulty_account(url) as account:
            found.append(account)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="proxy")
    thread.start()
    try:
        assert ready.wait(30), "the proxy does not start"
        yield Between(found[0])
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
