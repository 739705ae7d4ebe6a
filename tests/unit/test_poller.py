"""Which queue is asked next, and how long a worker rests: weights, strict order, and pauses that grow, on a made-up clock."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ai4s.jobq.errors import AccessDenied, ConfigurationError, DeclarationError, NotFound, PlaceTaken, TransportError, Unreachable
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.base import Delivery, Queue, Receipt
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.place import LocalPlace
from ai4s.jobq.worker import poller as poller_module
from ai4s.jobq.worker.poller import Line, Poller, Turn, parse_queues


class Time:
    """A clock that goes on only when everybody sleeps, and then to the first who wakes."""

    def __init__(self) -> None:
        self.now = 5_000.0
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def passes(self, seconds: float) -> None:
        """So many seconds, on this clock."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.now + seconds, turn))
        await turn

    async def until(self, work: asyncio.Task[None]) -> None:
        """Let time pass until this is done."""
        for _ in itertools.count():
            for _ in range(40):  # turns of the loop; what one wake-up sets off needs about a dozen
                await asyncio.sleep(0)
            if work.done():
                return work.result()
            self.sleepers = [(when, turn) for when, turn in self.sleepers if not turn.done()]
            assert self.sleepers, "it waits for nothing"
            self.now = max(self.now, min(when for when, _ in self.sleepers))
            for when, turn in self.sleepers:
                if when <= self.now:
                    turn.set_result(None)
        return None


