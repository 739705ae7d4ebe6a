"""A worker that has nothing to do costs next to nothing: all that it asks of the storage, summed up."""

from __future__ import annotations

import pytest

from ai4s.jobq.transports.base import Queue
from ai4s.jobq.worker import poller
from ai4s.jobq.worker.orders import READ_SECONDS
from ai4s.jobq.worker.poller import Line
from ai4s.jobq.worker.status import IDLE_SECONDS

MOST_REQUESTS_A_SECOND = 0.5
FIRST_MINUTE, TEN_MINUTES = 60.0, 600.0


class NoQueue:
    """A queue that nobody asks here."""


def receives_a_second(monkeypatch: pytest.MonkeyPatch) -> float:
    """How often an empty queue is asked in the ten minutes after the first one."""
    now = [1_000.0]
    monkeypatch.setattr(poller, "boottime", lambda: now[0])
    queue: Queue = NoQueue()  # type: ignore[assignment]
    line, began, receives = Line("default", queue), now[0], 0
    while now[0] < began + FIRST_MINUTE + TEN_MINUTES:
        line.had(0)
        receives += now[0] >= began + FIRST_MINUTE
        now[0] = line.due
    return receives / TEN_MINUTES


def test_an_idle_worker_asks_at_most_once_in_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receives, orders and status together, from the second minute on."""
    assert receives_a_second(monkeypatch) + 1 / READ_SECONDS + 1 / IDLE_SECONDS <= MOST_REQUESTS_A_SECOND
