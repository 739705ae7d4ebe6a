"""What a type checker knows of maps and batches: `mypy` reads this file, nobody runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, assert_type

from ai4s.jobq import App, Batch, Handle, MapInterrupted, Outcome, Progress, State

app = App("typing")


@app.task
def square(x: int) -> int:
    return x * x


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(vector=256)
def embed(texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def numbers() -> Iterator[int]:
    """A source."""
    yield 1


async def pages() -> AsyncIterator[str]:
    """An async source."""
    yield "a"


async def is_done(url: str) -> bool:
    """An async predicate."""
    return not url


def submitting() -> None:
    """A batch has the type of the task's value."""
    assert_type(square.map(range(3)), Batch[int])
    assert_type(square.map(numbers(), batch="campaign-1", key=str, skip=lambda x: x > 3, pack=100), Batch[int])
    assert_type(square.options(retries=3).map([1], kwargs={"x": 1}), Batch[int])
    assert_type(fetch.map(["a"], skip=is_done), Batch[bytes])
    square.map(1)  # type: ignore[arg-type]
    square.map([1], pack="8")  # type: ignore[arg-type]
    square.map([1], batch=7)  # type: ignore[arg-type]
    square.map([1], key=lambda x: 7)  # type: ignore[arg-type,return-value]
    square.map(pages())  # type: ignore[arg-type]


async def submitting_in_async_programs() -> None:
    """From plain sources and async ones."""
    assert_type(await fetch.amap(pages()), Batch[bytes])
    assert_type(await fetch.amap(["a", "b"]), Batch[bytes])
    fetch.map(pages())  # type: ignore[arg-type]


def vector_tasks() -> None:
    """Of a list of results, each call has one."""
    assert_type(embed.map(["a"]), Batch[float])
    assert_type(embed(["a"]), Iterable[float])


def reading(batch: Batch[int]) -> None:
    """Values, outcomes, numbers."""
    for value in batch:
        assert_type(value, int)
    for outcome in batch.as_completed(timeout=5):
        assert_type(outcome, Outcome[int])
        assert_type(outcome.value, int)
        assert_type(outcome.index, int)
        assert_type(outcome.key, str | None)
        assert_type(outcome.state, State)
        assert_type(outcome.ok, bool)
        assert_type(outcome.attempts, int)
        assert_type(outcome.error, BaseException | None)
    assert_type(batch.results(), list[Any])
    assert_type(batch.id, str)
    assert_type(batch.progress(), Progress)
    assert_type(batch.progress().seconds_left, float | None)
    assert_type(batch.failures(), list[Outcome[int]])
    assert_type(batch.retry_failures(), int)
    assert_type(batch.handle(3), Handle[int])
    assert_type(app.batch("campaign-1"), Batch[Any])
    batch.results(on_error="ignore")  # type: ignore[arg-type]


async def reading_in_async_programs(batch: Batch[int]) -> None:
    """The twins' answers are the same."""
    assert_type(await batch, list[int])
    async for value in batch:
        assert_type(value, int)
    async for outcome in batch.as_completed():
        assert_type(outcome, Outcome[int])
        assert_type(await outcome.avalue(), int)
    assert_type(await batch.aprogress(), Progress)
    assert_type(await batch.afailures(), list[Outcome[int]])
    assert_type(await batch.aretry_failures(), int)
    await batch.acancel()


def a_batch_of_a_subtype_is_one_of_its_supertype(batch: Batch[int]) -> Batch[object]:
    """As handles are."""
    return batch


def what_an_interrupted_map_tells(error: MapInterrupted) -> None:
    """The batch of what was submitted."""
    assert_type(error.batch, Any)
