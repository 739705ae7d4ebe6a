"""SIGTERM in a process that handles it as a worker's child does: an announced one ends it, a stray one is noted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from typing import Any

import pytest

from ai4s.jobq.sessions import catches
from ai4s.jobq.worker.child_process import Child
from ai4s.jobq.worker.jobs import ChildSetup, Served

HEAD = """
import os, signal, subprocess, sys, threading, time
from ai4s.jobq.sigterm import Sigterm
sigterm = Sigterm.installed()

def strike():
    os.kill(os.getpid(), signal.SIGTERM)

def later(seconds, *steps):
    threading.Thread(target=lambda: (time.sleep(seconds), *(step() for step in steps)), daemon=True).start()
"""


def program(source: str) -> subprocess.Popen[str]:
    """A process that handles SIGTERM and does this."""
    code = HEAD + textwrap.dedent(source)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def ran(source: str) -> tuple[int, list[str]]:
    """The exit code of such a process, and its output's lines."""
    with program(source) as process:
        try:
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, out.splitlines()


def test_stray_ones_are_noted() -> None:
    """However many come; and something that goes wrong then may be explained by them for a while."""
    code, said = ran("""
        print(sigterm.wait_seconds())
        for _ in range(3):
            strike()
        print(1 < sigterm.wait_seconds() <= 2)
    """)
    assert (code, said) == (0, ["None", "True"])


@pytest.mark.parametrize(
    "busy",
    ["time.sleep(1000)", "while True: pass", "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"],
    ids=["asleep", "in Python", "in C without the GIL"],
)
def test_an_announced_one_ends_the_process(busy: str) -> None:
    """Whatever its main thread does, and also if it had come before the announcement was read."""
    assert ran(f"later(0.1, strike, sigterm.announce)\n{busy}")[0] == -signal.SIGTERM


def test_the_second_one_ends_what_cannot_listen() -> None:
    """C code that holds the GIL survives one, and has no handler from then on. The first may come just before it begins."""
    with program("print('ready', flush=True)\nsum(range(10**12))") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert catches(process.pid, signal.SIGTERM)
        give_up_at = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < give_up_at:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        process.kill()
        assert process.wait() == -signal.SIGTERM


def test_what_it_starts_or_forks_has_the_default_action() -> None:
    """`terminate` ends those as ever, at once, and on whatever thread they were made."""
    code, said = ran("""
        import multiprocessing
        def fork():
            made = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,)) for _ in range(30)]
            for process in made:
                process.start()
                process.terminate()
            print({process.join() or process.exitcode for process in made}, signal.pthread_sigmask(signal.SIG_BLOCK, []))
        fork()
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        started = subprocess.Popen(["sleep", "20"])
        started.terminate()
        print({started.wait()})
    """)
    assert (code, said) == (0, ["{-15} set()", "{-15} set()", "{-15}"])


def test_a_handler_of_the_task_s_own_is_left_in_place() -> None:
    """Announced or not, it is called; and that it was is known afterwards, also where it has restored what was there."""
    code, said = ran("""
        before = signal.signal(signal.SIGTERM, lambda *_: print("mine"))
        strike()
        sigterm.announce()
        strike()
        signal.signal(signal.SIGTERM, before)
        print(sigterm.wait_seconds() > 0)
    """)
    assert (code, said) == (0, ["mine", "mine", "True"])


def test_the_default_action_is_not_left_to_the_next_job() -> None:
    """Nor a wakeup descriptor of another's, as event loops leave it."""
    code, said = ran("""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        sigterm.renew()
        strike()
        print(sigterm.wait_seconds() > 0)
    """)
    assert (code, said) == (0, ["True"])


def test_an_announced_one_is_passed_on() -> None:
    """And ends the process only when that is done; a stray one is not passed on."""
    code, said = ran("""
        from ai4s.jobq.shell.process import passing_sigterm
        with passing_sigterm() as passing:
            passing.act = lambda: print("passed on", flush=True)
            strike()
            print(passing.came, flush=True)
            sigterm.announce()
            print(passing.came, flush=True)
        print("never")
    """)
    assert (code, said) == (-signal.SIGTERM, ["False", "passed on", "True"])


def test_without_a_handler_each_one_is_passed_on() -> None:
    """Outside a worker's child nobody announces it."""
    code, said = ran("""
        from ai4s.jobq.shell.process import passing_sigterm
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with passing_sigterm() as passing:
            passing.act = lambda: print("passed on", flush=True)
            strike()
        print("never")
    """)
    assert (code, said) == (-signal.SIGTERM, ["passed on"])


async def test_a_child_survives_one_from_its_first_moment_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even before it runs any code of ours; what the supervisor means still ends it."""
    start = asyncio.create_subprocess_exec

    async def struck(*args: Any, **kwargs: Any) -> Any:
        process = await start(*args, **kwargs)
        os.kill(process.pid, signal.SIGTERM)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", struck)
    child, ready = await Child.start(ChildSetup("worker", served=Served("proj", "local:///nowhere")))
    try:
        assert (ready.problem, child.alive) == (None, True)
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        await child.kill(30)
