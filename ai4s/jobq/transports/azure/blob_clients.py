"""Clients for single blobs, made by copying one: the SDK builds each anew, at a fifth of what a request costs.

Two clients of one container differ in nothing but the name and the URL that follows from it. The SDK has no public way to say so; a
test watches that copies are what the SDK would have made, and where its inside is not as known here, it makes them itself.

Next: `store.py`, which asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import lru_cache
from typing import Any

from azure.storage.blob.aio import BlobClient, ContainerClient

POLLED_BLOBS = 32
"""Blobs whose clients are kept: pollers read the same few again and again."""

OPERATIONS = ("blob", "block_blob", "append_blob")
"""The groups of generated operations that a store uses; each holds the configuration that holds the URL."""


def blob_clients(container: ContainerClient) -> Callable[[str], BlobClient]:
    """What gives the client of the blob with this name."""
    template = container.get_blob_client("template")

    @lru_cache(POLLED_BLOBS)
    def client_of(name: str) -> BlobClient:
        try:
            return _copied(template, name)
        except AttributeError:
            return container.get_blob_client(name)

    return client_of


def _copied(template: Any, name: str) -> BlobClient:
    made = copy(template)
    made.blob_name = name
    generated = made._client = copy(template._client)  # noqa: SLF001  # (see the module)
    configuration = generated._config = copy(generated._config)  # noqa: SLF001
    configuration.url = made.url
    for group in OPERATIONS:
        operations = copy(getattr(generated, group))
        operations._config = configuration  # noqa: SLF001
        setattr(generated, group, operations)
    return made  # type: ignore[no-any-return]  # a BlobClient, as the template
