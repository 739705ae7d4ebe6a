"""Functions in processes beside an event loop: what comes back, what a death or a cancelled wait means, and who ends with whom."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from ai4s.jobq import DeclarationError, NotSerializable, ProcessDied, TaskFailed, process_work, run_in_process

SOON = 60.0  # seconds; far more than anything here takes on a busy machine


class Own(Exception):
    """An exception of the user's."""


def fail(error: BaseException) -> None:
    raise error


def alive(pid: int) -> bool:
    """Whether a process lives, and is not merely to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    give_up = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < give_up, condition
        await asyncio.sleep(0.01)


async def test_a_function_runs_elsewhere_and_its_value_comes_back() -> None:
    """Also a lambda that closes over something, with large values; and processes are used again."""
    factor = 3
    assert await run_in_process(lambda x, *, y: x * factor + y, 2, y=1) == 7
    assert len(await run_in_process(bytes, 50_000_000)) == 50_000_000
    pids = await asyncio.gather(*(run_in_process(os.getpid) for _ in range(20)))
    assert os.getpid() not in pids
    assert len(set(pids)) <= len(os.sched_getaffinity(0))
    assert await run_in_process(lambda: sys.path) == sys.path


async def test_there_are_no_more_processes_than_cores_that_the_kernel_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may have two of a machine's hundred."""
    monkeypatch.setattr(process_work, "usable_cores", lambda: 1)
    monkeypatch.setattr(process_work, "_MADE", [])
    assert len(set(await asyncio.gather(*(run_in_process(os.getpid) for _ in range(10))))) == 1


async def test_the_loop_goes_on_meanwhile() -> None:
    """That is what it is for."""
    done = asyncio.create_task(run_in_process(lambda: sum(x * x for x in range(300_000))))
    turns = 0
    while not done.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert await done == sum(x * x for x in range(300_000))


async def test_what_it_raises_is_raised_here() -> None:
    """The very exception, with where it came from; one that would end this process as TaskFailed."""
    with pytest.raises(Own, match="no luck") as caught:
        await run_in_process(fail, Own("no luck"))
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(TaskFailed, match="raised SystemExit: 4"):
        await run_in_process(sys.exit, 4)


async def test_what_cannot_travel_is_said() -> None:
    """In either direction; and what is no function is refused at once."""
    with pytest.raises(NotSerializable):
        await run_in_process(len, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(NotSerializable):
        await run_in_process(threading.Lock)
    for wrong in (3, asyncio.sleep):
        with pytest.raises(DeclarationError, match="takes a plain function"):
            await run_in_process(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal SIGKILL"),
        (lambda: os.kill(os.getpid(), 40), "signal 40"),  # has no name
    ],
)
async def test_a_process_that_dies_is_its_own_calls_error(end: Callable[[], Any], said: str) -> None:
    """The others go on, and the next one gets a new process."""
    other = asyncio.create_task(run_in_process(time.sleep, 0.2))
    with pytest.raises(ProcessDied, match=said):
        await run_in_process(end)
    assert await run_in_process(abs, -1) == 1
    await other


@pytest.mark.parametrize("error", [StopIteration(3), CancelledError(), asyncio.CancelledError(), SystemExit(3)])
async def test_what_would_mean_something_else_here_is_told(error: BaseException) -> None:
    """A future would not take it, or who awaits it would seem to be cancelled."""
    with pytest.raises(TaskFailed, match=f"raised .*{type(error).__name__}"):
        await asyncio.wait_for(run_in_process(fail, error), SOON)


async def test_a_function_that_forks_has_one_answer() -> None:
    """And the next one gets its own."""

    def fork() -> str:
        copy = os.fork()
        if copy:
            os.waitpid(copy, 0)
        return "original" if copy else "copy"

    for number in range(4):
        assert await asyncio.gather(run_in_process(fork), run_in_process(abs, -number)) == ["original", number]


async def test_a_process_that_died_idle_is_replaced() -> None:
    """It is nobody's error."""
    for pid in set(await asyncio.gather(*(run_in_process(os.getpid) for _ in range(8)))):
        os.kill(pid, signal.SIGKILL)
        await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
    assert await asyncio.gather(*(run_in_process(abs, -x) for x in range(8))) == list(range(8))


async def test_who_stops_waiting_kills_the_process(tmp_path: Path) -> None:
    """The function is stopped where it is; one that had not begun never does, and the next one runs."""

    def linger() -> None:
        (tmp_path / "pid.part").write_text(str(os.getpid()))
        (tmp_path / "pid.part").rename(tmp_path / "pid")
        time.sleep(1000)

    waiting = asyncio.create_task(run_in_process(linger))
    await until((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not alive(pid))
    crowd = [asyncio.create_task(run_in_process((tmp_path / "never").touch)) for _ in range(4)]
    await asyncio.sleep(0)
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    assert await run_in_process(abs, -1) == 1


def test_a_plain_script_needs_no_main_guard(tmp_path: Path) -> None:
    """Its functions and classes travel by value; an interrupt from the terminal is for the script alone, and nothing is left."""
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import asyncio, os, signal, sys, time
            from ai4s.jobq import run_in_process

            class Own(Exception):
                pass

            def square(x):
                return x * x

            def fail():
                raise Own("here")

            def ignores():
                os.kill(os.getpid(), signal.SIGINT)
                return os.getpid()

            async def main():
                assert await run_in_process(square, 3) == 9
                try:
                    await run_in_process(fail)
                except Own:
                    print(await run_in_process(ignores), flush=True)
                await run_in_process(time.sleep, 1000)

            asyncio.run(main())
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        pid = int(script.stdout.readline())
        script.send_signal(signal.SIGINT)
        _, said = script.communicate(timeout=SOON)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert script.returncode == -signal.SIGINT
    asyncio.run(until(lambda: not alive(pid)))


def test_processes_end_with_one_that_is_killed(tmp_path: Path) -> None:
    """Also while they compute."""
    script = "import asyncio, os, time; from ai4s.jobq import run_in_process\nasync def main():\n"
    script += (
        "    print(await run_in_process(os.getpid), flush=True)\n    await run_in_process(time.sleep, 1000)\nasyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait(SOON)
    asyncio.run(until(lambda: not alive(pid)))
