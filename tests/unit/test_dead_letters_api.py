"""Dead letters as a person meets them: listed, filtered, retried, purged; and handles, which follow a retry. There is no worker."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from storage_spy import between, blobs, calls, counted, depth

from ai4s.jobq import (
    App,
    DeclarationError,
    Handle,
    ResultGone,
    ResultTimeout,
    TaskFailed,
    agather,
    as_completed,
    current,
    gather,
    layout,
    letters,
    wait,
)
from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import Malformed
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.letters import LETTERS_IN_FLIGHT
from ai4s.jobq.message import Call, Cause, DeadLetter, Failure, Outcome, State
from ai4s.jobq.testing import inline

declared = App("letters")
NOW = 1_000_000.0


@declared.task(name="proj.step")
def step(x: Any = None) -> Any:
    return x


@declared.task(name="proj.other", queue="gpu")
def other(x: Any = None) -> Any:
    return x


@declared.task(name="proj.picky")
def picky(x: int) -> int:
    if not allowed:
        raise ValueError(x)
    return x


allowed: list[bool] = []


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file, on an empty store."""
    return jobq_place(declared)


def take(app: App, handle: Handle[Any], queue: str = "default") -> Call:
    """Take a call's message off its queue, as a worker would."""

    async def receive(ledger: Ledger) -> Call:
        lines, others = await ledger.queue(queue), []
        while True:
            for delivery in await lines.receive(1, lease_seconds=60):
                call = ledger.wire.unseal_call(delivery.body, queue)
                if call.id == handle.id:
                    await asyncio.gather(lines.delete(delivery.receipt), *(lines.release(other) for other in others))
                    return call
                others.append(delivery.receipt)

    return app.client.run(receive)


def end(app: App, call: Call, state: State = State.SUCCEEDED, **known: Any) -> None:
    """Write a run's outcome, and the dead letter of a failure, as a worker would."""

    async def settle(ledger: Ledger) -> None:
        outcome = Outcome(call.id, call.run, state, "t", call.task, call.queue, call.codec, attempts=2, worker="w-1", **known)
        standing = await ledger.commit(outcome)
        if state is State.FAILED:
            await ledger.bury(DeadLetter("raised", standing, call), call.queue, call.id, call.run)

    app.client.run(settle)


def fail(app: App, handle: Handle[Any], cause: Cause = Cause.RAISED, queue: str = "default", **known: Any) -> Call:
    """Have the call on the queue fail."""
    call = take(app, handle, queue)
    failure = Failure(cause, known.pop("type", "ValueError"), "so it went", "the traceback")
    end(app, call, State.FAILED, failure=failure, **{"ended": NOW, **known})
    return call


def succeed(app: App, handle: Handle[Any], value: Any) -> None:
    """Have the call on the queue succeed."""
    end(app, take(app, handle), value=codec_named("cloudpickle").dumps(value).data)


def failed(app: App, n: int) -> list[Handle[Any]]:
    """So many calls that have failed."""
    handles = [step.delay(number) for number in range(n)]
    for handle in handles:
        fail(app, handle)
    return handles


def bury_text(app: App, text: str, subject: str = "a-message", queue: str = "default") -> None:
    """Keep a message that could not be read, as a worker would."""
    letter = DeadLetter("Malformed: The message is not base64.", raw=text)
    app.client.run(lambda ledger: ledger.bury(letter, queue, subject, 1))


# listing


def test_a_letter_tells_what_happened(app: App) -> None:
    """Which call of which task, why, after how many attempts, on which worker, when, and with which traceback."""
    handle = step.delay(1)
    fail(app, handle)

    (letter,) = app.dead_letters.list()
    assert (letter.id, letter.queue, letter.run, letter.task) == (handle.id, "default", 1, "proj.step")
    assert (letter.cause, letter.error, letter.message, letter.traceback) == ("raised", "ValueError", "so it went", "the traceback")
    assert (letter.attempts, letter.worker, letter.ended) == (2, "w-1", NOW)
    assert (letter.raw, letter.retrying) == ("", False)
    assert app.dead_letters.get(handle.id) == letter


