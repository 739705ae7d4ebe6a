"""What users tell the workers of a queue, as it lies in storage: pause, drain, and cancel with each of its requests going wrong."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import pytest
from storage_spy import Crash, between, blobs, counted, depth

from ai4s.jobq import App, DeclarationError, Handle, Unreachable, control, layout
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Control, State
from ai4s.jobq.transports.base import Delivery

declared = App("controls")


@declared.task
def step(x: Any = None) -> Any:
    return x


@declared.task(queue="gpu")
def gpu_step(x: Any = None) -> Any:
    return x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file, on an empty store, without a worker."""
    return jobq_place(declared)


def told(app: App, queue: str = "default") -> Control:
    """What the workers of a queue are told."""

    async def read(ledger: Ledger) -> Control:
        found = await ledger.control(queue)
        return found[0] if found else Control()

    return app.client.run(read)


def change(app: App, made: Callable[[Control], Control], queue: str = "default") -> None:
    """Change what they are told."""
    app.client.run(lambda ledger: ledger.change_control(queue, made))


def take(app: App) -> list[Delivery]:
    """Receive what is visible, as a worker would."""

    async def receive(ledger: Ledger) -> list[Delivery]:
        return await (await ledger.queue("default")).receive(32, lease_seconds=60)

    return app.client.run(receive)


def another_process(app: App) -> Ledger:
    """What another process would have in place of this one's ledger."""
    ledger = app.client.session._ledger
    assert ledger is not None, "it is open by now"
    return Ledger(ledger.transport, app.name, app.client.keyring)


# pause, resume, drain


def test_pause_and_resume_concern_one_queue(app: App) -> None:
    """The named one, or the default."""
    app.pause("gpu")
    assert (told(app, "gpu").paused, told(app).paused) == (True, False)

    app.resume("gpu")
    app.pause()
    assert (told(app, "gpu").paused, told(app).paused) == (False, True)


