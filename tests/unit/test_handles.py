"""Waiting for outcomes: what is raised for which ending, what a wait costs, and what cancel, forget and look do at the edges."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from storage_spy import Crash, between, blobs, counted, crash_before, depth

from ai4s.jobq import (
    App,
    CallCancelled,
    CallError,
    CallExpired,
    CallRefused,
    CallTimedOut,
    DeclarationError,
    Handle,
    JobQError,
    NotFinished,
    ResultGone,
    ResultTimeout,
    State,
    TaskFailed,
    WorkerDied,
    WouldDeadlock,
    agather,
    as_completed,
    await_,
    gather,
    wait,
)
from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import Malformed
from ai4s.jobq.failures import RemoteTraceback, failure_of
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Cause, Failure, Outcome
from ai4s.jobq.running import RunningCall, running

declared = App("handles")


@declared.task
def step(x: Any = None) -> Any:
    return x


@declared.task(codec="msgpack")
def safe_step() -> None:
    return None


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file, on an empty store. There is no worker: the tests write the outcomes."""
    return jobq_place(declared)


End = Callable[..., Outcome]


def end(handle: Handle[Any], state: State = State.SUCCEEDED, **known: Any) -> Outcome:
    """Write the outcome of a handle's call, as a worker would."""
    value = codec_named("cloudpickle").dumps(known.pop("value", None)).data if state is State.SUCCEEDED else None
    outcome = Outcome(
        call=handle.id, run=1, state=state, token="t", task="proj.step", attempts=2, worker="w-1", **{"value": value, **known}
    )
    return handle.client.run(lambda ledger: ledger.commit(outcome))


def failed(cause: Cause, message: str = "so it went", **known: Any) -> dict[str, Any]:
    """The failure of a call, for `end`."""
    return {"state": State.FAILED, "failure": Failure(cause, known.pop("type", ""), message, **known)}


# what is raised


@pytest.mark.parametrize(
    ("ending", "kind", "says"),
    [
        (failed(Cause.RAISED, type="ValueError"), TaskFailed, "failed after 2 attempt(s): ValueError: so it went"),
        (failed(Cause.TIMED_OUT), CallTimedOut, "failed after 2 attempt(s): so it went"),
        (failed(Cause.DIED), WorkerDied, "failed after 2 attempt(s): so it went"),
        (failed(Cause.REFUSED), CallRefused, "failed after 2 attempt(s): so it went"),
        (failed(Cause.NEVER_FITS), WorkerDied, "failed after 2 attempt(s): so it went"),
        ({"state": State.FAILED}, TaskFailed, "The outcome does not say why"),
        ({"state": State.CANCELLED}, CallCancelled, "was cancelled"),
        ({"state": State.EXPIRED}, CallExpired, "of proj.step expired before a worker took it"),
    ],
    ids=["raised", "timed-out", "died", "refused", "never-fits", "no-reason", "cancelled", "expired"],
)
def test_each_ending_has_its_error(app: App, ending: dict[str, Any], kind: type[CallError], says: str) -> None:
    """Of one class, with the call's id in the text, and id, attempts and worker as attributes; `exception` returns the same."""
    handle = step.delay()
    end(handle, **ending)

    with pytest.raises(kind) as caught:
        handle.result()
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert handle.id in str(caught.value)
    assert (caught.value.call_id, caught.value.attempts, caught.value.worker) == (handle.id, 2, "w-1")
    assert repr(handle.exception()) == repr(caught.value)
    assert handle.status() == ending["state"]


def test_the_original_exception_is_raised_if_it_can_be_rebuilt(app: App) -> None:
    """With the remote traceback as its cause."""
    handle = step.delay()
    error = failure_of(KeyError("missing"), codec_named("cloudpickle"))
    end(handle, State.FAILED, failure=error)

    with pytest.raises(KeyError, match="missing") as caught:
        handle.result()
    assert type(caught.value) is KeyError
    assert isinstance(caught.value.__cause__, RemoteTraceback)


