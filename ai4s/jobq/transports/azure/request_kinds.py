"""Which kind of request a method and a URL of Azure's REST interface make, as `requests_made.py` names them.

Only what is billed differently, or tells something about how calls travel, is told apart. It runs once for each request, so it
looks at strings and parses nothing.

Next: `connection.py`, which counts.
"""

from __future__ import annotations

_OF_MESSAGES = {"POST": "queue_send", "GET": "queue_receive"}
_OF_MESSAGE = {"PUT": "queue_renew", "DELETE": "queue_delete"}
_OF_BLOB = {"PUT": "blob_put", "GET": "blob_get", "HEAD": "blob_head", "DELETE": "blob_delete"}


def request_kind(method: str, url: str, queue_url: str) -> str:
    """The kind of one request; `queue_url` is what all URLs of the queue service begin with.

    >>> request_kind("POST", "https://a.queue.core.windows.net/q/messages?messagettl=-1", "https://a.queue.core.windows.net")
    'queue_send'
    """
    where, _, query = url.partition("?")
    options = query.split("&")
    if where.startswith(queue_url):
        return _queue_kind(method, where.removeprefix(queue_url).strip("/").split("/"), options)
    return _blob_kind(method, options)


def _queue_kind(method: str, path: list[str], options: list[str]) -> str:
    if len(path) == 2:
        return "queue_peek" if "peekonly=true" in options else _OF_MESSAGES.get(method, "queue_other")
    if len(path) == 3:
        return _OF_MESSAGE.get(method, "queue_other")
    return "queue_depth" if method in ("GET", "HEAD") and path != [""] else "queue_other"


def _blob_kind(method: str, options: list[str]) -> str:
    if "comp=list" in options:
        return "blob_list"
    if "restype=container" in options or "restype=service" in options:
        return "blob_other"
    if "comp=appendblock" in options:
        return "blob_append"
    return _OF_BLOB.get(method, "blob_other")
