"""The names of everything in storage, in one place. Nothing else in the project spells one.

All names are made from an app's name, a queue's name, a call's id and digests, which are checked where they enter:
so no name can leave its folder. A call's id is `<client>-<n>`, `key-<hash>` if it has a key, `msg-<id>` if it is a message of 3.x.

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
RESULTS, ARGUMENTS, VALUES, KEYS, DEAD_LETTERS, BATCHES = "results/", "args/", "values/", "keys/", "failed/", "batches/"
PAYLOADS, PROBES, LOGS = "payloads/", "doctor/", "logs/"
"""Prefixes that are listed."""

CALLS_PER_PAGE = 4096
"""Outcomes under one prefix: one listing request, which holds up to 5,000 names, tells of them all."""

CALL_ID = re.compile(r"(?P<client>[a-z2-7]{16})-(?P<n>[0-9]{12})|key-(?P<hash>[0-9a-f]{40})|msg-(?P<message>[0-9a-f]{32})")
RELATIVE = re.compile(r"[a-z0-9-]{1,100}(\.[0-9]{1,20})?")
"""A call's id, or `<batch>.<index>`, where it only says whose child a call is."""

BATCH_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
MAX_BATCH_LENGTH = 60
PACKED_ID = re.compile(r"(?P<batch>[a-z0-9]+(?:-[a-z0-9]+)*)\.(?P<index>[0-9]{1,15})")
"""A call of a batch: `<batch>.<index>`."""

LOG = re.compile(r"(?P<pack>[0-9]{6,9})(?:\.r[0-9]{1,6})?(?:\.[0-9]{6,9}){0,80}")
"""A pack's log; `.r<k>` for the k-th retry of what failed, `.<seq>` for what an entry of another log gave away."""

ENTRY = re.compile(r"batches/(?P<batch>[a-z0-9-]+)/log/(?P<log>[0-9r.]+)/(?P<seq>[0-9]{6,9})")
INPUT = re.compile(r"batches/(?P<batch>[a-z0-9-]+)/in/(?P<pack>[0-9]{6,9})")

OUTCOME = re.compile(
    r"results/(?:(?P<client>[a-z2-7]{16})/[0-9]{9}/(?P<n>[0-9]{12})|(?P<kind>key|msg)/[0-9a-f]{2}/(?P<hash>[0-9a-f]{32,40}))"
    r"(?:\.r(?P<run>[0-9]{1,9}))?"
)
"""Outcomes are in the order of their calls' ids."""

CLIENT_LETTERS = "234567abcdefghijklmnopqrstuvwxyz"
"""What a client's name, `key` and `msg` may begin with."""

RETRY_OF_ENTRY = re.compile(r"[0-9]{6,9}(?:\.r(?P<retry>[0-9]{1,6}))?(?:\.[0-9]+)*")
BATCH_LETTER = re.compile(r"failed/(?P<queue>[A-Za-z0-9-]+)/(?P<batch>[a-z0-9]+(?:-[a-z0-9]+)*)")
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
    """The storage queue behind an app's queue: `myproj` for its default one, `myproj-gpu` for "gpu"."""
    return app if queue == DEFAULT_QUEUE else f"{app}-{queue}"


def queue_of(app: str, name: str, owner: str) -> str | None:
    """Which queue of the app a storage queue is that names `owner`, or nobody: ai4s-jobq 3.x named none. None for another's."""
    if name == app:
        return DEFAULT_QUEUE if owner in (app, "") else None
    return name.removeprefix(f"{app}-") if owner == app and name.startswith(f"{app}-") else None


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


def check_owner(call: str) -> None:
    """Raise Malformed unless `call` is the id of a call, alone or in a batch."""
    if not PACKED_ID.fullmatch(call):
        check_call_id(call)


def packed_call_id(batch: str, index: int) -> str:
    """The id of a call in a batch."""
    return f"{check_batch_id(batch)}.{index}"


def batch_of(call: str) -> str | None:
    """The batch that a call belongs to, if it does to one."""
    match = PACKED_ID.fullmatch(call)
    return match["batch"] if match else None


def check_batch_id(batch: str) -> str:
    """`batch` if it can be the id of a batch; raises Malformed."""
    if not BATCH_ID.fullmatch(batch) or len(batch) > MAX_BATCH_LENGTH:
        raise Malformed(f"{batch[:80]!r} is not the id of a batch.")
    return batch


def result_page(call: str) -> str | None:
    """The prefix under which the outcome of this call and its neighbours lie; None for one that has no neighbours."""
    if PACKED_ID.fullmatch(call):
        return None
    match = check_call_id(call)
    return f"results/{match['client']}/{int(match['n']) // CALLS_PER_PAGE:09d}/" if match["client"] else None


def result(call: str, run: int) -> str:
    """The outcome of a run: results/abcdefgh234567ab/000000001/000000004097.r2, say, or results/key/<2 hex>/<hash>."""
    check_call_id(call)
    kind, _, name = call.partition("-")
    return f"{result_page(call) or f'results/{kind}/{name[:2]}/'}{name}{'' if run == 1 else f'.r{run}'}"


