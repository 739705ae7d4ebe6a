"""What the shell offers after Tab: verbs, also where TARGET may stand, and the names of tasks.

Nothing here may fail, print or ask a storage: a shell is waiting, and shows whatever is written.

Next: `grammar.py`, whose table of verbs is offered.
"""

from __future__ import annotations

import contextlib
import io

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from ..config import read_settings
from .target import Chosen

BREAKS = frozenset(":=")
"""Where bash ends a word beside blanks; a target has a colon."""


def verbs(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The verbs that begin so, since TARGET may be left out."""
    assert isinstance(context.command, click.Group)
    return [CompletionItem(name) for name in context.command.list_commands(context) if name.startswith(incomplete)]


def tasks(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the tasks of MODULE:APP that begin so, without their module."""
    names: list[str] = []
    # The module is the user's: it may print, and raise anything.
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        chosen = Chosen(context.parent.params.get("target") or "" if context.parent else "")
        if chosen.target().module is not None:
            names = [name.rpartition(".")[2] for name in chosen.open(create=False).tasks]
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]


@add_completion_class
class Bash(BashComplete):
    """Bash, which hands over `myproj.tasks:app` as three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is completed, and that one."""
        environ = read_settings().environ
        words, at = split_arg_string(environ["COMP_WORDS"]), int(environ["COMP_CWORD"])
        return _joined(words[1:at]), words[at] if at < len(words) else ""


def _joined(words: list[str]) -> list[str]:
    """Words as the user wrote them.

    >>> _joined(["azure", "://", "acct/app", "push", "--key", "=", "a"])
    ['azure://acct/app', 'push', '--key=a']
    """
    joined: list[str] = []
    glued = False
    for word in words:
        breaks = word[0] in BREAKS if word else False
        if joined and (breaks or glued):
            joined[-1] += word
        else:
            joined.append(word)
        glued = breaks and not word.strip(":=/")
    return joined
