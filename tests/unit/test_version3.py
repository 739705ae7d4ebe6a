"""Messages of ai4s-jobq 3.x: read for what they are, written back as they were, refused if they are not sound, run to one outcome.

The texts are what the client of 3.13 wrote. `acceptance/test_old_client.py` has that client itself.
"""

from __future__ import annotations

import base64
import json
import math
import tracemalloc
from collections.abc import Callable, Coroutine
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest
from failure_points import Crash, Fault, Numbered, Process, Through, WorkerProcess, World, drain, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import Scenario, comes_to, every_fault, explore, raised, returned

from ai4s.jobq import App, layout, reruns, version3
from ai4s.jobq.codec import codec_of
from ai4s.jobq.errors import (
    ConfigurationError,
    DeclarationError,
    Malformed,
    MessageError,
    NotSerializable,
    ResultGone,
    SignatureInvalid,
    Unfit,
)
from ai4s.jobq.fields import to_map
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import SHELL_TASK, V3_TASK, Call, Checkpoint, DeadLetter, Outcome, PackHeader, Spill, State, Version3
from ai4s.jobq.old_letters import OldLetters
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.base import MAX_BODY_BYTES, Delivery, Queue, Receipt
from ai4s.jobq.wire import Wire

SAME_EACH_TIME = settings(derandomize=True, deadline=None, database=None, max_examples=60)
KEYS = ("a-key-of-16-letters-and-more",)
MESSAGE = "47df7d5e-c59a-4e3b-ad9b-73a270790e81"
CALL_ID = "msg-47df7d5ec59a4e3bad9b73a270790e81"
SENT = 1_700_000_000.0
OPEN = Wire("proj")

SHELL = {"cmd": "exit 3", "bg_dirsync_to": None, "env": {"FOO": "bar"}}
SHELL_TEXT = (
    '{"version": 1, "reply_requested": false, "kwargs": "{\\"cmd\\": \\"exit 3\\", \\"bg_dirsync_to\\": null, '
    '\\"env\\": {\\"FOO\\": \\"bar\\"}}", "num_retries": 1, "id": "49c290c0a5565baf965d8a6d34824c02"}'
)
PUT_BACK_TEXT = (
    '{"version": 1, "reply_requested": false, "kwargs": "{\\"cmd\\": \\"exit 3\\", \\"bg_dirsync_to\\": null, '
    '\\"env\\": {\\"FOO\\": \\"bar\\", \\"PYTHONUNBUFFERED\\": \\"1\\"}, \\"_job_id\\": \\"49c290c0a5565baf965d8a6d34824c02\\"}", '
    '"num_retries": 0, "id": "49c290c0a5565baf965d8a6d34824c02"}'
)


def delivered(text: str, message: str = MESSAGE, count: int = 1) -> Delivery:
    """A delivery of this text."""
    return Delivery(Receipt(message, "receipt"), text, count, SENT, SENT + 5, 0.0)


def unsealed(text: str, wire: Wire = OPEN, queue: str = "default") -> Call:
    """The call in a message of 3.x."""
    call = wire.unseal_delivery(delivered(text), queue)
    assert isinstance(call, Call)
    return call


def resealed(call: Call) -> dict[str, Any]:
    """The members of the JSON that the call goes back as."""
    text = OPEN.seal_call(call)
    assert text is not None
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def said(**changes: object) -> str:
    """The text of a sound message, with changes; `...` leaves a member out."""
    members = {"version": 1, "reply_requested": False, "kwargs": '{"x": 1}', "num_retries": 2, "id": "an id", **changes}
    return json.dumps({name: value for name, value in members.items() if value is not ...})


def arguments(call: Call) -> Any:
    """What the task is called with."""
    assert isinstance(call.arguments, bytes)
    return codec_of(call.codec).loads(call.arguments)


# Reading.


def test_shell_work_becomes_a_call_of_the_built_in_task() -> None:
    """With its environment, its retries, and the queue's id and time for its own."""
    call = unsealed(SHELL_TEXT)
    assert (call.id, call.task, call.codec, call.queue, call.sent) == (CALL_ID, SHELL_TASK, "shell", "default", SENT)
    assert (call.retries, call.errors, call.attempt, call.run) == (1, 0, 1, 1)
    assert arguments(call) == [[], {"cmd": "exit 3", "env": {"FOO": "bar"}}]


