"""Requests to storage, counted by kind: what everything here costs.

A transport counts all that it makes, repeats included, in its `requests`. Whoever works for somebody in particular (a delivery,
the producer of a batch) binds an account of its own with `charged_to`; what is asked within that block, and by the tasks begun in
it, is counted there too. Counting is for onlookers: nothing may depend on it.

Next: `transports/base.py`, whose transports count; `cost/` for what it comes to.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

CODES = {
    "queue_send": "qs",
    "queue_receive": "qr",
    "queue_renew": "qn",
    "queue_delete": "qd",
    "queue_peek": "qp",
    "queue_depth": "qc",
    "queue_other": "qo",
    "blob_put": "bp",
    "blob_get": "bg",
    "blob_head": "bh",
    "blob_list": "bl",
    "blob_append": "ba",
    "blob_delete": "bd",
    "blob_other": "bo",
}
"""The kinds, each with its short name in texts. A release is a `queue_renew`, a block of a large blob is a `blob_put`."""

KINDS = tuple(CODES)
_KIND_OF = {code: kind for kind, code in CODES.items()}
_LONGEST_NUMBER = 15  # digits: a million requests a second for thirty years


class Requests:
    """Counts by kind, which only grow. It belongs to one event loop; reading it from elsewhere is harmless."""

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self._counts: Counter[str] = Counter(counts or {})

    def add(self, kind: str, n: int = 1) -> None:
        """Count `n` requests of this kind, here and on the account that is bound where this is called."""
        self._counts[kind] += n
        bound = _BOUND.get()
        if bound is not None and bound is not self:
            bound._counts[kind] += n  # noqa: SLF001  # its own class's

    def merge(self, counts: Mapping[str, int]) -> None:
        """Add what was counted elsewhere; nobody else is charged for it."""
        self._counts.update(counts)

    def snapshot(self) -> dict[str, int]:
        """The counts now, of the kinds that occurred."""
        return {kind: self._counts[kind] for kind in KINDS if self._counts[kind]}

    def since(self, before: Mapping[str, int]) -> dict[str, int]:
        """What was added since a snapshot."""
        return {kind: more for kind, n in self.snapshot().items() if (more := n - before.get(kind, 0)) > 0}

    def to_text(self) -> str:
        """The counts as short ASCII text, for metadata."""
        return to_text(self.snapshot())


_BOUND: ContextVar[Requests | None] = ContextVar("jobq_requests_charged_to", default=None)


@contextlib.contextmanager
def charged_to(requests: Requests) -> Iterator[Requests]:
    """Count what is asked within this block, and by tasks begun in it, in `requests` too; of nested blocks the innermost counts."""
    token = _BOUND.set(requests)
    try:
        yield requests
    finally:
        _BOUND.reset(token)


def account() -> Requests:
    """The account that is bound here; an empty one where none is."""
    return _BOUND.get() or Requests()


def to_text(counts: Mapping[str, int]) -> str:
    """Counts by kind as short ASCII text.

    >>> to_text({"queue_send": 12, "blob_put": 3})
    'qs:12,bp:3'
    """
    return ",".join(f"{code}:{counts[kind]}" for kind, code in CODES.items() if counts.get(kind))


def from_text(text: str) -> dict[str, int]:
    """The counts that a text holds; what cannot be read of it is left out.

    >>> from_text("qs:12,bp:3,zz:1,qs")
    {'queue_send': 12, 'blob_put': 3}
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        code, _, number = part.partition(":")
        if code in _KIND_OF and number.isascii() and number.isdigit() and len(number) <= _LONGEST_NUMBER:
            found[_KIND_OF[code]] = int(number)
    return found
