"""What `base.Queue` promises."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import pytest

from ai4s.jobq.clock import boottime
from ai4s.jobq.errors import LeaseLost, NotFound, PlaceTaken
from ai4s.jobq.transports.base import MAX_BODY_BYTES, MAX_DELAY_SECONDS, MAX_RECEIVE, Delivery, Queue, Receipt, Transport

T = TypeVar("T")
Until = Callable[..., Coroutine[Any, Any, Any]]
HOUR = 3600.0


class Run(Protocol):
    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


async def take(queue: Queue, *, lease_seconds: float = HOUR) -> Delivery:
    """The one message that is visible."""
    [delivery] = await queue.receive(1, lease_seconds=lease_seconds)
    return delivery


def test_a_message_is_received_as_it_was_sent(run: Run, queue: Queue) -> None:
    """The text arrives unchanged, whatever script it is in."""
    for body in ("plain", "Grüße, 東京 🧪 \u00a0", "a\nb\tc", '{"x": "<&>\\""}', "x" * MAX_BODY_BYTES):
        run(queue.send(body))
        delivery = run(take(queue))
        assert delivery.body == body
        run(queue.delete(delivery.receipt))


def test_a_first_delivery_says_when_and_how_often(run: Run, queue: Queue) -> None:
    """The count begins at 1; the times are the server's, and the lease is counted from before the request."""
    run(queue.send("x"))
    before, delivery, after = boottime(), run(take(queue)), boottime()
    assert delivery.dequeue_count == 1
    assert before <= delivery.received_at <= after
    assert abs(delivery.server_time - time.time()) < 60
    assert abs(delivery.inserted - delivery.server_time) < 60


def test_an_empty_queue_answers_at_once(run: Run, queue: Queue) -> None:
    """A receive never waits for a message."""
    assert run(queue.receive(MAX_RECEIVE, lease_seconds=30)) == []


def test_a_received_message_is_invisible(run: Run, queue: Queue, other_queue: Queue) -> None:
    """Nobody else gets a message while its lease lasts."""
    run(queue.send("x"))
    run(take(queue))
    assert run(queue.receive(1, lease_seconds=30)) == []
    assert run(other_queue.receive(1, lease_seconds=30)) == []


def test_receive_takes_no_more_than_asked(run: Run, queue: Queue) -> None:
    """Of many messages as many are taken as were asked for, and never more than the limit."""

    async def scenario() -> None:
        await asyncio.gather(*(queue.send(str(i)) for i in range(MAX_RECEIVE + 8)))
        assert len(await queue.receive(5, lease_seconds=HOUR)) == 5
        assert len(await queue.receive(MAX_RECEIVE + 1, lease_seconds=HOUR)) == MAX_RECEIVE
        assert len(await queue.receive(MAX_RECEIVE, lease_seconds=HOUR)) == 3

    run(scenario())


def test_a_message_comes_back_when_its_lease_ends(run: Run, queue: Queue, until: Until) -> None:
    """Who takes a message and vanishes loses it to the next one, with a higher count."""
    run(queue.send("x"))
    run(take(queue, lease_seconds=1))
    [again] = run(until(lambda: queue.receive(1, lease_seconds=HOUR)))
    assert (again.body, again.dequeue_count) == ("x", 2)


def test_a_lease_lasts_as_long_as_promised(run: Run, queue: Queue, until: Until) -> None:
    """A message does not come back before `received_at` plus the lease."""
    run(queue.send("x"))
    first = run(take(queue, lease_seconds=2))
    run(until(lambda: queue.receive(1, lease_seconds=HOUR)))
    # The service counts whole seconds, and cuts the moment of the receive down to one.
    assert boottime() >= first.received_at + 1


def test_a_receipt_is_void_after_redelivery(run: Run, queue: Queue, other_queue: Queue, until: Until) -> None:
    """The earlier holder can neither renew, release nor delete what somebody else holds now."""
    run(queue.send("x"))
    stale = run(take(queue, lease_seconds=1)).receipt
    [current] = run(until(lambda: other_queue.receive(1, lease_seconds=HOUR)))
    for settle in (queue.delete(stale), queue.release(stale), queue.renew(stale, lease_seconds=30)):
        with pytest.raises(LeaseLost):
            run(settle)
    run(other_queue.delete(current.receipt))