def test_what_an_old_worker_has_put_back_is_shell_work_still() -> None:
    """It leaves its own id in the keyword arguments, which the command is not given."""
    call = unsealed(PUT_BACK_TEXT)
    assert (call.task, call.retries) == (SHELL_TASK, 0)
    assert arguments(call) == [[], {"cmd": "exit 3", "env": {"FOO": "bar", "PYTHONUNBUFFERED": "1"}}]


def test_values_of_an_environment_become_strings() -> None:
    """As 3.x made them."""
    call = unsealed(version3.text({"cmd": "env", "env": {"N": 3, "YES": True, "NONE": None, "S": "s"}}))
    assert arguments(call)[1]["env"] == {"N": "3", "YES": "True", "NONE": "None", "S": "s"}


def test_what_is_empty_was_not_said() -> None:
    """As `--bg-dirsync-to ''` was none for 3.x: it is not the folder where the command starts. The command may be empty."""
    call = unsealed(version3.text({"cmd": "", "bg_dirsync_to": "", "cwd": "", "env": {}}))
    assert arguments(call) == [[], {"cmd": ""}]


def test_all_else_is_for_a_task_that_the_app_declares() -> None:
    """With the keyword arguments as they were pushed."""
    call = unsealed(version3.text({"path": "a/b", "sizes": [1, 2.5, None], "deep": {"x": True}}, num_retries=7))
    assert (call.task, call.codec, call.retries) == (V3_TASK, "msgpack", 7)
    assert arguments(call) == [[], {"path": "a/b", "sizes": [1, 2.5, None], "deep": {"x": True}}]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"cmd": ["ls"]},
        {"cmd": "ls", "size": 3},
        {"cmd": "ls", "env": ["A=1"]},
        {"cmd": "ls", "cwd": 3},
        {"env": {}, "bg_dirsync_to": None},
    ],
    ids=str,
)
def test_what_only_resembles_shell_work_is_not_run_by_a_shell(kwargs: dict[str, Any]) -> None:
    """A command is a text, and has none but its own companions."""
    assert unsealed(version3.text(kwargs)).task == V3_TASK


def test_a_message_of_version_0_has_no_word_of_replies() -> None:
    """And goes back without one."""
    call = unsealed(said(version=0, reply_requested=...))
    assert call.version3 == Version3(0, "an id", '{"x": 1}')
    assert resealed(replace(call, errors=1)) == {
        "version": 0, "kwargs": '{"x": 1}', "num_retries": 1, "id": "an id", "jobq": {"call": CALL_ID, "errors": 1},
    }  # fmt: skip


def test_members_that_nobody_knows_are_passed_over() -> None:
    """As 3.x does, which reads members by name."""
    assert unsealed(said(trace="00-ab-cd-01")).version3 == unsealed(said()).version3


def test_not_a_number_is_what_the_old_client_writes_and_is_handed_on() -> None:
    """Python's JSON has NaN and infinities."""
    found = arguments(unsealed(version3.text({"x": math.nan, "y": -math.inf})))[1]
    assert math.isnan(found["x"])
    assert found["y"] == -math.inf


def test_less_than_no_retries_are_none() -> None:
    """3.x gave up at 0 or below."""
    assert unsealed(said(num_retries=-4)).retries == 0


# Ids.


def test_a_call_is_named_after_its_message() -> None:
    """By Azure's id where there is one; else by a hash, which other queues and apps do not share."""
    assert version3.message_call_id(MESSAGE) == version3.message_call_id(MESSAGE.upper(), "proj", "gpu") == CALL_ID
    ids = {version3.message_call_id("17", app, queue) for app in ("one", "two") for queue in ("default", "gpu")}
    assert len(ids) == 4
    assert all(layout.CALL_ID.fullmatch(call) for call in ids)


