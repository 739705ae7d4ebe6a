"""The emulator that all benchmarks share with the tests, and the requests that reach it.

Next: `tasks.py`, whose app works here.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import tasks

from ai4s.jobq.client import Origin

# Installed and started by what the tests use; a second way to do so would be one too many.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from azurite import running_azurite
from fault_proxy import FaultyAccount, faulty_account


@contextlib.contextmanager
def on_azurite() -> Iterator[str]:
    """A fresh storage account, at which the benchmarks' app is; yields its connection string."""
    with running_azurite() as url, at(url):
        yield url


@contextlib.contextmanager
def in_a_folder() -> Iterator[str]:
    """A fresh local store, at which the benchmarks' app is; yields its folder."""
    with tempfile.TemporaryDirectory() as folder, at(f"local://{folder}"):
        yield folder


@contextlib.contextmanager
def at(url: str) -> Iterator[None]:
    """Have the benchmarks' app at this place, for this block."""
    before = tasks.app.client.origin
    tasks.app.client.move(Origin(url, None, True))
    try:
        yield
    finally:
        tasks.app.client.move(before)


@contextlib.contextmanager
def requests_counted(url: str) -> Iterator[FaultyAccount]:
    """This account, with a list of the requests that all processes make; the benchmarks' app is there for this block.

    They are seen on their way, by a proxy: nothing that any process does can pass it by. It slows them, so time nothing here.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    proxy = faulty_account(url)
    account = asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
    try:
        with at(account.url):
            yield account
    finally:
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
