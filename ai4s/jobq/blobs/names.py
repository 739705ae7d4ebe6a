"""Names of containers and of blobs that users give: checked before any request, at every place alike.

A name with `..` would mean another one once it is a part of a URL, and of a backslash the service makes a slash. Names may hold
all letters, marks and spaces of all languages; not what would break a line, or cannot be sent.

Next: `blobs.py`.
"""

from __future__ import annotations

import re

from ..errors import DeclarationError

CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){2,62}")
ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
MAX_CONTAINER, MAX_NAME = 63, 1024
"""Azure's limits."""

NOT_IN_NAMES = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""Backslashes, control characters, ends of lines, halves of characters, and what no XML holds, as listings are."""


def checked_container(container: str) -> tuple[str, str]:
    """The account, if one is named, and the container; raises DeclarationError for what is no name of one."""
    account, slash, name = container.rpartition("/") if isinstance(container, str) else ("", "", "")
    is_name = CONTAINER.fullmatch(name) and len(name) <= MAX_CONTAINER
    if not is_name or (slash and not ACCOUNT.fullmatch(account)):
        raise DeclarationError(
            "A container is 3 to 63 lower-case letters, digits and single hyphens, as in 'my-data', or in another account "
            f"'account/my-data'; got {container!r}."
        )
    return account, name


def checked_name(name: str) -> str:
    """`name` if a blob can have it; raises DeclarationError."""
    is_text = isinstance(name, str) and not NOT_IN_NAMES.search(name) and 0 < len(name) <= MAX_NAME
    if not is_text or name.startswith("/") or any(part in (".", "..") for part in name.split("/")):
        raise DeclarationError(
            f"A blob's name is 1 to {MAX_NAME} characters, as in 'folder/file.txt', without control characters and backslashes, a "
            f"slash at its beginning, and '.' and '..' between slashes; got {name!r}."
        )
    return name


def checked_prefix(prefix: str) -> str:
    """The beginning of the names of all that is in this folder."""
    folder = prefix.rstrip("/") if isinstance(prefix, str) else prefix
    return "" if folder == "" else f"{checked_name(folder)}/"