@pytest.mark.parametrize("pickled", [b"", b"no pickle", pickle.dumps("no exception"), b"cmissing_module\nError\n."])
def test_an_exception_that_cannot_be_rebuilt_is_told_as_text(app: App, pickled: bytes) -> None:
    """Because its class is missing here, say."""
    handle = step.delay()
    end(handle, **failed(Cause.RAISED, "it broke", type="lab.BrokenProbe", traceback="Traceback: …", exception=pickled))

    with pytest.raises(TaskFailed, match="lab.BrokenProbe: it broke") as caught:  # noqa: RUF043  # the dot may be any
        handle.result()
    assert "Traceback: …" in str(caught.value.__cause__)


def test_no_pickle_is_loaded_where_the_codec_forbids_it(app: App) -> None:
    """Even if somebody put one into the outcome."""
    handle = app.handle(step.delay().id)
    bomb = pickle.dumps(ValueError("from a pickle"))
    end(handle, **failed(Cause.RAISED, "as text", exception=bomb), codec="msgpack")

    with pytest.raises(TaskFailed, match="as text"):
        handle.result()


@pytest.mark.parametrize("before", [lambda handle: None, lambda handle: handle.cancel()], ids=["at-once", "after-cancel"])
@pytest.mark.parametrize(
    "again", [lambda handle: handle, lambda handle: pickle.loads(pickle.dumps(handle))], ids=["own", "pickled"]
)
def test_an_outcome_in_another_codec_than_the_tasks_is_refused(
    app: App, before: Callable[[Handle[Any]], object], again: Callable[[Handle[Any]], Handle[Any]]
) -> None:
    """Whoever declared a task safe must not have a pickle decoded for it, whatever lies in the storage."""
    handle = again(safe_step.delay())
    end(handle, value="from a pickle", codec="cloudpickle")

    def look() -> None:
        before(handle)
        handle.result()

    with pytest.raises(Malformed, match="is encoded with 'cloudpickle', and its task with 'msgpack'"):
        look()


def test_a_tasks_own_timeout_error_stays_apart(app: App) -> None:
    """`except ResultTimeout` means the wait, whatever the task raised."""
    handle = step.delay()
    with pytest.raises(ResultTimeout):
        handle.result(timeout=0)

    end(handle, State.FAILED, failure=failure_of(TimeoutError("the task's own"), codec_named("cloudpickle")))
    with pytest.raises(TimeoutError, match="the task's own") as caught:
        handle.result(timeout=0)
    assert not isinstance(caught.value, JobQError)


def test_result_timeout_is_both_kinds_of_error(app: App) -> None:
    """It says which call, how long, and that the call goes on."""
    handle = step.delay()

    with pytest.raises(ResultTimeout, match=rf"No outcome of call {handle.id} within 0\.05 s; it goes on") as caught:
        handle.result(timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, JobQError)


def test_a_wait_of_no_time_takes_what_is_there(app: App) -> None:
    """`timeout=0` looks once."""
    handle = step.delay()
    end(handle, value="here")

    assert handle.result(timeout=0) == "here"


def test_errors_of_calls_can_be_pickled() -> None:
    """They may travel on, as results and errors of other calls do."""
    error = pickle.loads(pickle.dumps(WorkerDied("gone", call_id="c", attempts=3, worker="w")))

    assert (str(error), error.call_id, error.attempts, error.worker) == ("gone", "c", 3, "w")
    assert type(error) is WorkerDied


async def test_the_async_twins_raise_the_same(app: App) -> None:
    """`await handle` as well."""
    handle = await step.adelay()
    with pytest.raises(ResultTimeout):
        await handle.aresult(timeout=0)
    assert not await handle.adone()
    await handle.acancel()

    for waiting in (handle.aresult, handle.__await__):
        with pytest.raises(CallCancelled):
            await _awaited(waiting())
    assert isinstance(await handle.aexception(), CallCancelled)
    assert await handle.astatus() == "cancelled"
    await handle.aforget()
    with pytest.raises(ResultGone):
        await handle.astatus()


async def _awaited(thing: Any) -> Any:
    class Wrapped:
        def __await__(self) -> Any:
            return thing if hasattr(thing, "__next__") else thing.__await__()

    return await Wrapped()


# never inside a task


async def _all(handle: Handle[Any]) -> list[Any]:
    return [each async for each in as_completed([handle])]


