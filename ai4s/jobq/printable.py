"""Text from elsewhere made fit to be stored, logged and shown: users' exceptions and names may hold anything.

Keys and signatures that open a storage account are taken out of it: an exception's text often has the connection string in it,
and whoever may read a log or a dead letter need not have a right to the account. Other secrets are not known to be any.

Next: `failures.py`, which stores such text; the worker, which logs it.
"""

from __future__ import annotations

import copy
import logging
import re
from types import TracebackType

MAX_CHARS = 2_000

_VALUE = r"""[^\s"'`;&,<>(){}\[\]\\]+"""
_IS = r"""["']?\s*(?:=|%3D|:)\s*["']?"""
"""Between a name and its value, in a connection string, a URL, a map, JSON, or keyword arguments."""

_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # The whole of a SAS, and not only its signature: what it allows and until when is nobody's business either.
        rf"""(?P<name>SharedAccessSignature{_IS})[^\s"'`;<>]+""",
        rf"""(?P<name>(?:Account_?Key|SharedAccess_?Key|JOBQ_SIGNING_KEYS){_IS})(?!\*\*\*){_VALUE}""",
        # Part of a query, of a keyword, of a map: but not of `design=`.
        rf"""(?P<name>(?:(?<![a-z0-9_])|(?<=%3F)|(?<=%26))sig(?:=|%3D|["']:\s*["']))(?!\*\*\*){_VALUE}""",
        rf"""(?P<name>Authorization{_IS}(?:(?:Basic|Bearer|SharedKey(?:Lite)?) +)?+)(?!\*\*\*){_VALUE}""",
        rf"""(?P<name>\bSharedKey(?:Lite)?\s+\w+:){_VALUE}""",
        r"(?P<name>\bBearer\s+)[a-z0-9._~+/=-]{16,}",
    )
)


_WORDS = ("key", "sig", "authorization", "bearer")
"""One of these stands in each secret's name. To look for words is a hundred times faster than for patterns."""


def redacted(text: str) -> str:
    """`text` without the keys, signatures and tokens in it: `AccountKey=***`."""
    folded = text.casefold()
    if not any(word in folded for word in _WORDS):
        return text
    for secret in _SECRETS:
        text = secret.sub(r"\g<name>***", text)
    return text


def has_secret(data: bytes | str) -> bool:
    """Whether `redacted` would change this; of bytes, what stands in them as text is looked at."""
    text = data if isinstance(data, str) else data.decode("latin-1")
    return redacted(text) != text


def storable(text: str) -> str:
    """`text` with what UTF-8 cannot hold replaced: file names may bring lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def printable(text: str) -> str:
    """`text` without secrets, `escaped`, and cut to a length that a log can bear."""
    return escaped(redacted(storable(text[:MAX_CHARS])))


def escaped(text: str) -> str:
    """`text` on one line, with control characters and terminal escapes spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text)


def describe(value: object) -> str:
    """`str(value)`, cut and without secrets, or a note in its place if even that raises."""
    try:
        return redacted(storable(str(value)[:MAX_CHARS]))
    except BaseException as exc:  # noqa: BLE001  # __str__ is user code
        return f"<{kind(value)} whose str() raises {type(exc).__name__}>"


def kind(value: object) -> str:
    """The name of a value's class, with its module unless it is built in."""
    return storable(f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins."))


LOG_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
"""How a worker and its children log."""


class PlainFormatter(logging.Formatter):
    """One line for each record, whatever is in its message; only a traceback has more, each of which is fit to be shown, too."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        record.exc_text = None  # as another handler may have written it
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        record.message = escaped(redacted(storable(record.message)))
        return super().formatMessage(record)

    def formatException(  # noqa: N802  # the name is logging's
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        lines = redacted(storable(super().formatException(ei))).split("\n")
        return "\n".join(map(escaped, lines))
