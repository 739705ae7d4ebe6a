"""What a person may know of a call or a message at a glance, without running anything of it: a pickle is never opened.

Arguments in a safe codec are decoded and shown; of a command its text, and of its environment the names alone, as values are often
secrets. All that comes from a message is made fit to be shown.

Next: `queues.py`, which peeks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .. import version3
from ..codec import codec_of
from ..errors import JobQError, MessageError, SignatureInvalid
from ..message import SHELL_TASK, V3_TASK, Call, PackHeader, Spill
from ..printable import describe, printable
from ..ranges import from_text
from ..wire import Wire

MAX_SHOWN_CHARS = 300
"""Of a call's arguments: a few lines of a terminal."""

Kind = Literal["call", "pack", "unreadable"]


@dataclass(frozen=True, slots=True)
class Peeked:
    """A message that waits in a queue.

    `kind`: "call", "pack" (some calls of a batch) or "unreadable", and then `why` says why. `id` is the call's or the batch's; of a
    message of ai4s-jobq 3.x, which says so in `version3`, the id that its sender gave it. `calls` is how many are still to be done,
    `attempt` the number of the next attempt. `sent` and `eta` are in epoch seconds by the server's clock.
    """

    kind: Kind
    id: str = ""
    task: str = ""
    run: int = 1
    attempt: int = 1
    calls: int = 1
    sent: float | None = None
    eta: float | None = None
    arguments: str = ""
    why: str = ""
    version3: bool = False


def peeked(text: str, queue: str, wire: Wire) -> Peeked:
    """What lies in a message; of whatever kind it is, this raises nothing."""
    try:
        if version3.is_version3(text):
            if wire.keyring:
                raise SignatureInvalid("It is a message of ai4s-jobq 3.x, which nobody has signed, and this app has a signing key.")
            return _of_version3(version3.parse(text))
        found = wire.unseal_message(text, queue)
    except MessageError as exc:
        return Peeked("unreadable", why=printable(f"{type(exc).__name__}: {exc}"))
    return _of_pack(found) if isinstance(found, PackHeader) else _of_call(found)


def _of_call(call: Call) -> Peeked:
    return Peeked(
        "call",
        id=call.id,
        task=printable(call.task),
        run=call.run,
        attempt=call.attempt,
        sent=call.sent,
        eta=call.eta,
        arguments=arguments_of(call),
    )


def _of_pack(pack: PackHeader) -> Peeked:
    return Peeked(
        "pack",
        id=pack.batch,
        run=pack.run,
        calls=len(from_text(pack.todo, pack.indices)),
        sent=pack.sent,
        eta=pack.not_before,
        arguments=f"calls {pack.todo}"[:MAX_SHOWN_CHARS],
    )


def _of_version3(parsed: version3.Parsed) -> Peeked:
    notes = parsed.notes
    return Peeked(
        "call",
        id=printable(notes.call or parsed.said.id),
        task=SHELL_TASK if parsed.is_shell else V3_TASK,
        run=notes.run,
        attempt=1 + notes.errors + notes.deaths + notes.preemptions,
        eta=notes.eta,
        arguments=_shown((), parsed.kwargs, is_command=parsed.is_shell),
        version3=True,
    )


def arguments_of(call: Call) -> str:
    """A call's arguments for a person: their values where the codec is safe, else how large they are."""
    if isinstance(call.arguments, Spill):
        return f"({call.arguments.size:,} bytes in a blob)"
    try:
        codec = codec_of(call.codec)
        if codec.allows_pickle:
            return f"({len(call.arguments):,} bytes of {codec.name})"
        args, kwargs = codec.loads(call.arguments)
        return _shown(tuple(args), dict(kwargs), is_command=call.task == SHELL_TASK)
    except (JobQError, TypeError, ValueError) as exc:
        return f"({len(call.arguments):,} bytes that cannot be read: {describe(exc)[:MAX_SHOWN_CHARS]})"


def _shown(args: tuple[Any, ...], kwargs: dict[str, Any], *, is_command: bool) -> str:
    if is_command:
        kwargs = dict(kwargs)
        command, env = kwargs.pop("cmd", args[0] if args else ""), kwargs.pop("env", None) or {}
        names = f"  (env: {', '.join(map(str, env))})" if env else ""
        return _cut(f"{command}{names}")
    said = (*(repr(value) for value in args), *(f"{name}={value!r}" for name, value in kwargs.items()))
    return _cut(", ".join(said))


def _cut(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= MAX_SHOWN_CHARS else f"{shown[: MAX_SHOWN_CHARS - 1]}…"
