"""What a delivery of a pack knows of its calls: which wait, run, have ended or are put off, and what they have used up."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ai4s.jobq.layout import sha256_of
from ai4s.jobq.message import ChargedCalls, Charges, Checkpoint, HeldCheckpoint, PackHeader, Spill
from ai4s.jobq.packing import Code, Packed
from ai4s.jobq.ranges import from_text
from ai4s.jobq.signing import Keyring
from ai4s.jobq.wire import MAX_MESSAGE_BYTES, Wire
from ai4s.jobq.worker.pack_calls import PackCalls, RunTimes
from ai4s.jobq.worker.pack_checkpoints import MOST_KEPT

HEADER = PackHeader("b", 0, "default", 1.0, Spill(1, sha256_of(b"")), 100, 20, "100-119", "000000")
CHECKPOINT = Checkpoint("token", 1, Spill(1, sha256_of(b"")))


def value(index: int) -> Packed:
    """The outcome of a call that succeeded."""
    return Packed(index, Code.VALUE, 1, 0.0, b"v")


def test_what_comes_back_from_a_message_is_what_was_said() -> None:
    """Charges and checkpoints of calls travel with the message, and only of those that are left."""
    calls = PackCalls.of(HEADER)
    calls.charge(101, Charges(errors=1))
    calls.charge(102, Charges(deaths=2, alone=True))
    calls.checkpoints[103] = CHECKPOINT
    calls.remove([100, 101])
    header = calls.header(HEADER, pos=3)
    assert header.pos == 3
    assert header.todo == "102-119"
    assert header.charged == (ChargedCalls("102", Charges(deaths=2, alone=True)),)
    assert header.checkpoints == (HeldCheckpoint(103, CHECKPOINT),)
    again = PackCalls.of(header)
    assert again.charge_of(102) == Charges(deaths=2, alone=True)
    assert again.charge_of(101) == Charges()


def test_what_was_given_away_keeps_its_charges_until_its_own_message_is_out() -> None:
    """Should this worker die before, whoever reads the entry sends that message, and must say what was used up."""
    calls = PackCalls.of(HEADER)
    calls.charge(110, Charges(errors=1))
    calls.remove([], [110, 111])
    header = calls.header(HEADER)
    assert header.todo == "100-109,112-119"
    assert header.charged == (ChargedCalls("110", Charges(errors=1)),)
    assert calls.part([110, 111])["charged"] == header.charged
    calls.part_from([110, 111])
    assert calls.header(HEADER).charged == ()


def test_what_ends_late_or_twice_does_not_count() -> None:
    """An outcome is kept of a call that is open, once."""
    calls = PackCalls.of(HEADER)
    calls.remove([100])
    for index in (100, 101, 101):
        calls.end(value(index))
    assert list(calls.pending) == [101]
    assert calls.pending_bytes == 1
    calls.remove([101])
    assert not calls.pending
    assert calls.pending_bytes == 0


def test_special_calls_are_dealt_alone() -> None:
    """Calls with large arguments, with a checkpoint, or that must share no process."""
    calls = PackCalls.of(HEADER)
    calls.single = frozenset({101})
    calls.checkpoints[103] = CHECKPOINT
    calls.charge(104, Charges(alone=True))
    assert [calls.deal(10) for _ in range(6)] == [[100], [101], [102], [103], [104], list(range(105, 115))]


def test_calls_that_are_taken_back_come_next() -> None:
    """In their order, before those that were never dealt; but none that has ended meanwhile."""
    calls = PackCalls.of(HEADER)
    calls.deal(5)
    calls.end(value(102))
    calls.take_back([103, 101, 102])
    assert calls.deal(4) == [101, 103, 105, 106]


def test_a_failed_slice_is_dealt_in_halves_by_themselves() -> None:
    """Whatever the size of a slice: a half is never mixed with others."""
    calls = PackCalls.of(HEADER)
    calls.bisect(calls.deal(5))
    assert [calls.deal(16) for _ in range(3)] == [[100, 101], [102, 103, 104], list(range(105, 120))]


def test_calls_that_were_put_off_wait_for_their_time() -> None:
    """Each for its own."""
    calls = PackCalls.of(replace(HEADER, todo="100-101"))
    calls.deal(2)
    calls.put_off(100, Charges(errors=1), 20.0)
    calls.put_off(101, Charges(errors=1), 10.0)
    calls.wake(10.0)
    assert calls.deal(9) == [101]
    assert calls.next_due == 20.0


def test_a_few_long_calls_do_not_make_short_ones_look_long() -> None:
    """Many short ones outweigh them."""
    times = RunTimes()
    times.note([10.0])
    times.note([0.001] * 50)
    assert times.mean_seconds is not None
    assert times.mean_seconds < 0.01


def test_the_worst_header_fits_a_message() -> None:
    """Every second call open, of high index, each charged at random, and as many checkpoints as are kept."""
    dice = random.Random(1)
    first, count = 10**9, 4096
    header = replace(HEADER, first=first, count=count, todo=f"{first}-{first + count - 1}")
    calls = PackCalls.of(header)
    calls.remove(range(first, first + count, 2))
    for index in sorted(calls.open):
        calls.charge(index, Charges(dice.randrange(300), dice.randrange(3)))
    for index in sorted(calls.open)[:MOST_KEPT]:
        token, digest = f"{dice.randrange(2**64):016x}", f"{dice.randrange(2**256):064x}"
        calls.checkpoints[index] = Checkpoint(token, dice.randrange(9), Spill(dice.randrange(2**30), digest))
    wire = Wire("myproj", Keyring(("k" * 32,)))
    text = wire.seal_pack(calls.header(header, mark="0" * 16))
    assert text is not None
    assert len(text) <= MAX_MESSAGE_BYTES * 4 // 3
    found = wire.unseal_message(text, "default")
    assert isinstance(found, PackHeader)
    assert PackCalls.of(found).open == calls.open


class Calls(RuleBasedStateMachine):
    """Whatever happens to calls, each is in one place, and none gets lost."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = PackCalls.of(HEADER)
        self.chunks: list[list[int]] = []
        self.now = 0.0

    @rule(most=st.integers(1, 8))
    def deal(self, most: int) -> None:
        chunk = self.calls.deal(most)
        assert set(chunk) <= self.calls.open - self.calls.pending.keys()
        if chunk:
            self.chunks.append(chunk)

    @precondition(lambda self: self.chunks)
    @rule(how=st.sampled_from(["end", "put off", "take back"]), n=st.integers(0, 7))
    def go_on(self, how: str, n: int) -> None:
        chunk = self.chunks[n % len(self.chunks)]
        if how == "take back":
            self.chunks.remove(chunk)
            self.calls.take_back(chunk)
            return
        index = chunk.pop(0)
        if not chunk:
            self.chunks.remove(chunk)
        if how == "end":
            self.calls.end(value(index))
        else:
            self.calls.put_off(index, Charges(errors=1), self.now + n)

    @rule(indices=st.sets(st.integers(100, 119), max_size=4), given_away=st.booleans())
    def fold(self, indices: set[int], given_away: bool) -> None:
        self.calls.remove(() if given_away else indices, indices if given_away else ())
        self.calls.part_from(indices)

    @rule(seconds=st.integers(0, 9))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.calls.wake(self.now)

    @invariant()
    def nobody_is_lost(self) -> None:
        """An open call waits, runs, is put off or has an outcome to be logged."""
        known = set(self.calls.undealt) | {index for part in self.calls.alone for index in part} | self.calls.running
        known |= {index for _, index in self.calls._later} | self.calls.pending.keys()
        assert self.calls.open <= known
        assert self.calls.pending.keys() <= self.calls.open
        assert from_text(self.calls.header(HEADER).todo, HEADER.indices) == sorted(self.calls.open)


TestCalls = Calls.TestCase
