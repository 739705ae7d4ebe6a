"""`push` and `call` in this process, on a local place: what is read, what is submitted, and what is said of it."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from storage_spy import depth

from ai4s.jobq import App, task_named
from ai4s.jobq.cli import jobq
from ai4s.jobq.cli.lines import SECRET, Item, Lines
from ai4s.jobq.cli.submitting import AT_ONCE, NotAll, Submitter
from ai4s.jobq.codec import codec_of
from ai4s.jobq.errors import ConfigurationError
from ai4s.jobq.ledger import Ledger

app = App("pushed-to")


@app.task(name="proj.power")
def power(base: int, exponent: int = 2) -> int:
    return int(base**exponent)


@app.task(name="proj.named_only")
def named_only(*, word: str) -> str:
    return word


@app.task(name="proj.fail")
def fail(why: str) -> None:
    raise ValueError(why)


@app.task(name="proj.object")
def anything() -> object:
    return {1, 2}


TARGET = f"{__name__}:app"
Run = Callable[..., Result]


@pytest.fixture
def run(jobq_place: Callable[[App], App]) -> Run:
    """Runs a verb on the app of this file, on an empty store."""
    jobq_place(app)
    return lambda *words, stdin="": CliRunner().invoke(jobq, [TARGET, *words], input=stdin)


@pytest.fixture
def inline(jobq_inline: Callable[[App], App]) -> Run:
    """The same, where tasks run at once."""
    jobq_inline(app)
    return lambda *words, stdin="": CliRunner().invoke(jobq, [TARGET, *words], input=stdin)


def messages() -> list[tuple[Any, Any]]:
    """The calls on the queue, in the order of their commands: each with its keyword arguments."""

    async def peek(ledger: Ledger) -> list[tuple[Any, Any]]:
        found = []
        for delivery in await (await ledger.queue("default")).receive(32, lease_seconds=60):
            call = ledger.wire.unseal_call(delivery.body, "default")
            args, kwargs = codec_of(call.codec).loads(call.arguments)
            found.append((call, {"args": list(args), **kwargs}))
        return sorted(found, key=lambda pair: str(pair[1]))

    return app.client.run(peek)


# What is read


def test_commands_come_from_options_in_their_order(run: Run) -> None:
    """Each is one call, whose id is a line of stdout; how many there were stands on stderr."""
    done = run("push", "-c", "echo 1", "-c", "echo 2", "--num-retries", "3", "--timeout", "10m", "--queue", "default")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 2
    assert "Submitted 2 calls to pushed-to at local://" in done.stderr
    assert [(call.retries, call.timeout_seconds, said["args"]) for call, said in messages()] == [
        (3, 600, ["echo 1"]),
        (3, 600, ["echo 2"]),
    ]


def test_lines_of_stdin_are_commands(run: Run) -> None:
    """Empty ones are skipped, spaces before a command and a carriage return after it are not part of its meaning."""
    done = run("push", stdin="echo 1\n\n   \n  echo 2\r\necho 3")
    assert [said["args"][0] for _, said in messages()] == ["  echo 2", "echo 1", "echo 3"]
    assert "Submitted 3 calls" in done.stderr


def test_a_json_object_is_a_command_with_settings(run: Run) -> None:
    """What -e says goes before what the line says, and `--bg-dirsync-to` after it, as in ai4s-jobq 3.x."""
    line = json.dumps({"cmd": "true", "env": {"A": 1, "B": "2"}, "cwd": "/work"})
    run("push", "-e", "A=9", "--bg-dirsync-to", "/out", "--retry-exit", "75,137", "--fail-exit", "2", stdin=line)
    ((_, said),) = messages()
    assert said == {
        "args": ["true"],
        "env": {"A": "9", "B": "2"},
        "cwd": "/work",
        "bg_dirsync_to": "/out",
        "retry_exit": [75, 137],
        "fail_exit": [2],
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{ echo hi; }", "put a space before it"),
        ('{"env": {}}', 'a shell command is {"cmd"'),
        ('{"cmd": "true", "shell": "zsh"}', "'shell' is no setting"),
        ('{"cmd": "true", "env": 3}', "env is a dict"),
        ("true \0", "zero byte"),
    ],
)
def test_a_line_that_is_no_call_is_named(run: Run, line: str, says: str) -> None:
    """With its number; what stood before it is submitted, which is said."""
    done = run("push", stdin=f"true\n\n{line}\n")
    assert done.exit_code == 2
    assert "Error: Line 3: " in done.stderr
    assert says in done.stderr
    assert "1 call submitted before" in done.stderr
    assert len(done.stdout.splitlines()) == depth(app) == 1
    batched = run("push", "--pack", "5", stdin=f"true\n\n{line}\n")
    assert batched.exit_code == 2
    assert "Error: Line 3: " in batched.stderr
    assert "1 call submitted before, as batch" in batched.stderr


def test_a_command_in_braces_is_one_after_a_space() -> None:
    """As bash has it, and as the error says."""
    assert [item.kwargs for item in Lines().items([" { echo hi; }\n"])] == [{"cmd": " { echo hi; }"}]


def test_what_is_no_utf8_is_named(run: Run) -> None:
    """By its line."""
    done = CliRunner().invoke(jobq, [TARGET, "push"], input=b"true\necho \xff\n")
    assert done.exit_code == 2
    assert "Line 2: it is no UTF-8" in done.stderr


@pytest.mark.parametrize("name", ["KEY", "API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "password", "SAS", "apikeys"])
def test_names_that_look_like_secrets_are_warned_of(run: Run, name: str) -> None:
    """Once, wherever they stand; the value is not repeated."""
    given = run("push", "-c", "true", "-e", f"{name}=value-of-it")
    in_lines = run("push", stdin="\n".join([json.dumps({"cmd": "true", "env": {name: "value-of-it"}})] * 3))
    for done in (given, in_lines):
        assert done.stderr.count(f"'{name}' will lie in the storage") == 1
        assert "value-of-it" not in done.stderr


@pytest.mark.parametrize("name", ["SEED", "PWD", "KEYBOARD", "MONKEYS_EAT", "PATH"])
def test_other_names_are_not(name: str) -> None:
    """A warning that comes too often is not read."""
    assert not SECRET.search(name)


# Keys and batches


def test_a_key_makes_one_command_run_once(run: Run) -> None:
    """For one command the key is the text itself."""
    first, second = (run("push", "-c", "true", "--key", "nightly") for _ in range(2))
    assert first.stdout == second.stdout
    assert first.stdout == f"{app.shell.options(key='nightly').delay('true').id}\n"
    assert depth(app) == 1


def test_a_key_makes_each_of_many_commands_run_once(run: Run) -> None:
    """The text is told apart by the command, so that lines that were pushed before are not run again."""
    first = run("push", "--key", "nightly", stdin="echo 1\necho 2\n")
    again = run("push", "--key", "nightly", stdin="echo 0\necho 1\necho 2\n")
    assert again.stdout.splitlines()[1:] == first.stdout.splitlines()
    assert depth(app) == 3


def test_a_batch_with_a_key_goes_on_where_it_was(run: Run) -> None:
    """The same line again submits what is new, and says so; without the key it says what is missing."""
    push = ["push", "--batch", "nightly", "--pack", "10"]
    first = run(*push, "--key", "v1", stdin="echo 1\necho 2\n")
    again = run(*push, "--key", "v1", "--json", stdin="echo 1\necho 2\necho 3\n")
    assert first.stdout == "nightly\n"
    assert json.loads(again.stdout) == {"batch": "nightly", "submitted": 1, "skipped": 2}
    assert "Submitted 1 call to pushed-to" in again.stderr
    assert "2 were there before" in again.stderr
    refused = run(*push, stdin="echo 1\n")
    assert refused.exit_code == 1
    assert "--key" in refused.stderr
    assert app.batch("nightly").progress().total == 3


def test_a_pack_is_one_message(run: Run) -> None:
    """Settings that all have in common travel once; of a line of its own, with it."""
    lines = ["true", json.dumps({"cmd": "false", "env": {"B": "2"}})] * 5
    done = run("push", "--pack", "10", "-e", "A=1", stdin="\n".join(lines))
    assert depth(app) < 10
    assert app.batch(done.stdout.strip()).progress().total == 10


def test_calls_are_submitted_side_by_side_and_told_in_their_order() -> None:
    """As many at a time as it is said, and never more are held."""
    ready, held, most = threading.Semaphore(0), [0], [0]
    lock = threading.Lock()

    def submit(item: Item) -> int:
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        if item.number <= AT_ONCE:
            # All of the first ones wait until the last of them is there.
            if item.number == AT_ONCE:
                ready.release(AT_ONCE)
            ready.acquire()
        with lock:
            held[0] -= 1
        return item.number

    told: list[int] = []
    submitter = Submitter(submit, lambda item, made: told.append(made))
    submitter.run(Item(number, {}) for number in range(1, 200))
    assert told == list(range(1, 200))
    assert most[0] == AT_ONCE


def test_memory_does_not_grow_with_the_lines() -> None:
    """Of what was read, no more is alive than is on its way."""
    alive, most, lock = set[int](), [0], threading.Lock()

    class Counted(dict[str, Any]):
        def __del__(self) -> None:
            with lock:
                alive.discard(id(self))

    def items() -> Iterator[Item]:
        for number in range(1, 2000):
            kwargs = Counted()
            with lock:
                alive.add(id(kwargs))
                most[0] = max(most[0], len(alive))
            yield Item(number, kwargs)

    submitter = Submitter(lambda item: None, lambda item, made: None)
    submitter.run(items())
    assert submitter.count == 1999
    assert most[0] <= 2 * AT_ONCE


def test_a_call_that_cannot_be_submitted_ends_the_push_and_loses_none() -> None:
    """What was on its way with it is told all the same, and the error says how far it came."""
    told: list[int] = []

    def submit(item: Item) -> int:
        if item.number == 7:
            raise OSError("the line is cut")
        return item.number

    submitter = Submitter(submit, lambda item, made: told.append(made))
    with pytest.raises(NotAll, match=r"Line 7 was not submitted: the line is cut \(\d+ calls were, up to line \d+\.\)"):
        submitter.run(Item(number, {}) for number in range(1, 200))
    assert told == [number for number in range(1, told[-1] + 1) if number != 7]


def test_an_interrupted_source_leaves_nothing_half_told() -> None:
    """What was begun is finished, and told, before the interruption goes on."""

    def items() -> Iterator[Item]:
        yield from (Item(number, {}) for number in range(1, 6))
        raise KeyboardInterrupt

    told: list[int] = []
    submitter = Submitter(lambda item: item.number, lambda item, made: told.append(made))
    with pytest.raises(KeyboardInterrupt):
        submitter.run(items())
    assert told == [1, 2, 3, 4, 5]
    assert submitter.last == 5


def test_an_interrupt_comes_between_two_calls_and_never_within_one() -> None:
    """What was submitted is told, and nothing after it is begun: else whoever goes on submits it again."""
    submitted, told = list[int](), list[int]()

    def submit(item: Item) -> None:
        submitted.append(item.number)

    def tell(item: Item, made: None) -> None:
        if not told:
            signal.raise_signal(signal.SIGINT)
        told.append(item.number)

    before = signal.getsignal(signal.SIGINT)
    submitter = Submitter(submit, tell)
    with pytest.raises(KeyboardInterrupt):
        submitter.run(Item(number, {}) for number in range(1, 1 + 3 * AT_ONCE))
    assert told == sorted(submitted)
    assert 0 < len(told) < 3 * AT_ONCE
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "5 calls submitted, up to line 5. To go on, leave out those lines: tail -n +6."),
        (["--key", "k"], "5 calls submitted, up to line 5. To go on, run the same again"),
        (["--pack", "2"], "5 calls submitted, up to line 5. To go on, leave out those lines: tail -n +6."),
        (["--batch", "nightly", "--key", "k"], "5 calls submitted, up to line 5. To go on, run the same again"),
    ],
)
def test_whoever_interrupts_hears_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str) -> None:
    """With code 130, and with all that was read submitted."""

    def lines() -> Iterator[str]:
        yield from (f"echo {number}\n" for number in range(5))
        raise KeyboardInterrupt

    monkeypatch.setattr("ai4s.jobq.cli.pushing.stdin_lines", lines)
    done = run("push", *options)
    assert done.exit_code == 130
    assert says in done.stderr


@pytest.mark.parametrize("options", [[], ["--batch", "nightly"]])
def test_whoever_stops_waiting_hears_that_the_calls_go_on(run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """Nothing is cancelled by it."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ai4s.jobq.cli.pushing.as_completed", interrupt)
    monkeypatch.setattr("ai4s.jobq.cli.pushing.await_batch", interrupt)
    done = run("push", "-c", "true", "--wait", *options)
    assert done.exit_code == 130
    assert "Interrupted. The calls go on" in done.stderr
    assert depth(app) == 1


