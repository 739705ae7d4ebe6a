"""`dashboard`: the app in a browser, served from this machine.

Next: `../dashboard/server.py`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import webbrowser
from typing import TYPE_CHECKING

import click

from ..config import read_settings
from .looking import EXIT_CODES
from .output import note
from .target import Chosen
from .values import Duration

if TYPE_CHECKING:
    from ..app import App
    from ..dashboard.server import Options

LEAST_REFRESH_SECONDS = 1.0
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


@click.command("dashboard", short_help="Watch the app in a browser.", epilog=EXIT_CODES)
@click.option("--port", type=click.IntRange(0, 65535), default=8787, show_default=True, help="Where to listen; 0 for any free one.")
@click.option("--write", is_flag=True, help="Allow to cancel, retry, purge, pause, resume and drain from the page.")
@click.option("--no-open", is_flag=True, help="Open no browser.")
@click.option("--refresh", type=Duration(), default="2s", show_default=True, help="How old what is shown may be; 1s at least.")
@click.pass_obj
def verb(chosen: Chosen, *, port: int, write: bool, no_open: bool, refresh: float) -> None:
    """Serve pages that show queues, batches, calls, workers and dead letters, on this machine alone, until Ctrl-C.

    Whoever has the URL that is printed may look, so it is not for others. From another machine: ssh -L 8787:127.0.0.1:8787 HOST,
    with the same port on both sides.

    \b
    Examples:
      jobq myaccount/myproj dashboard
      jobq myaccount/myproj dashboard --write --port 8000
    """
    from ..dashboard.server import Options

    if refresh < LEAST_REFRESH_SECONDS:
        raise click.BadParameter("Write 1s or more.", param_hint="--refresh")
    app = chosen.open(create=False)
    try:
        asyncio.run(_serve(app, Options(port, write, refresh), is_to_open=not no_open and can_open()))
    finally:
        app.close()


async def _serve(app: App, options: Options, *, is_to_open: bool) -> None:
    from ..dashboard.server import Dashboard

    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    dashboard = Dashboard(app, options)
    try:
        await dashboard.start()
        click.echo(dashboard.guard.url)
        note(
            f"{app.name} at {app.client.place.label}: {'' if options.write else 'read only, '}for this machine alone. Ctrl-C ends."
        )
        if is_to_open:
            webbrowser.open(dashboard.guard.ticket())
        await ended.wait()
    finally:
        await dashboard.close()


def can_open() -> bool:
    """Whether somebody sits at a terminal with a screen beside it."""
    environ = read_settings().environ
    has_screen = sys.platform in ("darwin", "win32") or any(environ.get(name) for name in DISPLAYS)
    return sys.stdout.isatty() and has_screen and not environ.get("SSH_CONNECTION")
