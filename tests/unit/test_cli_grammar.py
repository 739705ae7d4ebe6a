"""How the command line is read: TARGET and where it comes from, verbs, verbosity, exit codes, and what a worker is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from ai4s.jobq.cli import VERBS, jobq, worker_command
from ai4s.jobq.cli.target import Chosen, parse_target
from ai4s.jobq.errors import ConfigurationError, DeclarationError, JobQError
from ai4s.jobq.worker import runtime
from ai4s.jobq.worker.lease import FIRST_LEASE_SECONDS, LONGEST_LEASE_SECONDS
from ai4s.jobq.worker.runtime import Plan

CONNECTION = "DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=a2V5;EndpointSuffix=core.windows.net"
VARIABLES = ("URL", "TARGET", "STORAGE_QUEUE", "STORAGE", "QUEUE", "CONNECTION_STRING", "TIME_LIMIT", "SIGNING_KEYS")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours is set, and the current folder is empty."""
    for name in VARIABLES:
        monkeypatch.delenv(f"JOBQ_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What workers would have been started; none is."""
    plans: list[Plan] = []

    async def note(plan: Plan, **_: Any) -> None:
        plans.append(plan)

    monkeypatch.setattr(runtime, "run_worker", note)
    return plans


def run(*words: str, command: click.Command = jobq) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(command, words)


# TARGET


@pytest.mark.parametrize(
    ("text", "app", "url"),
    [
        ("acct/proj", "proj", "azure://acct"),
        ("azure://acct/proj", "proj", "azure://acct"),
        ("azurite/proj", "proj", "azurite://"),
        ("azurite://host:1/proj", "proj", "azurite://host:1"),
        ("local:///some/folder/proj", "proj", "local:///some/folder"),
    ],
)
def test_a_place_and_an_app_are_told_apart(text: str, app: str, url: str) -> None:
    """What follows the last slash is the app; what stands before it, the place."""
    found = parse_target(text)
    assert (found.app, found.url, found.module) == (app, url, None)


def test_the_default_store_is_found_as_ever(tmp_path: Path) -> None:
    """`local` is the folder that an app without a url uses."""
    assert parse_target("local/proj").url == f"local://{tmp_path}/.jobq"


def test_a_module_and_its_app_are_one_target() -> None:
    """Only a name, a colon and a name are a module's app."""
    assert parse_target("my.tasks:app").module == "my.tasks:app"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sb://namespace/queue", "Service Bus, which is not supported"),
        ("proj", "names no app"),
        ("acct/", "names no app"),
        ("azure://acct", "names a place and no app"),
        ("acct/Bad_Name", "lower-case"),
        ("", "No TARGET is given"),
    ],
)
def test_a_target_that_is_none_says_what_would_be(text: str, says: str) -> None:
    """Each in one sentence, before anything is opened."""
    with pytest.raises((ConfigurationError, DeclarationError), match=says):
        Chosen(text).target()


@pytest.mark.parametrize(
    ("variables", "app", "url"),
    [
        ({"TARGET": "acct/one", "STORAGE_QUEUE": "acct/two"}, "one", "azure://acct"),
        ({"STORAGE_QUEUE": "acct/two", "STORAGE": "other", "QUEUE": "three"}, "two", "azure://acct"),
        ({"STORAGE": "acct", "QUEUE": "three"}, "three", "azure://acct"),
        ({"STORAGE": "acct", "QUEUE": "three", "TARGET": ""}, "three", "azure://acct"),
    ],
)
def test_without_a_target_the_environment_names_one(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], app: str, url: str
) -> None:
    """The variables of ai4s-jobq 3.x count, after the one of this version."""
    for name, value in variables.items():
        monkeypatch.setenv(f"JOBQ_{name}", value)
    assert (Chosen("").target().app, Chosen("").target().url) == (app, url)


def test_half_a_target_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage account without a queue names nothing."""
    monkeypatch.setenv("JOBQ_STORAGE", "acct")
    with pytest.raises(ConfigurationError, match="JOBQ_TARGET"):
        Chosen("").target()


def test_a_connection_string_is_the_right_to_the_account_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given or in the environment; for another account it is refused without being shown, and a folder needs none."""
    assert Chosen("acct/proj", CONNECTION).target().url == CONNECTION
    monkeypatch.setenv("JOBQ_CONNECTION_STRING", CONNECTION)
    assert Chosen("acct/proj").target().url == CONNECTION
    assert Chosen("local:///some/folder/proj").target().url == "local:///some/folder"
    with pytest.raises(ConfigurationError, match="the connection string is for acct") as refused:
        Chosen("other/proj").target()
    assert "a2V5" not in str(refused.value)


