"""The files of the pages: those that lie in `static/`, and the chart library of an installed package; nothing else has a URL.

Next: `server.py`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from aiohttp import web

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
INDEX = "index.html"
CHARTS = "plotly.min.js"
LONG = "private, max-age=86400"
"""The chart library is large, and changes with the package alone."""


class Files:
    """All files that there are, found once: no name that is asked for ever becomes a path."""

    def __init__(self) -> None:
        folder = Path(__file__).parent / "static"
        self._known = {path.name: path for path in folder.iterdir() if path.suffix in TYPES and path.is_file()}
        if (charts := _charts()) is not None:
            self._known[CHARTS] = charts

    async def index(self, _: web.Request) -> web.StreamResponse:
        """The page."""
        return self._answer(INDEX)

    async def named(self, request: web.Request) -> web.StreamResponse:
        """One of its files."""
        return self._answer(request.match_info["name"])

    def _answer(self, name: str) -> web.StreamResponse:
        if name not in self._known:
            raise web.HTTPNotFound(text="There is no such file.")
        path = self._known[name]
        kind = f"{TYPES[path.suffix]}; charset=utf-8"
        return web.FileResponse(path, headers={"Content-Type": kind, "Cache-Control": LONG if name == CHARTS else "no-cache"})


def _charts() -> Path | None:
    """The chart library, where the extra `dashboard` is installed; found without importing that package, which takes a while."""
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / "package_data" / CHARTS
    return path if path.is_file() else None
