"""Fixtures for all tests. Azurite is started once, when the first test asks for it.

JOBQ_TEST_AZURITE names one that runs already (see `compose.yaml`). A test that is `async def` runs on a loop of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from azurite import running_azurite

from ai4s.jobq.transports.local import schema


@pytest.fixture(scope="session")
def azurite_url() -> Iterator[str]:
    """The place of a real Azurite that this test session may fill; names in it must be made up by each test."""
    running_already = os.environ.get("JOBQ_TEST_AZURITE")
    if running_already:
        yield running_already
        return
    with running_azurite() as url:
        yield url


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests; a plugin for these ten lines would be one more dependency."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are tried again are tried at once."""
    real_sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real_sleep(0))


@pytest.fixture
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes die here, machines do not: hundreds of places need not be safe from a loss of power."""
    connect = schema.connect

    def hasty(folder: Path, *, patience_seconds: float) -> sqlite3.Connection:
        connection = connect(folder, patience_seconds=patience_seconds)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(schema, "connect", hasty)