def test_a_module_that_fails_on_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises: the command ends with code 2, and shows the traceback with -v."""
    (tmp_path / "failing_h4.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(str(tmp_path))
    quiet, loud = run("failing_h4:app", "result", "x"), run("-v", "failing_h4:app", "result", "x")
    assert quiet.exit_code == loud.exit_code == 2
    assert quiet.stderr == "Error: failing_h4:app could not be imported: RuntimeError: no licence\n"
    assert "Traceback" in loud.stderr


# Verbs


def test_a_verb_may_come_first(monkeypatch: pytest.MonkeyPatch, planned: list[Plan]) -> None:
    """Then TARGET comes from the environment, with options of the group before the verb or not."""
    monkeypatch.setenv("JOBQ_TARGET", "acct/proj")
    for words in (["worker"], ["-v", "worker"], ["--conn-str", CONNECTION, "worker"], ["-qq", "worker", "-n", "2"]):
        assert run(*words).exit_code == 0
    assert [plan.setup.served.app for plan in planned if plan.setup.served] == ["proj"] * 4


@pytest.mark.parametrize(("words", "meant"), [(["pusj"], "push"), (["acct/proj", "wroker"], "worker")])
def test_a_misspelt_verb_names_the_one_that_was_meant(words: list[str], meant: str) -> None:
    """At either place, with code 2."""
    found = run(*words)
    assert found.exit_code == 2
    assert f"Did you mean '{meant}'?" in found.stderr


def test_each_verb_says_how_it_is_used() -> None:
    """With an example and its exit codes; the group lists them all."""
    listed = run("--help").stdout
    for verb in ("push", "call", "pull", "worker", "result", "cancel", "batch"):
        assert f"\n  {verb} " in listed
        told = run("acct/proj", verb, "--help").stdout
        assert "Examples:" in told
        assert "Exit codes:" in told
    assert set(VERBS) >= {"push", "call", "pull", "worker"}


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (ConfigurationError("set it up"), 2, "Error: set it up\n"),
        (JobQError("it broke\n\x1b[31m"), 1, "Error: it broke\\n\\x1b[31m\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
    ],
)
def test_what_a_verb_raises_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, says: str
) -> None:
    """Without a traceback, and fit for a terminal."""

    async def fail(plan: Plan, **_: Any) -> None:
        raise raised

    monkeypatch.setattr(runtime, "run_worker", fail)
    found = run("acct/proj", "worker")
    assert (found.exit_code, found.stderr) == (code, says)


def test_logging_is_as_before_once_a_command_has_ended(planned: list[Plan]) -> None:
    """A program that calls a command in its own process keeps its levels and handlers."""
    ours, root = logging.getLogger("ai4s.jobq"), logging.getLogger()
    before = (ours.level, root.level, list(root.handlers))
    run("-vv", "acct/proj", "worker")
    assert (ours.level, root.level, list(root.handlers)) == before


@pytest.mark.parametrize(
    ("flags", "level"), [([], "INFO"), (["-v"], "DEBUG"), (["-q"], "WARNING"), (["-q", "-q"], "ERROR"), (["-v", "-q"], "INFO")]
)
def test_each_v_and_q_counts(monkeypatch: pytest.MonkeyPatch, flags: list[str], level: str) -> None:
    """Before the verb and after it alike."""
    levels: list[int] = []

    async def note(plan: Plan, **_: Any) -> None:
        levels.append(logging.getLogger("ai4s.jobq").level)

    monkeypatch.setattr(runtime, "run_worker", note)
    run(*flags, "acct/proj", "worker")
    run("acct/proj", "worker", *flags)
    run("acct/proj", *flags, command=worker_command)
    assert levels == [getattr(logging, level)] * 3


# Workers


def test_jobq_worker_is_the_verb_worker(monkeypatch: pytest.MonkeyPatch, planned: list[Plan]) -> None:
    """With the same options, and TARGET from the environment where it is left out."""
    options = ["-n", "3", "--queue", "a,b:2", "--queue", "c", "--until-idle", "10m", "--no-by-value", "--lease", "2m"]
    run("acct/proj", "worker", *options)
    run("acct/proj", *options, command=worker_command)
    monkeypatch.setenv("JOBQ_TARGET", "acct/proj")
    run(*options, command=worker_command)
    settings = {(p.queues, p.concurrency, p.until_idle_seconds, p.by_value, p.terms.seconds, p.until_empty) for p in planned}
    assert len(planned) == 3
    assert settings == {(("a,b:2", "c"), 3, 600, False, 120, False)}


@pytest.mark.parametrize(
    ("words", "until_empty"),
    [
        (["acct/proj", "worker"], True),
        (["acct/proj", "worker", "--forever"], False),
        (["acct/proj", "worker", "--no-until-empty"], False),
        (["acct/proj", "worker", "--until-idle", "10m"], False),
        (["acct/proj", "worker", "--until-idle", "10m", "--until-empty"], True),
        (["my.tasks:app", "worker"], False),
        (["my.tasks:app", "worker", "--until-empty"], True),
    ],
)
def test_a_worker_without_a_module_ends_when_the_queues_are_empty(planned: list[Plan], words: list[str], until_empty: bool) -> None:
    """As in ai4s-jobq 3.x, unless it is told how long to stay."""
    run(*words)
    assert planned[0].until_empty is until_empty


def test_the_time_limit_is_that_of_the_environment_unless_told(monkeypatch: pytest.MonkeyPatch, planned: list[Plan]) -> None:
    """JOBQ_TIME_LIMIT is a duration like that of the option, and a wrong one is named."""
    monkeypatch.setenv("JOBQ_TIME_LIMIT", "90m")
    run("acct/proj", "worker")
    run("acct/proj", "worker", "--time-limit", "1h")
    assert [plan.time_limit_seconds for plan in planned] == [5400, 3600]
    monkeypatch.setenv("JOBQ_TIME_LIMIT", "90")
    wrong = run("acct/proj", "worker")
    assert wrong.exit_code == 2
    assert "'90' is no duration" in wrong.stderr


def test_a_time_limit_that_is_none_is_blamed_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was said."""
    monkeypatch.setenv("JOBQ_TIME_LIMIT", "2")
    found = run("acct/proj", "worker")
    assert (found.exit_code, found.stderr) == (2, "Error: JOBQ_TIME_LIMIT: '2' is no duration; write 90s, 10m, 24h or 7d.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["local"], "Did you mean local/APP?"),
        (["acct/proj"], "No verb follows TARGET. There are: push, call"),
        (["local/proj", "push", "-c", " "], "-c is given an empty command."),
    ],
)
def test_what_is_left_out_is_named(words: list[str], said: str) -> None:
    """And what there is."""
    found = run(*words)
    assert found.exit_code == 2
    assert said in found.stderr


