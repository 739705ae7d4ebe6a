"""gc on both stores: what goes, what stays, what it costs, and what is left when it dies at any of its requests.

Nothing is made up but the time: the server's clock is put forward, or the blobs of a local place are made older.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from storage_spy import Crash, blobs, counted, depth
from storage_spy import between as between_requests
from test_control_records import Fault, Requests

from ai4s.jobq import App, DeclarationError, Handle, KeyConflict, ResultGone, State, Unreachable, layout, sweeping, version3
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call, Cause, DeadLetter, Failure, Outcome, RetryRecord, Spill
from ai4s.jobq.sweeping import DAY_SECONDS, Swept
from ai4s.jobq.task import Task
from ai4s.jobq.worker.tidying import Tidying

LARGE = b"0123456789" * 50_000
DAYS = 10.0


def size(data: bytes = b"") -> int:
    return len(data)


@pytest.fixture(params=["local", "azurite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and then a storage account."""
    return f"local://{tmp_path / 'place'}" if request.param == "local" else str(request.getfixturevalue("azurite_url"))


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    """A folder."""
    return f"local://{tmp_path / 'place'}"


@contextlib.contextmanager
def an_app(url: str) -> Iterator[App]:
    """A fresh app."""
    app = App(f"t{uuid.uuid4().hex[:12]}", url)
    try:
        yield app
    finally:
        app.close()


@pytest.fixture
def app(url: str) -> Iterator[App]:
    """A fresh app at each kind of place."""
    with an_app(url) as made:
        yield made


@pytest.fixture
def local_app(local_url: str) -> Iterator[App]:
    """A fresh app on a folder."""
    with an_app(local_url) as made:
        yield made


class Later:
    """A transport whose server's clock is ahead."""

    def __init__(self, real: Any, seconds: float) -> None:
        self._real, self._seconds = real, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def server_time(self) -> float:
        return float(await self._real.server_time()) + self._seconds


@contextlib.contextmanager
def later(app: App, days: float = DAYS) -> Iterator[None]:
    """For this block it is so many days later."""

    async def put_forward(ledger: Ledger) -> Any:
        real = ledger.transport
        ledger.transport = Later(real, days * DAY_SECONDS)  # type: ignore[assignment]  # by __getattr__
        return real

    async def put_back(ledger: Ledger) -> None:
        ledger.transport = real

    real = app.client.run(put_forward)
    try:
        yield
    finally:
        app.client.run(put_back)


def make_older(app: App, prefix: str, days: float) -> None:
    """On a local place: all blobs of this prefix were written so many days earlier."""

    async def make(ledger: Ledger) -> None:
        statement = "UPDATE blobs SET modified = modified - ? WHERE container = ? AND substr(name, 1, ?) = ?"
        values = (days * DAY_SECONDS, layout.container_name(app.name), len(prefix), prefix)
        await ledger.transport.database.write(lambda transaction: transaction.execute(statement, values))  # type: ignore[attr-defined]

    app.client.run(make)


# What lies there.


def task(app: App) -> Task[..., Any, Any]:
    """The task whose calls are swept."""
    return app.tasks["size"] if "size" in app.tasks else app.task(name="size")(size)


async def end(ledger: Ledger, call: str, run: int = 1, state: State = State.SUCCEEDED, value: bytes | Spill = b"v") -> Outcome:
    """Write the outcome of a run, as a worker does."""
    failure = Failure(Cause.RAISED, "ValueError", "no") if state is State.FAILED else None
    held = value if state is State.SUCCEEDED else None
    return await ledger.commit(Outcome(call, run, state, "t" * 16, task="size", queue="default", value=held, failure=failure))


