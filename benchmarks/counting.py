"""Storage requests by kind, of all processes together: what some work cost, and what a worker costs that has none.

They are seen by the proxy of `storage.py`, on their way to the account. A listing counts once for each of its pages.

Next: `single_calls.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from storage import FaultyAccount


@dataclass(frozen=True)
class Counting:
    """The requests that this account sees, from the time on when this was made."""

    account: FaultyAccount
    before: int

    @classmethod
    def of(cls, account: FaultyAccount) -> Counting:
        return cls(account, len(account.requests))

    def so_far(self) -> Counter[str]:
        """How many there were of each kind."""
        return Counter(request.kind for request in self.account.requests[self.before :])


def told(kinds: Counter[str], calls: int = 1) -> str:
    """Each kind's number (per call), the most frequent first."""
    return ", ".join(f"{count / calls:.3g} {kind}" for kind, count in kinds.most_common())


def in_silence(account: FaultyAccount, seconds: float) -> Counter[str]:
    """What is asked in so many seconds in which nobody calls anything."""
    counting = Counting.of(account)
    time.sleep(seconds)
    return counting.so_far()
