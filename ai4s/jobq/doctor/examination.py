"""The order of the checks: what needs nothing first, then the network, the right to use the place, the rights, what lies there.

Next: `setting.py`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from ..client import Client
from ..config import Settings
from ..errors import ConfigurationError, JobQError, NotFound
from ..ledger import Ledger
from ..transports import open_transport
from ..transports.base import Transport
from ..transports.place import AzurePlace, LocalPlace
from . import footprint, reach, setting
from .finding import Finding, Verdict, failed, fine, warning
from .rights import ROLES, Rights, StopExamining

SKEW_SECONDS, ROUNDED_SECONDS = 2.0, 1.0
"""How far two clocks may be apart; and by how much the service's seems behind, as it tells whole seconds."""

REFUSED_SKEW_SECONDS = 15 * 60
"""From here on the service refuses what a key signed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be examined: for which roles, which queue; `create` makes queue and container where they are missing."""

    roles: tuple[str, ...] = ROLES
    queue: str = "default"
    create: bool = False


async def examine(client: Client, settings: Settings, wanted: Wanted) -> AsyncIterator[Finding]:
    """Check after check, as they are done; ends early where nothing further can be tried."""
    try:
        yield setting.place(client, settings)
        for finding in setting.versions(client.place):
            yield finding
        yield setting.signing_key(client)
    except ConfigurationError as exc:
        yield failed("setting", str(exc), "Mend that first.")
        return
    is_reached = True
    async for finding in _reach(client, settings.environ):
        is_reached = is_reached and finding.verdict is not Verdict.FAILED
        yield finding
    if is_reached:
        async for finding in _at_the_place(client, settings.environ, wanted):
            yield finding


async def _reach(client: Client, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    if isinstance(client.place, LocalPlace):
        for finding in reach.folder(client.place):
            yield finding
    else:
        async for finding in reach.account(client.place, environ):
            yield finding


async def _at_the_place(client: Client, environ: Mapping[str, str], wanted: Wanted) -> AsyncIterator[Finding]:
    try:
        transport = await open_transport(client.place, environ=environ, create=wanted.create)
    except NotFound as exc:
        yield warning("place", str(exc), "What is pushed first makes it; `doctor --create` does so now.")
        return
    except JobQError as exc:
        yield failed("credential", f"{exc}{_which(environ)}", "")
        return
    try:
        yield fine("credential", f"{transport.credential}{_which(environ) if 'Entra' in transport.credential else ''}")
        async for finding in _opened(client, transport, wanted):
            yield finding
    except StopExamining as exc:
        yield failed("storage", str(exc), "Nothing further was tried.")
    finally:
        await transport.close()


def _which(environ: Mapping[str, str]) -> str:
    named = environ.get("AZURE_TOKEN_CREDENTIALS")
    return f" (AZURE_TOKEN_CREDENTIALS={named} says which sources are tried)" if named else ""


async def _opened(client: Client, transport: Transport, wanted: Wanted) -> AsyncIterator[Finding]:
    if isinstance(client.place, AzurePlace):  # a folder's clock is this machine's
        yield await _clock(client.place, transport)
    ledger = Ledger(transport, client.name, client.keyring, create=False)
    rights = Rights(ledger, wanted.roles)
    async for finding in rights.to_queue(wanted.queue, create=wanted.create):
        yield finding
    async for finding in rights.to_container(create=wanted.create):
        yield finding
    async for finding in footprint.queues(client, ledger):
        yield finding
    async for finding in footprint.blobs(ledger):
        yield finding


async def _clock(place: AzurePlace, transport: Transport) -> Finding:
    try:
        ahead = time.time() - await transport.server_time()
    except JobQError as exc:
        raise StopExamining(str(exc)) from exc
    told = f"this machine's is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the storage's"
    advice = "Set it by NTP. Calls go by the storage's clock alone; logs and signed requests do not."
    if place.key and abs(ahead) >= REFUSED_SKEW_SECONDS:
        return failed("clock", f"{told}, and requests that a key signs are refused from 15 minutes on", advice)
    if -SKEW_SECONDS <= ahead <= SKEW_SECONDS + ROUNDED_SECONDS:
        return fine("clock", told)
    return warning("clock", told, advice)
