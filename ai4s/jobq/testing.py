"""For users' tests: an app on a temporary store, a worker for the length of a test, and an inline mode.

A pytest plugin that is there once the package is installed, with the fixtures `jobq_app`, `jobq_place`, `jobq_worker` and
`jobq_inline`; the same as context managers for other test runners. Nothing of the package is imported until a fixture is used.

Next: `docs/how-to/test-your-tasks.md`; for what inline mode runs, `worker/execution.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .app import App
    from .background import BackgroundWorker


@contextmanager
def temporary_place(app: App, url: str | None = None) -> Iterator[App]:
    """`app` on an empty local store of its own, or at the place `url`, for the length of the block."""
    before = app.client.origin
    with tempfile.TemporaryDirectory(prefix="jobq-test-") as folder:
        app.client.move(before._replace(url=url or f"local://{folder}", create=True))
        try:
            yield app
        finally:
            app.client.move(before)


@contextmanager
def inline(app: App) -> Iterator[App]:
    """`delay` and `map` run their calls at once, in this process, for the length of the block.

    Arguments, results and errors pass through the real codec and lie in the app's store, so `result()` and all else work as
    ever. Retries follow each other without delay, and a dead letter or a batch's failures that are retried run at once too.
    Timeouts, `countdown` and `expires` are not applied, and there are no children.
    """
    from .inline import Inline

    with tempfile.TemporaryDirectory(prefix="jobq-inline-") as folder:
        app.client.instead = Inline(app, Path(folder))
        try:
            yield app
        finally:
            app.client.instead = None


@pytest.fixture
def jobq_place() -> Iterator[Callable[[App], App]]:
    """A function that moves an app of yours to an empty local store for the length of the test, and returns it."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(temporary_place(app))


@pytest.fixture
def jobq_app(jobq_place: Callable[[App], App]) -> App:
    """A fresh app without tasks, on an empty local store."""
    from .app import App

    return jobq_place(App("test-app"))


@pytest.fixture
def jobq_worker() -> Iterator[Callable[..., BackgroundWorker]]:
    """A function that starts a worker for an app, as `app.worker(...)` would; it ends with the test.

    Call it when all tasks are declared: `jobq_worker(app, concurrency=1)`.
    """
    with ExitStack() as stack:

        def start(app: App, concurrency: int = 1, **sizes: Any) -> BackgroundWorker:
            return stack.enter_context(app.worker(concurrency, **sizes))

        yield start


@pytest.fixture
def jobq_inline(jobq_place: Callable[[App], App]) -> Iterator[Callable[[App], App]]:
    """A function that puts an app of yours on an empty store and in inline mode for the length of the test, and returns it."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(inline(jobq_place(app)))
