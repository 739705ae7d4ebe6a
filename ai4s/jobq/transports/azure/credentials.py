"""Entra ID: which source of tokens is used, in an order that can be told beforehand.

DefaultAzureCredential tries ten sources, some of them for many seconds. Here only those are tried that `environ` announces
or that answer at once, and the log says which one it was. The first that gives a token is kept for good.

Next: back to `transport.py`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError

from ...errors import ConfigurationError

logger = logging.getLogger(__name__)

SCOPE = "https://storage.azure.com/.default"
"""What a token is asked for; the clients of both services ask for the same."""

IDENTITY_CLAIMS = ("upn", "unique_name", "appid", "oid")
"""What in a token says whose it is, the most telling first."""

EARLY_SECONDS = 300
"""A token is replaced this long before it ends."""

IDENTITY_ADDRESS = ("169.254.169.254", 80)
"""Where an Azure machine finds its managed identity; nowhere else does anything answer there quickly."""

PROBE_SECONDS = 0.5
"""Off Azure the address is a black hole: on Azure it takes a millisecond to connect."""

ANNOUNCED_IDENTITY = ("IDENTITY_ENDPOINT", "MSI_ENDPOINT")
"""Variables by which Azure's services (Azure ML among them) announce a managed identity."""

WORKLOAD, MANAGED, ENVIRONMENT, CLI = (
    "WorkloadIdentityCredential",
    "ManagedIdentityCredential",
    "EnvironmentCredential",
    "AzureCliCredential",
)
DEVELOPMENT = frozenset({CLI})
"""Sources that belong to a person; AZURE_TOKEN_CREDENTIALS=prod leaves them out, =dev leaves only them."""

WHAT_TO_DO = (
    "Run `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or give this machine a managed "
    "identity, or use a connection string as the place."
)


Probe = Callable[[tuple[str, int]], Awaitable[bool]]


async def answers(address: tuple[str, int]) -> bool:
    """Whether anything takes a connection there at once."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection(*address)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def choose(environ: Mapping[str, str], *, probe: Probe = answers) -> list[str]:
    """The names of the sources to try, in order, by what `environ` says and, failing that, a short probe."""
    wanted = environ.get("AZURE_TOKEN_CREDENTIALS", "").strip().lower()
    known = [WORKLOAD, MANAGED, ENVIRONMENT, CLI]
    if wanted in ("", "prod", "dev"):
        fitting = [name for name in known if not wanted or (name in DEVELOPMENT) == (wanted == "dev")]
        return [name for name in fitting if await _promising(name, environ, probe)]
    named = [name for name in known if name.lower() == wanted]
    if not named:
        raise ConfigurationError(f"AZURE_TOKEN_CREDENTIALS must be prod, dev or one of {', '.join(known)}; it is {wanted!r}.")
    return named


async def _promising(name: str, environ: Mapping[str, str], probe: Probe) -> bool:
    if name == WORKLOAD:
        return "AZURE_FEDERATED_TOKEN_FILE" in environ
    if name == MANAGED:
        return any(variable in environ for variable in ANNOUNCED_IDENTITY) or await probe(IDENTITY_ADDRESS)
    if name == ENVIRONMENT:
        secrets = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH")
        return "AZURE_CLIENT_ID" in environ and any(secret in environ for secret in secrets)
    return True


def _make(name: str, environ: Mapping[str, str]) -> AsyncTokenCredential:
    from azure.identity import aio  # a sixth of the time to import all of this, and not for those who have a key

    if name == WORKLOAD:
        return aio.WorkloadIdentityCredential()
    if name == MANAGED:
        # A machine can have several identities; this variable names one of them.
        return aio.ManagedIdentityCredential(client_id=environ.get("AZURE_CLIENT_ID"))
    return aio.EnvironmentCredential() if name == ENVIRONMENT else aio.AzureCliCredential()


class EntraCredential:
    """A source of tokens that was seen to work, with the last token at hand for all clients."""

    def __init__(self, source: AsyncTokenCredential, token: AccessToken, name: str = "") -> None:
        self.source_name = name or type(source).__name__
        self._source = source
        self._token = token
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, environ: Mapping[str, str], *, given: AsyncTokenCredential | None = None) -> EntraCredential:
        """Find the first source that gives a token; raises ConfigurationError if none does."""
        if given is not None:
            return cls(given, await given.get_token(SCOPE))
        names = await choose(environ)
        for name in names:
            source = _make(name, environ)
            token = await _try(source, name)
            if token is not None:
                logger.info("Entra ID: using %s.", name)
                return cls(source, token, name)
        raise ConfigurationError(f"No Entra ID credential works (tried {_listed(names)}). {WHAT_TO_DO}")

    @property
    def identity(self) -> str:
        """Whose the token is, as it says: a person's name, an application's or an object's id; "" if it does not say."""
        try:
            claims = json.loads(base64.urlsafe_b64decode(self._token.token.split(".")[1] + "=="))
            return str(next((claims[name] for name in IDENTITY_CLAIMS if claims.get(name)), ""))
        except (ValueError, IndexError, AttributeError, TypeError):  # it is for the service to read, and may be anything
            return ""

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """The token at hand, or a new one shortly before it ends. What the service demands anew (`claims`) is asked for anew."""
        if not options.get("claims") and self._token.expires_on - time.time() > EARLY_SECONDS:
            return self._token
        async with self._lock:
            self._token = await self._source.get_token(*scopes, **options)
        return self._token

    async def close(self) -> None:
        """Close the source's own connections."""
        await self._source.close()

    async def __aenter__(self) -> EntraCredential:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.close()


async def _try(source: AsyncTokenCredential, name: str) -> AccessToken | None:
    try:
        return await source.get_token(SCOPE)
    except (AzureError, ValueError) as exc:
        logger.debug("Entra ID: %s gives no token (%s).", name, type(exc).__name__)
        await source.close()
        return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