OUTER_ID = "b" * 16 + "-" + "0" * 12
OUTER = RunningCall(id=OUTER_ID, run=1, attempt=1, task="t", queue="default", worker="w", root=OUTER_ID)


@pytest.fixture
def inside(app: App) -> Iterator[None]:
    """As if this test were a task."""
    with running(OUTER):
        yield


@pytest.mark.parametrize(
    "waiting",
    [
        Handle.result,
        lambda h: h.result(timeout=0),
        Handle.exception,
        gather,
        lambda h: list(as_completed([h])),
        lambda h: wait([h]),
    ],
    ids=["result", "result-timeout", "exception", "gather", "as_completed", "wait"],
)
@pytest.mark.usefixtures("inside")
def test_waiting_in_a_task_is_refused(app: App, waiting: Callable[[Handle[Any]], object]) -> None:
    """The error names both calls. It makes no difference whether the other has ended: next time it may not have."""
    handle = step.delay()
    end(handle)

    with pytest.raises(WouldDeadlock, match=f"Call {OUTER_ID} must not wait for call {handle.id}"):
        waiting(handle)


@pytest.mark.parametrize(
    "waiting",
    [
        Handle.aresult,
        Handle.aexception,
        _awaited,
        agather,
        lambda h: await_([h]),
        _all,
    ],
    ids=["aresult", "aexception", "await", "agather", "await_", "as_completed"],
)
@pytest.mark.usefixtures("inside")
async def test_awaiting_in_a_task_is_refused(app: App, waiting: Callable[[Handle[Any]], Any]) -> None:
    """As much as waiting."""
    handle = await step.adelay()

    # A coroutine test runs in a context of its own, made before the fixture's call was the current one.
    with running(OUTER), pytest.raises(WouldDeadlock):
        await waiting(handle)


@pytest.mark.usefixtures("inside")
def test_looking_in_a_task_is_allowed(app: App) -> None:
    """`done`, `status`, `cancel` and `forget` wait for nobody."""
    handle = step.delay()

    assert (handle.done(), handle.status(), handle.cancel(), handle.done()) == (False, "pending", True, True)
    handle.forget()


# looks


def test_an_outcome_is_read_once(app: App) -> None:
    """It cannot change, so a handle keeps it."""
    handle = step.delay()
    end(handle, value=7)
    handle.result()

    with counted(app) as requests:
        assert (handle.result(), handle.status(), handle.done(), handle.exception()) == (7, "succeeded", True, None)
    assert not requests


def test_a_result_that_is_there_costs_one_request(app: App) -> None:
    """No matter who asks: a handle of another process knows no more than the id."""
    handle = step.delay()
    end(handle, value=7)

    with counted(app) as requests:
        assert app.handle(handle.id).result() == 7
    assert requests == {"get": 1}


def test_a_handle_says_what_it_is(app: App) -> None:
    """Its id, its app and its place; and how its call ended, once that is known."""
    handle = step.delay()
    assert repr(handle) == f"<Handle {handle.id} of handles at {app.client.place.label}>"

    end(handle)
    handle.result()
    assert repr(handle) == f"<Handle {handle.id} succeeded of handles at {app.client.place.label}>"


def test_handles_are_equal_if_they_mean_the_same_call(app: App, tmp_path: Any) -> None:
    """In the same app at the same place; what they know of its outcome makes no difference."""
    handle = step.delay()
    again, copied = app.handle(handle.id), pickle.loads(pickle.dumps(handle))
    elsewhere = App("handles", f"local://{tmp_path}/other").handle(handle.id)

    assert handle == again == copied
    assert len({handle, again, copied}) == 1
    assert handle != step.delay()
    assert handle != elsewhere
    assert handle != handle.id


def test_many_threads_may_wait_for_one_handle(app: App) -> None:
    """And all get its value."""
    handle = step.delay()
    values: list[int] = []
    threads = [threading.Thread(target=lambda: values.append(handle.result(timeout=60))) for _ in range(5)]
    for thread in threads:
        thread.start()
    end(handle, value=7)
    for thread in threads:
        thread.join(60)

    assert values == [7] * 5


