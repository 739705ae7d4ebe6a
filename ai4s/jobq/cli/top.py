"""`top`: queues, batches, workers and what runs, in a terminal, for as long as one looks.

It reads as the dashboard does, by the same means: a listing of the workers and one request more for each refresh.

Next: `top_picture.py` for what is shown; `../dashboard/refresh.py` for what is read when.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ..errors import NotFound, Unreachable
from .looking import opened
from .target import Chosen
from .values import Duration

if TYPE_CHECKING:
    from ..app import App
    from ..dashboard.refresh import Refresh
    from .top_picture import Snapshot

QUICKEST_SECONDS = 1.0
"""A refresh takes two requests: nobody reads faster, and several may look."""

REPAINT_SECONDS = 1.0
"""Ages go on between two refreshes, which costs nothing."""

FIRST_SECONDS = 60.0
"""How long `--once` waits for the storage: longer than it takes a request to fail."""

PLAIN_CHARS = 160
"""Wide enough for names to be copied, where no terminal says how wide it is."""

HINT = "q ends"


@click.command(
    "top",
    short_help="Watch queues, batches and workers.",
    epilog="Exit codes: 0 done, also by q and Ctrl-C, 1 the storage failed or nothing is there, 2 wrong usage or setup.",
)
@click.option("--interval", type=Duration(), default="2s", show_default=True, help="How old what is shown may get; 1s at least.")
@click.option("--once", is_flag=True, help="Show it once, and end; the rule where the output is piped.")
@click.pass_obj
def verb(chosen: Chosen, interval: float, *, once: bool) -> None:
    """Watch an app in the terminal: queues, open batches, workers, and what runs with its progress. q or Ctrl-C ends it.

    A refresh takes a listing of the workers and one request more, whatever there is to see.

    \b
    Examples:
      jobq myaccount/myproj top
      jobq myaccount/myproj top --once
    """
    seconds = max(QUICKEST_SECONDS, interval)
    with opened(chosen) as app:
        asyncio.run(_once(app) if once or not sys.stdout.isatty() else _watch(app, seconds))


async def _once(app: App) -> None:
    """One picture. Raises Unreachable if nothing could be read, NotFound if there is no such app."""
    from rich.console import Console

    from ..dashboard.refresh import Refresh
    from .top_picture import Picture

    refresh = Refresh(app)
    try:
        await refresh.look(FIRST_SECONDS)
        snapshot = _snapshot(refresh)
    finally:
        await refresh.close()
    if snapshot.age_seconds is None:
        raise Unreachable(snapshot.problem or f"{app.client.place.label} has not answered within {FIRST_SECONDS:.0f} s.")
    if snapshot.problem and not snapshot.overview["queues"]:
        raise NotFound(snapshot.problem)
    console = Console()
    (console if console.is_terminal else Console(width=PLAIN_CHARS)).print(Picture(snapshot))


async def _watch(app: App, seconds: float) -> None:
    """Pictures until a key or a signal ends it; the terminal is then as it was."""
    from rich.live import Live

    from ..dashboard.refresh import Refresh
    from .top_picture import Picture

    refresh, ended, resized = Refresh(app, seconds=seconds), asyncio.Event(), asyncio.Event()
    with _signals(ended, resized), _keys(ended), Live(screen=True, auto_refresh=False) as live:
        try:
            while not ended.is_set():
                live.update(Picture(_snapshot(refresh), HINT), refresh=True)
                await _either(refresh.look(), ended.wait(), seconds=None)
                resized.clear()
                live.update(Picture(_snapshot(refresh), HINT), refresh=True)
                await _either(resized.wait(), ended.wait(), seconds=REPAINT_SECONDS)
        finally:
            await refresh.close()


def _snapshot(refresh: Refresh) -> Snapshot:
    from ..dashboard.overview_data import overview_data
    from ..dashboard.worker_data import workers_data
    from .top_picture import Snapshot

    as_of = refresh.seen.as_of
    age_seconds = max(0.0, refresh.now - as_of) if as_of else None
    return Snapshot(overview_data(refresh), workers_data(refresh, most=None)["workers"], age_seconds, refresh.problem, refresh.now)


async def _either(*waits: object, seconds: float | None) -> None:
    """Until one of these is over, or time is."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]  # coroutines, all of them
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _signals(ended: asyncio.Event, resized: asyncio.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end it in good order: they would leave the terminal as it is on the way."""
    loop = asyncio.get_running_loop()
    heard = {signal.SIGINT: ended, signal.SIGTERM: ended, signal.SIGHUP: ended, signal.SIGWINCH: resized}
    for number, event in heard.items():
        loop.add_signal_handler(number, event.set)
    try:
        yield
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _keys(ended: asyncio.Event) -> Iterator[None]:
    """Take keys as they are pressed, and show none; q ends it, and so does the end of the input."""
    descriptor = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    if descriptor is None:
        yield
        return
    import termios
    import tty

    loop, before = asyncio.get_running_loop(), termios.tcgetattr(descriptor)

    def pressed() -> None:
        keys = os.read(descriptor, 64)
        if not keys or b"q" in keys.lower() or b"\x04" in keys:
            ended.set()

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, pressed)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
