"""Azure's Scheduled Events reach a worker if they name its machine, are taken back with it, and never disturb it otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from metadata_server import MACHINE, MetadataServer, metadata_server

from ai4s.jobq.app import App
from ai4s.jobq.codec import codec_named
from ai4s.jobq.config import read_settings
from ai4s.jobq.errors import ConfigurationError, Retry
from ai4s.jobq.message import Call
from ai4s.jobq.worker import preemption
from ai4s.jobq.worker.execution import Desk, Execution, Functions
from ai4s.jobq.worker.jobs import Answer, Job, Kind, Notice
from ai4s.jobq.worker.preemption import (
    AZURE_ASSET_TAG,
    AZURE_URL,
    LEAD_SECONDS,
    SHORTEST_SECONDS,
    follow_notices,
    metadata_url,
    moment_of,
    read_events,
)
from ai4s.jobq.worker.shutdown import Shutdown

SOON = 30.0


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    """A metadata service, which is asked more often than in life."""
    monkeypatch.setattr(preemption, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(preemption, "FAULT_PAUSE_SECONDS", 0.01)
    with metadata_server() as server:
        yield server


class Told(Shutdown):
    """A shutdown that only notes what it is told."""

    def __init__(self) -> None:
        super().__init__(25)
        self.notices: list[tuple[str, float]] = []
        self.withdrawn: list[str] = []

    def notice(self, reason: str, seconds: float, event: str = "") -> None:
        self.notices.append((reason, seconds))

    def withdraw(self, reason: str) -> None:
        self.withdrawn.append(reason)

    async def until(self, condition: Callable[[], object]) -> None:
        give_up_at = time.monotonic() + SOON
        while not condition():
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.005)


@asynccontextmanager
async def following(url: str) -> AsyncIterator[Told]:
    """Notices are followed for the length of the block; a defect there fails the test."""
    told = Told()
    task = asyncio.create_task(follow_notices(url, told))
    try:
        yield told
        assert not task.done(), task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def answered(azure: MetadataServer, times: int = 3) -> None:
    """Wait for some more answers."""
    await asyncio.to_thread(azure.until_answered, times)


# What counts.


@pytest.mark.parametrize("kind", ["Preempt", "Terminate", "Reboot", "Redeploy"])
@pytest.mark.parametrize("iso", [False, True], ids=["rfc1123", "iso8601"])
async def test_an_event_of_this_machine_is_a_notice(azure: MetadataServer, kind: str, iso: bool) -> None:
    """Events that end processes are told with the time that is left, in either form of a date."""
    azure.announce(kind, seconds=40, iso=iso)
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
    reason, seconds = told.notices[0]
    assert kind in reason
    assert 20 < seconds <= 41
    assert told.withdrawn == []


@pytest.mark.parametrize("named", [MACHINE.upper(), MACHINE.lower()])
async def test_names_are_compared_without_regard_to_case(azure: MetadataServer, named: str) -> None:
    """Among several machines, this one is found however it is written."""
    azure.announce("Preempt", machines=("another", named))
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
    assert all("Preempt" in reason for reason, _ in told.notices)
    assert told.withdrawn == []


@pytest.mark.parametrize("name", [None, "", "<html>\nlogin", "x" * 1000], ids=["404", "empty", "lines", "long"])
async def test_a_machine_that_does_not_know_its_name_goes_by_its_hosts(azure: MetadataServer, name: str | None) -> None:
    """Where the service does not tell the name, or something that is none, it is the host's."""
    azure.name = name
    azure.announce(machines=(socket.gethostname().upper(),))
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
    assert told.withdrawn == []


async def test_the_name_is_asked_for_only_when_there_is_an_event(azure: MetadataServer) -> None:
    """As long as nothing is announced, one request a second is all; and once known, a name is not asked for again."""
    async with following(azure.url):
        await answered(azure)
        assert set(azure.paths) == {"/metadata/scheduledevents"}
        azure.announce(machines=("another",))
        await answered(azure, 5)
        assert azure.paths.count("/metadata/instance/compute/name") == 1


