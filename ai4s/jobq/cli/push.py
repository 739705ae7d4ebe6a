"""`push`: shell commands, or calls of a task, from the command line or from stdin.

Next: `pushing.py`, which does it.
"""

from __future__ import annotations

from typing import Any

import click

from ..transports.base import MAX_DELAY_SECONDS
from . import call_options
from .grammar import INTERRUPTED
from .lines import warn_of_secrets
from .output import note
from .pushing import Push
from .target import Chosen
from .values import ExitCodes, Pair

EPILOG = "Exit codes: 0 done, 1 the storage failed, or with --wait: a call failed; 2 wrong usage; 130 Ctrl-C."


@click.command("push", epilog=EPILOG)
@click.option("--command", "-c", "commands", metavar="CMD", multiple=True, help="A command for bash. May be repeated.")
@click.option("--task", metavar="NAME", help="Call this task instead, with JSON objects of keyword arguments.")
@call_options.options
@click.option("--env", "-e", metavar="KEY=VALUE", type=Pair(), multiple=True, help="Set a variable for the commands.")
@click.option("--batch", metavar="NAME", help="Make it a batch of this name, to be looked at and cancelled as a whole.")
@click.option("--pack", type=click.IntRange(1), default=1, show_default=True, help="Calls that travel as one message, at most.")
@click.option("--retry-exit", type=ExitCodes(), help="Try again after these exit codes only.")
@click.option("--fail-exit", type=ExitCodes(), help="Never try again after these exit codes.")
@click.option("--bg-dirsync-to", metavar="DIR", help="Copy $AMLT_DIRSYNC_DIR there, while the command runs and at its end.")
@click.option(
    "--codec",
    type=click.Choice(["cloudpickle", "msgpack"]),
    default="cloudpickle",
    show_default=True,
    help="As the task of --task declares, if TARGET is no module.",
)
@click.option(
    "--format",
    "version",
    type=click.Choice(["v4", "v3"]),
    default="v4",
    show_default=True,
    help="v3: for workers of ai4s-jobq 3.x.",
)
@click.option("--num-workers", type=int, hidden=True)
@click.option("--dedup-window", hidden=True)
@click.pass_obj
def verb(chosen: Chosen, /, **given: Any) -> int:
    """Submit shell commands: those of -c, or one a line from stdin. A line may also be a JSON object with "cmd", "env" and "cwd".

    Prints the ids of the calls, or the name of the batch. With --task NAME, lines are JSON objects of the task's keyword arguments.

    \b
    Examples:
      jobq myaccount/myproj push -c 'python train.py --seed 1' --num-retries 2
      jobq myaccount/myproj push --batch nightly --key v1 < commands.txt
      jobq myaccount/myproj push --wait -e SEED=3 -c 'python train.py'
      jobq myproj.tasks:app push --task square --pack 1000 < arguments.jsonl
    """  # fmt: skip
    _check(given)
    push = Push(chosen.open(), given)
    try:
        return push.run()
    except KeyboardInterrupt:
        note("\n" + push.interrupted())
        return INTERRUPTED


def _check(given: dict[str, Any]) -> None:
    shell_only = [f"--{name.replace('_', '-')}" for name in ("env", "retry_exit", "fail_exit", "bg_dirsync_to") if given[name]]
    if given["task"] and shell_only:
        raise click.UsageError(f"{shell_only[0]} is for shell commands, and not for --task.")
    if not all(command.strip() for command in given["commands"]):
        raise click.UsageError("-c is given an empty command.")
    batched = given["batch"] is not None or given["pack"] > 1
    others = ("timeout", "expires", "key", "wait", "retry_exit", "fail_exit", "task")
    if given["version"] == "v3" and (batched or any(given[name] for name in others)):
        raise click.UsageError("ai4s-jobq 3.x knows no more than --num-retries, -e, --bg-dirsync-to, --queue and --delay.")
    if given["version"] == "v3" and (given["delay"] or 0) > MAX_DELAY_SECONDS:
        raise click.UsageError("A message of ai4s-jobq 3.x can be delayed by 7d at most.")
    warn_of_secrets(name for name, _ in given["env"])
