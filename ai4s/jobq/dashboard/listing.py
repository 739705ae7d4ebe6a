"""A listing that is gone through a page at a time, with pauses between, and then from the beginning again.

Next: `batch_sums.py` and `letter_groups.py`, which sum up what comes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from ..errors import NotFound
from ..ledger import Ledger
from ..transports.base import MAX_PAGE, BlobInfo


class Page(NamedTuple):
    """What one request has told; `is_first` says that a pass begins with it, `is_last` that nothing follows."""

    infos: list[BlobInfo]
    is_first: bool
    is_last: bool


class Listing:
    """All blobs of a prefix with their metadata, MAX_PAGE of them at a time. For the portal's loop."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._rest: AsyncIterator[BlobInfo] | None = None
        self._begins = True

    def restart(self) -> None:
        """Have the first page come next; from any thread."""
        self._begins = True

    async def page(self, ledger: Ledger) -> Page:
        """The next page, which costs one request; the first one after the last. Where there is no container, it is empty."""
        is_first, self._begins = self._begins, False
        rest, infos = None if is_first else self._rest, list[BlobInfo]()
        try:
            if rest is None:
                is_first, rest = True, aiter((await ledger.store()).list(self._prefix, with_metadata=True))
            async for info in rest:
                infos.append(info)
                if len(infos) == MAX_PAGE:
                    self._rest = rest
                    return Page(infos, is_first, is_last=False)
        except NotFound:
            infos = []
        except BaseException:
            self._begins = True
            raise
        self._rest = None
        return Page(infos, is_first, is_last=True)
