"""What the workers of a queue are told beside its messages: to pause, to go on, to end, and which runs were cancelled.

Each is one change of `control/<queue>` under the condition that nobody else has changed it meanwhile, so two at a time
both take effect. All may be repeated: whoever does not know whether a change was made makes it again.

Next: `worker/orders.py`, which reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .ledger import Ledger
from .message import Control

CLOCK_SLACK_SECONDS = 2.0
"""What one process takes for the server's time may be a second or so behind what another one does."""

LONGEST_MEMORY_SECONDS = 3600.0
MOST_REMEMBERED = 1000
"""Which cancelled runs are listed: the newest so many, and none once there was no cancel for so long.

The list is for running attempts, and workers read it every few seconds; what has not begun is covered by `cancelled_at` alone.
An hour serves workers that cannot reach the storage for a while. A name that stays for longer does no harm: its run has ended.
All that were ever listed are counted, so that a worker knows when it may have missed one, and looks for itself.
"""


async def pause(ledger: Ledger, queue: str) -> None:
    """Have workers take nothing from the queue."""
    await ledger.change_control(queue, lambda control: replace(control, paused=True))


async def resume(ledger: Ledger, queue: str) -> None:
    """Have workers take messages again."""
    await ledger.change_control(queue, lambda control: replace(control, paused=False))


async def drain(ledger: Ledger, queue: str) -> None:
    """Have the workers that serve the queue now finish what they have, and end."""
    now = await ledger.transport.server_time()
    # Later than the last time, whatever the clock says: workers compare it with what they found when they started.
    await ledger.change_control(queue, lambda control: replace(control, drained_at=max(now, control.drained_at + 0.001)))


async def tell_cancelled(ledger: Ledger, queue: str, run: str) -> None:
    """Have workers stop the attempts of this run, and look before they begin a call that was sent until now.

    Its outcome must be there already: it is what they find.
    """
    await ledger.change_control(queue, _with_cancelled(run, await ledger.transport.server_time()))


def _with_cancelled(run: str, now: float) -> Callable[[Control], Control]:
    def change(control: Control) -> Control:
        lately = control.cancelled if now - control.cancelled_at < LONGEST_MEMORY_SECONDS else ()
        cancelled_at = max(control.cancelled_at, now + CLOCK_SLACK_SECONDS)
        # One that is listed keeps its place and is not counted again: the last n of the list are the last n that were counted.
        new = () if run in lately else (run,)
        listed = (*lately, *new)[-MOST_REMEMBERED:]
        return replace(control, cancelled=listed, cancels=control.cancels + len(new), cancelled_at=cancelled_at)

    return change
