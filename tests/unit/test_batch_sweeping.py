"""gc and forget of batches: whole or not at all, never while somebody needs them, and finished by the next one wherever they died.

The calls are run inline, by the real pack log; the server's clock is put forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from storage_spy import Crash, blobs, counted, depth
from storage_spy import between as between_requests
from test_control_records import Fault, Requests
from test_sweeping import Disturbed, an_app, later, numbers

from ai4s.jobq import App, Batch, JobQError, MapInterrupted, NotFinished, ResultGone, Unreachable, layout
from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.maps import removal as batch_removal
from ai4s.jobq.maps.standing import reckon, standing_of
from ai4s.jobq.message import BatchTotal
from ai4s.jobq.parts import Parts
from ai4s.jobq.sweeping import DAY_SECONDS, Sweeper, Swept
from ai4s.jobq.testing import inline
from ai4s.jobq.worker.tidying import BATCHES_EVERY, STATUSES_EVERY, Tidying

LARGE = b"0123456789" * 50_000
WEEK = timedelta(days=7)


@pytest.fixture(params=["local", "azurite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and then a storage account."""
    return f"local://{tmp_path / 'place'}" if request.param == "local" else str(request.getfixturevalue("azurite_url"))


@pytest.fixture
def app(url: str) -> Iterator[App]:
    """A fresh app at each kind of place."""
    with an_app(url) as made:
        yield made


@pytest.fixture
def local_app(tmp_path: Path) -> Iterator[App]:
    """A fresh app on a folder."""
    with an_app(f"local://{tmp_path / 'place'}") as made:
        yield made


def work(item: object, times: int = 1, mended: str | None = None) -> bytes:
    """Fails for texts, unless they are the ones that were mended."""
    if isinstance(item, str) and mended is not None and not Path(mended).exists():
        raise ValueError(item)
    return (item if isinstance(item, bytes) else b"x") * times


def mapped(app: App, items: list[Any], **options: Any) -> Batch[bytes]:
    """A batch that has ended."""
    task = app.tasks.get("work") or app.task(name="work")(work)
    with inline(app):
        return task.map(items, **options)


def waiting(app: App) -> Batch[bytes]:
    """A batch of which nobody has run anything."""
    return (app.tasks.get("work") or app.task(name="work")(work)).map(range(3))


def names(app: App, batch: Batch[Any]) -> list[str]:
    """All that lies there for a batch."""
    return [name for name in blobs(app) if f"/{batch.id}" in name]


def swept(app: App, days: float = 10) -> Swept:
    """A gc that many days later."""
    with later(app, days=days):
        return app.gc(WEEK)


# What goes, and what stays.


def test_everything_of_an_old_batch_goes(app: App) -> None:
    """Inputs, log, large arguments and values; what is left is a mark, and that goes a day later."""
    batch = mapped(app, [1, LARGE, 2], kwargs={"times": 2})
    with_large_kwargs = mapped(app, [1, 2], kwargs={"mended": "x" * 300_000})
    assert len(names(app, batch)) >= 6

    assert swept(app).batches == 2
    assert names(app, batch) == [layout.batch_meta(batch.id)]
    assert names(app, with_large_kwargs) == [layout.batch_meta(with_large_kwargs.id)]
    assert swept(app) == Swept()
    assert names(app, batch) == []
    assert swept(app) == Swept()


def test_checkpoints_and_logs_of_its_calls_go(local_app: App, tmp_path: Path) -> None:
    """Those that no call has removed itself."""
    batch = mapped(local_app, [1])
    (tmp_path / "checkpoint").write_bytes(b"x")
    call = layout.packed_call_id(batch.id, 0)
    local_app.client.run(lambda ledger: ledger.keep_checkpoint(call, "t" * 16, 1, tmp_path / "checkpoint"))

    async def say(ledger: Ledger) -> None:
        await (await ledger.store()).append(layout.call_log(call, (1, 1, 0.0), "t" * 16), b"0.000 o said\n", at=0)

    local_app.client.run(say)
    swept(local_app)
    assert blobs(local_app, layout.CHECKPOINTS) == []
    assert blobs(local_app, layout.LOGS) == []


