"""What a place's URL means, what is none, and that no secret of it shows anywhere."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.errors import ConfigurationError
from ai4s.jobq.transports.place import AZURITE_KEY, AzurePlace, LocalPlace, Place, parse_place

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow]
)
SECRET = "s3cr3t-hush"
SAS = f"sv=2024-11-04&ss=bq&sig={SECRET}"


def shown(place: Place) -> str:
    """Everything of a place that people and logs get to see."""
    return f"{place!r} {place!s} {place.label}"


def error_of(url: str) -> str:
    """What is shown of the error: its text and those of its causes."""
    with pytest.raises(ConfigurationError) as caught:
        parse_place(url)
    return "".join(traceback.format_exception_only(caught.value)) + str(caught.value.__cause__) + str(caught.value.__context__)


# Forms.


@pytest.mark.parametrize("url", ["local:///tmp/jobs", "  local:///tmp/jobs\n"])
def test_a_folder(url: str) -> None:
    """local:// and an absolute path; spaces around a URL are not part of it."""
    place = parse_place(url)
    assert place == LocalPlace(Path("/tmp/jobs"))
    assert place.label == "local:///tmp/jobs"


@pytest.mark.parametrize("url", ["azure://acct42", "azure://acct42/"])
def test_an_account_with_entra_id(url: str) -> None:
    """An account's name alone: Entra ID gives the right to use it."""
    assert parse_place(url) == AzurePlace(
        label="azure://acct42",
        blob_url="https://acct42.blob.core.windows.net",
        queue_url="https://acct42.queue.core.windows.net",
        account="acct42",
    )


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("azurite://", "127.0.0.1", 10000),
        ("azurite://127.0.0.1:10000", "127.0.0.1", 10000),
        ("azurite://azurite:7", "azurite", 7),
        ("azurite://azurite", "azurite", 10000),
        ("azurite://:5/", "127.0.0.1", 5),
        ("UseDevelopmentStorage=true", "127.0.0.1", 10000),
        ("usedevelopmentstorage=TRUE;", "127.0.0.1", 10000),
    ],
)
def test_the_emulator(url: str, host: str, port: int) -> None:
    """Azurite's queue lies one port above its blobs, as in its own defaults."""
    place = parse_place(url)
    assert isinstance(place, AzurePlace)
    assert place.blob_url == f"http://{host}:{port}/devstoreaccount1"
    assert place.queue_url == f"http://{host}:{port + 1}/devstoreaccount1"
    assert (place.account, place.key) == ("devstoreaccount1", AZURITE_KEY)
    assert parse_place(place.label) == place


def test_a_connection_string_with_a_key() -> None:
    """The portal's connection string, with the cloud that it names."""
    place = parse_place(
        f"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={SECRET}==;EndpointSuffix=core.chinacloudapi.cn"
    )
    assert isinstance(place, AzurePlace)
    assert place.blob_url == "https://acct.blob.core.chinacloudapi.cn"
    assert place.queue_url == "https://acct.queue.core.chinacloudapi.cn"
    assert (place.account, place.key, place.sas) == ("acct", f"{SECRET}==", None)


def test_a_connection_string_with_a_sas_and_endpoints() -> None:
    """The other form of the portal: endpoints and a shared access signature."""
    place = parse_place(
        "BlobEndpoint=https://acct.blob.core.windows.net/;QueueEndpoint=https://acct.queue.core.windows.net/;"
        f"SharedAccessSignature={SAS}"
    )
    assert isinstance(place, AzurePlace)
    assert place.blob_url == "https://acct.blob.core.windows.net"
    assert place.queue_url == "https://acct.queue.core.windows.net"
    assert (place.account, place.key, place.sas, place.label) == ("acct", None, SAS, "azure://acct")


def test_a_connection_string_of_an_emulator_elsewhere() -> None:
    """Endpoints with the account in their path are an emulator's."""
    place = parse_place(
        "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        f"AccountKey={AZURITE_KEY};"
        "BlobEndpoint=http://azurite:10000/devstoreaccount1;QueueEndpoint=http://azurite:10001/devstoreaccount1;"
    )
    assert isinstance(place, AzurePlace)
    assert (place.label, place.account) == ("azurite://azurite:10000", "devstoreaccount1")
    assert place.queue_url == "http://azurite:10001/devstoreaccount1"


@pytest.mark.parametrize("service", ["blob", "queue"])
def test_a_sas_url(service: str) -> None:
    """Either service's URL with an account SAS stands for both services."""
    place = parse_place(f"https://acct.{service}.core.windows.net/?{SAS}")
    assert isinstance(place, AzurePlace)
    assert place.blob_url == "https://acct.blob.core.windows.net"
    assert place.queue_url == "https://acct.queue.core.windows.net"
    assert (place.account, place.key, place.sas) == ("acct", None, SAS)


# What is no place.