def test_outcomes_of_messages_lie_in_a_folder_of_their_own_in_the_order_of_calls() -> None:
    """gc walks over them beside other folders, which are in the order of ids."""
    ids = [
        layout.call_id(client, 1) for client in ("a" * 16, "kez" + "2" * 13, "mez" + "2" * 13, "msg" + "a" * 13, "mt" + "a" * 14)
    ]
    calls = sorted([*ids, layout.keyed_call_id("ab" * 20), CALL_ID])
    names = [layout.result(call, 1) for call in calls]
    assert names == sorted(names)
    assert layout.result(CALL_ID, 2) == "results/msg/47/47df7d5ec59a4e3bad9b73a270790e81.r2"
    assert layout.result_page(CALL_ID) is None
    assert [layout.run_of(layout.result(call, run)) for call in calls for run in (1, 3)] == [(c, r) for c in calls for r in (1, 3)]
    assert layout.run_of("results/msg/47/" + "4" * 40) is None
    assert layout.call_of(layout.retry(CALL_ID, 2), layout.RETRIES) == CALL_ID


def test_a_handle_is_had_by_either_id(tmp_path: Path) -> None:
    """What 3.x's push returned, or what our log says."""
    app = App("proj", f"local://{tmp_path / 'place'}")
    assert app.handle(MESSAGE) == app.handle(CALL_ID)
    assert app.handle(MESSAGE).id == CALL_ID
    with pytest.raises(DeclarationError, match="not the id of a call"):
        app.handle("msg-47df")


# Writing.


def test_a_retry_is_the_same_json_with_one_retry_less() -> None:
    """Under the same id, so that an old worker can take it; ours reads beside it how often it has failed."""
    call = unsealed(SHELL_TEXT)
    again = resealed(replace(call, errors=1))
    assert again.pop("jobq") == {"call": CALL_ID, "errors": 1}
    assert again == {**json.loads(SHELL_TEXT), "num_retries": 0}
    back = unsealed(json.dumps({**again, "jobq": {"call": CALL_ID, "errors": 1}}))
    assert (back.retries, back.errors, back.attempt) == (1, 1, 2)


@SAME_EACH_TIME
@given(
    notes=st.fixed_dictionaries(
        {
            "run": st.integers(1, 9),
            "resent": st.booleans(),
            "errors": st.integers(0, 2),
            "deaths": st.integers(0, 9),
            "preemptions": st.integers(0, 9),
            "alone": st.booleans(),
            "mark": st.none() | st.text("0123456789abcdef", min_size=16, max_size=16),
            "eta": st.none() | st.floats(0, 2**53),
            "checkpoint": st.none()
            | st.builds(Checkpoint, token=st.just("ab" * 8), number=st.integers(1, 99), spill=st.just(Spill(7, "0" * 64))),
        }
    )
)
def test_what_must_be_remembered_comes_back(notes: dict[str, Any]) -> None:
    """All that changes in a call while it lives."""
    call = replace(unsealed(said()), **notes)
    text = OPEN.seal_call(call)
    assert text is not None
    assert unsealed(text) == call
    assert OPEN.unseal_delivery(delivered(text, message="another-copy", count=2), "default") == call


def test_nothing_that_changes_in_a_call_is_left_out() -> None:
    """A field of Call is fixed by the message, or among the notes."""
    fixed = {"id", "task", "queue", "arguments", "sent", "codec", "pool", "retries", "version3"}
    never_given = {
        "function",
        "ship",
        "python",
        "backoff",
        "max_deaths",
        "timeout_seconds",
        "expires",
        "root",
        "parent",
        "resources",
        "logs",
        "trace",
    }
    noted = {field.name for field in fields(version3.Notes)} - {"call"}
    assert {field.name for field in fields(Call)} <= fixed | never_given | noted


def test_pushed_text_is_what_the_old_client_writes() -> None:
    """To the letter, with the MD5 of the rest for an id."""
    assert version3.text(SHELL, num_retries=1) == SHELL_TEXT
    assert json.loads(version3.text("ls", id="mine"))["id"] == "mine"
    assert arguments(unsealed(version3.text("ls"))) == [[], {"cmd": "ls"}]


def test_what_no_message_can_hold_is_refused_with_what_to_do() -> None:
    """Whatever JSON does not know, and more than a queue takes."""
    with pytest.raises(NotSerializable, match="JSON"):
        version3.text({"x": object()})
    with pytest.raises(DeclarationError, match="pass its name"):
        version3.text({"x": "y" * MAX_BODY_BYTES})
    largest = version3.text({"x": ""})
    version3.text({"x": "y" * (MAX_BODY_BYTES - len(largest))})


