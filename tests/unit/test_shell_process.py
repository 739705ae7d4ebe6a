"""Commands as processes: how they end, how they are ended, and that nothing of them stays behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest

from ai4s.jobq.shell import process
from ai4s.jobq.shell.process import Ended, Launch, Watcher, run_to_end
from ai4s.jobq.sigterm import Sigterm


class Announced(Sigterm):
    """One that has been announced, whenever it comes."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        self.act()


@dataclass
class Seen:
    """What a watcher was told, and what it answers."""

    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    looks: int = 0
    stop_at: str | None = None
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def should_stop(self) -> bool:
        return self.stop_at in self.out

    def look(self) -> None:
        self.looks += 1

    def run(self, cmd: str, *, sigterm: Sigterm | None = None, **settings: object) -> Ended:
        launch = Launch(cmd, {"PATH": os.environ["PATH"], "A": "1", "MARK": self.mark}, variable=f"MARK={self.mark}", **settings)  # type: ignore[arg-type]
        watcher = Watcher(self.should_stop, self.out.append, self.err.append, self.warnings.append, self.look)
        return run_to_end(launch, watcher, sigterm or Sigterm())


@pytest.fixture
def seen() -> Seen:
    """A watcher that stops nothing."""
    return Seen()


def ends(pid: int) -> bool:
    """Whether a process ends soon: what is killed takes a moment to die."""
    give_up_at, pause = time.monotonic() + 20, threading.Event()
    while alive(pid) and time.monotonic() < give_up_at:
        pause.wait(0.01)
    return not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("cmd", "exit_code"),
    [("true", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("no-such-command-7", 127), ("if", 2)],
)
def test_the_exit_code_is_as_bash_says_it(seen: Seen, cmd: str, exit_code: int) -> None:
    """128 and more for a signal."""
    ended = seen.run(cmd)
    assert (ended.exit_code, ended.stopped) == (exit_code, False)


def test_both_streams_are_read(seen: Seen) -> None:
    """Line by line, each for itself; and the end of both together."""
    ended = seen.run("echo one; echo two >&2; printf three")
    assert (seen.out, seen.err) == (["one", "three"], ["two"])
    assert sorted(ended.output.replace("three", "")) == sorted("one\ntwo\n")


def test_a_lot_of_output_is_read_to_its_end(seen: Seen) -> None:
    """More than a pipe holds, from both streams at once."""
    ended = seen.run("for i in {1..20000}; do echo line $i; done; for i in {1..20000}; do echo error $i; done >&2")
    assert (len(seen.out), len(seen.err)) == (20_000, 20_000)
    assert ended.output.endswith("error 20000\n")


def test_a_command_gets_its_environment_and_folder(seen: Seen, tmp_path: Path) -> None:
    """And no standard input: what reads it finds its end."""
    seen.run("cat; echo $A; pwd", cwd=str(tmp_path))
    assert seen.out == ["1", str(tmp_path)]