def test_a_message_that_could_not_be_read_is_listed_with_its_text(app: App) -> None:
    """Under its own id, with the reason."""
    bury_text(app, "garbage")
    (letter,) = app.dead_letters.list()
    assert (letter.id, letter.cause, letter.error, letter.raw) == ("a-message", "unreadable", "Malformed", "garbage")
    assert letter.message == "The message is not base64."
    assert app.dead_letters.get("a-message") == letter


def test_there_may_be_no_letters(app: App) -> None:
    """Of an app that has never been used there are none, and none of an unknown id."""
    assert app.dead_letters.list() == []
    assert app.dead_letters.get("unknown") is None
    assert app.dead_letters.get("not / an id") is None


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, "abcd"),
        ({"queue": "gpu"}, "c"),
        ({"queue": "default"}, "abd"),
        ({"queue": "unused"}, ""),
        ({"task": "proj.step"}, "ab"),
        ({"task": "step"}, "ab"),
        ({"task": "tep"}, ""),
        ({"cause": "died"}, "b"),
        ({"cause": Cause.RAISED}, "ac"),
        ({"cause": "unreadable"}, "d"),
        ({"error": "NoModel"}, "c"),
        ({"error": "proj.NoModel"}, "c"),
        ({"error": "Malformed"}, "d"),
        ({"task": "step", "error": "ValueError", "cause": None}, "a"),
        ({"older_than": timedelta(days=1)}, "abc"),
        ({"newer_than": 86_400}, "d"),
        ({"older_than": 3600, "newer_than": 36_000}, ""),
    ],
    ids=str,
)
def test_filters_choose(app: App, filters: dict[str, Any], found: str) -> None:
    """By queue, task, cause, type of error and age; all of them must apply. Names may be given by their last part."""
    first, second, third = step.delay("a"), step.delay("b"), other.delay("c")
    fail(app, first)
    fail(app, second, Cause.DIED, type="")
    fail(app, third, queue="gpu", type="proj.NoModel")
    bury_text(app, "d", "d")
    names = {first.id: "a", second.id: "b", third.id: "c", "d": "d"}

    assert sorted(names[letter.id] for letter in app.dead_letters.list(**filters)) == list(found)
    assert sorted(names[each] for each in app.dead_letters.purge(everything=True, **filters)) == list(found)
    assert len(app.dead_letters.list()) == 4 - len(found)


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"colour": "red"}, "no filter of dead letters"),
        ({"cause": "bad luck"}, "cause must be one of 'raised'"),
        ({"older_than": -1}, "older_than must be seconds"),
        ({"newer_than": "1h"}, "newer_than must be seconds"),
        ({"queue": "GPU"}, "lower-case"),
        ({"task": 1}, "task must be a name"),
        ({"error": ValueError}, "error must be a name"),
        ({"task": ""}, "task must be a name"),
        ({"error": ""}, "error must be a name"),
        ({"cause": ""}, "cause must be one of"),
        ({"queue": ""}, "lower-case"),
    ],
    ids=str,
)
def test_filters_that_cannot_be_are_refused(app: App, filters: dict[str, Any], says: str) -> None:
    """Before any request."""
    for method in (app.dead_letters.list, app.dead_letters.retry, app.dead_letters.purge):
        with pytest.raises(DeclarationError, match=says):
            method(**filters)


def test_nothing_is_retried_or_purged_by_an_oversight(app: App) -> None:
    """Without ids and filters, everything=True must be said; a filter of None is none."""
    failed(app, 1)
    for method in (app.dead_letters.retry, app.dead_letters.purge):
        with pytest.raises(DeclarationError, match="everything=True"):
            method()
        with pytest.raises(DeclarationError, match="everything=True"):
            method(task=None)
    assert len(app.dead_letters.list()) == 1


