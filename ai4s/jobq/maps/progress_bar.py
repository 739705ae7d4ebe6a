"""A bar while somebody looks on: on a terminal or in a notebook, and only once there was something to wait for.

Next: `batch.py`, which shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..clock import boottime

SHOWN_AFTER_SECONDS = 1.0
"""What is done by then needs no bar."""


class _Display:
    """Something that is shown from the first `update` on that comes after a while."""

    def __init__(self, name: str) -> None:
        self._name, self._began = name, boottime()
        self._shown: Any = None
        self._line: Any = None
        self._is_watched = _is_watched()

    def _open(self) -> tuple[Any, Any]:
        return _open(self._name)

    def _update(self, **fields: Any) -> None:
        if not self._is_watched or boottime() - self._began < SHOWN_AFTER_SECONDS:
            return
        if self._shown is None:
            self._shown, self._line = self._open()
        self._shown.update(self._line, **fields)

    def close(self) -> None:
        """Remove it."""
        if self._shown is not None:
            self._shown.stop()


class Bar(_Display):
    """Shows how far something is; `show` may be called as often as one likes."""

    def show(self, done: int, total: int | None) -> None:
        """So much is done of so much; None where more may come."""
        self._update(completed=done, total=total)


class Line(_Display):
    """Shows a sentence that changes; `show` may be called as often as one likes."""

    def show(self, said: object) -> None:
        """Say this instead."""
        self._update(description=f"{self._name}: {said}")

    def _open(self) -> tuple[Any, Any]:
        return _open(self._name, is_bar=False)


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


def _open(name: str, *, is_bar: bool = True) -> tuple[Any, Any]:
    # Not at the top: most programs show nothing, and it takes longer to import than all the rest.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) if is_bar else ()
    shown = Progress(TextColumn("{task.description}"), *bar, console=Console(stderr=True), transient=True)
    shown.start()
    return shown, shown.add_task(name, total=None)
