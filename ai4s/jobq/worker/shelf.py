"""Objects that `app.put` stored, as the tasks of one process see them: decoded once, from a file that the whole machine shares.

The file is mapped for reading, so that arrays in it take no memory of this process, and cannot be written to. What was decoded
is kept for the next calls, as long as there is room: a task must leave it as it is.

Next: `cellar.py`, where the supervisor keeps the files.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..buffers import mapped
from ..codec import Hindered, Unresolved
from ..errors import Unfit
from ..stored import Stored, decode, gone
from .jobs import Answer, Fetch, Request

MOST_OBJECTS = 16
MOST_BYTES = 4 * 1024**3
"""Of files, encoded. The newest object stays however large it is, as the next call will want it too."""

TRIES = 5
"""A file may be removed, to make room for another, between its naming and its opening."""

Ask = Callable[[Callable[[int], Request]], Answer]
"""Sends a request, which is made of the number that it gets, and waits for the answer."""


class Gone(Unresolved):
    """The object is not in storage any more, or damaged there."""


class OtherPython(Unresolved):
    """The object holds code of another Python: its call is for another worker."""


class Shelf:
    """What this process has decoded of what was stored. Safe to use from any thread; one waits while another decodes."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        # Decoding one object may ask for others, on the same thread.
        self._lock = threading.RLock()

    def find(self, stored: Stored[Any], job: int) -> Any:
        """The object, for the job of this number. Raises Unresolved."""
        with self._lock:
            if stored.sha256 not in self._kept:
                self._kept[stored.sha256] = (self._made(stored, job), stored.size)
                self._make_room()
            self._kept.move_to_end(stored.sha256)
            return self._kept[stored.sha256][0]

    def _make_room(self) -> None:
        while len(self._kept) > MOST_OBJECTS or (len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > MOST_BYTES):
            self._kept.popitem(last=False)

    def _made(self, stored: Stored[Any], job: int) -> Any:
        for _ in range(TRIES):
            answer = self._ask(lambda request: Fetch(job, request, stored.sha256, stored.size))
            if answer.problem is not None:
                raise Gone(gone(stored, answer.problem))
            if answer.path is None:
                break
            try:
                return decode(stored, mapped(Path(answer.path), writable=False))
            except FileNotFoundError:
                continue
            except Unfit as exc:
                raise OtherPython(str(exc)) from exc
        raise Hindered(f"{stored!r} could not be brought to this machine; the worker's log says why.")