def test_a_receipt_that_ran_out_still_deletes(run: Run, queue: Queue, until: Until) -> None:
    """Until somebody else receives the message, its last holder may settle it."""
    run(queue.send("x"))
    receipt = run(take(queue, lease_seconds=1)).receipt
    run(until(lambda: queue.peek(1)))
    run(queue.delete(receipt))
    assert run(queue.depth()) == 0


def test_a_deleted_message_is_gone(run: Run, queue: Queue) -> None:
    """A second delete finds nothing to hold."""
    run(queue.send("x"))
    receipt = run(take(queue)).receipt
    run(queue.delete(receipt))
    assert run(queue.depth()) == 0
    with pytest.raises(LeaseLost):
        run(queue.renew(receipt, lease_seconds=30))


def test_renewing_keeps_a_message(run: Run, queue: Queue, until: Until) -> None:
    """A renewed lease outlasts the first one."""

    async def scenario() -> None:
        await queue.send("held")
        await queue.send("witness")
        deliveries = {delivery.body: delivery for delivery in await queue.receive(2, lease_seconds=1)}
        await queue.renew(deliveries["held"].receipt, lease_seconds=HOUR)
        # The other message, with the first lease only, shows when that lease is over.
        [witness] = await until(lambda: queue.receive(MAX_RECEIVE, lease_seconds=HOUR))
        assert witness.body == "witness"

    run(scenario())


def test_renewing_voids_the_old_receipt(run: Run, queue: Queue) -> None:
    """Only the receipt that a renewal returns is good afterwards."""
    run(queue.send("x"))
    old = run(take(queue)).receipt
    new = run(queue.renew(old, lease_seconds=30))
    for settle in (queue.delete(old), queue.release(old), queue.renew(old, lease_seconds=30)):
        with pytest.raises(LeaseLost):
            run(settle)
    run(queue.delete(new))


def test_renewing_with_a_body_replaces_it(run: Run, queue: Queue, until: Until) -> None:
    """The next delivery brings the body of the renewal, and without one the body stays."""

    async def scenario() -> None:
        await queue.send("first")
        renewed = await queue.renew((await take(queue)).receipt, lease_seconds=1, body="zweite ☕")
        await queue.renew(renewed, lease_seconds=1)
        [again] = await until(lambda: queue.receive(1, lease_seconds=HOUR))
        assert (again.body, again.dequeue_count) == ("zweite ☕", 2)

    run(scenario())


def test_a_released_message_is_visible_at_once(run: Run, queue: Queue) -> None:
    """Releasing gives the message to the next one, and voids the receipt."""
    run(queue.send("x"))
    first = run(take(queue))
    run(queue.release(first.receipt))
    again = run(take(queue))
    assert (again.body, again.dequeue_count) == ("x", 2)
    with pytest.raises(LeaseLost):
        run(queue.delete(first.receipt))


def test_release_with_a_body_is_a_retry_in_place(run: Run, queue: Queue) -> None:
    """The message stays the same one, with another body."""
    run(queue.send("first"))
    first = run(take(queue))
    run(queue.release(first.receipt, body="second"))
    again = run(take(queue))
    assert (again.body, again.receipt.message_id) == ("second", first.receipt.message_id)


def test_release_with_a_delay_hides_the_message(run: Run, queue: Queue, until: Until) -> None:
    """A released message comes back after the delay and not before."""
    run(queue.send("x"))
    run(queue.release(run(take(queue)).receipt, delay_seconds=2))
    released_at = time.monotonic()
    assert run(queue.receive(1, lease_seconds=30)) == []
    run(until(lambda: queue.receive(1, lease_seconds=HOUR)))
    assert time.monotonic() - released_at >= 1  # whole seconds


def test_a_delayed_message_waits(run: Run, queue: Queue, until: Until) -> None:
    """A message sent with a delay cannot be seen before it is due."""
    run(queue.send("later", delay_seconds=2))
    sent_at = time.monotonic()
    assert run(queue.receive(1, lease_seconds=30)) == []
    assert run(queue.peek(1)) == []
    [delivery] = run(until(lambda: queue.receive(1, lease_seconds=HOUR)))
    assert (delivery.body, delivery.dequeue_count) == ("later", 1)
    assert time.monotonic() - sent_at >= 1  # whole seconds