# Tasks


def test_json_lines_are_calls_of_a_task(inline: Run) -> None:
    """By its whole name or the end of it, one by one or in packs; a default is one still."""
    lines = '{"base": 3}\n{"base": 2, "exponent": 5}\n'
    for options in ([], ["--pack", "10"]):
        done = inline("push", "--task", "power", "--wait", "--json", *options, stdin=lines)
        assert [json.loads(line)["value"] for line in done.stdout.splitlines()] == [9, 32]


@pytest.mark.parametrize(
    ("words", "stdin", "says"),
    [
        (["--task", "powr"], "{}", "Did you mean power?"),
        (["--task", "power"], "3", "keyword arguments are a JSON object"),
        (["--task", "power"], '{"base": 3, "exp": 2}', "unexpected keyword argument 'exp'"),
        (["--task", "power", "--pack", "2"], '{"bse": 3}', "Line 1: proj.power: "),
        (["--task", "named_only", "--pack", "2"], '{"word": "a"}', "leave out --batch and --pack"),
        (["--task", "power", "-e", "A=1"], "{}", "--env is for shell commands"),
        (["--format", "v3", "--key", "k", "-c", "true"], "", "ai4s-jobq 3.x knows no more"),
        (["--format", "v3", "--delay", "8d", "-c", "true"], "", "7d at most"),
        (["-c", "true", "--retry-exit", "0"], "", "are no exit codes"),
    ],
)
def test_what_does_not_go_together_is_refused(run: Run, words: list[str], stdin: str, says: str) -> None:
    """With code 2, and a line that says what would."""
    done = run("push", *words, stdin=stdin)
    assert done.exit_code == 2
    assert says in done.stderr


