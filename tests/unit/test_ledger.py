"""The ledger's records on a real local place, while requests fail before or after they were done.

`Flaky` stands before the queue or the store and raises `Unreachable` where it is told to: that is the only thing made up here.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ai4s.jobq import layout, spill
from ai4s.jobq import ledger as ledger_module
from ai4s.jobq.errors import (
    AccessDenied,
    Malformed,
    NotFound,
    PlaceTaken,
    ResultGone,
    SignatureInvalid,
    TransportError,
    Unreachable,
)
from ai4s.jobq.ledger import SEND_BUDGET_SECONDS, Ledger
from ai4s.jobq.message import Call, Cause, DeadLetter, Failure, KeyRecord, Outcome, Spill, State
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.base import MAX_DELAY_SECONDS, Queue, Store
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.local.queue import LocalQueue
from ai4s.jobq.transports.local.store import LocalStore
from ai4s.jobq.transports.place import LocalPlace
from ai4s.jobq.wire import MAX_RECORD_BYTES

CALL = Call(id=layout.call_id("abcdefgh234567ab", 7), task="proj.f", queue="default", arguments=b"args", sent=1.0)
DONE = Outcome(call=CALL.id, run=1, state=State.SUCCEEDED, token="a" * 16, value=b"9")
THEIRS = replace(DONE, token="b" * 16, value=b"8")
KEYED = layout.keyed_call_id("ab" * 32)
DIGEST = "0" * 64


@dataclass
class Fault:
    """One request that goes wrong; `done` says that it was carried out nevertheless."""

    done: bool
    maybe_done: bool


UNSENT = Fault(done=False, maybe_done=False)
LOST_REQUEST = Fault(done=False, maybe_done=True)
LOST_ANSWER = Fault(done=True, maybe_done=True)


@dataclass
class Faults:
    """What goes wrong next, by the name of the operation; and what was asked for."""

    planned: dict[str, deque[Fault]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def plan(self, operation: str, *faults: Fault) -> None:
        """Let the next such operations fail, in this order."""
        self.planned.setdefault(operation, deque()).extend(faults)


class Flaky:
    """A queue or a store whose operations fail as planned, before or after they were done."""

    def __init__(self, behind: Any, faults: Faults) -> None:
        self._behind, self._faults = behind, faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._behind, name)
        if name in {"name", "list"}:
            return real

        async def operation(*args: Any, **kwargs: Any) -> Any:
            self._faults.asked.append(name)
            planned = self._faults.planned.get(name)
            if not planned:
                return await real(*args, **kwargs)
            fault = planned.popleft()
            if fault.done:
                with suppress(TransportError):  # whatever the answer was, it was lost
                    await real(*args, **kwargs)
            raise Unreachable(maybe_done=fault.maybe_done)

        return operation


class FlakyTransport:
    """A local transport whose queues and stores are flaky."""

    def __init__(self, behind: LocalTransport, faults: Faults) -> None:
        self._behind, self._faults = behind, faults

    def queue(self, name: str, *, app: str) -> Queue:
        return Flaky(self._behind.queue(name, app=app), self._faults)  # type: ignore[return-value]  # by __getattr__

    def store(self, container: str) -> Store:
        return Flaky(self._behind.store(container), self._faults)  # type: ignore[return-value]  # by __getattr__

    async def server_time(self) -> float:
        return await self._behind.server_time()

    async def close(self) -> None:
        await self._behind.close()


@asynccontextmanager
async def opened(
    folder: Path, faults: Faults | None = None, keys: tuple[str, ...] = (), *, create: bool = True
) -> AsyncIterator[Ledger]:
    """A ledger on a place in this folder, whose requests go wrong as planned."""
    transport = FlakyTransport(await LocalTransport.open(LocalPlace(folder / "place")), faults or Faults())
    try:
        yield Ledger(transport, "proj", Keyring(keys), create=create)
    finally:
        await transport.close()


async def bodies(ledger: Ledger, queue: str = "default") -> list[Call]:
    """The calls that lie on a queue."""
    return [ledger.wire.unseal_call(text, queue) for text in await (await ledger.queue(queue)).peek(32)]


async def names(ledger: Ledger, prefix: str) -> list[str]:
    """The blobs that lie under a prefix."""
    return [info.name async for info in (await ledger.store()).list(prefix)]


async def overwrite(ledger: Ledger, name: str, data: bytes) -> None:
    """What somebody else with a right to the place may do."""
    await (await ledger.store()).put(name, data)


def quickly(monkeypatch: pytest.MonkeyPatch, step_seconds: float = 0.0) -> list[float]:
    """Let no pause last; notes how long each would have been, and lets the clock go on by `step_seconds` at each look."""
    pauses: list[float] = []
    ticks = itertools.count()
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(ledger_module, "boottime", lambda: next(ticks) * step_seconds)
    return pauses


# Sends.


async def arguments_of(ledger: Ledger, call: Call) -> bytes:
    """The encoded arguments, wherever they lie."""
    if isinstance(call.arguments, bytes):
        return call.arguments
    return await spill.fetch(await ledger.store(), layout.arguments(call.id), call.arguments)


async def test_a_send_puts_one_message(tmp_path: Path) -> None:
    """The call lies on its queue as it was, unmarked."""
    async with opened(tmp_path) as ledger:
        await ledger.send(CALL)
        assert await bodies(ledger) == [CALL]


@pytest.mark.parametrize(
    ("faults", "messages", "marked"),
    [
        ([UNSENT], 1, [False]),
        ([UNSENT] * 5, 1, [False]),
        ([LOST_REQUEST], 1, [True]),
        ([LOST_ANSWER], 2, [False, True]),
        ([UNSENT, LOST_ANSWER, UNSENT], 2, [False, True]),
        ([LOST_ANSWER, LOST_ANSWER], 3, [False, True, True]),
    ],
    ids=["unsent", "unsent five times", "lost request", "lost answer", "unsent, lost, unsent", "lost twice"],
)
async def test_a_send_is_repeated_and_marked_only_if_it_may_have_been_done(
    faults: list[Fault], messages: int, marked: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resent` stands in a repeated message exactly if an earlier one may lie there; each is the same call otherwise."""
    quickly(monkeypatch)
    planned = Faults()
    planned.plan("send", *faults)
    async with opened(tmp_path, planned) as ledger:
        await ledger.send(CALL)
        found = await bodies(ledger)
        assert len(found) == messages
        assert [call.resent for call in found] == marked
        assert {replace(call, resent=False) for call in found} == {CALL}