async def test_a_message_that_grows_too_long_goes_on_as_one_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which is said; its arguments then lie in a blob."""
    room = MAX_BODY_BYTES - len(version3.text({"x": ""}))
    async with opened(tmp_path / "place") as transport:
        ledger = Ledger(transport, "proj", Keyring())
        call = unsealed(version3.text({"x": "y" * room}))
        sealed, text = await ledger.sealed(replace(call, mark="ab" * 8))
        assert sealed.version3 is None
        assert not version3.is_version3(text)
        back = OPEN.unseal_call(text, "default")
        assert (back.id, back.mark, back.task) == (CALL_ID, "ab" * 8, V3_TASK)
        assert isinstance(back.arguments, Spill)
    assert "cannot read" in caplog.text


# Refusing.

DEEP = "[" * 20_000
HOSTILE: dict[str, tuple[str, type[MessageError]]] = {
    "only a brace": ("{", Malformed),
    "an empty object": ("{}", Malformed),
    "something after it": (said() + "x", Malformed),
    "no version": (said(version=...), Malformed),
    "a later version": (said(version=2), Unfit),
    "a version far away": (said(version=10**300), Unfit),
    "a negative version": (said(version=-1), Unfit),
    "true for a version": (said(version=True), Malformed),
    "a text for a version": (said(version="1"), Malformed),
    "NaN for a version": (said(version=math.nan), Malformed),
    "no id": (said(id=...), Malformed),
    "a number for an id": (said(id=3), Malformed),
    "no retries": (said(num_retries=...), Malformed),
    "a fraction of a retry": (said(num_retries=0.5), Malformed),
    "NaN retries": (said(num_retries=math.nan), Malformed),
    "retries beyond all bounds": (said(num_retries=10**30), Malformed),
    "a number with more digits than Python reads": (said().replace(": 2,", ": " + "9" * 5000 + ","), Malformed),
    "no kwargs": (said(kwargs=...), Malformed),
    "kwargs that are no text": (said(kwargs={"x": 1}), Malformed),
    "kwargs that are no JSON": (said(kwargs="x = 1"), Malformed),
    "kwargs that are a list": (said(kwargs="[1]"), Malformed),
    "kwargs that are null": (said(kwargs="null"), Malformed),
    "a reply that is neither": (said(reply_requested=None), Malformed),
    "a name twice": (said().replace("{", '{"version": 1, ', 1), Malformed),
    "a name twice in the kwargs": (said(kwargs='{"x": 1, "x": 2}'), Malformed),
    "depth": (said(kwargs=f'{{"x": {DEEP}'), Malformed),
    "depth that is closed": (said(kwargs='{"x": ' + "[" * 5000 + "]" * 5000 + "}"), Malformed),
    "depth without": ('{"x":' + DEEP, Malformed),
    "an int of 70 bits": (said(kwargs=f'{{"x": {2**70}}}'), Malformed),
    "half a surrogate": (said(kwargs='{"x": "\\ud800"}'), Malformed),
    "half a surrogate for an id": (said(id="\ud800"), Malformed),
    "half a surrogate in the text of the kwargs": (said(kwargs='{"cmd": "true", "_job_id": "\ud800"}'), Malformed),
    "half a surrogate for a mark": (said(jobq={"mark": "\ud800"}), Malformed),
    "half a surrogate for a name": (said(kwargs='{"cmd": "true", "env": {"\\ud800": "x"}}'), Malformed),
    "more attempts than can be counted": (said(jobq={"errors": 2**53, "deaths": 2**53}), Malformed),
    "many empty lists": (said(kwargs='{"x": [' + "[]," * 20_000 + "[]]}"), ...),  # type: ignore[dict-item]  # sound
    "notes that are a list": (said(jobq=[1]), Malformed),
    "notes of a later version": (said(jobq={"later": 1}), Unfit),
    "notes of a wrong type": (said(jobq={"errors": "1"}), Malformed),
    "a negative count": (said(jobq={"deaths": -1}), Malformed),
    "NaN for a moment": (said(jobq={"eta": math.nan}), Malformed),
    "a call of ours": (said(jobq={"call": "abcdefgh234567ab-000000000007"}), Malformed),
    "a call out of its folder": (said(jobq={"call": "msg-../../x"}), Malformed),
    "a checkpoint out of its folder": (
        said(jobq={"checkpoint": {"token": "../x", "number": 1, "spill": {"size": 1, "sha256": "0" * 64}}}), Malformed,
    ),
    "run 0": (said(jobq={"run": 0}), Malformed),
    "escapes": ("{\x1b]0;gone\x07", Malformed),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused(name: str) -> None:
    """With one of the errors of messages, little memory, and a reason that can be shown; with a key, it is not even read."""
    text, wanted = HOSTILE[name]
    tracemalloc.start()
    try:
        unsealed(text)
        error: MessageError | None = None
    except MessageError as exc:
        error = exc
    finally:
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert held < 16 * 1024 * 1024
    if wanted is ...:
        assert error is None
        return
    assert type(error) is wanted
    assert str(error).isprintable()
    assert len(str(error)) < 500
    with pytest.raises(SignatureInvalid, match="signing key"):
        unsealed(text, Wire("proj", Keyring(KEYS)))


def test_sound_json_is_refused_where_a_key_is_set() -> None:
    """Nobody can sign it."""
    with pytest.raises(SignatureInvalid, match="which nobody has signed"):
        unsealed(SHELL_TEXT, Wire("proj", Keyring(KEYS)))


def test_only_json_is_taken_for_a_message_of_3x() -> None:
    """A message of ours cannot say that it was one, and JSON is none of ours."""
    call = Call(layout.call_id("abcdefgh234567ab", 7), "proj.step", "default", b"", SENT)
    text = OPEN.seal_call(call)
    assert text is not None
    assert OPEN.unseal_delivery(delivered(text), "default") == call
    forged = OPEN._seal("call", "default", to_map(unsealed(said())))
    with pytest.raises(Malformed, match="and it did not"):
        OPEN.unseal_call(base64.b64encode(forged).decode(), "default")
    with pytest.raises(Malformed, match="not base64"):
        OPEN.unseal_message(SHELL_TEXT, "default")


def test_a_pack_is_delivered_as_ever() -> None:
    """What is no JSON goes the usual way."""
    pack = PackHeader("a-batch", 0, "default", SENT, Spill(1, "0" * 64), 0, 1, "0", "000000")
    text = OPEN.seal_pack(pack)
    assert text is not None
    assert OPEN.unseal_delivery(delivered(text), "default") == pack


# Attempts: a worker's pipeline on a real place, whatever goes wrong at whichever request.

MESSAGE_CALL = replace(unsealed(said()), sent=1.0)


@every_fault
async def test_a_message_of_3x_runs_to_one_outcome(tmp_path: Path, fault: Fault) -> None:
    """It fails, is put back in place with a retry less, and succeeds, whatever fails on the way."""
    task = comes_to(raised(retryable=True), returned())
    await explore(tmp_path, Scenario(task, State.SUCCEEDED, 2, 2, call=MESSAGE_CALL), fault)


async def test_retries_count_down_in_place(tmp_path: Path) -> None:
    """The message keeps its id in the queue; the last failure leaves an outcome and a dead letter under it."""
    texts: list[str] = []
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        (call,) = await sent_texts(world, [said()])
        while found := await world.bodies():
            texts += found
            await a_worker(world, comes_to(raised(retryable=True))).live()
        assert [json.loads(text)["num_retries"] for text in texts] == [2, 1, 0]
        assert {json.loads(text)["id"] for text in texts} == {"an id"}
        outcome = world.outcome(call)
        assert outcome is not None
        assert (outcome.call, outcome.state, outcome.attempts) == (call.id, State.FAILED, 3)
        assert (await world.letter(call)).call == replace(call, errors=2)


async def test_a_worker_that_it_kills_is_counted(tmp_path: Path) -> None:
    """Under 3.x such a message came back for ever; ours gives up after three deaths."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        (call,) = await sent_texts(world, [said()])
        await drain(world, lambda: a_worker(world, comes_to(Crash)))
        outcome = world.outcome(call)
        assert outcome is not None
        assert outcome.state is State.FAILED
        # The first delivery leaves no mark: what began on it is not told from what was only received.
        assert len(world.executed) == 4


