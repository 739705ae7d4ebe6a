"""Chapter 3: async tasks, and async programs. The two have nothing to do with each other: each goes with both."""

from __future__ import annotations

import asyncio

import pytest

from ai4s.jobq import App, agather, as_completed

app = App("async-calls")

pytestmark = pytest.mark.usefixtures("worker")


@app.task
async def fetch(name: str) -> str:
    """Work that waits for others. A worker runs hundreds of these at a time."""
    await asyncio.sleep(0)
    return name.upper()


@app.task
def count(text: str) -> int:
    """Work for a processor. A worker runs as many of these at a time as it was given processes."""
    return len(text)


def test_an_async_task_is_called_like_any_other() -> None:
    """`delay` is a plain call, and `result` is the value, not a coroutine."""
    assert fetch.delay("ada").result(timeout=60) == "ADA"


async def test_a_direct_call_of_an_async_task_is_awaited() -> None:
    """Without a worker, it is the coroutine function that you wrote."""
    assert await fetch("ada") == "ADA"


async def test_adelay_and_await_do_not_block_the_loop() -> None:
    """In an async program, `adelay` submits and `await handle` waits. The task itself may be a plain one."""
    handle = await count.adelay("four")

    assert await handle == 4


async def test_every_method_that_asks_the_storage_has_an_async_twin() -> None:
    """It has the same name with an `a` before it."""
    handle = await fetch.adelay("ada")

    assert await handle.aresult(timeout=60) == "ADA"
    assert await handle.aexception() is None
    assert await handle.adone()
    assert await handle.astatus() == "succeeded"


async def test_many_can_be_awaited_together() -> None:
    """`agather` gives the values in the order of the handles."""
    handles = [await fetch.adelay(name) for name in ("ada", "emmy", "lise")]

    assert await agather(*handles, timeout=60) == ["ADA", "EMMY", "LISE"]


async def test_calls_can_be_taken_as_they_end() -> None:
    """`as_completed` goes with `async for` as it goes with `for`."""
    handles = [await fetch.adelay(name) for name in ("ada", "emmy")]

    assert {await handle async for handle in as_completed(handles, timeout=60)} == {"ADA", "EMMY"}