async def test_pauses_between_sends_grow_and_are_jittered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage in trouble is asked ever more rarely, up to some seconds, and not by all at once."""
    pauses, planned = quickly(monkeypatch), Faults()
    planned.plan("send", *[UNSENT] * 12)
    async with opened(tmp_path, planned) as ledger:
        await ledger.send(CALL)
    assert len(pauses) == 12
    assert pauses[0] <= 0.1
    assert max(pauses) <= 5
    assert min(pauses[6:]) >= 2
    assert len(set(pauses)) == 12


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [(UNSENT, UNSENT, False), (LOST_REQUEST, LOST_REQUEST, True), (UNSENT, LOST_REQUEST, True), (LOST_ANSWER, UNSENT, True)],
    ids=["surely unsent", "perhaps sent", "the last may have been done", "the first may have been done"],
)
async def test_a_send_that_gives_up_says_if_it_may_have_been_done(
    first: Fault, later: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, expected: bool
) -> None:
    """After its budget the send raises; `maybe_done` holds if any of the tries may have been carried out."""
    pauses, planned = quickly(monkeypatch, step_seconds=SEND_BUDGET_SECONDS / 5), Faults()
    planned.plan("send", first, *[later] * 50)
    async with opened(tmp_path, planned) as ledger:
        with pytest.raises(Unreachable) as caught:
            await ledger.send(CALL)
    assert caught.value.maybe_done is expected
    assert 1 <= len(pauses) <= 6


async def test_an_absent_queue_is_told_at_once(tmp_path: Path) -> None:
    """Where nothing is made, what is not there is found before anything is sent, and what repeating cannot mend is not repeated."""
    planned = Faults()
    async with opened(tmp_path, planned, create=False) as ledger:
        with pytest.raises(NotFound):
            await ledger.send(CALL)
    assert planned.asked == ["check"]


async def test_a_long_delay_goes_in_hops(tmp_path: Path) -> None:
    """A queue hides a message for a week at most; what is longer is hidden for a week and put off again then."""
    async with opened(tmp_path) as ledger:
        receipt = await ledger.send(CALL, delay_seconds=MAX_DELAY_SECONDS * 10)
        queue = await ledger.queue("default")
        assert await queue.peek(1) == []
        await queue.delete(receipt)


async def test_the_receipt_of_a_send_takes_the_message_back(tmp_path: Path) -> None:
    """Until somebody receives it."""
    async with opened(tmp_path) as ledger:
        receipt = await ledger.send(CALL)
        await (await ledger.queue("default")).delete(receipt)
        assert await bodies(ledger) == []


# Spilled arguments.


@pytest.mark.parametrize("size", [60_000, 300_000, 2_000_000])
async def test_large_arguments_are_spilled_before_the_message(size: int, tmp_path: Path) -> None:
    """The message names their length and digest; they come back in memory and as a file."""
    call, planned = replace(CALL, arguments=os.urandom(size)), Faults()
    async with opened(tmp_path, planned) as ledger:
        await ledger.send(call)
        assert planned.asked.index("put") < planned.asked.index("send")
        (found,) = await bodies(ledger)
        assert isinstance(found.arguments, Spill)
        assert found.arguments.size == size
        assert await names(ledger, "args/") == [f"args/{CALL.id}"]
        assert await arguments_of(ledger, found) == call.arguments
        await ledger.arguments_to(found, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == call.arguments


async def test_small_arguments_cost_no_blob(tmp_path: Path) -> None:
    """And there is nothing to be fetched to a file."""
    async with opened(tmp_path) as ledger:
        await ledger.send(CALL)
        assert await names(ledger, "") == []
        assert await arguments_of(ledger, CALL) == b"args"
        await ledger.arguments_to(CALL, tmp_path / "out")
        assert not (tmp_path / "out").exists()


async def test_spilled_arguments_are_written_once_however_often_the_call_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost answer to the spill or the send leads to one blob, and to messages that all name it."""
    quickly(monkeypatch)
    call, planned = replace(CALL, arguments=os.urandom(100_000)), Faults()
    planned.plan("send", LOST_ANSWER)
    async with opened(tmp_path, planned) as ledger:
        await ledger.send(call)
        await ledger.send(replace(call, resent=True))
        found = await bodies(ledger)
        assert [each.resent for each in found] == [False, True, True]
        assert len({each.arguments for each in found}) == 1
        assert planned.asked.count("put") == 2
        assert await arguments_of(ledger, found[0]) == call.arguments