async def test_a_dead_letter_runs_again_as_json(tmp_path: Path) -> None:
    """As run 2 of the same call, which an old worker could take too."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        (call,) = await sent_texts(world, [said(num_retries=0)])
        await drain(world, lambda: a_worker(world, comes_to(raised(retryable=True))))
        failed = (await world.letter(call)).call
        assert failed is not None
        again = reruns.next_run(failed, 5.0)
        await world.send(again)
        (text,) = await world.bodies()
        assert {**json.loads(text), "jobq": ...} == {**json.loads(said(num_retries=0)), "jobq": ...}
        assert (world.read_call(text).id, world.read_call(text).run) == (call.id, 2)
        await drain(world, lambda: a_worker(world, comes_to(returned())))
        assert world.outcome(again) is not None


async def test_a_worker_without_the_task_puts_it_aside_uncharged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And says what to declare."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        await sent_texts(world, [said()])
        await WorkerProcess(Numbered(), world, comes_to(returned()), knows=False).live()
        assert await world.queue.depth() == 1
        assert not world.executed
    assert "name='jobq.v3', codec='msgpack'" in caplog.text


async def test_replies_are_not_sent_and_that_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The calls run all the same."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        await sent_texts(world, [said(reply_requested=True)] * 3)
        worker = a_worker(world, comes_to(returned()))
        for _ in range(3):
            await worker.live()
        assert world.depth == 0
        assert len(world.executed) == 3
    assert caplog.text.count("asks for a reply") == 1


async def test_broken_json_is_a_dead_letter_with_its_text(tmp_path: Path) -> None:
    """And a later version is put aside, like one of ours."""
    async with opened(tmp_path / "place") as transport:
        world = World(transport, tmp_path)
        await world.send_text(said(kwargs="nonsense"))
        await a_worker(world, comes_to(returned())).live()
        (name,) = world.letters
        blob = await world.store.get(name)
        assert blob is not None
        letter = world.ledger.wire.unseal(DeadLetter, blob.data, name)
        assert letter.raw == said(kwargs="nonsense")
        await world.send_text(said(version=2))
        await a_worker(world, comes_to(returned())).live()
        assert world.depth == 1


def a_worker(world: World, task: Any) -> WorkerProcess:
    """A worker that nothing happens to."""
    return WorkerProcess(Numbered(), world, task)


async def sent_texts(world: World, texts: list[str]) -> list[Call]:
    """Send messages as 3.x does; returns the calls that they are."""
    await world.ledger.store()
    queue = await world.ledger.queue("default")
    made = []
    for text in texts:
        receipt = await queue.send(text)
        (row,) = await world.transport.database.read(
            lambda transaction, number=int(receipt.message_id): transaction.execute(
                "SELECT inserted FROM messages WHERE id = ?", (number,)
            ).fetchall()
        )
        delivery = replace(delivered(text, receipt.message_id), inserted=row[0])
        call = world.ledger.wire.unseal_delivery(delivery, "default")
        assert isinstance(call, Call)
        world.calls[layout.result(call.id, call.run)] = call
        made.append(call)
    return made


# What an app does with it.


@pytest.fixture
def app(tmp_path: Path) -> App:
    """An app on a place of its own."""
    return App("old-proj", f"local://{tmp_path / 'place'}")


def run(app: App, work: Callable[[Ledger], Coroutine[Any, Any, Any]]) -> Any:
    """Do something behind the app's back."""
    return app.client.run(work)


