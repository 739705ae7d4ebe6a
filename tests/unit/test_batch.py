"""A batch as its reader meets it: what is handed out and when, what waiting costs, and what happens to failures that run again."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from logged import CANCELLED, headers, log_entry
from storage_spy import between, blobs, counted

from ai4s.jobq import (
    App,
    Batch,
    CallCancelled,
    DeclarationError,
    JobQError,
    NotFinished,
    ResultTimeout,
    WouldDeadlock,
    as_completed,
    gather,
    wait,
)
from ai4s.jobq.errors import Malformed
from ai4s.jobq.maps import retrying as batch_retrying
from ai4s.jobq.running import RunningCall, running

declared = App("batch-unit")


@declared.task
def square(x: int) -> int:
    return x * x


@declared.task(codec="msgpack")
def plain(x: int) -> int:
    return x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's tasks, on an empty store, without a worker."""
    return jobq_place(declared)


def ended(app: App, values: dict[int, object], *, batch: str = "b", count: int | None = None, **options: Any) -> Batch[int]:
    """A batch of one pack, of which these calls have ended."""
    made = square.map(range(count or len(values)), batch=batch, pack=4096, **options)
    log_entry(app, batch, values)
    return made


def rerun(app: App, values: dict[int, object], *, retry: int = 1, batch: str = "b") -> None:
    """What came of calls that ran again."""
    log_entry(app, batch, values, log=f"000000.r{retry}")


# Reading.


def test_values_come_in_the_order_of_the_items(app: App) -> None:
    """Whatever the order in which calls ended."""
    batch = square.map(range(6), batch="b", pack=3)
    log_entry(app, "b", {5: 25, 3: 9, 4: 16}, log="000001")
    log_entry(app, "b", {1: 1}, log="000000")
    log_entry(app, "b", {2: 4, 0: 0}, log="000000", seq=1)
    assert list(batch) == list(app.batch("b")) == [0, 1, 4, 9, 16, 25]
    assert sorted(outcome.index for outcome in batch.as_completed()) == list(range(6))


def test_values_are_handed_out_as_soon_as_they_are_next(app: App) -> None:
    """The others are not waited for."""
    values = iter(ended(app, {0: 0, 1: 1, 3: 9}, count=4))
    assert [next(values), next(values)] == [0, 1]
    log_entry(app, "b", {2: 4}, seq=1)
    assert list(values) == [4, 9]


def test_what_was_given_away_is_found(app: App) -> None:
    """An entry says which calls go on in a log of their own, and that one may give away again."""
    batch = square.map(range(6), batch="b", pack=6)
    log_entry(app, "b", {0: 0}, gives=(3, 4, 5))
    log_entry(app, "b", {3: 9}, log="000000.000000", gives=(5,))
    log_entry(app, "b", {1: 1, 2: 4}, seq=1)
    log_entry(app, "b", {5: 25}, log="000000.000000.000000")
    log_entry(app, "b", {4: 16}, log="000000.000000", seq=1)
    assert list(batch) == [0, 1, 4, 9, 16, 25]


def test_an_outcome_tells_all(app: App) -> None:
    """Which call it was, how it ended, who ran it, for how long."""
    ended(app, {0: 0, 1: ValueError("one"), 2: CANCELLED}, key=lambda x: f"k{x}")
    good, bad, gone = sorted(app.batch("b").as_completed(), key=lambda outcome: outcome.index)
    assert (good.key, good.state, good.ok, good.value, good.error, good.attempts) == ("k0", "succeeded", True, 0, None, 1)
    assert (bad.key, bad.state, bad.ok) == ("k1", "failed", False)
    assert (gone.state, gone.attempts) == ("cancelled", 0)
    assert (good.worker, good.seconds, good.record.call) == ("worker-1", 0.5, "b.0")
    assert repr(bad) == "<Outcome 1 of batch b: failed>"
    with pytest.raises(ValueError, match="one"):
        _ = bad.value
    with pytest.raises(CallCancelled, match=r"b\.2"):
        _ = gone.value
    assert pickle.loads(pickle.dumps(good)).value == 0