async def test_an_unwritten_spill_sends_nothing(tmp_path: Path) -> None:
    """If the arguments could not be written, no message refers to them."""
    planned = Faults()
    planned.plan("put", UNSENT)
    async with opened(tmp_path, planned) as ledger:
        with pytest.raises(Unreachable):
            await ledger.send(replace(CALL, arguments=os.urandom(100_000)))
        assert await bodies(ledger) == []


@pytest.mark.parametrize("data", [None, b"", b"other", b"x" * 100_000], ids=["missing", "empty", "short", "swapped"])
async def test_damaged_arguments_are_never_passed_on(data: bytes | None, tmp_path: Path) -> None:
    """What is not what the message says is Malformed."""
    call = replace(CALL, arguments=os.urandom(100_000))
    async with opened(tmp_path) as ledger:
        await ledger.send(call)
        (found,) = await bodies(ledger)
        if data is None:
            await (await ledger.store()).delete(layout.arguments(CALL.id))
        else:
            await overwrite(ledger, layout.arguments(CALL.id), data)
        with pytest.raises(Malformed):
            await arguments_of(ledger, found)
        with pytest.raises(Malformed):
            await ledger.arguments_to(found, tmp_path / "out")


# Outcomes.


async def test_a_run_that_has_not_ended_has_no_outcome(tmp_path: Path) -> None:
    """None says that it goes on."""
    async with opened(tmp_path) as ledger:
        assert await ledger.outcome(CALL.id, 1) is None


