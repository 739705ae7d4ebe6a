"""What a worker stores of what calls say: which requests that takes, what a fault of the storage does, and that memory is bounded.

On a place in memory, with a clock that the test moves; at the end the same on a real Azurite whose answers are lost.

Next: `test_reading_logs.py`; `../acceptance/test_logs.py` for real workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fault_proxy import Fault, faulty_account, fresh_name, spoil
from memory_transport import MemoryPlace, MemoryTransport

from ai4s.jobq import layout
from ai4s.jobq.errors import NotFound, Unreachable
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.lifecycle import Died, Preempted
from ai4s.jobq.log_lines import CUT, FULL, MAX_PACKED_TAIL_BYTES, MAX_TAIL_BYTES, plain, to_line
from ai4s.jobq.message import Call, Cause, Failure
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports import open_transport
from ai4s.jobq.transports.place import parse_place
from ai4s.jobq.worker import call_logs
from ai4s.jobq.worker.call_logs import CallLog, CallLogs, ChunkLogs, with_tail
from ai4s.jobq.worker.jobs import Said


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """All attempts begin at one moment, which is in the names of their logs."""
    monkeypatch.setattr(call_logs, "time", SimpleNamespace(time=lambda: 1_700_000_000.0))


CALL = Call("abcdefgh234567ab-000000000007", "proj.step", "default", b"", 0.0)
NAME = layout.call_log(CALL.id, (1, 1, 1_700_000_000.0), "ab")


class Spoiled:
    """A store whose next requests fail as told: "lost" is done and not answered, "down" is not done."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.faults: list[str] = []
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in ("put", "append", "head"):
            return found

        async def request(*args: Any, **kwargs: Any) -> Any:
            self.asked.append(name)
            fault = self.faults.pop(0) if self.faults else ""
            if fault == "broken":
                raise ValueError("a defect")
            answer = None if fault == "down" else await found(*args, **kwargs)
            if fault:
                raise Unreachable("no answer", maybe_done=fault == "lost")
            return answer

        return request


