"""Settings come from the environment that is given, secrets stay out of sight, and a folder is meant only where that is safe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ai4s.jobq.config import CACHE_BYTES, CLUSTER_VARIABLES, MIN_KEY_LENGTH, Settings, check_keys, default_url, read_settings
from ai4s.jobq.errors import ConfigurationError

KEY, OTHER_KEY = "a-key-of-16-or-more", "another-key-of-16-or-more"


def test_an_empty_environment_says_nothing() -> None:
    """Without variables there is no place, no key and no cluster."""
    settings = read_settings({})
    assert (settings.url, settings.signing_keys, settings.cluster) == (None, (), None)


@pytest.mark.parametrize("name", ["JOBQ_URL", "JOBQ_SIGNING_KEYS", *CLUSTER_VARIABLES])
def test_an_empty_variable_counts_as_absent(name: str) -> None:
    """`export JOBQ_URL=` means none."""
    assert read_settings({name: ""}) == Settings(environ={name: ""})


def test_what_is_set_is_read() -> None:
    """Place, keys in their order, and the first mark of a cluster."""
    settings = read_settings({"JOBQ_URL": "azure://acct", "JOBQ_SIGNING_KEYS": f" {KEY}, {OTHER_KEY} ,", "SLURM_JOB_ID": "7"})
    assert settings.url == "azure://acct"
    assert settings.signing_keys == (KEY, OTHER_KEY)
    assert settings.cluster == "SLURM_JOB_ID"


def test_the_environment_is_read_now_and_not_at_import() -> None:
    """A variable that is set after the import counts; one that changes later does not change settings that were read."""
    program = """
import os
from ai4s.jobq.config import read_settings
os.environ["JOBQ_URL"] = "azure://first"
before = read_settings()
os.environ["JOBQ_URL"] = "azure://second"
print(before.url, before.environ["JOBQ_URL"], read_settings().url)
"""
    answer = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["azure://first", "azure://first", "azure://second"]


def test_the_bound_of_the_file_cache_is_a_number_of_bytes() -> None:
    """Anything else is refused, and not taken for the default."""
    assert read_settings({"JOBQ_CACHE_BYTES": "5000000"}).cache_bytes == 5_000_000
    assert read_settings({"JOBQ_CACHE_BYTES": ""}).cache_bytes == CACHE_BYTES
    for text in ("10 GiB", "-1", "1e9", "²"):
        with pytest.raises(ConfigurationError, match="JOBQ_CACHE_BYTES is a number of bytes"):
            read_settings({"JOBQ_CACHE_BYTES": text})


@pytest.mark.parametrize("keys", ["short", f"{KEY},short", "x" * (MIN_KEY_LENGTH - 1)])
def test_a_key_that_is_too_short_is_refused_without_being_repeated(keys: str) -> None:
    """The error says how to make a good key and shows none."""
    with pytest.raises(ConfigurationError, match="openssl rand -hex 32") as caught:
        read_settings({"JOBQ_SIGNING_KEYS": keys})
    assert not any(key in str(caught.value) for key in keys.split(","))


def test_a_key_of_the_least_length_is_taken() -> None:
    """At the bound."""
    assert check_keys(("x" * MIN_KEY_LENGTH,)) == ("x" * MIN_KEY_LENGTH,)


def test_secrets_do_not_show() -> None:
    """Neither keys nor the rest of the environment stand in the repr of settings."""
    settings = read_settings({"JOBQ_SIGNING_KEYS": KEY, "AZURE_CLIENT_SECRET": "hush"})
    assert KEY not in repr(settings)
    assert "hush" not in repr(settings)


# The folder that is meant where no place is named.


def test_without_a_folder_one_is_meant_here(tmp_path: Path) -> None:
    """`./.jobq`, with its whole path, and it is not made by asking."""
    assert default_url(Settings(), tmp_path) == f"local://{tmp_path}/.jobq"
    assert not (tmp_path / ".jobq").exists()


def test_the_nearest_folder_upward_is_meant(tmp_path: Path) -> None:
    """As with git: a program in a subfolder finds the project's place, and the nearest one wins."""
    inner = tmp_path / "project" / "src"
    inner.mkdir(parents=True)
    (tmp_path / ".jobq").mkdir()
    assert default_url(Settings(), inner) == f"local://{tmp_path}/.jobq"
    (tmp_path / "project" / ".jobq").mkdir()
    assert default_url(Settings(), inner) == f"local://{tmp_path}/project/.jobq"


def test_a_file_of_that_name_is_not_a_place(tmp_path: Path) -> None:
    """Only a folder counts."""
    (tmp_path / ".jobq").write_text("")
    (inner := tmp_path / "inner").mkdir()
    assert default_url(Settings(), inner) == f"local://{inner}/.jobq"


def test_links_are_followed_first(tmp_path: Path) -> None:
    """Two ways to one folder mean one place."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert default_url(Settings(), tmp_path / "link") == f"local://{tmp_path}/real/.jobq"


@pytest.mark.parametrize("name", CLUSTER_VARIABLES)
def test_no_folder_is_meant_on_a_cluster(name: str, tmp_path: Path) -> None:
    """On a machine that is one of many, a local folder must be named to be used, and the error says how."""
    with pytest.raises(ConfigurationError, match=rf"{name}.*JOBQ_URL.*local:///"):
        default_url(read_settings({name: "1"}), tmp_path)


@pytest.mark.parametrize(("said", "kept"), [("", True), ("1", True), ("yes", True), ("0", False), ("false", False), ("OFF", False)])
def test_logs_are_kept_unless_that_is_switched_off(said: str, *, kept: bool) -> None:
    """By JOBQ_LOGS, for all workers of an environment."""
    assert read_settings({"JOBQ_LOGS": said}).logs is kept
