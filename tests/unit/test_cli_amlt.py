"""`amlt` is run with the variables that lead the workers of its jobs here, on copies of its configurations; a stand-in plays it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from ai4s.jobq import cli
from ai4s.jobq.config import read_settings

STAND_IN = """#!/bin/bash
printf '%s\\n' "$@" > asked
env | grep ^JOBQ_ > variables
for word in "$@"; do case $word in *.y*ml) [ -f "$word" ] && cat "$word" > "seen-$(basename "$word")";; esac; done
{act}
"""

CONFIG = """\
# What people wrote about it.
environment:
  image: registry.example/jobs:1.10   # not 1.1
  env:
    JOBQ_QUEUE: an-old-one
    MODE: 0755
search:
  - &lr 1e-3
  - *lr
code: !dir $CONFIG_DIR/../src
"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, the stand-in on the path, and an environment that says nothing."""
    for name in [name for name in os.environ if name.startswith("JOBQ_")]:
        monkeypatch.delenv(name)
    (tmp_path / "programs").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}:{os.environ['PATH']}")


def stand_in(act: str = "exit 0") -> None:
    """Put `amlt` on the path."""
    program = Path("../programs/amlt")
    program.write_text(STAND_IN.format(act=act))
    program.chmod(0o755)


def amlt(*words: str, target: str = "acct/proj", code: int = 0) -> str:
    """Run `jobq TARGET amlt …`; what it says on stderr."""
    done = CliRunner().invoke(cli.jobq, [target, "amlt", *words])
    assert done.exit_code == code, done.output
    return done.stderr


def variables() -> dict[str, str]:
    """The stand-in's environment."""
    return dict(line.split("=", 1) for line in Path("variables").read_text().splitlines())


def seen() -> str:
    """The one configuration that the stand-in was given, as it was then."""
    (path,) = Path().glob("seen-*")
    return path.read_text()


def test_amlt_gets_the_variables_and_its_words() -> None:
    """With those, a worker without any target finds the calls."""
    stand_in()
    amlt("--time-limit", "90m", "--", "run", "--yes", "-t", "sing")
    assert Path("asked").read_text().split() == ["run", "--yes", "-t", "sing"]
    assert variables() == {"JOBQ_STORAGE": "acct", "JOBQ_QUEUE": "proj", "JOBQ_TIME_LIMIT": "5400s"}
    assert read_settings(variables()).target == "acct/proj"


def test_the_line_of_3x_works_without_dashes() -> None:
    """So it stands in people's scripts."""
    stand_in()
    amlt("-t", "12h", "run", "config.yaml", "my-experiment")
    assert Path("asked").read_text().split() == ["run", "config.yaml", "my-experiment"]
    assert variables()["JOBQ_TIME_LIMIT"] == "43200s"


def test_a_configuration_gets_the_variables_and_is_itself_left_alone() -> None:
    """A copy beside it says what it says, with the variables in its environment; it is gone afterwards."""
    stand_in()
    folder = Path("configs")
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    amlt("run", "configs/config.yaml")
    given = Path(Path("asked").read_text().split()[1])
    assert given.parent == folder
    assert given.suffix == ".yaml"
    assert list(folder.iterdir()) == [folder / "config.yaml"]
    assert (folder / "config.yaml").read_text() == CONFIG
    text = seen()
    assert "code: !dir $CONFIG_DIR/../src" in text.replace("'", "")
    assert "MODE: 0755" in text
    env = yaml.safe_load(text.replace("!dir", ""))["environment"]["env"]
    expected = {"JOBQ_STORAGE": "acct", "JOBQ_QUEUE": "proj", "JOBQ_TIME_LIMIT": "86400s", "MODE": 0o755}
    assert env == expected


@pytest.mark.parametrize("environment", ["{}", "{env: }", "{env: {}}", "{image: x, env: {A: b}}"])
def test_an_environment_need_not_have_variables_yet(environment: str) -> None:
    """They are added all the same, and take nothing away."""
    stand_in()
    Path("c.yml").write_text(f"environment: {environment}\n")
    amlt("run", "c.yml")
    found = yaml.safe_load(seen())["environment"]
    assert found["env"]["JOBQ_QUEUE"] == "proj"
    assert found.get("image") in ("x", None)


@pytest.mark.parametrize("text", ["", "jobs: []\n", "- a\n", "environment-of: x\n"])
def test_another_yaml_file_is_handed_on_as_it_is(text: str) -> None:
    """Only a configuration of amlt has an environment."""
    stand_in()
    Path("other.yaml").write_text(text)
    amlt("upload", "other.yaml", "missing.yaml")
    assert Path("asked").read_text().split() == ["upload", "other.yaml", "missing.yaml"]


@pytest.mark.parametrize(
    "text", ["environment: [1", "environment: x\n", "environment: {env: [A=b]}\n", "a: 1\n---\nb: 1\n", "\x00"]
)
def test_a_configuration_that_cannot_have_them_is_an_error(text: str) -> None:
    """Rather than jobs that look for their calls elsewhere; in one line, with the name of the file."""
    stand_in()
    Path("c.yaml").write_text(text)
    assert amlt("run", "c.yaml", code=2).count("\n") == 1
    assert not Path("asked").exists()
    assert [path.name for path in Path().iterdir()] == ["c.yaml"]


def test_the_exit_code_is_amlts_and_no_copy_is_left() -> None:
    """Also when it fails, or a signal ends it."""
    Path("c.yaml").write_text(CONFIG)
    for act, code in (("exit 7", 7), ("kill -KILL $$", 137)):
        stand_in(act)
        amlt("run", "c.yaml", code=code)
        assert len(list(Path().glob("c*.yaml"))) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_copy(number: signal.Signals) -> None:
    """Ctrl-C reaches both, SIGTERM is passed on; in either case it is for amlt to say when the end has come."""
    stand_in("trap 'exit 9' INT TERM; echo > ready; while :; do sleep 0.02; done")
    Path("c.yaml").write_text(CONFIG)
    os.mkfifo("ready")
    command = [str(Path(sys.executable).with_name("jobq")), "acct/proj", "amlt", "run", "c.yaml"]
    with subprocess.Popen(command, start_new_session=True) as process:
        Path("ready").read_text()
        if number is signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(60) == 9
    assert len(list(Path().glob("c*.yaml"))) == 1


def test_without_amlt_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not on the package index, so that nobody could have installed it with this package."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "no program amlt" in amlt("run", "c.yaml", code=2)


@pytest.mark.parametrize("target", ["local:///tmp/jobs/proj", "azurite/proj"])
def test_a_place_that_jobs_cannot_reach_is_an_error(target: str) -> None:
    """Jobs run elsewhere."""
    stand_in()
    assert "need a storage account" in amlt("run", target=target, code=2)
    assert not Path("asked").exists()


def test_no_secret_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account is named, and its key is not."""
    stand_in()
    key = "bm90IGEgcmVhbCBrZXk="
    monkeypatch.setenv("JOBQ_CONNECTION_STRING", f"AccountName=acct;AccountKey={key};EndpointSuffix=core.windows.net")
    Path("c.yaml").write_text(CONFIG)
    amlt("run", "c.yaml")
    assert key not in seen()