async def test_the_first_outcome_stands(tmp_path: Path) -> None:
    """Whoever comes later gets the one that stands, whatever he brings; another run has its own."""
    async with opened(tmp_path) as ledger:
        assert await ledger.commit(DONE) == DONE
        assert await ledger.commit(THEIRS) == DONE
        assert await ledger.commit(replace(THEIRS, state=State.CANCELLED)) == DONE
        assert await ledger.outcome(CALL.id, 1) == DONE
        assert await ledger.commit(replace(THEIRS, run=2)) == replace(THEIRS, run=2)
        assert await ledger.outcome(CALL.id, 2) == replace(THEIRS, run=2)


@pytest.mark.parametrize("fault", [UNSENT, LOST_REQUEST, LOST_ANSWER], ids=["unsent", "lost request", "lost answer"])
async def test_a_commit_may_be_repeated(fault: Fault, tmp_path: Path) -> None:
    """After a fault the same commit is tried again, and ends with our own outcome in every case."""
    planned = Faults()
    planned.plan("put", fault)
    async with opened(tmp_path, planned) as ledger:
        with pytest.raises(Unreachable):
            await ledger.commit(DONE)
        assert await ledger.commit(DONE) == DONE
        assert await ledger.commit(THEIRS) == DONE


async def test_many_that_commit_at_once_agree(tmp_path: Path) -> None:
    """Twenty attempts that end together all learn of the same outcome."""
    async with opened(tmp_path) as ledger:
        found = await asyncio.gather(*(ledger.commit(replace(DONE, token=f"{i:016x}")) for i in range(20)))
        assert len(set(found)) == 1


async def test_a_forged_outcome_is_not_believed(tmp_path: Path) -> None:
    """Where keys are set, an outcome that nobody signed is an error to readers and to those who would commit."""
    async with opened(tmp_path, keys=("a key of 16 and more",)) as ledger:
        await overwrite(ledger, layout.result(CALL.id, 1), Ledger(ledger.transport, "proj", Keyring()).wire.seal_outcome(DONE))
        with pytest.raises(SignatureInvalid):
            await ledger.outcome(CALL.id, 1)
        with pytest.raises(SignatureInvalid):
            await ledger.commit(DONE)


async def test_an_outcome_moved_to_another_call_is_not_believed(tmp_path: Path) -> None:
    """Even unsigned, an outcome says whose it is."""
    other = layout.call_id("abcdefgh234567ab", 8)
    async with opened(tmp_path) as ledger:
        await overwrite(ledger, layout.result(other, 1), ledger.wire.seal_outcome(DONE))
        with pytest.raises(Malformed):
            await ledger.outcome(other, 1)


# Values.


async def test_small_values_stay_in_the_outcome(tmp_path: Path) -> None:
    """And cost no request of their own."""
    planned = Faults()
    async with opened(tmp_path, planned) as ledger:
        assert await ledger.keep_value(CALL.id, DONE.token, b"9") == b"9"
        assert await ledger.value(DONE) == b"9"
    assert planned.asked == []