def test_a_task_whose_module_is_elsewhere_is_called_by_name(run: Run) -> None:
    """By its whole name, at a place and app: its arguments go as they are; a batch needs to know them."""
    target = f"{app.client.place.label}/{app.name}"
    done = CliRunner().invoke(jobq, [target, "push", "--task", "proj.power"], input='{"base": 3}')
    assert done.exit_code == 0
    ((call, said),) = messages()
    assert (call.task, call.function, said) == ("proj.power", None, {"args": [], "base": 3})
    refused = CliRunner().invoke(jobq, [target, "push", "--task", "proj.power", "--pack", "2"], input='{"base": 3}')
    assert refused.exit_code == 2
    assert "name its module" in refused.stderr


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["power", "3"], "9"),
        (["power", '{"base": 2, "exponent": 3}'], "8"),
        (["proj.power", "[2, 4]"], "16"),
        (["power", "2", "5"], "32"),
    ],
)
def test_call_takes_arguments_in_json(inline: Run, words: list[str], value: str) -> None:
    """By position or by name; with --wait the value is all that is on stdout."""
    done = inline("call", *words, "--wait")
    assert (done.exit_code, done.stdout) == (0, f"{value}\n")


def test_a_word_that_is_no_json_is_a_text(inline: Run) -> None:
    """Unless it begins like JSON: then it is a mistake."""
    assert inline("call", "named_only", '{"word": "a\\u001b[31mb"}', "--wait").stdout == "a\x1b[31mb\n"
    failed = inline("call", "fail", "because", "--wait")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert failed.stderr.endswith(": ValueError: because\n")
    assert "'{lr: 0.1}' is no JSON" in inline("call", "fail", "{lr: 0.1}").stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["call", "powr", "3"], "Did you mean power?"),
        (["call", "zzz"], "There are: proj.fail, proj.named_only, proj.object, proj.power."),
        (["call", "power"], "missing a required argument: 'base'"),
    ],
)
def test_a_call_that_cannot_be_says_why(run: Run, words: list[str], says: str) -> None:
    """With code 2 and in one line."""
    done = run(*words)
    assert done.exit_code == 2
    assert says in done.stderr


