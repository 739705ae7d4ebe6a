"""The command line: `jobq TARGET VERB`, and `jobq-worker TARGET` for `jobq TARGET worker`.

Commands import what they run only when they run, so that `--help` is quick.

Next: `grammar.py` for how it is read, `target.py` for what TARGET means, then the module of a verb.
"""

from __future__ import annotations

import logging
import sys
import traceback

import click

from ..errors import ConfigurationError, DeclarationError, JobQError
from ..version import __version__
from . import worker
from .grammar import Verbs
from .target import Chosen

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

VERBS = {
    "worker": ("worker", "verb"),
}
"""The module and the command of each verb."""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Verbs, verbs=VERBS, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="ai4s-jobq")
@click.option("--conn-str", hidden=True, help="A connection string; better in JOBQ_CONNECTION_STRING, which others cannot read.")
@click.option("--verbose", "-v", is_flag=True, help="Log more, and show tracebacks.")
@click.argument("target")
@click.pass_context
def jobq(context: click.Context, target: str, conn_str: str | None, *, verbose: bool) -> None:
    """Work with the app that TARGET names: MODULE:APP, or PLACE/APP. Without TARGET, $JOBQ_TARGET says.

    \b
    PLACE is ACCOUNT or azure://ACCOUNT (a storage account), azurite, local, or local:///FOLDER.

    \b
    Examples:
      jobq myproj.tasks:app worker --concurrency 4
      jobq myaccount/myproj push -c 'python train.py --seed 1'
      jobq myaccount/myproj worker --until-empty
    """
    context.obj = Chosen(target, conn_str, verbose)


@click.command("jobq-worker", context_settings=SETTINGS, epilog=worker.verb.epilog)
@click.version_option(__version__, prog_name="ai4s-jobq")
@click.argument("target")
@worker.options
def _worker_command(target: str, **given: object) -> None:
    """Run a worker for the app that TARGET names: MODULE:APP, or PLACE/APP for commands and calls that bring their code along.

    \b
    Examples:
      jobq-worker myproj.tasks:app --concurrency 4
      jobq-worker myproj.tasks:app --queue urgent --queue default,gpu:3 --until-idle 10m
      jobq-worker azure://myaccount/myproj --time-limit 24h
    """
    sys.exit(worker.run(Chosen(target).target(), given))


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
