"""What tasks of a child say of their progress, on its way to the supervisor: the newest of each call, a few times a second.

On a thread of its own, so that no task ever waits for the socket, however often it says something; and the last word arrives.
Nothing here is locked: a task may say it in a signal handler, in the middle of saying it.

Next: `child_process.py`, which hears it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from ..call_progress import CallProgress
from .jobs import Progressed

PAUSE_SECONDS = 0.25
"""Between two words of one call."""


class ProgressSender:
    """Sends for the tasks of this process; a fork of it has nobody to tell."""

    def __init__(self, send: Callable[[Progressed], None], pause_seconds: float = PAUSE_SECONDS) -> None:
        self._send, self._pause_seconds = send, pause_seconds
        self._newest: dict[tuple[int, int], CallProgress] = {}
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._not_started = threading.Lock()
        self._process = os.getpid()

    def say(self, number: int, place: int, progress: CallProgress) -> None:
        """The call at this place of this job is so far. From any thread; returns at once."""
        if os.getpid() != self._process:
            return
        self._newest[number, place] = progress
        if self._wakes.empty():
            self._wakes.put(None)
        if self._not_started.acquire(blocking=False):  # once, and for good
            threading.Thread(target=self._send_all, name="jobq-progress", daemon=True).start()

    def _send_all(self) -> None:
        while True:
            self._wakes.get()
            try:
                for number, place in list(self._newest):
                    said = self._newest.pop((number, place))
                    self._send(Progressed(number, place, said.done, said.total, said.message))
            except OSError:
                return  # the supervisor has closed its end
            time.sleep(self._pause_seconds)
