"""A dashboard at work in the test's own loop, and who asks it: with the cookie that the printed URL gives, or without."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from ai4s.jobq import App
from ai4s.jobq.dashboard.guard import Guard
from ai4s.jobq.dashboard.server import Dashboard, Options


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who asks the dashboard; `session` has the cookies that they have."""

    dashboard: Dashboard
    guard: Guard
    session: aiohttp.ClientSession

    @property
    def base(self) -> str:
        """The beginning of each URL."""
        return f"http://127.0.0.1:{self.guard.port}"

    async def enter(self) -> None:
        """Open the URL that was printed, as a browser does."""
        async with self.session.get(self.guard.url) as answer:
            assert answer.status == 200, await answer.text()

    async def get(self, path: str) -> Any:
        """What is answered, which is JSON."""
        async with self.session.get(f"{self.base}{path}") as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def act(self, name: str, **asked: Any) -> Any:
        """Ask for an action as the page does."""
        path = f"{self.base}/api/actions/{name}"
        async with self.session.post(path, json=asked, headers={"X-Jobq": "1"}) as answer:
            return {**await answer.json(), "status": answer.status}

    async def status(self, path: str, method: str = "GET", **given: Any) -> int:
        """The status of an answer, redirects not followed."""
        async with self.session.request(method, f"{self.base}{path}", allow_redirects=False, **given) as answer:
            await answer.read()
            return answer.status


@contextlib.asynccontextmanager
async def visited(app: App, *, write: bool = False, seconds: float = 0.0, enters: bool = True) -> AsyncIterator[Visitor]:
    """A dashboard of this app, and a visitor; with `enters` off, one who has no cookie."""
    dashboard = Dashboard(app, Options(port=0, write=write, seconds=seconds))
    try:
        await dashboard.start()
        # By default no cookies are kept of a server that has only an address.
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            visitor = Visitor(dashboard, dashboard.guard, session)
            if enters:
                await visitor.enter()
            yield visitor
    finally:
        await dashboard.close()
