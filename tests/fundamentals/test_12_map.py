"""Chapter 12: map. A call for each item, thousands of them in one message, and all of them in one Batch."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gate import Gate

import ai4s.jobq as jobq
from ai4s.jobq import (
    App,
    Batch,
    BatchConflict,
    CallCancelled,
    CallTimedOut,
    DeclarationError,
    MapInterrupted,
    NotSerializable,
    ResultTimeout,
    Retry,
    WorkerDied,
    as_completed,
    current,
    gather,
    wait,
)

app = App("mapping")

pytestmark = pytest.mark.usefixtures("worker")


@app.task
def square(x: int) -> int:
    return x * x


@app.task
def add(x: int, y: int = 0, *, scale: int = 1) -> int:
    return scale * (x + y)


@app.task
def reciprocal(x: int) -> float:
    return 1 / x


@app.task
def wait_at(gate: Gate | None, x: int) -> int:
    if gate is not None:
        gate.pass_through()
    return x


@app.task(vector=4)
def squares(xs: list[int]) -> list[int]:
    return [x * x for x in xs]


# Submitting.


def test_map_calls_a_task_for_each_item() -> None:
    """As the built-in `map`: iterating gives the values, in the order of the items."""
    assert list(square.map(range(5))) == [0, 1, 4, 9, 16]


def test_ten_thousand_calls_travel_in_a_few_messages() -> None:
    """What a call costs is a share of a message, so that many short ones are worth while."""
    assert sum(square.map(range(10_000))) == sum(x * x for x in range(10_000))


def test_nothing_to_do_is_a_batch_too() -> None:
    """It has no calls, and is done."""
    batch = square.map([])

    assert list(batch) == []
    assert (batch.progress().total, batch.progress().done) == (0, 0)


def test_several_iterables_end_with_the_shortest() -> None:
    """One for each positional argument, as with the built-in."""
    assert list(add.map([1, 2, 3], [10, 20])) == [11, 22]


def test_keyword_arguments_are_the_same_for_all() -> None:
    """They are sent once."""
    assert list(add.map([1, 2], kwargs={"y": 1, "scale": 10})) == [20, 30]


def test_a_call_may_change_its_arguments() -> None:
    """Each gets its own, keyword arguments too."""
    task = app.task(lambda x, seen: (seen.append(x), list(seen))[1])

    assert list(task.map(range(3), kwargs={"seen": []})) == [[0], [1], [2]]


def test_items_may_change_once_they_were_given() -> None:
    """A call gets what the item was when `map` took it."""

    def growing() -> Iterator[list[int]]:
        given: list[int] = []
        for x in range(3):
            given.append(x)
            yield given

    assert list(app.task(sum).map(growing())) == [0, 1, 3]


def test_a_generator_is_read_as_packs_go_out() -> None:
    """The first calls run while it still produces; it may be endless for all that `map` cares, and memory stays flat."""
    results = []

    def source() -> Iterator[int]:
        yield 3
        # It waits for the result of its own first item: no call is held back for more than about a second.
        results.append(app.handle("early.0").result(timeout=60))
        yield 4

    assert list(square.map(source(), batch="early")) == [9, 16]
    assert results == [9]


async def test_async_programs_await_amap() -> None:
    """Plain iterables and async ones, side by side; `await batch` gives all values."""

    async def pages() -> AsyncIterator[int]:
        for x in range(3):
            yield x

    batch = await add.amap(pages(), [10, 20, 30])
    assert await batch == [10, 21, 32]
    assert [value async for value in batch] == [10, 21, 32]


def test_options_are_those_of_all_calls() -> None:
    """`options(...)` before `map`: queue, retries, timeout, countdown, eta, expires."""
    begun = time.time()
    later = datetime.now(UTC) + timedelta(seconds=2)

    assert min(app.task(lambda _: time.time()).options(countdown=2).map(range(3))) >= begun + 1
    assert list(square.options(eta=later).map(range(3))) == [0, 1, 4]
    with pytest.raises(CallTimedOut):
        list(app.task(lambda _: time.sleep(60)).options(timeout=1).map([1]))


def test_calls_by_value() -> None:
    """Lambdas, closures and functions of a notebook travel once for all calls."""
    factor = 3

    assert list(app.task(lambda x: factor * x).map(range(3))) == [0, 3, 6]


def test_a_task_knows_which_call_it_is() -> None:
    """The id is the batch's and the item's place."""
    batch = app.task(lambda _: (current().id, current().attempt)).map("ab", batch="whoami")

    assert list(batch) == [("whoami.0", 1), ("whoami.1", 1)]


@app.task
async def ashout(text: str) -> str:
    return text.upper()


@app.task(pool="thread")
def shout(text: str) -> str:
    return text.upper()


@app.task(codec="msgpack")
def plain(items: list[int]) -> dict[str, int]:
    return {"sum": sum(items)}


def test_all_kinds_of_tasks() -> None:
    """Coroutines, threads, plain data."""
    assert list(ashout.map("ab")) == ["A", "B"]
    assert list(shout.map("ab")) == ["A", "B"]
    assert list(plain.map([[1, 2], [3]])) == [{"sum": 3}, {"sum": 3}]


def test_large_arguments_and_results() -> None:
    """What is too large for a pack lies beside it."""
    items = [bytes([n]) * size for n, size in enumerate((10, 300_000, 9_000_000))]

    assert list(app.task(lambda data: data * 2).map(items)) == [data * 2 for data in items]


def test_a_large_object_for_all_is_stored_once() -> None:
    """`app.put(obj)` gives a reference; the task receives the object."""
    table = app.put({n: str(n) for n in range(10_000)})

    assert list(app.task(lambda x, table: table[x]).map([5, 7], kwargs={"table": table})) == ["5", "7"]


# When the source fails.


def test_a_source_that_raises_leaves_what_it_gave() -> None:
    """MapInterrupted has the batch of all calls that were submitted before, which go on."""

    def source() -> Iterator[int]:
        yield from range(20)
        raise OSError("the disk is gone")

    with pytest.raises(MapInterrupted, match=r"OSError after 20 calls .* the disk is gone") as caught:
        square.map(source())

    assert list(caught.value.batch) == [x * x for x in range(20)]
    assert isinstance(caught.value.__cause__, OSError)


def test_an_item_that_cannot_travel_is_refused_there() -> None:
    """The items before it go on."""
    with pytest.raises(MapInterrupted, match="NotSerializable after 2 calls") as caught:
        app.task(repr).map([1, 2, (x for x in "abc"), 3])

    assert isinstance(caught.value.__cause__, NotSerializable)
    assert list(caught.value.batch) == ["1", "2"]


def test_what_cannot_be_is_said_before_the_first_item() -> None:
    """With what would be right."""
    with pytest.raises(TypeError, match="too many positional arguments"):
        square.map([1], [2])
    with pytest.raises(DeclarationError, match=r"map wants an iterable for each positional argument, as in .*map\(range\(10\)\)"):
        square.map()
    with pytest.raises(DeclarationError, match="map takes key=, which gives each item's key"):
        square.options(key="k").map([1])
    with pytest.raises(DeclarationError, match="as in 'campaign-1'"):
        square.map([1], batch="Campaign 1")


# Outcomes.


def test_a_failed_call_raises_where_its_value_would_be() -> None:
    """The first one in the order of the items; the others keep their values."""
    batch = reciprocal.map([1, 0, 2])

    values = iter(batch)
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_results_may_return_what_was_raised() -> None:
    """So that one failure does not hide the other values."""
    one, error, half = reciprocal.map([1, 0, 2]).results(on_error="return")

    assert (one, half) == (1, 0.5)
    assert isinstance(error, ZeroDivisionError)


def test_as_completed_gives_outcomes_as_calls_end(gate: Gate) -> None:
    """Each says which call it was, how it ended, and after how many attempts; `.value` raises what the call raised."""
    outcomes = iter(wait_at.map([gate, None], [1, 2]).as_completed(timeout=60))

    first = next(outcomes)
    assert (first.index, first.state, first.ok, first.attempts, first.value) == (1, "succeeded", True, 1, 2)
    gate.open()
    assert next(outcomes).value == 1
    assert next(outcomes, None) is None


def test_an_outcome_of_a_failure() -> None:
    """What failed, and why; `failures()` lists them."""
    batch = reciprocal.map([1, 0, 2])
    assert sum(1 for _ in batch.as_completed(timeout=60)) == 3

    (failure,) = batch.failures()
    assert (failure.index, failure.state, failure.ok) == (1, "failed", False)
    with pytest.raises(ZeroDivisionError):
        _ = failure.value


def test_waiting_has_an_end_if_you_want_it(gate: Gate) -> None:
    """The calls go on, and can be waited for again."""
    batch = wait_at.map([gate], [1])

    with pytest.raises(ResultTimeout, match=f"batch {batch.id} within 0.1 s"):
        batch.results(timeout=0.1)
    gate.open()
    assert batch.results(timeout=60) == [1]


def test_a_batch_can_be_found_again() -> None:
    """In another process, days later, by its id."""
    batch = square.map(range(4))

    program = "import sys; from ai4s.jobq import App; print(list(App('mapping').batch(sys.argv[1])))"
    environment = {**os.environ, "JOBQ_URL": app.client.url}
    command = [sys.executable, "-c", program, batch.id]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    assert answer.stdout == "[0, 1, 4, 9]\n", answer.stderr
    assert pickle.loads(pickle.dumps(batch)) == batch == app.batch(batch.id)


def test_each_call_has_a_handle() -> None:
    """By its place in the batch, or by its id; `gather`, `wait` and `as_completed` take it like any other."""
    batch = square.map(range(4))

    assert batch.handle(3).result(timeout=60) == 9
    assert app.handle(f"{batch.id}.2").result(timeout=60) == 4
    assert pickle.loads(pickle.dumps(batch.handle(1))).result(timeout=60) == 1
    assert gather(batch.handle(2), square.delay(5), timeout=60) == [4, 25]
    assert wait([batch.handle(0)], timeout=60).not_done == set()
    assert [handle.status() for handle in as_completed([batch.handle(0)], timeout=60)] == ["succeeded"]


def test_progress(gate: Gate) -> None:
    """How many calls have ended, and how."""
    batch = wait_at.map([gate], [1])
    assert (batch.progress().done, batch.progress().total) == (0, 1)

    gate.open()
    batch.results(timeout=60)
    progress = batch.progress()
    assert (progress.done, progress.failed, progress.total, progress.seconds_left) == (1, 0, 1, 0)
    assert str(progress).startswith("1 of 1 done (0 failed)")


# Failures, one by one.


@app.task(retries=2, backoff=0)
def third_time_lucky(x: int) -> int:
    if x == 1 and current().attempt < 3:
        raise ConnectionError
    return current().attempt


def test_each_call_has_retries_of_its_own() -> None:
    """Its siblings are not run again."""
    assert list(third_time_lucky.map(range(3))) == [1, 3, 1]


def test_a_task_may_ask_for_another_attempt() -> None:
    """With a delay if it likes."""

    def ask(x: int) -> int:
        if current().attempt == 1:
            raise Retry(delay=0.1)
        return x

    assert list(app.task(ask).options(retries=1).map(range(3))) == [0, 1, 2]


@app.task(max_deaths=1)
def die(x: int) -> int:
    if x == 5:
        os._exit(3)
    return x


def test_a_call_that_dies_takes_no_other_along() -> None:
    """It alone is charged; the others have their values."""
    results = die.map(range(10)).results(on_error="return")

    assert isinstance(results.pop(5), WorkerDied)
    assert results == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_failures_can_be_run_again(tmp_path: Path) -> None:
    """Once their cause is mended. The batch then gives the values of the new runs."""
    needed = tmp_path / "needed"
    batch = app.task(lambda x: x or len(needed.read_text())).map([1, 0, 2])
    assert isinstance(batch.results(on_error="return", timeout=60)[1], FileNotFoundError)

    needed.write_text("mended")
    assert batch.retry_failures() == 1
    assert batch.results(timeout=60) == [1, 6, 2]
    assert batch.failures() == []
    assert batch.retry_failures() == 0


def test_a_batch_can_be_cancelled(gate: Gate) -> None:
    """What has not ended ends as cancelled: what waits, and, within some seconds, what runs."""
    batch = wait_at.map([gate] * 20, range(20))

    batch.cancel()
    outcomes = list(batch.as_completed(timeout=60))
    assert {outcome.state for outcome in outcomes} == {"cancelled"}
    with pytest.raises(CallCancelled):
        _ = outcomes[0].value


# Going on after a crash.


def test_a_campaign_is_resumed() -> None:
    """With a name and a key for each item, mapping again submits only what is not there yet."""

    def half() -> Iterator[int]:
        yield from range(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        square.map(half(), batch="campaign-1", key=str)
    batch = square.map(range(10), batch="campaign-1", key=str)

    assert list(batch) == [x * x for x in range(10)]
    assert [outcome.key for outcome in batch.as_completed()].count("3") == 1


def test_a_name_means_one_batch() -> None:
    """Without a key, or for another task, it is refused."""
    square.map(range(5), batch="campaign-2", key=str)

    with pytest.raises(BatchConflict, match="It was begun with key=, and this is not"):
        square.map(range(5), batch="campaign-2")
    with pytest.raises(BatchConflict, match=r"It is of task .*square, and this is .*reciprocal"):
        reciprocal.map(range(5), batch="campaign-2", key=str)


def test_what_is_done_already_can_be_skipped(tmp_path: Path) -> None:
    """`skip` is asked of many items at a time; a plain function, or an async one."""
    (tmp_path / "2").touch()

    async def is_even(x: int) -> bool:
        return x % 2 == 0

    assert list(square.map(range(4), skip=lambda x: (tmp_path / str(x)).exists())) == [0, 1, 9]
    assert list(square.map(range(4), skip=is_even)) == [1, 9]


# Vector tasks.


def test_a_vector_task_takes_lists_and_is_mapped_over_items() -> None:
    """As inference wants it: the function gets up to so many items at once, and each has an outcome of its own."""
    assert list(squares.map(range(10))) == [x * x for x in range(10)]
    with pytest.raises(DeclarationError, match=r"give it items by map, as in .*map\(\[item\]\)"):
        squares.delay([1, 2])


@app.task(vector=8)
def reciprocals(xs: list[int]) -> list[Any]:
    return [ZeroDivisionError(str(x)) if x == 0 else 1 / x for x in xs]


@app.task(vector=8)
def checked(xs: list[int]) -> list[int]:
    if 5 in xs:
        raise ValueError("five")
    return xs


def test_one_item_of_a_list_may_fail() -> None:
    """By an exception in its place; a list that raises as a whole is halved until the culprit is alone."""
    results = reciprocals.map([1, 0, 2]).results(on_error="return")
    assert (results[0], type(results[1]), results[2]) == (1, ZeroDivisionError, 0.5)

    results = checked.map(range(20)).results(on_error="return")
    assert isinstance(results[5], ValueError)
    assert [value for value in results if isinstance(value, int)] == [x for x in range(20) if x != 5]


def test_the_public_names() -> None:
    """A batch's class, for annotations."""
    assert isinstance(square.map([]), Batch)
    assert {"Batch", "Outcome", "Progress", "MapInterrupted", "BatchConflict"} <= set(jobq.__all__)