def test_a_folder_that_is_not_there_is_an_error(seen: Seen, tmp_path: Path) -> None:
    """Of the call, and not of the descriptors: they are closed again."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        seen.run("true", cwd=str(tmp_path / "missing"))
    seen.run("true")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_command_leads_a_group_in_our_session(seen: Seen) -> None:
    """So that it can be ended as a whole, and goes with the session when this process is no more."""
    seen.run("echo $$; cut -d' ' -f5,6 /proc/$$/stat")
    pid, (group, session) = seen.out[0], seen.out[1].split()
    assert group == pid
    assert int(session) == os.getsid(0)


def test_a_terminal_is_emulated(seen: Seen) -> None:
    """For both streams, and lines end as ever."""
    seen.run("test -t 1 && test -t 2 && echo is one; echo error >&2", tty=True)
    assert (seen.out, seen.err) == (["is one"], ["error"])
    assert Seen().run("test -t 1").exit_code == 1


def test_a_login_shell_is_one(seen: Seen) -> None:
    """On request only."""
    seen.run("shopt -q login_shell && echo login", login=True)
    seen.run("shopt -q login_shell || echo none")
    assert seen.out[-2:] == ["login", "none"]


TRAP = "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.02; done"


def test_a_command_is_asked_to_end(seen: Seen) -> None:
    """It may take its time, and write; what it exits with is told, and that it was asked."""
    seen.stop_at = "ready"
    ended = seen.run(TRAP)
    assert (ended.exit_code, ended.stopped) == (0, True)
    assert seen.out == ["ready", "told"]
    assert seen.looks


def test_a_command_that_does_not_listen_is_killed(seen: Seen) -> None:
    """When its time is up."""
    seen.stop_at = "ready"
    ended = seen.run(DEAF, kill_seconds=0.3)
    assert (ended.exit_code, ended.stopped) == (137, True)
    assert "did not end within 0.3 s of SIGTERM" in seen.warnings[0]


def test_sigterm_reaches_all_of_the_group(seen: Seen) -> None:
    """As what bash has started would not hear of it from bash."""
    seen.stop_at = "ready"
    ended = seen.run("bash -c 'trap \"echo child told; exit\" TERM; echo ready; while :; do sleep 0.02; done' & wait $!; wait")
    assert ended.stopped
    assert "child told" in seen.out


def test_sigterm_of_this_process_is_passed_on(seen: Seen) -> None:
    """At once, and not when it is next looked whether to stop."""
    sigterm = Announced()
    heard: list[Callable[[], None]] = []

    def hear(line: str) -> None:
        seen.out.append(line)
        if line == "ready":
            heard.append(sigterm.act)
            sigterm(signal.SIGTERM, None)

    watcher = Watcher(lambda: False, hear, seen.err.append, seen.warnings.append, seen.look)
    ended = run_to_end(Launch(TRAP, {"PATH": os.environ["PATH"]}), watcher, sigterm)
    assert (ended.stopped, seen.out) == (True, ["ready", "told"])
    assert heard


def test_sigterm_before_the_start_counts(seen: Seen) -> None:
    """Nothing is lost between its coming and the command's."""
    sigterm = Announced()
    sigterm(signal.SIGTERM, None)
    ended = seen.run("sleep 1000", sigterm=sigterm)
    assert (ended.exit_code, ended.stopped) == (143, True)