class Bench:
    """The logs of a worker, with a clock and a storage that the test holds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ledger = Ledger(MemoryTransport(MemoryPlace()), "proj", Keyring())
        self.store = Spoiled(self.ledger._store)
        self.ledger._store = self.store  # type: ignore[assignment]
        self.logs = CallLogs(self.ledger, "worker-1", lambda: self.now)

    def open(self) -> CallLog:
        return self.logs.open(CALL, "ab")

    async def step(self, seconds: float = 0.0) -> None:
        """Let time pass, and do what is due then."""
        self.now += seconds
        for each in list(self.logs._open):
            if each.due:
                await self.logs._store(each)

    async def text(self, name: str = NAME) -> str | None:
        """The blob as it lies there, its lines without times."""
        try:
            blob = await (await self.ledger.store()).get(name)
        except NotFound:
            return None
        return None if blob is None else plain(blob.data.decode())


@asynccontextmanager
async def keeping(logs: CallLogs) -> AsyncIterator[None]:
    """They are stored, for the length of the block."""
    task = asyncio.create_task(logs.keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def said(text: str, *, place: int = 0, tail_only: bool = False) -> Said:
    return Said(1, place, "".join(to_line(1.0, "o", line) for line in text.split("\n")), tail_only=tail_only)


HEAD = "Attempt 1, by worker worker-1"


async def test_a_call_that_is_short_and_says_little_costs_no_request() -> None:
    """Its lines are in the outcome, and nowhere else."""
    bench = Bench()
    log = bench.open()
    log.hear(said("one\ntwo"))
    await bench.step(1)
    assert plain(log.tail) == "one\ntwo"
    log.is_kept = True
    log.end()
    await bench.step(60)
    assert bench.store.asked == []
    assert log.is_over


async def test_an_attempt_without_an_outcome_is_kept_by_one_request() -> None:
    """One that is retried has no outcome that could keep its lines."""
    bench = Bench()
    log = bench.open()
    log.hear(said("one"))
    log.end()
    await bench.step()
    assert bench.store.asked == ["put"]
    assert await bench.text() == f"{HEAD}\none"


async def test_what_is_too_much_for_the_outcome_is_kept_by_one_request() -> None:
    """Although the call has an outcome, which holds only its last lines."""
    bench = Bench()
    log = bench.open()
    lines = "\n".join(f"line {number:04}" for number in range(500))
    log.hear(said(lines))
    log.is_kept = True
    log.end()
    await bench.step()
    assert bench.store.asked == ["put"]
    assert await bench.text() == f"{HEAD}\n{lines}"
    assert len(log.tail) <= MAX_TAIL_BYTES
    assert plain(log.tail).startswith(f"{CUT}\nline ")
    assert plain(log.tail).endswith("line 0499")


async def test_what_the_outcome_cannot_hold_is_stored_while_the_attempt_is_settled() -> None:
    """Not only after it: whoever finds the outcome looks for the log."""
    bench = Bench()
    log = bench.open()
    log.hear(said("little"))
    log.close()
    await bench.step()
    assert bench.store.asked == []
    log.hear(said("x" * 8000))
    log.close()
    await bench.step()
    assert bench.store.asked == ["put"]
    log.is_kept = True
    log.end()
    await bench.step(60)
    assert bench.store.asked == ["put"]


async def test_lines_wait_five_seconds_and_the_last_ones_may_stay_in_the_outcome() -> None:
    """A long call costs a request for each five seconds in which it speaks, and none at its end."""
    bench = Bench()
    log = bench.open()
    log.hear(said("one"))
    await bench.step(4.9)
    assert bench.store.asked == []
    await bench.step(0.2)
    assert await bench.text() == f"{HEAD}\none"
    await bench.step(100)
    assert bench.store.asked == ["append"]
    log.hear(said("two"))
    log.is_kept = True
    log.end()
    await bench.step(100)
    assert bench.store.asked == ["append"]
    assert plain(log.tail) == "one\ntwo"


async def test_much_at_once_is_stored_at_once() -> None:
    """64 KiB do not wait."""
    bench = Bench()
    log = bench.open()
    log.hear(said("x" * 70_000))
    await bench.step()
    assert bench.store.asked == ["append"]


@pytest.mark.parametrize("faults", [["lost"], ["down"], ["down", "lost"], ["lost", "down"], ["lost", "lost"]])
@pytest.mark.parametrize("ended", [False, True])
async def test_each_line_is_stored_once_whatever_becomes_of_the_answers(faults: list[str], *, ended: bool) -> None:
    """An append whose answer was lost is not repeated, and one that was not done is."""
    bench = Bench()
    log = bench.open()
    bench.store.faults = list(faults)
    log.hear(said("one"))
    if ended:
        log.end()
    for number in range(8):
        if not ended:
            log.hear(said(f"then {number}"))
        await bench.step(6)
    if not ended:
        log.end()
        await bench.step(6)
    told = ["one", *(() if ended else (f"then {number}" for number in range(8)))]
    assert await bench.text() == "\n".join([HEAD, *told])


async def test_while_the_storage_is_down_memory_is_bounded_and_the_gap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is left out, and the log says how much; the call notices nothing."""
    monkeypatch.setattr(call_logs, "MAX_WAITING_BYTES", 100_000)
    bench = Bench()
    log = bench.open()
    bench.store.faults = ["down"] * 5
    for number in range(1000):
        log.hear(said(f"{number} {'x' * 1000}"))
        await bench.step(0.02)
    assert log._waiting_bytes <= 100_000
    bench.store.faults = []
    for _ in range(3):
        await bench.step(6)
    stored = await bench.text()
    assert stored is not None
    assert "lines are left out here: the storage did not take them in time." in stored
    assert stored.split("\n")[1].startswith("0 ")
    assert stored.split("\n")[-1].startswith("999 ")


async def test_many_logs_share_what_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls speak, a worker's memory is bounded."""
    monkeypatch.setattr(call_logs, "MAX_ALL_WAITING_BYTES", 1_000_000)
    bench = Bench()
    logs = [bench.open() for _ in range(10)]
    for _ in range(300):
        for log in logs:
            log.hear(said("x" * 1000))
    assert sum(log._waiting_bytes for log in logs) <= 1_100_000


