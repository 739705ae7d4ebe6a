"""What is wrong with a setup, found by trying: from the target and the network to each right that a role needs.

A check never raises for what it is there to find: it becomes a finding that says what to do. A later check is left out where an
earlier one says that it cannot work. Nothing is changed at the place; what a check puts there it takes away again.

Next: `examination.py` for the order of checks.
"""

from __future__ import annotations

from .examination import Wanted, examine
from .finding import Finding, Verdict
from .rights import ROLES

__all__ = ["ROLES", "Finding", "Verdict", "Wanted", "examine"]
