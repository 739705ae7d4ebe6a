"""What the dashboard's pages are told, and what its actions do: real calls on a local place, asked for over HTTP."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dashboards import Visitor, visited
from simulated import make, put_batch, put_letters, put_workers

from ai4s.jobq import App, layout
from ai4s.jobq.dashboard import arguments, shared, worker_data
from ai4s.jobq.dashboard.failed_data import failed_data
from ai4s.jobq.dashboard.overview_data import batches_data, overview_data, seconds_left
from ai4s.jobq.dashboard.refresh import QueueSeen
from ai4s.jobq.dashboard.state_map import MOST_RUNS, state_map
from ai4s.jobq.errors import ResultGone
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call, Cause, DeadLetter, Failure, Outcome, State

app = App("shown")
EVIL = '<img src=x onerror=alert(1)>\x1b[31m\u202e"</script>'
lenient: list[bool] = []
LISTS = {"batches": batches_data, "failed": failed_data}


@app.task(name="proj.add", codec="msgpack")
def add(first: int, second: int = 1) -> int:
    return first + second


@app.task(name="proj.fail")
def fail(why: str, retries: int = 0) -> None:
    if not lenient:
        raise ValueError(why)


@app.task(name="proj.evil")
def evil() -> None:
    raise RuntimeError(EVIL)


@app.task(name="proj.odd")
def odd(number: int) -> int:
    if number % 2 == 0 and not lenient:
        raise KeyError(number) if number % 4 else ValueError(number)
    return number


@app.task(name="proj.talk")
def talk(count: int) -> None:
    for number in range(count):
        sys.stdout.write(f"line {number}\n")


@app.task(name="proj.pair", codec="msgpack")
def pair(first: str, second: list[int]) -> str:
    return first


class Bomb:
    """Whoever unpickles it, notices."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("somebody unpickled it",))