async def test_however_many_speak_nothing_is_left_out_while_the_storage_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The less each may hold in memory, the sooner it is stored."""
    monkeypatch.setattr(call_logs, "MAX_WAITING_BYTES", 1)
    bench = Bench()
    log = bench.open()
    for number in range(100):
        log.hear(said(f"{number:0100}"))
        await bench.step()
    log.end()
    await bench.step()
    stored = await bench.text()
    assert stored is not None
    assert stored.split("\n") == [HEAD, *(f"{number:0100}" for number in range(100))]


@pytest.mark.parametrize(("name", "limit"), [("MAX_LOGS", 3), ("MAX_ALL_WAITING_BYTES", 40)])
async def test_what_waits_of_calls_that_have_ended_has_a_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, limit: int
) -> None:
    """Of a batch whose calls speak faster than the storage takes it, some are left out, which the worker says."""
    monkeypatch.setattr(call_logs, name, limit)
    bench, stored = Bench(), asyncio.Semaphore(0)
    bench.store.put = _after(bench.store.put, stored.release)
    for number in range(5):
        log = bench.logs.open(replace(CALL, id=f"nightly.{number}"), "ab")
        log.hear(said("one"))
        log.end()
    async with keeping(bench.logs):
        for _ in range(3):
            await asyncio.wait_for(stored.acquire(), 30)
    assert bench.store.asked == ["put"] * 3
    assert "did not take them in time: 2" in caplog.text
    assert bench.logs.waiting_bytes == 0


async def test_what_is_said_while_a_log_is_stored_is_stored_after_it() -> None:
    """And nothing looks at a log meanwhile, however many there are."""
    bench, asked, free, stored = Bench(), asyncio.Event(), asyncio.Event(), asyncio.Semaphore(0)

    async def wait() -> None:
        asked.set()
        await free.wait()

    bench.store.append = _after(_before(bench.store.append, wait), stored.release)
    async with keeping(bench.logs):
        log = bench.open()
        log.hear(said("x" * call_logs.FLUSH_BYTES))
        await asyncio.wait_for(asked.wait(), 30)
        log.hear(said("y" * call_logs.FLUSH_BYTES))
        assert not bench.logs._open
        free.set()
        for _ in range(2):
            await asyncio.wait_for(stored.acquire(), 30)
    assert bench.store.asked == ["append"] * 2


async def test_an_attempt_has_a_limit_and_its_last_lines_are_known_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says that the rest is left out."""
    monkeypatch.setattr(call_logs, "MAX_STORED_BYTES", 10_000)
    bench = Bench()
    log = bench.open()
    for number in range(1000):
        log.hear(said(f"line {number}"))
    log.is_kept = True
    log.end()
    await bench.step()
    stored = await bench.text()
    assert stored is not None
    assert len(stored) < 10_500
    assert stored.endswith(FULL)
    assert plain(log.tail).endswith("line 999")


async def test_the_number_of_blocks_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append blob takes no more than 50,000 of them."""
    monkeypatch.setattr(call_logs, "MAX_BLOCKS", 3)
    bench = Bench()
    log = bench.open()
    for number in range(10):
        log.hear(said(f"line {number}"))
        await bench.step(6)
    assert bench.store.asked == ["append"] * 4
    stored = await bench.text()
    assert stored is not None
    assert stored.split("\n")[-2:] == ["line 2", FULL]


async def test_a_defect_in_storing_is_no_defect_of_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Such a log is given up, and said to be."""
    bench = Bench()
    log = bench.open()
    bench.store.faults = ["broken"]
    log.hear(said("one"))
    await bench.step(6)
    log.hear(said("two"))
    await bench.step(6)
    assert bench.store.asked == ["append"]
    assert "A call's log is given up." in caplog.text