def test_a_batch_goes_by_the_age_of_what_came_last(app: App) -> None:
    """Younger ones stay whole."""
    batch = mapped(app, [1, LARGE])
    before = names(app, batch)
    assert swept(app, days=6).batches == 0
    assert names(app, batch) == before


def test_a_batch_that_has_not_ended_stays(app: App) -> None:
    """One that waits, one of which a pack waits, and one whose source broke off before its program could say so."""
    untouched, half = waiting(app), mapped(app, [1], batch="half", key=str)
    app.tasks["work"].map([1, 2], batch="half", key=str)
    unsaid = mapped(app, [1])

    async def unsay(ledger: Ledger) -> None:
        name = layout.batch_total(unsaid.id)
        await (await ledger.store()).put(name, ledger.wire.seal(BatchTotal(1, 1), name))

    app.client.run(unsay)
    before = [names(app, batch) for batch in (untouched, half, unsaid)]
    assert swept(app).batches == 0
    assert [names(app, batch) for batch in (untouched, half, unsaid)] == before


def test_a_batch_of_nothing_goes(local_app: App) -> None:
    """And so does one whose source raised, which is as whole as it will be."""
    mapped(local_app, [])

    def source() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(MapInterrupted), inline(local_app):
        local_app.tasks["work"].map(source())
    assert swept(local_app).batches == 2


def failing(app: App, tmp: Path) -> Batch[bytes]:
    """A batch with failures, until the file of its id is there."""
    return mapped(app, [1, "a", "b"], kwargs={"mended": str(tmp / "mended")})


def test_failures_that_nobody_has_seen_to_stay(app: App, tmp_path: Path) -> None:
    """Their dead letter stands; so they can be retried, however old they are."""
    batch = failing(app, tmp_path)
    before = names(app, batch)
    assert swept(app).batches == 0
    assert names(app, batch) == before


def test_failures_whose_letter_is_still_to_come_stay(local_app: App, tmp_path: Path) -> None:
    """Their worker died before it could write it; the pack's next delivery does."""
    batch = failing(local_app, tmp_path)

    async def remove(ledger: Ledger) -> None:
        await (await ledger.store()).delete(layout.batch_letter("default", batch.id))

    local_app.client.run(remove)
    assert swept(local_app).batches == 0


def test_purged_failures_go(app: App, tmp_path: Path) -> None:
    """With their letter."""
    batch = failing(app, tmp_path)
    assert app.dead_letters.purge(batch.id) == [batch.id]
    assert swept(app).batches == 1
    assert names(app, batch) == [layout.batch_meta(batch.id)]


def test_failures_that_succeeded_when_they_were_retried_go(app: App, tmp_path: Path) -> None:
    """Also where the letter was left standing."""
    batch, left_standing = failing(app, tmp_path), failing(app, tmp_path)
    (tmp_path / "mended").touch()
    with inline(app):
        assert (batch.retry_failures(), left_standing.retry_failures()) == (2, 2)

    async def stand(ledger: Ledger) -> None:
        await (await ledger.store()).put(layout.batch_letter("default", left_standing.id), b"", metadata={"run": "1"})

    app.client.run(stand)
    assert swept(app).batches == 2
    assert names(app, left_standing) == [layout.batch_meta(left_standing.id)]


def test_failures_that_failed_again_or_run_again_stay(app: App, tmp_path: Path) -> None:
    """For the newest run decides."""
    again, running = failing(app, tmp_path), failing(app, tmp_path)
    with inline(app):
        assert again.retry_failures() == 2
    assert running.retry_failures() == 2
    assert depth(app) == 1
    assert swept(app).batches == 0
    assert app.dead_letters.get(again.id) is not None


def test_large_arguments_of_a_batch_that_never_came_to_be_go(local_app: App) -> None:
    """Their producer died before it could say what they are of; not before they are old."""
    batch = BatchLedger(local_app.client.run(_ledger), "never")
    local_app.client.run(lambda ledger: batch.put_arguments(Parts.of(LARGE)))
    assert swept(local_app, days=1) == Swept()
    assert len(blobs(local_app, layout.BATCHES)) == 1
    swept(local_app)
    assert blobs(local_app, layout.BATCHES) == []


async def _ledger(ledger: Ledger) -> Ledger:
    return ledger