@pytest.fixture(autouse=True)
def as_fast_as_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shared, "SHARE", 0)
    monkeypatch.setattr(shared, "PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(shared, "FIRST_PATIENCE_SECONDS", 30.0)
    lenient.clear()
    yield
    lenient.clear()


@pytest.fixture
def ran(jobq_inline: Callable[[App], App]) -> App:
    """The app, whose calls run at once."""
    return jobq_inline(app)


@pytest.fixture
def waiting(jobq_place: Callable[[App], App]) -> App:
    """The app, whose calls nobody runs."""
    return jobq_place(app)


async def settled(visitor: Visitor, path: str, turns: int = 12) -> Any:
    """What is told once everything has been read again."""
    for _ in range(turns):
        found = await visitor.get(path)
    return found


# the lists


async def test_every_answer_says_how_old_it_is(ran: App) -> None:
    """All of them have the same frame; an error has none of it."""
    make(ran)
    batch = await odd.amap(range(4))
    async with visited(ran) as visitor:
        for name in ("overview", "batches", "workers", "failed", f"batch/{batch.id}", f"call/{batch.id}.1"):
            found = await visitor.get(f"/api/{name}")
            assert found["problem"] is None, name
            assert 0 <= found["now"] - found["as_of"] < 60, name
            assert (found["problem_since"], found["write"]) == (None, False)


async def test_the_overview_adds_up_what_workers_say(ran: App) -> None:
    """Environments, outcomes, times, slots, and the cost of what was asked."""
    make(ran)
    ran.client.run(lambda ledger: put_workers(ledger, 7))
    async with visited(ran) as visitor:
        found = await visitor.get("/api/overview")
    assert {each["name"]: each["workers"] for each in found["environments"]} == {"kubernetes": 3, "slurm": 2, "local": 2}
    assert (found["success"]["succeeded"], found["success"]["failed"]) == (7 * 95, 7 * 3)
    assert found["workers"] == {"live": 7, "all": 7, "slots": 28}
    assert found["run_times"]["total"] == sum(found["run_times"]["counts"]) == 700
    assert found["throughput"]["per_second"] == pytest.approx(3.5)
    assert found["cost"]["requests"]["queue_receive"] == 2800
    assert found["cost"]["amount"] > 0
    assert found["cost"]["as_of"]


async def test_a_queue_tells_how_many_calls_its_packs_are(waiting: App) -> None:
    """Messages are counted as they are; of a pack counts what is left to do."""
    await add.adelay(1)
    batch = await add.amap(range(500))
    async with visited(waiting) as visitor:
        found = await visitor.get("/api/overview")
        (queue,) = found["queues"]
        assert (queue["name"], queue["calls"], queue["paused"]) == ("default", 501, False)
        assert 1 < queue["messages"] < 501
        assert 0 <= queue["oldest_seconds"] < 60
        (row,) = found["batches"]
        assert (row["id"], row["task"], row["waiting"], row["calls"]) == (batch.id, "proj.add", 500, 500)


async def test_time_left_is_not_known_where_nobody_works(waiting: App) -> None:
    """Calls that ended a moment ago are no speed once their workers are gone; nor is what was not counted nothing."""
    make(waiting)
    waiting.client.run(lambda ledger: put_batch(ledger, "nightly", 1000, packs=5, entries=20))
    await add.adelay(1)
    async with visited(waiting) as visitor:
        found = await visitor.get("/api/overview")
        assert found["throughput"]["per_second"] > 0
        assert (found["calls_left"] > 0, found["seconds_left"]) == (True, None)
        visitor.dashboard.refresh.seen.queues["default"] = QueueSeen("default")
        found = overview_data(visitor.dashboard.refresh)
        assert (found["queues"][0]["calls"], found["calls_left"], found["seconds_left"]) == (None, None, None)


async def test_lists_say_how_old_the_oldest_of_what_they_show_is(ran: App) -> None:
    """Batches and dead letters are read more rarely than workers, and the page says so."""
    make(ran)
    await odd.amap(range(4))
    async with visited(ran) as visitor:
        seen = visitor.dashboard.refresh.seen
        await visitor.get("/api/overview")
        (batch,) = seen.batches.values()
        seen.letters_as_of, batch.as_of = seen.as_of - 70, seen.as_of - 90
        ages = {name: seen.as_of - data(visitor.dashboard.refresh)["as_of"] for name, data in LISTS.items()}
    assert ages == {"batches": pytest.approx(90), "failed": pytest.approx(70)}


async def test_of_very_many_workers_and_calls_some_are_told(ran: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those at work first; how many there are is said."""
    make(ran)
    ran.client.run(lambda ledger: put_workers(ledger, 6))
    monkeypatch.setattr(worker_data, "MOST_CALLS", 1)
    async with visited(ran) as visitor:
        await visitor.get("/api/workers")
        found = worker_data.workers_data(visitor.dashboard.refresh, most=4)
    assert (len(found["workers"]), found["total"]) == (4, 6)
    assert all((len(worker["calls"]), worker["more_calls"]) == (1, 1) for worker in found["workers"])


async def test_workers_tell_what_they_run(ran: App) -> None:
    """Each call with its age and progress."""
    make(ran)
    ran.client.run(lambda ledger: put_workers(ledger, 1, batch="nightly"))
    ran.client.run(lambda ledger: put_batch(ledger, "nightly", 100, packs=1, entries=4))
    async with visited(ran) as visitor:
        (worker,) = (await visitor.get("/api/workers"))["workers"]
        assert (worker["host"], worker["environment"], worker["is_live"]) == ("node-0000", "kubernetes", True)
        assert [call["id"] for call in worker["calls"]] == ["nightly.0", "nightly.1"]
        assert worker["calls"][1]["progress"] == {"done": 1.0, "total": 10.0, "message": "at work"}
        page = await visitor.get("/api/batch/nightly")
        assert [(call["index"], call["worker"]) for call in page["running_calls"]] == [(0, worker["id"]), (1, worker["id"])]
        assert page["running"] == 2


# dead letters


async def test_failures_are_grouped_by_cause_task_and_error(ran: App) -> None:
    """Single calls by their letters' metadata, those of a batch by its log's."""
    for why in ("a", "b"):
        await fail.adelay(why)
    batch = await odd.amap(range(8))
    async with visited(ran) as visitor:
        found = await visitor.get("/api/failed")
    groups = {(each["cause"], each["task"], each["error"]): each for each in found["groups"]}
    assert groups["raised", "proj.fail", "ValueError"]["count"] == 2
    assert (groups["raised", "proj.odd", "ValueError"]["count"], groups["raised", "proj.odd", "KeyError"]["count"]) == (2, 2)
    assert groups["raised", "proj.odd", "KeyError"]["ids"] == [batch.id]
    assert found["total"] == 3
    assert {each["id"] for each in found["letters"]} >= {batch.id}


async def test_thousands_of_letters_are_counted_and_some_shown(ran: App) -> None:
    """No more ids than a page can use go over the wire."""
    make(ran)
    ran.client.run(lambda ledger: put_letters(ledger, 1200))
    async with visited(ran) as visitor:
        found = await visitor.get("/api/failed")
    assert (found["total"], len(found["letters"]), len(found["groups"])) == (1200, 500, 1)
    assert (found["groups"][0]["count"], len(found["groups"][0]["ids"])) == (1200, 20)


# a batch


async def test_a_batch_tells_which_calls_stand_how(ran: App) -> None:
    """Failures that run again successfully are failures no more."""
    batch = await odd.amap(range(8))
    async with visited(ran, write=True) as visitor:
        found = await visitor.get(f"/api/batch/{batch.id}")
        assert [state for _, _, state in found["states"]] == ["failed", "succeeded"] * 4
        assert found["failed_ids"] == [f"{batch.id}.{index}" for index in (0, 2, 4, 6)]
        lenient.append(True)
        assert (await visitor.act("retry", batch=batch.id, error="KeyError"))["done"] == 2
        found = await settled(visitor, f"/api/batch/{batch.id}")
        assert (found["failed"], found["succeeded"], found["retries"]) == (2, 6, 1)
        assert {"type": "ValueError", "count": 2} in [{name: each[name] for name in ("type", "count")} for each in found["errors"]]
        (group,) = (await settled(visitor, "/api/failed"))["groups"]
        assert (group["batch"], group["count"], group["error"]) == (batch.id, 2, "")
        assert (await visitor.act("retry", batch=batch.id))["done"] == 2
        found = await settled(visitor, f"/api/batch/{batch.id}")
        assert (found["failed"], found["succeeded"]) == (0, 8)
        assert not (await settled(visitor, "/api/failed"))["groups"]


@pytest.mark.parametrize("name", ["nothing", "0" * 20])
async def test_a_batch_that_is_not_there_is_said_to_be_none(ran: App, name: str) -> None:
    make(ran)
    async with visited(ran) as visitor:
        found = await visitor.get(f"/api/batch/{name}")
        assert "There is no batch" in found["problem"]
        assert found["problem_since"] is None
        for path in ("batch/no%20name!", "call/no%2Fname", "call/no%2Fname/logs"):
            found = await visitor.get(f"/api/{path}")
            assert (found["id"][:2], found["problem_since"]) == ("no", None), "else the page says that the account is not reached"
            assert found["problem"]


async def test_a_batch_that_is_removed_while_somebody_looks_is_shown_no_more(ran: App) -> None:
    """Its numbers are true no more, and nothing will make them so again."""
    batch = await odd.amap(range(6))
    async with visited(ran) as visitor:
        assert (await visitor.get(f"/api/batch/{batch.id}"))["calls"] == 6
        await ran.batch(batch.id).aforget()
        found = await visitor.get(f"/api/batch/{batch.id}")
    assert (found["calls"], found["problem_since"]) == (None, None)
    assert "removed" in found["problem"]


def test_a_map_of_very_many_states_stays_small_and_shows_the_worst() -> None:
    """A million calls in turns become equal parts; one failure among thousands of successes is seen."""
    states = [(index, index, "succeeded" if index % 100 else "failed") for index in range(900_000)]
    runs, is_exact = state_map(states, 1_000_000)
    assert not is_exact
    assert len(runs) <= MOST_RUNS
    assert runs[0] == [0, 899_999, "failed"]
    assert runs[-1] == [900_000, 999_999, "waiting"]
    assert sum(int(last) - int(first) + 1 for first, last, _ in runs) == 1_000_000


# a call


async def test_a_call_that_succeeded(ran: App) -> None:
    """Its value is shown where its codec is safe."""
    handle = await add.adelay(2, second=3)
    async with visited(ran) as visitor:
        found = await visitor.get(f"/api/call/{handle.id}")
    assert (found["state"], found["task"], found["attempts"][0]["number"]) == ("succeeded", "proj.add", 1)
    assert found["value"]["shown"]["text"] == "5"


async def test_a_call_that_failed_tells_why_and_with_what(ran: App) -> None:
    """Traceback, failure, budgets, and arguments from its dead letter; of a pickle its size and the texts in it."""
    handle = await fail.adelay("it broke")
    async with visited(ran) as visitor:
        found = await visitor.get(f"/api/call/{handle.id}")
    assert (found["state"], found["failure"]["type"], found["failure"]["message"]) == ("failed", "ValueError", "it broke")
    assert "raise ValueError(why)" in found["traceback"]
    assert found["budget"] == {"errors": 0, "deaths": 0, "preemptions": 0}
    assert "bytes of cloudpickle" in found["arguments"]["text"]
    assert found["arguments"]["strings"] == ["it broke"]


async def test_runs_that_came_before_are_told(ran: App) -> None:
    """Each run with what ended it."""
    handle = await fail.adelay("first")
    lenient.append(True)
    await ran.dead_letters.aretry(handle.id)
    async with visited(ran) as visitor:
        found = await visitor.get(f"/api/call/{handle.id}")
    assert [(each["run"], each["cause"]) for each in found["attempts"]] == [(1, "raised"), (2, "succeeded")]


async def test_a_log_begins_anew_where_somebody_else_has_the_call_run_again(waiting: App) -> None:
    """The old run's log had ended; the page of the call notices, and asks for the new one's."""
    handle, log = await fail.adelay("once"), "/api/call/{}/logs"

    async def give_up(ledger: Ledger) -> None:
        (message,) = await (await ledger.queue("default")).receive(1, lease_seconds=3600.0)
        call = ledger.wire.unseal_message(message.body, "default")
        assert isinstance(call, Call)
        ended = Outcome(call.id, 1, State.FAILED, "token", call.task, "default", failure=Failure(Cause.RAISED, "ValueError", "no"))
        await ledger.commit(ended)
        await ledger.bury(DeadLetter("raised", ended, call), "default", call.id, 1)

    waiting.client.run(give_up)
    async with visited(waiting) as visitor:
        assert (await visitor.get(log.format(handle.id)))["ended"]
        assert (await visitor.get(f"/api/call/{handle.id}"))["state"] == "failed"
        await waiting.dead_letters.aretry(handle.id)
        assert (await visitor.get(f"/api/call/{handle.id}"))["state"] == "waiting"
        assert not (await visitor.get(log.format(handle.id)))["ended"]


async def test_a_call_that_waits_is_found_in_its_queue(waiting: App) -> None:
    """With its arguments; one that nobody knows is only pending."""
    handle = await add.adelay(7)
    async with visited(waiting) as visitor:
        found = await visitor.get(f"/api/call/{handle.id}")
        assert (found["state"], found["task"], found["queue"], found["arguments"]["text"]) == (
            "waiting",
            "proj.add",
            "default",
            "7",
        )
        unknown = await visitor.get("/api/call/abcdefghijklmnop-000000000000")
        assert (unknown["state"], unknown["attempts"], unknown["arguments"]) == ("pending", [], None)


async def test_a_call_that_runs_tells_how_far_it_is(waiting: App) -> None:
    """From what its worker said last."""
    batch = await odd.amap(range(100))
    waiting.client.run(lambda ledger: put_workers(ledger, 60, batch=batch.id))
    async with visited(waiting) as visitor:
        found = await visitor.get(f"/api/call/{batch.id}.99")
    assert (found["state"], found["worker"]) == ("running", "node-0049-1-abcd")
    assert found["progress"] == {"done": 1.0, "total": 10.0, "message": "at work"}
    assert found["attempts"][-1]["cause"] == "running"


async def test_a_call_that_was_forgotten_or_cancelled_says_so(ran: App) -> None:
    handle = await add.adelay(1)
    await handle.aforget()
    with pytest.raises(ResultGone):
        await handle.aresult()
    async with visited(ran, write=True) as visitor:
        assert (await visitor.get(f"/api/call/{handle.id}"))["state"] == "forgotten"
        unknown = "abcdefghijklmnop-000000000000"
        assert (await visitor.act("cancel", ids=[unknown]))["done"] == 1
        assert (await visitor.get(f"/api/call/{unknown}"))["state"] == "cancelled"


async def test_a_batchs_call_shows_its_own_arguments(ran: App) -> None:
    """They are read from its pack, in whichever way they lie there."""
    batch = await pair.amap(["one", "two"], [[1], [2, 3]])
    single = await add.amap([10, 20])
    pickled = await odd.amap([1, 3])
    async with visited(ran) as visitor:
        assert (await visitor.get(f"/api/call/{batch.id}.1"))["arguments"]["text"] == "['two', [2, 3]]"
        assert (await visitor.get(f"/api/call/{single.id}.1"))["arguments"]["text"] == "[20]"
        assert "cloudpickle" in (await visitor.get(f"/api/call/{pickled.id}.1"))["arguments"]["text"]
        missing = await visitor.get(f"/api/call/{pickled.id}.99")
        assert "none of index 99" in missing["problem"]


async def test_a_log_is_told_by_and_by(ran: App) -> None:
    """Lines have numbers, and each answer says which comes next; control characters of what was printed are spelled out."""
    handle = await talk.adelay(5)

    async def put_log(ledger: Any) -> None:
        lines = [f"{1000 + number}.000 o line {number}\x1b[31m\tend\n" for number in range(5000)]
        store = await ledger.store()
        await store.append(f"{layout.call_logs(handle.id)}0001-0001-abcd", "".join(lines).encode(), at=0)

    ran.client.run(put_log)
    async with visited(ran) as visitor:
        found = await visitor.get(f"/api/call/{handle.id}/logs?after=0")
        assert (found["from"], found["next"], found["ended"]) == (0, 2000, False)
        assert found["lines"][3]["text"] == "line 3\\x1b[31m\tend"
        assert (found["lines"][3]["at"], found["lines"][3]["stream"], found["lines"][3]["attempt"]) == (1003.0, "stdout", 1)
        found = await visitor.get(f"/api/call/{handle.id}/logs?after=4000")
        assert (found["from"], found["next"]) == (4000, 5000)
        found = await visitor.get(f"/api/call/{handle.id}/logs?after=5000")
        assert (found["lines"], found["next"], found["ended"]) == ([], 5000, True)
        assert (await visitor.get(f"/api/call/{handle.id}/logs?after=-1"))["from"] == 0


async def test_nothing_is_ever_unpickled(waiting: App) -> None:
    """Neither arguments, nor values, nor exceptions, whoever put them there."""
    data = pickle.dumps((("a text", Bomb()), {}))
    assert arguments.strings_in(data)[0] == "a text"
    for cut in range(len(data)):
        arguments.strings_in(data[:cut])
    assert arguments.strings_in(b"JOBQ-5\r\n" + bytes(8)) == []
    assert arguments.shown_value(data, "cloudpickle")["text"] == f"({len(data)} bytes of cloudpickle)"
    handle = await fail.adelay(Bomb())  # type: ignore[arg-type]
    async with visited(waiting) as visitor:
        found = await visitor.get(f"/api/call/{handle.id}")
    assert (found["state"], "cloudpickle" in found["arguments"]["text"]) == ("waiting", True)


async def test_what_users_wrote_is_text_without_control_characters(ran: App) -> None:
    """Names and errors arrive as they are, but for what could turn a terminal or a line around."""
    handle = await evil.adelay()
    async with visited(ran) as visitor:
        call = await visitor.get(f"/api/call/{handle.id}")
        failed = await visitor.get("/api/failed")
    said = [call["failure"]["message"], call["attempts"][0]["error"], call["traceback"], str(failed["letters"])]
    for text in said:
        assert "<img src=x onerror=alert(1)>" in text
        assert not {"\x1b", "\u202e"} & set(text)


# actions


async def test_queues_are_paused_resumed_and_drained(waiting: App) -> None:
    """And the page shows it."""
    make(waiting)
    async with visited(waiting, write=True) as visitor:
        for name, shows in (("pause", True), ("resume", False)):
            assert (await visitor.act(name, queue="default"))["done"] == 1
            assert (await settled(visitor, "/api/overview"))["queues"][0]["paused"] is shows
        assert (await visitor.act("drain", queue="default"))["done"] == 1
        assert (await settled(visitor, "/api/overview"))["queues"][0]["drained_at"] > 0
        assert (await visitor.act("pause", queue="nowhere"))["status"] == 400
        assert (await visitor.act("explode", queue="default"))["status"] == 400


async def test_calls_and_batches_are_cancelled(waiting: App) -> None:
    """Twice does what once did; what cannot be cancelled says why."""
    single, batch = await add.adelay(1), await add.amap(range(3))
    async with visited(waiting, write=True) as visitor:
        for _ in range(2):
            answer = await visitor.act("cancel", ids=[single.id, batch.id, f"{batch.id}.1"])
            assert answer["done"] == 2
            assert "as a whole" in answer["left"][f"{batch.id}.1"]
        assert (await visitor.get(f"/api/batch/{batch.id}"))["is_cancelled"] is True
    assert await single.astatus() == "cancelled"


async def test_a_group_of_letters_is_retried(ran: App) -> None:
    """All that were seen of it; and there is nothing left to retry then."""
    handles = [await fail.adelay(why) for why in "abc"]
    async with visited(ran, write=True) as visitor:
        await visitor.get("/api/failed")
        lenient.append(True)
        group = {"cause": "raised", "task": "proj.fail", "error": "ValueError"}
        assert (await visitor.act("retry", group=group))["done"] == 3
        assert not (await settled(visitor, "/api/failed"))["total"]
        answer = await visitor.act("retry", group=group)
        assert (answer["status"], "none of them" in answer["problem"]) == (400, True)
    assert [await handle.astatus() for handle in handles] == ["succeeded"] * 3


async def test_a_row_of_a_batch_is_about_that_batch_alone(ran: App) -> None:
    """Two batches of one task fail alike, and so does a single call: each has a row, and an order touches no other one."""
    first, second = await odd.amap(range(6)), await odd.amap(range(6))
    single = await odd.adelay(0)
    async with visited(ran, write=True) as visitor:
        rows = [row for row in (await settled(visitor, "/api/failed"))["groups"] if row["error"] == "ValueError"]
        assert {row["batch"] for row in rows} == {first.id, second.id, None}
        lenient.append(True)
        (mine,) = (row for row in rows if row["batch"] == first.id)
        assert (await visitor.act("retry", group=mine))["done"] == mine["count"] == 2
        assert (len(await first.afailures()), len(await second.afailures())) == (1, 3)
        assert await single.astatus() == "failed"
        (alone,) = (row for row in rows if row["batch"] is None)
        assert (await visitor.act("purge", group=alone))["done"] == 1
        left = await settled(visitor, "/api/failed")
    assert {letter["id"] for letter in left["letters"]} == {first.id, second.id}


@pytest.mark.parametrize(
    ("calls", "running", "rate", "left"),
    [(0, 0, 1.0, 0.0), (None, 0, 1.0, None), (10, 4, 2.0, 5.0), (10, 4, 0.0, None), (4, 4, 2.0, None), (3, 4, 2.0, None)],
)
def test_time_left_is_not_known_of_the_last_calls(calls: int | None, running: int, rate: float, left: float | None) -> None:
    """Once all that is left runs, how fast calls ended says nothing: the last ones may be the long ones."""
    assert seconds_left(calls, running, rate) == left


async def test_letters_are_purged(ran: App) -> None:
    """Those that are named; an unknown one is left, with the reason."""
    handle = await fail.adelay("x")
    async with visited(ran, write=True) as visitor:
        answer = await visitor.act("purge", ids=[handle.id, "abcdefghijklmnop-000000000009"])
        assert (answer["done"], list(answer["left"])) == (1, ["abcdefghijklmnop-000000000009"])
        assert not (await settled(visitor, "/api/failed"))["total"]


@pytest.mark.parametrize("ids", [None, [], "x", [1], [""], [f"x{number}" for number in range(1001)]])
async def test_an_action_names_what_it_is_about(waiting: App, ids: Any) -> None:
    """Nothing, nonsense and too much are refused in one line."""
    make(waiting)
    async with visited(waiting, write=True) as visitor:
        for name in ("cancel", "retry", "purge"):
            answer = await visitor.act(name, ids=ids)
            assert answer["status"] == 400
            assert "\n" not in answer["problem"]
