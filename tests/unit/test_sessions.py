"""Ending a session: all processes of it, in whatever group, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ai4s.jobq import sessions
from ai4s.jobq.sessions import end_session

LEADER = """
import os, subprocess, sys
group = subprocess.Popen(["sleep", "1000"], process_group=0)
beside = subprocess.Popen(["sleep", "1000"])
out = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(group.pid, beside.pid, out.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def session() -> Iterator[tuple[subprocess.Popen[str], list[int], int]]:
    """The leader of a session, two more of it, the first in a group of its own, and one that has left it."""
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert leader.stdout is not None
        *members, out = map(int, leader.stdout.readline().split())
        try:
            yield leader, members, out
        finally:
            os.kill(out, 9)
    finally:
        leader.kill()
        leader.communicate()


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def until_gone(pids: list[int]) -> None:
    """Wait until none of these lives; what is killed takes a moment to die."""
    give_up_at, pause = time.monotonic() + 20, threading.Event()
    while any(map(alive, pids)):
        assert time.monotonic() < give_up_at
        pause.wait(0.01)


def test_all_of_a_session_ends_and_nothing_else() -> None:
    """In whatever group; what has left it is its own master."""
    with session() as (leader, members, out):
        end_session(leader.pid)
        until_gone([leader.pid, *members])
        assert alive(out)


def test_some_are_spared() -> None:
    """As a guard spares itself."""
    with session() as (leader, members, _):
        end_session(leader.pid, spare=lambda pid: pid in (leader.pid, members[0]))
        until_gone([members[1]])
        assert alive(leader.pid)
        assert alive(members[0])
        end_session(leader.pid)
        until_gone(members)


def test_a_session_that_is_gone_is_no_error() -> None:
    """Whoever ends a child may come late."""
    with session() as (leader, _, _):
        end_session(leader.pid)
        leader.wait()
        end_session(leader.pid)


def test_a_number_that_is_anothers_by_now_is_not_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at once more when it can change no longer."""
    with session() as (leader, members, out):
        monkeypatch.setattr(sessions, "_members", lambda session: iter([out, members[0]]))
        end_session(leader.pid)
        until_gone([members[0]])
        assert alive(out)
        monkeypatch.undo()
        end_session(leader.pid)
