"""A delivery stays ours while leases are renewed, and not a moment longer than this machine can be sure of.

The clock and the queue are made up, so that hours pass at once and requests fail or hang where they are told to.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ai4s.jobq.errors import AccessDenied, LeaseLost, NotFound, TransportError, Unreachable
from ai4s.jobq.transports.base import Delivery, Queue, Receipt
from ai4s.jobq.worker import lease as lease_module
from ai4s.jobq.worker.lease import FIRST_LEASE_SECONDS, LONGEST_LEASE_SECONDS, Lease, LeaseKeeper
from ai4s.jobq.worker.settlement import releasing

START = 1_000_000.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class OneMessageQueue:
    """A queue with one message, whose answers may be lost, late, or refusals."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.token, self.visible_at, self.body = "0", START + FIRST_LEASE_SECONDS, "body"
        self.gone = False
        self.asked: list[tuple[str, float]] = []
        self.faults: deque[TransportError] = deque()
        self.lost_answers = 0
        self.gate: asyncio.Event | None = None
        self.tokens = itertools.count(1)
        self.inside = 0

    async def _request(self, what: str, receipt: Receipt, seconds: float = 0, body: str | None = None) -> Receipt:
        self.asked.append((what, seconds))
        self.inside += 1
        try:
            assert self.inside == 1, "two requests with one receipt at a time"
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            if self.faults:
                raise self.faults.popleft()
            if self.gone or receipt.token != self.token:
                raise LeaseLost
            self.token, self.visible_at, self.body = str(next(self.tokens)), self.clock.now + seconds, body or self.body
            self.gone = what == "delete"
            if self.lost_answers:
                self.lost_answers -= 1
                raise Unreachable
            return Receipt("m", self.token)
        finally:
            self.inside -= 1

    async def renew(self, receipt: Receipt, *, lease_seconds: float, body: str | None = None) -> Receipt:
        return await self._request("renew", receipt, lease_seconds, body)

    async def release(self, receipt: Receipt, *, delay_seconds: float = 0, body: str | None = None) -> None:
        await self._request("release", receipt, delay_seconds, body)

    async def delete(self, receipt: Receipt) -> None:
        await self._request("delete", receipt)

    @property
    def whats(self) -> list[str]:
        """The kinds of requests, in order."""
        return [what for what, _ in self.asked]


class World:
    """A clock, a queue, and the lease on its message."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue = OneMessageQueue(self.clock)
        self.keeper = LeaseKeeper(self.clock)
        self.delivery = Delivery(Receipt("m", "0"), "body", 1, START, START, received_at=START)
        self.lease = self.new_lease()

    def new_lease(self) -> Lease:
        """A lease that begins with the delivery."""
        return Lease(self.as_queue, self.delivery, self.clock)

    @property
    def as_queue(self) -> Queue:
        """The queue as what it stands for."""
        return self.queue  # type: ignore[return-value]  # the half of it that a lease uses

    def after(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now += seconds


@pytest.fixture
def world() -> World:
    """A delivery that was just received."""
    return World()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are tried again are tried at once."""
    monkeypatch.setattr(lease_module, "FIRST_PAUSE_SECONDS", 0.0)


@asynccontextmanager
async def keeping(world: World) -> AsyncIterator[Lease]:
    """The delivery under a lease that is kept, for one round at a time: the keeper looks when it is started."""
    async with world.keeper.hold(world.as_queue, world.delivery) as lease:
        yield lease


async def one_round(keeper: LeaseKeeper) -> None:
    """Let the keeper look once and finish what it began."""
    keeping = asyncio.create_task(keeper.keep())
    for _ in range(20):
        await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


# How long.


def test_a_lease_begins_before_the_request_that_granted_it(world: World) -> None:
    """It counts from when the receive went out, so an answer that came late left less of it."""
    world.after(FIRST_LEASE_SECONDS - 0.001)
    assert world.new_lease().held
    world.after(0.001)
    assert not world.new_lease().held


def test_a_lease_is_due_at_a_third(world: World) -> None:
    """Two more renewals may fail before it is lost."""
    world.after(FIRST_LEASE_SECONDS / 3 - 0.001)
    assert not world.lease.due
    world.after(0.001)
    assert world.lease.due


async def test_a_renewal_counts_from_before_its_request(world: World) -> None:
    """However long the answer took, the new deadline is reckoned from when the request went out."""
    world.after(15)
    world.queue.gate = asyncio.Event()
    renewing = asyncio.create_task(world.lease.renew())
    await asyncio.sleep(0)
    world.after(20)
    world.queue.gate.set()
    await renewing
    world.after(FIRST_LEASE_SECONDS - 20 - 0.001)
    assert world.lease.held
    world.after(0.001)
    assert not world.lease.held


