"""What a type checker knows of tasks and calls: `mypy` reads this file, nobody runs it.

A line with an ignore has to be an error: the checker is told to complain about an ignore that isn't needed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from ai4s.jobq import App, Handle, Stored, Task

app = App("typing")


@app.task
def square(x: int) -> int:
    return x * x


@app.task(retries=3, queue="gpu", timeout=60)
def describe(name: str, *, loud: bool = False) -> str:
    return name.upper() if loud else name


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(pool="async", codec="msgpack")
async def fetch_many(*urls: str, **headers: str) -> list[bytes]:
    return [url.encode() for url in urls]


@app.task
def nothing() -> None:
    return None


def plain_calls() -> None:
    """A direct call has the types of the function."""
    assert_type(square(3), int)
    assert_type(describe("ada", loud=True), str)
    assert_type(nothing.delay(), Handle[None])
    square("x")  # type: ignore[arg-type]
    square()  # type: ignore[call-arg]
    describe("ada", True)  # type: ignore[call-arg]


async def direct_calls_of_async_tasks() -> None:
    """They are awaited as ever."""
    waiting: Coroutine[Any, Any, bytes] = fetch("x")
    assert_type(await waiting, bytes)
    assert_type(await fetch("x"), bytes)


def delayed_calls() -> None:
    """`delay` takes what the function takes, and gives a handle of what it returns, or what awaiting it gives."""
    assert_type(square.delay(3), Handle[int])
    assert_type(describe.delay("ada", loud=True), Handle[str])
    assert_type(fetch.delay("x"), Handle[bytes])
    assert_type(fetch_many.delay("x", "y", accept="z"), Handle[list[bytes]])

    square.delay("x")  # type: ignore[arg-type]
    square.delay()  # type: ignore[call-arg]
    square.delay(3, 4)  # type: ignore[call-arg]
    square.delay(y=3)  # type: ignore[call-arg]
    describe.delay("ada", loud="very")  # type: ignore[arg-type]
    fetch.delay(b"x")  # type: ignore[arg-type]
    fetch_many.delay(1)  # type: ignore[arg-type]


async def delayed_calls_in_async_programs() -> None:
    """`adelay` does the same."""
    assert_type(await square.adelay(3), Handle[int])
    assert_type(await fetch.adelay("x"), Handle[bytes])

    await square.adelay("x")  # type: ignore[arg-type]
    await fetch.adelay()  # type: ignore[call-arg]


def handles_are_no_arguments() -> None:
    """Nor does a handle pass for its value."""
    square.delay(square.delay(3))  # type: ignore[arg-type]


def stored_objects() -> None:
    """`put` tells the truth about what it returns; `arg` passes for the object, where arguments are checked."""
    ref = app.put("ada")

    assert_type(ref, Stored[str])
    assert_type(ref.get(), str)
    assert_type(ref.sha256, str)
    assert_type(ref.arg, str)
    assert_type(describe.delay(ref.arg, loud=True), Handle[str])

    describe.delay(ref)  # type: ignore[arg-type]
    square.delay(ref.arg)  # type: ignore[arg-type]
    ref.upper()  # type: ignore[attr-defined]


async def stored_objects_in_async_programs() -> None:
    """The twins' answers are the same."""
    assert_type(await app.aput([1]), Stored[list[int]])
    assert_type(await (await app.aput([1])).aget(), list[int])


def configured_copies() -> None:
    """`options` keeps the types."""
    patient = square.options(retries=5, countdown=10)

    assert_type(patient.delay(3), Handle[int])
    assert_type(patient.options(key="x").delay(3), Handle[int])
    assert_type(patient(3), int)
    assert_type(fetch.options(expires=60).delay("x"), Handle[bytes])

    patient.delay("x")  # type: ignore[arg-type]
    square.options(5)  # type: ignore[call-arg]
    square.options(retires=5)  # type: ignore[call-arg]
    square.options(retries="5")  # type: ignore[arg-type]
    square.options(eta="tomorrow")  # type: ignore[arg-type]
    square.options(codec="msgpack")  # type: ignore[call-arg]


def submitted_functions() -> None:
    """`submit` takes any function, and checks its arguments."""

    def cube(x: int) -> float:
        return x**3

    async def later(x: int) -> str:
        return str(x)

    assert_type(app.submit(cube, 3), Handle[float])
    assert_type(app.submit(later, 3), Handle[str])
    assert_type(app.submit(square, 3), Handle[int])
    assert_type(app.submit(fetch, "x"), Handle[bytes])
    assert_type(app.submit(len, "x"), Handle[int])
    assert_type(app.task(cube).delay(3), Handle[float])

    app.submit(cube, "x")  # type: ignore[call-overload]
    app.submit(cube)  # type: ignore[call-overload]
    app.submit(square, "x")  # type: ignore[call-overload]
    app.submit(later, "x")  # type: ignore[call-overload]


async def submitted_functions_in_async_programs() -> None:
    """`asubmit` does the same."""
    assert_type(await app.asubmit(square, 3), Handle[int])

    async def later(x: int) -> str:
        return str(x)

    assert_type(await app.asubmit(later, 3), Handle[str])


def tasks_have_a_type() -> None:
    """The parameters, what a direct call gives, and what a result is."""
    assert_type(square.name, str)

    def total(task: Task[[int], int, int]) -> int:
        return task(3)

    total(square)
    total(describe)  # type: ignore[arg-type]


def tasks_pass_for_functions() -> None:
    """Where a function is wanted."""
    function: Callable[[int], int] = square
    assert_type(list(map(square, [1, 2])), list[int])
    assert function(3) == 9
