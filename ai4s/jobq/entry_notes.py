"""What a log entry says of itself in its metadata, so that one listing tells how a batch stands: how many calls ended in which way,
which ones, how long they took, what failed, and what it cost.

It is for onlookers. Nothing in how calls run may depend on it, it holds no more than MOST_BYTES whatever the outcomes are, and what
somebody spoilt, or an earlier version did not write, reads as unknown.

Next: `maps/tally.py`, which adds up the notes of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import compress, pairwise
from urllib.parse import quote, unquote

from . import requests_made
from .distribution import Distribution
from .errors import Malformed
from .message import BatchOrder
from .packing import Code, Packed, failure_type
from .ranges import spans
from .requests_made import Requests

MOST_BYTES = 6 * 1024
"""Names and values together. Azure takes 8 KiB of them."""

MOST_INDICES = 4200
"""Characters that say which calls ended how, all ways together."""

MOST_ERRORS, MOST_ERROR_BYTES = 8, 640
"""Types of exceptions that are named, and their characters; a type's name is cut to ERROR_CHARACTERS."""

ERROR_CHARACTERS = 60
SLOWEST = 5

ANY_INDEX = range(2**53)
Span = tuple[int, int]

_WAYS = ("ok", "ok", "bad", "off", "off")  # by Code
_COUNTED = {"failed": Code.FAILED, "cancelled": Code.CANCELLED, "expired": Code.EXPIRED}


@dataclass(frozen=True, slots=True)
class Written:
    """Who writes an entry, when (epoch seconds by the server's clock), and what it has asked of the storage since the last one."""

    worker: str
    at: float
    requests: Mapping[str, int]


def notes(outcomes: Sequence[Packed], given: int, written: Written) -> dict[str, str]:
    """The metadata of an entry that holds these outcomes and gives so many calls away."""
    ats, codes, attempts, seconds, _ = zip(*outcomes, strict=True) if outcomes else ((),) * len(Packed._fields)
    counted = {"done": len(outcomes), "gives": given}
    if max(codes, default=Code.VALUE) > Code.SPILLED:
        counted |= {name: codes.count(code) for name, code in _COUNTED.items()}
    made = {name: str(count) for name, count in counted.items() if count}
    made |= {"at": f"{written.at:.1f}", "worker": encoded(written.worker, 100)}
    made |= {"requests": requests_made.to_text(written.requests), "errors": _errors(outcomes) if "failed" in made else ""}
    made |= _times(ats, attempts, seconds) | _indices(ats, codes)
    return _bounded({name: text for name, text in made.items() if text})


def _times(ats: Sequence[int], attempts: Sequence[int], seconds: Sequence[float]) -> dict[str, str]:
    """How long the calls took that ran, and which took longest."""
    if not all(attempts):
        ats, seconds = list(compress(ats, attempts)), list(compress(seconds, attempts))
    times = Distribution()
    times.add_all(seconds)
    # Of thousands only a few are looked at one by one.
    least = min(nlargest(SLOWEST, seconds), default=0.0)
    slowest = nlargest(SLOWEST, [(took, at) for took, at in zip(seconds, ats, strict=True) if took >= least])
    return {"runs": times.to_text(), "slow": " ".join(f"{at}:{took:.4g}" for took, at in slowest)}


def _errors(outcomes: Sequence[Packed]) -> str:
    """The types of what failed, the most frequent first. Equal failures are looked at once."""
    failures = Counter(outcome.data for outcome in outcomes if outcome.code == Code.FAILED)
    found = Counter[str]()
    for data, count in failures.items():
        found[failure_type(data)] += count
    told, length = [], 0
    for name, count in found.most_common(MOST_ERRORS):
        text = f"{encoded(name, ERROR_CHARACTERS)}={count}"
        length += len(text) + 1
        if length <= MOST_ERROR_BYTES:
            told.append(text)
    return " ".join(told)