async def test_a_lease_grows_to_a_tenth_of_the_age(world: World) -> None:
    """Short calls are redelivered soon; a day's call costs a renewal every 200 s, and at most ten minutes."""
    spans = []
    for _ in range(200):
        while not world.lease.due:
            world.after(1)
        await world.lease.renew()
        spans.append((world.clock.now - START, world.queue.asked[-1][1]))
    assert spans[0][1] == FIRST_LEASE_SECONDS
    for age, seconds in spans:
        assert seconds == pytest.approx(min(LONGEST_LEASE_SECONDS, max(FIRST_LEASE_SECONDS, age / 10)))
    assert spans[-1][1] == LONGEST_LEASE_SECONDS
    in_the_first_hour = sum(age < 3600 for age, _ in spans)
    assert in_the_first_hour < 100


async def test_a_lease_that_is_renewed_is_never_lost(world: World) -> None:
    """Renewed whenever it is due, it is held at every moment, and never visible to others."""
    for _ in range(5_000):
        world.after(1)
        assert world.lease.held
        assert world.clock.now < world.queue.visible_at
        if world.lease.due:
            await world.lease.renew()


# Lost.


async def test_a_lease_is_lost_at_its_deadline_though_nobody_says_so(world: World) -> None:
    """With a silent network it is over when it could be over: nothing is settled any more, and nothing is asked."""
    world.after(FIRST_LEASE_SECONDS)
    assert not world.lease.held
    with pytest.raises(LeaseLost):
        await world.lease.settle(releasing(0))
    with pytest.raises(LeaseLost):
        await world.lease.renew()
    assert world.queue.asked == []


async def test_a_lost_lease_stays_lost(world: World) -> None:
    """Once somebody was told that it is lost, it does not come back, whatever the clock says."""
    world.after(FIRST_LEASE_SECONDS)
    with pytest.raises(LeaseLost):
        await world.lease.renew()
    world.after(-FIRST_LEASE_SECONDS)
    assert not world.lease.held
    assert not world.lease.due


async def test_a_lease_is_lost_during_a_renewal_that_hangs(world: World) -> None:
    """A renewal without an answer does not keep it alive."""
    world.queue.gate = asyncio.Event()
    renewing = asyncio.create_task(world.lease.renew())
    await asyncio.sleep(0)
    world.after(FIRST_LEASE_SECONDS)
    assert not world.lease.held
    renewing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await renewing


async def test_what_the_server_says_is_lost_is_lost(world: World) -> None:
    """A void receipt ends the lease before its deadline."""
    world.queue.token = "of another delivery"
    with pytest.raises(LeaseLost):
        await world.lease.renew()
    assert not world.lease.held
    with pytest.raises(LeaseLost):
        await world.lease.settle(releasing(0))
    assert world.queue.whats == ["renew"]


async def test_a_failed_renewal_loses_nothing(world: World) -> None:
    """It is held until its old deadline, and due again at once."""
    world.after(15)
    world.queue.faults.append(Unreachable())
    with pytest.raises(Unreachable):
        await world.lease.renew()
    assert world.lease.held
    assert world.lease.due
    await world.lease.renew()
    world.after(44)
    assert world.lease.held


async def test_the_lost_answer_to_a_renewal_loses_the_lease_at_the_next_request(world: World) -> None:
    """The receipt is void and the new one unknown: the message stays hidden, and ours is over once that shows."""
    world.after(15)
    world.queue.lost_answers = 1
    with pytest.raises(Unreachable):
        await world.lease.renew()
    assert world.lease.held
    with pytest.raises(LeaseLost):
        await world.lease.renew()
    assert not world.lease.held
    with pytest.raises(LeaseLost):
        await world.lease.settle(releasing(0))


# Settled.


async def test_a_settled_lease_is_over(world: World) -> None:
    """After a release nothing is renewed, and nothing settled twice."""
    await world.lease.settle(releasing(7, "later"))
    assert world.queue.body == "later"
    assert world.queue.visible_at == world.clock.now + 7
    assert not world.lease.held
    world.after(20)
    assert not world.lease.due
    with pytest.raises(LeaseLost):
        await world.lease.settle(releasing(0))
    assert world.queue.whats == ["release"]


async def test_a_settlement_uses_the_receipt_of_the_last_renewal(world: World) -> None:
    """Each renewal voids the receipt before it."""
    for _ in range(3):
        await world.lease.renew()
    await world.lease.settle(releasing(0))
    assert world.queue.whats == ["renew"] * 3 + ["release"]


@pytest.mark.parametrize("first", ["renew", "settle", "delete"])
@pytest.mark.parametrize("second", ["renew", "settle", "delete"])
async def test_renewals_and_settlements_exclude_each_other(first: str, second: str, world: World) -> None:
    """Whichever comes while the other is under way waits for it, and then has the right receipt or none."""
    steps = {"renew": world.lease.renew, "settle": lambda: world.lease.settle(releasing(0)), "delete": world.lease.delete}
    world.queue.gate = asyncio.Event()
    one = asyncio.create_task(steps[first]())  # type: ignore[operator]  # each is called without arguments
    await asyncio.sleep(0)
    assert not world.lease.due
    other = asyncio.create_task(steps[second]())  # type: ignore[operator]  # (the same)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(world.queue.asked) == 1
    world.queue.gate.set()
    found = await asyncio.gather(one, other, return_exceptions=True)
    assert found[0] in (None, Receipt("m", "1"))
    assert isinstance(found[1], LeaseLost) == (first != "renew")


