"""What a place's URL says: a folder on this machine, or a storage account and the right to use it.

Nothing is opened or asked here, and no secret shows in a `repr`, a `label` or an error.

Next: `transports/__init__.py`, which opens a place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ..errors import ConfigurationError

AZURITE_ACCOUNT = "devstoreaccount1"
# Azurite's account and key are public constants of the emulator, printed in its documentation; they protect nothing.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURITE_BLOB_PORT = 10000
MAX_PORT = 65535

HELP = (
    "A place is azure://ACCOUNT, a connection string or SAS URL of a storage account, azurite://[HOST:BLOB_PORT], "
    "or local:///FOLDER."
)


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A folder of this machine."""

    folder: Path

    @property
    def label(self) -> str:
        """The place for people and for pickles, as a URL without secrets."""
        return f"local://{self.folder}"


@dataclass(frozen=True, slots=True)
class AzurePlace:
    """A storage account. With neither key nor SAS, Entra ID gives the right to use it."""

    label: str
    blob_url: str
    queue_url: str
    account: str
    key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)


Place = LocalPlace | AzurePlace


def parse_place(url: str) -> Place:
    """Read a place's URL; raises ConfigurationError that says what would be right, and never repeats a secret."""
    try:
        return _parse(url.strip())
    except ValueError as exc:
        if isinstance(exc, ConfigurationError):
            raise
        raise ConfigurationError(f"The URL of the place is malformed. {HELP}") from None  # its text may hold a secret


def _parse(text: str) -> Place:
    if text.startswith("local://"):
        return _local(text.removeprefix("local://"))
    if text.startswith("azurite://"):
        return _azurite(text.removeprefix("azurite://"))
    if text.startswith("azure://"):
        return _account(text.removeprefix("azure://").rstrip("/"))
    if text.startswith(("https://", "http://")):
        return _sas_url(text)
    if re.search(r"(^|;)\s*(AccountName|BlobEndpoint|QueueEndpoint|UseDevelopmentStorage)\s*=", text, re.IGNORECASE):
        return _connection_string(text)
    if text.startswith("sb://"):
        raise ConfigurationError(f"Service Bus (sb://) is not supported. {HELP}")
    if text.startswith("DefaultEndpointsProtocol="):
        raise ConfigurationError("This connection string is cut off; in a shell it must stand in quotes, as it has semicolons.")
    raise ConfigurationError(f"This is no place that I know. {HELP}")


def _local(path: str) -> LocalPlace:
    if not path.startswith("/"):
        raise ConfigurationError("local:// wants an absolute folder, as in local:///tmp/jobs.")
    return LocalPlace(Path(path))


def _azurite(rest: str) -> AzurePlace:
    match = re.fullmatch(r"([\w.-]*|\[[0-9a-fA-F:]+\])(?::([0-9]{1,5}))?", rest.strip("/"))
    if match is None or int(match[2] or 1) >= MAX_PORT:
        raise ConfigurationError("azurite:// wants HOST:BLOB_PORT, as in azurite://127.0.0.1:10000.")
    host, port = match[1] or "127.0.0.1", int(match[2] or AZURITE_BLOB_PORT)
    # Azurite's own defaults put the queue one port above the blobs; so do we.
    return AzurePlace(
        label=f"azurite://{host}:{port}",
        blob_url=f"http://{host}:{port}/{AZURITE_ACCOUNT}",
        queue_url=f"http://{host}:{port + 1}/{AZURITE_ACCOUNT}",
        account=AZURITE_ACCOUNT,
        key=AZURITE_KEY,
    )


def _account(account: str, *, suffix: str = "core.windows.net", key: str | None = None, sas: str | None = None) -> AzurePlace:
    if not re.fullmatch(r"[a-z0-9]{3,24}", account):
        raise ConfigurationError(f"A storage account's name is 3 to 24 lower-case letters and digits; this is another one. {HELP}")
    return AzurePlace(
        label=f"azure://{account}",
        blob_url=f"https://{account}.blob.{suffix}",
        queue_url=f"https://{account}.queue.{suffix}",
        account=account,
        key=key,
        sas=sas,
    )


def _sas_url(url: str) -> AzurePlace:
    parts = urlsplit(url)
    match = re.fullmatch(r"([a-z0-9]{3,24})\.(?:blob|queue)\.([\w.-]+)", parts.hostname or "")
    if not match or "sig=" not in parts.query:
        raise ConfigurationError(
            "A URL of a storage account must be https://ACCOUNT.blob.core.windows.net/?SAS, with an account SAS "
            f"for blobs and queues. {HELP}"
        )
    return _account(match[1], suffix=match[2], sas=parts.query)


def _connection_string(text: str) -> AzurePlace:
    fields = {}
    for part in text.split(";"):
        name, found, value = part.strip().partition("=")
        if found:
            fields[name.lower()] = value
    if fields.get("usedevelopmentstorage", "").lower() == "true":
        return _azurite("")
    key, sas = fields.get("accountkey"), fields.get("sharedaccesssignature")
    if not (key or sas):
        raise ConfigurationError("The connection string has neither AccountKey nor SharedAccessSignature.")
    account = fields.get("accountname", "")
    if "blobendpoint" not in fields or "queueendpoint" not in fields:
        return _account(account, suffix=fields.get("endpointsuffix", "core.windows.net"), key=key, sas=sas)
    blob_url, queue_url = _bare(fields["blobendpoint"]), _bare(fields["queueendpoint"])
    return AzurePlace(
        label=_endpoint_label(blob_url),
        blob_url=blob_url,
        queue_url=queue_url,
        account=account or _account_of(blob_url),
        key=key,
        sas=sas,
    )


def _bare(endpoint: str) -> str:
    """An endpoint without a query (which could be a SAS) and without a password: both would show."""
    parts = urlsplit(endpoint)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _account_of(blob_url: str) -> str:
    parts = urlsplit(blob_url)
    return parts.path.strip("/") or (parts.hostname or "").split(".")[0]


def _endpoint_label(blob_url: str) -> str:
    parts = urlsplit(blob_url)
    if parts.path.strip("/") == AZURITE_ACCOUNT:
        return f"azurite://{parts.netloc}"
    return f"azure://{_account_of(blob_url)}"