def finished(app: App, tmp: Path, **options: Any) -> Handle[Any]:
    """A call that has ended, with everything that a call can leave behind."""
    handle = task(app).options(**options).delay(LARGE)
    (tmp / "checkpoint").write_bytes(b"checkpoint")

    async def finish(ledger: Ledger) -> None:
        await ledger.keep_checkpoint(handle.id, "t" * 16, 1, tmp / "checkpoint")
        await ledger.keep_value(handle.id, "u" * 16, LARGE)  # of an attempt that came to nothing
        log = layout.call_log(handle.id, (1, 1, 0.0), "t" * 16)
        await (await ledger.store()).put(log, b"0.000 o said\n", if_absent=True)
        await end(ledger, handle.id, value=await ledger.keep_value(handle.id, "t" * 16, LARGE))

    app.client.run(finish)
    return handle


def waiting(app: App, tmp: Path) -> Handle[Any]:
    """A call that has not ended, with a checkpoint of an attempt."""
    handle = task(app).delay(LARGE)
    (tmp / "checkpoint").write_bytes(b"checkpoint")
    app.client.run(lambda ledger: ledger.keep_checkpoint(handle.id, "t" * 16, 1, tmp / "checkpoint"))
    return handle


def failed(app: App) -> Handle[Any]:
    """A call that has failed, with its dead letter."""
    handle = task(app).delay(LARGE)

    async def fail(ledger: Ledger) -> None:
        outcome = await end(ledger, handle.id, state=State.FAILED)
        call = Call(handle.id, "size", "default", b"", sent=1.0)
        await ledger.bury(DeadLetter("raised", outcome, call), "default", handle.id, 1)

    app.client.run(fail)
    return handle


def purged(app: App) -> Handle[Any]:
    """One that a person has looked at."""
    handle = failed(app)
    lay_down(app, handle)
    return handle


def lay_down(app: App, handle: Handle[Any], run: int = 1) -> None:
    """Put a tombstone in the place of a dead letter."""

    async def put(ledger: Ledger) -> None:
        await (await ledger.store()).put(layout.dead_letter("default", handle.id, run), b"")

    app.client.run(put)


def ask_again(app: App, handle: Handle[Any], run: int) -> None:
    """Put the record that a run was asked for."""

    async def put(ledger: Ledger) -> None:
        name = layout.retry(handle.id, run)
        await (await ledger.store()).put(name, ledger.wire.seal(RetryRecord(1.0), name), if_absent=True)

    app.client.run(put)


def retried(app: App) -> Handle[Any]:
    """A call that failed, and succeeded when it was retried."""
    handle = running_again(app)
    app.client.run(lambda ledger: end(ledger, handle.id, run=2))
    return handle


def running_again(app: App) -> Handle[Any]:
    """A call that failed and is being retried."""
    handle = failed(app)
    ask_again(app, handle, 2)
    lay_down(app, handle)
    return handle


def names_of(app: App, handle: Handle[Any]) -> list[str]:
    """All blobs of a call."""
    tail = handle.id.rpartition("-")[2]
    return [name for name in blobs(app) if tail in name]


@dataclass
class World:
    """Calls in every condition."""

    old: dict[str, Handle[Any]]
    needed: dict[str, Handle[Any]]


def make_world(app: App, tmp: Path) -> World:
    """Of each condition one."""
    forgotten = finished(app, tmp)
    forgotten.forget()
    needed_names = {"waiting": waiting(app, tmp), "failed": failed(app), "running again": running_again(app)}
    old = {
        "finished": finished(app, tmp),
        "with a key": finished(app, tmp, key="k"),
        "forgotten": forgotten,
        "purged": purged(app),
        "retried": retried(app),
        "cancelled": cancelled(app),
    }
    return World(old, needed_names)


def cancelled(app: App) -> Handle[Any]:
    """A call that was cancelled before it began."""
    handle = task(app).delay(LARGE)
    assert handle.cancel()
    return handle


# What goes, and what stays.


def test_everything_of_an_old_call_goes(app: App, tmp_path: Path) -> None:
    """Outcomes of all runs, arguments, values, checkpoints, records of keys and retries, tombstones."""
    world = make_world(app, tmp_path)
    with later(app):
        assert app.gc(timedelta(days=2)).calls == len(world.old)
    assert {what: names_of(app, handle) for what, handle in world.old.items()} == {what: [] for what in world.old}