@pytest.mark.parametrize("seconds", [None, -60.0, 1.0])
async def test_an_event_that_is_due_leaves_a_few_seconds(azure: MetadataServer, seconds: float | None) -> None:
    """An empty `NotBefore` is now, and so is one that has passed: the time it takes to give back is tried for all the same."""
    azure.announce(seconds=seconds)
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
    assert told.notices[0][1] == SHORTEST_SECONDS


async def test_an_event_is_a_notice_only_when_it_is_near(azure: MetadataServer) -> None:
    """A reboot in a quarter of an hour is no reason to stop working yet."""
    event = azure.announce("Reboot", seconds=900)
    async with following(azure.url) as told:
        await answered(azure)
        assert told.notices == []
        azure.withdraw(event)
        azure.announce("Reboot", seconds=LEAD_SECONDS - 5)
        await told.until(lambda: told.notices)


@pytest.mark.parametrize("offset", [-86_400.0, 86_400.0])
async def test_the_answers_clock_counts(azure: MetadataServer, offset: float) -> None:
    """A machine whose clock is a day off has the same half minute."""
    azure.clock_offset_seconds = offset
    azure.announce(seconds=60)
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
    assert 40 < told.notices[0][1] <= 61


async def test_an_answer_without_a_date_is_taken_by_this_machines_clock(azure: MetadataServer) -> None:
    """There is no other."""
    azure.dated = False
    azure.announce(seconds=60)
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
    assert 40 < told.notices[0][1] <= 61


async def test_the_nearest_event_counts(azure: MetadataServer) -> None:
    """Of two events the one that comes first."""
    azure.announce("Redeploy", seconds=100)
    azure.announce("Preempt", seconds=30)
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
    assert "Preempt" in told.notices[0][0]


async def test_an_event_that_vanishes_is_withdrawn_once(azure: MetadataServer) -> None:
    """And one that comes then is a notice again."""
    event = azure.announce()
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
        azure.withdraw(event)
        await answered(azure)
        assert len(told.withdrawn) == 1
        told.notices.clear()
        azure.announce()
        await told.until(lambda: told.notices)
        assert len(told.withdrawn) == 1


async def test_one_event_of_two_that_vanishes_withdraws_nothing(azure: MetadataServer) -> None:
    """The machine goes as long as anything says so."""
    first = azure.announce(seconds=50)
    azure.announce(seconds=60)
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
        azure.withdraw(first)
        await answered(azure)
        assert told.withdrawn == []


async def test_a_machine_that_came_back_does_not_go_again(azure: MetadataServer) -> None:
    """The event by which it went is still there, started; a worker that begins then works. A new one counts."""
    azure.announce("Reboot", seconds=None, started=True)
    async with following(azure.url) as told:
        await answered(azure)
        assert told.notices == []
        azure.announce("Preempt", seconds=None, started=True)
        await told.until(lambda: told.notices)


async def test_an_event_that_was_outlived_is_none_any_more(azure: MetadataServer) -> None:
    """Though it is announced as ever; another one counts."""
    event = azure.announce()
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
        told.outlived.add(event)
        await told.until(lambda: told.withdrawn)
        told.notices.clear()
        await answered(azure)
        assert told.notices == []
        azure.announce()
        await told.until(lambda: told.notices)


# What does not.


async def test_other_events_and_other_machines_are_none_of_its_business(azure: MetadataServer) -> None:
    """A freeze is survived; neighbours may go."""
    azure.announce("Freeze")
    azure.announce(machines=("another", MACHINE + "1"))
    azure.announce(machines=())
    async with following(azure.url) as told:
        await answered(azure)
    assert (told.notices, told.withdrawn) == ([], [])


