"""The command line: `jobq TARGET VERB`, and `jobq-worker TARGET` for `jobq TARGET worker`.

Commands import what they run only when they run, so that `--help` is quick.

Next: `target.py` for what TARGET means, `worker.py` for the worker's options.
"""

from __future__ import annotations

import logging
import sys
import traceback

import click

from ..errors import ConfigurationError, DeclarationError, JobQError
from ..version import __version__
from . import worker

FAILED, MISUSED = 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ai4s-jobq")
@click.argument("target")
@click.pass_context
def jobq(context: click.Context, target: str) -> None:
    """Work with the app that TARGET names: MODULE:APP, or PLACE/APP.

    \b
    PLACE is ACCOUNT or azure://ACCOUNT (a storage account), azurite, local, or local:///FOLDER.

    \b
    Examples:
      jobq myproj.tasks:app worker --concurrency 4
      jobq myaccount/myproj worker --until-empty
    """
    context.obj = target


@jobq.command("worker", epilog="Exit codes: 0 done, 1 the storage failed at the start, 2 wrong usage or setup, 75 preempted.")
@worker.options
@click.pass_obj
def _worker_verb(target: str, /, **given: object) -> None:
    """Run a worker until it is told to stop."""
    sys.exit(worker.run(target, given))


@click.command("jobq-worker", context_settings=jobq.context_settings, epilog=_worker_verb.epilog)
@click.version_option(__version__, prog_name="ai4s-jobq")
@click.argument("target")
@worker.options
def _worker_command(target: str, **given: object) -> None:
    """Run a worker for the app that TARGET names: MODULE:APP, or PLACE/APP for calls that bring their code along.

    \b
    Examples:
      jobq-worker myproj.tasks:app --concurrency 4
      jobq-worker myproj.tasks:app --queue urgent --queue default,gpu:3 --until-idle 10m
      jobq-worker azure://myaccount/myproj --time-limit 24h
    """
    sys.exit(worker.run(target, given))


def main() -> None:
    """The commands `jobq` and `ai4s-jobq`."""
    _run(jobq)


def worker_main() -> None:
    """The command `jobq-worker`."""
    _run(_worker_command)


def _run(command: click.Command) -> None:
    try:
        command()
    except JobQError as exc:
        if logging.getLogger("ai4s.jobq").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        click.echo(f"Error: {exc}", err=True)
        sys.exit(MISUSED if isinstance(exc, ConfigurationError | DeclarationError) else FAILED)