async def test_a_cancelled_renewal_does_not_block_a_settlement(world: World) -> None:
    """Whoever is cancelled while he holds the receipt lets it go."""
    world.queue.gate = asyncio.Event()
    renewing = asyncio.create_task(world.lease.renew())
    await asyncio.sleep(0)
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)
    world.queue.gate = None
    await world.lease.settle(releasing(0))
    assert not world.lease.held


async def test_a_late_delete_is_made_nevertheless(world: World) -> None:
    """What must come before a deletion is durable, so it is asked for even when the lease ran out."""
    world.after(FIRST_LEASE_SECONDS + 100)
    await world.lease.delete()
    assert world.queue.gone


@pytest.mark.parametrize("error", [Unreachable, AccessDenied])
async def test_a_delete_that_failed_is_tried_again(error: type[TransportError], world: World) -> None:
    """While the lease is held, a fault on the last request costs a pause and not a redelivery."""
    world.queue.faults.extend([error(), error()])
    await world.lease.patiently(world.lease.delete)
    assert world.queue.gone
    assert world.queue.whats == ["delete"] * 3
    assert not world.lease.held


@pytest.mark.parametrize("error", [Unreachable, AccessDenied])
async def test_a_settlement_that_failed_is_tried_again_while_the_lease_is_held(error: type[TransportError], world: World) -> None:
    """And given up when it is over, with the fault as the reason."""
    world.queue.faults.extend([error(), error()])
    await world.lease.patiently(lambda: world.lease.settle(releasing(3)))
    assert world.queue.whats == ["release"] * 3
    late = world.new_lease()
    world.after(FIRST_LEASE_SECONDS)
    with pytest.raises(LeaseLost):
        await late.patiently(lambda: late.settle(releasing(3)))


async def test_a_step_is_given_up_once_the_lease_is_over(world: World) -> None:
    """What cannot be done within the lease is left to the next delivery."""

    async def step() -> None:
        world.after(10)
        raise Unreachable

    with pytest.raises(Unreachable):
        await world.lease.patiently(step)
    assert world.clock.now == START + 50


# Kept.


async def test_a_keeper_renews_what_is_due_and_nothing_else(world: World) -> None:
    """One renewal a round for each lease that is due."""
    async with keeping(world) as lease:
        await one_round(world.keeper)
        assert world.queue.asked == []
        world.after(15)
        await one_round(world.keeper)
        assert world.queue.asked == [("renew", FIRST_LEASE_SECONDS)]
        assert not lease.due


async def test_a_keeper_leaves_alone_what_is_done(world: World) -> None:
    """Leases that were settled, or whose block has ended, are not renewed."""
    async with keeping(world) as lease:
        await lease.settle(releasing(0))
        world.after(15)
        await one_round(world.keeper)
    async with keeping(world):
        pass
    world.after(15)
    await one_round(world.keeper)
    assert world.queue.whats == ["release"]


@pytest.mark.parametrize(
    "error", [Unreachable(), AccessDenied(), LeaseLost(), NotFound(), TransportError("413")], ids=lambda error: type(error).__name__
)
async def test_a_keeper_survives_every_fault(error: TransportError, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a renewal ends with is said, and the other leases are kept."""
    other = World()
    other.clock = world.clock
    other.queue.clock = world.clock
    world.queue.faults.append(error)
    async with keeping(world), world.keeper.hold(other.as_queue, other.delivery):
        world.after(15)
        with caplog.at_level(logging.WARNING):
            keeper = asyncio.create_task(world.keeper.keep())
            for _ in range(20):
                await asyncio.sleep(0)
            assert not keeper.done()
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
    assert other.queue.whats == ["renew"]
    assert len(caplog.records) == 1


async def test_a_keeper_does_not_wait_for_one_that_hangs(world: World) -> None:
    """A renewal without an answer keeps no other lease from being renewed, and is not asked for twice."""
    other = World()
    other.queue.clock = world.clock
    world.queue.gate = asyncio.Event()
    async with keeping(world), world.keeper.hold(other.as_queue, other.delivery):
        world.after(15)
        await one_round(world.keeper)
    assert world.queue.whats == ["renew"]
    assert other.queue.whats == ["renew"]


async def test_a_lost_lease_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A lease that ran out is noticed by the keeper, once."""
    async with keeping(world):
        world.after(FIRST_LEASE_SECONDS)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await one_round(world.keeper)
    assert len(caplog.records) == 1
    assert world.queue.asked == []