def test_letters_of_batches_that_are_gone_go(local_app: App) -> None:
    """A late worker may have put one; those of batches that are there stay."""
    batch = mapped(local_app, [1])
    for of in ("gone", batch.id):
        local_app.client.run(lambda ledger, of=of: BatchLedger(ledger, of).bury("default"))
    with later(local_app):
        assert local_app.gc(timedelta(days=30)) == Swept()
        assert local_app.gc(timedelta(days=9)) == Swept(batches=1, dead_letters=1)
    assert blobs(local_app, layout.DEAD_LETTERS) == []


# What others notice.


def test_who_reads_a_removed_batch_is_told(app: App) -> None:
    """Also with an object from before, or a handle of a call."""
    batch = mapped(app, range(5))  # type: ignore[arg-type]
    assert len(list(batch)) == 5
    swept(app)
    for each in (batch, app.batch(batch.id)):
        with pytest.raises(ResultGone):
            list(each)
    for again in (app.batch(batch.id).progress, app.batch(batch.id).failures, app.batch(batch.id).retry_failures):
        with pytest.raises(ResultGone):
            again()
    with pytest.raises(ResultGone):
        app.handle(f"{batch.id}.3").result(timeout=60)


def test_its_name_is_free_once_the_mark_is_gone(local_app: App) -> None:
    """Until then, whoever uses it is told."""
    mapped(local_app, [1], batch="campaign", key=str)
    swept(local_app)
    with pytest.raises(ResultGone):
        mapped(local_app, [1], batch="campaign", key=str)
    swept(local_app, days=20)
    assert list(mapped(local_app, [2, 3], batch="campaign", key=str)) == [b"x", b"x"]


def test_a_batch_that_somebody_goes_on_with_meanwhile_stays(local_app: App) -> None:
    """Between gc's look and its first step: what is added changes the total, under which condition alone it begins."""
    batch = mapped(local_app, [1], batch="campaign", key=str)

    async def remove(ledger: Ledger) -> bool:
        standing = await standing_of(ledger, batch.id)
        reckoned = await reckon(ledger, standing)
        await BatchLedger(ledger, batch.id).say_total(BatchTotal(2, 2, ended=True))
        return await batch_removal._remove(ledger, standing, reckoned)

    assert not local_app.client.run(remove)
    assert list(mapped(local_app, [1, 2], batch="campaign", key=str))


def test_who_goes_on_with_a_batch_that_is_being_removed_hears_of_it(local_app: App) -> None:
    """Before `map` returns, which would say that the calls are safe."""
    mapped(local_app, [1], batch="campaign", key=str)

    def source() -> Iterator[int]:
        yield 2
        swept(local_app)

    with pytest.raises((ResultGone, MapInterrupted)) as caught:
        local_app.tasks["work"].map(source(), batch="campaign", key=str)
    assert "removed" in str(caught.value)


# forget


def test_a_batch_can_be_forgotten(app: App, tmp_path: Path) -> None:
    """At once, failures included; and again, which says so."""
    batch = failing(app, tmp_path)
    batch.forget()
    assert names(app, batch) == [layout.batch_meta(batch.id)]
    assert app.dead_letters.list() == []
    for again in (batch, app.batch(batch.id)):
        with pytest.raises(ResultGone):
            again.forget()
        with pytest.raises(ResultGone):
            list(again)


async def test_forget_has_an_async_twin(local_app: App) -> None:
    """That does the same."""
    batch = mapped(local_app, [1])
    await batch.aforget()
    assert names(local_app, batch) == [layout.batch_meta(batch.id)]


def test_only_what_has_ended_can_be_forgotten(local_app: App) -> None:
    """And what there is."""
    batch = waiting(local_app)
    before = names(local_app, batch)
    with pytest.raises(NotFinished):
        batch.forget()
    assert names(local_app, batch) == before
    with pytest.raises(JobQError, match="There is no batch"):
        local_app.batch("none").forget()


# Whatever goes wrong.


def make_batches(app: App, tmp: Path) -> tuple[list[Batch[bytes]], list[Batch[bytes]]]:
    """Some that may go, and some that are needed."""
    purged = failing(app, tmp)
    app.dead_letters.purge(purged.id)
    return [mapped(app, [1, LARGE]), purged], [failing(app, tmp), waiting(app)]


