"""Keys, SAS and Entra ID: what a refusal says, whose queue it is, and which source of tokens is used.

Next: `test_azure_transport.py` for lost answers.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import time
import traceback
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.core.credentials import AccessToken
from azure.storage.queue import QueueServiceClient as SyncQueues
from azurite import Certificate, running_azurite
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fault_proxy import (
    azure_place,
    fresh_name,
    opened,
)

from ai4s.jobq.errors import AccessDenied, ConfigurationError, PlaceTaken
from ai4s.jobq.transports.azure import AzureTransport, credentials
from ai4s.jobq.transports.azure.connection import proxy_for

# --- refusals


async def test_wrong_key_is_one_clear_line_without_secrets(azurite_url: str) -> None:
    """It names the operation, the account, the code and what to do; the key shows nowhere, nor does a signature."""
    key = "d3Jvbmcgd3Jvbmcgd3Jvbmc="
    place = replace(azure_place(azurite_url), key=key)
    async with opened(place) as transport:
        with pytest.raises(AccessDenied) as caught:
            await transport.queue("somequeue", app="test").send("one")
    message = str(caught.value)
    assert "\n" not in message
    for told in ("send to queue somequeue", place.label, "403", "AuthenticationFailed", "key"):
        assert told in message
    assert key not in "".join(traceback.format_exception(caught.value))


async def test_wrong_sas_is_one_clear_line_without_secrets(azurite_url: str) -> None:
    """As with a key; the hint is another."""
    sas = "sv=2024-11-04&ss=bq&srt=sco&sp=racwdlup&se=2020-01-01T00:00:00Z&sig=c2VjcmV0c2VjcmV0"
    place = replace(azure_place(azurite_url), key=None, sas=sas)
    async with opened(place) as transport:
        with pytest.raises(AccessDenied, match="SAS") as caught:
            await transport.store("somecontainer").put("x", b"1")
    assert "c2VjcmV0" not in "".join(traceback.format_exception(caught.value))


async def test_key_that_is_no_key_is_access_denied(azurite_url: str) -> None:
    """A key that is not even base64 fails before any request, with the same error."""
    async with opened(replace(azure_place(azurite_url), key="!")) as transport:
        with pytest.raises(AccessDenied):
            await transport.queue("somequeue", app="test").depth()


async def test_another_apps_queue_is_taken(azurite_url: str) -> None:
    """The first app's name stands on the queue; creating it again for the same app is fine."""
    name = fresh_name()
    async with opened(azure_place(azurite_url)) as transport:
        await transport.queue(name, app="one").create()
        await transport.queue(name, app="one").create()
        with pytest.raises(PlaceTaken, match="'one'"):
            await transport.queue(name, app="two").create()


async def test_queue_without_an_apps_name_is_nobody_elses(azurite_url: str) -> None:
    """Queues of ai4s-jobq 3.x carry no metadata."""
    name, place = fresh_name(), azure_place(azurite_url)
    with SyncQueues(place.queue_url, {"account_name": place.account, "account_key": place.key}) as queues:
        queues.create_queue(name)
    async with opened(place) as transport:
        await transport.queue(name, app="one").create()


def test_proxy_is_taken_from_the_environment_given() -> None:
    """Once, at opening; `no_proxy` is honoured."""
    environ = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "localhost,.internal"}
    assert proxy_for("https://acct.blob.core.windows.net", environ) == "http://proxy:3128"
    assert proxy_for("https://acct.internal", environ) is None
    assert proxy_for("http://127.0.0.1:10000/devstoreaccount1", environ) is None


async def nothing_answers(address: tuple[str, int]) -> bool:
    return False


async def something_answers(address: tuple[str, int]) -> bool:
    return True


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["AzureCliCredential"]),
        ({"AZURE_FEDERATED_TOKEN_FILE": "/f"}, ["WorkloadIdentityCredential", "AzureCliCredential"]),
        ({"IDENTITY_ENDPOINT": "http://i"}, ["ManagedIdentityCredential", "AzureCliCredential"]),
        ({"AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s"}, ["EnvironmentCredential", "AzureCliCredential"]),
        ({"AZURE_TOKEN_CREDENTIALS": "prod"}, []),
        ({"AZURE_TOKEN_CREDENTIALS": "dev", "IDENTITY_ENDPOINT": "http://i"}, ["AzureCliCredential"]),
        ({"AZURE_TOKEN_CREDENTIALS": "managedidentitycredential"}, ["ManagedIdentityCredential"]),
    ],
)
async def test_sources_of_tokens_are_chosen_by_what_is_announced(environ: dict[str, str], expected: list[str]) -> None:
    """Nothing is tried that cannot work, so that a laptop does not wait for a cluster's sources."""
    assert await credentials.choose(environ, probe=nothing_answers) == expected


