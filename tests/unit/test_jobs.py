"""What supervisor and child say to each other comes over as it was said."""

from __future__ import annotations

import io
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.errors import MessageError
from ai4s.jobq.message import Backoff, Call, Cause, Failure, Pool, Spill
from ai4s.jobq.worker.jobs import (
    LENGTH_BYTES,
    MAX_INLINE_BYTES,
    Cancel,
    ChildSetup,
    Job,
    Kind,
    Ready,
    Report,
    Served,
    from_body,
    to_frame,
)

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
CALL = Call(id="abcdefgh234567ab-000000000007", task="proj.f", queue="default", arguments=b"args", sent=1.0)
SECRET = "s3cr3t-hush-and-more"

texts = st.text(max_size=30)
counts = st.integers(0, 2**53)
moments = st.floats(0, 2**53)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
many = st.lists(texts, max_size=3).map(tuple)
served = st.builds(Served, app=texts, url=texts, signing_keys=many, create=st.booleans())
calls = st.builds(
    Call,
    id=texts,
    task=texts,
    queue=texts,
    arguments=st.binary(max_size=100) | st.builds(Spill, size=counts, sha256=digests),
    sent=moments,
    pool=st.sampled_from(Pool),
    function=st.none() | digests,
    ship=st.lists(digests, max_size=2).map(tuple),
    backoff=st.builds(Backoff, moments, moments, moments),
    timeout_seconds=st.none() | moments,
    errors=counts,
    mark=st.none() | texts,
    alone=st.booleans(),
)
failures = st.builds(
    Failure, cause=st.sampled_from(Cause), type=texts, message=texts, traceback=texts, exception=st.none() | st.binary(max_size=50)
)
messages = st.one_of(
    st.builds(
        ChildSetup,
        worker=texts,
        pool=st.sampled_from(Pool),
        capacity=counts,
        target=st.none() | texts,
        served=st.none() | served,
        modules=many,
        search_path=many,
        shipped=many,
    ),
    st.builds(Ready, served=st.none() | served, tasks=many, queues=many, problem=st.none() | texts),
    st.builds(
        Job,
        number=counts,
        call=calls,
        value_path=texts,
        checkpoint_path=texts,
        arguments_path=st.none() | texts,
        function_path=st.none() | texts,
    ),
    st.builds(Cancel, number=counts),
    st.builds(
        Report,
        number=counts,
        kind=st.sampled_from(Kind),
        value=st.none() | st.binary(max_size=100),
        failure=st.none() | failures,
        retryable=st.booleans(),
        delay_seconds=st.none() | moments,
        seconds=moments,
    ),
)


def split(stream: bytes) -> list[Any]:
    """The messages in a stream of frames, as a reader takes them."""
    file, found = io.BytesIO(stream), []
    while head := file.read(LENGTH_BYTES):
        found.append(from_body(file.read(int.from_bytes(head, "big"))))
    return found


@SAME_EACH_TIME
@given(st.lists(messages, max_size=4))
def test_a_stream_of_messages_comes_over_as_it_was(said: list[Any]) -> None:
    """Every kind of message, one after the other, equal and in order."""
    assert split(b"".join(to_frame(message) for message in said)) == said


def test_a_setup_comes_over_with_its_secrets_and_does_not_show_them() -> None:
    """A child needs the place and the keys; logs do not."""
    setup = ChildSetup("w", served=Served("proj", f"AccountKey={SECRET}", (SECRET,)))
    assert split(to_frame(setup)) == [setup]
    assert SECRET not in repr(setup)
    assert SECRET not in repr(Ready(setup.served))


def test_large_inline_values_come_over() -> None:
    """As large as they are allowed to be."""
    report = Report(1, Kind.RETURNED, value=bytes(MAX_INLINE_BYTES))
    assert split(to_frame(report)) == [report]


def test_a_job_says_only_what_it_has_to() -> None:
    """Fields at their defaults cost no bytes: a small call makes a small frame."""
    assert len(to_frame(Job(1, CALL, "/tmp/x/1.out", "/tmp/x/1.checkpoint"))) < 200


FRAMES = {
    "nothing": b"",
    "garbage": b"garbage",
    "the reserved byte": b"\xc1",
    "a number": b"\x07",
    "one element": msgpack.packb(["Cancel"]),
    "three elements": msgpack.packb(["Cancel", {"number": 1}, 3]),
    "an unknown kind": msgpack.packb(["System", {"command": "true"}]),
    "a kind that is a list": msgpack.packb([[], {}]),
    "fields that are a list": msgpack.packb(["Cancel", [1]]),
    "a missing field": msgpack.packb(["Cancel", {}]),
    "an unknown field": msgpack.packb(["Cancel", {"number": 1, "more": 2}]),
    "a wrong field": msgpack.packb(["Cancel", {"number": "1"}]),
    "cut off": msgpack.packb(["Cancel", {"number": 1}])[:-1],
    "something behind it": msgpack.packb(["Cancel", {"number": 1}]) + b"\xc0",
    "a negative delay": msgpack.packb(["Report", {"number": 1, "kind": "raised", "delay_seconds": -1.0}]),
    "an array of four billion": b"\xdd\xff\xff\xff\xff",
    "nested lists": b"\x91" * 10_000 + b"\xc0",
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_is_none_is_malformed(name: str) -> None:
    """User code runs in the child, and may write to its socket: what is no frame is one kind of error, that ends the child."""
    with pytest.raises(MessageError):
        from_body(FRAMES[name])
