"""What the dashboard reads: within its budget of requests, in turn, once for all who look, and through an outage."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated import make, put_batch, put_letters, put_workers
from storage_spy import between

from ai4s.jobq import App, layout
from ai4s.jobq.dashboard import history as history_module
from ai4s.jobq.dashboard import refresh as refresh_module
from ai4s.jobq.dashboard import shared
from ai4s.jobq.dashboard.batch_data import BatchLooks
from ai4s.jobq.dashboard.failed_data import failed_data
from ai4s.jobq.dashboard.overview_data import batches_data, overview_data
from ai4s.jobq.dashboard.refresh import Refresh
from ai4s.jobq.dashboard.shared import Shared
from ai4s.jobq.dashboard.worker_data import workers_data
from ai4s.jobq.errors import AccessDenied, Unreachable

PATIENCE = 30.0


@pytest.fixture
def app(tmp_path: Path, without_waiting_for_the_disk: None) -> Iterator[App]:
    made = App("looked-at", f"local://{tmp_path}")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def as_fast_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh is due at once; else the time that the last one took would have to pass."""
    monkeypatch.setattr(shared, "SHARE", 0)


def requests(app: App) -> Counter[str]:
    """What this process has asked of the storage so far, by kind."""

    async def ask(ledger: Any) -> Counter[str]:
        return Counter(ledger.transport.requests.snapshot())

    return app.client.run(ask)


async def test_a_refresh_is_two_requests(app: App) -> None:
    """Whatever there is: one listing of the workers, and one request more."""
    make(app, "default", "gpu", "urgent")
    app.client.run(lambda ledger: put_workers(ledger, 5))
    app.client.run(lambda ledger: put_batch(ledger, "nightly", 1000, packs=5, entries=20))
    app.client.run(lambda ledger: put_letters(ledger, 3))
    refresh = Refresh(app, seconds=0)
    await refresh.look(PATIENCE)
    for _ in range(30):
        before = requests(app)
        await refresh.look(PATIENCE)
        made = requests(app) - before
        assert made.total() == 2
        assert 1 <= made["blob_list"] <= 2


async def test_the_first_refresh_asks_for_everything_once(app: App) -> None:
    """So the page is not filled line by line: names, then three requests for each queue, and a page of batches and letters."""
    make(app, "default", "gpu")
    app.client.run(lambda ledger: put_batch(ledger, "nightly", 100, packs=1, entries=4))
    refresh = Refresh(app, seconds=0)
    before = requests(app)
    seen = await refresh.look(PATIENCE)
    assert (requests(app) - before).total() <= 2 * 3 + 6
    assert [queue.messages for queue in seen.queues.values()] == [0, 0]
    assert seen.batches["nightly"].calls == 100
    assert seen.letters.total == 1


async def test_workers_cost_a_request_for_each_five_thousand(app: App) -> None:
    """5,200 of them are two pages."""
    make(app)
    app.client.run(lambda ledger: put_workers(ledger, 5200))
    refresh = Refresh(app, seconds=0)
    await refresh.look(PATIENCE)
    before = requests(app)
    assert len((await refresh.look(PATIENCE)).workers) == 5200
    assert (requests(app) - before).total() == 3


async def test_many_who_look_cost_as_much_as_one(app: App) -> None:
    """Ten browsers that poll at the same time share one refresh, and those that come too soon get what is known."""
    make(app)
    refresh = Refresh(app, seconds=3600)
    await asyncio.gather(*(refresh.look(PATIENCE) for _ in range(10)))
    before = requests(app)
    await asyncio.gather(*(refresh.look(PATIENCE) for _ in range(10)))
    assert not requests(app) - before
    refresh.changed_batches()
    await asyncio.gather(*(refresh.look(PATIENCE) for _ in range(10)))
    assert (requests(app) - before).total() == 2


async def test_nothing_is_read_while_nobody_looks(app: App) -> None:
    """There is no loop of its own."""
    make(app)
    refresh = Refresh(app, seconds=0)
    await refresh.look(PATIENCE)
    before = requests(app)
    await asyncio.sleep(0.1)
    assert not requests(app) - before


async def test_everything_has_its_turn(app: App) -> None:
    """Each queue, the batches and the letters are read again and again, however many there are."""
    make(app, "default", *(f"q{number}" for number in range(5)))
    refresh = Refresh(app, seconds=0)
    seen = await refresh.look(PATIENCE)
    before = {name: queue.as_of for name, queue in seen.queues.items()}, seen.letters_as_of
    for _ in range(60):
        await refresh.look(PATIENCE)
    assert all(queue.as_of != before[0][name] for name, queue in seen.queues.items())
    assert seen.letters_as_of != before[1]


