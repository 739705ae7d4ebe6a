"""What a type checker knows of shell commands: `mypy` reads this file, nobody runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import assert_type

from ai4s.jobq import App, Batch, Handle, ShellResult

app = App("typing")


async def commands() -> AsyncIterator[str]:
    yield "true"


async def shell() -> None:
    assert_type(app.shell("true", env={"A": 1}, retry_exit=(75, 137), timeout=60, retries=2), Handle[ShellResult])
    assert_type(await app.shell.adelay("true", cwd="/tmp"), Handle[ShellResult])
    assert_type(app.shell.options(key="once")("true").result().output, str)
    assert_type(app.shell.map(["true", {"cmd": "true", "env": {}}], pack=4, fail_exit=[2]), Batch[ShellResult])
    assert_type(await app.shell.amap(commands(), batch="one", key=str), Batch[ShellResult])
    app.shell(["true"])  # type: ignore[arg-type]
    app.shell("true", user="root")  # type: ignore[call-arg]
    app.shell("true", env="A=1")  # type: ignore[arg-type]
