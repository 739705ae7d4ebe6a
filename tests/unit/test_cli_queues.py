"""`size`, `peek`, `clear`, `status` and orders to workers: the commands in this process, on a local place without workers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from storage_spy import between, blobs, depth

from ai4s.jobq import App, CallCancelled, layout
from ai4s.jobq.cli import jobq, looking
from ai4s.jobq.cli import queues as verbs
from ai4s.jobq.errors import AccessDenied, Unreachable
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call, Failure, Outcome, Spill, State
from ai4s.jobq.message import Cause as Why
from ai4s.jobq.overview.glance import arguments_of
from ai4s.jobq.overview.queues import QueueStatus
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.worker.counts import Counts
from ai4s.jobq.worker.current_calls import Current
from ai4s.jobq.worker.status import Status

declared = App("looked-after")
ran: list[str] = []


class Trap:
    """Whoever unpickles it has run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (ran.append, ("unpickled",))


@declared.task(name="proj.step")
def step(x: Any = None) -> Any:
    return x


@declared.task(name="proj.plain", codec="msgpack")
def plain(x: Any, *, limit: int = 0) -> Any:
    return x


@declared.task(name="proj.wide", queue="gpu")
def wide(x: int) -> int:
    return x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file, on an empty store."""
    return jobq_place(declared)


@pytest.fixture
def run(app: App, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a verb on the app by its place and name."""
    monkeypatch.delenv("JOBQ_URL", raising=False)

    def invoke(*words: str, **options: Any) -> Result:
        return CliRunner().invoke(jobq, [f"{app.client.place.label}/{app.name}", *words], **options)

    return invoke


def send_text(app: App, text: str) -> None:
    """Put any text on the default queue."""

    async def send(ledger: Ledger) -> None:
        await (await ledger.queue("default")).send(text)

    app.client.run(send)


def records(result: Result) -> list[dict[str, Any]]:
    """What a verb said with --json."""
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# size


def test_size_is_a_number_where_it_is_piped(app: App, run: Callable[..., Result]) -> None:
    """Of calls, which a pack holds many of; of messages on request. Scripts of ai4s-jobq 3.x read the same."""
    step.delay(1)
    batch = step.map(range(100))
    assert run("size").stdout == "101\n"
    assert run("size", "--messages").stdout == f"{depth(app)}\n"
    assert records(run("size", "--json")) == [{"queue": "default", "messages": depth(app), "calls": 101}]
    assert batch.progress().total == 100


