"""What `base.Transport` promises."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Protocol, TypeVar

from ai4s.jobq.transports.base import Transport
from ai4s.jobq.transports.place import AZURITE_KEY

T = TypeVar("T")


class Run(Protocol):
    def __call__(self, coroutine: Coroutine[object, object, T], /) -> T: ...


def test_the_servers_clock_can_be_asked(run: Run, transport: Transport) -> None:
    """It is told in epoch seconds, even before any other request."""
    assert abs(run(transport.server_time()) - time.time()) < 60


def test_the_servers_clock_goes_on(run: Run, transport: Transport) -> None:
    """Asked again it is no earlier, give or take the second to which a service rounds."""
    first = run(transport.server_time())
    assert run(transport.server_time()) >= first - 1


def test_closing_twice_is_fine(run: Run, open_another: Callable[[], Transport]) -> None:
    """Nobody has to remember whether it is closed."""
    transport = open_another()
    run(transport.close())
    run(transport.close())


def test_naming_makes_no_request(transport: Transport, unique: str) -> None:
    """Queues and stores can be named without a running loop, and need not exist."""
    assert transport.queue(unique, app="one").name == unique
    assert transport.store(unique) is not None


def test_queues_are_listed_by_prefix_with_their_apps(run: Run, transport: Transport, unique: str) -> None:
    """A prefix is no pattern, and queues of other apps are told apart by the name that they bear."""
    for name, app in ((unique, "one"), (f"{unique}-gpu", "one"), (f"{unique}-other", "two")):
        run(transport.queue(name, app=app).create())
    assert run(transport.queues(unique)) == {unique: "one", f"{unique}-gpu": "one", f"{unique}-other": "two"}
    assert run(transport.queues(f"{unique}-g")) == {f"{unique}-gpu": "one"}
    assert run(transport.queues(f"{unique}-none")) == {}


def test_the_right_to_use_a_place_is_said_without_its_secret(transport: Transport) -> None:
    """It is for people: which kind, and from where."""
    assert transport.credential
    assert AZURITE_KEY not in transport.credential


def test_what_is_written_outlives_its_transport(run: Run, open_another: Callable[[], Transport], unique: str) -> None:
    """A place opened anew holds what was put there before."""
    first = open_another()
    run(first.store(unique).create())
    run(first.store(unique).put("x", b"1"))
    run(first.queue(unique, app="one").create())
    run(first.queue(unique, app="one").send("hello"))
    run(first.close())
    second = open_another()
    blob = run(second.store(unique).get("x"))
    assert blob is not None
    assert blob.data == b"1"
    assert run(second.queue(unique, app="one").peek(1)) == ["hello"]