def test_results_raise_or_return(app: App) -> None:
    """The first failure in the order of the items is raised, without waiting for what comes after it."""
    batch = ended(app, {0: 0, 1: ValueError("one")}, count=3)
    with pytest.raises(ValueError, match="one"):
        batch.results()
    log_entry(app, "b", {2: 4}, seq=1)
    zero, error, two = batch.results(on_error="return")
    assert (zero, type(error), two) == (0, ValueError, 4)
    with pytest.raises(DeclarationError, match="on_error must be 'raise' or 'return'; got 'ignore'"):
        batch.results(on_error="ignore")  # type: ignore[arg-type]


async def test_async_twins(app: App) -> None:
    """`await`, `async for`, and the methods with the prefix `a`."""
    batch = await asyncio.to_thread(ended, app, {0: 0, 1: 1})
    assert await batch == [0, 1]
    assert [value async for value in batch] == [0, 1]
    assert sorted([outcome.index async for outcome in batch.as_completed()]) == [0, 1]
    assert await batch.aresults(on_error="return") == [0, 1]
    assert (await batch.aprogress()).done == 2
    assert await batch.afailures() == []
    assert await batch.aretry_failures() == 0


@pytest.mark.parametrize("read", [lambda batch: batch.results(timeout=0), lambda batch: list(batch.as_completed(timeout=0))])
def test_time_may_run_out(read: Callable[[Batch[int]], Any], app: App) -> None:
    """What there is was handed out before."""
    with pytest.raises(ResultTimeout, match="No outcome of batch b within 0 s; it goes on"):
        read(ended(app, {0: 0}, count=2))


def test_a_task_must_not_wait_for_a_batch(app: App) -> None:
    """Its slot could be needed."""
    batch = ended(app, {0: 0})
    me = RunningCall(id="x", run=1, attempt=1, task="t", queue="default", worker="w", root="x")
    with running(me), pytest.raises(WouldDeadlock, match="must not wait for call b"):
        list(batch)


def test_an_unknown_batch_is_said_to_be_one(app: App) -> None:
    """With the place that was looked at."""
    for ask in (list, lambda batch: batch.progress(), lambda batch: batch.cancel(), lambda batch: batch.handle(0).done()):
        with pytest.raises(JobQError, match="There is no batch 'nobody' of the app 'batch-unit' at local://"):
            ask(app.batch("nobody"))  # type: ignore[operator]
    with pytest.raises(DeclarationError, match="as in 'campaign-1'"):
        app.batch("No Body")


def test_a_reader_waits_for_calls_that_are_still_submitted(app: App) -> None:
    """Only who submits knows how many there are."""
    given, go_on = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield from range(8)
        given.set()
        assert go_on.wait(60)
        yield 8

    mapping = threading.Thread(target=lambda: square.map(source(), batch="b"))
    mapping.start()
    assert given.wait(60)
    while not headers(app):
        threading.Event().wait(0.01)
    log_entry(app, "b", {x: x for x in range(8)})
    values = iter(app.batch("b"))
    assert [next(values) for _ in range(8)] == list(range(8))
    assert not app.batch("b").progress().is_whole
    go_on.set()
    mapping.join(60)
    log_entry(app, "b", {8: 8}, log="000001")
    assert list(values) == [8]


def test_the_codec_of_a_batch_is_that_of_its_task(app: App) -> None:
    """A record that says otherwise could have a pickle decoded for a task that was declared safe."""
    plain.map([1], batch="b")
    assert app.client.run(app.batch("b").meta).call.codec == "msgpack"
    batch: Batch[int] = pickle.loads(pickle.dumps(Batch(app.client, "b", codec="cloudpickle")))
    with pytest.raises(Malformed, match="Batch b is encoded with 'msgpack', and its task with 'cloudpickle'"):
        batch.progress()


def test_batches_are_equal_that_mean_the_same(app: App) -> None:
    """So they can be members of sets."""
    batch = ended(app, {0: 0})
    assert {batch, app.batch("b"), pickle.loads(pickle.dumps(batch))} == {batch}
    assert batch != app.batch("c")
    assert repr(batch).startswith("<Batch b of batch-unit at local://")


# What it costs.


