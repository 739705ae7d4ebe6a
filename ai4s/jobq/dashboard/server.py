"""The dashboard's server: pages and their files from this package, data as JSON, actions where they were allowed.

It listens on this machine alone, and answers from what is known: no answer waits for the storage for longer than a moment. Every
answer carries the headers of `guard.py`, also those of errors.

Next: `guard.py` for who may ask, `refresh.py` for what is known.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ..app import App
from ..errors import ConfigurationError, DeclarationError, JobQError
from ..printable import printable
from .actions import Actions
from .batch_data import BatchLooks
from .call_data import CallLooks
from .failed_data import failed_data
from .files import Files
from .guard import HEADERS, SAFE_METHODS, Guard
from .overview_data import batches_data, overview_data
from .refresh import REFRESH_SECONDS, Refresh
from .worker_data import workers_data

log = logging.getLogger("ai4s.jobq")

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8787
MAX_BODY_BYTES = 256 * 1024
"""Of an action: a thousand ids."""

FIRST_LOOK_SECONDS = 3.0
"""How long the server waits with its first page for the storage."""

END_SECONDS = 1.0
"""How long requests that are being answered may take at the end."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve: `port` 0 takes one that is free; `write` allows actions; `seconds` is how old data may be."""

    port: int = DEFAULT_PORT
    write: bool = False
    seconds: float = REFRESH_SECONDS


class Dashboard:
    """A server for one app, from `start` to `close`. For one event loop. Raises ConfigurationError where the port is taken.

    `guard` knows who is let in, and the URL.
    """

    def __init__(self, app: App, options: Options) -> None:
        self._options = options
        self._socket = _listening(options.port)
        self.guard = Guard(self._socket.getsockname()[1])
        self.refresh = Refresh(app, seconds=options.seconds)
        self._batches = BatchLooks(self.refresh, options.seconds)
        self._calls = CallLooks(self.refresh, options.seconds)
        self._actions = Actions(self.refresh)
        self._files = Files()
        self._runner: web.AppRunner | None = None

    async def start(self) -> Guard:
        """Answer from now on; returns the guard."""
        site = web.Application(middlewares=[self._guarded], client_max_size=MAX_BODY_BYTES)
        site.on_response_prepare.append(_with_headers)
        self._add_routes(site)
        self._runner = web.AppRunner(site, access_log=None, shutdown_timeout=END_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()
        await self.refresh.look(FIRST_LOOK_SECONDS)
        return self.guard

    async def close(self) -> None:
        """End, with what is being read and answered."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._socket.close()
        await self._batches.close()
        await self._calls.close()
        await self.refresh.close()

    def _add_routes(self, site: web.Application) -> None:
        read = {
            "overview": overview_data,
            "batches": batches_data,
            "workers": workers_data,
            "failed": failed_data,
        }
        for name, data in read.items():
            site.router.add_get(f"/api/{name}", self._answering(data))
        site.router.add_get("/api/batch/{id}", self._batch)
        site.router.add_get("/api/call/{id}", self._call)
        site.router.add_get("/api/call/{id}/logs", self._logs)
        site.router.add_post("/api/actions/{name}", self._act)
        site.router.add_get("/", self._files.index)
        site.router.add_get("/static/{name}", self._files.named)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        """Let in who may, and answer with one line of JSON what goes wrong."""
        try:
            self.guard.check_source(request)
            if (welcome := self.guard.admit(request)) is not None:
                return welcome
            self.guard.check_cookie(request)
            return await handler(request)
        except web.HTTPException as exc:
            said = exc.text if exc.text and not exc.text.startswith(f"{exc.status}:") else exc.reason
            return _refusal(exc.status, said)
        except JobQError as exc:
            return _refusal(404 if request.method in SAFE_METHODS else 400, printable(str(exc)))
        except Exception as exc:
            log.exception("The dashboard could not answer %s %s.", request.method, printable(request.path))
            return _refusal(500, f"{type(exc).__name__}: see the log of the dashboard.")

    def _answering(self, data: Callable[[Refresh], Json]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            await self.refresh.look()
            return self._json(data(self.refresh))

        return answer

    async def _batch(self, request: web.Request) -> web.Response:
        await self.refresh.look(0.0)  # the batch is waited for, and not both one after the other
        return self._json(await _known(self._batches.data, request.match_info["id"]))

    async def _call(self, request: web.Request) -> web.Response:
        await self.refresh.look(0.0)
        return self._json(await _known(self._calls.data, request.match_info["id"]))

    async def _logs(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        number = int(after) if after.isascii() and after.isdecimal() and len(after) <= 15 else 0
        return self._json(await _known(lambda name: self._calls.logs(name, number), request.match_info["id"]))

    async def _act(self, request: web.Request) -> web.Response:
        if not self._options.write:
            raise web.HTTPForbidden(text="Nothing may be changed: start the dashboard with --write to allow that.")
        self.guard.check_action(request)
        try:
            asked = json.loads(await request.read())
        except (ValueError, RecursionError, web.RequestPayloadError):
            asked = None
        if not isinstance(asked, dict):
            raise web.HTTPBadRequest(text="An action is asked for with an object in JSON.")
        done = await self._actions.act(request.match_info["name"], asked)
        self._batches.expire()
        self._calls.expire()
        return self._json(done)

    def _json(self, data: Json) -> web.Response:
        """An answer, with what all have in common; what is said by the data themselves counts."""
        common = {
            "as_of": self.refresh.seen.as_of or None,
            "now": self.refresh.now,
            "problem": self.refresh.problem or None,
            "problem_since": self.refresh.problem_since,
            "write": self._options.write,
        }
        return _answer({**common, **data}, 200)


async def _known(data: Callable[[str], Awaitable[Json]], name: str) -> Json:
    """The data of the one with this id; of what can be no id that there is none, which is an answer, and no failure."""
    try:
        return await data(name)
    except DeclarationError as exc:
        return {"id": name, "problem": printable(str(exc)), "problem_since": None, "ended": True}


def _refusal(status: int, why: str) -> web.Response:
    """What went wrong, and nothing else: it may be said to somebody who may know nothing."""
    return _answer({"problem": why}, status)


def _answer(data: Json, status: int) -> web.Response:
    text = json.dumps(data, allow_nan=False)
    return web.Response(text=text, status=status, content_type="application/json", headers={"Cache-Control": "no-store"})


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as exc:
        raise ConfigurationError(
            f"Port {port} of this machine cannot be used ({exc.strerror}): "
            "take another one with --port, or --port 0 for any that is free."
        ) from exc


async def _with_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
