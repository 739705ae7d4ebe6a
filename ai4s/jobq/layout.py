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

WORKERS, RETRIES, CHECKPOINTS, CONTROL = "workers/", "retries/", "checkpoints/", "control/"
RESULTS, ARGUMENTS, VALUES, KEYS, DEAD_LETTERS = "results/", "args/", "values/", "keys/", "failed/"
"""Prefixes that are listed."""

CALLS_PER_PAGE = 4096
"""Outcomes under one prefix: one listing request, which holds up to 5,000 names, tells of them all."""

CALL_ID = re.compile(r"(?P<client>[a-z2-7]{16})-(?P<n>[0-9]{12})|key-(?P<hash>[0-9a-f]{40})")
RELATIVE = re.compile(r"[a-z0-9-]{1,100}(\.[0-9]{1,20})?")
"""A call's id, or `<batch>.<index>`, where it only says whose child a call is."""

OUTCOME = re.compile(
    r"results/(?:(?P<client>[a-z2-7]{16})/[0-9]{9}/(?P<n>[0-9]{12})|key/[0-9a-f]{2}/(?P<hash>[0-9a-f]{40}))(?:\.r(?P<run>[0-9]{1,9}))?"
)
CLIENT_LETTERS = "234567abcdefghijklmnopqrstuvwxyz"
"""What a client's name, and `key`, may begin with."""

PART = re.compile(r"[A-Za-z0-9-]{1,100}")
LETTER = re.compile(r"failed/(?P<queue>[A-Za-z0-9-]+)/(?P<subject>[A-Za-z0-9-]+)\.r(?P<run>[0-9]{1,9})")
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
    """The storage queue behind an app's queue.

    >>> queue_name("myproj", "default"), queue_name("myproj", "gpu")
    ('myproj', 'myproj-gpu')
    """
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


def is_keyed(call: str) -> bool:
    """Whether this is the id of a call with a key."""
    return call.startswith("key-")


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
    """The outcome of a run.

    >>> result("abcdefgh234567ab-000000004097", 2)
    'results/abcdefgh234567ab/000000001/000000004097.r2'
    """
    match, page = check_call_id(call), result_page(call)
    suffix = "" if run == 1 else f".r{run}"
    if page is None:
        return f"results/key/{match['hash'][:2]}/{match['hash']}{suffix}"
    return f"{page}{match['n']}{suffix}"


def run_of(result_name: str) -> tuple[str, int] | None:
    """The call and run whose outcome has this name; None if it is no outcome's."""
    match = OUTCOME.fullmatch(result_name)
    if match is None:
        return None
    call = keyed_call_id(match["hash"]) if match["hash"] else call_id(match["client"], int(match["n"]))
    return call, int(match["run"] or 1)


def call_of(name: str, folder: str) -> str | None:
    """The call whose id this name has after `folder`; None if there is none."""
    match = CALL_ID.match(name, len(folder))
    return match[0] if match else None


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


def letters(queue: str | None = None) -> str:
    """The prefix of the dead letters of a queue, or of all queues."""
    return f"{DEAD_LETTERS}{_part(queue)}/" if queue else DEAD_LETTERS


def letter_parts(name: str) -> tuple[str, str, int]:
    """Queue, subject and run of a dead letter of this name; raises Malformed if it is none's."""
    match = LETTER.fullmatch(name)
    if not match:
        raise Malformed(f"{name[:200]!r} is not the name of a dead letter.")
    return match["queue"], match["subject"], int(match["run"])


def retries_beside(call: str) -> str:
    """The prefix of the retry records of this call and of all others of its client, or of all calls with a key."""
    match = check_call_id(call)
    return f"{RETRIES}{match['client'] or 'key'}-"


def retry(call: str, run: int) -> str:
    """The record that this run of a call, 2 or later, was asked for."""
    check_call_id(call)
    return f"{RETRIES}{call}.r{run}"


def retries(call: str) -> str:
    """The prefix of all records that a later run of a call was asked for."""
    check_call_id(call)
    return f"{RETRIES}{call}.r"


def checkpoint(call: str, token: str, number: int) -> str:
    """The n-th checkpoint that one attempt saved."""
    return f"{checkpoints(call)}{_part(token)}-{number}"


def checkpoints(call: str) -> str:
    """The prefix of all checkpoints of a call."""
    check_call_id(call)
    return f"{CHECKPOINTS}{call}/"


def control(queue: str) -> str:
    """What the workers of a queue are told."""
    return f"{CONTROL}{_part(queue)}"


def run_id(call: str, run: int) -> str:
    """A run of a call as one word: in records, and at the end of names."""
    return f"{call}.r{run}"


def key(call: str) -> str:
    """The record of a key: what it was used with, and whether its call was sent."""
    check_call_id(call)
    return f"keys/{call}"


def worker(worker_id: str) -> str:
    """A worker's status."""
    return f"{WORKERS}{_part(worker_id)}"
