"""A browser that looks at a dashboard, and notes what no page may do: write to the console, or ask anybody but its server.

The dashboard is the real command in a process of its own, or, for places that are looked at only, one on a thread of this process.
Everything is stopped when its block ends.

Next: `test_dashboard_pages.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright
from programs import chromium
from projects import SOON, Project, environment, program

from ai4s.jobq import App
from ai4s.jobq.dashboard.server import Dashboard, Options

DESKTOP, PHONE = (1280, 900), (390, 844)
PATIENCE_MS = SOON * 1000 / 2
expect.set_options(timeout=PATIENCE_MS)


@dataclass
class Visit:
    """A context of the browser in which a dashboard was entered, and what its pages did that they may not."""

    context: BrowserContext
    base: str
    offences: list[str] = field(default_factory=list)

    def page(self, route: str = "#/") -> Page:
        """The page at a route such as "#/workers", with its data: the one that is open, or a new one."""
        if not self.context.pages:
            page = self._new_page()
            page.goto(f"{self.base}/{route}")
        else:  # no reload, as for somebody who follows a link: the large chart library is not read again
            (page,) = self.context.pages
            page.evaluate("route => { location.hash = '#/none'; location.hash = route; }", route)
        expect(page.locator("#age")).to_contain_text("ago")
        return page

    def _new_page(self) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.offences.append(f"error: {error}"))
        page.on("request", self._asked)
        return page

    def leave(self) -> None:
        """Close the page, so that the next one is new."""
        for page in self.context.pages:
            page.close()

    def _said(self, message: ConsoleMessage) -> None:
        self.offences.append(f"{message.type}: {message.text}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((f"{self.base}/", "data:")):
            self.offences.append(f"asked {request.url}")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def visit(browser: Browser, url: str, *, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Visit]:
    """Enter a dashboard by the URL that it printed."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce", **options)
    try:
        page = context.new_page()
        page.goto(url)
        assert "token" not in page.url
        page.close()
        yield Visit(context, url.partition("/?")[0])
    finally:
        context.close()


@contextlib.contextmanager
def dashboard_of(project: Project, *options: str) -> Iterator[str]:
    """The command `jobq … dashboard` at a project's app; yields the URL that it prints."""
    command = [*program("jobq"), project.target, "dashboard", "--port", "0", "--no-open", *options]
    log = project.folder / "dashboard.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=project.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), log.read_text()
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=SOON)


@contextlib.contextmanager
def dashboard_here(app: App) -> Iterator[str]:
    """A read-only dashboard on a thread of this process; yields its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    dashboard = Dashboard(app, Options(port=0))
    try:
        asyncio.run_coroutine_threadsafe(dashboard.start(), loop).result(SOON)
        yield dashboard.guard.url
    finally:
        asyncio.run_coroutine_threadsafe(dashboard.close(), loop).result(SOON)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SOON)
        loop.close()