@pytest.mark.parametrize("kind", ["bytes", "file"])
async def test_large_values_lie_beside_the_outcome(kind: str, tmp_path: Path) -> None:
    """Each attempt's under its own token; a file goes there without being read as one piece."""
    data = os.urandom(200_000)
    (path := tmp_path / "value").write_bytes(data)
    async with opened(tmp_path) as ledger:
        kept = await ledger.keep_value(CALL.id, DONE.token, data if kind == "bytes" else path)
        assert isinstance(kept, Spill)
        assert await names(ledger, "values/") == [f"values/{CALL.id}/{DONE.token}"]
        assert await ledger.value(replace(DONE, value=kept)) == data
        with pytest.raises(Malformed):
            await ledger.value(replace(THEIRS, value=kept))


async def test_a_value_may_be_kept_again(tmp_path: Path) -> None:
    """After a lost answer the same bytes lie there already, and that is fine."""
    planned, data = Faults(), os.urandom(100_000)
    planned.plan("put", LOST_ANSWER)
    async with opened(tmp_path, planned) as ledger:
        with pytest.raises(Unreachable):
            await ledger.keep_value(CALL.id, DONE.token, data)
        kept = await ledger.keep_value(CALL.id, DONE.token, data)
        assert await ledger.value(replace(DONE, value=kept)) == data


# Forgetting.


async def test_forgetting_leaves_a_tombstone_and_nothing_else(tmp_path: Path) -> None:
    """Outcome, value and arguments go; who asks later is told, and nobody can end the run again."""
    async with opened(tmp_path) as ledger:
        await ledger.send(replace(CALL, arguments=os.urandom(100_000)))
        kept = await ledger.keep_value(CALL.id, DONE.token, os.urandom(100_000))
        await ledger.keep_value(CALL.id, THEIRS.token, os.urandom(100_000))
        await ledger.commit(replace(DONE, value=kept))
        await ledger.forget(CALL.id, 1)
        assert await names(ledger, "") == [layout.result(CALL.id, 1)]
        with pytest.raises(ResultGone) as gone:
            await ledger.outcome(CALL.id, 1)
        assert gone.value.call_id == CALL.id
        with pytest.raises(ResultGone):
            await ledger.commit(THEIRS)


async def test_forgetting_leaves_neighbours_alone(tmp_path: Path) -> None:
    """Only what belongs to this call goes, not that of a call whose id begins likewise."""
    neighbour = layout.call_id("abcdefgh234567ab", 70)
    async with opened(tmp_path) as ledger:
        for call in (CALL.id, neighbour):
            kept = await ledger.keep_value(call, DONE.token, os.urandom(100_000))
            await ledger.commit(replace(DONE, call=call, value=kept))
        await ledger.forget(CALL.id, 1)
        left = await ledger.outcome(neighbour, 1)
        assert left is not None
        assert len(await ledger.value(left)) == 100_000


@pytest.mark.parametrize("fault", [UNSENT, LOST_ANSWER], ids=["unsent", "lost answer"])
@pytest.mark.parametrize("operation", ["put", "delete"])
async def test_forgetting_may_be_repeated(operation: str, fault: Fault, tmp_path: Path) -> None:
    """However far it got the first time."""
    planned = Faults()
    async with opened(tmp_path, planned) as ledger:
        kept = await ledger.keep_value(CALL.id, DONE.token, os.urandom(100_000))
        await ledger.commit(replace(DONE, value=kept))
        planned.plan(operation, fault)
        with pytest.raises(Unreachable):
            await ledger.forget(CALL.id, 1)
        await ledger.forget(CALL.id, 1)
        assert await names(ledger, "") == [layout.result(CALL.id, 1)]


