"""The grammar `jobq [OPTIONS] TARGET VERB …`: the target is left out where the first word is a verb, and verbs load when used.

Next: `target.py` for what TARGET means.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class Verbs(click.Group):
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put an empty target before a first word that is a verb: no target looks like one, for each has a colon or a slash."""
        place = self._first_word(args)
        if place < len(args) and args[place] in self._verbs:
            args = [*args[:place], "", *args[place:]]
        return super().parse_args(ctx, args)

    def _first_word(self, args: list[str]) -> int:
        """The index of the first argument that is neither an option of the group nor an option's value."""
        takes_value = {
            name for p in self.params if isinstance(p, click.Option) and not p.is_flag and not p.count for name in p.opts
        }
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] != "--":
            place += 2 if args[place] in takes_value else 1
        return place
