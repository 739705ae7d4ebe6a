"""Text from elsewhere made fit to be stored, logged and shown: users' exceptions and names may hold anything.

Next: `failures.py`, which stores such text; the worker, which logs it.
"""

from __future__ import annotations

MAX_CHARS = 2_000


def storable(text: str) -> str:
    """`text` with what UTF-8 cannot hold replaced: file names may bring lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def printable(text: str) -> str:
    """`text` on one line, with control characters and terminal escapes spelled out, cut to a length that a log can bear."""
    shown = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in storable(text[:MAX_CHARS]))
    return "".join(shown)


def describe(value: object) -> str:
    """`str(value)`, cut, or a note in its place if even that raises."""
    try:
        return storable(str(value)[:MAX_CHARS])
    except BaseException as exc:  # noqa: BLE001  # __str__ is user code
        return f"<{kind(value)} whose str() raises {type(exc).__name__}>"


def kind(value: object) -> str:
    """The name of a value's class, with its module unless it is built in."""
    return storable(f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins."))
