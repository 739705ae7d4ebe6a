"""What Tab offers: verbs with and without a target, options, tasks; and bash, asked as a user would ask it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import FishComplete, ShellComplete, ZshComplete
from click.testing import CliRunner

from ai4s.jobq import cli
from ai4s.jobq.cli.completion import Bash

SHELLS = pytest.mark.parametrize("shell", [Bash, ZshComplete, FishComplete])


def offered(*words: str, shell: type[ShellComplete] = ZshComplete) -> list[str]:
    """What is offered for the last of the words after `jobq`."""
    return [item.value for item in shell(cli.jobq, {}, "jobq", "_JOBQ_COMPLETE").get_completions(list(words[:-1]), words[-1])]


def bash(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is told when Tab is pressed at the end of a line, whose words it splits beside colons, too."""
    words = line.replace("://", " :// ").replace(":a", " : a").split(" ")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    shell = Bash(cli.jobq, {}, "jobq", "_JOBQ_COMPLETE")
    return [item.value for item in shell.get_completions(*shell.get_completion_args())]


@pytest.mark.parametrize("words", [("x/y", "pu"), ("pu",), ("-v", "pu"), ("-v", "x/y", "pu")])
def test_verbs_are_offered_after_a_target_and_in_its_place(words: tuple[str, ...]) -> None:
    """The target may come from the environment."""
    assert offered(*words) == ["push", "pull"]


def test_each_verb_offers_what_it_takes() -> None:
    """Its options, or its own verbs."""
    assert offered("x/y", "deploy", "k") == ["keda"]
    assert "--max-workers" in offered("x/y", "deploy", "keda", "--m")
    assert "--time-limit" in offered("worker", "--t")
    assert "--grace" in offered("x/y", "worker", "--")


def test_no_verb_is_missing() -> None:
    """Those in the table, and all of them can be loaded."""
    assert offered("x/y", "") == list(cli.VERBS)
    assert all(offered("x/y", verb, "--hel") == ["--help"] for verb in cli.VERBS)


def test_tasks_are_offered_after_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the module, which may print; one that cannot be imported offers nothing."""
    (tmp_path / "tabbed_tasks.py").write_text(
        "from ai4s.jobq import App\n"
        "print('imported')\n"
        "app = App('proj')\n"
        "@app.task\n"
        "def train(): ...\n"
        "@app.task\n"
        "def report(): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert offered("tabbed_tasks:app", "call", "") == ["report", "train"]
    assert offered("tabbed_tasks:app", "call", "t") == ["train"]
    assert offered("no_such_module:app", "call", "t") == offered("acct/proj", "call", "t") == []


@pytest.mark.parametrize("target", ["acct/proj", "azure://acct/proj", "local:///tmp/jobs/proj", "myproj.tasks:app"])
def test_bash_may_split_a_target(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends words at colons, which most targets have."""
    assert bash(f"jobq {target} pu", monkeypatch) == ["push", "pull"]
    assert bash(f"jobq {target} ", monkeypatch) == list(cli.VERBS)


@SHELLS
def test_a_script_can_be_had_for_each_shell(shell: type[ShellComplete]) -> None:
    """As the documentation says: by a variable and the program's name."""
    done = CliRunner().invoke(cli.jobq, [], prog_name="jobq", env={"_JOBQ_COMPLETE": f"{shell.name}_source"})
    assert done.exit_code == 0
    assert "_JOBQ_COMPLETE" in done.stdout


def test_bash_completes_with_what_the_program_prints() -> None:
    """The script passes `bash -n`, and Tab does what it should, with the real program."""
    program = Path(sys.executable).with_name("jobq")
    environ = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    source = subprocess.run([program], env={**environ, "_JOBQ_COMPLETE": "bash_source"}, capture_output=True, text=True, check=True)
    subprocess.run(["bash", "-n"], input=source.stdout, text=True, check=True)
    press_tab = source.stdout + (
        '\nCOMP_WORDS=(jobq myproj.tasks : app pu)\nCOMP_CWORD=4\n_jobq_completion jobq pu app\necho "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash"], input=press_tab, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["push", "pull"]