async def test_what_is_left_is_stored_when_the_worker_ends_unless_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that is away keeps no worker from ending."""
    bench = Bench()
    bench.open().hear(said("one"))
    await bench.logs.finish()
    assert await bench.text() == f"{HEAD}\none"
    monkeypatch.setattr(call_logs, "LAST_SECONDS", 0.05)
    bench = Bench()
    bench.store.faults = ["down"] * 100
    bench.open().hear(said("one"))
    await asyncio.wait_for(bench.logs.finish(), 30)


async def test_it_is_stored_beside_the_call_as_soon_as_it_is_due() -> None:
    """Nobody waits for it."""
    bench = Bench()
    stored = asyncio.Event()
    bench.store.put = _after(bench.store.put, stored.set)
    keeping = asyncio.create_task(bench.logs.keep())
    await asyncio.sleep(0)
    log = bench.open()
    log.hear(said("one"))
    log.end()
    await asyncio.wait_for(stored.wait(), 30)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert await bench.text() == f"{HEAD}\none"


def _before(request: Callable[..., Any], first: Callable[[], Awaitable[Any]]) -> Callable[..., Any]:
    async def both(*args: Any, **kwargs: Any) -> Any:
        await first()
        return await request(*args, **kwargs)

    return both


def _after(request: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    async def both(*args: Any, **kwargs: Any) -> Any:
        answer = await request(*args, **kwargs)
        then()
        return answer

    return both


# packs


def chunk_logs(bench: Bench) -> ChunkLogs:
    return ChunkLogs(bench.logs, lambda place: Call(f"nightly.{place}", "proj.step", "default", b"", 0.0), "ab")


async def test_of_a_batch_that_asked_for_it_each_call_that_speaks_has_a_log() -> None:
    """One request for each, and none for those that say nothing."""
    bench = Bench()
    chunk = chunk_logs(bench)
    chunk.hear(said("three", place=3))
    chunk.hear(said("three again", place=3))
    chunk.hear(said("seven", place=7))
    await bench.step()
    assert bench.store.asked == ["put"]
    chunk.end()
    await bench.step()
    assert bench.store.asked == ["put", "put"]
    assert await bench.text(layout.call_log("nightly.3", (1, 1, 1_700_000_000.0), "ab")) == f"{HEAD}\nthree\nthree again"
    assert await bench.text(layout.call_log("nightly.7", (1, 1, 1_700_000_000.0), "ab")) == f"{HEAD}\nseven"


async def test_of_other_batches_only_the_last_lines_of_who_runs_are_known() -> None:
    """They go into the failure, should the process die of it; nothing is stored."""
    bench = Bench()
    chunk = chunk_logs(bench)
    chunk.hear(said("early", place=1, tail_only=True))
    for number in range(1000):
        chunk.hear(said(f"line {number}", place=2, tail_only=True))
    assert chunk.tail_of(1) == ""
    assert plain(chunk.tail_of(2)).endswith("line 998\nline 999")
    assert len(chunk.tail_of(2)) <= MAX_PACKED_TAIL_BYTES
    chunk.end()
    await bench.step(60)
    assert bench.store.asked == []
    died = with_tail(Died(Failure(Cause.DIED, "", "gone")), "its last lines")
    assert died.failure.tail == "its last lines"
    assert with_tail(Preempted(), "its last lines") == Preempted()


# on Azure


async def test_on_azure_lost_answers_leave_each_line_once(azurite_url: str) -> None:
    """The real append blob: made, appended to, and appended to again, each time with its answer lost."""
    async with faulty_account(azurite_url) as account:
        transport = await open_transport(parse_place(account.url))
        try:
            ledger = Ledger(transport, fresh_name(), Keyring())
            await ledger.store()
            now = [0.0]
            logs = CallLogs(ledger, "worker-1", lambda: now[0])
            log = logs.open(CALL, "ab")
            for number in range(4):
                log.hear(said(f"line {number}"))
                now[0] += 6
                account.plan = spoil("append", Fault.LOSE_ANSWER)
                for _ in range(3):
                    if log.due:
                        await logs._store(log)
                    now[0] += 6
            blob = await (await ledger.store()).get(NAME)
            assert blob is not None
            assert plain(blob.data.decode()) == "\n".join([HEAD, *(f"line {number}" for number in range(4))])
        finally:
            await transport.close()