@pytest.mark.parametrize("subject", [5, None, b"id", ["id"]], ids=str)
def test_ids_that_are_no_strings_are_refused(app: App, subject: Any) -> None:
    """Rather than to mean no letter."""
    for method in (app.dead_letters.get, app.dead_letters.retry, app.dead_letters.purge):
        with pytest.raises(DeclarationError, match="An id is a string"):
            method(subject)


def test_a_handle_is_no_id(app: App) -> None:
    """The error says what to write instead."""
    (handle,) = failed(app, 1)
    for method in (app.dead_letters.get, app.dead_letters.retry, app.dead_letters.purge):
        with pytest.raises(DeclarationError, match=rf"pass handle\.id, '{handle.id}'"):
            method(handle)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("everything", ["no", 1, None], ids=str)
def test_everything_is_true_or_false(app: App, everything: Any) -> None:
    """A text such as "no" would count as true."""
    failed(app, 1)
    for method in (app.dead_letters.retry, app.dead_letters.purge):
        with pytest.raises(DeclarationError, match="everything must be True or False"):
            method(everything=everything)
    assert len(app.dead_letters.list()) == 1


def test_a_list_can_be_cut(app: App) -> None:
    """To so many letters, of which no more are read than it takes; the order is that of submission."""
    handles = failed(app, 2 * LETTERS_IN_FLIGHT)
    assert [letter.id for letter in app.dead_letters.list()] == [handle.id for handle in handles]
    with counted(app) as requests:
        assert [letter.id for letter in app.dead_letters.list(limit=3)] == [handle.id for handle in handles[:3]]
    assert requests == {"list": 1, "get": LETTERS_IN_FLIGHT}
    assert app.dead_letters.list(limit=0) == []
    with pytest.raises(DeclarationError):
        app.dead_letters.list(limit=-1)


def test_what_is_no_letter_is_left_out(app: App) -> None:
    """Blobs that somebody else has put there; and a letter that cannot be read is listed, cannot be retried, and can be purged."""
    (handle,) = failed(app, 1)
    name = layout.dead_letter("default", handle.id, 1)

    async def put(ledger: Ledger) -> None:
        store = await ledger.store()
        for foreign in ("failed/readme.txt", "failed/default/x", "failed/default/x.r1/y"):
            await store.put(foreign, b"hello")
        await store.put(name, b"damaged")

    app.client.run(put)
    (letter,) = app.dead_letters.list()
    assert (letter.id, letter.cause, letter.error) == (handle.id, "unreadable", "Malformed")
    done = app.dead_letters.retry(handle.id)
    assert list(done.left) == [handle.id]
    assert "cannot be read" in done.left[handle.id]
    assert app.dead_letters.purge(handle.id) == [handle.id]
    assert app.dead_letters.list() == []


# retrying


def test_a_retry_runs_the_call_again(app: App) -> None:
    """As its next run, and the handle that was there before waits for that."""
    (handle,) = failed(app, 1)
    with pytest.raises(TaskFailed):
        handle.result()

    done = app.dead_letters.retry(handle.id)
    assert (done.handles, done.put_back, done.left) == ([handle], [], {})
    (call,) = calls(app)
    assert (call.id, call.run, call.resent, call.attempt) == (handle.id, 2, True, 1)
    assert (handle.status(), handle.done()) == ("pending", False)
    assert app.dead_letters.list() == []

    succeed(app, handle, 7)
    assert (handle.result(), handle.run, handle.status()) == (7, 2, "succeeded")
    assert app.handle(handle.id).result() == 7
    assert done.handles[0].result() == 7


def test_a_retry_that_fails_has_a_letter_again(app: App) -> None:
    """Of the newest run only; each handle tells the newest error."""
    (handle,) = failed(app, 1)
    app.dead_letters.retry(handle.id)
    fail(app, handle, type="KeyError")
    (letter,) = app.dead_letters.list()
    assert (letter.id, letter.run, letter.error) == (handle.id, 2, "KeyError")
    with pytest.raises(TaskFailed, match="KeyError"):
        handle.result()
    assert app.dead_letters.retry(error="KeyError").handles == [handle]
    succeed(app, handle, 3)
    assert handle.result() == 3


