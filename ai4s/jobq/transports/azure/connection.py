"""The one pool of connections of an opened account, and what is seen on every answer.

Both services and all their clients share it, so that a thousand queues and blobs cost one pool. Nothing is repeated here:
aiohttp's own repeat on a broken connection is off, and bodies are read whole, below the SDK's downloader with its own retries.

Next: `retrying.py`, which is the only one that repeats.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
from azure.core.exceptions import AzureError, ServiceResponseTimeoutError
from azure.core.pipeline.transport import AioHttpTransport
from azure.core.rest import HttpRequest

from ...requests_made import Requests
from .request_kinds import request_kind
from .server_clock import ServerClock

CONNECTIONS = 100
"""Open connections per service: a worker's slots and its leases in flight at the same time, with room."""

CONNECT_SECONDS = 5.0
"""To open a connection; three lost packets of the handshake fit in."""

READ_SECONDS = 10.0
"""Between two pieces of an answer. Answers take milliseconds, a busy account some seconds; a black hole shows here."""

SLOWEST_UPLOAD_BYTES_PER_SECOND = 50_000
"""Below this an upload counts as stuck: TCP itself would wait for a quarter of an hour."""

UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Where no connection came about: such a request is not billed."""

LARGE_BYTES = 64 * 1024
"""A body that does not surely fit into the socket's buffer, so that writing it takes its time."""


class Connection(AioHttpTransport):  # type: ignore[misc]  # the SDK exports it lazily, as Any
    """aiohttp under the SDK's pipeline. The SDK's many clients share it, and none of them closes it.

    `requests` counts all that surely or perhaps reached the service; `queue_url` tells its queues from its blobs.
    """

    def __init__(self, session: aiohttp.ClientSession, clock: ServerClock, proxy: str | None, *, queue_url: str) -> None:
        super().__init__(session=session, session_owner=False, connection_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
        self.clock = clock
        self.requests = Requests()
        self._queue_url = queue_url
        self._own_session = session
        self._proxy = proxy

    async def send(self, request: Any, *, stream: bool = False, **config: Any) -> Any:
        """Send once; the body is in memory on return, for the newer SDKs that can take it from there."""
        stream = stream and not isinstance(request, HttpRequest)
        unsent = False
        try:
            async with asyncio.timeout(_upload_seconds(request)):
                response = await super().send(request, stream=stream, proxy=self._proxy, **config)
        except TimeoutError as exc:
            raise ServiceResponseTimeoutError("The upload got stuck.", error=exc) from exc
        except AzureError as exc:
            unsent = isinstance(exc.__cause__, UNSENT)
            raise
        finally:
            if not unsent:
                self.requests.add(request_kind(request.method, request.url, self._queue_url))
        self.clock.note(response.headers.get("Date"))
        return response

    async def close(self) -> None:
        """Close the session; doing it twice is fine."""
        await self._own_session.close()

    def _get_request_data(self, request: Any) -> Any:
        """What aiohttp is to send: a large body as a file, which it writes in pieces without holding up the loop."""
        data = super()._get_request_data(request)
        return io.BytesIO(data) if isinstance(data, bytes) and len(data) > LARGE_BYTES else data


def _upload_seconds(request: Any) -> float | None:
    length = int(request.headers.get("Content-Length") or 0)
    # A small body fits into the socket's buffer; from there on READ_SECONDS watches.
    return READ_SECONDS * 2 + length / SLOWEST_UPLOAD_BYTES_PER_SECOND if length > LARGE_BYTES else None


def open_session(environ: Mapping[str, str]) -> aiohttp.ClientSession:
    """A session that trusts the certificates that `environ` names."""
    cafile = environ.get("SSL_CERT_FILE") or environ.get("REQUESTS_CA_BUNDLE")
    context: ssl.SSLContext | bool = ssl.create_default_context(cafile=cafile) if cafile else True
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=CONNECTIONS, ssl=context),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        # trust_env would cost two thread hops a request to look for the same proxy and netrc again.
        trust_env=False,
    )
    # aiohttp silently repeats GET, PUT and DELETE when a reused connection breaks: that would receive twice, and
    # turn a delete that worked into a 404. There is no public switch; a test watches that this one works.
    session._retry_connection = False  # noqa: SLF001
    return session


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """The proxy that the usual variables (`https_proxy`, `no_proxy`) name for `url`, or None."""
    lowered = {name.lower(): value for name, value in environ.items() if name.lower().endswith("_proxy") and value}
    parts = urlsplit(url)
    if "no_proxy" in lowered and proxy_bypass_environment(parts.netloc, {"no": lowered["no_proxy"]}):
        return None
    return lowered.get(f"{parts.scheme}_proxy") or lowered.get("all_proxy")
