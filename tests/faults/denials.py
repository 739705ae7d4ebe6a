"""A right that is revoked for a while: 403 for everything, or for the queue alone, and then it is given back.

What has been worked out by then is kept until the lease's end and written as soon as it can be; nothing runs again, nothing is
given up, and the worker stays. Where it can still write its status, that says what is wrong.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from between import Between, proxy_before
from fault_proxy import Fault, no_faults
from harness import Experiment, Lab, Row, Trial, trial
from projects import until

from ai4s.jobq.ledger import Ledger

SETTLE_SECONDS = 0.5
"""For requests that had come through before it was denied."""


@dataclass(frozen=True)
class Size:
    """So many calls that end while everything is denied for `seconds`, well below a lease; then the queue alone is."""

    calls: int = 200
    seconds: float = 20
    call_seconds: float = 3
    slots: int = 50


def run(lab: Lab, place: str, size: Size) -> Row:
    with proxy_before(lab.azurite()) as between, trial(lab, "revoked rights", place, url=between.url) as it:
        between.follow(no_faults)
        worker = it.worker("--concurrency", str(size.slots))
        complaints = []
        with it.watched():
            for first in range(0, size.calls, size.slots):
                numbers = range(first, min(first + size.slots, size.calls))
                complaints += deny_while_they_run(between, it, size, numbers)
            deny_the_queue(between, it)
            it.until_empty()
        row = it.row(faults=between.spoiled.total())
        return row.but(*complaints, *([] if worker.process.poll() is None else ["the worker has ended"]))


def deny_while_they_run(between: Between, it: Trial, size: Size, numbers: range) -> list[str]:
    """Have these calls end while nothing is allowed, and give the right back."""
    for n in numbers:
        it.submit(n, seconds=size.call_seconds)
    until(lambda: len(it.executions()) >= numbers.stop, 120, "all calls begun")
    between.follow(lambda request: Fault.DENIED)
    time.sleep(SETTLE_SECONDS)
    before = len(it.etags())
    time.sleep(size.seconds)
    written = len(it.etags()) - before
    between.follow(no_faults)
    until(lambda: len(it.etags()) >= numbers.stop, 60, "their outcomes, once it is allowed again")
    none_left = [] if before < numbers.stop else ["all calls had ended before it was denied"]
    return none_left + ([f"{written} outcomes were written in spite of it"] if written else [])


def deny_the_queue(between: Between, it: Trial) -> None:
    """Deny the queue alone, until the worker's status says so."""

    async def troubles(ledger: Ledger) -> list[str]:
        store = await ledger.store()
        return [info.metadata.get("trouble", "") async for info in store.list("workers/", with_metadata=True)]

    between.follow(lambda request: Fault.DENIED if request.service == "queue" else Fault.NONE)
    until(lambda: "AccessDenied" in "".join(it.judge.client.run(troubles)), 120, "a status that says what is wrong")
    between.follow(no_faults)


EXPERIMENTS = [
    Experiment("denials", run, full=[Size()], short=Size(calls=4, slots=4, seconds=3, call_seconds=1), places=("azurite",))
]
