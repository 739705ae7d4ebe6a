"""The command line: `jobq TARGET VERB`, and `jobq-worker TARGET` for `jobq TARGET worker`.

Commands import what they run only when they run, so that `--help` is quick.

Next: `grammar.py` for how it is read, `target.py` for what TARGET means, then the module of a verb.
"""

from __future__ import annotations

import logging

import click

from ..version import __version__
from . import completion, worker
from .grammar import Verb, Verbs
from .output import logged
from .target import Chosen

VERBS = {
    "push": ("push", "verb"),
    "call": ("call", "verb"),
    "pull": ("worker", "pull"),
    "worker": ("worker", "verb"),
    "result": ("results", "result"),
    "logs": ("logs", "logs"),
    "cancel": ("results", "cancel"),
    "batch": ("results", "batch"),
    "size": ("queues", "size"),
    "peek": ("queues", "peek"),
    "clear": ("queues", "clear"),
    "status": ("queues", "status"),
    "top": ("top", "verb"),
    "dashboard": ("dashboard", "verb"),
    "cost": ("cost", "verb"),
    "failed": ("failed", "failed"),
    "pause": ("orders", "pause"),
    "resume": ("orders", "resume"),
    "drain": ("orders", "drain"),
    "gc": ("orders", "gc"),
    "doctor": ("doctor", "verb"),
    "deploy": ("deploy", "verb"),
    "amlt": ("amlt", "verb"),
}
"""The module and the command of each verb."""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
CONNECTION_STRING = click.option(
    "--conn-str", hidden=True, help="A connection string; better in JOBQ_CONNECTION_STRING, which others cannot read."
)


@click.group(cls=Verbs, verbs=VERBS, subcommand_metavar="VERB [ARGS]...", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="ai4s-jobq")
@CONNECTION_STRING
@click.option("--verbose", "-v", count=True, help="Log more, and show tracebacks; more of it with each.")
@click.option("--quiet", "-q", count=True, help="Log less.")
@click.argument("target", shell_complete=completion.verbs)
@click.pass_context
def jobq(context: click.Context, target: str, conn_str: str | None, *, verbose: int, quiet: int) -> None:
    """Work with the app that TARGET names: MODULE:APP, or PLACE/APP. Without TARGET, $JOBQ_TARGET says.

    \b
    PLACE is ACCOUNT or azure://ACCOUNT (a storage account), azurite, local, or local:///FOLDER.

    \b
    Examples:
      jobq myproj.tasks:app worker --concurrency 4
      jobq myaccount/myproj push -c 'python train.py --seed 1'
      jobq myaccount/myproj worker
    """
    context.obj = Chosen(target, conn_str, verbose - quiet)
    if context.invoked_subcommand not in ("worker", "pull"):  # which say more, and have -v themselves
        context.with_resource(logged(verbose - quiet, logging.WARNING))


@click.command("jobq-worker", cls=Verb, context_settings=SETTINGS, epilog=worker.verb.epilog)
@click.version_option(__version__, prog_name="ai4s-jobq")
@CONNECTION_STRING
@click.argument("target", default="")
@worker.options
def worker_command(target: str, conn_str: str | None, **given: object) -> int:
    """Run a worker for the app that TARGET names: MODULE:APP, or PLACE/APP for commands and calls that bring their code along.

    Without TARGET, $JOBQ_TARGET says.

    \b
    Examples:
      jobq-worker myproj.tasks:app --concurrency 4
      jobq-worker myproj.tasks:app --queue urgent --queue default,gpu:3 --until-idle 10m
      jobq-worker azure://myaccount/myproj --time-limit 24h
    """
    return worker.run(Chosen(target, conn_str).target(), given)


def main() -> None:
    """The commands `jobq` and `ai4s-jobq`."""
    jobq()


def worker_main() -> None:
    """The command `jobq-worker`."""
    worker_command()