async def test_forgetting_a_call_with_a_key_forgets_the_key(tmp_path: Path) -> None:
    """A key's record goes with its call's outcome."""
    async with opened(tmp_path) as ledger:
        await ledger.claim_key(KEYED, DIGEST)
        await ledger.mark_key_sent(KEYED, DIGEST)
        await ledger.commit(replace(DONE, call=KEYED))
        await ledger.forget(KEYED, 1)
        assert await names(ledger, "keys/") == []


# Dead letters.


async def test_the_first_dead_letter_stays(tmp_path: Path) -> None:
    """A redelivery that buries again changes nothing."""
    outcome = replace(DONE, state=State.FAILED, value=None, failure=Failure(Cause.RAISED, "ValueError", "no"))
    letter = DeadLetter("raised", outcome, CALL)
    name = layout.dead_letter("default", CALL.id, 1)
    async with opened(tmp_path) as ledger:
        await ledger.bury(letter, "default", CALL.id, 1)
        await ledger.bury(DeadLetter("another"), "default", CALL.id, 1)
        blob = await (await ledger.store()).get(name)
        assert blob is not None
        assert ledger.wire.unseal(DeadLetter, blob.data, name) == letter


# Keys.


async def test_a_key_is_claimed_once(tmp_path: Path) -> None:
    """The first claim stands, with its arguments; later ones learn of them, and whether the message was sent."""
    async with opened(tmp_path) as ledger:
        assert await ledger.claim_key(KEYED, DIGEST) == KeyRecord(DIGEST)
        assert await ledger.claim_key(KEYED, "1" * 64) == KeyRecord(DIGEST)
        await ledger.mark_key_sent(KEYED, DIGEST)
        assert await ledger.claim_key(KEYED, DIGEST) == KeyRecord(DIGEST, sent=True)


async def test_a_claim_whose_answer_was_lost_is_ours(tmp_path: Path) -> None:
    """Asked again, the record is there, unsent: so the message is sent."""
    planned = Faults()
    planned.plan("put", LOST_ANSWER)
    async with opened(tmp_path, planned) as ledger:
        with pytest.raises(Unreachable):
            await ledger.claim_key(KEYED, DIGEST)
        assert await ledger.claim_key(KEYED, DIGEST) == KeyRecord(DIGEST)


async def test_a_forged_key_is_not_believed(tmp_path: Path) -> None:
    """A record that was moved from another key does not verify."""
    other = layout.keyed_call_id("cd" * 32)
    async with opened(tmp_path, keys=("a key of 16 and more",)) as ledger:
        await ledger.claim_key(other, DIGEST)
        blob = await (await ledger.store()).get(layout.key(other))
        assert blob is not None
        await overwrite(ledger, layout.key(KEYED), blob.data)
        with pytest.raises(SignatureInvalid):
            await ledger.claim_key(KEYED, DIGEST)


# Payloads.