def ended(app: App, state: State = State.SUCCEEDED) -> Call:
    """A message of 3.x that has ended, with its outcome."""
    call = replace(unsealed(said()), queue="default")
    value = codec_of("msgpack").dumps("done").data
    outcome = Outcome(call.id, 1, state, "t", call.task, "default", "msgpack", value=value)
    run(app, lambda ledger: ledger.commit(outcome))
    return call


def test_an_outcome_is_read_and_forgotten_by_the_message_id(app: App) -> None:
    """As that of any call."""
    ended(app)
    handle = app.handle(MESSAGE)
    assert handle.result(timeout=5) == "done"
    handle.forget()
    with pytest.raises(ResultGone):
        app.handle(CALL_ID).result(timeout=5)


def test_a_message_of_3x_can_be_cancelled(app: App) -> None:
    """Before its worker takes it, which then finds the outcome."""
    assert app.handle(MESSAGE).cancel()
    assert app.handle(CALL_ID).status() is State.CANCELLED


# What 3.x had given up.


def put_old_letters(app: App, *texts: str, queue: str = "old-proj") -> None:
    """Tasks that failed under 3.x."""

    async def put(ledger: Ledger) -> None:
        letters = ledger.transport.queue(f"{queue}-failed", app=app.name)
        await letters.create()
        for text in texts:
            await letters.send(text)

    run(app, put)


