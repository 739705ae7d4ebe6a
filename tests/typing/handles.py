"""What a type checker knows of handles and of waiting: `mypy` reads this file, nobody runs it."""

from __future__ import annotations

from typing import Literal, assert_type

from ai4s.jobq import App, Handle, State, agather, as_completed, await_, gather, wait
from ai4s.jobq.errors import CallError

app = App("typing")


@app.task
def square(x: int) -> int:
    return x * x


@app.task
def name(x: int) -> str:
    return str(x)


def one_handle(handle: Handle[int]) -> None:
    """Each method's answer."""
    assert_type(handle.id, str)
    assert_type(handle.result(), int)
    assert_type(handle.result(timeout=5), int)
    assert_type(handle.exception(timeout=5), BaseException | None)
    assert_type(handle.done(), bool)
    assert_type(handle.status(), State | Literal["pending"])
    assert_type(handle.cancel(), bool)
    handle.result(timeout="5")  # type: ignore[arg-type]


async def one_handle_in_async_programs(handle: Handle[int]) -> None:
    """The twins' answers are the same."""
    assert_type(await handle, int)
    assert_type(await handle.aresult(timeout=5), int)
    assert_type(await handle.aexception(), BaseException | None)
    assert_type(await handle.adone(), bool)
    assert_type(await handle.astatus(), State | Literal["pending"])
    assert_type(await handle.acancel(), bool)
    await handle.aforget()


def a_status_can_be_compared_with_its_name(handle: Handle[int]) -> bool:
    """States are texts."""
    return handle.status() == "succeeded"


def many_handles(handles: list[Handle[int]]) -> None:
    """Values and handles keep their type."""
    assert_type(gather(*handles, timeout=5), list[int])
    assert_type(gather(square.delay(1), square.delay(2)), list[int])
    for handle in as_completed(handles, timeout=5):
        assert_type(handle, Handle[int])
    done, not_done = wait(handles, timeout=5, return_when="first")
    for handle in done | not_done:
        handle.result()
    wait(handles, return_when="any")  # type: ignore[arg-type]
    gather(handles)  # type: ignore[arg-type]
    gather(1)  # type: ignore[arg-type]


async def many_handles_in_async_programs(handles: list[Handle[int]]) -> None:
    """As above."""
    assert_type(await agather(*handles, timeout=5), list[int])
    async for handle in as_completed(handles):
        assert_type(handle, Handle[int])
    assert_type((await await_(handles)).done, set[Handle[int]])


def mixed_handles() -> None:
    """Handles of different results may stand together: a handle of a subtype is one of its supertype."""
    both: list[Handle[int | str]] = [square.delay(1), name.delay(1)]
    assert_type(gather(*both), list[int | str])
    anything: Handle[object] = square.delay(1)
    assert_type(anything.result(), object)


def what_errors_tell(error: CallError) -> None:
    """Which call, how many attempts, where."""
    assert_type(error.call_id, str)
    assert_type(error.attempts, int)
    assert_type(error.worker, str)