def test_reading_costs_a_request_for_each_entry(app: App) -> None:
    """Whoever submitted the batch knows the rest."""
    batch = square.map(range(10_000), batch="b", pack=2500)
    for pack in range(4):
        log_entry(app, "b", {x: x for x in range(2500 * pack, 2500 * pack + 2500)}, log=f"{pack:06d}")
    with counted(app) as requests:
        assert sum(batch) == sum(range(10_000))
    assert sum(requests.values()) <= 6, requests


def test_waiting_costs_a_bounded_number_of_looks(app: App) -> None:
    """They become ever rarer: in the first second about fifty, each of one request where there is one pack."""
    batch = ended(app, {}, count=3)
    with counted(app) as requests, pytest.raises(ResultTimeout):
        batch.results(timeout=1)
    assert sum(requests.values()) <= 75, requests
    handle = app.batch("b").handle(1)
    handle.done()
    with counted(app) as requests, pytest.raises(ResultTimeout):
        handle.result(timeout=1)
    assert sum(requests.values()) <= 75, requests


# Handles.


def test_a_handle_of_one_call(app: App) -> None:
    """It asks for that call alone."""
    batch = ended(app, {0: 0, 1: ValueError("one"), 2: CANCELLED}, count=4)
    good, bad, gone, running_still = (batch.handle(n) for n in range(4))
    assert (good.id, good.result(), good.done(), good.status()) == ("b.0", 0, True, "succeeded")
    assert (type(bad.exception()), bad.status()) == (ValueError, "failed")
    assert gone.status() == "cancelled"
    assert (running_still.done(), running_still.status()) == (False, "pending")
    with pytest.raises(ResultTimeout, match=r"call b\.3"):
        running_still.result(timeout=0)
    assert app.handle("b.0") == good == pickle.loads(pickle.dumps(good))
    assert pickle.loads(pickle.dumps(good)).result() == 0


def test_handles_of_a_batch_can_be_waited_for_with_others(app: App) -> None:
    """Each is one more look."""
    batch = ended(app, {0: 0, 1: ValueError("one")}, count=12)
    assert gather(batch.handle(0), timeout=5) == [0]
    with pytest.raises(ValueError, match="one"):
        gather(*(batch.handle(n) for n in range(2)), timeout=5)
    assert {handle.id for handle in as_completed([batch.handle(0), batch.handle(1)], timeout=5)} == {"b.0", "b.1"}
    done, not_done = wait([square.delay(1), *(batch.handle(n) for n in range(12))], timeout=0)
    assert {handle.id for handle in done} == {"b.0", "b.1"}
    assert len(not_done) == 11


def test_a_call_that_the_batch_does_not_have(app: App) -> None:
    """Said as soon as it is sure."""
    batch = ended(app, {0: 0})
    for reader in (batch, app.batch("b")):
        with pytest.raises(JobQError, match="The batch b has 1 calls, and none of index 7"):
            reader.handle(7).result(timeout=5)
    for wrong in (-1, True, "0", 2**53):
        with pytest.raises(DeclarationError, match="index is the place of an item, from 0 on"):
            batch.handle(wrong)  # type: ignore[arg-type]


def test_one_call_is_not_cancelled_or_forgotten_alone(app: App) -> None:
    """The error says what can be done."""
    batch = ended(app, {0: 0})
    with pytest.raises(JobQError, match=r"cancelled as a whole: app\.batch\('b'\)\.cancel\(\)"):
        batch.handle(0).cancel()
    with pytest.raises(JobQError, match=r"Call b\.0 belongs to a batch"):
        batch.handle(0).forget()


# Failures that run again.


def test_failures_are_sent_again_and_nothing_else(app: App) -> None:
    """As the next run, for a log of its own."""
    batch = ended(app, {0: 0, 1: ValueError("one"), 2: 4, 3: ValueError("three")})
    assert [failure.index for failure in batch.failures()] == [1, 3]
    assert batch.retry_failures() == 2
    again = headers(app)[-1]
    assert (again.todo, again.run, again.log, again.resent) == ("1,3", 2, "000000.r1", True)


