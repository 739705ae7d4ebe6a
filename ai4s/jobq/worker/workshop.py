"""What deliveries are worked on with, put together once for a worker.

Next: `attempt.py` for single calls, `pack.py` for packs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ledger import Ledger
from ..telemetry.working import SILENT, Telemetry
from .call_logs import CallLogs
from .counts import Counts
from .current_calls import CurrentCalls
from .duties import Duties
from .executors import Executors
from .interruptions import Interruptions
from .lease import LeaseKeeper
from .orders import Orders
from .scratch import Scratch
from .slots import Slots


@dataclass(frozen=True, slots=True)
class Workshop:
    """The parts of a running worker that every delivery needs."""

    ledger: Ledger
    duties: Duties
    executors: Executors
    slots: Slots
    scratch: Scratch
    leases: LeaseKeeper
    interruptions: Interruptions
    orders: Orders
    counts: Counts = field(default_factory=Counts)
    current: CurrentCalls = field(default_factory=CurrentCalls)
    telemetry: Telemetry = SILENT
    logs: CallLogs = field(default_factory=CallLogs)
