"""Copied blob clients are what the SDK would have made: this watches the SDK's inside, on which copying rests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from azure.storage.blob.aio import BlobClient, ContainerClient

from ai4s.jobq.transports.azure import blob_clients as module
from ai4s.jobq.transports.azure.blob_clients import OPERATIONS, blob_clients

URL = "https://account.blob.core.windows.net"
NAMES = ["a", "results/abc/000/1.r2", "with space and % and ü?"]


@asynccontextmanager
async def container(credential: object = None, query: str = "") -> AsyncIterator[ContainerClient]:
    """A container of an account that nobody asks."""
    async with ContainerClient(URL + query, "jobq-proj", credential) as client:  # type: ignore[arg-type]
        yield client


def urls(client: BlobClient) -> list[str]:
    """Where this client's requests go."""
    return [client.url, *(getattr(client._client, group)._config.url for group in OPERATIONS)]


@pytest.mark.parametrize("query", ["", "?sv=2024-01-01&sig=abc%2F"])
async def test_a_copy_asks_where_the_sdks_own_client_would(query: str) -> None:
    """The same name and URLs, also under a SAS; a later copy does not move an earlier one."""
    async with container(query=query) as client:
        client_of = blob_clients(client)
        copies = [client_of(name) for name in NAMES]
        for name, copied in zip(NAMES, copies, strict=True):
            assert copied.blob_name == name
            assert urls(copied) == urls(client.get_blob_client(name))


async def test_a_copy_has_all_that_the_sdks_own_client_has() -> None:
    """Nothing but the name and the URL differs, as far as plain attributes tell."""
    async with container({"account_name": "account", "account_key": "a" * 88}) as client:
        copied, made = blob_clients(client)("a"), client.get_blob_client("a")
        assert copied.__dict__.keys() == made.__dict__.keys()
        plain = {name: value for name, value in made.__dict__.items() if isinstance(value, str | int | dict | None)}
        assert {name: copied.__dict__[name] for name in plain} == plain


async def test_the_sdk_makes_clients_itself_where_its_inside_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later SDK with other attributes costs time and breaks nothing."""
    monkeypatch.setattr(module, "OPERATIONS", ("blob", "an_operation_that_is_no_more"))
    async with container() as client:
        assert urls(blob_clients(client)("a")) == urls(client.get_blob_client("a"))


def test_a_copy_is_made_in_a_fraction_of_the_steps() -> None:
    """A copy and not a new client: it shares the template's pipeline."""

    async def scenario() -> None:
        async with container() as client:
            client_of = blob_clients(client)
            assert client_of("a")._pipeline is client_of("b")._pipeline

    asyncio.run(scenario())
