"""The messages of ai4s-jobq 3.x, which are plain JSON: to calls, and back to the same JSON with a retry less.

An old worker may stand beside ours, so a message stays what it was wherever it can. What our protocol must remember beside it
(marks, deaths, the checkpoint ...) goes into one more member, `jobq`, which old workers do not read, and drop when they write the
message anew. Whatever the text is, it ends in a call, in Malformed or in Unfit. Nothing in it is signed: where there are keys,
`wire.py` refuses it.

Next: back to `wire.py`; `old_letters.py` for what 3.x had given up.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from typing import Any

from . import layout
from .codec import codec_of
from .errors import DeclarationError, Malformed, NotSerializable, Unfit
from .fields import MAX_COUNT, from_map, to_map
from .message import SHELL_TASK, V3_TASK, Call, Checkpoint, Version3
from .transports.base import MAX_BODY_BYTES, Delivery

log = logging.getLogger("ai4s.jobq")

VERSIONS = (0, 1)
OURS, MESSAGE = "jobq", "msg-"
MESSAGE_ID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")  # of Azure's queues
SHELL_NAMES = frozenset({"cmd", "env", "bg_dirsync_to", "cwd"})
"""The keyword arguments of 3.x's `ShellCommandProcessor`. With no others, and a `cmd`, a message is shell work."""

LEFT_BEHIND = frozenset({"_job_id", "_worker_id"})
"""What an old worker adds to the keyword arguments before it runs them; they stay there when it puts the message back."""


def message_call_id(message_id: str, app: str = "", queue: str = "") -> str:
    """The id of a call that came as such a message: the message's where that is one of Azure's, else a hash of all."""
    if MESSAGE_ID.fullmatch(message_id):
        return f"msg-{message_id.replace('-', '').lower()}"
    return f"msg-{layout.sha256_of(chr(0).join((app, queue, message_id)).encode())[:32]}"


def old_letters_queue(app: str, queue: str) -> str:
    """Where 3.x put the tasks of a queue that had failed."""
    return f"{layout.queue_name(app, queue)}-failed"


@dataclass(frozen=True, slots=True)
class Notes:
    """What we remember beside such a message, as in Call. `call` stands where the id does not follow from the message's own."""

    call: str | None = None
    run: int = 1
    resent: bool = False
    errors: int = 0
    deaths: int = 0
    preemptions: int = 0
    alone: bool = False
    mark: str | None = None
    checkpoint: Checkpoint | None = None
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A message of 3.x: what it says, the keyword arguments in it, the retries that are left, and our notes."""

    said: Version3
    kwargs: dict[str, Any]
    num_retries: int
    notes: Notes

    @property
    def is_shell(self) -> bool:
        """Whether this is a command for the shell."""
        others = (self.kwargs.get(name) for name in ("bg_dirsync_to", "cwd"))
        is_known = isinstance(self.kwargs.get("cmd"), str) and self.kwargs.keys() <= SHELL_NAMES | LEFT_BEHIND
        return is_known and isinstance(self.kwargs.get("env"), dict | None) and all(isinstance(each, str | None) for each in others)


def is_version3(text: str) -> bool:
    """Whether a message's text is JSON; ours is base64."""
    return text.startswith("{")


def parse(text: str) -> Parsed:
    """Read a message's text. Raises Malformed, and Unfit for a later version."""
    fields = _json_object(text)
    version = _field(fields, "version", int)
    if version not in VERSIONS:
        raise Unfit(f"It is JSON of version {str(version)[:20]}, and this process knows those of ai4s-jobq 3.x, 0 and 1.")
    num_retries = _field(fields, "num_retries", int)
    notes = _notes(fields)
    if abs(num_retries) + notes.errors + notes.deaths + notes.preemptions >= MAX_COUNT:
        raise Malformed("Its num_retries is out of all bounds, or what it says of earlier attempts.")
    kwargs = _field(fields, "kwargs", str)
    said = Version3(version, _field(fields, "id", str), kwargs, version == 1 and _field(fields, "reply_requested", bool))
    return Parsed(said, _json_object(kwargs), num_retries, notes)


def unseal(delivery: Delivery, *, app: str, queue: str) -> Call:
    """The call in a message that came from `queue`. Raises Malformed, Unfit."""
    parsed = parse(delivery.body)
    notes = parsed.notes
    name, kwargs = (SHELL_TASK, _shell_arguments(parsed.kwargs)) if parsed.is_shell else (V3_TASK, parsed.kwargs)
    codec = "shell" if parsed.is_shell else "msgpack"
    try:
        arguments = codec_of(codec).dumps(((), kwargs)).data
    except NotSerializable as exc:
        raise Malformed(f"Its keyword arguments cannot be handed on: {exc}") from exc
    return Call(
        id=notes.call or message_call_id(delivery.receipt.message_id, app, queue),
        task=name,
        queue=queue,
        arguments=arguments,
        sent=delivery.inserted,
        run=notes.run,
        codec=codec,
        # In Call, `retries` is the whole budget; here it is what is left.
        retries=max(0, parsed.num_retries) + notes.errors,
        eta=notes.eta,
        resent=notes.resent,
        errors=notes.errors,
        deaths=notes.deaths,
        preemptions=notes.preemptions,
        alone=notes.alone,
        mark=notes.mark,
        checkpoint=notes.checkpoint,
        version3=parsed.said,
    )