async def test_what_was_changed_is_read_next(app: App) -> None:
    """At the cost of any other refresh: who pauses a queue sees it with the next answer, and need not wait for its turn."""
    make(app, "default", *(f"q{number}" for number in range(5)))
    refresh = Refresh(app, seconds=3600)
    seen = await refresh.look(PATIENCE)
    await app.apause("q3")
    before = requests(app)
    refresh.changed_orders("q3")
    await refresh.look(PATIENCE)
    assert seen.queues["q3"].orders.paused
    app.client.run(lambda ledger: put_letters(ledger, 2))
    refresh.changed_letters()
    await refresh.look(PATIENCE)
    assert seen.letters.total == 2
    app.client.run(lambda ledger: put_batch(ledger, "nightly", 100, packs=1, entries=4))
    refresh.changed_batches()
    await refresh.look(PATIENCE)
    assert "nightly" in seen.batches
    assert (requests(app) - before)["blob_list"] == 3 + 2


async def test_a_batch_looked_at_is_one_listing_page(app: App) -> None:
    """100,000 calls in 400 entries: one request each time, and its common part once."""
    make(app)
    app.client.run(lambda ledger: put_batch(ledger, "big", 100_000))
    refresh = Refresh(app, seconds=3600)
    await refresh.look(PATIENCE)
    looks = BatchLooks(refresh, 0)
    before = requests(app)
    found = await looks.data("big")
    assert requests(app) - before == Counter(blob_list=1, blob_get=1)
    assert (found["calls"], found["done"], found["failed"]) == (100_000, 90_000, 4_500)
    assert found["succeeded"] == sum(last - first + 1 for first, last, state in found["states"] if state == "succeeded")
    before = requests(app)
    await asyncio.gather(*(looks.data("big") for _ in range(10)))
    assert requests(app) - before == Counter(blob_list=1)
    await looks.close()


async def test_what_lists_say_of_a_batch_is_what_its_page_says(app: App) -> None:
    """Both count from metadata, on different ways."""
    make(app)
    app.client.run(lambda ledger: put_batch(ledger, "nightly", 2000, packs=5, entries=20))
    refresh = Refresh(app, seconds=0)
    seen, looks = await refresh.look(PATIENCE), BatchLooks(refresh, 0)
    page, row = await looks.data("nightly"), seen.batches["nightly"]
    assert (row.calls, row.failed, row.succeeded, row.cancelled, row.waiting) == (
        page["calls"], page["failed"], page["succeeded"], page["cancelled"], page["waiting"],
    )  # fmt: skip
    assert {each["type"]: each["count"] for each in page["errors"]} == dict(row.errors)
    (known,) = await app.queues.abatches()
    assert (row.waiting, row.failed, row.messages) == (known.waiting, known.failed, known.messages)
    await looks.close()


async def test_an_outage_keeps_what_is_known(app: App) -> None:
    """Old data stay, with their age; what is wrong is said, since when, and gone with the first answer."""
    make(app)
    app.client.run(lambda ledger: put_workers(ledger, 3))
    refresh = Refresh(app, seconds=0)
    seen = await refresh.look(PATIENCE)
    as_of = seen.as_of

    def fail(*_: Any, **__: Any) -> None:
        raise Unreachable("The account does not answer.")

    with between(app, fail):
        await refresh.look(PATIENCE)
        assert refresh.problem == "The account does not answer."
        since = refresh.problem_since
        assert since is not None
    assert (len(seen.workers), seen.as_of) == (3, as_of)
    refresh._shared._due = float("-inf")
    await refresh.look(PATIENCE)
    assert (refresh.problem, refresh.problem_since) == ("", None)
    assert seen.as_of > as_of


async def test_an_outage_is_met_with_longer_and_longer_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure doubles the pause, up to a bound; the first moment of the outage stays."""
    now = [1000.0]
    monkeypatch.setattr(shared, "boottime", lambda: now[0])
    tries: list[float] = []

    async def read() -> None:
        tries.append(now[0])
        raise Unreachable("No answer.")

    looked = Shared(read, seconds=2.0)
    sinces = set()
    for _ in range(200):
        await looked.get(PATIENCE)
        sinces.add(looked.problem_since)
        now[0] += 1.0
    pauses = [round(after - before) for before, after in itertools.pairwise(tries)]
    assert pauses[:4] == [4, 8, 16, 30]
    assert set(pauses[4:]) == {30}
    assert len(sinces) == 1


async def test_who_looks_does_not_wait_for_a_storage_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known is given after a moment, and that there is no answer is said before the request has failed."""
    now, answer = [1000.0], asyncio.Event()
    monkeypatch.setattr(shared, "boottime", lambda: now[0])

    async def read() -> str:
        await answer.wait()
        return "news"

    looked = Shared(read, seconds=2.0)
    assert await looked.get(0.0) is None
    assert looked.problem == ""
    now[0] += 7.0
    assert await looked.get(0.0) is None
    assert looked.problem == "The storage has not answered for 7 s."
    answer.set()
    assert await looked.get(PATIENCE) == "news"
    assert looked.problem == ""


