"""What a check has found, for people and programs alike.

Next: back to `examination.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How it stands with what was checked."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Finding:
    """What `check` has found: `said` is how things are, `advice` what to do about it. Neither holds a secret."""

    check: str
    verdict: Verdict
    said: str
    advice: str = ""


def fine(check: str, said: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, said)


def warning(check: str, said: str, advice: str) -> Finding:
    """It works, or may work, and somebody should know."""
    return Finding(check, Verdict.WARNING, said, advice)


def failed(check: str, said: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, Verdict.FAILED, said, advice)
