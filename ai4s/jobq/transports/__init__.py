"""Opening a place. The SDK of a place's kind is imported when such a place is opened, not before."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .base import Transport
from .place import LocalPlace, Place


async def open_transport(place: Place, *, environ: Mapping[str, str] = MappingProxyType({}), create: bool = True) -> Transport:
    """Open `place` on the running event loop; the caller closes it.

    `environ` is where proxies, certificates and sources of Entra ID tokens are named; usually the process's environment.
    Without `create` a folder that is not there is not made.

    Raises ConfigurationError for a folder that cannot be written or credentials that cannot be found, NotFound for no folder.
    """
    if isinstance(place, LocalPlace):
        from .local import LocalTransport

        return await LocalTransport.open(place, create=create)
    from .azure import AzureTransport

    return await AzureTransport.open(place, environ=environ)