def test_a_retried_call_can_be_cancelled_off_its_queue(app: App) -> None:
    """With the handle that the retry returned, whose message nobody has taken yet."""
    (handle,) = failed(app, 1)
    (again,) = app.dead_letters.retry(handle.id).handles
    assert again.cancel()
    assert depth(app) == 0
    assert handle.status() == "cancelled"


def test_messages_are_put_back_as_they_were(app: App) -> None:
    """On the queue that they came from."""
    bury_text(app, "garbage", queue="gpu")
    done = app.dead_letters.retry(cause="unreadable")
    assert (done.handles, done.put_back, done.left) == ([], ["a-message"], {})

    async def peek(ledger: Ledger) -> list[str]:
        return await (await ledger.queue("gpu")).peek(1)

    assert app.client.run(peek) == ["garbage"]
    assert app.dead_letters.list() == []


def test_what_cannot_be_retried_is_named(app: App) -> None:
    """Unknown ids, calls that have not failed or were forgotten."""
    pending, (gone,) = step.delay(), failed(app, 1)
    app.client.run(lambda ledger: ledger.forget(gone.id, 1))
    done = app.dead_letters.retry("unknown", pending.id, gone.id)
    assert (done.handles, done.put_back) == ([], [])
    assert done.left == {
        "unknown": "There is no such dead letter.",
        pending.id: "There is no such dead letter.",
        gone.id: "It was forgotten.",
    }
    assert depth(app) == 1


@pytest.mark.parametrize(
    ("state", "says"), [(State.CANCELLED, "Its run 2 was cancelled."), (State.EXPIRED, "Its run 2 has expired.")], ids=str
)
def test_a_call_whose_next_run_was_given_up_is_left(app: App, state: State, says: str) -> None:
    """Nothing is sent for it, and the answer says so."""
    (handle,) = failed(app, 1)
    app.dead_letters.retry(handle.id)
    end(app, take(app, handle), state)
    assert app.dead_letters.retry(handle.id) == ([], [], {handle.id: says}, [])
    assert depth(app) == 0


def test_a_call_whose_next_run_has_succeeded_is_among_the_handles(app: App) -> None:
    """What was asked for is done, and nothing is sent; so it is while that run waits."""
    (handle,) = failed(app, 1)
    app.dead_letters.retry(handle.id)
    assert app.dead_letters.retry(handle.id) == ([handle], [], {}, [])
    succeed(app, handle, 7)
    done = app.dead_letters.retry(handle.id)
    assert done == ([handle], [], {}, [])
    assert (done.handles[0].run, done.handles[0].result(), depth(app)) == (2, 7, 0)