def test_size_is_told_in_words_at_a_terminal(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each queue."""
    step.delay(1)
    declared.pause()
    monkeypatch.setattr(verbs, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    assert run("size").stdout == "default: about 1 calls in 1 messages (paused)\n"


def test_size_is_of_all_queues_or_of_one(run: Callable[..., Result]) -> None:
    """A queue is counted where it is there."""
    step.delay(1)
    wide.delay(1)
    wide.delay(2)
    assert run("size").stdout == "3\n"
    assert run("size", "--queue", "gpu").stdout == "2\n"
    assert run("size", "--queue", "gpu", "--messages").stdout == "2\n"
    refused = run("size", "--queue", "cpu")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "default, gpu" in refused.stderr


def test_what_packs_still_hold_is_reckoned_from_counts(app: App) -> None:
    """Calls that ended, and calls given away to a log of their own, which has a message of its own; no entry is read."""
    batch = step.map(range(30), pack=10)

    async def log(ledger: Ledger) -> None:
        store = await ledger.store()
        for log, seq, counts in (
            ("000000", 0, {"done": "10"}),
            ("000001", 0, {"done": "2", "failed": "1", "gives": "4"}),
            ("000001.000000", 0, {"done": "1"}),
        ):
            await store.put(layout.log_entry(batch.id, log, seq), b"", metadata=counts)

    app.client.run(log)
    (found,) = app.queues.batches()
    assert (found.id, found.queue, found.task, found.calls) == (batch.id, "default", "proj.step", 30)
    # 4 of the second pack, 3 of what it gave away, 10 of the third.
    assert (found.waiting, found.messages, found.failed) == (17, 3, 1)


def test_messages_that_were_dropped_are_no_calls_that_wait(app: App, run: Callable[..., Result]) -> None:
    """A batch whose messages are gone never ends, and no worker will meet it."""
    step.map(range(50))
    assert run("clear", "--force").exit_code == 0
    assert run("size").stdout == "0\n"


def test_looking_makes_nothing(tmp_path: Path, run: Callable[..., Result], app: App) -> None:
    """A place or an app that is not there stays so, and one line says what to do."""
    step.delay(1)
    for target in (f"local://{tmp_path / 'nowhere'}/myproj", f"{app.client.place.label}/another-app"):
        for words in (["size"], ["peek"], ["status"], ["clear"], ["pause"], ["failed", "list"], ["gc", "--older-than", "7d"]):
            refused = CliRunner().invoke(jobq, [target, *words])
            assert refused.exit_code == 1, (words, refused.output)
            assert "Check the names" in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()
    assert list(app.client.run(lambda ledger: ledger.transport.queues(""))) == [app.name]


@pytest.mark.parametrize("verb", ["size", "peek", "clear", "pause", "resume", "drain"])
def test_a_mistyped_queue_is_answered_with_those_that_are_there(run: Callable[..., Result], verb: str) -> None:
    """In the user's words, whatever the storage misses."""
    wide.delay(1)
    step.delay(1)
    refused = run(verb, "--queue", "gup")
    assert refused.exit_code == 1
    assert "has no queue 'gup'; it has: default, gpu. Check the names" in refused.stderr


def test_orders_are_for_all_queues_that_are_named_or_none(app: App, run: Callable[..., Result]) -> None:
    """One that is not there is not made because another one is."""
    step.delay(1)
    assert run("pause", "--queue", "default", "--queue", "gup").exit_code == 1
    assert [(queue.name, queue.paused) for queue in app.queues.list()] == [("default", False)]


def test_an_app_by_its_module_is_not_made_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's own `create` is for those who push."""
    (tmp_path / "looked_tasks.py").write_text(f"from ai4s.jobq import App\napp = App('unused', 'local://{tmp_path / 'there'}')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert CliRunner().invoke(jobq, ["looked_tasks:app", "status"]).exit_code == 1
    assert not (tmp_path / "there").exists()


def test_queues_are_found_without_the_right_to_list_them(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what orders, dead letters and workers name; what they name and is not there is left out."""
    step.delay(1)
    wide.delay(1)
    app.pause("gpu")

    async def denied(self: LocalTransport, prefix: str) -> dict[str, str]:
        raise AccessDenied("no")

    async def name_a_queue(ledger: Ledger) -> None:
        await (await ledger.store()).put("control/gone", b"")

    app.client.run(name_a_queue)
    app.client.queues.discard("gpu")
    monkeypatch.setattr(LocalTransport, "queues", denied)
    try:
        assert app.queues.list() == [QueueStatus("default", 1, 1), QueueStatus("gpu", 1, 1, paused=True)]
    finally:
        app.client.queues.add("gpu")


# peek


def test_peek_shows_what_waits_and_runs_nothing_of_it(app: App, run: Callable[..., Result]) -> None:
    """Arguments in a safe codec are shown, a pickle's size alone; control characters never reach the terminal."""
    step.delay(Trap())
    plain.delay([1, "\x1b[31mred"], limit=3)
    batch = step.map(range(7), pack=7)
    send_text(app, "garbage")
    found = {each["kind"] + each["task"]: each for each in records(run("peek", "-n", "32", "--json"))}
    assert found["callproj.step"]["arguments"].endswith("bytes of cloudpickle)")
    assert found["callproj.plain"]["arguments"] == r"[1, '\x1b[31mred'], limit=3"
    assert found["packproj.step"] | {"id": batch.id, "calls": 7} == found["packproj.step"]
    assert "Malformed" in found["unreadable"]["arguments"]
    assert ran == []
    assert "\x1b" not in run("peek", "-n", "32").output


def test_peek_shows_messages_of_3x(app: App, run: Callable[..., Result]) -> None:
    """A command's text, and of its environment the names alone."""
    kwargs = json.dumps({"cmd": "python train.py", "env": {"API_TOKEN": "secret"}})
    text = {"version": 1, "reply_requested": False, "kwargs": kwargs, "num_retries": 2, "id": "5d41402abc4b2a76b9719d911017c592"}
    step.delay(1).cancel()
    send_text(app, json.dumps(text))
    (found,) = records(run("peek", "--json"))
    assert (found["kind"], found["task"]) == ("call (3.x)", "jobq.shell")
    assert found["arguments"] == "python train.py  (env: API_TOKEN)"
    assert "secret" not in json.dumps(found)
    assert app.queues.clear().calls == 1
    assert blobs(app, "results/msg/")


def test_nothing_to_peek_at_is_said_beside_the_answer(run: Callable[..., Result]) -> None:
    """Scripts get no lines."""
    step.delay(1).cancel()
    looked = run("peek", "--json")
    assert (looked.exit_code, looked.stdout) == (0, "")
    assert "no message" in looked.stderr


def test_arguments_that_lie_apart_or_are_damaged_are_said_to_be_so() -> None:
    """Nothing is fetched for a glance, and nothing raises."""
    call = Call("abcdefgh234567ab-000000000001", "t", "default", Spill(1_000_000, "0" * 64), sent=0.0)
    assert arguments_of(call) == "(1,000,000 bytes in a blob)"
    assert "cannot be read" in arguments_of(replace(call, arguments=b"\xc1", codec="msgpack"))
    assert "cannot be read" in arguments_of(replace(call, arguments=b"\x01", codec="msgpack"))
    assert "cannot be read" in arguments_of(replace(call, arguments=b"x", codec="of-later"))


# clear


def test_clear_cancels_each_call_and_asks_batches_to_stop(app: App, run: Callable[..., Result]) -> None:
    """Who waits hears of it; a pack's message stays for the worker that ends its calls."""
    handles = [step.delay(n) for n in range(40)]
    batch = step.map(range(5), pack=5)
    cleared = run("clear")
    assert cleared.exit_code == 0, cleared.output
    assert "Cancelled 40 calls." in cleared.stdout
    assert batch.id in cleared.stdout
    for handle in handles:
        with pytest.raises(CallCancelled):
            handle.result(timeout=5)
    assert depth(app) == 1
    assert layout.batch_cancelled(batch.id) in blobs(app, "batches/")


def test_clear_leaves_what_it_cannot_read(app: App, run: Callable[..., Result]) -> None:
    """It may be sound, for somebody with another key or a later version; --force removes it."""
    step.delay(1)
    send_text(app, "garbage")
    cleared = run("clear")
    assert "Cancelled 1 calls." in cleared.stdout
    assert "Left 1 messages that cannot be read" in cleared.stdout
    assert depth(app) == 1
    assert "wait in vain" in run("clear", "--force").stdout.replace("waits", "wait")
    assert depth(app) == 0


def test_a_clear_that_was_cut_short_is_finished_by_the_next_one(app: App) -> None:
    """The outcome comes before the message goes: nothing in between runs a call that counts as cancelled."""
    handle = step.delay(1)

    def lose(method: Any, *args: Any, **kwargs: Any) -> Any:
        if method.__name__ == "delete":
            raise Unreachable("cut short")
        return method(*args, **kwargs)

    with between(app, lose), pytest.raises(Unreachable):
        app.queues.clear()
    assert handle.status() == "cancelled"
    assert depth(app) == 1


def test_clear_finishes_what_a_dead_worker_left(app: App) -> None:
    """A failure without its dead letter gets one before its message goes, or nobody could ever retry it."""
    handle = step.delay(1)

    async def fail(ledger: Ledger) -> None:
        failure = Failure(Why.RAISED, "ValueError", "so it went")
        await ledger.commit(Outcome(handle.id, 1, State.FAILED, "t", "proj.step", "default", failure=failure))

    app.client.run(fail)
    done = app.queues.clear()
    assert (done.calls, done.ended) == (0, 1)
    assert [letter.id for letter in app.dead_letters.list()] == [handle.id]


def test_clear_asks_whoever_sits_at_a_terminal(app: App, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not confirmed is not done; --yes asks nobody."""
    monkeypatch.setattr(looking, "at_terminal", lambda: True)
    step.delay(1)
    asked = run("clear", input="n\n")
    assert asked.exit_code == 1
    assert "1 messages of queue default of looked-after?" in asked.output
    assert depth(app) == 1
    assert run("clear", "--yes").exit_code == 0
    assert depth(app) == 0


# status


class Worker:
    """What a worker would tell of itself."""

    def __init__(self, running: int = 0, trouble: str = "", batches: Mapping[str, int] | None = None) -> None:
        self._running, self._trouble, self._batches = running, trouble, batches or {}

    def numbers(self) -> Mapping[str, int]:
        return {"slots": 4, "running": self._running, "succeeded": 30, "failed": 2, "retried": 0, "lost": 0, "fenced": 0}

    @property
    def counts(self) -> Counts:
        return Counts(succeeded=30, failed=2)

    def calls(self) -> Sequence[Current]:
        return []

    def queues(self) -> Sequence[str]:
        return ["default", "gpu"]

    def batches(self) -> Mapping[str, int]:
        return self._batches

    def trouble(self) -> str:
        return self._trouble


def write_status(app: App, worker_id: str, worker: Worker, state: str = "working") -> None:
    """Have a worker tell of itself."""
    app.client.run(lambda ledger: Status(ledger, worker_id, worker).write(state))


def test_status_tells_of_queues_batches_and_workers(app: App, run: Callable[..., Result]) -> None:
    """One JSON object for each; a worker that has ended is left out unless asked for."""
    batch = step.map(range(20), pack=20)
    app.pause()
    write_status(app, "node-7-123-abcd", Worker(3, "no rights \x1b[2J", {batch.id: 3}))
    write_status(app, "node-8-124-abcd", Worker(), "stopped")
    found = {each["kind"]: each for each in records(run("status", "--json"))}
    assert (found["queue"]["queue"], found["queue"]["calls"], found["queue"]["paused"]) == ("default", 20, True)
    assert (found["batch"]["batch"], found["batch"]["waiting"], found["batch"]["running"]) == (batch.id, 20, 3)
    worker = found["worker"]
    assert (worker["worker"], worker["host"], worker["state"]) == (
        "node-7-123-abcd",
        socket.gethostname(),
        "working",
    )
    assert (worker["running"], worker["slots"], worker["queues"]) == (3, 4, ["default", "gpu"])
    assert worker["rate"] == pytest.approx(32 / worker["up_seconds"])
    assert "\x1b" not in worker["trouble"]

    shown = run("status")
    assert "1 workers, 3 calls running in 4 slots" in shown.stderr
    assert "node-8" not in shown.stdout
    assert "node-8-124-abcd\tstopped" in run("status", "--all").stdout


def test_a_worker_that_fell_silent_does_not_count_as_working(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three minutes without a word it is gone, or cannot reach the storage; what it said to run does not run."""
    write_status(app, "node-7-123-abcd", Worker(3, batches={"some-batch": 3}))
    real = LocalTransport.server_time

    async def later(self: LocalTransport) -> float:
        return await real(self) + 200

    monkeypatch.setattr(LocalTransport, "server_time", later)
    (found,) = app.queues.workers()
    assert (found.state, found.is_live) == ("silent", False)
    assert found.heard_seconds >= 200


def test_a_status_that_somebody_spoilt_hides_no_other(app: App) -> None:
    """What is no number counts as 0."""
    write_status(app, "node-7-123-abcd", Worker())

    async def spoil(ledger: Ledger) -> None:
        told = {"state": "working", "running": "many", "slots": "-1", "batches": "x=y z", "started": "9" * 40}
        await (await ledger.store()).put("workers/odd", b"", metadata=told)

    app.client.run(spoil)
    odd = next(worker for worker in app.queues.workers() if worker.id == "odd")
    assert (odd.running, odd.slots, odd.batches, odd.up_seconds) == (0, 0, {}, None)


# orders


def test_orders_are_given_to_queues_that_are_there(app: App, run: Callable[..., Result]) -> None:
    """To the default one, to those named, or to all; a mistyped name is an error, and leaves nothing."""
    step.delay(1)
    wide.delay(1)
    assert "Queue default of looked-after is paused" in run("pause").stdout
    assert [queue.paused for queue in app.queues.list()] == [True, False]
    assert run("pause", "--queue", "gpu").exit_code == 0
    assert run("resume", "--all-queues").exit_code == 0
    assert [queue.paused for queue in app.queues.list()] == [False, False]
    assert "is drained" in run("drain", "--queue", "gpu").stdout
    assert [bool(queue.drained_at) for queue in app.queues.list()] == [False, True]
    assert run("pause", "--queue", "gpuu").exit_code == 1
    assert "control/gpuu" not in blobs(app, "control/")


def test_gc_says_what_it_removed_and_never_what_is_young(run: Callable[..., Result]) -> None:
    """A day is the least."""
    step.delay(1).cancel()
    assert records(run("gc", "--older-than", "1d", "--json"))[0]["calls"] == 0
    refused = run("gc", "--older-than", "2h")
    assert refused.exit_code == 2
    assert "a day" in refused.stderr


async def test_each_method_has_an_async_twin(app: App) -> None:
    """From any loop."""
    await step.adelay(1)
    queues = app.queues
    assert (await queues.alist())[0].calls == await queues.adepth() == len(await queues.apeek(5)) == 1
    assert await asyncio.gather(queues.aworkers(), queues.abatches()) == [[], []]
    assert (await queues.aclear()).calls == 1