def requests_of(app: App, tmp: Path, work: Callable[[], object]) -> list[str]:
    """What something asks for."""
    requests = Requests()
    with between_requests(app, requests):
        work()
    return requests.asked


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_a_second_gc_finishes_whatever_the_first_came_to(
    url: str, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every request; in between nothing is gone that somebody needs, and no batch is there in part without saying so."""
    monkeypatch.setattr(batch_removal, "AT_A_TIME", 1)
    with an_app(url) as app:
        make_batches(app, tmp_path)
        requests = requests_of(app, tmp_path, lambda: swept(app))
    assert len(requests) > 30
    for number in numbers(requests, fault, 1 if url.startswith("local") else 7):
        with an_app(url) as app:
            old, needed = make_batches(app, tmp_path)
            before = [names(app, batch) for batch in needed]
            with later(app), between_requests(app, Disturbed(number, fault)), contextlib.suppress(Crash, Unreachable):
                app.gc(WEEK)
            for batch in old:
                assert_whole_or_gone(app, batch)
            swept(app)
            assert [names(app, batch) for batch in needed] == before
            # Of what the first one has removed the mark is old by now.
            assert all(names(app, batch) in ([], [layout.batch_meta(batch.id)]) for batch in old)
            swept(app, days=30)
            assert [names(app, batch) for batch in old] == [[], []]


def assert_whole_or_gone(app: App, batch: Batch[bytes]) -> None:
    """A batch can be read, or says that it was removed."""
    try:
        assert len(app.batch(batch.id).results(on_error="return", timeout=60)) in (2, 3)
    except JobQError as exc:
        assert isinstance(exc, ResultGone) or "There is no batch" in str(exc)  # noqa: PT017  # the mark may have gone, too


# What it costs, and how it is done by and by.


def test_it_costs_a_listing_and_a_read_for_each_batch_that_stays_young(local_app: App) -> None:
    """Nothing of its log is read; one that is young costs no request of its own."""
    for _ in range(5):
        mapped(local_app, list(range(100)))
    with counted(local_app) as requests:
        local_app.gc(WEEK)
    assert requests == {"list": 6}
    assert local_app.dead_letters.list() == []


async def tidied(ledger: Ledger, is_idle: Callable[[], bool] = lambda: True, chance: Any = None) -> None:
    """So many steps of an idle worker that one of them is for batches, wherever it begins."""
    tidying = Tidying(ledger, 7 * DAY_SECONDS, is_idle, chance=chance)
    for _ in range(BATCHES_EVERY):
        await tidying.step(7 * DAY_SECONDS)


def test_idle_workers_remove_old_batches(app: App, tmp_path: Path) -> None:
    """And none that somebody needs."""
    old, needed = make_batches(app, tmp_path)
    with later(app):
        app.client.run(tidied)
    assert [names(app, batch) for batch in old] == [[layout.batch_meta(batch.id)] for batch in old]
    assert all(len(names(app, batch)) > 1 for batch in needed)


def test_batches_have_their_turn_wherever_a_worker_begins(local_app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any five steps one is for them, also of those among which statuses are looked at."""
    turns: list[int] = []

    async def turn(sweeper: Sweeper, *args: object) -> None:
        turns.append(first)

    monkeypatch.setattr(Sweeper, "sweep_batches", turn)
    for first in range(STATUSES_EVERY):
        chance = SimpleNamespace(randrange=lambda end, first=first: first, sample=lambda letters, count: list(letters))
        local_app.client.run(lambda ledger, chance=chance: tidied(ledger, chance=chance))
    assert turns == list(range(STATUSES_EVERY))


def test_a_worker_that_gets_work_leaves_the_rest_of_a_batch_to_the_next_step(local_app: App) -> None:
    """Which finds what is left."""
    batch = mapped(local_app, [1, LARGE])
    with later(local_app):
        for looks in range(1, 8):
            left = iter([True] * looks)
            local_app.client.run(lambda ledger, left=left: tidied(ledger, lambda: next(left, False)))
            assert_whole_or_gone(local_app, batch)
        for _ in range(2):
            local_app.client.run(tidied)
    assert names(local_app, batch) == []
