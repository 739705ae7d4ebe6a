"""The dead letter of a batch: one for all its failures, which comes and goes with them. Calls run inline, by the real pack log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storage_spy import Crash, blobs, counted, crash_after, crash_before, depth

from ai4s.jobq import App, Batch, DeclarationError, ResultTimeout, layout
from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.reruns import Fate
from ai4s.jobq.testing import inline

declared = App("batch-letters")


@declared.task(name="proj.work")
def work(item: object, folder: str) -> object:
    """Fails for texts that are no file's name."""
    if isinstance(item, str):
        if item.startswith("key"):
            raise KeyError(item)
        return Path(folder, item).read_text()
    return item


@declared.task
def single() -> None:
    raise ValueError("alone")


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file, on an empty store."""
    return jobq_place(declared)


def failing(app: App, tmp: Path, items: tuple[object, ...] = (1, "a", "b", 2, "key")) -> Batch[object]:
    """A batch that has ended, with failures."""
    with inline(app):
        return work.map(items, kwargs={"folder": str(tmp)})


def pointer(app: App, batch: Batch[Any]) -> dict[str, str] | None:
    """What the letter's blob says."""

    async def look(ledger: Ledger) -> dict[str, str] | None:
        found = await BatchLedger(ledger, batch.id).letter("default")
        return dict(found.metadata) if found else None

    return app.client.run(look)


# listing


def test_a_batch_has_one_letter_for_all_its_failures(app: App, tmp_path: Path) -> None:
    """Which tells how many there are, why, and all of the first."""
    batch = failing(app, tmp_path)

    (letter,) = app.dead_letters.list()
    assert (letter.id, letter.queue, letter.task, letter.run) == (batch.id, "default", "proj.work", 1)
    assert (letter.failures, letter.causes) == (3, {"raised FileNotFoundError": 2, "raised KeyError": 1})
    assert (letter.cause, letter.error, letter.attempts, letter.worker) == ("raised", "FileNotFoundError", 1, "inline")
    assert letter.message.startswith("3 of 5 calls failed; call 1: ")
    assert "read_text" in letter.traceback
    assert app.dead_letters.get(batch.id) == letter


def test_a_batch_without_failures_has_none(app: App, tmp_path: Path) -> None:
    """Nor one that is not there."""
    batch = failing(app, tmp_path, (1, 2))
    assert (app.dead_letters.list(), app.dead_letters.get(batch.id), pointer(app, batch)) == ([], None, None)


def test_letters_of_calls_stand_beside_it(app: App, tmp_path: Path) -> None:
    """By queue and id; a limit counts them alike."""
    batch = failing(app, tmp_path)
    with inline(app):
        handle = single.delay()

    assert {letter.id: letter.failures for letter in app.dead_letters.list()} == {batch.id: 3, handle.id: 0}
    assert len(app.dead_letters.list(limit=1)) == 1


@pytest.mark.parametrize(
    ("filters", "is_meant"),
    [
        ({"task": "work"}, True),
        ({"task": "other"}, False),
        ({"error": "KeyError"}, True),
        ({"error": "ValueError"}, False),
        ({"cause": "raised"}, True),
        ({"cause": "died"}, False),
        ({"cause": "raised", "error": "FileNotFoundError"}, True),
        ({"queue": "default"}, True),
        ({"queue": "gpu"}, False),
        ({"newer_than": 3600}, True),
        ({"older_than": 3600}, False),
    ],
    ids=str,
)
def test_a_filter_takes_a_batch_if_it_takes_one_of_its_failures(
    app: App, tmp_path: Path, filters: dict[str, Any], is_meant: bool
) -> None:
    """All filters must apply to the same one."""
    failing(app, tmp_path)
    assert bool(app.dead_letters.list(**filters)) == is_meant


