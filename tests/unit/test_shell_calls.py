"""Shell commands as calls: what `app.shell` takes, how it travels, and what comes back; run at once, in this process."""

from __future__ import annotations

import asyncio
import errno
import pickle
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ai4s.jobq import App, CommandFailed, DeclarationError, ShellResult
from ai4s.jobq.codec import SHELL_CODEC, codec_named, codec_of
from ai4s.jobq.errors import NotSerializable
from ai4s.jobq.failures import exception_of, failure_of
from ai4s.jobq.message import SHELL_TASK, Outcome, Pool, State
from ai4s.jobq.shell.calls import MAX_COMMAND_BYTES, shell_task


@pytest.fixture
def app(jobq_app: App, jobq_inline: Callable[[App], App]) -> App:
    """An app whose calls run at once."""
    return jobq_inline(jobq_app)


# what comes back


def test_a_command_that_succeeds_gives_its_result(app: App) -> None:
    """Exit code, the end of its output, and how long it took."""
    result = app.shell("echo out; echo err >&2").result()
    assert result == ShellResult(0, result.output, result.seconds)
    assert sorted(result.output.split()) == ["err", "out"]
    assert 0 < result.seconds < 60


def test_a_command_that_fails_raises(app: App) -> None:
    """With its exit code and the end of its output, and nothing of ours in the way."""
    with pytest.raises(CommandFailed) as caught:
        app.shell("for i in {1..50}; do echo line $i; done; exit 3").result()
    assert (caught.value.exit_code, caught.value.output.splitlines()[-1]) == (3, "line 50")
    assert str(caught.value).endswith("failed with exit code 3:\nline 46\nline 47\nline 48\nline 49\nline 50")
    assert caught.value.__cause__ is None


def test_a_failure_of_64_kib_comes_back_whole(app: App) -> None:
    """The limit for exceptions leaves room for it."""
    with pytest.raises(CommandFailed) as caught:
        app.shell("head -c 200000 /dev/zero | tr '\\0' 'x'; exit 1").result()
    assert len(caught.value.output) == 64 * 1024


def test_a_failure_tells_no_secret(app: App) -> None:
    """Neither in its text nor in its output; so it can come back as what it is."""
    with pytest.raises(CommandFailed) as caught:
        app.shell("echo AccountKey=abcdefgh==; exit 1").result()
    assert "abcdefgh" not in f"{caught.value} {caught.value.output}"
    assert "AccountKey=***" in caught.value.output


def test_a_failure_is_what_it_is_whatever_stands_beside_a_secret(app: App) -> None:
    """Its line ends, and another text comes after it: neither is a part of it."""
    with pytest.raises(CommandFailed) as caught:
        app.shell("echo 'SharedAccessSignature=sv=2024&sig=abcdefgh'; echo ends; printf 'see sig='; exit 7").result()
    assert caught.value.output == "SharedAccessSignature=***\nends\nsee sig="
    assert caught.value.exit_code == 7


def test_an_error_of_the_machine_is_told(app: App, tmp_path: Path) -> None:
    """As the task's error that it is."""
    with pytest.raises(Exception, match="No such file or directory"):
        app.shell("true", cwd=tmp_path / "missing").result()