async def test_a_cancelled_wait_lets_go(app: App) -> None:
    """Cancelling whoever waits cancels neither the call nor the handle."""
    handle = await step.adelay()
    waiting = asyncio.create_task(handle.aresult())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert await handle.astatus() == "pending"


@pytest.mark.parametrize("call_id", [None, 5, b"id", ["id"]], ids=str)
def test_a_handle_of_what_is_no_string_is_refused(app: App, call_id: Any) -> None:
    """With an error that says what an id is."""
    with pytest.raises(DeclarationError, match=r"a string, which is what handle\.id says; got"):
        app.handle(call_id)


def test_a_call_of_a_batch_is_found_by_its_id(app: App) -> None:
    """`<batch>.<index>`: it is what the batch gives."""
    batch = step.map([1, 2, 3], batch="campaign-1")
    handle = app.handle("campaign-1.2")

    assert handle == batch.handle(2)
    assert handle.id == "campaign-1.2"
    assert handle.status() == "pending"


@pytest.mark.parametrize("call_id", ["campaign-1", "campaign-1.x", "campaign-1.-2", ".2", "a/b.2", "x" * 61 + ".2", "", "key-1"])
def test_what_is_no_id_is_refused(app: App, call_id: str) -> None:
    """With an error that says what ids look like."""
    with pytest.raises(DeclarationError, match=r"<batch>\.<index>|A batch's name is 1 to 60"):
        app.handle(call_id)


def test_a_handle_is_no_id(app: App) -> None:
    """The error names its type, and what to pass."""
    with pytest.raises(DeclarationError, match=r"handle\.id says; got Handle"):
        app.handle(step.delay())  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("payloads", "says"),
    [("0" * 64, "must be a list"), (5, "must be a list"), (None, "must be a list"), ([5], "'5' is not"), ([None], "'None' is not")],
    ids=str,
)
def test_payloads_that_are_no_digests_are_refused(app: App, payloads: Any, says: str) -> None:
    """Before anything is removed."""
    with pytest.raises(DeclarationError, match=says):
        app.gc(24 * 3600, payloads=payloads)


# cancel and forget


def test_cancel_takes_the_message_back(app: App) -> None:
    """While nobody has it, it is gone at once and costs no worker anything."""
    handle = step.delay()
    assert depth(app) == 1

    assert handle.cancel()
    assert depth(app) == 0


def test_cancel_from_elsewhere_leaves_the_message_to_a_worker(app: App) -> None:
    """Only the handle that `delay` returned can take the message back; the outcome counts nevertheless."""
    handle = step.delay()

    assert app.handle(handle.id).cancel()
    assert depth(app) == 1
    with pytest.raises(CallCancelled):
        handle.result(timeout=60)


def test_cancel_twice_is_as_good_as_once(app: App) -> None:
    """By the same handle or by another."""
    handle = step.delay()

    assert handle.cancel()
    assert handle.cancel()
    assert app.handle(handle.id).cancel()


def test_cancel_of_what_a_worker_has_does_not_take_it_back(app: App) -> None:
    """The message belongs to the worker then; its late success will not count."""
    handle = step.delay()

    async def take(ledger: Ledger) -> list[Any]:
        return await (await ledger.queue("default")).receive(1, lease_seconds=60)

    assert len(app.client.run(take)) == 1
    assert handle.cancel()
    assert depth(app) == 1
    assert end(handle, value="too late").state is State.CANCELLED
    with pytest.raises(CallCancelled):
        handle.result()


