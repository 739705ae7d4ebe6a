"""Streams with real workers, on both kinds of place."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
from projects import NewProject, until

TASKS = """
import os

@app.task
def square(x):
    return x * x

@app.task(retries=1)
def once_broken(x):
    if x % 100 == 7 and current().attempt == 1:
        raise ConnectionError("no")
    return x

@app.task
def record(x, path):
    with open(path, "a") as file:
        file.write(f"{x}\\n")
    return x
"""


def test_outcomes_come_while_the_source_still_gives(new: NewProject, place_url: str) -> None:
    """A source that waits for the outcome of its own last item gets it."""
    project = new(TASKS, url=place_url)
    seen: list[int] = []

    def source() -> Iterator[int]:
        yield 0
        for number in range(1, 5):
            until(lambda: len(seen) >= number)  # noqa: B023  # called at once
            yield number

    project.worker("--concurrency", "1")
    with project.task("square").stream(source()) as outcomes:
        for outcome in outcomes:
            seen.append(outcome.value)  # noqa: PERF401  # the source looks at it
    assert seen == [0, 1, 4, 9, 16]


def test_an_endless_source_can_be_left(new: NewProject, place_url: str) -> None:
    """What was submitted ends as done or cancelled."""
    project = new(TASKS, url=place_url)
    project.worker("--concurrency", "2")
    with project.task("once_broken").stream(itertools.count(), ahead=400) as outcomes:
        found = {outcome.index: outcome.value for outcome in itertools.islice(outcomes, 1000)}
    assert all(index == value for index, value in found.items())
    assert len(found) == 1000
    until(lambda: (progress := outcomes.batch.progress()).is_whole and progress.done == progress.total)
    assert outcomes.batch.progress().total <= 1000 + 400 + 1


async def test_an_async_stream_with_a_worker(new: NewProject, place_url: str) -> None:
    """From an async source, on the caller's loop."""
    project = new(TASKS, url=place_url)
    project.worker("--concurrency", "2")

    async def source() -> AsyncIterator[int]:
        for number in range(2_000):
            yield number

    async with project.task("square").astream(source(), ahead=500) as outcomes:
        found = {outcome.index: outcome.value async for outcome in outcomes}
    assert found == {number: number**2 for number in range(2_000)}


def test_a_stream_that_was_cut_short_goes_on_by_its_keys(new: NewProject, place_url: str) -> None:
    """The program died in the middle: the second one gives one outcome for each item."""
    project = new(TASKS, url=place_url)
    log = project.folder / "ran"
    died = project.run(
        "first.py",
        f"""
        import os
        from {project.module.__name__} import record
        if __name__ == "__main__":
            with record.stream(range(60), kwargs={{"path": {str(log)!r}}}, batch="cut", key=str, ahead=20) as outcomes:
                outcomes._feed.has_begun.wait()
                while not outcomes._feed.infos:
                    pass
                os._exit(3)
        """,
    )
    assert died.returncode == 3, died.stderr
    project.worker("--concurrency", "2")
    with project.task("record").stream(range(60), kwargs={"path": str(log)}, batch="cut", key=str) as outcomes:
        assert sorted(outcome.value for outcome in outcomes) == list(range(60))
    # Packs that were just being sent may lie there twice, and then run side by side; an outcome they have only once.
    assert set(map(int, log.read_text().split())) == set(range(60))
    assert outcomes.batch.progress().total == 60


@pytest.mark.parametrize("failing", [True, False], ids=["an error", "no error"])
def test_a_program_that_leaves_a_stream_ends(new: NewProject, failing: bool) -> None:
    """Nothing keeps it: no thread, and no worker is needed for that."""
    project = new(TASKS)
    ended = project.run(
        "leave.py",
        f"""
        import itertools
        from {project.module.__name__} import square
        if __name__ == "__main__":
            with square.stream(itertools.count(), ahead=50) as outcomes:
                if {failing}:
                    raise SystemExit(4)
        """,
    )
    assert ended.returncode == (4 if failing else 0), ended.stderr
