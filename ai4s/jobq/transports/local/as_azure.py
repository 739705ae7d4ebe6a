"""What a request here would have been on Azure, so that a local run tells what the same work costs there.

Only the number of requests for large blobs and first appends differs from "one for each operation". The sizes are those of
`azure/store.py` and `azure/blocks.py`, which cannot be imported without the SDK; a conformance test compares the counts.

Next: `store.py`, which counts.
"""

from __future__ import annotations

from ...requests_made import Requests

SINGLE_BYTES = 8 * 1024 * 1024
BLOCK_BYTES = 4 * 1024 * 1024
MAX_BLOCKS = 50_000


def puts(size: int, *, streamed: bool) -> int:
    """How many requests write this many bytes; `streamed` from a file."""
    if size <= (BLOCK_BYTES if streamed else SINGLE_BYTES):
        return 1
    block_bytes = max(BLOCK_BYTES, -(-size // MAX_BLOCKS))
    return -(-size // block_bytes) + 1


def count_rest(requests: Requests, read_bytes: int, asked_bytes: int | None) -> None:
    """What a read needs beyond its first request: the other ranges, or a look at a blob that has no such range."""
    if read_bytes > SINGLE_BYTES:
        requests.add("blob_get", -(-read_bytes // SINGLE_BYTES) - 1)
    elif read_bytes == 0 and asked_bytes != 0:
        requests.add("blob_head")


def count_append(requests: Requests, size: int, at: int) -> None:
    """An append; the first one finds no blob, makes it, and goes again."""
    if size == 0:
        requests.add("blob_head")
        return
    requests.add("blob_append", 2 if at == 0 else 1)
    if at == 0:
        requests.add("blob_put")
