"""`doctor`: what is wrong with a setup, and what to do.

Next: `../doctor/`, which finds it.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click

from ..config import read_settings
from ..layout import DEFAULT_QUEUE, check_queue_name
from .output import json_option, note, told
from .target import Chosen

if TYPE_CHECKING:
    from ..app import App
    from ..doctor import Finding

ROLES = ("producer", "worker", "looker")
COLOURS = {"ok": "green", "warning": "yellow", "FAILED": "red"}
CHECK_WIDTH = 24


@click.command(
    "doctor",
    short_help="Find out what is wrong with the setup.",
    epilog="Exit codes: 0 all is well, or there are warnings; 1 something failed; 2 wrong usage or setup.",
)
@click.option("--role", type=click.Choice(ROLES), multiple=True, help="Whose rights must be there; all unless given.")
@click.option("--queue", default=DEFAULT_QUEUE, show_default=True, metavar="NAME", help="The queue to try rights on.")
@click.option("--create", is_flag=True, help="Make queue and container first, where they are missing.")
@json_option
@click.pass_obj
def verb(chosen: Chosen, role: tuple[str, ...], queue: str, *, create: bool, as_json: bool) -> int:
    """Check target, versions, network, credentials, clock and rights, and look at what lies there; say what to do.

    Rights are really tried, in a way that no worker notices, and all that was put is removed again.

    \b
    Examples:
      jobq myaccount/myproj doctor
      jobq myaccount/myproj doctor --role producer
      jobq myproj.tasks:app doctor --create --json
    """
    app = chosen.open(create=create)
    check_queue_name(app.name, queue)
    verdicts = asyncio.run(_examined(app, role or ROLES, queue, create=create, as_json=as_json))
    failures, warnings = verdicts.count("FAILED"), verdicts.count("warning")
    if not as_json:
        warned = "1 warning" if warnings == 1 else f"{warnings} warnings"
        note(f"{failures} failed, {warned}." if failures or warnings else "All is well.")
    return 1 if failures else 0


async def _examined(app: App, roles: tuple[str, ...], queue: str, *, create: bool, as_json: bool) -> list[str]:
    from ..doctor import Wanted, examine

    verdicts: list[str] = []
    async for finding in examine(app.client, read_settings(), Wanted(roles, queue, create)):
        verdicts.append(finding.verdict)
        _show(finding, as_json=as_json)
    return verdicts


def _show(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        said = {"check": finding.check, "verdict": finding.verdict.lower(), "said": finding.said, "advice": finding.advice}
        click.echo(json.dumps(said))
        return
    verdict = click.style(f"{finding.verdict:<8}", fg=COLOURS[finding.verdict])
    advice = f" — {told(finding.advice)}" if finding.advice else ""
    click.echo(f"{verdict}{told(finding.check):<{CHECK_WIDTH}} {told(finding.said)}{advice}")