def messages(app: App, queue: str = "default") -> list[str]:
    """What lies on a queue."""

    async def peek(ledger: Ledger) -> list[str]:
        return await (await ledger.queue(queue)).peek(32)

    found = run(app, peek)
    assert isinstance(found, list)
    return found


def test_an_app_without_old_letters_has_none(app: App) -> None:
    """And no queue is made for them."""
    letters = OldLetters(app.client)
    assert (letters.count(), letters.peek(), letters.retry()) == (0, [], ([], 0))


def test_old_letters_can_be_looked_at(app: App) -> None:
    """Those that cannot be read too."""
    put_old_letters(app, PUT_BACK_TEXT, "nonsense")
    read, unread = OldLetters(app.client).peek()
    assert (read.id, read.kwargs["cmd"], read.problem) == ("49c290c0a5565baf965d8a6d34824c02", "exit 3", "")
    assert (unread.id, unread.raw) == ("", "nonsense")
    assert unread.problem
    assert OldLetters(app.client).count() == 2


def test_old_letters_go_back_to_their_queue(app: App) -> None:
    """With the retries asked for, under ids that handles wait for; what cannot be read stays."""
    put_old_letters(app, PUT_BACK_TEXT, said(), "nonsense")
    resent = OldLetters(app.client).retry(num_retries=2)
    assert (len(resent.handles), resent.left) == (2, 1)
    texts = messages(app)
    assert {json.loads(text)["num_retries"] for text in texts} == {2}
    assert {unsealed(text).id for text in texts} == {handle.id for handle in resent.handles}
    assert all(unsealed(text).resent for text in texts)
    assert [letter.raw for letter in OldLetters(app.client).peek()] == ["nonsense"]


def test_no_more_old_letters_are_retried_than_asked_for(app: App) -> None:
    """The rest stay."""
    put_old_letters(app, *[said(id=str(n)) for n in range(3)])
    assert len(OldLetters(app.client).retry(2).handles) == 2
    assert OldLetters(app.client).count() == 1


def test_an_old_letter_that_is_sent_twice_is_one_call(app: App) -> None:
    """Died between sending and deleting: asked again, both messages bear the same id and look for its outcome first."""
    put_old_letters(app, said())
    letters = OldLetters(app.client)

    async def send_and_die(ledger: Ledger) -> None:
        queue = ledger.transport.queue("old-proj-failed", app=app.name)
        (delivery,) = await queue.receive(1, lease_seconds=60)
        process = Process(Numbered({0: Fault.CRASH_BEFORE}))  # its first request to this queue is the deletion
        with pytest.raises(Crash):
            await letters._resend(ledger, cast("Queue", Through(queue, process)), delivery, num_retries=0)
        await queue.release(delivery.receipt)

    run(app, send_and_die)
    (handle,) = letters.retry().handles
    first, second = (unsealed(text) for text in messages(app))
    assert first.id == second.id == handle.id
    assert first.resent
    assert second.resent


def test_old_letters_of_an_app_with_a_key_stay(app: App) -> None:
    """Its workers would refuse them."""
    signed = App(app.name, app.client.url, signing_keys=KEYS)
    put_old_letters(app, said())
    with pytest.raises(ConfigurationError, match="not signed"):
        OldLetters(signed.client).retry()
    assert OldLetters(signed.client).count() == 1


async def test_old_letters_have_async_twins(app: App) -> None:
    """For use in an event loop."""
    letters = OldLetters(app.client)
    assert (await letters.acount(), await letters.apeek(), await letters.aretry()) == (0, [], ([], 0))
