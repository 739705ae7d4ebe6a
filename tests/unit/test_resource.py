"""Resources: made once in each process, when first used, and closed with it."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from ai4s.jobq import App, DeclarationError, JobQError, gather
from ai4s.jobq.resource import Shelf

app = App("resources")

made: list[str] = []


@app.resource
def table() -> Iterator[dict[str, int]]:
    """A table of things."""
    made.append("table")
    yield {"a": 1}


def yields(value: object, log: list[str], name: str) -> Callable[[], Iterator[object]]:
    """A generator function that notes what happens to it."""

    def make() -> Iterator[object]:
        log.append(f"make {name}")
        yield value
        log.append(f"close {name}")

    return make


def test_a_resource_is_made_when_first_used_and_kept() -> None:
    """Declaring it does nothing; each use gives the same thing."""
    made.clear()

    first = table()
    assert table() is first
    assert made in ([], ["table"])  # an earlier test of this process may have made it
    assert (table.__name__, table.__doc__) == ("table", "A table of things.")


@pytest.mark.parametrize("function", [lambda: {"a": 1}, 3, None, dict])
def test_a_resource_is_a_generator_function(function: Any) -> None:
    """What returns the thing has nowhere to say how it is closed; the error says what is wanted."""
    with pytest.raises(DeclarationError, match="@app.resource stands on a function with one `yield`"):  # noqa: RUF043  # the dot may be any
        app.resource(function)


def test_resources_are_closed_the_last_made_first() -> None:
    """As with nested `with` statements: what was made later may need what was made before."""
    log: list[str] = []
    shelf = Shelf()
    shelf.get("a", yields(1, log, "a"))
    shelf.get("b", yields(2, log, "b"))
    shelf.close()

    assert log == ["make a", "make b", "close b", "close a"]


def test_a_resource_may_need_another() -> None:
    """It just calls it."""
    log: list[str] = []
    shelf = Shelf()

    def outer() -> Iterator[int]:
        inner = shelf.get("inner", yields(1, log, "inner"))
        assert isinstance(inner, int)
        yield inner + 1
        log.append("close outer")

    assert shelf.get("outer", outer) == 2
    shelf.close()
    assert log == ["make inner", "close outer", "close inner"]


def test_a_closed_shelf_makes_anew() -> None:
    """Whoever uses a resource after the end gets one that works, not one that is closed."""
    log: list[str] = []
    shelf = Shelf()
    for _ in range(2):
        shelf.get("a", yields(1, log, "a"))
        shelf.close()

    assert log == ["make a", "close a", "make a", "close a"]


def test_threads_make_a_resource_once() -> None:
    """Whoever comes while it is being made waits for it."""
    shelf, start, count = Shelf(), threading.Barrier(8), []

    def make() -> Iterator[object]:
        count.append(1)
        yield object()

    def use(_: int) -> object:
        start.wait()
        return shelf.get("a", make)

    with ThreadPoolExecutor(8) as threads:
        things = list(threads.map(use, range(8)))
    assert len(count) == 1
    assert len(set(map(id, things))) == 1
    shelf.close()


def test_a_resource_that_cannot_be_made_is_tried_again_next_time() -> None:
    """The call that wanted it fails; the next one may have more luck."""
    shelf, tries = Shelf(), []

    def make() -> Iterator[int]:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("not yet")
        yield 7

    with pytest.raises(ConnectionError, match="not yet"):
        shelf.get("a", make)
    assert shelf.get("a", make) == 7
    shelf.close()


def test_a_resource_that_yields_nothing_says_so() -> None:
    """By its name."""

    def make() -> Iterator[int]:
        if made is None:
            yield 1

    with pytest.raises(JobQError, match=r"The resource proj\.model yielded nothing"):
        Shelf().get("proj.model@abc", make)


def test_a_second_yield_does_not_keep_a_resource_from_closing() -> None:
    """There is one thing and one end; what is yielded after it is dropped."""
    log: list[str] = []
    shelf = Shelf()

    def make() -> Iterator[int]:
        try:
            yield 1
            log.append("after the first")
            yield 2
            log.append("never")
        finally:
            log.append("finally")

    shelf.get("a", make)
    shelf.close()
    assert log == ["after the first", "finally"]


def test_an_error_while_closing_keeps_no_other_resource_open() -> None:
    """Each is closed; the error is not lost."""
    log: list[str] = []
    shelf = Shelf()

    def breaks() -> Iterator[int]:
        yield 1
        raise OSError("cannot close")

    shelf.get("first", yields(1, log, "first"))
    shelf.get("second", breaks)
    with pytest.raises(OSError, match="cannot close"):
        shelf.close()
    assert log == ["make first", "close first"]


def test_a_pickled_resource_is_the_same_resource() -> None:
    """Two tasks that travel by value share one, as they would at home."""
    copies = [pickle.loads(cloudpickle.dumps(table)) for _ in range(2)]

    assert copies[0]() is copies[1]() is table()


def test_resources_of_other_content_are_others() -> None:
    """An edited notebook cell makes a new one, though its name is the same."""

    def declare(size: int) -> Any:
        @app.resource
        def model() -> Iterator[list[int]]:
            yield [0] * size

        return model

    small, large = declare(1), declare(2)
    assert (len(small()), len(large())) == (1, 2)


CLOSING = """
import sys
from ai4s.jobq import App

