"""Chapter 11: the same program runs unchanged, whether its calls lie in a folder or in an Azure storage account.

Each test here runs twice: on a local folder, and on Azurite, which speaks as Azure Storage does. In a program of yours
$JOBQ_URL makes the difference: `local:///folder`, or `azure://ACCOUNT`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from ai4s.jobq import App, ResultGone, as_completed, current, gather

# One name for all processes of this test session, the worker's among them, and none that an earlier session used.
app = App(os.environ.setdefault("JOBQ_TUTORIAL_APP", f"tutorial-{uuid.uuid4().hex[:12]}"))


@pytest.fixture(scope="module", params=["local", "azurite"], autouse=True)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The app at one place and then at the other, each with a worker."""
    folder = tmp_path_factory.mktemp("place")
    url = f"local://{folder}" if request.param == "local" else request.getfixturevalue("azurite_url")
    before = app.client.origin
    app.client.move(before._replace(url=url))
    with app.worker(concurrency=2):
        yield
    app.client.move(before)


@app.task
def square(x: int) -> int:
    return x * x


@app.task
async def shout(text: str) -> str:
    return text.upper()


@app.task(retries=2, backoff=0)
def third_time_lucky() -> int:
    if current().attempt < 3:
        raise ConnectionError("not yet")
    return current().attempt


def test_calls_and_results() -> None:
    """Sync and async."""
    assert square.delay(3).result(timeout=60) == 9
    assert shout.delay("hello").result(timeout=60) == "HELLO"


async def test_an_async_program() -> None:
    """With the async twins of all methods."""
    assert await (await square.adelay(4)) == 16


def test_retries() -> None:
    """An attempt that failed is put back, and taken again."""
    assert third_time_lucky.delay().result(timeout=60) == 3


def test_large_arguments_and_results() -> None:
    """More than a message can hold goes beside it."""
    data = os.urandom(3_000_000)

    assert app.submit(lambda data: data[::-1], data).result(timeout=60) == data[::-1]


def test_by_value() -> None:
    """Closures, lambdas, notebook functions."""
    factor = 7

    assert app.submit(lambda x: factor * x, 6).result(timeout=60) == 42


def test_many_at_once() -> None:
    """Collected in order, or as they end."""
    handles = [square.delay(x) for x in range(30)]

    assert {handle.result() for handle in as_completed(handles, timeout=60)} == {x * x for x in range(30)}
    assert gather(*handles, timeout=60) == [x * x for x in range(30)]


def test_keys() -> None:
    """The same key and arguments mean the same call."""
    first, again = (square.options(key="five").delay(5) for _ in range(2))

    assert first == again
    assert again.result(timeout=60) == 25


def test_status_and_cancel() -> None:
    """What nobody took yet can be called off."""
    handle = square.options(countdown=3600).delay(6)

    assert handle.status() == "pending"
    assert handle.cancel()
    assert handle.status() == "cancelled"


def test_forget() -> None:
    """An outcome goes, with all that belongs to it."""
    handle = square.delay(6)
    handle.result(timeout=60)
    handle.forget()

    with pytest.raises(ResultGone):
        handle.status()