def test_what_a_call_needs_stays(app: App, tmp_path: Path) -> None:
    """A call that has not ended, a failed one that nobody has looked at, and one that is being retried keep everything."""
    world = make_world(app, tmp_path)
    before = {what: names_of(app, handle) for what, handle in world.needed.items()}
    with later(app):
        app.gc(timedelta(days=2))
    assert {what: names_of(app, handle) for what, handle in world.needed.items()} == before
    assert all(len(names) >= 2 for names in before.values())


def test_what_is_younger_stays(app: App, tmp_path: Path) -> None:
    """Whatever it is."""
    make_world(app, tmp_path)
    before = blobs(app)
    with later(app, days=3):
        swept = app.gc(timedelta(days=5))
    # What was forgotten is kept for a day only.
    assert swept == Swept(calls=1)
    assert len(blobs(app)) == len(before) - 1
    assert app.gc(timedelta(days=1)) == Swept()


def test_a_call_is_as_old_as_its_last_run(local_app: App) -> None:
    """A retry that ended lately keeps the run before it, too."""
    handle = retried(local_app)
    make_older(local_app, "", 10)
    make_older(local_app, layout.result(handle.id, 2), -10)
    before = blobs(local_app)
    assert local_app.gc(timedelta(days=5)).calls == 0
    assert blobs(local_app) == before


def test_a_key_that_was_used_lately_keeps_its_call(local_app: App, tmp_path: Path) -> None:
    """Somebody may just have been given its handle."""
    handle = finished(local_app, tmp_path, key="k")
    make_older(local_app, layout.RESULTS, 10)
    assert local_app.gc(timedelta(days=5)).calls == 0
    assert handle.status() is State.SUCCEEDED


def test_a_failure_whose_worker_died_before_the_dead_letter_stays(app: App) -> None:
    """Its message comes again, and the letter is written then."""
    handle = task(app).delay(LARGE)
    app.client.run(lambda ledger: end(ledger, handle.id, state=State.FAILED))
    with later(app):
        assert app.gc(timedelta(days=2)).calls == 0
    assert len(names_of(app, handle)) == 2


def test_a_call_is_run_again_after_its_key_was_swept(app: App, tmp_path: Path) -> None:
    """Also with other arguments: the key is free."""
    finished(app, tmp_path, key="k")
    with pytest.raises(KeyConflict):
        task(app).options(key="k").delay(b"others")
    with later(app):
        app.gc(timedelta(days=2))
    before = depth(app)
    assert task(app).options(key="k").delay(b"others").status() == "pending"
    assert depth(app) == before + 1


def test_statuses_of_workers_that_are_gone_go(local_app: App) -> None:
    """Those that have not been heard of for a day."""

    async def show(ledger: Ledger) -> None:
        for worker in ("gone", "here"):
            await (await ledger.store()).put(layout.worker(worker), b"", metadata={"state": "working"})

    local_app.client.run(show)
    make_older(local_app, layout.worker("gone"), 1.1)
    assert local_app.gc(timedelta(days=30)) == Swept(workers=1)
    assert blobs(local_app, layout.WORKERS) == [layout.worker("here")]


def test_tombstones_of_dead_letters_go_and_letters_stay(local_app: App) -> None:
    """Also those of messages that could not be read."""

    async def bury(ledger: Ledger) -> None:
        for message in ("one", "two"):
            await ledger.bury(DeadLetter("Malformed", raw=message), "default", message, 1)
        await (await ledger.store()).put(layout.dead_letter("default", "one", 1), b"")

    local_app.client.run(bury)
    make_older(local_app, "", 10)
    assert local_app.gc(timedelta(days=5)) == Swept(dead_letters=1)
    assert blobs(local_app, layout.DEAD_LETTERS) == [layout.dead_letter("default", "two", 1)]