def test_cancel_that_loses_the_race_says_so(app: App) -> None:
    """The call ends between the decision and the request: its value stands."""
    handle = step.delay()

    async def end_first(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if method.__name__ == "put" and not ended:
            ended.append(True)
            await _commit(method.__self__, handle)  # type: ignore[attr-defined]
        return await method(*args, **kwargs)

    ended: list[bool] = []
    with between(app, end_first):
        assert not handle.cancel()
    assert handle.result() == "first"
    assert depth(app) == 1


async def _commit(store: Any, handle: Handle[Any]) -> None:
    ledger = await handle.client.session.ledger()
    value = codec_named("cloudpickle").dumps("first").data
    outcome = Outcome(call=handle.id, run=1, state=State.SUCCEEDED, token="t", value=value)
    await store.put(blob_of(handle), ledger.wire.seal_outcome(outcome), if_absent=True)


def blob_of(handle: Handle[Any]) -> str:
    """Where a handle's outcome lies."""
    from ai4s.jobq import layout

    return layout.result(handle.id, 1)


def test_cancel_of_a_failed_call_says_no(app: App) -> None:
    """It has ended, and stays as it is."""
    handle = step.delay()
    end(handle, **failed(Cause.DIED))

    assert not handle.cancel()
    assert handle.status() == "failed"


def test_a_crash_after_cancelling_leaves_a_cancelled_call(app: App) -> None:
    """The outcome comes first, the message second: nothing runs that was called off."""
    handle = step.delay()
    with pytest.raises(Crash), crash_before(app, "delete"):
        handle.cancel()

    assert app.handle(handle.id).status() == "cancelled"


def test_forget_leaves_a_tombstone_only(app: App) -> None:
    """Arguments and values that lay beside go with the outcome."""
    handle = step.delay(bytes(range(256)) * 4096)
    large = codec_named("cloudpickle").dumps(bytes(range(256)) * 4096).data
    spilled = app.client.run(lambda ledger: ledger.keep_value(handle.id, "t", large))
    app.client.run(lambda ledger: ledger.commit(Outcome(call=handle.id, run=1, state=State.SUCCEEDED, token="t", value=spilled)))
    assert len(handle.result()) == 1024 * 1024
    assert len(blobs(app)) == 3

    handle.forget()
    assert blobs(app) == [blob_of(handle)]


def test_what_is_forgotten_is_gone_for_all(app: App) -> None:
    """Each look says so, from every handle."""
    handle = step.delay()
    end(handle)
    handle.forget()

    for again in (handle, app.handle(handle.id)):
        assert again.done()
        for look in (again.result, again.exception, again.status, again.cancel, again.forget):
            with pytest.raises(ResultGone, match=f"The outcome of call {handle.id} was forgotten") as caught:
                look()
            assert caught.value.call_id == handle.id


def test_what_has_not_ended_is_not_forgotten(app: App) -> None:
    """Its worker would find nothing to say."""
    handle = step.delay()

    with pytest.raises(NotFinished, match=f"Call {handle.id} has no outcome yet"):
        handle.forget()
    assert handle.status() == "pending"


# many at once


def ids(handles: list[Handle[Any]]) -> list[str]:
    """Their ids."""
    return [handle.id for handle in handles]


@pytest.fixture
def silent_handles(app: App) -> Callable[[int], list[Handle[Any]]]:
    """Handles of calls that were never sent: for what waiting costs, it makes no difference."""

    def make(count: int) -> list[Handle[Any]]:
        return [app.handle(app.client.next_call_id()) for _ in range(count)]

    return make


def end_all(handles: list[Handle[Any]]) -> None:
    """Write all their outcomes, a few at a time."""

    async def commit_all(ledger: Ledger) -> None:
        store = await ledger.store()
        for handle in handles:
            outcome = Outcome(
                call=handle.id, run=1, state=State.SUCCEEDED, token="t", value=codec_named("cloudpickle").dumps(1).data
            )
            await store.put(blob_of(handle), ledger.wire.seal_outcome(outcome), if_absent=True)

    handles[0].client.run(commit_all)


def test_waiting_for_thousands_lists(app: App, silent_handles: Callable[[int], list[Handle[Any]]]) -> None:
    """3,000 neighbours lie on one or two pages: a round costs as many requests, one more to know retries, and reads no outcome."""
    handles = silent_handles(3000)
    end_all(handles)

    with counted(app) as requests:
        done, not_done = wait(handles, timeout=60)
    assert (len(done), len(not_done)) == (3000, 0)
    assert requests["list"] <= 3
    assert requests["head"] + requests["get"] == 0


def test_waiting_for_thousands_that_run_still_lists(app: App, silent_handles: Callable[[int], list[Handle[Any]]]) -> None:
    """Round after round, a listing and nothing else, ever more rarely."""
    handles = silent_handles(3000)

    with counted(app) as requests:
        done, not_done = wait(handles, timeout=0.5)
    assert (len(done), len(not_done)) == (0, 3000)
    assert set(requests) == {"list"}
    # 1 ms, 1.25 ms, … and then a quarter of the time waited, each time on at most two pages.
    assert requests["list"] <= 2 * 40


def test_a_few_are_looked_up_one_by_one(app: App, silent_handles: Callable[[int], list[Handle[Any]]]) -> None:
    """A listing is ten times the price of a look."""
    handles = silent_handles(5)
    end_all(handles)

    with counted(app) as requests:
        wait(handles, timeout=60)
    assert requests == {"get": 5}


def test_gather_reads_each_value_once(app: App, silent_handles: Callable[[int], list[Handle[Any]]]) -> None:
    """After the listing, one read for each call, and none for a handle that stands there twice."""
    handles = silent_handles(100)
    end_all(handles)

    with counted(app) as requests:
        assert gather(*handles, *handles, timeout=60) == [1] * 200
    assert requests == {"list": 1, "get": 100}


def test_keyed_calls_are_looked_up_one_by_one(app: App) -> None:
    """They lie scattered by the hash of their keys."""
    handles = [step.options(key=f"k{n}").delay(n) for n in range(12)]
    for handle in handles:
        end(handle, value=1)

    with counted(app) as requests:
        assert wait(handles, timeout=60).not_done == set()
    assert requests == {"get": 12}


def test_no_handles_at_all_are_waited_for_at_once(app: App) -> None:
    """An empty list is done."""
    assert list(as_completed([])) == []
    assert wait([]) == (set(), set())
    assert gather() == []


def test_as_completed_gives_doubles_as_often_as_they_stand_there(app: App) -> None:
    """And one look serves both."""
    handle = step.delay()
    end(handle)

    assert list(as_completed([handle, app.handle(handle.id)], timeout=60)) == [handle, handle]


def test_as_completed_says_what_is_left(app: App) -> None:
    """When time is up, what came has been given, and the rest can be asked for."""
    quick, slow = step.delay(), step.delay()
    end(quick)
    completed = as_completed([slow, quick], timeout=0.05)

    came: list[Handle[Any]] = []
    with pytest.raises(ResultTimeout, match=r"No outcome of 1 call\(s\) within 0\.05 s"):
        came.extend(completed)
    assert came == [quick]
    assert completed.left() == [slow]


async def test_as_completed_runs_out_of_time_in_async_programs(app: App) -> None:
    """In the same way."""
    with pytest.raises(ResultTimeout):
        await _all_within(await step.adelay(), 0.05)


async def _all_within(handle: Handle[Any], timeout: float) -> list[Any]:
    return [each async for each in as_completed([handle], timeout=timeout)]


def test_gather_raises_the_first_error_in_order(app: App) -> None:
    """In the order of the handles, not of their ends."""
    handles = [step.delay() for _ in range(3)]
    end(handles[2], **failed(Cause.DIED, "ended first"))
    end(handles[1], **failed(Cause.TIMED_OUT, "stands first"))
    end(handles[0], value=1)

    with pytest.raises(CallTimedOut, match="stands first"):
        gather(*handles, timeout=60)


@pytest.mark.parametrize("waiting", [gather, as_completed, lambda *things: wait(things), wait])
def test_only_handles_can_be_waited_for(app: App, waiting: Callable[..., object]) -> None:
    """A list in place of its handles, or an id: the error says what it takes."""
    handle = step.delay()
    with pytest.raises(TypeError, match="handle"):
        waiting([[handle]] if waiting in (as_completed, wait) else [handle])


def test_gather_runs_out_of_time(app: App) -> None:
    """If one of them has not ended."""
    done, running_still = step.delay(), step.delay()
    end(done)

    with pytest.raises(ResultTimeout):
        gather(done, running_still, timeout=0.05)


@pytest.mark.parametrize("how", ["any", None, "ALL", 1])
async def test_wait_knows_two_ways(app: App, how: Any) -> None:
    """All, or the first."""
    handle = await step.adelay()

    with pytest.raises(DeclarationError, match="return_when must be 'all' or 'first'"):
        wait([handle], timeout=0, return_when=how)
    with pytest.raises(DeclarationError, match="return_when must be 'all' or 'first'"):
        await await_([handle], timeout=0, return_when=how)


async def test_await_tells_done_from_not_done(app: App) -> None:
    """As `wait` does."""
    quick, slow = await step.adelay(), await step.adelay()
    await quick.acancel()

    assert await await_([quick, slow], timeout=60, return_when="first") == ({quick}, {slow})
    assert await await_([quick, slow], timeout=0.05) == ({quick}, {slow})


def test_handles_of_several_apps_can_be_mixed(app: App, tmp_path: Any) -> None:
    """Each place is asked for its own."""
    other = App("other", f"local://{tmp_path}/other")
    here, there = step.delay(), other.submit(len, "x")
    end(here, value=1)
    end(there, value=2)

    assert gather(here, there, timeout=60) == [1, 2]
    assert set(as_completed([here, there], timeout=60)) == {here, there}
    other.close()


def test_a_forgotten_call_counts_as_ended(app: App) -> None:
    """Waiting for many does not hang on one whose outcome is gone; its handle says so."""
    forgotten, other = step.delay(), step.delay()
    end(forgotten)
    end(other, value=2)
    forgotten.forget()

    assert wait([forgotten, other], timeout=60).not_done == set()
    with pytest.raises(ResultGone):
        gather(forgotten, other, timeout=60)


# nobody works


SILENCE = "Still waiting: no worker has been seen for app 'handles' at {place}. Start one with: jobq-worker test_handles:declared"


@pytest.fixture
def fresh(app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> App:
    """The app in a process that has not complained yet and complains at once, not after 15 seconds."""
    monkeypatch.setattr("ai4s.jobq.client.SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(app.client, "_silence_noted", False)
    caplog.set_level(logging.WARNING, logger="ai4s.jobq")
    return app


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged."""
    return [record.getMessage() for record in caplog.records]


def test_waiting_without_a_worker_is_said_once(fresh: App, caplog: pytest.LogCaptureFixture) -> None:
    """In one line: where was looked, that nobody works there, and how to start somebody."""
    for _ in range(2):
        with pytest.raises(ResultTimeout):
            step.delay().result(timeout=0.3)

    assert said(caplog) == [SILENCE.format(place=fresh.client.place.label)]


@pytest.mark.parametrize("waiting", [lambda h: wait([h], timeout=0.3), lambda h: asyncio.run(_wait_async(h))])
def test_waiting_for_many_says_it_as_well(
    fresh: App, caplog: pytest.LogCaptureFixture, waiting: Callable[[Handle[Any]], object]
) -> None:
    """Sync or async."""
    waiting(step.delay())

    assert said(caplog) == [SILENCE.format(place=fresh.client.place.label)]


async def _wait_async(handle: Handle[Any]) -> None:
    await await_([handle], timeout=0.3)


def test_nothing_is_said_before_its_time(fresh: App, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may take a while to start."""
    monkeypatch.setattr("ai4s.jobq.client.SILENCE_SECONDS", 15.0)
    with pytest.raises(ResultTimeout):
        step.delay().result(timeout=0.3)

    assert said(caplog) == []


def test_nothing_is_said_where_a_worker_was_seen(fresh: App, caplog: pytest.LogCaptureFixture) -> None:
    """It may just be busy."""

    async def show_up(ledger: Ledger) -> None:
        await (await ledger.store()).put("workers/somebody", b"", metadata={"state": "working"})

    fresh.client.run(show_up)
    with pytest.raises(ResultTimeout):
        step.delay().result(timeout=0.3)

    assert said(caplog) == []


def test_a_worker_that_has_stopped_is_nobody(fresh: App, caplog: pytest.LogCaptureFixture) -> None:
    """A status that says "stopped" is a farewell, however recent."""

    async def leave(ledger: Ledger) -> None:
        await (await ledger.store()).put("workers/somebody", b"", metadata={"state": "stopped"})

    fresh.client.run(leave)
    with pytest.raises(ResultTimeout):
        step.delay().result(timeout=0.3)

    assert said(caplog) == [SILENCE.format(place=fresh.client.place.label)]