class FakeQueue:
    """A queue that has messages, or faults, and notes when it was asked for how many."""

    def __init__(self, name: str, time: Time) -> None:
        self.name, self.time = name, time
        self.messages: float = 0
        self.fault: TransportError | None = None
        self.rung = asyncio.Event()
        self.cannot_idle: Exception | None = None
        self.asked: list[tuple[float, int]] = []
        self.idled = 0
        self.idling = 0

    async def receive(self, n: int, *, lease_seconds: float) -> list[Delivery]:
        assert lease_seconds > 0
        self.asked.append((self.time.now, n))
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        taken = int(min(n, self.messages))
        self.messages -= taken
        return [Delivery(Receipt(str(i), ""), self.name, 1, 0, 0, self.time.now) for i in range(taken)]

    async def idle(self, seconds: float) -> None:
        self.idled += 1
        if self.cannot_idle is not None:
            raise self.cannot_idle
        self.idling += 1
        waits = {asyncio.create_task(self.time.passes(seconds)), asyncio.create_task(self.rung.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.idling -= 1
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def depth(self) -> int:
        return int(self.messages)


class World:
    """A poller on made-up queues, by groups as `--queue` names them."""

    def __init__(self, time: Time, *groups: str) -> None:
        self.time = time
        turns = parse_queues("proj", groups)
        self.queues = {turn.queue: FakeQueue(turn.queue, time) for group in turns for turn in group}
        self.poller = Poller([[self.line(turn.queue) for turn in group] for group in turns], turns)

    def line(self, name: str) -> Line:
        """A line before one of the queues."""
        queue: Queue = self.queues[name]  # type: ignore[assignment]  # the half of it that a poller uses
        return Line(name, queue)

    async def fetched(self, times: int, room: int = 1) -> list[str | None]:
        """The queues that so many fetches had something of."""
        found = [await self.poller.fetch(room) for _ in range(times)]
        return [each[0].name if each else None for each in found]

    async def rest(self) -> None:
        """Rest once, on the made-up clock."""
        await self.time.until(asyncio.create_task(self.poller.rest()))

    async def poll_for(self, seconds: float) -> None:
        """Fetch and rest for so long, as a worker with room does."""
        end = self.time.now + seconds
        while self.time.now < end:
            if await self.poller.fetch(1) is None:
                await self.rest()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The clock that the poller looks at."""
    time = Time()
    monkeypatch.setattr(poller_module, "boottime", time)
    return time


@pytest.fixture
def world(time: Time) -> Callable[..., World]:
    """Makes a poller for these groups."""
    return lambda *groups: World(time, *groups)


# What --queue means.


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["default"], ((Turn("default"),),)),
        (["a,b"], ((Turn("a"), Turn("b")),)),
        (["a:3, b ,c:1"], ((Turn("a", 3), Turn("b"), Turn("c")),)),
        (["a", "b,c"], ((Turn("a"),), (Turn("b"), Turn("c")))),
        (["a,"], ((Turn("a"),),)),
    ],
)
def test_queues_are_named_in_groups(texts: list[str], expected: object) -> None:
    """Commas are round robin, colons are weights, several options are a strict order."""
    assert parse_queues("proj", texts) == expected


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        [","],
        ["a", " "],
        ["a:"],
        ["a:0"],
        ["a:-1"],
        ["a:1.5"],
        ["a:x"],
        ["a:3:4"],
        ["a:\u00b2"],
        ["a:\u0663"],
        ["a:1000000000000"],
    ],
    ids=str,
)
def test_what_is_no_queue_or_weight_is_refused(texts: list[str]) -> None:
    """The error says what --queue wants; a weight is a small whole number."""
    with pytest.raises(ConfigurationError, match="--queue"):
        parse_queues("proj", texts)


@pytest.mark.parametrize("texts", [["GPU"], ["a,failed"], ["x" * 60], [":3"], ["../x"]], ids=str)
def test_a_name_that_no_queue_can_have_is_refused(texts: list[str]) -> None:
    """With the error that a declaration gets."""
    with pytest.raises(DeclarationError):
        parse_queues("proj", texts)


# Turns.


async def test_queues_take_turns_by_weight(world: Callable[..., World]) -> None:
    """With enough in all of them, each gets its share, and none waits longer than a round."""
    here = world("a:3,b,c:2")
    for queue in here.queues.values():
        queue.messages = math.inf
    found = await here.fetched(60)
    assert Counter(found) == {"a": 30, "b": 10, "c": 20}
    for start in range(54):
        assert set(found[start : start + 6]) == {"a", "b", "c"}


async def test_the_share_of_an_empty_queue_goes_to_the_others(world: Callable[..., World]) -> None:
    """A queue without messages costs no turn, only a look."""
    here = world("a:5,b")
    here.queues["b"].messages = math.inf
    assert await here.fetched(10) == ["b"] * 10
    assert len(here.queues["a"].asked) == 1


async def test_a_later_group_waits_for_the_earlier_ones(world: Callable[..., World]) -> None:
    """Strict order: as long as the first has messages, the second is not even asked."""
    here = world("urgent", "a,b", "rest")
    here.queues["urgent"].messages = 5
    for name in ("a", "b", "rest"):
        here.queues[name].messages = 2
    assert await here.fetched(5) == ["urgent"] * 5
    assert here.queues["a"].asked == []
    assert sorted(name or "" for name in await here.fetched(4)) == ["a", "a", "b", "b"]
    assert await here.fetched(3) == ["rest", "rest", None]


async def test_an_earlier_group_comes_first_again_as_soon_as_it_is_due(world: Callable[..., World]) -> None:
    """What is sent to the first queue while the second one is worked off is taken at its next look."""
    here = world("urgent", "rest")
    here.queues["rest"].messages = math.inf
    assert await here.fetched(1) == ["rest"]
    here.queues["urgent"].messages = 1
    here.time.now += 0.05
    assert await here.fetched(2) == ["urgent", "rest"]


async def test_no_more_is_asked_for_than_there_is_room(world: Callable[..., World]) -> None:
    """And nothing where there is none."""
    here = world("a")
    here.queues["a"].messages = 100
    found = await here.poller.fetch(7)
    assert found is not None
    assert len(found[1]) == 7
    assert await here.poller.fetch(0) is None
    assert [n for _, n in here.queues["a"].asked] == [7]


# Pauses.


def pauses(queue: FakeQueue) -> list[float]:
    """The times between looks."""
    return [later - earlier for (earlier, _), (later, _) in itertools.pairwise(queue.asked)]


async def test_an_idle_queue_is_asked_ever_more_rarely(world: Callable[..., World]) -> None:
    """Within 50 ms at first, every 5 s or so after half a minute: an idle hour costs some 800 looks, not 100,000."""
    here = world("a")
    start = here.time.now
    await here.poll_for(3600)
    looks = [when - start for when, _ in here.queues["a"].asked]
    awake = [pause for pause, when in zip(pauses(here.queues["a"]), looks, strict=False) if when < 2.5]
    asleep = [pause for pause, when in zip(pauses(here.queues["a"]), looks, strict=False) if when > 60]
    assert max(awake) < 0.05
    assert min(asleep) > 3.7
    assert max(asleep) < 6.3
    assert len(looks) < 1_100
    assert len([when for when in looks if when > 3540]) <= 17
    assert len({round(pause, 6) for pause in asleep[:50]}) > 40, "without jitter, workers that start together ask together"


async def test_a_message_wakes_its_queue(world: Callable[..., World]) -> None:
    """After a message a queue is asked again at once, and often for a while."""
    here = world("a")
    await here.poll_for(600)
    here.queues["a"].messages = 1
    await here.poll_for(6)
    here.queues["a"].asked.clear()
    await here.poll_for(0.5)
    here.queues["a"].messages = 1
    here.time.now = here.poller.lines[0].due
    await here.poller.fetch(1)
    here.queues["a"].asked.clear()
    await here.poll_for(2)
    assert max(pauses(here.queues["a"])) < 0.05


async def test_an_idle_queue_is_not_asked_at_the_pace_of_a_busy_one(world: Callable[..., World]) -> None:
    """Each queue has its own pauses: what is idle stays cheap beside one that is awake."""
    here = world("busy,idle")
    await here.poll_for(600)
    here.queues["idle"].asked.clear()
    for _ in range(40):
        here.queues["busy"].messages = 1
        here.poller.lines[0].due = 0.0
        await here.poll_for(1.5)
    assert len(here.queues["busy"].asked) > 500
    assert len(here.queues["idle"].asked) < 40


async def test_what_is_known_to_be_sent_ends_the_rest(world: Callable[..., World]) -> None:
    """Where the transport can tell of a message, its queue is due at once, and no other one."""
    here = world("a,b")
    await here.poll_for(600)
    await here.fetched(1)
    resting = asyncio.create_task(here.poller.rest())
    for _ in range(8):
        await asyncio.sleep(0)
    before = here.time.now
    here.queues["b"].rung.set()
    await resting
    assert here.time.now == before
    assert here.poller.lines[1].due <= before
    assert here.poller.lines[0].due > before


async def test_a_cancelled_rest_leaves_nobody_idling(world: Callable[..., World]) -> None:
    """Whoever stops resting takes all waits along."""
    here = world("a,b", "c")
    await here.poll_for(60)
    resting = asyncio.create_task(here.poller.rest())
    for _ in range(8):
        await asyncio.sleep(0)
    assert sum(queue.idling for queue in here.queues.values()) == 3
    resting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resting
    assert sum(queue.idling for queue in here.queues.values()) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Faults.


@pytest.mark.parametrize(("error", "longest"), [(Unreachable, 5), (AccessDenied, 30), (NotFound, 30), (PlaceTaken, 30)])
async def test_a_queue_in_trouble_is_asked_ever_more_rarely_and_said_once(
    error: type[TransportError], longest: float, world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """One line for a series; pauses up to 10 s where it may pass, 30 s where a person has to act; then all is as before."""
    here = world("a")
    here.queues["a"].fault = error()
    with caplog.at_level(logging.INFO):
        await here.poll_for(600)
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert pauses(here.queues["a"])[0] <= 0.5
    assert longest / 2 <= max(pauses(here.queues["a"])) <= longest
    here.queues["a"].fault, here.queues["a"].messages = None, 1
    start = here.time.now
    await here.poll_for(longest + 1)
    assert here.queues["a"].messages == 0
    assert here.time.now - start < longest + 8


async def test_a_series_of_faults_begins_anew_after_a_success(
    world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """The next trouble is said again, and begins with short pauses."""
    here = world("a")
    for _ in range(2):
        here.queues["a"].fault = Unreachable()
        await here.poll_for(60)
        here.queues["a"].fault = None
        await here.poll_for(60)
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 2


async def test_trouble_with_one_queue_keeps_no_other_from_being_asked(world: Callable[..., World]) -> None:
    """Neither in its group nor in a later one."""
    here = world("bad,good", "later")
    here.queues["bad"].fault = Unreachable()
    here.queues["good"].messages, here.queues["later"].messages = 3, 3
    found = await here.fetched(6)
    assert Counter(found) == {"good": 3, "later": 3}
    assert len(here.queues["bad"].asked) == 1


async def test_an_unknown_fault_of_the_storage_does_not_end_the_worker(world: Callable[..., World]) -> None:
    """Whatever the transport makes of an answer, it is a fault of this queue and no more."""
    here = world("bad,good")
    here.queues["bad"].fault = TransportError("409 of a new kind")
    here.queues["good"].messages = 1
    assert await here.fetched(1) == ["good"]


async def test_a_queue_that_cannot_idle_does_not_make_the_worker_spin(world: Callable[..., World]) -> None:
    """Where even waiting fails (a folder that is gone), the pauses still take their time."""
    here = world("a,b")
    await here.poll_for(60)
    here.queues["a"].cannot_idle = Unreachable()
    here.queues["a"].fault = Unreachable()
    here.queues["a"].idled = 0
    try:
        async with asyncio.timeout(0.3):
            while True:
                if await here.poller.fetch(1) is None:
                    await here.poller.rest()
    except TimeoutError:
        pass
    assert here.queues["a"].idled < 10


async def test_depth_counts_all_queues(world: Callable[..., World]) -> None:
    """Of every group."""
    here = world("a,b", "c")
    for number, queue in enumerate(here.queues.values(), 1):
        queue.messages = number
    assert await here.poller.depth() == 6


async def test_a_poller_is_opened_on_a_ledgers_queues(tmp_path: Path) -> None:
    """All queues are there when it is open, in the order in which they were named; a message comes with its line."""
    transport = await LocalTransport.open(LocalPlace(tmp_path / "place"))
    try:
        ledger = Ledger(transport, "proj", Keyring())
        poller = await Poller.open(ledger, parse_queues("proj", ["default", "gpu,cpu"]))
        assert [line.name for line in poller.lines] == ["default", "gpu", "cpu"]
        assert [line.queue.name for line in poller.lines] == ["proj", "proj-gpu", "proj-cpu"]
        await (await ledger.queue("cpu")).send("hello")
        found = await poller.fetch(5)
        assert found is not None
        assert (found[0].name, [delivery.body for delivery in found[1]]) == ("cpu", ["hello"])
        assert await poller.depth() == 1
    finally:
        await transport.close()
