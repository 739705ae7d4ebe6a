"""`doctor`: each missing right is named, faults of network and clock are told apart, and nothing is left behind.

On Azurite behind a proxy that denies single operations, and with SAS tokens that lack a permission, which Azurite checks itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas
from click.testing import CliRunner, Result
from fault_proxy import Fault, azure_place, faulty_account, fresh_name, spoil_all
from storage_spy import blobs

from ai4s.jobq import App
from ai4s.jobq.cli import jobq
from ai4s.jobq.client import Client
from ai4s.jobq.config import Settings, read_settings
from ai4s.jobq.doctor import Finding, Verdict, Wanted, examine, reach, setting
from ai4s.jobq.errors import AccessDenied
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.transports.azure import AzureTransport
from ai4s.jobq.transports.local.queue import LocalQueue
from ai4s.jobq.transports.place import AZURITE_ACCOUNT, AZURITE_KEY, LocalPlace

OK, FAILED, WARNING = Verdict.OK, Verdict.FAILED, Verdict.WARNING


async def examined(url: str, name: str, **wanted: Any) -> dict[str, Finding]:
    """What is found, by check; the app's name and the place are given."""
    client = Client(name, url, (), create=False)
    return {finding.check: finding async for finding in examine(client, Settings(), Wanted(**wanted))}


def which(found: dict[str, Finding], verdict: Verdict) -> set[str]:
    """The checks that ended so."""
    return {name for name, finding in found.items() if finding.verdict is verdict}


async def left_behind(url: str, name: str) -> tuple[int, list[str]]:
    """Messages in the app's queue, and blobs in its container."""
    transport = await AzureTransport.open(azure_place(url))
    try:
        ledger = Ledger(transport, name, Client(name, url, ()).keyring, create=False)
        names = [info.name async for info in (await ledger.store()).list("")]
        return await (await ledger.queue("default")).depth(), names
    finally:
        await transport.close()


async def test_a_sound_account_passes_and_nothing_stays(azurite_url: str) -> None:
    """With --create even an app that is new; every check says ok but that about the key, which is not set."""
    name = fresh_name()
    found = await examined(azurite_url, name, create=True)
    assert which(found, FAILED) == set()
    assert which(found, WARNING) == {"signing key"}
    assert found["credential"].said == "an account key"
    assert {"clock", "reach blobs", "reach queues", "queue: receive", "blobs: put on conditions", "queue default"} <= set(found)
    assert await left_behind(azurite_url, name) == (0, [])


async def test_what_is_not_there_yet_is_no_fault(azurite_url: str) -> None:
    """Whoever pushes first makes it; nothing is made to find that out."""
    name = fresh_name()
    found = await examined(azurite_url, name)
    assert which(found, FAILED) == set()
    assert {"queue: look", "container: look"} <= which(found, WARNING)
    assert "--create" in found["queue: look"].advice
    assert which(await examined(azurite_url, name), WARNING) == which(found, WARNING)


DENIALS = {
    "send": ("queue: send", "Storage Queue Data Message Sender"),
    "peek": ("queue: peek", "Storage Queue Data Reader"),
    "receive": ("queue: receive", "Storage Queue Data Message Processor"),
    "update": ("queue: update", "Storage Queue Data Contributor"),
    "delete message": ("queue: delete", "Storage Queue Data Message Processor"),
    "put": ("blobs: put", "Storage Blob Data Contributor"),
    "get": ("blobs: get", "Storage Blob Data Reader"),
    "list": ("blobs: list", "Storage Blob Data Reader"),
    "delete": ("blobs: delete", "Storage Blob Data Contributor"),
}