GARBAGE = {
    "empty": b"",
    "html": b"<html>Please log in</html>",
    "no-utf8": b"\xff\xfe\x00",
    "list": b"[]",
    "null": b"null",
    "no-events": b'{"DocumentIncarnation": 1}',
    "events-are-none": b'{"Events": null}',
    "events-are-a-map": b'{"Events": {"EventType": "Preempt"}}',
    "nested": b"[" * 100_000,
    "half": b'{"Events": [{"EventId": "A", "EventType": "Pree',
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_said_once_and_withdraws_nothing(
    azure: MetadataServer, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that makes no sense neither begins nor ends anything; what follows it is read again."""
    azure.announce()
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
        with caplog.at_level(logging.WARNING, "ai4s.jobq"):
            azure.spoilt = body
            await answered(azure, 5)
        assert told.withdrawn == []
        assert len(caplog.records) == 1
        azure.spoilt = None
        await answered(azure)
        told.notices.clear()
        await told.until(lambda: told.notices)


@pytest.mark.parametrize(
    "entry",
    [
        "1", "null", '"Preempt"', "[]", "{}", '{"EventType": "Preempt"}',
        '{"EventType": ["Preempt"], "Resources": ["this-machine_7"]}',
        '{"EventType": "Preempt", "Resources": "this-machine_7"}', '{"EventType": "Preempt", "Resources": [null, 7, {}]}',
    ],
)  # fmt: skip
def test_an_event_that_makes_no_sense_names_nobody(entry: str) -> None:
    """What is not an event of a kind that ends processes, with a list of machines, cannot be this machine's."""
    assert all("this-machine_7" not in event.resources for event in read_events(f'{{"Events": [{entry}]}}'))


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 302])
async def test_a_refusal_is_said_once_and_disturbs_nothing(
    azure: MetadataServer, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the status; and it is asked again."""
    azure.status = status
    azure.announce()
    with caplog.at_level(logging.WARNING, "ai4s.jobq"):
        async with following(azure.url) as told:
            await answered(azure, 5)
            assert told.notices == []
            assert len(caplog.records) == 1
            azure.status = 200
            await told.until(lambda: told.notices)


async def test_a_service_that_is_not_there_is_said_once(azure: MetadataServer, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing listens there, or what listens speaks no HTTP."""
    asked: list[bytes] = []

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"SSH-2.0-nonsense\x00\r\n\r\n" * 20)
        writer.close()

    babbler = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = babbler.sockets[0].getsockname()[1]
    with caplog.at_level(logging.WARNING, "ai4s.jobq"):
        async with following(f"http://127.0.0.1:{port}") as told:
            await told.until(lambda: len(asked) > 3)
            babbler.close()
            await babbler.wait_closed()
            await asyncio.sleep(0.1)
            assert len(caplog.records) == 1


async def test_a_service_that_hangs_is_asked_again(
    azure: MetadataServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer withdraws nothing; a notice that comes afterwards counts."""
    monkeypatch.setattr(preemption, "ANSWER_SECONDS", 0.2)
    event = azure.announce()
    async with following(azure.url) as told:
        await told.until(lambda: told.notices)
        azure.hang()
        asked = len(azure.paths)
        with caplog.at_level(logging.WARNING, "ai4s.jobq"):
            await told.until(lambda: len(azure.paths) > asked + 3)
        assert len(caplog.records) == 1
        assert told.withdrawn == []
        azure.withdraw(event)
        azure.go_on()
        await told.until(lambda: told.withdrawn)


async def test_the_first_answer_may_take_minutes(azure: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure turns the service on when it is first asked: the first answer has another bound than the others."""
    monkeypatch.setattr(preemption, "ANSWER_SECONDS", 0.05)
    azure.hang()
    azure.announce()
    async with following(azure.url) as told:
        await told.until(lambda: azure.paths)
        await asyncio.sleep(0.5)
        assert len(azure.paths) == 1, "it waits for the first one"
        monkeypatch.setattr(preemption, "ANSWER_SECONDS", 10.0)
        azure.go_on()
        await told.until(lambda: told.notices)


# Whom to ask.


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Mon, 19 Sep 2016 18:29:47 GMT", 1474309787.0),
        ("2016-09-19T18:29:47Z", 1474309787.0),
        ("2016-09-19T18:29:47", 1474309787.0),
        ("2016-09-19T20:29:47+02:00", 1474309787.0),
        ("", None),
        (None, None),
        (7, None),
        ("soon", None),
        ("Mon, 99 Sep 99999 18:29:47 GMT", None),
    ],
)
def test_dates_of_both_forms_are_read(text: object, moment: float | None) -> None:
    """RFC 1123 and ISO 8601, in UTC unless they say otherwise; anything else is none."""
    assert moment_of(text) == moment


