"""An opened storage account: the pool of connections, the right to use them, and the queues and containers on top.

It belongs to the event loop it was opened on and to one process. Everything the SDK would do behind our back is off:
its retries, its sleeps, its look at the environment.

Next: `queue.py` and `store.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from azure.core.credentials_async import AsyncTokenCredential
from azure.storage.blob.aio import ContainerClient
from azure.storage.queue.aio import QueueClient, QueueServiceClient

from ...errors import AccessDenied, NotFound
from ...requests_made import Requests
from ..place import AzurePlace
from .connection import Connection, open_session, proxy_for
from .credentials import EntraCredential
from .queue import AzureQueue, owner_of
from .retrying import Retrying
from .server_clock import ServerClock
from .store import SINGLE_BYTES, AzureStore
from .translate import Account

REQUEST_LOG = logging.getLogger("azure.core.pipeline.policies.http_logging_policy")
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})

CLOCK_CONTAINER = "jobq-clock"
"""Asked for only to see a Date in the answer; it need not exist."""


class AzureTransport:
    """One storage account, opened."""

    def __init__(self, place: AzurePlace, connection: Connection, *, retrying: Retrying, entra: EntraCredential | None) -> None:
        self._place = place
        self._connection = connection
        self._retrying = retrying
        self._entra = entra

    @classmethod
    async def open(
        cls,
        place: AzurePlace,
        *,
        environ: Mapping[str, str] = NO_ENVIRONMENT,
        credential: AsyncTokenCredential | None = None,
        budget_seconds: float = 30.0,
    ) -> AzureTransport:
        """Open an account on the running event loop.

        Args:
            place: the account, and a key or SAS if there is one.
            environ: where proxies, certificates and Entra ID sources are named; usually the process's environment.
            credential: a source of Entra ID tokens to use instead of the ones that `environ` names.
            budget_seconds: how long harmless requests are repeated.

        Raises ConfigurationError if the account needs Entra ID and no source of it works. No request is made otherwise.
        """
        # The SDK logs two dozen lines for each request at INFO, which many programs turn on for themselves.
        if REQUEST_LOG.level == logging.NOTSET:
            REQUEST_LOG.setLevel(logging.WARNING)
        entra = None if place.key or place.sas else await EntraCredential.open(environ, given=credential)
        right = "entra" if entra else "key" if place.key else "sas"
        retrying = Retrying(Account(place.label, right), budget_seconds)
        proxy = proxy_for(place.blob_url, environ)
        connection = Connection(open_session(environ), ServerClock(), proxy, queue_url=place.queue_url)
        return cls(place, connection, retrying=retrying, entra=entra)

    def queue(self, name: str, *, app: str) -> AzureQueue:
        """The queue of this name, which `app` owns. No request is made."""
        client = QueueClient(self._place.queue_url, name, self._credential(), **self._options())
        return AzureQueue(client, app=app, retrying=self._retrying, clock=self._connection.clock)

    def store(self, container: str) -> AzureStore:
        """The container of this name. No request is made."""
        return AzureStore(self._container(container), retrying=self._retrying)

    @property
    def requests(self) -> Requests:
        """All requests so far."""
        return self._connection.requests

    @property
    def credential(self) -> str:
        """Which of the three kinds, and of Entra ID the source that gave the token."""
        if self._entra is not None:
            identity = self._entra.identity
            return f"Entra ID: {self._entra.source_name}{f', as {identity}' if identity else ''}"
        return "an account key" if self._place.key else "a SAS"

    async def queues(self, prefix: str) -> dict[str, str]:
        """All queues of a prefix; each page is repeated by itself."""
        service = QueueServiceClient(self._place.queue_url, self._credential(), **self._options())
        pages = service.list_queues(name_starts_with=prefix, include_metadata=True).by_page()
        found: dict[str, str] = {}
        while (page := await self._retrying.repeat(f"list queues {prefix}*", lambda: anext(pages, None))) is not None:
            found |= {queue.name: owner_of(queue, "") async for queue in page}
        return found

    def _container(self, name: str) -> ContainerClient:
        return ContainerClient(
            self._place.blob_url,
            name,
            self._credential(),
            max_single_get_size=SINGLE_BYTES,
            max_single_put_size=SINGLE_BYTES,
            **self._options(),
        )

    def _credential(self) -> Any:
        if self._place.key:
            return {"account_name": self._place.account, "account_key": self._place.key}
        return self._place.sas or self._entra

    def _options(self) -> dict[str, Any]:
        # The SDK's connection_timeout and read_timeout belong to its own transport; ours has them already.
        return {"transport": self._connection, "retry_total": 0}

    async def server_time(self) -> float:
        """Epoch seconds by the server's clock; the first call may make one cheap request."""
        if not self._connection.clock.known:
            try:
                await self._retrying.repeat("ask for the time", self._container(CLOCK_CONTAINER).exists)
            except (AccessDenied, NotFound):
                if not self._connection.clock.known:
                    raise
        return self._connection.clock.now()

    async def close(self) -> None:
        """Close all connections. Doing it twice is fine."""
        await self._connection.close()
        if self._entra is not None:
            await self._entra.close()