def test_a_worker_for_a_place_runs_one_at_a_time(planned: list[Plan]) -> None:
    """As in 3.x: a command may well fill its machine."""
    run("acct/proj", "worker")
    run("myproj.tasks:app", "worker")
    assert planned[0].concurrency == 1
    assert planned[1].concurrency == planned[1].hardware.cpus


def test_options_of_3x_go_on_working(planned: list[Plan]) -> None:
    """The names that old scripts use, and what has become of one of them."""
    run(
        "acct/proj",
        "worker",
        "--num-workers",
        "5",
        "--visibility-timeout",
        "10m",
        "--max-consecutive-failures",
        "2",
        "--proc",
        "shell",
    )
    plan = planned[0]
    assert (plan.concurrency, plan.terms.seconds, plan.max_failures_in_a_row) == (5, 600, 2)
    refused = run("acct/proj", "worker", "--proc", "mine.Processor")
    assert refused.exit_code == 2
    assert "Declare a task instead" in refused.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--no-heartbeat"], "goes with --lease"),
        (["--lease", "2s"], "from 10s to 7d"),
        (["--lease", "8d"], "from 10s to 7d"),
    ],
)
def test_a_lease_that_cannot_be_is_refused(planned: list[Plan], options: list[str], says: str) -> None:
    """Before anything is opened, with what would be right."""
    refused = run("acct/proj", "worker", *options)
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert not planned


def test_usual_terms_are_usual(planned: list[Plan]) -> None:
    """Without options a lease is as short as ever, and renewed; failures end nothing."""
    run("acct/proj", "worker")
    plan = planned[0]
    assert (plan.terms.seconds, plan.terms.renewed, plan.max_failures_in_a_row) == (FIRST_LEASE_SECONDS, True, None)
    assert FIRST_LEASE_SECONDS < LONGEST_LEASE_SECONDS


def test_pull_is_a_worker_of_one_message(planned: list[Plan]) -> None:
    """It takes the options of a worker that make sense for one call."""
    assert run("acct/proj", "pull", "--queue", "gpu", "--visibility-timeout", "5m").exit_code == 0
    plan = planned[0]
    assert (plan.most_messages, plan.concurrency, plan.queues, plan.terms.seconds) == (1, 1, ("gpu",), 300)


def test_the_right_of_azurite_is_known(planned: list[Plan]) -> None:
    """A connection string for Azurite goes with a TARGET that names its account, as old scripts write it."""
    connection = "UseDevelopmentStorage=true"
    assert run("--conn-str", connection, "devstoreaccount1/proj", "worker").exit_code == 0
    served = planned[0].setup.served
    assert served is not None
    assert served.url == connection
