"""One event loop on one thread, for callers without one, and for callers whose loop is not the connections' loop.

Connections belong to the loop they were opened on, so sync and async callers alike hand their coroutines over to this one.

Next: `client.py`, which owns a portal.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar, cast

from .errors import JobQError

T = TypeVar("T")


class Portal:
    """A running event loop on a daemon thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="jobq-portal", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait; an interrupt while waiting cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise JobQError("A blocking call on the portal's own thread would wait for itself: await its async twin.")
        errand = _Errand(work)
        self._loop.call_soon_threadsafe(errand.begin, self._loop)
        try:
            errand.ended.acquire()
        except BaseException:
            self._loop.call_soon_threadsafe(errand.cancel)
            raise
        return errand.unwrap()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have a coroutine run there, and wait for nothing."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and await it from any loop; cancelling the wait cancels it."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return await asyncio.wrap_future(future)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run `last`, then end what still runs, the loop and the thread."""
        with contextlib.suppress(RuntimeError):  # at interpreter's end the loop may be gone before us
            asyncio.run_coroutine_threadsafe(_cancel_others_then(last), self._loop).result()
            asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class _Errand(Generic[T]):
    """A coroutine that one thread waits for while another one runs it; a concurrent Future would take twice the time."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None
        self.ended = threading.Lock()
        self.ended.acquire()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run it; on the loop's thread."""
        self._task = loop.create_task(self._run())
        # Not in the task itself: one that is cancelled before its first step never takes it.
        self._task.add_done_callback(self._tell)

    def cancel(self) -> None:
        """End it; on the loop's thread."""
        if self._task is not None:
            self._task.cancel()

    def unwrap(self) -> T:
        """Its value; raises its error if there is one."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return cast("T", self._value)
        finally:
            del error  # whose traceback would hold it

    async def _run(self) -> None:
        self._value = await self._work

    def _tell(self, task: asyncio.Task[None]) -> None:
        self._error = CancelledError() if task.cancelled() else task.exception()
        self.ended.release()


async def _cancel_others_then(last: Coroutine[Any, Any, None]) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await last