def test_payloads_go_only_when_they_are_named(app: App) -> None:
    """Nobody can know which calls will need them."""
    handle = app.submit(lambda: 1)
    handle.cancel()
    (name,) = blobs(app, "payloads/")
    sha256 = name.partition("/")[2]
    with later(app):
        assert app.gc(timedelta(days=2)) == Swept(calls=1)
        assert app.gc(timedelta(days=2), payloads=[sha256, "0" * 64]) == Swept(payloads=1)
    assert blobs(app, "payloads/") == []


def test_a_day_is_the_least(local_app: App) -> None:
    """Less is refused before any request; so is what cannot be a payload."""
    for older_than in (0, 86_399, timedelta(hours=23), -1, "1d"):
        with pytest.raises(DeclarationError, match="older_than must be seconds, from 86400"):
            local_app.gc(older_than)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(DeclarationError, match="is not a SHA-256 digest"):
        local_app.gc(timedelta(days=1), payloads=["../results"])
    with pytest.raises(DeclarationError, match="result_ttl must be seconds, from 86400"):
        App("sweeping", result_ttl=timedelta(hours=1))
    assert App("sweeping", result_ttl=timedelta(days=1)).client.result_ttl_seconds == DAY_SECONDS


async def test_gc_has_an_async_twin(local_app: App) -> None:
    """That does the same."""
    assert await local_app.agc(timedelta(days=1)) == Swept()


def test_forget_leaves_nothing_but_its_tombstone(app: App, tmp_path: Path) -> None:
    """Checkpoints go as well."""
    handle = finished(app, tmp_path)
    handle.forget()
    assert names_of(app, handle) == [layout.result(handle.id, 1)]
    with pytest.raises(ResultGone):
        handle.status()


# What it costs.


def test_it_costs_listings_and_deletions(app: App) -> None:
    """However many outcomes there are, none is read."""

    async def end_many(ledger: Ledger) -> None:
        await asyncio.gather(*(end(ledger, layout.call_id("abcdefgh234567ab", n)) for n in range(200)))

    app.client.run(end_many)
    with later(app), counted(app) as requests:
        assert app.gc(timedelta(days=2)).calls == 200
    # Outcomes, values, checkpoints, arguments, logs, retries, letters of the queue; batches; tombstones of two kinds, workers,
    # probes.
    assert requests == {"delete": 200, "list": 12}
    with later(app), counted(app) as requests:
        app.gc(timedelta(days=2))
    assert requests == {"list": 6}


# Whatever goes wrong.


def is_settled(app: App, world: World, before: dict[str, list[str]]) -> None:
    """What the living need is there, and of the others nothing."""
    for what, handle in world.needed.items():
        assert names_of(app, handle) == before[what], what
    for what, handle in world.old.items():
        assert names_of(app, handle) == [], what


def requests_of_gc(url: str, tmp: Path) -> list[str]:
    """What an undisturbed gc of the world asks for."""
    requests = Requests()
    with an_app(url) as app:
        make_world(app, tmp)
        with later(app), between_requests(app, requests):
            app.gc(timedelta(days=2))
    return requests.asked


def numbers(requests: list[str], fault: Fault, step: int = 1) -> list[int]:
    """The requests to try this fault at: to the storage, dying after having read is the same as dying before it."""
    reads = ("get", "head", "list") if fault is Fault.CRASH_AFTER else ()
    return [number for number, what in enumerate(requests) if what not in reads][::step]