async def test_each_missing_right_is_named_with_the_role_that_gives_it(azurite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operation after the other is denied; the others are still tried, and what was put is taken away again."""
    name = fresh_name()
    await examined(azurite_url, name, create=True)
    async with faulty_account(azurite_url) as account:
        # The proxy denies what a key would allow: as if the requests were an identity's.
        monkeypatch.setattr(AzureTransport, "credential", "Entra ID: ManagedIdentityCredential")
        for kind, (check, role) in DENIALS.items():
            account.plan = spoil_all(kind, Fault.DENIED)
            found = await examined(account.url, name)
            missing = which(found, FAILED)
            assert missing == ({check, "blobs: put on conditions"} if kind == "put" else {check}), kind
            assert role in found[check].advice
            assert "a worker" in found[check].said.partition("needed by")[2]
    # Where the right to delete was the one that lacked, the probe could not be taken away: it has expired, and is delayed.
    messages, names = await left_behind(azurite_url, name)
    assert (messages, len(names)) == (1, 1)
    assert names[0].startswith("doctor/")


async def test_rights_that_a_role_does_not_need_may_lack(azurite_url: str) -> None:
    """A producer is not told to have the rights of a worker, nor a looker those of either."""
    name = fresh_name()
    await examined(azurite_url, name, create=True)
    async with faulty_account(azurite_url) as account:
        denied = {"receive", "update", "delete message", "delete"}
        account.plan = lambda request: Fault.DENIED if request.kind in denied else Fault.NONE
        assert which(await examined(account.url, name, roles=("producer",)), FAILED) == set()
        denied |= {"send", "put"}
        assert which(await examined(account.url, name, roles=("looker",)), FAILED) == set()
        found = await examined(account.url, name)
    assert "access by key is disabled" in found["queue: send"].advice
    lacking = {"queue: send", "queue: receive", "queue: update", "queue: delete"}
    assert which(found, FAILED) == lacking | {"blobs: put", "blobs: put on conditions", "blobs: delete"}


@pytest.mark.parametrize(
    ("permissions", "missing"),
    [
        ("rwdlacu", {"queue: receive", "queue: delete"}),
        ("rwdlacp", {"queue: update"}),
        ("rwdlcup", {"queue: send"}),
        ("rwlacup", {"blobs: delete"}),
        ("rwdacup", {"blobs: list"}),
    ],
)
async def test_a_sas_that_lacks_a_permission_is_told_which(azurite_url: str, permissions: str, missing: set[str]) -> None:
    """Azurite checks the permissions of an account SAS as the service does."""
    name = fresh_name()
    await examined(azurite_url, name, create=True)
    found = await examined(with_sas(azurite_url, permissions), name)
    assert which(found, FAILED) == missing
    (letter,) = set("rwdlacup") - set(permissions)
    assert all(f"permission {letter!r}" in found[check].advice for check in missing)
    assert found["credential"].said == "a SAS"
    assert "sig=" not in json.dumps([finding.said + finding.advice for finding in found.values()])


def with_sas(url: str, permissions: str) -> str:
    """A connection string of Azurite with such a SAS."""
    place = azure_place(url)
    sas = generate_account_sas(
        AZURITE_ACCOUNT,
        AZURITE_KEY,
        ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions.from_string(permissions),
        datetime.now(UTC) + timedelta(hours=1),
        services="bq",  # type: ignore[arg-type]
    )
    return f"BlobEndpoint={place.blob_url};QueueEndpoint={place.queue_url};SharedAccessSignature={sas}"


async def test_a_credential_that_is_refused_ends_the_examination(azurite_url: str) -> None:
    """It is no missing role; the message of the transport says what it is."""
    place = azure_place(azurite_url)
    wrong = f"AccountName={place.account};AccountKey=d3Jvbmc=;BlobEndpoint={place.blob_url};QueueEndpoint={place.queue_url}"
    found = await examined(wrong, fresh_name())
    assert which(found, FAILED) == {"storage"}
    assert "key is wrong" in found["storage"].said
    assert "d3Jvbmc" not in str(found)


async def test_a_name_that_is_not_known_and_a_port_where_nobody_listens_are_told_apart() -> None:
    """And no request is tried after that, which would take its half a minute to fail."""
    found = await examined("azurite://no-such-host.invalid:10000", "myproj")
    assert "name is not known" in found["reach blobs"].said
    assert "credential" not in found
    found = await examined("azurite://127.0.0.1:1", "myproj")
    assert which(found, FAILED) == {"reach blobs", "reach queues"}
    assert "no connection" in found["reach blobs"].said


async def test_a_proxy_that_the_environment_names_is_the_one_that_is_reached() -> None:
    """If it is down, it is the proxy's address that is told."""
    place = azure_place("azure://someaccount")
    found = [finding async for finding in reach.account(place, {"https_proxy": "http://127.0.0.1:1"})]
    assert {finding.verdict for finding in found} == {FAILED}
    assert "by the proxy 127.0.0.1:1" in found[0].said
    assert "no_proxy" in found[0].advice


async def test_somebody_who_speaks_no_tls_is_found_out() -> None:
    """A proxy that answers in the service's place, say."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    place = replace(azure_place("azure://someaccount"), blob_url=f"https://127.0.0.1:{port}", queue_url=f"https://127.0.0.1:{port}")
    async with server:
        found = [finding async for finding in reach.account(place, {})]
    assert "no TLS" in found[0].said
    assert "SSL_CERT_FILE" in found[0].advice


async def test_a_clock_that_is_off_is_a_warning(azurite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For logs; and it is a fault where a key signs, from a quarter of an hour on."""
    real = AzureTransport.server_time
    behind = 90.0

    async def off(self: AzureTransport) -> float:
        return await real(self) + behind

    monkeypatch.setattr(AzureTransport, "server_time", off)
    name = fresh_name()
    found = await examined(azurite_url, name)
    assert found["clock"].verdict is WARNING
    assert "behind the storage's" in found["clock"].said
    behind = 1000.0
    assert (await examined(azurite_url, name))["clock"].verdict is FAILED


# on a local place


@pytest.fixture
def app(jobq_app: App) -> App:
    """An app on an empty local store."""
    return jobq_app


def doctor(app: App, *words: str) -> Result:
    """Run the verb on the app's place and name."""
    return CliRunner().invoke(jobq, [f"{app.client.place.label}/{app.name}", "doctor", *words])


def test_a_live_app_is_not_disturbed(app: App) -> None:
    """Its messages stay, visible, whatever is tried beside them; the probe is gone, and no outcome was written."""
    call = app.submit(len, "abc")
    done = doctor(app)
    assert done.exit_code == 0, done.output
    assert "All is well." in done.stderr
    assert [message.id for message in app.queues.peek(32)] == [call.id]
    assert app.queues.depth() == 1
    assert blobs(app, "doctor/") + blobs(app, "results/") == []


def test_a_probe_that_stayed_runs_nothing(app: App, monkeypatch: pytest.MonkeyPatch, jobq_worker: Callable[..., Any]) -> None:
    """Whoever is killed in between leaves a call that has expired: a worker ends it as that."""
    monkeypatch.setattr("ai4s.jobq.doctor.rights.PROBE_DELAY_SECONDS", 0)

    async def lost(self: LocalQueue, receipt: object) -> None:
        raise AccessDenied("not you")

    app.submit(len, "abc").cancel()
    with monkeypatch.context() as patch:
        patch.setattr(LocalQueue, "delete", lost)
        done = doctor(app)
    assert done.exit_code == 1
    assert "queue: delete" in done.stdout
    (probe,) = app.queues.peek(32)
    with app.worker(1):
        assert str(app.handle(probe.id).exception(timeout=60)).startswith("Call")
    assert app.handle(probe.id).status() == "expired"


def test_messages_that_cannot_be_read_here_are_told(app: App) -> None:
    """With another key, say: this process's workers would make dead letters of them."""

    async def send(ledger: Ledger) -> None:
        await (await ledger.queue("default")).send("garbage")

    app.client.run(send)
    done = doctor(app)
    assert done.exit_code == 0
    assert "1 of 1 cannot be read here: Malformed" in done.stdout


def test_findings_are_json_on_request_and_failures_are_exit_code_1(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object a line."""
    app.submit(len, "abc")

    async def denied(self: LocalQueue, body: str, *, delay_seconds: float = 0) -> None:
        raise AccessDenied("not you")

    monkeypatch.setattr(LocalQueue, "send", denied)
    done = doctor(app, "--json")
    assert done.exit_code == 1
    found = {line["check"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert found["queue: send"]["verdict"] == "failed"
    assert found["queue: update"]["verdict"] == "ok"  # tried without a message of its own
    assert doctor(app, "--role", "looker").exit_code == 0


def test_a_place_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Only said; --create makes it."""
    target = f"local://{tmp_path / 'place'}/myproj"
    done = CliRunner().invoke(jobq, [target, "doctor"])
    assert done.exit_code == 0
    assert "There is no place" in done.stdout
    assert not (tmp_path / "place").exists()
    assert CliRunner().invoke(jobq, [target, "doctor", "--create"]).exit_code == 0
    assert (tmp_path / "place").exists()


def test_the_disk_under_a_place_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system is none for SQLite; others' messages would be code."""
    place = LocalPlace(tmp_path / "place")
    monkeypatch.setattr(reach, "MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    tmp_path.chmod(0o777)
    found = {finding.check: finding for finding in reach.folder(place)}
    assert found["disk"].verdict is FAILED
    assert "nfs4" in found["disk"].said
    assert found["folder"].verdict is WARNING
    (tmp_path / "mounts").write_text(f"/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 {tmp_path} xfs rw 0 0\n")
    tmp_path.chmod(0o700)
    assert {finding.verdict for finding in reach.folder(place)} == {OK}
    monkeypatch.setattr(reach, "LEAST_FREE_BYTES", 2**80)
    assert WARNING in {finding.verdict for finding in reach.folder(place)}


def test_old_packages_with_known_flaws_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And to which version to go."""
    assert {finding.verdict for finding in setting.versions(None)} == {OK}
    monkeypatch.setattr(setting, "version", lambda name: "1.37.2" if name == "azure-core" else "9.9")
    found = {finding.check: finding for finding in setting.versions(None)}
    assert found["packages"].verdict is WARNING
    assert "azure-core 1.37.2 to 1.38" in found["packages"].advice


@pytest.mark.parametrize(
    ("url", "environ", "named"),
    [
        (None, {"JOBQ_URL": "local:///tmp/x"}, "JOBQ_URL"),
        ("local:///tmp/x", {"JOBQ_URL": "azure://someaccount"}, "TARGET"),
        ("AccountName=acc;AccountKey=a2V5", {"JOBQ_URL": "AccountName=acc;AccountKey=a2V5"}, "the right that JOBQ_URL holds"),
        (
            "AccountName=acc;AccountKey=a2V5",
            {"JOBQ_CONNECTION_STRING": "AccountName=acc;AccountKey=a2V5"},
            "JOBQ_CONNECTION_STRING",
        ),
    ],
)
def test_who_named_the_place_is_told(url: str | None, environ: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that was forgotten is the commonest reason to be at the wrong place; a secret never shows."""
    monkeypatch.delenv("JOBQ_URL", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    said = setting.place(Client("myproj", url, ()), read_settings()).said
    assert said.endswith(named) or named in said
    assert "a2V5" not in said


def test_a_signing_key_is_said_to_be_there_and_never_shown() -> None:
    """Nor is one that is too short."""
    assert setting.signing_key(Client("myproj", "local:///tmp/x", ("k" * 16,))).verdict is OK
    assert "kkkk" not in str(setting.signing_key(Client("myproj", "azure://someaccount", ("k" * 16,))))
