"""What a log entry says of itself: bounded whatever the outcomes are, and readable whatever somebody made of it."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ai4s.jobq.entry_notes import MOST_BYTES, Notes, Spending, Written, decoded, encoded, notes
from ai4s.jobq.message import Cause, Failure, Outcome, State
from ai4s.jobq.outcome_notes import outcome_notes
from ai4s.jobq.packing import Code, Packed, failed
from ai4s.jobq.ranges import from_text, to_text
from ai4s.jobq.requests_made import Requests, charged_to

WRITTEN = Written("host-1-abc", 1_700_000_000.25, {"blob_put": 1, "queue_renew": 3})
PACK = range(100_000, 104_096)


def ok(at: int, seconds: float = 0.5) -> Packed:
    return Packed(at, Code.VALUE, 1, seconds, b"x")


def bad(at: int, name: str = "ValueError") -> Packed:
    return failed(at, 1, 0.25, Failure(Cause.RAISED, name, f"no {at}", "Traceback …"))


def off(at: int, code: Code = Code.CANCELLED) -> Packed:
    return Packed(at, code, 0, 0.0, b"")


def size(metadata: dict[str, str]) -> int:
    return sum(len(name) + len(text) for name, text in metadata.items())


def places(spans: object) -> list[int]:
    return [at for first, last in spans for at in range(first, last + 1)]  # type: ignore[attr-defined]


def test_an_entry_tells_what_it_holds() -> None:
    """Counts, which ones, why, how long, by whom, when, and for how many requests."""
    outcomes = [*(ok(at, at - PACK.start) for at in PACK[:10]), bad(PACK[10]), bad(PACK[11], "KeyError"), bad(PACK[12])]
    read = Notes.read(notes([*outcomes, off(PACK[13]), off(PACK[14], Code.EXPIRED)], 4, WRITTEN), PACK)
    assert (read.done, read.failed, read.cancelled, read.expired, read.gives) == (15, 3, 1, 1, 4)
    assert {way: places(spans) for way, spans in read.spans.items()} == {
        "ok": list(PACK[:10]),
        "bad": list(PACK[10:13]),
        "off": list(PACK[13:15]),
    }
    assert read.errors == {"ValueError": 2, "KeyError": 1}
    assert read.slowest == ((PACK[9], 9.0), (PACK[8], 8.0), (PACK[7], 7.0), (PACK[6], 6.0), (PACK[5], 5.0))
    assert read.run_times.total == 13
    assert (read.worker, dict(read.requests)) == ("host-1-abc", WRITTEN.requests)
    assert read.at is not None
    assert abs(read.at - WRITTEN.at) < 0.1


def test_an_entry_without_outcomes_tells_what_it_gives() -> None:
    """A pack may give away before anything has ended."""
    read = Notes.read(notes([], 7, WRITTEN), PACK)
    assert (read.done, read.gives, read.spans, read.unknown) == (0, 7, {}, [])


def test_alternating_states_are_bounded() -> None:
    """What cannot be said shortly is left out; that these have ended is told, and not how."""
    metadata = notes([ok(at) if at % 2 else bad(at) for at in PACK], 0, WRITTEN)
    read = Notes.read(metadata, PACK)
    assert size(metadata) <= MOST_BYTES
    assert (read.done, read.failed) == (4096, 2048)
    assert places(read.unknown) == list(PACK)


def test_what_only_one_way_is_left_for_is_known() -> None:
    """Of a tenth of failures, those are named, and the rest follows."""
    failing = set(random.Random(1).sample(PACK, 409))
    metadata = notes([bad(at) if at in failing else ok(at) for at in PACK], 0, WRITTEN)
    read = Notes.read(metadata, PACK)
    assert "ok" not in metadata
    assert places(read.spans["bad"]) == sorted(failing)
    assert places(read.spans["ok"]) == sorted(set(PACK) - failing)


def test_hostile_names_of_errors_are_bounded_ascii() -> None:
    """Of any script and length, in any number."""
    names = ["Błąd" * 1000, "💥" * 500, "a=b c", "\n\t", "x" * 10_000, *(f"Error{n}" for n in range(50))]
    metadata = notes([bad(at, name) for at, name in zip(PACK, names, strict=False)], 0, Written("wörker " * 50, 0.0, {}))
    assert size(metadata) <= MOST_BYTES
    assert all(text.isascii() and text.isprintable() for text in metadata.values())
    assert len(Notes.read(metadata, PACK).errors) <= 8


def test_immense_numbers_are_bounded() -> None:
    """Indices, times and requests as large as they can be, and times that are none."""
    far = range(2**53 - 4096, 2**53)
    outcomes = [Packed(at, Code.VALUE, 1, [1e300, float("inf"), 0.0][at % 3], b"") for at in far[::2]]
    metadata = notes(outcomes, 10**15, Written("w" * 5000, 1e12, dict.fromkeys(("blob_put", "blob_get"), 10**14)))
    assert size(metadata) <= MOST_BYTES
    assert Notes.read(metadata, far).done == 2048


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("vbce"), min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_what_is_told_is_true(ways: list[str], dice: random.Random) -> None:
    """In whatever order calls ended, no call is told to have ended otherwise than it did, and none twice."""
    made = {"v": ok, "b": bad, "c": off, "e": lambda at: off(at, Code.EXPIRED)}
    told = {"v": "ok", "b": "bad", "c": "off", "e": "off"}
    ats = dice.sample(PACK, len(ways))
    read = Notes.read(notes([made[way](at) for way, at in zip(ways, ats, strict=True)], 0, WRITTEN), PACK)
    found = {at: way for way, spans in read.spans.items() for at in places(spans)}
    assert found == {at: told[way] for way, at in zip(ways, ats, strict=True)}
    assert read.unknown == []


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["done", "failed", "ok", "bad", "off", "ends", "errors", "slow", "runs", "at", "worker", "requests"]),
        st.text(max_size=40)
        | st.sampled_from(["0-99", "5-1", "9" * 40, "0-999999999999999", "1:nan 2:inf 3:1e999", "%ff=3", "-1", "٣"]),
    )
)
def test_nonsense_is_read_as_nothing_worse(metadata: dict[str, str]) -> None:
    """Whoever may write to the place may put anything there: onlookers must bear it, and not for long."""
    read = Notes.read(metadata, range(100))
    assert all(0 <= first <= last < 100 for spans in [*read.spans.values(), read.unknown] for first, last in spans)


def test_blobs_of_earlier_versions_read_as_unknown() -> None:
    """They have the counts and nothing else."""
    read = Notes.read({"done": "5", "failed": "1"}, PACK)
    assert (read.done, read.failed, read.at, read.spans, read.unknown, dict(read.requests)) == (5, 1, None, {}, [], {})


def test_a_delivery_tells_each_request_once() -> None:
    """What surely follows an entry is told with it; an entry that did not come to stand told nothing."""
    account = Requests()
    with charged_to(account):
        spending = Spending(account)
        account.merge({"queue_receive": 1, "blob_get": 2})
        first = spending.untold({"blob_put": 1})
        assert spending.untold({"blob_put": 1}) == first == {"queue_receive": 1, "blob_get": 2, "blob_put": 1}
        spending.tell(first)
        account.merge({"blob_put": 2, "queue_renew": 1})  # one of them a repeat
        assert spending.untold({"queue_delete": 1}) == {"blob_put": 1, "queue_renew": 1, "queue_delete": 1}


def test_long_texts_are_cut_at_whole_characters() -> None:
    """So that what is left can be read."""
    assert decoded(encoded("ValueError", 60)) == "ValueError"
    cut = encoded("Ошибка" * 100, 60)
    assert len(cut) <= 60
    assert ("Ошибка" * 100).startswith(decoded(cut))


def test_an_outcome_s_metadata_tell_its_kind() -> None:
    """A listing tells task, error and time; nothing in it can be too long for the storage."""
    failure = Failure(Cause.RAISED, "Błąd" * 1000, "no")
    made = outcome_notes(Outcome("c", 1, State.FAILED, "t", "mod.täsk" * 500, "gpu", failure=failure, started=10.0, ended=12.5))
    assert (made["state"], made["queue"], made["seconds"]) == ("failed", "gpu", "2.500")
    assert all(text.isascii() and len(text) <= 200 for text in made.values())
    assert outcome_notes(Outcome("c", 1, State.CANCELLED, "t")) == {"state": "cancelled"}


def test_indices_are_written_as_ranges_are() -> None:
    """What one module writes, the other reads."""
    metadata = notes([ok(at) for at in (PACK[5], PACK[1], PACK[0], PACK[9])], 0, WRITTEN)
    assert metadata["ok"] == to_text([PACK[0], PACK[1], PACK[5], PACK[9]])
    assert from_text(metadata["ok"], PACK) == [PACK[0], PACK[1], PACK[5], PACK[9]]