async def test_an_azure_machine_is_recognized_by_a_short_probe() -> None:
    """No variable announces the identity of a plain virtual machine."""
    assert await credentials.choose({}, probe=something_answers) == ["ManagedIdentityCredential", "AzureCliCredential"]


async def test_unknown_source_of_tokens_is_a_configuration_error() -> None:
    """A typo must not silently mean "all of them"."""
    with pytest.raises(ConfigurationError, match="AZURE_TOKEN_CREDENTIALS"):
        await credentials.choose({"AZURE_TOKEN_CREDENTIALS": "vscode"}, probe=nothing_answers)


class CountingSource:
    """A source of tokens that says how often it was asked, and whether it was closed."""

    def __init__(self, lifetime_seconds: float) -> None:
        self.lifetime_seconds = lifetime_seconds
        self.asked = 0
        self.closed = False

    async def get_token(self, *scopes: str, **options: object) -> AccessToken:
        self.asked += 1
        return AccessToken(f"token {self.asked}", int(time.time() + self.lifetime_seconds))

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> CountingSource:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


async def test_token_is_shared_until_shortly_before_it_ends() -> None:
    """The Azure CLI starts a process for each token: all clients of a transport share one."""
    source = CountingSource(3600)
    entra = await credentials.EntraCredential.open({}, given=source)
    tokens = [await entra.get_token(credentials.SCOPE) for _ in range(3)]
    assert {token.token for token in tokens} == {"token 1"}
    source.lifetime_seconds = 60
    assert (await entra.get_token(credentials.SCOPE, claims="more")).token == "token 2"
    assert (await entra.get_token(credentials.SCOPE)).token == "token 3"
    await entra.close()
    assert source.closed


async def test_whose_token_it_is_is_read_from_it() -> None:
    """For who gives the rights; a token that says nothing, or is none, is no fault."""

    def token_of(claims: object) -> str:
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        return f"header.{payload}.signature"

    def identity(token: str) -> str:
        return credentials.EntraCredential(CountingSource(0), AccessToken(token, 0)).identity

    assert identity(token_of({"oid": "an-object", "upn": "ada@example.com"})) == "ada@example.com"
    assert identity(token_of({"oid": "an-object"})) == "an-object"
    for token in (token_of({}), token_of([1]), "token 1", "a.!.c", ""):
        assert identity(token) == ""


async def test_no_working_source_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: what was tried, and how to get in."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(credentials, "PROBE_SECONDS", 0.01)
    place = azure_place("azure://someaccount")
    with pytest.raises(ConfigurationError, match="az login") as caught:
        await AzureTransport.open(place, environ={"AZURE_TOKEN_CREDENTIALS": "dev"})
    assert "AzureCliCredential" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_entra_tokens_open_queues_and_blobs(tmp_path: Path) -> None:
    """With a token instead of a key, over HTTPS, on an Azurite that checks the token's claims."""
    https = self_signed(tmp_path)
    source = MintingSource()
    with running_azurite(https) as url:
        place = replace(azure_place(url), key=None)
        environ = {"SSL_CERT_FILE": str(https.certificate)}
        transport = await AzureTransport.open(place, environ=environ, credential=source, budget_seconds=5)
        queue, store = transport.queue("queue", app="test"), transport.store("container")
        await queue.create()
        await store.create()
        await queue.send("one")
        [delivery] = await queue.receive(1, lease_seconds=30)
        await store.put("x", b"1")
        await queue.delete(delivery.receipt)
        source.audience = "https://example.com"
        transport_refused = await AzureTransport.open(place, environ=environ, credential=source, budget_seconds=5)
        with pytest.raises(AccessDenied, match="Storage Queue Data Contributor"):
            await transport_refused.queue("queue", app="test").depth()
        await transport.close()
        await transport_refused.close()


class MintingSource(CountingSource):
    """Tokens whose signature nobody checks, as Azurite does not."""

    def __init__(self) -> None:
        super().__init__(3600)
        self.audience = "https://storage.azure.com"

    async def get_token(self, *scopes: str, **options: object) -> AccessToken:
        now = int(time.time())
        issuer = f"https://sts.windows.net/{uuid.uuid4()}/"
        claims = {"aud": self.audience, "iss": issuer, "iat": now - 60, "nbf": now - 60, "exp": now + 3600, "ver": "1.0"}
        parts = [json.dumps(part).encode() for part in ({"typ": "JWT", "alg": "RS256"}, claims)] + [b"signature"]
        return AccessToken(".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), now + 3600)


def self_signed(folder: Path) -> Certificate:
    """A certificate for 127.0.0.1, made for one test."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    files = Certificate(folder / "certificate.pem", folder / "key.pem")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return files