def test_call_needs_a_module(run: Run) -> None:
    """For a place and an app it says what there is instead."""
    done = CliRunner().invoke(jobq, [f"{app.client.place.label}/{app.name}", "call", "power", "3"])
    assert done.exit_code == 2
    assert "push -c" in done.stderr


def test_what_is_waited_for_decides_the_exit_code(inline: Run) -> None:
    """JSON says of each what it came to; the order is that in which they end."""
    done = inline("push", "--task", "fail", "--wait", "--json", stdin='{"why": "a"}\n{"why": "b"}\n')
    assert done.exit_code == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["state"], row["error"], row["message"]) for row in rows} == {
        ("failed", "ValueError", "a"),
        ("failed", "ValueError", "b"),
    }
    batch = inline("push", "--task", "fail", "--wait", "--batch", "bad", stdin='{"why": "a"}\n')
    assert batch.exit_code == 1
    assert "call bad.0: ValueError: a" in batch.stderr


def test_a_value_that_json_does_not_know_is_shown_as_python_does(inline: Run) -> None:
    """As `repr`, and so named."""
    assert json.loads(inline("call", "object", "--wait", "--json").stdout)["repr"] == "{1, 2}"
    assert inline("call", "object", "--wait").stdout == "{1, 2}\n"


# For old workers


