"""The grammar `jobq [OPTIONS] TARGET VERB …`: the target is left out where the first word is a verb, and verbs load when used.

What a verb raises becomes one line and an exit code here, for all of them; a verb may also return its exit code.

Next: `target.py` for what TARGET means.
"""

from __future__ import annotations

import difflib
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from ..errors import AccessDenied, ConfigurationError, DeclarationError, JobQError, Unreachable
from ..printable import printable

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
PLACES = ("local", "azurite")
"""Words that a TARGET may begin with, and that would be mistaken for verbs."""


class Failed(click.ClickException):
    """An error as people see it: one line, and the exit code that goes with it."""

    exit_code = FAILED


class Misused(Failed):
    """Wrong usage or setup."""

    exit_code = MISUSED


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the library as one line and an exit code; with -v the traceback before it."""
    try:
        yield
    except JobQError as exc:
        if logging.getLogger("ai4s.jobq").isEnabledFor(logging.DEBUG):
            click.echo(traceback.format_exc(), err=True)
        is_misuse = isinstance(exc, ConfigurationError | DeclarationError)
        hint = " The verb `doctor` says what is wrong." if isinstance(exc, Unreachable | AccessDenied) else ""
        raise (Misused if is_misuse else Failed)(printable(str(exc)) + hint) from exc
    except KeyboardInterrupt:
        click.echo("\nInterrupted.", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


class Verb(click.Command):
    """A command that turns errors of the library into lines and exit codes, while it reads its options and while it runs."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options."""
        with translated():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what it returns is the exit code."""
        with translated():
            ctx.exit(super().invoke(ctx) or 0)


class Verbs(Verb, click.Group):
    """A group whose commands lie in other modules of this package, and whose first argument is the target.

    `verbs` names for each verb the module and the command in it.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of their table."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, imported now."""
        if cmd_name not in self._verbs:
            return None
        module, name = self._verbs[cmd_name]
        command = getattr(import_module(f"{__package__}.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb; raises UsageError that names the closest one."""
        if not ctx.resilient_parsing and args[0] not in self._verbs and not args[0].startswith("-"):
            raise click.UsageError(f"There is no verb {args[0]!r}.{self._meant(args[0])}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put an empty target before a first word that is a verb: no target looks like one, for each has a colon or a slash."""
        place = self._first_word(args)
        if place < len(args):
            word = args[place]
            if word in self._verbs:
                args = [*args[:place], "", *args[place:]]
            elif word.isidentifier() and not ctx.resilient_parsing:
                raise click.UsageError(f"{word!r} is no verb, and no TARGET, which has a colon or a slash.{self._meant(word)}", ctx)
            elif place + 1 == len(args) and not ctx.resilient_parsing:
                raise click.UsageError(f"No verb follows TARGET. There are: {', '.join(self._verbs)}.", ctx)
        return super().parse_args(ctx, args)

    def _meant(self, word: str) -> str:
        close = difflib.get_close_matches(word, self._verbs, n=1)
        if word in PLACES:
            return f" Did you mean {word}/APP?"
        return f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(self._verbs)}."

    def _first_word(self, args: list[str]) -> int:
        """The index of the first argument that is neither an option of the group nor an option's value."""
        takes_value = {
            name for p in self.params if isinstance(p, click.Option) and not p.is_flag and not p.count for name in p.opts
        }
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] != "--":
            place += 2 if args[place] in takes_value else 1
        return place
