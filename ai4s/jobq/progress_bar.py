"""A bar while somebody looks on: on a terminal or in a notebook, and only once there was something to wait for.

Next: `batch.py`, which shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .clock import boottime

SHOWN_AFTER_SECONDS = 1.0
"""What is done by then needs no bar."""


class Bar:
    """Shows how far something is; `show` may be called as often as one likes."""

    def __init__(self, name: str) -> None:
        self._name, self._began = name, boottime()
        self._shown: Any = None
        self._line: Any = None
        self._is_watched = _is_watched()

    def show(self, done: int, total: int | None) -> None:
        """So much is done of so much; None where more may come."""
        if not self._is_watched or boottime() - self._began < SHOWN_AFTER_SECONDS:
            return
        if self._shown is None:
            self._shown, self._line = _open(self._name)
        self._shown.update(self._line, completed=done, total=total)

    def close(self) -> None:
        """Remove it."""
        if self._shown is not None:
            self._shown.stop()


@contextmanager
def progress_bar(name: str) -> Iterator[Bar]:
    """A bar for the length of the block."""
    bar = Bar(name)
    try:
        yield bar
    finally:
        bar.close()


def _is_watched() -> bool:
    return sys.stderr is not None and (sys.stderr.isatty() or _is_notebook())


def _is_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _open(name: str) -> tuple[Any, Any]:
    # Not at the top: most programs show nothing, and it takes longer to import than all the rest.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    shown.start()
    return shown, shown.add_task(name, total=None)