def test_format_v3_is_what_the_old_client_writes(run: Run) -> None:
    """Plain JSON, whose id is the digest of the rest; what is printed names the call here."""
    done = run("push", "--format", "v3", "-c", "echo 1", "-e", "A=1", "--num-retries", "2")

    async def text(ledger: Ledger) -> str:
        (delivery,) = await (await ledger.queue("default")).receive(1, lease_seconds=60)
        return delivery.body

    said = json.loads(app.client.run(text))
    rest = {name: said[name] for name in ("version", "reply_requested", "kwargs", "num_retries")}
    assert rest == {
        "version": 1,
        "reply_requested": False,
        "kwargs": json.dumps({"cmd": "echo 1", "bg_dirsync_to": None, "env": {"A": "1"}}),
        "num_retries": 2,
    }
    assert said["id"] == hashlib.md5(json.dumps(rest).encode(), usedforsecurity=False).hexdigest()
    assert app.handle(done.stdout.strip()).status() == "pending"


def test_lines_are_read_one_after_the_other() -> None:
    """None is read before it is wanted."""
    read: list[int] = []

    def lines() -> Iterator[str]:
        for number in range(10):
            read.append(number)
            yield "true\n"

    items = Lines().items(lines())
    next(items)
    next(items)
    assert read == [0, 1]


def test_an_unknown_name_is_an_error_of_the_setup() -> None:
    """Of a task that is known by name only, calling it here is one."""
    with pytest.raises(ConfigurationError, match="known by its name only"):
        task_named(app, "elsewhere.task")(3)
    assert task_named(app, "proj.power") is power