def test_of_very_many_failures_a_part_is_read(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, a letter costs a bounded number of requests."""
    monkeypatch.setattr("ai4s.jobq.maps.letters.MOST_ENTRIES", 2)
    with inline(app):
        batch = work.map([f"key{number}" for number in range(100)], kwargs={"folder": str(tmp_path)}, pack=10)
    with counted(app) as requests:
        (letter,) = app.dead_letters.list()
    assert (letter.failures, sum(letter.causes.values())) == (100, 20)
    assert requests["get"] <= 7
    assert len(batch.failures()) == 100


def test_a_batch_whose_records_cannot_be_read_says_so(app: App, tmp_path: Path) -> None:
    """And is left alone."""
    batch = failing(app, tmp_path)

    async def spoil(ledger: Ledger) -> None:
        await (await ledger.store()).put(layout.batch_meta(batch.id), b"spoilt")

    app.client.run(spoil)
    (letter,) = app.dead_letters.list()
    assert (letter.id, letter.cause) == (batch.id, "unreadable")
    done = app.dead_letters.retry(batch.id)
    assert list(done.left) == [batch.id]
    assert done.batches == []


# retrying


def test_a_retried_batch_runs_its_failures_again(app: App, tmp_path: Path) -> None:
    """All of them, and nothing else; who waits for the batch gets the new values."""
    batch = failing(app, tmp_path, (1, "a", "b"))
    for name in ("a", "b"):
        (tmp_path / name).write_text(name.upper())
    with inline(app):
        done = app.dead_letters.retry(batch.id)

    assert (done.handles, done.put_back, done.left, done.batches) == ([], [], {}, [batch])
    assert list(batch) == [1, "A", "B"]
    assert app.dead_letters.list() == []
    assert pointer(app, batch) == {"fate": "retried", "run": "1"}


async def test_retrying_has_an_async_twin(app: App, tmp_path: Path) -> None:
    """By filter as well."""
    batch = failing(app, tmp_path)
    with inline(app):
        assert (await app.dead_letters.aretry(error="KeyError")).batches == [batch]


def test_new_failures_bring_the_letter_back(app: App, tmp_path: Path) -> None:
    """Those of the next run; also for the third and the fourth time."""
    batch = failing(app, tmp_path)
    (tmp_path / "a").write_text("A")
    for run in (2, 3):
        with inline(app):
            assert app.dead_letters.retry(batch.id).batches == [batch]
        (letter,) = app.dead_letters.list()
        assert (letter.run, letter.failures) == (run, 2)


def test_while_failures_run_again_there_is_no_letter(app: App, tmp_path: Path) -> None:
    """To ask again sends nothing more, and counts as done."""
    batch = failing(app, tmp_path)
    assert app.dead_letters.retry(batch.id).batches == [batch]
    assert depth(app) == 1
    assert app.dead_letters.list() == []
    assert app.dead_letters.retry(batch.id).batches == [batch]
    assert depth(app) == 1
    with pytest.raises(ResultTimeout):
        batch.results(timeout=0)


def test_retrying_the_batch_itself_lays_its_letter_down(app: App, tmp_path: Path) -> None:
    """It is the same."""
    batch = failing(app, tmp_path)
    assert batch.retry_failures() == 3
    assert pointer(app, batch) == {"fate": "retried", "run": "1"}


@pytest.mark.parametrize("crash", [crash_before, crash_after])
@pytest.mark.parametrize(("method", "about"), [("send", ""), ("put", "failed/"), ("put", "batches/")])
def test_a_retry_that_died_is_finished_by_the_next(app: App, tmp_path: Path, crash: Any, method: str, about: str) -> None:
    """Nothing is lost, and each failure runs once more."""
    batch = failing(app, tmp_path)
    with pytest.raises(Crash), crash(app, method, about):
        app.dead_letters.retry(batch.id)
    assert app.dead_letters.retry(batch.id).batches == [batch]
    assert 1 <= depth(app) <= 2  # a message that was sent twice is marked
    assert len(blobs(app, layout.batch_retries(batch.id))) == 1


def test_a_late_word_of_failures_brings_a_retried_letter_back_and_no_purged_one(app: App, tmp_path: Path) -> None:
    """A letter too many shows nothing that is not so."""
    retried, purged = failing(app, tmp_path), failing(app, tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    app.dead_letters.purge(purged.id)
    app.dead_letters.retry(retried.id)
    for batch in (retried, purged):
        app.client.run(lambda ledger, batch=batch: BatchLedger(ledger, batch.id).bury("default", 1))

    assert pointer(app, retried) == {"run": "1"}
    assert pointer(app, purged) == {"fate": "purged", "run": "1"}
    assert app.dead_letters.list() == []


def test_failures_that_come_while_a_letter_is_laid_down_keep_it(app: App, tmp_path: Path) -> None:
    """It is laid down only as it was when the retry was asked for."""
    batch = failing(app, tmp_path)

    async def race(ledger: Ledger) -> bool:
        records = BatchLedger(ledger, batch.id)
        letter = await records.letter("default")
        assert letter is not None
        await records.bury("default", 2)
        return await records.lay_down(letter, Fate.RETRIED, run=1)

    assert app.client.run(race) is False
    assert pointer(app, batch) == {"run": "2"}


# purging, and what is none


def test_a_purged_batch_stays_failed(app: App, tmp_path: Path) -> None:
    """Without a letter."""
    batch = failing(app, tmp_path)
    assert app.dead_letters.purge(batch.id) == [batch.id]
    assert app.dead_letters.list() == []
    assert len(batch.failures()) == 3
    assert app.dead_letters.purge(batch.id) == []


def test_a_purged_batch_that_is_retried_and_fails_has_a_letter_again(app: App, tmp_path: Path) -> None:
    """Somebody wants to know."""
    batch = failing(app, tmp_path)
    app.dead_letters.purge(everything=True)
    with inline(app):
        assert batch.retry_failures() == 3
    (letter,) = app.dead_letters.list()
    assert letter.run == 2


async def test_a_batch_of_which_calls_run_is_not_purged(app: App, tmp_path: Path) -> None:
    """They may fail yet, and that must be seen."""
    with inline(app):
        await work.amap(["key"], kwargs={"folder": str(tmp_path)}, batch="half", key=str)
    work.map(["key", "a"], kwargs={"folder": str(tmp_path)}, batch="half", key=str)

    assert [letter.id for letter in await app.dead_letters.alist()] == ["half"]
    assert await app.dead_letters.apurge("half") == []
    assert [letter.id for letter in await app.dead_letters.alist()] == ["half"]


def test_a_letter_stands_while_calls_run_that_may_fail_yet(app: App, tmp_path: Path) -> None:
    """Their pack may have left it before, and does not do so again."""
    with inline(app):
        work.map(["key"], kwargs={"folder": str(tmp_path)}, batch="half", key=str)
    work.map(["key", "a"], kwargs={"folder": str(tmp_path)}, batch="half", key=str)

    assert app.dead_letters.retry("half").batches == [app.batch("half")]
    assert pointer(app, app.batch("half")) == {"run": "1"}
    assert app.dead_letters.list() == []


def test_what_is_no_letter_is_left(app: App, tmp_path: Path) -> None:
    """A call of a batch is retried with its batch; and of other ids nobody knows anything."""
    batch = failing(app, tmp_path)
    call = f"{batch.id}.1"
    left = app.dead_letters.retry(call, "unknown", "x" * 80).left
    assert f"retry('{batch.id}')" in left[call]
    assert left["unknown"] == left["x" * 80] == "There is no such dead letter."
    with pytest.raises(DeclarationError, match="named by the call's id"):
        app.dead_letters.retry(batch.handle(1))  # type: ignore[arg-type]  # on purpose
