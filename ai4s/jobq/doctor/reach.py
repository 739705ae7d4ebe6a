"""Whether this machine reaches the place: names, connections and certificates of an account; the disk under a folder.

Nothing is signed in for this, and nothing is sent but handshakes.

Next: `rights.py`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..transports.place import AzurePlace, LocalPlace
from .finding import Finding, failed, fine, warning

TIMEOUT_SECONDS = 5.0

LEAST_FREE_BYTES = 1024**3
GROUP_OR_OTHERS = stat.S_IWGRP | stat.S_IWOTH

NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "afs",
        "glusterfs",
        "fuse.sshfs",
        "fuse.blobfuse2",
    }
)
"""On which SQLite's locks cannot be relied upon, or its shared memory does not work."""

MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True, slots=True)
class _Stop:
    """Where an endpoint's first connection goes: to itself, or to a proxy."""

    host: str
    port: int
    is_tls: bool


async def account(place: AzurePlace, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Both endpoints of an account."""
    for service, url in (("blobs", place.blob_url), ("queues", place.queue_url)):
        yield await _endpoint(f"reach {service}", url, environ)


async def _endpoint(check: str, url: str, environ: Mapping[str, str]) -> Finding:
    from ..transports.azure.connection import proxy_for

    proxy = proxy_for(url, environ)
    stop = _stop(proxy or url)
    by = f", by the proxy {stop.host}:{stop.port} that the environment names" if proxy else ""
    told = f"{urlsplit(url).hostname}{by}"
    began = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await asyncio.get_running_loop().getaddrinfo(stop.host, stop.port)
            protocol = await _shake_hands(stop, environ)
    except OSError as exc:  # the time that ran out and every fault of TLS are such as well
        return failed(check, f"{told}: {_what_failed(exc)}", _what_to_do(exc, by_proxy=bool(proxy)))
    return fine(check, f"{told}: {protocol} in {1000 * (time.monotonic() - began):.0f} ms")


def _stop(url: str) -> _Stop:
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    return _Stop(parts.hostname or "", parts.port or (443 if is_tls else 80), is_tls)


async def _shake_hands(stop: _Stop, environ: Mapping[str, str]) -> str:
    """Connect, and agree on TLS where that is asked for; returns what was agreed on."""
    cafile = environ.get("SSL_CERT_FILE") or environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context(cafile=cafile) if stop.is_tls else None
    _, writer = await asyncio.open_connection(stop.host, stop.port, ssl=context)
    agreed = writer.get_extra_info("ssl_object")
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return str(agreed.version()) if agreed else "connected"


def _what_failed(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return "its name is not known here"
    if isinstance(exc, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(exc, ssl.SSLError):
        return f"no TLS ({exc.reason or type(exc).__name__})"
    return f"no connection ({exc.strerror or type(exc).__name__})"


def _what_to_do(exc: OSError, *, by_proxy: bool) -> str:
    if isinstance(exc, socket.gaierror):
        return "Check the account's name; with a private endpoint, this machine must ask the DNS of the virtual network."
    if isinstance(exc, ssl.SSLError):
        return "Something between here and the service speaks in its place: name its certificates by SSL_CERT_FILE, or go round it."
    if by_proxy:
        return "Check https_proxy and no_proxy."
    return "Check this machine's way out: firewall, proxy (https_proxy), private endpoint."


def folder(place: LocalPlace) -> Iterator[Finding]:
    """The disk under a local place: whether it is of this machine, has room, and is closed to others."""
    path = place.folder
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    kind = file_system(existing)
    if kind in NETWORK_FILE_SYSTEMS:
        yield failed(
            "disk", f"{path} is on a file system of kind {kind}", "Take a folder on a disk of this machine: SQLite needs one."
        )
    free = shutil.disk_usage(existing).free
    room = f"{free / 1024**3:.1f} GiB free{f' on {kind}' if kind else ''}"
    if free < LEAST_FREE_BYTES:
        yield warning("disk", f"{room}; values and arguments need it", f"Make room, or take another folder than {path}.")
    elif kind not in NETWORK_FILE_SYSTEMS:
        yield fine("disk", room)
    yield _permissions(existing)


def _permissions(existing: Path) -> Finding:
    mode = existing.stat().st_mode
    if not os.access(existing, os.W_OK | os.X_OK):
        return failed("folder", f"{existing} cannot be written to", "Take a folder of your own, as in local:///tmp/jobs.")
    if mode & GROUP_OR_OTHERS and not mode & stat.S_ISVTX:
        return warning(
            "folder",
            f"{existing} may be written to by others, whose messages would be code to the workers",
            f"chmod go-w {existing}",
        )
    return fine("folder", f"{existing} may be written to, by you")


def file_system(path: Path) -> str:
    """The kind of file system that a path lies on; "" where that is not told."""
    with suppress(OSError):
        mounts = [line.split(" ")[1:3] for line in MOUNTS.read_text().splitlines()]
        under = [(len(at), kind) for at, kind in mounts if path.resolve().is_relative_to(at.replace("\\040", " "))]
        return max(under, default=(0, ""), key=lambda mount: mount[0])[1]
    return ""