class Disturbed(Requests):
    """As `Requests`; a listing, which is no coroutine, can only not begin."""

    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if method.__name__ == "list" and len(self.asked) == self.number:
            self.asked.append("list")
            raise Crash if self.fault is not Fault.ANSWER_LOST else Unreachable(maybe_done=False)
        return super().__call__(method, *args, **kwargs)


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_a_second_gc_finishes_whatever_the_first_came_to(
    url: str, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in between nothing is gone that a live call needs; on a storage account each eleventh request is tried."""
    monkeypatch.setattr(sweeping, "AT_A_TIME", 1)
    requests = requests_of_gc(url, tmp_path)
    assert len(requests) > 30
    for number in numbers(requests, fault, 1 if url.startswith("local") else 11):
        with an_app(url) as app:
            world = make_world(app, tmp_path)
            before = {what: names_of(app, handle) for what, handle in world.needed.items()}
            with later(app), between_requests(app, Disturbed(number, fault)), contextlib.suppress(Crash, Unreachable):
                app.gc(timedelta(days=2))
            assert {what: names_of(app, handle) for what, handle in world.needed.items()} == before
            with later(app, days=2 * DAYS):
                app.gc(timedelta(days=2))
            is_settled(app, world, before)


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_a_key_can_be_used_again_wherever_gc_died(
    local_url: str, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call is the old one, whole, or a new one that is on the queue; never an old value for new arguments, and never none."""
    monkeypatch.setattr(sweeping, "AT_A_TIME", 1)
    for number in range(40):
        with an_app(local_url) as app:
            finished(app, tmp_path, key="k")
            before = depth(app)
            with later(app), between_requests(app, Disturbed(number, fault)), contextlib.suppress(Crash, Unreachable):
                app.gc(timedelta(days=2))
            try:
                handle = task(app).options(key="k").delay(b"others")
            except KeyConflict:
                assert app.handle(finished_id(app)).status() is State.SUCCEEDED
            else:
                assert handle.status() == "pending"
                assert depth(app) == before + 1
                assert not [name for name in names_of(app, handle) if name.startswith((layout.ARGUMENTS, layout.RESULTS))]


def finished_id(app: App) -> str:
    """The id of the call with the key."""
    (name,) = blobs(app, "results/key/")
    found = layout.run_of(name)
    assert found is not None
    return found[0]


def test_a_key_that_is_used_while_gc_is_at_it_gets_a_call_of_its_own(local_app: App, tmp_path: Path) -> None:
    """Between any two requests of gc: the new call's message, arguments and record stay."""
    requests = Requests()
    finished(local_app, tmp_path, key="k0")
    with later(local_app), between_requests(local_app, requests):
        local_app.gc(timedelta(days=2))
    for number in range(len(requests.asked)):
        key = f"k{number + 1}"
        finished(local_app, tmp_path, key=key)
        used: list[str] = []
        with later(local_app), between_requests(local_app, Meanwhile(local_app, number, key, used)):
            local_app.gc(timedelta(days=2))
        for call in used:
            assert blobs(local_app, layout.key(call)) == [layout.key(call)]
            assert local_app.handle(call).status() == "pending"
            assert blobs(local_app, layout.arguments(call)) == [layout.arguments(call)]


class Meanwhile:
    """Before the request with this number, somebody uses the key with other arguments."""

    def __init__(self, app: App, number: int, key: str, used: list[str]) -> None:
        self._app, self._number, self._key, self._used, self._asked = app, number, key, used, 0

    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._asked += 1
        if self._asked - 1 != self._number or method.__name__ == "list":
            return method(*args, **kwargs)
        return self._use_first(method, *args, **kwargs)

    async def _use_first(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(KeyConflict):
            self._used.append((await task(self._app).options(key=self._key).adelay(LARGE + b"others")).id)
        return await method(*args, **kwargs)


# In the background.


async def tidied(ledger: Ledger, steps: int, is_idle: Callable[[], bool] = lambda: True) -> None:
    """So many steps of an idle worker."""
    tidying = Tidying(ledger, 2 * DAY_SECONDS, is_idle)
    for _ in range(steps):
        await tidying.step(2 * DAY_SECONDS)


def test_a_round_of_steps_comes_by_everything(app: App, tmp_path: Path) -> None:
    """And removes what a gc would remove, but for tombstones of dead letters that are no call's."""
    world = make_world(app, tmp_path)
    before = {what: names_of(app, handle) for what, handle in world.needed.items()}
    with later(app):
        app.client.run(lambda ledger: tidied(ledger, 2 * len(layout.CLIENT_LETTERS) + 2))
    is_settled(app, world, before)


def test_a_step_is_small(local_app: App) -> None:
    """One listing where there is nothing to do; else a hundred calls at most, which are found without beginning anew."""

    async def end_many(ledger: Ledger) -> None:
        await asyncio.gather(*(end(ledger, layout.call_id("abcdefgh234567ab", n)) for n in range(250)))

    async def step(ledger: Ledger) -> None:
        await tidying.step(2 * DAY_SECONDS)

    local_app.client.run(end_many)
    with counted(local_app) as requests:
        tidying = local_app.client.run(made_for_the_letter_a)
        local_app.client.run(step)
        assert requests == {"list": 1}
    with later(local_app):
        tidying = local_app.client.run(made_for_the_letter_a)
        for left in (150, 50, 0):
            with counted(local_app) as requests:
                local_app.client.run(step)
            assert requests["delete"] <= 100
            assert requests["list"] <= 7
            assert len(blobs(local_app, layout.RESULTS)) == left


async def made_for_the_letter_a(ledger: Ledger) -> Tidying:
    """A worker's tidying that looks at clients with an "a" next."""
    tidying = Tidying(ledger, 2 * DAY_SECONDS, lambda: True)
    tidying._letters, tidying._steps = ["a"], 0
    return tidying


def test_a_step_ends_when_work_comes(local_app: App) -> None:
    """It does not begin another call's removal."""

    async def end_many(ledger: Ledger) -> None:
        await asyncio.gather(*(end(ledger, layout.call_id("abcdefgh234567ab", n)) for n in range(100)))

    async def step(ledger: Ledger) -> None:
        looks = iter([True, True])
        tidying = await made_for_the_letter_a(ledger)
        tidying._is_idle = lambda: next(looks, False)
        await tidying.step(2 * DAY_SECONDS)

    local_app.client.run(end_many)
    with later(local_app):
        local_app.client.run(step)
    assert len(blobs(local_app, layout.RESULTS)) == 98


def test_a_fault_does_not_end_the_worker(local_app: App, caplog: pytest.LogCaptureFixture) -> None:
    """It is said, and the next step goes on."""

    async def step(ledger: Ledger) -> None:
        tidying = await made_for_the_letter_a(ledger)

        def fails(*args: object, **kwargs: object) -> AsyncIterator[Any]:
            return _failing()

        (await ledger.store()).list = fails  # type: ignore[method-assign]  # the spy is in between
        await tidying.step(2 * DAY_SECONDS)

    with between_requests(local_app, lambda method, *args, **kwargs: method(*args, **kwargs)):
        local_app.client.run(step)
    assert "to be tried again" in caplog.text


async def _failing() -> AsyncIterator[Any]:
    raise Unreachable("no answer", maybe_done=False)
    yield


async def test_nothing_is_done_without_a_ttl() -> None:
    """Not even waited for."""
    await asyncio.wait_for(Tidying(None, None, lambda: True).keep(), timeout=5)  # type: ignore[arg-type]  # nobody asks it


async def test_names_in_storage_are_read_as_they_are_made() -> None:
    """For every kind of call and run."""
    for call in (layout.call_id("abcdefgh234567ab", 5_000), layout.keyed_call_id("ab" * 32), version3.message_call_id("17")):
        for run in (1, 2, 10):
            assert layout.run_of(layout.result(call, run)) == (call, run)
        assert layout.call_of(layout.value(call, "t"), layout.VALUES) == call
        assert layout.call_of(layout.retry(call, 2), layout.RETRIES) == call
    assert layout.run_of("results/else/1") is None
    assert layout.call_of("args/else", layout.ARGUMENTS) is None