def test_a_letter_that_comes_a_moment_after_the_outcome_is_waited_for(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who has seen the error may retry at once, though the worker has not written the letter yet."""
    handle = step.delay()
    call = take(app, handle)
    outcome = Outcome(call.id, 1, State.FAILED, "t", "proj.step", "default", failure=Failure(Cause.RAISED, "", "no"), ended=NOW)
    app.client.run(lambda ledger: ledger.commit(outcome))
    monkeypatch.setattr(letters, "LATE_SECONDS", 0)
    assert list(app.dead_letters.retry(handle.id).left) == [handle.id]

    monkeypatch.setattr(letters, "LATE_SECONDS", 60)
    looks = 0

    def around(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal looks
        looks += method.__name__ == "head"
        is_late = method.__name__ == "head" and looks == 3
        return (write_first if is_late else plainly)(method, *args, **kwargs)

    async def write_first(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        name = layout.dead_letter("default", call.id, 1)
        letter = app.client.session._ledger.wire.seal(DeadLetter("raised", outcome, call), name)  # type: ignore[union-attr]
        await method.__self__.put(name, letter)  # type: ignore[attr-defined]
        return await method(*args, **kwargs)

    def plainly(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    with between(app, around):
        assert list(app.dead_letters.retry(handle.id, queue="gpu").left) == [handle.id]
        assert app.dead_letters.retry(handle.id).handles == [handle]
    assert depth(app) == 1


def test_ids_and_filters_must_both_apply(app: App) -> None:
    """An id whose letter a filter leaves out is left alone."""
    first, second = failed(app, 2)
    done = app.dead_letters.retry(first.id, second.id, error="KeyError")
    assert (done.handles, set(done.left)) == ([], {first.id, second.id})
    assert app.dead_letters.purge(first.id, task="other") == []
    assert len(app.dead_letters.list()) == 2


def test_many_are_retried_at_a_bounded_rate(app: App) -> None:
    """Some hundred letters, a few dozen requests at a time; each call is sent once, and asking again sends none."""
    handles = failed(app, 300)
    under_way, most = 0, 0

    async def follow(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await method(*args, **kwargs)
        finally:
            under_way -= 1

    def around(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return (follow if asyncio.iscoroutinefunction(method) else lambda found, *a, **k: found(*a, **k))(method, *args, **kwargs)

    with between(app, around):
        done = app.dead_letters.retry(everything=True)
    assert {handle.id for handle in done.handles} == {handle.id for handle in handles}
    assert 1 < most <= LETTERS_IN_FLIGHT
    assert depth(app) == 300
    again = app.dead_letters.retry(*(handle.id for handle in handles[:10]))
    assert (len(again.handles), again.left, depth(app)) == (10, {}, 300)


async def test_each_method_has_an_async_twin(app: App) -> None:
    """With the same answers."""
    first, second = await step.adelay(1), await step.adelay(2)
    await asyncio.to_thread(fail, app, first)
    await asyncio.to_thread(fail, app, second)
    dead = app.dead_letters
    assert len(await dead.alist()) == 2
    letter = await dead.aget(first.id)
    assert letter is not None
    assert letter.id == first.id
    assert await dead.apurge(second.id) == [second.id]
    assert (await dead.aretry(first.id)).handles == [first]
    assert "letters" in repr(dead)


# purging


def test_a_purged_call_stays_failed(app: App) -> None:
    """Its outcome stays, its letter is gone for good, and it cannot be retried any more."""
    (handle,) = failed(app, 1)
    assert app.dead_letters.purge(handle.id) == [handle.id]
    assert app.dead_letters.purge(handle.id) == []
    assert app.dead_letters.get(handle.id) is None
    assert handle.status() == "failed"
    assert list(app.dead_letters.retry(handle.id).left) == [handle.id]
    assert blobs(app, "failed/") == [layout.dead_letter("default", handle.id, 1)]


def test_forgetting_a_failed_call_removes_its_letters(app: App) -> None:
    """Those of all its runs, and the markers; it cannot be retried any more."""
    (handle,) = failed(app, 1)
    app.dead_letters.retry(handle.id)
    fail(app, handle)
    app.handle(handle.id).forget()
    assert app.dead_letters.list() == []
    assert blobs(app, "retries/") == []
    with pytest.raises(ResultGone):
        handle.result()


# handles


def test_only_failures_cost_another_read(app: App) -> None:
    """A failure is looked at again each time, since somebody may have retried it; a success is kept for ever."""
    (bad,), good = failed(app, 1), step.delay()
    succeed(app, good, 1)
    with counted(app) as requests:
        assert app.handle(bad.id).status() == "failed"
        assert app.handle(good.id).status() == "succeeded"
    assert requests == {"get": 3}
    bad.status()
    good.status()
    with counted(app) as requests:
        assert (bad.status(), good.status()) == ("failed", "succeeded")
    assert requests == {"get": 1}


def test_a_handle_stays_the_same_when_it_follows(app: App) -> None:
    """In sets and dicts, and when it is pickled: it means the call, whichever run is the newest."""
    (handle,) = failed(app, 1)
    seen = {handle}
    app.dead_letters.retry(handle.id)
    succeed(app, handle, 5)
    assert handle.result() == 5
    assert handle in seen
    assert handle == app.handle(handle.id)
    assert pickle.loads(pickle.dumps(handle)).run == 2


def test_one_handle_may_follow_on_many_threads(app: App) -> None:
    """Looks at the same time do not lead it past the newest run."""
    (handle,) = failed(app, 1)
    app.dead_letters.retry(handle.id)

    async def look(ledger: Ledger) -> None:
        await asyncio.gather(*(handle.look(ledger) for _ in range(20)))

    app.client.run(look)
    assert handle.run == 2
    succeed(app, handle, 5)
    app.client.run(look)
    assert (handle.run, handle.result()) == (2, 5)


def test_a_marker_that_is_not_the_apps_is_refused(app: App) -> None:
    """Else anybody who can write there could have callers wait for ever."""
    (handle,) = failed(app, 1)

    async def put(ledger: Ledger) -> None:
        await (await ledger.store()).put(layout.retry(handle.id, 2), b"forged")

    app.client.run(put)
    with pytest.raises(Malformed):
        handle.result()


@pytest.mark.parametrize("n", [3, 40], ids=["looked up one by one", "listed"])
def test_waits_are_for_the_newest_run(app: App, n: int) -> None:
    """`as_completed`, `wait` and `gather` take no failure for an end while the call runs again, however they look."""
    handles = failed(app, n)
    assert wait(handles, timeout=60).not_done == set()
    again = sorted(app.dead_letters.retry(handles[0].id, handles[1].id).handles, key=lambda handle: handle.id)

    for fresh in (handles, [app.handle(handle.id) for handle in handles]):
        done, not_done = wait(fresh, timeout=0.1)
        assert (len(done), not_done) == (n - 2, set(again))
    with pytest.raises(ResultTimeout):
        gather(*again, timeout=0.1)
    with pytest.raises(ResultTimeout):
        gather(app.handle(handles[0].id), timeout=0.1)

    succeed(app, handles[0], 10)
    fail(app, handles[1], type="KeyError")
    fresh = [app.handle(handle.id) for handle in handles]
    assert {handle.run for handle in as_completed(fresh, timeout=60)} <= {1, 2}
    assert fresh[0].result() == 10
    assert gather(*again[:1], timeout=60) == [10]
    with pytest.raises(TaskFailed, match="KeyError"):
        gather(*fresh[:2], timeout=60)


async def test_async_waits_follow_too(app: App) -> None:
    """A call that is retried while somebody awaits it gives the value of its next run."""
    (handle,) = await asyncio.to_thread(failed, app, 1)
    await app.dead_letters.aretry(handle.id)
    waiting = asyncio.create_task(agather(app.handle(handle.id), timeout=60))
    await asyncio.to_thread(succeed, app, handle, 4)
    assert await waiting == [4]


# keys


def test_a_key_asks_for_a_failed_call_to_run_again(app: App) -> None:
    """Only if it is told so, and only while the newest run has failed."""
    handle = step.options(key="k").delay(1)
    fail(app, handle)
    assert step.options(key="k").delay(1).status() == "failed"
    assert depth(app) == 0

    again = step.options(key="k", rerun_failed=True, queue="gpu", retries=5).delay(1)
    assert again == handle
    assert app.dead_letters.list() == []
    (call,) = calls(app, "gpu")
    assert (call.id, call.run, call.retries) == (handle.id, 2, 5)
    assert step.options(key="k", rerun_failed=True).delay(1).status() == "pending"
    assert (depth(app), depth(app, "gpu")) == (0, 1)

    end(app, take(app, handle, "gpu"), value=codec_named("cloudpickle").dumps(6).data)
    assert step.options(key="k", rerun_failed=True).delay(1).result() == 6
    assert step.options(key="k").delay(1).result() == 6
    assert handle.result() == 6
    assert (depth(app), depth(app, "gpu")) == (0, 0)


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.CANCELLED, State.EXPIRED])
def test_only_a_failure_is_run_again(app: App, state: State) -> None:
    """A success is final, and so is what was given up on purpose."""
    handle = step.options(key="k").delay(1)
    end(app, take(app, handle), state, value=codec_named("cloudpickle").dumps(1).data if state is State.SUCCEEDED else None)
    assert step.options(key="k", rerun_failed=True).delay(1).status() == state
    assert depth(app) == 0


def test_a_forgotten_key_is_not_run_again(app: App) -> None:
    """Its result is gone, and stays so."""
    handle = step.options(key="k").delay(1)
    fail(app, handle)
    handle.forget()
    for _ in range(2):
        with pytest.raises(ResultGone):
            step.options(key="k", rerun_failed=True).delay(1).result()


@pytest.mark.parametrize("options", [{"rerun_failed": True}, {"key": "k", "rerun_failed": 1}], ids=str)
def test_asking_again_takes_a_key(options: dict[str, Any]) -> None:
    """A call without one has an id that nobody can name again."""
    with pytest.raises(DeclarationError, match="rerun_failed"):
        step.options(**options)


def test_inline_calls_are_run_again_by_key(app: App) -> None:
    """In a user's test, at once."""
    with inline(app):
        handle = picky.options(key="k").delay(3)
        with pytest.raises(ValueError, match="3"):
            handle.result()
        allowed.append(True)
        try:
            assert picky.options(key="k", rerun_failed=True).delay(3).result() == 3
        finally:
            allowed.clear()
        assert handle.result() == 3


def test_inline_dead_letters_are_run_again_at_once(app: App) -> None:
    """In a user's test too, a retry ends in an outcome; one that fails again has a letter again."""
    with inline(app):
        handles = [picky.delay(number) for number in range(3)]
        assert app.dead_letters.retry(handles[0].id).handles == [handles[0]]
        assert [letter.run for letter in app.dead_letters.list()] == [2, 1, 1]
        allowed.append(True)
        try:
            done = app.dead_letters.retry(task="picky")
        finally:
            allowed.clear()
        assert [handle.result(timeout=0) for handle in handles] == [0, 1, 2]
        assert sorted(handle.run for handle in done.handles) == [2, 2, 3]
        assert (app.dead_letters.list(), depth(app)) == ([], 0)


async def test_inline_dead_letters_are_run_again_by_async_programs(app: App) -> None:
    """As by others, where a loop runs already."""
    with inline(app):
        handle = await picky.adelay(3)
        allowed.append(True)
        try:
            assert (await app.dead_letters.aretry(handle.id)).handles == [handle]
        finally:
            allowed.clear()
        assert await handle.aresult(timeout=0) == 3


@declared.task(name="proj.careful")
def careful(x: int) -> tuple[int, int]:
    checkpoint = current().checkpoint
    before = checkpoint.load(0)
    checkpoint.save(before + x)
    if not allowed:
        raise ValueError(x)
    return before, x


@pytest.mark.parametrize("by_key", [False, True], ids=["by id", "by key"])
def test_inline_the_next_run_goes_on_from_the_checkpoint(app: App, by_key: bool) -> None:
    """As on a worker; other calls have checkpoints of their own."""
    with inline(app):
        handle, other_call = careful.options(key="k").delay(3), careful.delay(5)
        allowed.append(True)
        try:
            if by_key:
                careful.options(key="k", rerun_failed=True).delay(3)
            else:
                app.dead_letters.retry(handle.id)
            assert handle.result(timeout=0) == (3, 3)
            app.dead_letters.retry(other_call.id)
            assert other_call.result(timeout=0) == (5, 5)
        finally:
            allowed.clear()


# records


def test_a_retry_drops_only_an_expiry_that_has_passed(app: App) -> None:
    """What has passed is dropped, so that the call is not given up again at once."""
    soon, late = step.options(expires=0.001).delay(), step.options(expires=3600).delay()
    for handle in (soon, late):
        fail(app, handle)
    app.dead_letters.retry(everything=True)
    found = {call.id: call for call in calls(app)}
    assert found[soon.id].expires is None
    assert found[late.id].expires is not None
    assert replace(found[late.id], expires=None, arguments=b"", id="", sent=0) == replace(
        found[soon.id], arguments=b"", id="", sent=0
    )
