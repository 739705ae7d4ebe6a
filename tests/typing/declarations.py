"""What a type checker knows of apps, options and resources: `mypy` reads this file, nobody runs it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import assert_type

import ai4s.jobq
from ai4s.jobq import App, Backoff, Handle, current

app = App("typing", ship=[ai4s.jobq], signing_keys=["a key that is long enough"], create=False)


@app.task(
    name="all-options",
    retries=3,
    retry_on=(OSError, TimeoutError),
    backoff=Backoff(1, 2, 60),
    max_deaths=2,
    timeout=timedelta(hours=1),
    expires=3600,
    queue="gpu",
    codec="cloudpickle",
    pool="process",
    gpus=1,
    cpus=4,
    memory="8G",
)
def everything(x: int) -> int:
    return x


def options_are_checked() -> None:
    """By name and by type."""
    app.task(retires=3)  # type: ignore[call-overload]
    app.task(retries="3")  # type: ignore[call-overload]
    app.task(codec="json")  # type: ignore[call-overload]
    app.task(pool="gpu")  # type: ignore[call-overload]
    app.task(gpus="1")  # type: ignore[call-overload]
    app.task(memory=1.5)  # type: ignore[call-overload]
    everything.options(gpus=2, cpus=None, memory=2**33)
    everything.options(memory=1.5)  # type: ignore[arg-type]
    app.task(retry_on="ValueError")  # type: ignore[call-overload]
    app.task(3)  # type: ignore[call-overload]
    App(3)  # type: ignore[arg-type]
    App("typing", ship=["os"])  # type: ignore[list-item]
    App("typing", ["a key"])  # type: ignore[arg-type]


class Model:
    """Something expensive."""

    def predict(self, x: int) -> float:
        return x / 2


@app.resource
def model() -> Iterator[Model]:
    yield Model()


@app.task
def predict(x: int) -> float:
    """A resource gives what its function yields."""
    assert_type(model(), Model)
    model(3)  # type: ignore[call-arg]
    return model().predict(x)


def resources_are_generators() -> None:
    """What returns instead of yielding is found out."""

    def returned() -> Model:
        return Model()

    app.resource(returned)  # type: ignore[arg-type]
    app.resource(predict)  # type: ignore[arg-type]


@app.task
def look_around() -> str:
    """Inside a task."""
    call = current()
    assert_type(call.id, str)
    assert_type(call.attempt, int)
    assert_type(call.run, int)
    assert_type(call.queue, str)
    assert_type(call.worker, str)
    assert_type(call.deadline, float | None)
    call.logger.info("step %d", 3)
    call.attempt = 3  # type: ignore[misc]
    return call.id


def workers() -> None:
    """A context manager."""
    with app.worker(concurrency=2, async_concurrency=50, queues=["gpu"]) as worker:
        assert_type(worker.pid, int)
    app.worker("2")  # type: ignore[arg-type]


def an_id_says_nothing_of_the_result() -> None:
    """Say it yourself."""
    handle: Handle[int] = app.handle("an id")
    assert_type(handle.result(), int)