@pytest.mark.parametrize(("tag", "url"), [(AZURE_ASSET_TAG + "\n", AZURE_URL), ("No Asset Tag", None), ("", None), (None, None)])
def test_only_a_machine_of_azures_asks_by_itself(tmp_path: Path, tag: str | None, url: str | None) -> None:
    """Elsewhere the link-local address may belong to somebody else."""
    path = tmp_path / "chassis_asset_tag"
    if tag is not None:
        path.write_text(tag)
    assert metadata_url(None, path) == url


def test_the_address_can_be_set(tmp_path: Path) -> None:
    """`JOBQ_METADATA_URL` names another service, or none at all; what is neither is an error that says so."""
    path = tmp_path / "chassis_asset_tag"
    path.write_text(AZURE_ASSET_TAG)
    assert metadata_url(read_settings({"JOBQ_METADATA_URL": "http://127.0.0.1:80/"}).metadata_url, path) == "http://127.0.0.1:80"
    assert metadata_url(read_settings({"JOBQ_METADATA_URL": "off"}).metadata_url, path) is None
    assert metadata_url(read_settings({"JOBQ_METADATA_URL": ""}).metadata_url, path) == AZURE_URL
    with pytest.raises(ConfigurationError, match="JOBQ_METADATA_URL"):
        metadata_url("169.254.169.254", path)


async def test_nobody_is_asked_where_there_is_nobody_to_ask() -> None:
    """It ends, and is not missed."""
    told = Told()
    await follow_notices(None, told)
    assert (told.notices, told.withdrawn) == ([], [])


# What a task is told.

APP = App("proj")


@APP.task
def ask_again(meanwhile: Callable[[], object]) -> None:
    """Have something happen, and ask for another attempt."""
    meanwhile()
    raise Retry


@pytest.mark.parametrize(
    ("before", "meanwhile", "kind"),
    [
        ([], [], Kind.RAISED),
        ([True], [], Kind.GIVEN_BACK),
        ([], [True], Kind.GIVEN_BACK),
        ([], [True, False], Kind.GIVEN_BACK),
        ([True], [False], Kind.GIVEN_BACK),
        ([True, False], [], Kind.RAISED),
    ],
    ids=["never", "all-the-time", "meanwhile", "and-withdrawn", "withdrawn", "before"],
)
def test_another_attempt_is_free_for_who_was_told(tmp_path: Path, before: list[bool], meanwhile: list[bool], kind: Kind) -> None:
    """Whoever could hear of the end while it ran gives itself back uncharged, also if the notice was withdrawn since."""
    execution = Execution(Functions({ask_again.name: ask_again}), Desk("w", lambda request: Answer(0, done=False)))
    codec = codec_named("cloudpickle")

    def happen() -> None:
        for told in meanwhile:
            execution.notice(Notice(preempted=told))

    for told in before:
        execution.notice(Notice(preempted=told))
    NOW.append(happen)
    call = Call("c-1", ask_again.name, "default", codec.dumps(((run_now,), {})).data, sent=0)
    try:
        assert execution.run(Job(1, call, str(tmp_path / "value"), str(tmp_path / "checkpoint"))).kind is kind
    finally:
        NOW.clear()


NOW: list[Callable[[], None]] = []


def run_now() -> None:
    """What the test wants to happen while the task runs; by name, since the arguments are encoded."""
    NOW[0]()
