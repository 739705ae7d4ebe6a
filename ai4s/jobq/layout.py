"""The names of everything in storage, in one place. Nothing else in the project spells one.

All names are made from an app's name, a queue's name, a call's id and digests, which are checked where they enter:
so no name can leave its folder. A call's id is `<client>-<n>`, or `key-<hash>` for a call with a key.

Next: `transports/base.py` for what can be done under these names.
"""

from __future__ import annotations

import hashlib
import re

from .errors import DeclarationError, Malformed

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MAX_QUEUE_LENGTH = 56
"""Azure takes 63 characters; `-failed` of ai4s-jobq 3.x and its like must still fit."""

DEFAULT_QUEUE = "default"
RESERVED_QUEUES = frozenset({"failed"})

CALLS_PER_PAGE = 4096
"""Outcomes under one prefix: one listing request, which holds up to 5,000 names, tells of them all."""

CALL_ID = re.compile(r"(?P<client>[a-z2-7]{16})-(?P<n>[0-9]{12})|key-(?P<hash>[0-9a-f]{40})")
RELATIVE = re.compile(r"[a-z0-9-]{1,100}(\.[0-9]{1,20})?")
"""A call's id, or `<batch>.<index>`, where it only says whose child a call is."""

PART = re.compile(r"[A-Za-z0-9-]{1,100}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def check_app_name(name: object) -> str:
    """`name` if an app can have it; else DeclarationError that says what would be right."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or not 3 <= len(name) <= MAX_QUEUE_LENGTH:
        raise DeclarationError(
            f"An app's name is 3 to {MAX_QUEUE_LENGTH} lower-case letters, digits and single hyphens, as in 'my-proj'; "
            f"got {name!r}{_suggestion(name, 3)}."
        )
    return name


def check_queue_name(app: str, queue: object) -> str:
    """`queue` if the app can have it; else DeclarationError that says what would be right."""
    if not isinstance(queue, str) or not NAME.fullmatch(queue):
        raise DeclarationError(
            f"A queue's name is lower-case letters, digits and single hyphens, as in 'gpu'; got {queue!r}{_suggestion(queue, 1)}."
        )
    if queue in RESERVED_QUEUES:
        raise DeclarationError(f"The queue name {queue!r} is reserved; take another one.")
    if len(queue_name(app, queue)) > MAX_QUEUE_LENGTH:
        longest = max(0, MAX_QUEUE_LENGTH - len(app) - 1)
        raise DeclarationError(
            f"The queue name {queue!r} is too long: with the app's name before it, {longest} characters are left."
        )
    return queue


def _suggestion(name: object, shortest: int) -> str:
    made = re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")[:MAX_QUEUE_LENGTH].strip("-")
    return f" (how about {made!r}?)" if isinstance(name, str) and made != name and len(made) >= shortest else ""


def queue_name(app: str, queue: str) -> str:
    """The storage queue behind an app's queue."""
    return app if queue == DEFAULT_QUEUE else f"{app}-{queue}"


def container_name(app: str) -> str:
    """The container that holds all of an app's blobs."""
    return f"jobq-{app}"


def call_id(client: str, n: int) -> str:
    """The id of the n-th call of a client."""
    return f"{client}-{n:012d}"


def keyed_call_id(digest: str) -> str:
    """The id of a call with a key, from the hash of app, task and key."""
    return f"key-{digest[:40]}"


def check_call_id(text: str) -> re.Match[str]:
    """The parts of a call's id; raises Malformed for anything else."""
    match = CALL_ID.fullmatch(text)
    if not match:
        raise Malformed(f"{text[:80]!r} is not the id of a call.")
    return match


def result_page(call: str) -> str | None:
    """The prefix under which the outcome of this call and its neighbours lie; None for a call with a key."""
    match = check_call_id(call)
    return f"results/{match['client']}/{int(match['n']) // CALLS_PER_PAGE:09d}/" if match["client"] else None


def result(call: str, run: int) -> str:
    """The outcome of a run."""
    match, page = check_call_id(call), result_page(call)
    suffix = "" if run == 1 else f".r{run}"
    if page is None:
        return f"results/key/{match['hash'][:2]}/{match['hash']}{suffix}"
    return f"{page}{match['n']}{suffix}"


def arguments(call: str) -> str:
    """Spilled arguments of a call."""
    check_call_id(call)
    return f"args/{call}"


def value(call: str, token: str) -> str:
    """The spilled value of one attempt."""
    check_call_id(call)
    return f"{values(call)}{_part(token)}"


def values(call: str) -> str:
    """The prefix of all spilled values of a call."""
    return f"values/{call}/"


def _part(text: str) -> str:
    """`text` if it can be one part of a name; raises Malformed."""
    if not PART.fullmatch(text):
        raise Malformed(f"{text[:80]!r} cannot be a part of a name in storage.")
    return text


def sha256_of(data: bytes) -> str:
    """The digest by which bytes are named and checked."""
    return hashlib.sha256(data).hexdigest()


def payload(sha256: str) -> str:
    """A function or module by value; raises Malformed unless it is a SHA-256 in hex."""
    if not SHA256.fullmatch(sha256):
        raise Malformed(f"{sha256[:80]!r} is not a SHA-256 digest.")
    return f"payloads/{sha256}"


def dead_letter(queue: str, subject: str, run: int) -> str:
    """The dead letter of a call's run, or of a message that could not be read (`subject` is its message id)."""
    return f"failed/{_part(queue)}/{_part(subject)}.r{run}"


def key(call: str) -> str:
    """The record of a key: what it was used with, and whether its call was sent."""
    check_call_id(call)
    return f"keys/{call}"


def worker(worker_id: str) -> str:
    """A worker's status."""
    return f"workers/{_part(worker_id)}"


WORKERS = "workers/"