@pytest.mark.parametrize("spoilt", [b"garbage", b""], ids=["garbage", "empty"])
def test_what_cannot_be_read_is_told_anew(app: App, spoilt: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A key that was introduced since, or somebody's mistake, does not keep the app from telling its workers anything."""
    app.pause()

    async def spoil(ledger: Ledger) -> None:
        await (await ledger.store()).put(layout.control("default"), spoilt)

    app.client.run(spoil)
    app.pause()
    assert told(app).paused
    assert "is written anew" in caplog.text


async def test_orders_have_async_twins(app: App) -> None:
    """That do the same."""
    await app.apause()
    await app.adrain()
    found = await app.client.arun(lambda ledger: ledger.control("default"))
    assert found is not None
    assert found[0].paused
    assert found[0].drained_at > 0

    await app.aresume()
    found = await app.client.arun(lambda ledger: ledger.control("default"))
    assert found is not None
    assert not found[0].paused


def test_each_drain_is_later_than_the_one_before(app: App) -> None:
    """Even if the clock says otherwise: workers compare the two."""
    app.drain()
    first = told(app).drained_at
    change(app, lambda found: Control(drained_at=first + 1000))
    app.drain()

    assert told(app).drained_at > first + 1000


def test_a_queue_that_cannot_be_is_refused_at_once(app: App) -> None:
    """Before any request."""
    for order in (app.pause, app.resume, app.drain):
        with pytest.raises(DeclarationError, match="queue"):
            order("No Such Queue")
    with pytest.raises(DeclarationError, match="queue"):
        app.handle(layout.call_id("a" * 16, 1), queue="No Such Queue")


def test_orders_at_the_same_time_all_take_effect(app: App) -> None:
    """A change that finds another one made meanwhile is made again."""
    others = iter([lambda found: Control(paused=True, cancelled=found.cancelled, cancelled_at=found.cancelled_at)])

    def somebody_is_faster(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        other = next(others, None) if method.__name__ == "put" and args[0].startswith(layout.CONTROL) else None
        return first(other, method, *args, **kwargs) if other else method(*args, **kwargs)

    async def first(other: Callable[[Control], Control], method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        await another_process(app).change_control("default", other)
        return await method(*args, **kwargs)

    with between(app, somebody_is_faster):
        app.drain()
    assert told(app).paused
    assert told(app).drained_at > 0


# cancel


def run_of(handle: Handle[Any], run: int = 1) -> str:
    """A run as the control names it."""
    return layout.run_id(handle.id, run)


def test_a_cancel_that_takes_the_message_back_tells_nobody(app: App) -> None:
    """Nobody has it, so there is nothing to stop."""
    handle = step.delay()
    assert handle.cancel()
    assert depth(app) == 0
    assert blobs(app, layout.CONTROL) == []


def test_a_cancel_of_what_a_worker_has_tells_the_workers_of_its_queue(app: App) -> None:
    """The run, and that calls sent until now are worth a look."""
    handle = step.delay()
    (delivery,) = take(app)
    assert handle.cancel()

    assert told(app).cancelled == (run_of(handle),)
    assert told(app).cancelled_at >= delivery.server_time
    assert blobs(app, layout.CONTROL) == [layout.control("default")]


@pytest.mark.parametrize(
    "again", [lambda handle: handle, lambda handle: pickle.loads(pickle.dumps(handle))], ids=["own", "pickled"]
)
def test_a_handle_knows_its_queue(app: App, again: Callable[[Handle[Any]], Handle[Any]]) -> None:
    """Wherever it is used."""
    handle = step.options(queue="elsewhere").delay()
    handle._message = None
    assert again(handle).cancel()
    assert blobs(app, layout.CONTROL) == [layout.control("elsewhere")]


def test_without_a_queue_all_that_the_app_knows_are_told(app: App) -> None:
    """A handle by id may be of any of them, unless it is said."""
    ids = [gpu_step.delay().id for _ in range(2)]

    assert app.handle(ids[0], queue="gpu").cancel()
    assert blobs(app, layout.CONTROL) == [layout.control("gpu")]
    assert app.handle(ids[1]).cancel()
    # Other tests of this file have named other queues of this app.
    assert set(blobs(app, layout.CONTROL)) == {layout.control(queue) for queue in app.client.queues}
    assert app.client.queues >= {"default", "gpu"}


def test_the_list_of_cancelled_runs_stays_short(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest stay, each once, and none for longer than an hour after the last."""
    monkeypatch.setattr(control, "MOST_REMEMBERED", 3)
    for number in (1, 2, 3, 1, 4):
        app.client.run(lambda ledger, run=f"c-{number}.r1": control.tell_cancelled(ledger, "default", run))  # type: ignore[misc]
    assert told(app).cancelled == ("c-2.r1", "c-3.r1", "c-4.r1")

    last = told(app).cancelled_at
    change(app, lambda found: replace(found, cancelled_at=last - 3700))
    app.client.run(lambda ledger: control.tell_cancelled(ledger, "default", "c-5.r1"))
    assert told(app).cancelled == ("c-5.r1",)
    assert told(app).cancelled_at >= last
    assert told(app).cancels == 5, "all that were ever listed are counted, each once"


def test_a_full_list_is_a_small_blob(app: App) -> None:
    """Every worker reads it whenever it changes."""
    runs = tuple(layout.run_id(layout.call_id("abcdefgh234567ab", number), 1) for number in range(control.MOST_REMEMBERED))
    change(app, lambda found: Control(cancelled=runs, cancelled_at=1.0))

    async def size(ledger: Ledger) -> int:
        return (await (await ledger.store()).head(layout.control("default"))).size

    assert app.client.run(size) < 40_000


# many at once


def requests_about_control(app: App, count: Counter[str]) -> contextlib.AbstractContextManager[None]:
    """Count the requests of a block that concern what workers are told."""

    def around(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        count[method.__name__] += bool(args) and str(args[0]).startswith(layout.CONTROL)
        return method(*args, **kwargs)

    return between(app, around)


async def test_a_hundred_cancels_at_once_cost_a_few_requests(app: App) -> None:
    """Those that wait for the same queue's control are one change of it; each has been made when its `acancel` returns."""
    handles = [app.handle(step.delay().id, queue="default") for _ in range(100)]
    count: Counter[str] = Counter()

    async def cancel_and_look(handle: Handle[Any]) -> bool:
        is_cancelled = await handle.acancel()
        found = await app.client.arun(lambda ledger: another_process(app).control("default"))
        assert found is not None
        assert run_of(handle) in found[0].cancelled
        return is_cancelled

    with requests_about_control(app, count):
        cancelled = await asyncio.gather(*(cancel_and_look(handle) for handle in handles))
    assert all(cancelled)
    assert count.total() <= 40, count
    assert set(told(app).cancelled) == {run_of(handle) for handle in handles}
    assert told(app).cancels == 100


async def test_cancels_of_many_processes_all_take_effect(app: App) -> None:
    """Each makes its own into a few changes, and waits before it tries again."""
    app.pause()
    count: Counter[str] = Counter()
    runs = [[f"c-{process}-{number}.r1" for number in range(25)] for process in range(4)]

    async def cancel(_: Ledger) -> None:
        ledgers = [another_process(app) for _ in runs]
        for ledger in ledgers:
            ledger._store = app.client.session._ledger._store  # type: ignore[union-attr]  # where requests are counted
        told = [control.tell_cancelled(ledger, "default", run) for ledger, own in zip(ledgers, runs, strict=True) for run in own]
        await asyncio.gather(*told)

    with requests_about_control(app, count):
        await app.client.arun(cancel)
    assert count.total() <= 80, count
    assert set(told(app).cancelled) == {run for own in runs for run in own}
    assert told(app).paused


# cancel, whatever goes wrong


class Fault(StrEnum):
    """What goes wrong at a request."""

    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    ANSWER_LOST = "answer lost"


@dataclass
class Requests:
    """The requests of a block; at the one with this number something goes wrong."""

    number: int = -1
    fault: Fault = Fault.CRASH_BEFORE
    asked: list[str] = field(default_factory=list)

    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.asked.append(method.__name__)
        if len(self.asked) - 1 != self.number:
            return method(*args, **kwargs)
        return self._go_wrong(method, *args, **kwargs)

    async def _go_wrong(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self.fault is Fault.CRASH_BEFORE:
            raise Crash
        with contextlib.suppress(Exception):  # whatever the answer was
            await method(*args, **kwargs)
        raise Crash if self.fault is Fault.CRASH_AFTER else Unreachable("The answer was lost.", maybe_done=True)


REQUESTS_OF_CANCEL = ["put", "delete", "get", "put"]
"""The outcome; the message, which cannot be taken back; and the control."""


def taken(app: App) -> Iterator[Handle[Any]]:
    """A call that a worker has."""
    handle = step.delay()
    take(app)
    yield handle


def requests_of_cancel(app: App) -> list[str]:
    """What a cancel of a running call asks for."""
    requests = Requests()
    (handle,) = taken(app)
    with between(app, requests):
        handle.cancel()
    return requests.asked


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("by", ["the-same-handle", "another-handle"])
def test_a_cancel_that_is_repeated_stops_the_call(app: App, fault: Fault, by: str) -> None:
    """Whatever went wrong at whichever of its requests."""
    assert requests_of_cancel(app) == REQUESTS_OF_CANCEL
    for number in range(len(REQUESTS_OF_CANCEL)):
        (handle,) = taken(app)
        with between(app, Requests(number, fault)), contextlib.suppress(Crash, Unreachable):
            handle.cancel()
        again = handle if by == "the-same-handle" else app.handle(handle.id)
        assert again.cancel()

        assert app.handle(handle.id).status() is State.CANCELLED
        assert run_of(handle) in told(app).cancelled, f"nobody is told after a fault at request {number}"


def test_a_cancel_of_a_call_that_has_succeeded_tells_nobody(app: App) -> None:
    """There is nothing to stop."""
    from test_handles import end

    handle = step.delay()
    take(app)
    end(handle, value=1)
    with counted(app) as requests:
        assert not handle.cancel()
    assert requests["delete"] == 0
    assert blobs(app, layout.CONTROL) == []


def test_a_queue_that_only_options_name_is_told_too(app: App) -> None:
    """Who cancels by id does not know where the call lies, but what this process has ever named."""
    handle = step.options(queue="rarely").delay()

    assert app.handle(handle.id).cancel()

    assert told(app, "rarely").cancelled == (f"{handle.id}.r1",)