def encoded(text: str, most_characters: int) -> str:
    """A text as metadata can hold it, of no more characters than this once it is encoded, and cut where it is longer."""
    cut = text[:most_characters]
    while len(told := quote(cut, safe="", errors="replace")) > most_characters:
        cut = cut[:-1] if len(told) <= 2 * most_characters else cut[: len(cut) // 2]
    return told


def decoded(text: str) -> str:
    """What `encoded` was given, as far as it was kept; never raises."""
    return unquote(text, errors="replace")


def _indices(ats: Sequence[int], codes: Sequence[int]) -> dict[str, str]:
    """Which calls ended how. What is too long is left out; `ends` then says which these are together."""
    told, room = {}, MOST_INDICES
    texts = {way: _text(indices, MOST_INDICES) for way, indices in _by_way(ats, codes).items()}
    for way, text in sorted(texts.items(), key=lambda item: len(item[1] or "")):
        if text is not None and len(text) <= room:
            told[way] = text
            room -= len(text)
    if len(told) < len(texts):
        ends = _text(list(ats), room)
        told |= {"ends": ends} if ends else {}
    return told


def _by_way(ats: Sequence[int], codes: Sequence[int]) -> dict[str, list[int]]:
    if not any(codes):  # by far the most common
        return {"ok": list(ats)} if ats else {}
    places: dict[str, list[int]] = {}
    for at, code in zip(ats, codes, strict=True):
        places.setdefault(_WAYS[code], []).append(at)
    return places


def _text(indices: list[int], most_characters: int) -> str | None:
    """As `ranges.to_text`, which takes its time where there are many gaps; None where it would be longer than this."""
    indices.sort()
    if indices[-1] - indices[0] == len(indices) - 1:
        return _span_text(indices[0], indices[-1])
    ends = [place for place, (one, other) in enumerate(pairwise(indices), 1) if other - one != 1]
    if 2 * len(ends) + 1 > most_characters:
        return None
    bounds = [0, *ends, len(indices)]
    text = ",".join(_span_text(indices[start], indices[stop - 1]) for start, stop in pairwise(bounds))
    return text if len(text) <= most_characters else None


def _span_text(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _bounded(made: dict[str, str]) -> dict[str, str]:
    """Without what is too much, the longest first; the counts are short, and stay."""
    while sum(len(name) + len(text) for name, text in made.items()) > MOST_BYTES:
        del made[max(made, key=lambda name: len(made[name]))]
    return made


def asked_again(order: BatchOrder) -> dict[str, str]:
    """The metadata of a request to run failures again: how many, and which ones unless that is long."""
    todo = spans(order.todo, ANY_INDEX)
    said = {"calls": str(sum(last + 1 - first for first, last in todo))}
    return said | ({"todo": order.todo} if len(order.todo) <= MOST_INDICES else {})


class Spending:
    """What one delivery has asked of the storage, told to the entries of its log: each time what no entry has told yet.

    What surely follows an entry is told with it, so that the last one is not short of its own writing.
    """

    def __init__(self, account: Requests) -> None:
        self._account = account
        self._told = Requests()

    def untold(self, coming: Mapping[str, int]) -> dict[str, int]:
        """What was asked since the last entry that stands, and what this one will ask."""
        made = Counter(self._account.snapshot())
        made.update(coming)
        made.subtract(self._told.snapshot())
        return {kind: count for kind, count in made.items() if count > 0}

    def tell(self, told: Mapping[str, int]) -> None:
        """An entry stands that tells this."""
        self._told.merge(told)


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes of one entry, as they were read. `spans` are those of the calls that ended `ok`, `bad` or `off`, as far as it says;
    `unknown` are those of which it says that they ended, and not how.
    """

    done: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    gives: int = 0
    at: float | None = None
    worker: str = ""
    spans: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    unknown: Sequence[Span] = ()
    errors: Mapping[str, int] = field(default_factory=dict)
    slowest: Sequence[tuple[int, float]] = ()
    run_times: Distribution = field(default_factory=Distribution)
    requests: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, metadata: Mapping[str, str], within: range) -> Notes:
        """The notes in this metadata, of an entry whose indices lie `within`; never raises."""
        counts = {name: number(metadata.get(name, "")) for name in ("done", "failed", "cancelled", "expired", "gives")}
        said, unknown = _ways(metadata, counts, within)
        return cls(
            **counts,
            at=_seconds(metadata.get("at", "")),
            worker=decoded(metadata.get("worker", "")),
            spans=said,
            unknown=unknown,
            errors=_read_errors(metadata.get("errors", "")),
            slowest=tuple(_read_slowest(metadata.get("slow", ""), within)),
            run_times=Distribution.from_text(metadata.get("runs", "")),
            requests=requests_made.from_text(metadata.get("requests", "")),
        )


def number(text: str) -> int:
    """A count in a blob's metadata; 0 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else 0


def _ways(metadata: Mapping[str, str], counts: Mapping[str, int], within: range) -> tuple[dict[str, list[Span]], list[Span]]:
    """The spans of each way to end, and those of which no way is known; what only one way is left for is known."""
    off = counts["cancelled"] + counts["expired"]
    due = {"ok": counts["done"] - counts["failed"] - off, "bad": counts["failed"], "off": off}
    said = {way: _spans(metadata[way], within) for way in due if way in metadata}
    open_ways = [way for way, count in due.items() if count > 0 and way not in said]
    ends = _spans(metadata.get("ends", ""), within) if open_ways else []
    if not ends:
        return said, []
    rest = _without(ends, [span for each in said.values() for span in each])
    return (said | {open_ways[0]: rest}, []) if len(open_ways) == 1 else (said, rest)


def _spans(text: str, within: range) -> list[Span]:
    try:
        return spans(text, within)
    except Malformed:
        return []


def _without(ends: Sequence[Span], known: Iterable[Span]) -> list[Span]:
    """What of `ends` is in none of the others, all of which are in order."""
    left, rest = sorted(known), []
    for first, last in ends:
        begin = first
        for start, stop in left:
            if stop < begin or start > last:
                continue
            if start > begin:
                rest.append((begin, start - 1))
            begin = stop + 1
        if begin <= last:
            rest.append((begin, last))
    return rest


def _seconds(text: str) -> float | None:
    whole, _, part = text.partition(".")
    is_time = whole.isascii() and whole.isdecimal() and len(whole) <= 12 and (not part or (part.isascii() and part.isdecimal()))
    return float(text) if is_time else None


def _read_errors(text: str) -> Counter[str]:
    pairs = (pair.partition("=") for pair in text.split())
    return Counter({decoded(name): number(count) for name, _, count in pairs if name and number(count)})


def _read_slowest(text: str, within: range) -> Iterable[tuple[int, float]]:
    for pair in text.split()[:SLOWEST]:
        at, _, seconds = pair.partition(":")
        try:
            found = float(seconds)
        except ValueError:
            continue
        if at.isascii() and at.isdecimal() and len(at) <= 15 and int(at) in within and 0 <= found < 1e12:
            yield int(at), found
