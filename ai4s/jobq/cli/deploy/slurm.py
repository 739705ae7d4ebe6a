"""`deploy slurm`: a script for sbatch, an array of workers that go on where the time limit ended them.

What the script rests on, as seen on Slurm 22.05. A signal to a job step reaches all of its processes, also the worker's children,
which it kills in the middle of their work; `--signal=B:` reaches the script alone, up to a minute early. So the worker is no step
(no `srun`), and the script passes the signal on to it and to nobody else. It is USR1, which nothing else sends: after it the script
asks for another life; SIGTERM comes with `scancel`, a preemption or a requeue, where that is the user's or Slurm's business. The
last task of an array has the id of the whole array, so that `scontrol requeue` needs the other name of a task.

Next: `workers.py` for what the command line says.
"""

from __future__ import annotations

import shlex
from typing import Any

import click

from ..target import Chosen
from ..values import Duration, Size
from .workers import MIB, Workers, checked, options, planned, shown

WORD = r"[\w.:@%+=,/-]{1,200}"

IDLE = "5m"
"""After so long without work a worker ends. Not `--until-empty`: it would keep its node while others work off the last calls."""

REQUEUE_SECONDS = 10
"""What the script needs to ask for another life, once its worker is gone."""

LONGEST_NOTICE_SECONDS = 65535
LEAST_WORK_SECONDS = 600
"""A life must be longer than the idleness that ends a worker: else one without work would be queued again for ever."""

EARLY_SECONDS = 60
"""By so much Slurm may send its signal early."""

_word = checked(WORD, "name for Slurm: letters, digits and .:@%+=,/_- only")


@click.command("slurm")
@click.option("--array", type=click.IntRange(1), default=1, show_default=True, help="So many workers.")
@click.option(
    "--time",
    "limit",
    type=Duration(),
    default="4h",
    show_default=True,
    help="A worker's time limit; then it goes back to Slurm's queue, and on from there.",
)
@click.option("--memory", type=Size(), help="Memory of a worker; the cluster's default unless given.")
@click.option("--gpus", type=click.IntRange(1), help="GPUs of a worker (--gpus-per-node).")
@click.option("--partition", callback=_word, help="Where they run; the cluster's default unless given.")
@click.option("--account", callback=_word, help="Who pays.")
@click.option("--name", callback=_word, help="The job's name; APP-worker unless given.")
@click.option("--setup", multiple=True, metavar="LINE", help="A line of bash before the worker, as in 'source .venv/bin/activate'.")
@options
@click.pass_obj
def slurm(chosen: Chosen, /, **given: Any) -> None:
    """Print a script for sbatch: an array of workers that give back what runs in time, and are queued again.

    \b
    Examples:
      jobq myproj.tasks:app deploy slurm --array 20 --time 4h -n 8 --setup 'source .venv/bin/activate' > workers.sh
      jobq myaccount/myproj deploy slurm --array 4 --gpus 1 --partition gpu > workers.sh
      sbatch workers.sh
    """
    workers = planned(chosen, given, "--until-idle", IDLE)
    if _notice_seconds(workers) > LONGEST_NOTICE_SECONDS:
        raise click.UsageError("--grace is too long: Slurm announces the end of a job 18 hours before it at most.")
    if given["limit"] < _notice_seconds(workers) + EARLY_SECONDS + LEAST_WORK_SECONDS:
        raise click.UsageError("--time is too short beside --grace: what is left for work is less than ten minutes.")
    click.echo("\n".join(["#!/bin/bash", *_directives(workers, given), "", *_body(workers, given)]))


def _notice_seconds(workers: Workers) -> int:
    return workers.gone_seconds + REQUEUE_SECONDS


def _directives(workers: Workers, given: dict[str, Any]) -> list[str]:
    asked = {
        "job-name": given["name"] or f"{workers.app}-worker",
        "array": f"1-{given['array']}",
        "ntasks": 1,
        "cpus-per-task": workers.concurrency,
        "mem": f"{given['memory'] // MIB}M" if given["memory"] else None,
        "gpus-per-node": given["gpus"],
        "partition": given["partition"],
        "account": given["account"],
        "time": _as_time(given["limit"]),
        "signal": f"B:USR1@{_notice_seconds(workers)}",
        "requeue": True,
        "open-mode": "append",
        "output": "%x-%A_%a.log",
    }
    return [f"#SBATCH --{name}" + ("" if value is True else f"={value}") for name, value in asked.items() if value is not None]


def _as_time(seconds: float) -> str:
    """D-HH:MM:SS.

    >>> _as_time(90000.0)
    '1-01:00:00'
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02}:{minute:02}:{second:02}"


def _body(workers: Workers, given: dict[str, Any]) -> list[str]:
    return [
        "# Workers of ai4s-jobq. USR1: the time limit is near; the worker gives back what it runs, and this task is queued again.",
        "# SIGTERM: Slurm ends this task for another reason, and sees to the rest itself.",
        "worker='' told='' again=''",
        """trap 'told=1 again=1; [ -z "$worker" ] || kill -TERM "$worker"' USR1""",
        """trap 'told=1; [ -z "$worker" ] || kill -TERM "$worker"' TERM""",
        "",
        *given["setup"],
        *_environment(workers),
        f"{shown(workers.command)} &",
        "worker=$!",
        'wait "$worker"',
        "code=$?",
        "# A signal to this script ends its waiting, and not the worker.",
        'while [ -n "$told" ] && [ "$code" -gt 128 ]; do',
        "    told=''",
        '    wait "$worker"',
        "    code=$?",
        "done",
        'if [ -n "$again" ] && [ "$code" -eq 75 ]; then',
        '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        "fi",
        'exit "$code"',
    ]


def _environment(workers: Workers) -> list[str]:
    if workers.has_right:
        label = workers.place.label
        lines = [f': "${{JOBQ_URL:?has to hold the right to use {label}, in the environment of sbatch}}"']
    else:
        lines = [f"export JOBQ_URL={shlex.quote(workers.place.label)}"]
    if workers.signed:
        lines.append(': "${JOBQ_SIGNING_KEYS:?has to be set in the environment of sbatch}"')
    return lines
