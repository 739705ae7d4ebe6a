"""`deploy docker`: a Dockerfile for workers.

Everything that a user writes stands in a JSON list or matches a pattern: nothing of it can become an instruction, and no shell
reads it.

Next: `workers.py` for what the command line says.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from ...errors import ConfigurationError
from ...version import __version__
from ..target import Chosen
from .workers import IMAGE, Workers, checked, options, planned

PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*(/[A-Za-z0-9_][A-Za-z0-9_.@+-]*)*/?")
"""What is copied: of a path with anything else in it, Docker might make a pattern or a variable."""

USER_ID = 10001


@click.command("docker")
@click.option(
    "--base",
    default=f"python:{sys.version_info.major}.{sys.version_info.minor}-slim",
    show_default=True,
    callback=checked(IMAGE, "image"),
    help="The image to begin with, of Debian and Python. Calls by value need the Python version of who makes them.",
)
@click.option("--requirements", help="A file of requirements, installed first.")
@click.option("--package", default=f"ai4s-jobq=={__version__}", show_default=True, help="What pip installs this package from.")
@click.option(
    "--copy",
    "copies",
    multiple=True,
    metavar="PATH",
    help="What to copy from the current folder; the module that TARGET names, unless given.",
)
@options
@click.pass_obj
def docker(chosen: Chosen, /, **given: Any) -> None:
    """Print a Dockerfile for workers, for the folder in which the module lies.

    \b
    Examples:
      jobq myproj.tasks:app deploy docker --requirements requirements.txt > Dockerfile
      jobq myaccount/myproj deploy docker -n 4 -- --until-idle 1h > Dockerfile
    """
    copies, requirements = given.pop("copies"), given["requirements"]
    workers = planned(chosen, given)
    copies = copies or _lies(workers.serves)
    for path in (*copies, *([requirements] if requirements else [])):
        _check_path(path)
    click.echo("\n".join([*_header(workers), *_image(given), *_content(list(copies), workers)]))


def _header(workers: Workers) -> list[str]:
    run = ["docker run --rm", f"--stop-timeout {workers.gone_seconds}"]
    if workers.has_right:
        run.append("--env JOBQ_URL")
    if workers.signed:
        run.append("--env JOBQ_SIGNING_KEYS")
    told = [
        "Workers of ai4s-jobq. Build and run:",
        "  docker build --tag jobq-worker .",
        f"  {' '.join(run)} jobq-worker",
        "No secret is in the image. The right to use the account comes from the machine's managed identity or workload identity,",
        "from AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or from a JOBQ_URL with a key or a SAS (--env).",
    ]
    return [f"# {line}" for line in told]


def _image(given: dict[str, Any]) -> list[str]:
    pip = ["pip", "install", "--no-cache-dir"]
    lines = [
        f"FROM {given['base']}",
        "",
        "# tini is process 1: it passes signals on, and collects processes that tasks leave behind.",
        "# hadolint ignore=DL3008",
        "RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \\",
        f"    && useradd --create-home --uid {USER_ID} worker",
        "ENV PYTHONUNBUFFERED=1",
        "WORKDIR /home/worker/app",
    ]
    if given["requirements"]:
        lines.append(f"COPY {json.dumps([given['requirements'], './'])}")
        pip += ["--requirement", Path(given["requirements"]).name]
    return [*lines, f"RUN {json.dumps([*pip, given['package']])}"]


def _content(copies: list[str], workers: Workers) -> list[str]:
    # A folder's content is copied, not the folder: so each goes to where it is.
    lines = [f"COPY {json.dumps([path, f'./{path}'])}" for path in copies]
    return [
        *lines,
        f"ENV JOBQ_URL={workers.place.label}",
        f"USER {USER_ID}",
        "STOPSIGNAL SIGTERM",
        "# Lists, not a shell's lines: SIGTERM reaches the worker. Other options can follow the image in `docker run`.",
        f"ENTRYPOINT {json.dumps(['tini', '--', 'jobq-worker', workers.serves])}",
        f"CMD {json.dumps(list(workers.options))}",
    ]


def _lies(serves: str) -> list[str]:
    """Where the module lies, seen from the current folder; nothing for workers without one."""
    if "/" in serves:
        return []
    top = serves.partition(":")[0].partition(".")[0]
    if Path(f"{top}.py").is_file():
        return [f"{top}.py"]
    if Path(top).is_dir():
        return [f"{top}/"]
    raise ConfigurationError(
        f"Neither {top}.py nor {top}/ is in this folder: run this where the module lies, or say with --copy what to copy."
    )


def _check_path(path: str) -> None:
    if not PATH.fullmatch(path) or not Path(path).exists():
        raise click.UsageError(f"{path!r} is not to be found in this folder, or Docker would take it for something else.")