app = App("closing")

@app.resource
def model():
    print("made")
    yield 7
    print("closed")

print(model())
"""


def test_a_program_closes_its_resources_at_its_end(tmp_path: Path) -> None:
    """Where a task is called directly, the program itself is the process that has them."""
    program = tmp_path / "closing.py"
    program.write_text(CLOSING)
    answer = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)

    assert answer.stdout.split() == ["made", "7", "closed"], answer.stderr


def test_a_worker_makes_and_closes_resources_in_its_child(jobq_app: App, jobq_worker: Callable[..., Any], tmp_path: Path) -> None:
    """Made with the first call that needs it, shared by all calls that travel with it, closed when the worker ends."""
    log = tmp_path / "log"

    @jobq_app.resource
    def model() -> Iterator[list[int]]:
        log.write_text("made;")
        yield []
        with log.open("a") as file:
            file.write("closed;")

    @jobq_app.task
    def use(x: int) -> int:
        model().append(x)
        return len(model())

    @jobq_app.task
    def look() -> int:
        return len(model())

    with jobq_app.worker(concurrency=1):
        assert not log.exists()
        assert gather(*(use.delay(x) for x in range(3)), timeout=60) == [1, 2, 3]
        assert look.delay().result(timeout=60) == 3
        assert log.read_text() == "made;"
    assert log.read_text() == "made;closed;"


def test_async_tasks_share_a_resource(jobq_app: App, jobq_worker: Callable[..., Any]) -> None:
    """Those that run on one loop, and on threads beside it, are in one process."""

    @jobq_app.resource
    def uses() -> Iterator[list[str]]:
        yield []

    @jobq_app.task
    async def on_loop() -> int:
        uses().append("loop")
        return len(uses())

    @jobq_app.task(pool="thread")
    def on_thread() -> int:
        uses().append("thread")
        return len(uses())

    jobq_worker(jobq_app)
    counts = [task.delay().result(timeout=60) for task in (on_loop, on_thread, on_loop)]
    assert counts == [1, 2, 3]


def test_resources_are_not_collected_while_in_use() -> None:
    """The generator lives as long as the process: its `finally` runs at the end, and no earlier."""
    log: list[str] = []
    shelf = Shelf()

    def make() -> Iterator[int]:
        try:
            yield 1
        finally:
            log.append("closed")

    shelf.get("a", make)
    gc.collect()
    assert log == []
    shelf.close()
    assert log == ["closed"]