def run_of(result_name: str) -> tuple[str, int] | None:
    """The call and run whose outcome has this name; None if it is no outcome's."""
    match = OUTCOME.fullmatch(result_name)
    if match is None:
        return None
    call = f"{match['kind']}-{match['hash']}" if match["kind"] else call_id(match["client"], int(match["n"]))
    return (call, int(match["run"] or 1)) if CALL_ID.fullmatch(call) else None


def call_of(name: str, folder: str) -> str | None:
    """The call whose id this name has after `folder`; None if there is none."""
    match = CALL_ID.match(name, len(folder))
    return match[0] if match else None


def arguments(call: str) -> str:
    """Spilled arguments of a call."""
    check_owner(call)
    return f"args/{call}"


def value(call: str, token: str) -> str:
    """The spilled value of one attempt."""
    check_owner(call)
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
    """The prefix of the retry records of this call and of all others of its client, or of its kind where it has none."""
    check_call_id(call)
    return f"{RETRIES}{call.partition('-')[0]}-"


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
    check_owner(call)
    return f"{CHECKPOINTS}{call}/"


def call_log(call: str, attempt: tuple[int, int, float], token: str) -> str:
    """What one attempt (its run, its number, when it began) has said; names are in the order of attempts."""
    return f"{call_logs(call)}{attempt[0]:04d}-{attempt[1]:04d}-{attempt[2]:010.0f}-{_part(token)}"


def call_logs(call: str) -> str:
    """The prefix of what all attempts of a call have said."""
    check_owner(call)
    return f"{LOGS}{call}/"


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


def batch(batch_id: str) -> str:
    """The prefix of all that lies there for a batch, apart from what its calls spilled."""
    return f"{BATCHES}{check_batch_id(batch_id)}/"


def batch_meta(batch_id: str) -> str:
    """What the calls of a batch have in common."""
    return f"{batch(batch_id)}meta"


def batch_total(batch_id: str) -> str:
    """How many calls a batch has."""
    return f"{batch(batch_id)}total"


def batch_arguments(batch_id: str, sha256: str) -> str:
    """Large arguments of a call of a batch, whose index is open yet, or the keyword arguments of all; Malformed for no SHA-256."""
    if not SHA256.fullmatch(sha256):
        raise Malformed(f"{sha256[:80]!r} is not a SHA-256 digest.")
    return f"{batch(batch_id)}args/{sha256}"


def batch_cancelled(batch_id: str) -> str:
    """The request to cancel a batch."""
    return f"{batch(batch_id)}cancelled"


def batch_retries(batch_id: str) -> str:
    """The prefix of the requests to run a batch's failures again."""
    return f"{batch(batch_id)}retries/"


def batch_retry(batch_id: str, number: int) -> str:
    """The n-th request to run a batch's failures again, from 1 on."""
    return f"{batch_retries(batch_id)}{number:06d}"


def pack_inputs(batch_id: str) -> str:
    """The prefix of the inputs of all packs of a batch."""
    return f"{batch(batch_id)}in/"


def pack_input(batch_id: str, pack: int) -> str:
    """The arguments of a pack's calls."""
    return f"{pack_inputs(batch_id)}{pack:06d}"


def root_log(pack: int, retry: int = 0) -> str:
    """The log of a pack, or of the n-th retry of what failed of it."""
    return f"{pack:06d}.r{retry}" if retry else f"{pack:06d}"


def child_log(log: str, seq: int) -> str:
    """The log of what the entry `seq` of `log` gave away."""
    return f"{log}.{seq:06d}"


def check_log(log: str) -> str:
    """`log` if it can be the name of a pack's log; raises Malformed."""
    if not LOG.fullmatch(log):
        raise Malformed(f"{log[:80]!r} is not the name of a log.")
    return log


def log_entries(batch_id: str) -> str:
    """The prefix of all log entries of a batch."""
    return f"{batch(batch_id)}log/"


def log_entry(batch_id: str, log: str, seq: int) -> str:
    """An entry of a pack's log."""
    return f"{log_entries(batch_id)}{check_log(log)}/{seq:06d}"


def batch_letter(queue: str, batch_id: str) -> str:
    """The dead letter that says that a batch has failures, which its log tells."""
    return f"{DEAD_LETTERS}{_part(queue)}/{check_batch_id(batch_id)}"


def batch_letter_parts(name: str) -> tuple[str, str] | None:
    """Queue and batch of a batch's dead letter of this name; None if it is none's."""
    match = BATCH_LETTER.fullmatch(name)
    return (match["queue"], match["batch"]) if match and len(match["batch"]) <= MAX_BATCH_LENGTH else None


def retry_of_entry(name: str) -> int | None:
    """Of which retry's log the entry of this name is, 0 for the first run; None if it is no entry's."""
    parts = entry_parts(name)
    match = RETRY_OF_ENTRY.fullmatch(parts[0]) if parts else None
    return int(match["retry"] or 0) if match else None


def entry_parts(name: str) -> tuple[str, int] | None:
    """The log and the number of the log entry of this name; None if it is no entry's."""
    match = ENTRY.fullmatch(name)
    return (match["log"], int(match["seq"])) if match and LOG.fullmatch(match["log"]) else None
