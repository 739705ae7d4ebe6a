"""Errors of the SDK into errors of this project: once, here, and never with the SDK's text.

That text may quote the string that was signed, or a URL with its signature. What a user needs is the operation, the account,
the service's code, and what to do. Whether a request may have been carried out is decided here, and on the safe side.

Next: `retrying.py`, which acts on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import ParseError

import aiohttp
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceExistsError

from ...errors import AccessDenied, AlreadyExists, ConditionFailed, LeaseLost, NotFound, TransportError, Unreachable

LOST_LEASE = frozenset({"PopReceiptMismatch", "MessageNotFound"})
"""Azurite says the first (400) of a void receipt, the service in practice the second (404)."""

BEING_DELETED = frozenset({"QueueBeingDeleted", "ContainerBeingDeleted", "ContainerDisabled"})
"""Of a name that is free again within a minute."""

PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""What another attempt may cure."""

REFUSED_UNDONE = frozenset({"ServerBusy", "TooManyRequests"}) | BEING_DELETED
"""The service turned the request away before it did anything."""

HINTS = {
    "key": "The account key is wrong or was rotated, or access by key is disabled, or this machine's clock is off.",
    "sas": "The SAS has expired or lacks a right: it needs services bq, resource types sco, permissions racwdlup.",
    "entra": (
        "Give this identity the roles Storage Queue Data Contributor and Storage Blob Data Contributor on the account "
        "(a new role takes some minutes)."
    ),
}
"""What to do about a refusal, by the kind of credential."""


@dataclass(frozen=True, slots=True)
class Account:
    """The account as messages speak of it. `right` is "key", "sas" or "entra"."""

    label: str
    right: str


@contextlib.contextmanager
def translated(account: Account, operation: str) -> Iterator[None]:
    """Run one request; what the SDK raises comes out as one of our errors."""
    try:
        yield
    except HttpResponseError as exc:
        raise _refusal(exc, account, operation) from exc
    except AzureError as exc:
        raise _silence(exc, account, operation) from exc
    except (ParseError, UnicodeDecodeError) as exc:
        raise Unreachable(f"{operation}: {account.label} gave an answer that cannot be read.") from exc


def error_code(exc: BaseException | None) -> str:
    """The service's code for an error of the SDK, or "" if it gave none."""
    # Only from the header: the SDK's own codes are an enumeration that lags behind the service.
    return _header(exc, "x-ms-error-code")


def status_of(exc: BaseException | None) -> int | None:
    """The HTTP status of an error of the SDK, or None if there was no answer."""
    return exc.status_code if isinstance(exc, HttpResponseError) else None


def retry_after_seconds(exc: BaseException | None) -> float:
    """How long the service asks to wait before another attempt; 0 if it does not say."""
    asked = _header(exc, "Retry-After")
    return float(asked) if asked.isdigit() else 0.0


def _header(exc: BaseException | None, name: str) -> str:
    response: Any = exc.response if isinstance(exc, HttpResponseError) else None
    return "" if response is None else str(response.headers.get(name) or "")


def _refusal(exc: HttpResponseError, account: Account, operation: str) -> TransportError:
    status, code = exc.status_code, error_code(exc)
    told = f"{operation}: {account.label} answered {status or 'with half an answer'} {code}".rstrip()
    if isinstance(exc, ClientAuthenticationError) and status is None:
        return AccessDenied(f"{operation}: there is no valid credential for {account.label}. {HINTS[account.right]}", unknown=True)
    if status in (401, 403):
        return AccessDenied(f"{told}. {HINTS[account.right]}", unknown=status == 401 or code == "AuthenticationFailed")
    if code in LOST_LEASE:
        return LeaseLost(f"{told}. Another delivery, or the one that settled it, holds the message.")
    if isinstance(exc, ResourceExistsError) and status == 204:  # a queue that is there, with the same metadata
        return AlreadyExists(f"{told}.")
    if status in PASSING or code in BEING_DELETED or status is None or status < 300:
        return Unreachable(f"{told}.", maybe_done=code not in REFUSED_UNDONE)
    kinds: dict[int, type[TransportError]] = {404: NotFound, 409: AlreadyExists, 412: ConditionFailed}
    return kinds.get(status, TransportError)(f"{told}.")


def _silence(exc: AzureError, account: Account, operation: str) -> Unreachable:
    cause = exc.__cause__
    # The SDK counts every broken connection as a request that was not sent; only these surely were not.
    unsent = isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    why = type(cause or exc).__name__
    if unsent:
        return Unreachable(f"{operation}: {account.label} cannot be reached ({why}).", maybe_done=False)
    return Unreachable(f"{operation}: {account.label} did not answer ({why}); it may have been done.")
