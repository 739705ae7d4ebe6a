"""The processes of a session, in whatever group: a child of a worker leads one, and what it starts stays in it.

All of a session is ended with the child that leads it. What one command has started there is known by its environment, which
goes from process to process, and not by its parents, which may have ended. A process that has left the session by `setsid` is its
own master, and left alone.

Next: `shell/process.py`, which ends commands; `worker/child_process.py`, which ends children; `worker/child.py`, whose guard ends
what the supervisor cannot any more.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 100
"""A process may start another one while this looks; one that is killed does not. So a few rounds are enough, but for a flood."""


def end_session(session: int, spare: Callable[[int], bool] = lambda pid: False) -> None:
    """SIGKILL every process of a session, but for those to be spared, until no new one is found. Raises nothing."""
    ended: set[int] = set()
    for _ in range(ROUNDS):
        found = [pid for pid in _members(session) if pid not in ended and not spare(pid)]
        if not found:
            return
        for pid in found:
            _signal(pid, session, signal.SIGKILL)
        ended.update(found)


@dataclass(frozen=True, slots=True)
class Offspring:
    """What the leader of a group of our session has started there: its group, and those who have left it, as `timeout` does.

    The latter are known by a variable, `NAME=value`, in their environment. Nobody in our own group is. Nothing here raises.
    """

    leader: int
    variable: str

    def signal(self, number: signal.Signals) -> None:
        """Signal the group, and then the strays; as long as the leader is not collected, as its number may be another's then."""
        with suppress(ProcessLookupError, PermissionError):  # the latter is what some systems say of a group that has ended
            os.killpg(self.leader, number)
        session = os.getsid(0)
        if number == signal.SIGKILL:
            end_session(session, spare=lambda pid: not self._is_stray(pid))
            return
        for pid in filter(self._is_stray, _members(session)):
            _signal(pid, session, number)

    def lives(self) -> bool:
        """Whether there is any but the leader."""
        others = (pid for pid in _members(os.getsid(0)) if pid != self.leader)
        return any(self._is_stray(pid) or (group_of(pid) == self.leader and _lives(pid)) for pid in others)

    def _is_stray(self, pid: int) -> bool:
        return group_of(pid) not in (0, self.leader, os.getpgid(0)) and _has(pid, self.variable)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; where the system does not say so, it has."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(status.partition("\nSigCgt:")[2].split()[0], 16) >> number - 1 & 1)
    except (OSError, IndexError):
        return True


def group_of(pid: int) -> int:
    """The process group of a process; 0 for one that is gone."""
    with suppress(OSError):
        return os.getpgid(pid)
    return 0


def _members(session: int) -> Iterator[int]:
    return (pid for pid in _all_pids() if _session_of(pid) == session)


def _all_pids() -> list[int]:
    if sys.platform == "linux":
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208  # a Path for each is dear
    import psutil

    return psutil.pids()


def _session_of(pid: int) -> int:
    """The session of a process; 0 for one that is gone, or not for us to ask about."""
    with suppress(OSError):
        return os.getsid(pid)
    return 0


def _has(pid: int, variable: str) -> bool:
    """Whether this is in the environment with which a process was started; one that has ended has none."""
    import psutil

    name, _, value = variable.partition("=")
    with suppress(psutil.Error, OSError):
        return bool(psutil.Process(pid).environ().get(name) == value)
    return False


def _lives(pid: int) -> bool:
    """Whether a process has not ended; one that nobody collects has."""
    import psutil

    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _signal(pid: int, session: int, number: signal.Signals) -> None:
    """Signal a process if it is of this session. Its number may have been given to another one since it was looked at."""
    with suppress(OSError):
        if not hasattr(os, "pidfd_open"):
            os.kill(pid, number)
            return
        descriptor = os.pidfd_open(pid)
        try:
            # From here on the number is this process's, or that of one that has ended and cannot be hit.
            if _session_of(pid) == session:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