def test_the_longest_delay_and_lease_are_taken(run: Run, queue: Queue) -> None:
    """Seven days are allowed; more is refused, not cut short."""
    run(queue.send("later", delay_seconds=MAX_DELAY_SECONDS))
    run(queue.send("now"))
    run(take(queue, lease_seconds=MAX_DELAY_SECONDS))
    with pytest.raises(ValueError, match=str(MAX_DELAY_SECONDS)):
        run(queue.send("x", delay_seconds=MAX_DELAY_SECONDS + 1))
    with pytest.raises(ValueError, match=str(MAX_DELAY_SECONDS)):
        run(queue.receive(1, lease_seconds=MAX_DELAY_SECONDS + 1))


@pytest.mark.parametrize("body", ["x" * (MAX_BODY_BYTES + 1), "é" * (MAX_BODY_BYTES // 2 + 1)], ids=["ascii", "utf8"])
def test_a_body_over_the_limit_is_refused(run: Run, queue: Queue, body: str) -> None:
    """The limit is on the bytes as UTF-8, for send, renew and release."""
    run(queue.send("x"))
    receipt = run(take(queue)).receipt
    attempts = (queue.send(body), queue.renew(receipt, lease_seconds=30, body=body), queue.release(receipt, body=body))
    for attempt in attempts:
        with pytest.raises(ValueError, match=str(MAX_BODY_BYTES)):
            run(attempt)
    assert run(queue.depth()) == 1


def test_the_receipt_of_a_send_cancels_it(run: Run, queue: Queue) -> None:
    """What nobody has received can be deleted by its sender."""
    receipt = run(queue.send("x", delay_seconds=60))
    run(queue.delete(receipt))
    assert run(queue.depth()) == 0


def test_the_receipt_of_a_send_is_void_once_received(run: Run, queue: Queue) -> None:
    """A sender cannot take back what somebody works on."""
    receipt = run(queue.send("x"))
    delivery = run(take(queue))
    with pytest.raises(LeaseLost):
        run(queue.delete(receipt))
    run(queue.delete(delivery.receipt))


def test_a_receipt_is_good_on_another_transport(run: Run, queue: Queue, other_queue: Queue) -> None:
    """A receipt is data: whoever holds it holds the message."""
    run(queue.send("x"))
    delivery = run(take(queue))
    copy = Receipt(delivery.receipt.message_id, delivery.receipt.token)
    run(other_queue.delete(run(other_queue.renew(copy, lease_seconds=30))))
    assert run(queue.depth()) == 0


def test_peek_changes_nothing(run: Run, queue: Queue) -> None:
    """A look leaves messages visible and their count as it was; it does not show invisible ones."""

    async def scenario() -> None:
        for body in ("a", "b", "c"):
            await queue.send(body)
        assert set(await queue.peek(MAX_RECEIVE)) == {"a", "b", "c"}
        assert len(await queue.peek(2)) == 2
        deliveries = await queue.receive(2, lease_seconds=HOUR)
        assert [delivery.dequeue_count for delivery in deliveries] == [1, 1]
        assert len(await queue.peek(MAX_RECEIVE)) == 1

    run(scenario())


def test_depth_counts_invisible_messages(run: Run, queue: Queue) -> None:
    """Leased and delayed messages count as well."""
    run(queue.send("a"))
    run(take(queue))
    run(queue.send("b"))
    run(queue.send("c", delay_seconds=60))
    assert run(queue.depth()) == 3


def test_clear_removes_everything(run: Run, queue: Queue) -> None:
    """Afterwards there is nothing, visible or not, and no receipt holds; the queue itself stays."""
    run(queue.send("a"))
    delivery = run(take(queue))
    run(queue.send("b"))
    run(queue.send("c", delay_seconds=60))
    run(queue.clear())
    assert run(queue.depth()) == 0
    with pytest.raises(LeaseLost):
        run(queue.renew(delivery.receipt, lease_seconds=30))
    run(queue.send("d"))


def test_creating_twice_is_fine(run: Run, queue: Queue, other_queue: Queue) -> None:
    """A queue that is there stays as it is, with what lies in it."""
    run(queue.send("x"))
    run(queue.create())
    run(other_queue.create())
    assert run(queue.depth()) == 1


def test_creating_at_once_is_fine(run: Run, transport: Transport, open_another: Callable[[], Transport], unique: str) -> None:
    """Several that make the same queue at the same moment all find it theirs."""
    queues = [one.queue(unique, app="one") for one in (transport, open_another(), open_another())]

    async def scenario() -> None:
        await asyncio.gather(*(queue.create() for queue in queues for _ in range(4)))

    run(scenario())
    assert run(queues[0].depth()) == 0


def test_another_apps_queue_is_refused(run: Run, queue: Queue, transport: Transport) -> None:
    """Two apps whose names make the same queue notice, and the first one keeps it."""
    with pytest.raises(PlaceTaken, match=queue.name):
        run(transport.queue(queue.name, app="two").create())
    run(queue.create())


def test_a_check_makes_nothing_and_tells_whose_the_queue_is(run: Run, queue: Queue, transport: Transport, unique: str) -> None:
    """Where a queue may not be made, it can still be seen to be there, and to be ours."""
    run(queue.check())
    with pytest.raises(PlaceTaken, match=queue.name):
        run(transport.queue(queue.name, app="two").check())
    absent = transport.queue(f"{unique}-absent", app="one")
    for _ in range(2):
        with pytest.raises(NotFound):
            run(absent.check())


def test_an_absent_queue_is_not_found(run: Run, transport: Transport, unique: str) -> None:
    """Nothing makes a queue but `create`."""
    absent = transport.queue(unique, app="one")
    for request in (absent.send("x"), absent.receive(1, lease_seconds=30), absent.peek(1), absent.depth(), absent.clear()):
        with pytest.raises(NotFound):
            run(request)


def test_queues_of_one_place_are_apart(run: Run, queue: Queue, transport: Transport, unique: str) -> None:
    """A message is in its own queue only, and its receipt is good there only."""
    neighbour = transport.queue(f"{unique}-b", app="one")
    run(neighbour.create())
    receipt = run(queue.send("x"))
    assert run(neighbour.receive(1, lease_seconds=30)) == []
    with pytest.raises(LeaseLost):
        run(neighbour.delete(receipt))
    assert run(queue.depth()) == 1


def test_a_queue_knows_its_name(transport: Transport, unique: str) -> None:
    """The name is the one that was asked for."""
    assert transport.queue(unique, app="one").name == unique


def test_concurrent_receivers_share_without_overlap(run: Run, queue: Queue, other_queue: Queue) -> None:
    """Of many receives at once, each message goes to exactly one."""

    async def scenario() -> None:
        await asyncio.gather(*(queue.send(str(i)) for i in range(100)))
        receives = (one.receive(7, lease_seconds=HOUR) for one in (queue, other_queue) for _ in range(12))
        bodies = [delivery.body for deliveries in await asyncio.gather(*receives) for delivery in deliveries]
        while rest := await queue.receive(MAX_RECEIVE, lease_seconds=HOUR):
            bodies += [delivery.body for delivery in rest]
        assert sorted(bodies) == sorted(map(str, range(100)))

    run(scenario())


def test_a_strange_text_does_not_block_the_others(run: Run, queue: Queue, until: Until) -> None:
    """A control character is refused or delivered; either way the messages beside it are received."""

    async def scenario() -> None:
        with contextlib.suppress(ValueError):
            await queue.send("bell \x07")
        await queue.send("good")
        seen: set[str] = set()

        async def has_come() -> bool:
            seen.update(delivery.body for delivery in await queue.receive(MAX_RECEIVE, lease_seconds=1))
            return "good" in seen

        await until(has_come)

    run(scenario())


def test_idle_ends_in_time(run: Run, queue: Queue) -> None:
    """Nothing comes, and the sleep is as long as asked and not much longer."""
    began_at = time.monotonic()
    run(queue.idle(0.3))
    assert 0.25 <= time.monotonic() - began_at < 10


def test_idle_does_not_take_messages(run: Run, queue: Queue) -> None:
    """Sleeping on a queue leaves what lies there as it is."""
    run(queue.send("x"))
    run(queue.idle(0.05))
    assert run(take(queue)).dequeue_count == 1


def test_a_cancelled_request_harms_no_other(run: Run, queue: Queue) -> None:
    """Callers that go away leave a transport that works."""

    async def scenario() -> None:
        requests = [asyncio.ensure_future(queue.send(str(i))) for i in range(20)]
        idle = asyncio.ensure_future(queue.idle(60))
        await asyncio.sleep(0)
        for request in (*requests[::2], idle):
            request.cancel()
        results = await asyncio.gather(*requests, idle, return_exceptions=True)
        assert not any(isinstance(result, Exception) for result in results)
        assert await queue.depth() >= 10

    run(scenario())