def test_a_reader_waits_for_what_runs_again(app: App) -> None:
    """The new outcome counts; a failure that stands is not handed out any more."""
    batch = ended(app, {0: 0, 1: ValueError("one")})
    batch.retry_failures()
    assert batch.failures() == []
    assert batch.handle(1).status() == "pending"
    for read in (lambda: batch.results(timeout=0), lambda: list(batch.as_completed(timeout=0)), lambda: batch.handle(1).result(0)):
        with pytest.raises(ResultTimeout):
            read()
    rerun(app, {1: 1})
    assert batch.results(timeout=5) == app.batch("b").results(timeout=5) == [0, 1]
    assert sorted(outcome.record.run for outcome in batch.as_completed(timeout=5)) == [1, 2]
    assert batch.handle(1).result(timeout=5) == 1


def test_a_reader_that_waits_already_sees_the_new_run(app: App) -> None:
    """The retry may be asked for while somebody iterates."""
    batch = ended(app, {1: ValueError("one")}, count=2)
    values = iter(batch)
    batch.retry_failures()
    rerun(app, {1: 1})
    log_entry(app, "b", {0: 0}, seq=1)
    assert list(values) == [0, 1]


def test_failures_can_be_retried_again_and_again(app: App) -> None:
    """From any process; each time those whose newest run has failed."""
    ended(app, {0: ValueError("zero"), 1: ValueError("one"), 2: 4})
    assert app.batch("b").retry_failures() == 2
    rerun(app, {0: 0, 1: ValueError("again")})
    assert [failure.index for failure in app.batch("b").failures()] == [1]
    assert app.batch("b").retry_failures() == 1
    assert (headers(app)[-1].todo, headers(app)[-1].run) == ("1", 3)
    rerun(app, {1: 1}, retry=2)
    assert app.batch("b").retry_failures() == 0
    assert app.batch("b").results(timeout=5) == [0, 1, 4]


def test_what_runs_again_is_not_sent_twice(app: App) -> None:
    """Asking again while it runs changes nothing."""
    batch = ended(app, {0: ValueError("zero")})
    batch.retry_failures()
    before = len(headers(app))
    assert batch.retry_failures() == 0
    assert len(headers(app)) == before


def test_a_retry_that_was_cut_short_is_finished_by_asking_again(app: App) -> None:
    """Its messages may not have been sent."""
    batch = ended(app, {0: ValueError("zero")})

    async def around(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if found.__name__ == "put" and (kwargs.get("metadata") or {}).get("sent") == "yes":
            raise OSError("no disk")
        return await found(*args, **kwargs)

    def through(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return found(*args, **kwargs) if found.__name__ == "list" else around(found, *args, **kwargs)

    with between(app, through), pytest.raises(OSError, match="no disk"):
        batch.retry_failures()
    before = len(headers(app))
    assert batch.retry_failures() == 0
    assert len(headers(app)) == before + 1


def test_of_two_who_ask_at_once_one_is_told(app: App) -> None:
    """And may ask again in a moment."""
    batch = ended(app, {0: ValueError("zero")})

    def through(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if found.__name__ == "put" and "retries/000001" in str(args[0]) and not others:
            others.append(True)
            return ask_first(found, *args, **kwargs)
        return found(*args, **kwargs)

    async def ask_first(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        await app.batch("b").run_failures(await app.client.session.ledger())
        return await found(*args, **kwargs)

    others: list[bool] = []
    with between(app, through), pytest.raises(NotFinished, match="ask again in a moment"):
        batch.retry_failures()


def test_a_great_many_failures_are_asked_for_in_parts(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record has a bound."""
    monkeypatch.setattr(batch_retrying, "RETRIED_AT_A_TIME", 2)
    batch = ended(app, {n: ValueError(str(n)) for n in range(5)})
    assert batch.retry_failures() == 5
    assert len(blobs(app, "batches/b/retries/")) == 3
    assert batch.progress().failed == 0
    for retry, values in enumerate(({0: 0, 1: 1}, {2: 2, 3: 3}, {4: 4}), 1):
        rerun(app, dict(values), retry=retry)
    assert batch.results(timeout=5) == [0, 1, 2, 3, 4]


def test_cancelling_leaves_a_request(app: App) -> None:
    """It is asked for once, and may be repeated."""
    batch = ended(app, {}, count=2)
    batch.cancel()
    batch.cancel()
    assert blobs(app, "batches/b/cancelled") == ["batches/b/cancelled"]
