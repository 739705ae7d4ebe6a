"""Settings from the environment: the only module that reads it, and only when asked.

An empty variable counts as absent. Nothing here opens a place or checks that it exists.

Next: `app.py`, which takes what is not given to it from here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigurationError

CLUSTER_VARIABLES = ("AZUREML_RUN_ID", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
"""Where one of these is set, a folder of this machine is not where the others look."""

ENVIRONMENT_NAMES = {"AZUREML_RUN_ID": "azureml", "SLURM_JOB_ID": "slurm", "KUBERNETES_SERVICE_HOST": "kubernetes", None: "local"}
"""What a worker calls the environment in which it runs, unless JOBQ_ENVIRONMENT_NAME says otherwise."""

LOCAL_FOLDER = ".jobq"
MIN_KEY_LENGTH = 16

CACHE_BYTES = 10 * 1024**3
"""What stored objects may take of a worker's disk unless JOBQ_CACHE_BYTES says otherwise."""

PREEMPTION_TIMEOUT_SECONDS = 120.0
"""As ai4s-jobq 3.x has it."""

KILL_TIMEOUT_SECONDS, SHELL_CHECKPOINT_SECONDS = 600.0, 180.0
"""From SIGTERM to SIGKILL for a command that is to end, and between two looks at its checkpoint folder, unless the variables
JOBQ_KILL_TIMEOUT and JOBQ_CHECKPOINT_SECONDS say otherwise."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says. `signing_keys`: the first one signs, all are accepted."""

    url: str | None = None
    signing_keys: tuple[str, ...] = field(default=(), repr=False)
    cluster: str | None = None
    metadata_url: str | None = None
    preemption_timeout_seconds: float = PREEMPTION_TIMEOUT_SECONDS
    cache_bytes: int = CACHE_BYTES
    target: str | None = None
    connection_string: str | None = field(default=None, repr=False)
    time_limit: str | None = None
    kill_timeout_seconds: float = KILL_TIMEOUT_SECONDS
    shell_checkpoint_seconds: float = SHELL_CHECKPOINT_SECONDS
    login_shell: bool = False
    log_format: str | None = None
    logs: bool = True
    metrics_port: int | None = None
    environment_name: str = "local"
    prices_file: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment now: JOBQ_URL, JOBQ_SIGNING_KEYS (comma-separated, newest first), and marks of a cluster.

    JOBQ_METADATA_URL says whom a worker asks for notices that its machine goes, JOBQ_PREEMPTION_TIMEOUT how long after the moment
    that one named it goes on, JOBQ_CACHE_BYTES how much of its disk the objects
    that `app.put` stored may take. JOBQ_TARGET, JOBQ_STORAGE_QUEUE, or JOBQ_STORAGE and JOBQ_QUEUE name what the command line works
    with, JOBQ_CONNECTION_STRING a right to it; JOBQ_TIME_LIMIT is a worker's time limit unless told, JOBQ_LOGS whether it keeps
    what calls say, JOBQ_LOG_FORMAT how it writes its own log, JOBQ_ENVIRONMENT_NAME where it says that it runs.
    JOBQ_PRICES is a file of what requests cost.
    """
    environ = dict(os.environ if environ is None else environ)
    keys = tuple(key.strip() for key in environ.get("JOBQ_SIGNING_KEYS", "").split(",") if key.strip())
    cluster = next((name for name in CLUSTER_VARIABLES if environ.get(name)), None)
    return Settings(
        url=environ.get("JOBQ_URL") or None,
        signing_keys=check_keys(keys),
        cluster=cluster,
        metadata_url=environ.get("JOBQ_METADATA_URL") or None,
        preemption_timeout_seconds=_seconds_of(environ, "JOBQ_PREEMPTION_TIMEOUT", PREEMPTION_TIMEOUT_SECONDS),
        cache_bytes=_bytes_of(environ, "JOBQ_CACHE_BYTES", CACHE_BYTES),
        target=_target(environ),
        connection_string=environ.get("JOBQ_CONNECTION_STRING") or None,
        time_limit=environ.get("JOBQ_TIME_LIMIT") or None,
        kill_timeout_seconds=_seconds_of(environ, "JOBQ_KILL_TIMEOUT", KILL_TIMEOUT_SECONDS),
        shell_checkpoint_seconds=_seconds_of(environ, "JOBQ_CHECKPOINT_SECONDS", SHELL_CHECKPOINT_SECONDS),
        login_shell=environ.get("JOBQ_USE_LOGIN_SHELL", "").lower() in ("1", "true", "yes"),
        log_format=environ.get("JOBQ_LOG_FORMAT") or None,
        logs=(environ.get("JOBQ_LOGS") or "1").lower() not in ("0", "false", "no", "off"),
        metrics_port=_port_of(environ, "JOBQ_METRICS_PORT"),
        environment_name=environ.get("JOBQ_ENVIRONMENT_NAME") or ENVIRONMENT_NAMES[cluster],
        prices_file=environ.get("JOBQ_PRICES") or None,
        environ=environ,
    )


def _target(environ: Mapping[str, str]) -> str | None:
    """What the command line works with unless told: one variable, or the names of ai4s-jobq 3.x."""
    storage, queue = environ.get("JOBQ_STORAGE"), environ.get("JOBQ_QUEUE")
    named = environ.get("JOBQ_TARGET") or environ.get("JOBQ_STORAGE_QUEUE")
    return named or (f"{storage}/{queue}" if storage and queue else None)


def _bytes_of(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit()):
        raise ConfigurationError(f"{name} is a number of bytes, such as {CACHE_BYTES}; got {text!r}.")
    return int(text)


def _seconds_of(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ConfigurationError(f"{name} is a number of seconds, such as {default:g}; got {text!r}.")
    return number


def _port_of(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise ConfigurationError(f"{name} is a port, such as 9464, or 0 for any that is free; got {text!r}.")
    return int(text)


def check_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """`keys` if each is long enough; raises ConfigurationError that does not repeat them."""
    if any(len(key) < MIN_KEY_LENGTH for key in keys):
        raise ConfigurationError(f"A signing key needs at least {MIN_KEY_LENGTH} characters; `openssl rand -hex 32` makes one.")
    if any(not key.isascii() for key in keys):
        raise ConfigurationError("A signing key is made of ASCII characters; `openssl rand -hex 32` makes one.")
    return keys


def default_url(settings: Settings, start: Path) -> str:
    """The place that is meant where none is named: the nearest `.jobq` folder upward from `start`, else `start/.jobq`.

    Raises ConfigurationError on a cluster's machine, whose folders no other machine sees.
    """
    if settings.cluster:
        raise ConfigurationError(
            f"No place is named, and {settings.cluster} says that this machine is one of many: a local folder would be seen by "
            "nobody else. Set JOBQ_URL (azure://ACCOUNT), or name a folder with local:///FOLDER."
        )
    start = start.resolve()
    found = (folder / LOCAL_FOLDER for folder in (start, *start.parents))
    nearest = next((folder for folder in found if folder.is_dir()), start / LOCAL_FOLDER)
    return f"local://{nearest}"
