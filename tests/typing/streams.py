"""What a type checker knows of streams; see `calls.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import assert_type

from ai4s.jobq import App, Batch, Outcome
from ai4s.jobq.maps.streaming import AsyncStream, Stream

app = App("typed-streams")


@app.task
def square(x: int) -> float:
    return float(x * x)


@app.task(vector=16)
def squares(xs: list[int]) -> list[float]:
    return [float(x * x) for x in xs]


@app.task
async def ask(question: str) -> str:
    return question


def outcomes_have_the_type_of_the_value() -> None:
    with square.stream(range(3), ahead=10) as outcomes:
        assert_type(outcomes, Stream[float])
        assert_type(outcomes.batch, Batch[float])
        for outcome in outcomes:
            assert_type(outcome, Outcome[float])
            assert_type(outcome.value, float)
    with squares.stream(range(3)) as many:
        assert_type(many, Stream[float])


async def questions() -> AsyncIterator[str]:
    yield "why?"


async def async_outcomes_have_it_too() -> None:
    async with ask.astream(questions()) as outcomes:
        assert_type(outcomes, AsyncStream[str])
        async for outcome in outcomes:
            assert_type(await outcome.avalue(), str)
