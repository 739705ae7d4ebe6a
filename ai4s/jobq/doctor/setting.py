"""What can be said without asking anybody: the place and who named it, versions, the signing key.

Next: `reach.py`.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from ..client import Client
from ..config import Settings
from ..transports.place import AzurePlace, LocalPlace, Place
from ..version import __version__
from .finding import Finding, fine, warning

PACKAGES = ("azure-core", "azure-storage-queue", "azure-storage-blob", "azure-identity", "aiohttp", "cloudpickle", "msgpack")

LEAST = {"azure-core": ((1, 38), "older ones have a known flaw in how they read what is stored")}
"""Below which a version should not be used, and why."""


def place(client: Client, settings: Settings) -> Finding:
    """Which app at which place, and who says so. Raises ConfigurationError for a place that is none."""
    return fine("place", f"the app {client.name} at {client.place.label}, named by {_named_by(client, settings)}")


def _named_by(client: Client, settings: Settings) -> str:
    given = client.origin.url
    if given is None:
        return "JOBQ_URL" if settings.url else "nobody, so it is the nearest folder .jobq"
    has_right = isinstance(client.place, AzurePlace) and (client.place.key or client.place.sas)
    if has_right and given == settings.url:
        return "TARGET, with the right that JOBQ_URL holds"
    if has_right and given == settings.connection_string:
        return "TARGET, with the right that JOBQ_CONNECTION_STRING holds"
    return "TARGET"


def versions(opened: Place | None) -> Iterator[Finding]:
    """Of what takes part; those of Azure's SDK only where it is used."""
    yield fine("versions", f"ai4s-jobq {__version__}, Python {platform.python_version()} on {platform.system()}")
    if isinstance(opened, LocalPlace):
        return
    found = {name: _version(name) for name in PACKAGES}
    told = ", ".join(f"{name} {number or 'is missing'}" for name, number in found.items())
    old = [_too_old(name, found[name] or "0") for name in LEAST if _is_older(found[name] or "0", LEAST[name][0])]
    yield warning("packages", told, " ".join(old)) if old else fine("packages", told)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_older(found: str, least: tuple[int, ...]) -> bool:
    return tuple(map(int, re.findall(r"\d+", found)[: len(least)])) < least


def _too_old(name: str, found: str) -> str:
    least, why = LEAST[name]
    return f"Update {name} {found} to {'.'.join(map(str, least))} or later: {why}."


def signing_key(client: Client) -> Finding:
    """Whether there is one, and what that means. Raises ConfigurationError for one that cannot be used."""
    if client.keyring:
        return fine("signing key", "set: messages and outcomes are signed, and those of others are refused")
    if isinstance(client.place, LocalPlace):
        return fine("signing key", "not set; only who may write to the folder can run code on workers")
    return warning(
        "signing key",
        "not set: whoever may write to the queue or the container can run code on the workers",
        "If that is more people than should: the same JOBQ_SIGNING_KEYS for all, made by `openssl rand -hex 32`.",
    )