def test_what_holds_the_output_is_killed(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seconds after the command has ended, whose exit code stands."""
    monkeypatch.setattr(process, "ORPHAN_SECONDS", 0.3)
    ended = seen.run("sleep 1000 & echo $!; exit 5")
    assert ended.exit_code == 5
    assert "what it left behind held its output" in seen.warnings[0]
    assert ends(int(seen.out[0]))


def test_what_writes_for_a_moment_longer_is_heard(seen: Seen) -> None:
    """The end of the output counts, as in `command > >(filter)`."""
    ended = seen.run("(sleep 0.3; echo late) & exit 0")
    assert (ended.exit_code, seen.out, seen.warnings) == (0, ["late"], [])


def test_what_is_left_behind_in_silence_is_killed(seen: Seen) -> None:
    """At the command's end."""
    seen.run("sleep 1000 >/dev/null 2>&1 & echo $!")
    assert ends(int(seen.out[0]))


@pytest.mark.parametrize("leaves", ["set -m;", "timeout 1000"])
def test_what_took_a_group_of_its_own_is_killed_as_well(seen: Seen, leaves: str) -> None:
    """As job control and `timeout` do; another one's command in the same session is spared."""
    other = subprocess.Popen(["sleep", "1000"], process_group=0)
    try:
        seen.run(f"{leaves} sleep 1000 >/dev/null 2>&1 & sleep 0.2; jobs -p; pgrep -P $(jobs -p)")
        assert seen.out
        assert all(ends(int(pid)) for pid in seen.out)
        assert alive(other.pid)
    finally:
        other.kill()
        other.wait()


PATIENT = "trap 'sleep 0.5; echo saved; exit' TERM; echo ready; while :; do sleep 0.02; done"


@pytest.mark.parametrize("runs", ["", "timeout 1000"])
@pytest.mark.parametrize("where", ["", ">/dev/null"])
def test_what_bash_was_running_has_its_time_after_sigterm(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: str, where: str
) -> None:
    """Though bash itself is gone at once, and whether or not it holds the output; it may have a group of its own."""
    monkeypatch.setattr(process, "ORPHAN_SECONDS", 0.1)
    monkeypatch.setattr(process, "LAST_SECONDS", 0.1)
    seen.stop_at = "ready"
    (tmp_path / "said").touch()  # before anybody follows it
    (tmp_path / "work").write_text(PATIENT.replace("echo ready", "echo ready >&2").replace("echo saved", f"touch {tmp_path}/saved"))
    ended = seen.run(f"{runs} bash {tmp_path}/work 2>>{tmp_path}/said {where} & tail -n +1 -f --pid=$! {tmp_path}/said; wait")
    assert ended.stopped
    assert (tmp_path / "saved").exists()
    assert seen.warnings == []


def test_what_does_not_listen_after_bash_is_gone_is_killed_in_time(seen: Seen) -> None:
    """When its time is up, as bash would be."""
    seen.stop_at = "ready"
    ended = seen.run(f"bash -c {shlex.quote(DEAF)}; true", kill_seconds=0.4)
    assert (ended.exit_code, ended.stopped) == (143, True)
    assert "did not end within 0.4 s of SIGTERM" in seen.warnings[0]


def test_a_command_that_was_halted_hears_of_sigterm(seen: Seen) -> None:
    """It goes on, or it could not end in peace."""
    seen.stop_at = "ready"
    ended = seen.run("trap 'echo told; exit' TERM; echo ready; kill -STOP $$; sleep 1000", kill_seconds=20)
    assert ended.stopped
    assert "told" in seen.out


def test_what_left_the_session_and_holds_the_output_is_left_alone(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call goes on without it."""
    monkeypatch.setattr(process, "ORPHAN_SECONDS", 0.2)
    monkeypatch.setattr(process, "LAST_SECONDS", 0.2)
    assert seen.run("setsid sleep 1000 & echo $!").exit_code == 0
    assert alive(int(seen.out[0]))
    os.kill(int(seen.out[0]), signal.SIGKILL)


def test_an_exit_code_that_somebody_else_took_is_no_success(seen: Seen) -> None:
    """Where SIGCHLD is ignored, the system forgets how a process ended."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises((ChildProcessError, ProcessLookupError)):
            seen.run("exit 3")
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_an_error_of_ours_leaves_no_process(seen: Seen) -> None:
    """Whatever the log does."""

    def hear(line: str) -> None:
        seen.out.append(line)
        raise ValueError("of the log")

    watcher = Watcher(lambda: False, hear, hear, hear, seen.look)
    with pytest.raises(ValueError, match="of the log"):
        run_to_end(Launch("echo $$; sleep 1000", {"PATH": os.environ["PATH"]}), watcher, Sigterm())
    assert ends(int(seen.out[0]))


def test_commands_run_on_any_thread(seen: Seen) -> None:
    """There SIGTERM is not theirs to take."""
    found: list[Ended] = []

    def run() -> None:
        with process.passing_sigterm() as sigterm:
            found.append(seen.run("exit 4", sigterm=sigterm))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found[0].exit_code == 4


@pytest.mark.parametrize("end", ["exit 0", "kill -TERM $$"])
@pytest.mark.parametrize("told", [True, False])
def test_sigterm_that_others_sent_counts_as_ours_if_the_worker_ends(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, told: bool
) -> None:
    """The word comes after bash is gone; then what bash was running has its time, and the exit code means nothing."""
    monkeypatch.setattr(process, "WORD_SECONDS", 0.3)
    monkeypatch.setattr(process, "ORPHAN_SECONDS", 0.1)
    monkeypatch.setattr(seen, "should_stop", lambda: told and bool(seen.out) and not alive(int(seen.out[0])))
    sigterm = Announced()
    monkeypatch.setattr(sigterm, "wait_seconds", lambda: 0.3)
    ended = seen.run(f"bash -c 'sleep 1; touch {tmp_path}/saved' & echo $$; {end}", sigterm=sigterm)
    assert ended.exit_code == (0 if end == "exit 0" else 143)
    assert ended.stopped == (tmp_path / "saved").exists() == told