async def test_what_waited_for_an_outage_to_end_is_soon_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that took 25 s, since the storage was away, does not put off the next one for minutes."""
    now, reads = [1000.0], [0]
    monkeypatch.setattr(shared, "boottime", lambda: now[0])
    monkeypatch.setattr(shared, "SHARE", 5)

    async def read() -> int:
        now[0] += 25.0 if not reads[0] else 0.1
        reads[0] += 1
        return reads[0]

    looked = Shared(read, seconds=2.0)
    assert await looked.get(PATIENCE) == 1
    now[0] += 5.0
    assert await looked.get(PATIENCE) == 2


async def test_what_may_not_be_read_does_not_hide_the_rest(app: App) -> None:
    """Who may not read one thing sees all others, and is told which it is."""
    make(app)
    app.client.run(lambda ledger: put_workers(ledger, 2))
    refresh = Refresh(app, seconds=0)

    def deny_depth(method: Any, *args: Any, **given: Any) -> Any:
        if method.__name__ == "depth":
            raise AccessDenied("You may not count messages.")
        return method(*args, **given)

    with between(app, deny_depth):
        seen = await refresh.look(PATIENCE)
    assert len(seen.workers) == 2
    assert refresh.problem == "You may not count messages."


async def test_an_app_that_is_not_there_yet_is_waited_for(app: App) -> None:
    """The dashboard may be opened first; it says that there is nothing, makes nothing, and sees what comes."""
    make(App("another", app.client.url))
    looker = App("looked-at", app.client.url, create=False)
    refresh = Refresh(looker, seconds=0)
    await refresh.look(PATIENCE)
    assert "There is no app 'looked-at'" in refresh.problem
    make(app)
    for _ in range(5):
        await refresh.look(PATIENCE)
    assert refresh.problem == ""
    assert list(refresh.seen.queues) == ["default"]
    looker.close()


async def test_nonsense_in_storage_is_passed_over(app: App) -> None:
    """What somebody else put there, or spoilt, hides nothing and is no error."""
    make(app)

    async def spoil(ledger: Any) -> None:
        store = await ledger.store()
        wild = {
            "count": "-1",
            "done": "nan",
            "failed": "9" * 30,
            "errors": "%ff=1 =3 x=y",
            "runs": "~",
            "calls": "a~b c~d~nan~inf~nan~e",
            "cpu": "inf",
            "rate": "nan",
            "slots": "1e9",
            "started": "99999999999999",
        }
        for name in (
            "batches/UPPER/meta",
            "batches/x",
            "batches/x/log/~/1",
            "batches/x/in/1",
            "failed/",
            "failed/q/..r1",
            "failed/x",
        ):
            await store.put(name, b"?", metadata=wild)
        await store.put(layout.batch_meta("spoilt"), b"?", metadata=wild)
        await store.put(layout.log_entry("spoilt", "000000", 1), b"?", metadata=wild)
        await store.put(layout.worker("spoilt"), b"?", metadata=wild)
        for name in ("boaster", "braggart"):  # each a number, and their sum none
            await store.put(layout.worker(name), b"", metadata={"rate": "1e308", "cpu": "1e308", "memory": "9" * 15})

    app.client.run(spoil)
    app.client.run(lambda ledger: put_workers(ledger, 1))
    refresh = Refresh(app, seconds=0)
    for _ in range(6):
        seen = await refresh.look(PATIENCE)
    assert refresh.problem == ""
    assert (len(seen.workers), list(seen.batches)) == (4, ["spoilt"])
    for data in (overview_data, batches_data, workers_data, failed_data):
        assert json.loads(json.dumps(data(refresh), allow_nan=False))


def test_the_history_smooths_what_workers_say_in_steps() -> None:
    """Each worker speaks every 15 s; a rate is of a minute, and a worker that goes takes nothing away."""
    history = refresh_module.History()
    for second in range(0, 121, 2):
        said = {"one": 10 * (second // 15 * 15), "two": 500 if second < 60 else 0}
        history.note({name: count for name, count in said.items() if count}, 1000.0 + second)
    assert history.per_second() == pytest.approx(10, rel=0.3)
    assert len(history.points()) == 60
    assert all(rate >= 0 for _, rate in history.points())


def test_workers_that_come_and_go_for_days_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is away for a moment has its count remembered; of those that are gone for good some are kept."""
    monkeypatch.setattr(history_module, "MOST_GONE", 50)
    history = refresh_module.History()
    for turn in range(1000):
        history.note({f"worker-{turn}": 7, **({} if turn % 2 else {"lasting": 1000})}, 1000.0 + 2 * turn)
    assert len(vars(history)["_counts"]) <= 52
    assert history.per_second() == pytest.approx(3.5, rel=0.1)


def test_a_rate_is_known_at_once_after_a_pause_in_which_nobody_looked() -> None:
    """Neither 0 nor a leap: what ended meanwhile is spread over the pause, until a minute has been seen."""
    history = refresh_module.History()
    for at in (*range(0, 61, 2), *range(660, 700, 2)):
        history.note({"one": 10 * at}, 1000.0 + at)
        if at >= 660:
            assert history.per_second() == pytest.approx(10)
    assert [rate for _, rate in history.points()] == pytest.approx([10] * 50)