async def test_a_payload_is_published_once_under_its_content(tmp_path: Path) -> None:
    """The same bytes have one blob, however often and by whomever they are published; a file of them is verified."""
    data = os.urandom(300_000)
    async with opened(tmp_path) as ledger:
        sha256 = await ledger.publish(data)
        assert await ledger.publish(data) == sha256 == layout.sha256_of(data)
        assert await names(ledger, "payloads/") == [f"payloads/{sha256}"]
        await ledger.payload_to(sha256, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("there", [None, b"", b"other"], ids=["missing", "empty", "swapped"])
async def test_a_payload_that_is_not_what_its_name_says_is_refused(there: bytes | None, tmp_path: Path) -> None:
    """Code runs only if it is the code that the call names."""
    sha256 = layout.sha256_of(b"data")
    async with opened(tmp_path) as ledger:
        if there is not None:
            await overwrite(ledger, layout.payload(sha256), there)
        with pytest.raises(Malformed):
            await ledger.payload_to(sha256, tmp_path / "out")


@pytest.mark.parametrize("sha256", ["", "..", "../keys/x", "A" * 64, "0" * 63])
async def test_a_payload_by_another_name_is_not_asked_for(sha256: str, tmp_path: Path) -> None:
    """A name that is no digest costs no request."""
    planned = Faults()
    async with opened(tmp_path, planned) as ledger:
        with pytest.raises(Malformed):
            await ledger.payload_to(sha256, tmp_path / "out")
    assert set(planned.asked) <= {"create"}


# First use.


async def test_queue_and_container_are_made_once(tmp_path: Path) -> None:
    """Whoever comes at the same time waits for the same request; who comes later makes none."""
    planned = Faults()
    async with opened(tmp_path, planned) as ledger:
        await asyncio.gather(*(ledger.queue("default") for _ in range(10)), *(ledger.store() for _ in range(10)))
        await ledger.queue("default")
        await ledger.queue("gpu")
        await ledger.store()
    assert planned.asked == ["create"] * 3


async def test_nothing_is_made_where_that_is_turned_off(tmp_path: Path) -> None:
    """create=False asks for no right to create."""
    async with opened(tmp_path) as ledger:
        await ledger.queue("default")
        await ledger.store()
    planned = Faults()
    async with opened(tmp_path, planned, create=False) as ledger:
        await ledger.queue("default")
        await ledger.store()
    assert planned.asked == ["check", "check"]


async def test_a_first_use_that_failed_is_tried_anew(tmp_path: Path) -> None:
    """All who waited for it are told; the next one asks again."""
    planned = Faults()
    planned.plan("create", UNSENT)
    async with opened(tmp_path, planned) as ledger:
        found = await asyncio.gather(*(ledger.store() for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in found] == [Unreachable] * 5
        await ledger.store()
    assert planned.asked == ["create"] * 2


async def test_a_failure_that_nobody_waited_for_is_tried_anew(tmp_path: Path) -> None:
    """Who waited for the first use was cancelled, and it failed after that: the next one does not get the old error."""
    planned = Faults()
    planned.plan("create", UNSENT)
    async with opened(tmp_path, planned) as ledger:
        waiting = asyncio.create_task(ledger.store())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        for _ in range(5):
            await asyncio.sleep(0)
        await ledger.store()


async def test_another_apps_queue_is_refused_each_time(tmp_path: Path) -> None:
    """A queue that names another app is an error at first use, and remains one."""
    async with opened(tmp_path) as ledger:
        other = Ledger(ledger.transport, "proj-gpu", Keyring())
        await other.queue("default")
        for _ in range(2):
            with pytest.raises(PlaceTaken, match="proj-gpu"):
                await ledger.queue("gpu")


async def test_who_may_not_create_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SAS without the right to create is enough where all is there; what is missing shows at the next request."""
    async with opened(tmp_path) as ledger:
        await ledger.queue("default")
        await ledger.store()

    async def refuse(_: object) -> None:
        raise AccessDenied

    monkeypatch.setattr(LocalQueue, "create", refuse)
    monkeypatch.setattr(LocalStore, "create", refuse)
    async with opened(tmp_path) as ledger:
        await ledger.send(CALL)
        assert await bodies(ledger) == [CALL]
        assert await ledger.commit(DONE) == DONE
        with pytest.raises(NotFound):
            await ledger.send(replace(CALL, queue="gpu"))


async def test_a_blob_that_is_no_record_is_not_read_whole(tmp_path: Path) -> None:
    """Whoever may write to the place could otherwise fill the memory of all who look for an outcome."""
    transport = await LocalTransport.open(LocalPlace(tmp_path))
    try:
        ledger = Ledger(transport, "proj", Keyring())
        await (await ledger.store()).put(layout.result(CALL.id, 1), bytes(MAX_RECORD_BYTES + 1))
        with pytest.raises(Malformed, match="larger than a record can be"):
            await ledger.outcome(CALL.id, 1)
    finally:
        await transport.close()
