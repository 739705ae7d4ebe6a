"""Azure Storage as a place: Storage Queues and Blobs, through the aio clients of the SDK.

This package is the only one that imports `azure.*` and aiohttp. Nothing of the SDK leaves it: neither types nor errors.
It must not know what bodies and blobs mean.

Next: `transport.py` opens an account; `queue.py` and `store.py` keep the contract of `base.py`.
"""

from __future__ import annotations

from .transport import AzureTransport

__all__ = ["AzureTransport"]