NONE = {
    "nothing": "",
    "a bare word": "acct",
    "a relative folder": "local://jobs",
    "a folder without its scheme": "/tmp/jobs",
    "no account": "azure://",
    "an account in capitals": "azure://Acct",
    "an account that is too short": "azure://ab",
    "an account that is too long": "azure://" + "a" * 25,
    "an account in another script": "azure://\u0430ccount",
    "an account and a path": "azure://acct/myproj",
    "an account and a port": "azure://acct:443",
    "a URL without a SAS": "https://acct.blob.core.windows.net/",
    "a URL of another service": "https://acct.file.core.windows.net/?sig=x",
    "a URL of another site": "https://example.org/?sig=x",
    "a URL that cannot be read": "https://[acct/?sig=x",
    "an emulator's port that is a word": "azurite://host:blob",
    "an emulator's port in another script": "azurite://host:²",
    "an emulator's port out of bounds": "azurite://host:99999",
    "Service Bus": "sb://acct.servicebus.windows.net",
    "a connection string without a key": "AccountName=acct;EndpointSuffix=core.windows.net",
    "a connection string without an account": "AccountKey=x;BlobEndpoint=https://acct.blob.core.windows.net",
    "another program's URL": "redis://localhost:6379/0",
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_place_is_refused_with_help(name: str) -> None:
    """Every error says what a place looks like, or what this one lacks."""
    text = error_of(NONE[name])
    assert any(hint in text for hint in ("azure://ACCOUNT", "local:///", "azurite://", "AccountKey"))


# Secrets.

WITH_SECRET = {
    "a key": f"AccountName=acct;AccountKey={SECRET}",
    "a SAS": f"AccountName=acct;SharedAccessSignature={SAS}",
    "a SAS with endpoints": (
        f"BlobEndpoint=https://acct.blob.core.windows.net;QueueEndpoint=https://acct.queue.core.windows.net;SharedAccessSignature={SAS}"
    ),
    "endpoints with a SAS in them": (
        f"BlobEndpoint=https://acct.blob.core.windows.net/?{SAS};QueueEndpoint=https://acct.queue.core.windows.net/?{SAS};"
        f"SharedAccessSignature={SAS}"
    ),
    "endpoints with a password in them": (
        f"BlobEndpoint=http://u:{SECRET}@host:1/devstoreaccount1;QueueEndpoint=http://u:{SECRET}@host:2/devstoreaccount1;AccountKey=x"
    ),
    "a SAS URL": f"https://acct.blob.core.windows.net/?{SAS}",
    "a SAS URL with a container": f"https://acct.blob.core.windows.net/c?{SAS}",
}


@pytest.mark.parametrize("name", WITH_SECRET)
def test_no_secret_shows_in_a_place(name: str) -> None:
    """Neither repr nor label of a place holds a key, a signature or a password; where the form is refused, nor does the error."""
    try:
        text = shown(parse_place(WITH_SECRET[name]))
    except ConfigurationError:
        text = error_of(WITH_SECRET[name])
    assert SECRET not in text


MISTAKES = [
    f"azure://acct?{SAS}",
    f"azure://acct/?{SAS}",
    f"azure://AccountName=acct;AccountKey={SECRET}",
    f"azure://acct:{SECRET}@core.windows.net",
    f"azurite://AccountKey={SECRET}",
    f"azurite://host:10000?{SAS}",
    f"local://AccountKey={SECRET}",
    f"sb://acct.servicebus.windows.net/;SharedAccessKey={SECRET}",
    f"https://acct.blob.core.windows.net:{SECRET}/?{SAS}",
    f"https://u:{SECRET}@acct.file.core.windows.net/?{SAS}",
    f"https://[{SECRET}/?{SAS}",
    f"https://acct.blob.core.windows.net/?{SAS}".replace("sig", "signature"),
    f"wasbs://c@acct.blob.core.windows.net/?{SAS}",
    f"AccountName=acct AccountKey={SECRET};SharedAccessSignature={SAS}",
    f"AccountName={SECRET};AccountKey={SECRET}",
    f"AccountKey={SECRET};BlobEndpoint=nonsense",
    SECRET,
    f"{SECRET}==",
    f"sig={SECRET}",
    f'"AccountName=acct;AccountKey={SECRET}"',
]


@pytest.mark.parametrize("url", MISTAKES)
def test_no_error_repeats_a_secret(url: str) -> None:
    """Whatever is wrong with a URL, its error does not hold what may be a secret, nor the beginning of one."""
    try:
        text = shown(parse_place(url))
    except ConfigurationError:
        text = error_of(url)
    assert SECRET not in text
    assert SECRET[:7] not in text


@SAME_EACH_TIME
@given(
    st.sampled_from(["", "local://", "azure://", "azurite://", "https://", "http://", "sb://", "AccountName=", "BlobEndpoint="]),
    st.text("abA0:/[]@?#&=;.%² \n\u2100", max_size=30),
)
def test_any_text_is_a_place_or_a_configuration_error(scheme: str, rest: str) -> None:
    """No text makes anything else come out."""
    try:
        place = parse_place(scheme + rest)
    except ConfigurationError:
        return
    assert isinstance(place, (LocalPlace, AzurePlace))


@pytest.mark.parametrize("url", ["local:///tmp/jobs", "azure://acct", "azurite://host:7"])
def test_a_label_leads_back_to_its_place(url: str) -> None:
    """A label is a URL again, so that what was pickled with it finds the place."""
    place = parse_place(url)
    assert parse_place(place.label) == place
