"""Who may ask: whoever has the token, by the name of this machine, from a page of ours. Each request is looked at, of any method.

A page elsewhere can make a browser send requests here: it is found out by Host (a name that was pointed at this machine), by Origin
and Sec-Fetch-Site (another page's script, image or form), and it cannot read or set the cookie. The token leaves the address bar at
once; the one that is handed to a browser on a command line, which others on this machine can read, is good for one time.

Next: `server.py`, whose middleware this is.
"""

from __future__ import annotations

import hmac
import secrets

from aiohttp import web

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Server": "jobq",
}
"""Of every answer."""

NAMES = ("127.0.0.1", "localhost")
OUR_HEADER = "X-Jobq"
"""No form can send it, and no page elsewhere without asking first, which is refused."""

SAFE_METHODS = ("GET", "HEAD")

AGAIN = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/"><title>jobq</title>'
"""What a page elsewhere gets that links here: a cookie that was set in the middle of its navigation would not be sent along, and
one that our own page begins has it."""


class Guard:
    """What a request must show. `token` is the secret of this server's life, `port` where it listens."""

    def __init__(self, port: int) -> None:
        self.port, self.token = port, secrets.token_urlsafe(32)
        self._tickets: set[str] = set()

    @property
    def url(self) -> str:
        """Where to look, for who may."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def ticket(self) -> str:
        """A URL that opens the pages once."""
        ticket = secrets.token_urlsafe(32)
        self._tickets.add(ticket)
        return f"http://127.0.0.1:{self.port}/?token={ticket}"

    def check_source(self, request: web.Request) -> None:
        """Raise HTTPForbidden unless it was asked of this machine, and not by somebody else's page."""
        if request.headers.getall("Host", []) not in [[f"{name}:{self.port}"] for name in NAMES]:
            raise web.HTTPForbidden(text="This server answers to 127.0.0.1 and localhost only, by the port that it listens on.")
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{request.host}":
            raise web.HTTPForbidden(text="Another page asks, which may not.")
        site = request.headers.get("Sec-Fetch-Site", "none")
        is_visit = request.path == "/" and request.method in SAFE_METHODS and request.headers.get("Sec-Fetch-Mode") == "navigate"
        if site not in ("same-origin", "none") and not is_visit:
            raise web.HTTPForbidden(text="Another page asks, which may not.")

    def admit(self, request: web.Request) -> web.Response | None:
        """What answers a request that brings the token along; None for others, which need the cookie. Raises HTTPForbidden."""
        given = request.query.get("token")
        if request.path != "/" or given is None:
            return None
        if not self._is_good(given):
            raise web.HTTPForbidden(text="This token is not, or no longer, good: open the URL that `jobq … dashboard` has printed.")
        if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
            answer = web.Response(status=303, headers={"Location": "/"})
        else:
            answer = web.Response(text=AGAIN, content_type="text/html", charset="utf-8")
        answer.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict", path="/")
        return answer

    def check_cookie(self, request: web.Request) -> None:
        """Raise HTTPUnauthorized without the cookie."""
        if not _same(request.cookies.get(self._cookie, ""), self.token):
            raise web.HTTPUnauthorized(text="Open the URL that `jobq … dashboard` has printed: it has the token.")

    def check_action(self, request: web.Request) -> None:
        """Raise unless a request that changes something is one that only a script of our own page can have made."""
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="An action is asked for in JSON.")
        if OUR_HEADER not in request.headers:
            raise web.HTTPForbidden(text=f"An action is asked for with the header {OUR_HEADER}.")

    @property
    def _cookie(self) -> str:
        # Cookies do not know ports: two dashboards on one machine would sign each other out.
        return f"jobq-{self.port}"

    def _is_good(self, given: str) -> bool:
        ticket = next((each for each in self._tickets if _same(given, each)), None)
        self._tickets.discard(ticket or "")
        return ticket is not None or _same(given, self.token)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())
