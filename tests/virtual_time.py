"""An event loop whose time only tests move, without threads: what thousands of short histories need.

`until_still` runs everything that can be done at this moment and returns when all that is left waits, for a time to come or for
the test. Nothing ever really sleeps.

Next: `model_world.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

EPOCH_SECONDS = 1_700_000_000.0
"""What the server's clock is ahead of the machines': two clocks that have nothing in common cannot be mixed up unnoticed."""


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._selector = self
        self._clock_resolution = 1e-9
        self.set_exception_handler(lambda *_: None)  # who dies leaves tasks behind that nobody will ask

    def time(self) -> float:
        return self.now

    def server_time(self) -> float:
        """What the service says: whole seconds, like a Date."""
        return EPOCH_SECONDS + self.now // 1

    def until_still(self) -> None:
        """Do what can be done now."""
        self.run_forever()

    def select(self, timeout: float | None) -> tuple[()]:
        """In place of a selector: nothing comes from outside, so whoever would wait is still."""
        if timeout is None or timeout > 0:
            self.stop()
        return ()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Here and now: no threads."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as exc:  # noqa: BLE001  # the caller's
            done.set_exception(exc)
        return done

    def _process_events(self, event_list: object) -> None: ...

    def _write_to_self(self) -> None: ...


@contextlib.contextmanager
def virtual_clocks(*names: str) -> Iterator[None]:
    """Within the block these clocks ("module.name") tell the time of whichever loop runs."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(patch(name, lambda: asyncio.get_running_loop().time()))
        yield