def seal(call: Call) -> str | None:
    """The text of a call that came as a message of 3.x; None, which the log says, if it has grown too long for one."""
    assert call.version3 is not None
    notes = Notes(
        call=call.id,
        run=call.run,
        resent=call.resent,
        errors=call.errors,
        deaths=call.deaths,
        preemptions=call.preemptions,
        alone=call.alone,
        mark=call.mark,
        checkpoint=call.checkpoint,
        eta=call.eta,
    )
    written = _written(call.version3, call.retries - call.errors, notes)
    if len(written) <= MAX_BODY_BYTES:
        return written
    log.warning(
        "Call %s goes on in this version's format, which workers of ai4s-jobq 3.x cannot read: with what must be remembered of it, "
        "its message would be larger than %d bytes.", call.id, MAX_BODY_BYTES,
    )  # fmt: skip
    return None


def resent(parsed: Parsed, call: str, num_retries: int) -> str:
    """The text of a task that had failed under 3.x, to be sent again as `call`: however often it is sent, it is run once."""
    again = _written(parsed.said, num_retries, Notes(call=call, resent=True))
    # Without our notes it is what it was, which fits; then it may run twice, as it might have under 3.x.
    return again if len(again) <= MAX_BODY_BYTES else _written(parsed.said, num_retries, Notes())


def text(kwargs: dict[str, Any] | str, num_retries: int = 0, id: str | None = None) -> str:
    """The text of a message for workers of ai4s-jobq 3.x, to the letter as its client writes it.

    Args:
        kwargs: a shell command, or the keyword arguments of the worker's `Processor`, which JSON can hold.
        num_retries: further attempts after a failure.
        id: a name for it; the MD5 of all the rest unless given, so that equal messages have equal ids.

    Raises NotSerializable for what JSON cannot hold, DeclarationError for a message that no queue takes.
    """
    named = {"cmd": kwargs} if isinstance(kwargs, str) else kwargs
    try:
        said = {"version": 1, "reply_requested": False, "kwargs": json.dumps(named), "num_retries": num_retries}
    except (TypeError, ValueError, RecursionError) as exc:
        raise NotSerializable(f"A message of ai4s-jobq 3.x is JSON, which cannot hold these arguments: {exc}") from exc
    digest = hashlib.md5(json.dumps(said).encode(), usedforsecurity=False).hexdigest()
    made = json.dumps({**said, "id": id or digest})
    if len(made) > MAX_BODY_BYTES:
        raise DeclarationError(
            f"A message of ai4s-jobq 3.x holds at most {MAX_BODY_BYTES} bytes, and this one has {len(made)}: "
            "put the data in a file or a blob that the worker can read, and pass its name."
        )
    return made


def _written(said: Version3, num_retries: int, notes: Notes) -> str:
    fields: dict[str, object] = {"version": said.version}
    if said.version:
        fields["reply_requested"] = said.reply_requested
    fields |= {"kwargs": said.kwargs, "num_retries": num_retries, "id": said.id}
    remembered = to_map(notes)
    return json.dumps(fields | ({OURS: remembered} if remembered else {}))


def _shell_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """As 3.x took them: an environment's values become strings, and what is null or empty, but for the command, was not said."""
    said = {name: value for name, value in kwargs.items() if name == "cmd" or (name in SHELL_NAMES and value)}
    if "env" in said:
        said["env"] = {name: value if isinstance(value, str) else str(value) for name, value in said["env"].items()}
    return said


def _notes(fields: dict[str, Any]) -> Notes:
    notes = from_map(Notes, _field(fields, OURS, dict)) if OURS in fields else Notes()
    if notes.run < 1 or not (notes.call or MESSAGE).startswith(MESSAGE):
        raise Malformed(f"Its {OURS!r} speaks of no run of a message.")
    return notes


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_sound)
    except (ValueError, RecursionError) as exc:
        raise Malformed(f"It begins like a message of ai4s-jobq 3.x, and is not sound JSON ({type(exc).__name__}).") from exc
    if not isinstance(found, dict):
        raise Malformed("It begins like a message of ai4s-jobq 3.x, whose keyword arguments are no JSON object.")
    return found


def _sound(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    for text in (*fields, *(value for value in fields.values() if isinstance(value, str))):
        text.encode()  # raises a ValueError for half a surrogate, which JSON can spell, and nothing else can hold
    return fields


def _field(fields: dict[str, Any], name: str, wanted: type) -> Any:
    value = fields.get(name)
    if type(value) is not wanted:
        raise Malformed(f"It begins like a message of ai4s-jobq 3.x, whose {name!r} is missing or not what it should be.")
    return value