def test_a_machine_that_is_exhausted_is_no_failure_of_the_call(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker gives such a call back uncharged; here there is no other machine."""

    def no_more_processes(*arguments: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("ai4s.jobq.shell.running.run_to_end", no_more_processes)
    with pytest.raises(OSError, match="This machine cannot run the command"):
        app.shell("true")


def test_a_machine_without_bash_is_no_failure_of_the_call(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one has it, and takes the call."""
    monkeypatch.setattr(shutil, "which", lambda *arguments, **settings: None)
    with pytest.raises(OSError, match="This machine has no bash"):
        app.shell("true")


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_bash_is_found_whatever_the_commands_path(app: App, path: str) -> None:
    """It is the command that is looked for there."""
    assert app.shell("echo $PATH", env={"PATH": path}).result().output == f"{path}\n"


def test_what_one_call_cannot_remove_is_not_in_the_way_of_the_next(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a chunk, whose calls have one place for their folders: what a container wrote there may be root's."""
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **settings: None)
    batch = app.shell.map(["touch $JOBQ_CHECKPOINT_DIR/left"] + ["ls $JOBQ_CHECKPOINT_DIR"] * 2, pack=3)
    assert [result.output for result in batch] == [""] * 3


# retries


def attempts(app: App, folder: Path, exit_code: int, **settings: Any) -> int:
    """How often a command that exits with this code is tried."""
    handle = app.shell(f"echo >> {folder}/tries; exit {exit_code}", retries=2, **settings)
    with pytest.raises(CommandFailed) as caught:
        handle.result()
    assert caught.value.exit_code == exit_code
    return len((folder / "tries").read_text().splitlines())


@pytest.mark.parametrize(
    ("exit_code", "settings", "expected"),
    [
        (1, {}, 3),
        (75, {"retry_exit": (75, 137)}, 3),
        (1, {"retry_exit": [75, 137]}, 1),
        (2, {"fail_exit": (2,)}, 1),
        (2, {"fail_exit": 2, "retry_exit": 2}, 1),
        (3, {"fail_exit": (2,)}, 3),
    ],
    ids=["any", "listed", "not-listed", "fatal", "both", "not-fatal"],
)
def test_exit_codes_decide_what_is_tried_again(
    app: App, tmp_path: Path, exit_code: int, settings: dict[str, Any], expected: int
) -> None:
    """All but 0, unless some are named; those that are fatal never."""
    assert attempts(app, tmp_path, exit_code, **settings) == expected


def test_a_later_attempt_may_succeed(app: App, tmp_path: Path) -> None:
    """It knows its number."""
    handle = app.shell('[ "$JOBQ_ATTEMPT" = 3 ]', retries=2)
    assert handle.result().exit_code == 0


# the environment


def test_a_command_knows_its_call(app: App) -> None:
    """By variables; those of its own go before the worker's."""
    handle = app.shell(
        'echo "$JOBQ_CALL_ID $JOBQ_TASK_ID $JOBQ_ATTEMPT $JOBQ_QUEUE_NAME $PYTHONUNBUFFERED $A $B"',
        env={"A": 1, "B": Path("/b"), "PYTHONUNBUFFERED": ""},
    )
    call, task, attempt, queue, a, b = handle.result().output.split()
    assert (call, task, attempt, a, b) == (handle.id, handle.id, "1", "1", "/b")
    assert queue.endswith("/test-app")


def test_a_folder_for_checkpoints_is_there_and_goes(app: App) -> None:
    """Empty at first; nothing stays on the machine."""
    found = app.shell('[ -d "$JOBQ_CHECKPOINT_DIR" ] && touch "$JOBQ_CHECKPOINT_DIR/a" && echo "$JOBQ_CHECKPOINT_DIR"').result()
    assert not Path(found.output.strip()).parent.exists()


def test_what_a_command_writes_is_copied(app: App, tmp_path: Path) -> None:
    """Also what a command has written that failed then."""
    app.shell('echo 1 > "$AMLT_DIRSYNC_DIR/a"', bg_dirsync_to=tmp_path / "aim").result()
    with pytest.raises(CommandFailed):
        app.shell('echo 2 > "$AMLT_DIRSYNC_DIR/b"; exit 1', bg_dirsync_to="aim", cwd=tmp_path).result()
    assert {path.name for path in (tmp_path / "aim").iterdir()} == {"a", "b"}


def test_what_cannot_be_copied_fails_the_call(app: App, tmp_path: Path) -> None:
    """Although the command has succeeded: its result is not where it belongs."""
    (tmp_path / "aim").write_text("no folder")
    with pytest.raises(Exception, match="could not be copied"):
        app.shell('echo 1 > "$AMLT_DIRSYNC_DIR/a"', bg_dirsync_to=tmp_path / "aim").result()


def test_lines_are_logged_with_the_calls_id(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """Those of stderr as warnings."""
    caplog.set_level("INFO", f"ai4s.jobq.task.{SHELL_TASK}")
    handle = app.shell("echo 100%s; echo err >&2")
    handle.result()
    found = {(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("ai4s.jobq.task")}
    assert found == {("INFO", f"[{handle.id} attempt 1] 100%s"), ("WARNING", f"[{handle.id} attempt 1] err")}


@pytest.mark.parametrize(("value", "shell"), [("1", "login"), ("0", "plain"), ("", "plain")])
def test_a_login_shell_is_had_by_a_variable(app: App, monkeypatch: pytest.MonkeyPatch, value: str, shell: str) -> None:
    """As ai4s-jobq 3.x had it."""
    monkeypatch.setenv("JOBQ_USE_LOGIN_SHELL", value)
    assert app.shell("shopt -q login_shell && echo login || echo plain").result().output.splitlines()[-1] == shell


# many


def test_many_commands_are_a_batch(app: App) -> None:
    """With what is common to all, and what one has of its own."""
    batch = app.shell.map(["echo $A", {"cmd": "echo $A", "env": {"A": "own"}}, "exit 4"], env={"A": "common"}, pack=2)
    found = [outcome.value.output if outcome.ok else outcome.error for outcome in batch.as_completed()]
    assert sorted(map(str, found))[1:] == ["common\n", "own\n"]
    assert [error.exit_code for error in found if isinstance(error, CommandFailed)] == [4]


def test_every_way_to_call_has_its_twin(app: App) -> None:
    """Sync and async, one and many, all at once or as they come."""

    async def commands() -> AsyncIterator[str]:
        yield "echo 1"
        yield "echo 2"

    async def outputs() -> list[str]:
        handle = await app.shell.adelay("echo 3")
        batch = await app.shell.amap(commands(), retries=1)
        return [(await handle).output, *[(await batch.handle(index)).output for index in range(2)]]

    assert asyncio.run(outputs()) == ["3\n", "1\n", "2\n"]
    assert app.shell.delay("echo 4").result().output == "4\n"


def test_options_are_those_of_a_task(app: App) -> None:
    """A key makes a command idempotent."""
    keyed = app.shell.options(key="once", retries=1)
    assert keyed("echo 1").id == keyed("echo 1").id
    assert pickle.loads(pickle.dumps(app.shell))("echo 5").id


# what cannot be


@pytest.mark.parametrize(
    ("cmd", "settings", "told"),
    [
        (["ls", "-l"], {}, "A command is a text for bash"),
        ("a\0b", {}, "A command is a text for bash"),
        ("x" * (MAX_COMMAND_BYTES + 1), {}, "Put it in a script"),
        ("true", {"env": ["A=1"]}, "env is a dict of variables"),
        ("true", {"env": {"A=B": "1"}}, "without '='"),
        ("true", {"env": {"A": None}}, r"env\['A'\] must be a text or a number"),
        ("true", {"env": {"A": True}}, "must be a text or a number"),
        ("true", {"cwd": 3}, "cwd must be the path of a folder"),
        ("true", {"bg_dirsync_to": ""}, "bg_dirsync_to must be the path"),
        ("true", {"retry_exit": (0,)}, "exit codes from 1 to 255"),
        ("true", {"fail_exit": "75"}, "exit codes from 1 to 255"),
        ("true", {"retries": -1}, "retries must be"),
        ("true", {"timeout": 0}, "timeout must be"),
        ("true", {"shell": "zsh"}, "'shell' is no setting of a command"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_cannot_be_is_refused_where_it_is_said(app: App, cmd: Any, settings: dict[str, Any], told: str) -> None:
    """And not by a worker an hour later."""
    with pytest.raises(DeclarationError, match=told):
        app.shell(cmd, **settings)


@pytest.mark.parametrize(
    ("commands", "told"),
    [("echo 1", "map takes many commands"), ([["ls"]], "A command is a text"), ([{"env": {}}], "A command is a text")],
)
def test_what_cannot_be_of_many_is_refused(app: App, commands: Any, told: str) -> None:
    """One text is not a list of its letters."""
    with pytest.raises(Exception, match=told):
        app.shell.map(commands)


def test_the_name_of_the_built_in_task_is_taken(jobq_app: App) -> None:
    """A worker has one already."""
    with pytest.raises(DeclarationError, match="is built in"):
        jobq_app.task(name=SHELL_TASK)(print)


def test_the_codec_is_for_the_built_in_task_only(jobq_app: App) -> None:
    """It knows nothing of users' values."""
    with pytest.raises(DeclarationError, match="codec must be one of 'cloudpickle', 'msgpack'"):
        jobq_app.task(codec="shell")(print)  # type: ignore[call-overload]
    with pytest.raises(DeclarationError):
        codec_named("shell")
    assert codec_of("shell") is SHELL_CODEC


# how it travels


def test_the_task_travels_without_code(jobq_app: App) -> None:
    """Plain data, so that a worker may refuse code and still run commands; in a process of its own."""
    task = shell_task(jobq_app.client)
    assert (task.name, task.importable, task.declared.pool, task.declared.codec.allows_pickle) == (
        SHELL_TASK,
        True,
        Pool.PROCESS,
        False,
    )
    assert task.options(retries=1).importable


@pytest.mark.parametrize(
    "value",
    [ShellResult(0, "out\n", 1.5), CommandFailed("told", exit_code=137, output="ä"), (["ls"], {"env": {"A": "1"}}), None, "x"],
    ids=["result", "failure", "arguments", "none", "text"],
)
def test_what_is_encoded_is_decoded(value: object) -> None:
    """The two things that come of a command, and plain data."""
    found = SHELL_CODEC.loads(SHELL_CODEC.dumps(value).data)
    if isinstance(value, CommandFailed):
        assert (str(found), found.exit_code, found.output) == (str(value), value.exit_code, value.output)
    else:
        assert found == ([["ls"], {"env": {"A": "1"}}] if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    "fields",
    [
        {"jobq.shell": "result"},
        {"jobq.shell": "result", "exit_code": -1, "output": "", "seconds": 1.0},
        {"jobq.shell": "failure", "x": 1},
    ],
)
def test_what_is_damaged_is_not_decoded(fields: dict[str, Any]) -> None:
    """Anyone with a right to the place may have written it."""
    with pytest.raises(NotSerializable):
        SHELL_CODEC.loads(codec_named("msgpack").dumps(fields).data)


def test_other_exceptions_travel_as_text() -> None:
    """The codec allows no pickles, whatever was raised; and decodes none."""
    failure = failure_of(ValueError("of ours"), SHELL_CODEC)
    assert failure.exception is None
    outcome = Outcome("abcdefgh234567ab-000000000007", 1, State.FAILED, "t", codec="shell", failure=failure)
    assert "ValueError: of ours" in str(exception_of(outcome))
    assert pickle.loads(pickle.dumps(CommandFailed("a", exit_code=2, output="b"))).output == "b"
