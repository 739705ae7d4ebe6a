"""Chapter 9: whom do you trust? Arguments and results are pickles unless you say otherwise, and a pickle can contain code.

Whoever can write to your storage can then run code on your workers. Two things help: keys that sign all messages, and a codec for
plain data only.
"""

from __future__ import annotations

import pytest

from ai4s.jobq import App, ConfigurationError, DeclarationError, NotSerializable, ResultTimeout, TaskFailed
from ai4s.jobq.errors import SignatureInvalid

# The newest key signs, all of them are accepted: so keys can be changed while work is under way. $JOBQ_SIGNING_KEYS does the same.
app = App("codecs-and-keys", signing_keys=["the newest key of these", "an older key, still accepted"])

pytestmark = pytest.mark.usefixtures("worker")


@app.task(codec="msgpack")
def summarize(values: list[float], *, name: str) -> dict[str, object]:
    return {"name": name, "mean": sum(values) / len(values)}


@app.task(codec="msgpack")
def return_a_set() -> set[int]:
    return {1, 2}


@app.task
def square(x: int) -> int:
    return x * x


def test_msgpack_carries_plain_data() -> None:
    """None, bool, int, float, str, bytes, lists and dicts."""
    assert summarize.delay([1.0, 2.0], name="run 1").result(timeout=60) == {"name": "run 1", "mean": 1.5}


def test_msgpack_refuses_anything_else_at_the_caller() -> None:
    """By the name of its type, before anything is sent."""
    with pytest.raises(NotSerializable, match=r"takes None, bool, int, float, str, bytes, list, tuple and dict.*; got complex"):
        summarize.delay([1j], name="run 1")  # type: ignore[list-item]


def test_errors_come_back_as_text_with_msgpack() -> None:
    """No pickle, so no exception object: TaskFailed says what it was, and the traceback is the cause."""
    with pytest.raises(TaskFailed, match="ZeroDivisionError: division by zero") as caught:
        summarize.delay([], name="run 1").result(timeout=60)
    assert "sum(values) / len(values)" in str(caught.value.__cause__)


def test_a_result_that_the_codec_refuses_fails_the_call() -> None:
    """The error names the type."""
    with pytest.raises(TaskFailed, match="got set"):
        return_a_set.delay().result(timeout=60)


def test_there_are_two_codecs() -> None:
    """`cloudpickle`, which takes nearly everything, unless you say otherwise."""
    with pytest.raises(DeclarationError, match="codec must be one of 'cloudpickle', 'msgpack'; got 'json'"):
        app.task(codec="json")(square.function)  # type: ignore[call-overload]


def test_signed_calls_run_as_ever() -> None:
    """You notice nothing of it."""
    assert square.delay(3).result(timeout=60) == 9


def test_whoever_has_an_older_key_is_still_understood() -> None:
    """Messages signed with it are run."""
    with_older_key = App(app.name, app.client.url, signing_keys=["an older key, still accepted"])

    handle = with_older_key.submit(len, "four")
    assert app.handle(handle.id).result(timeout=60) == 4
    with_older_key.close()


def test_a_stranger_without_the_key_gets_nothing_run() -> None:
    """The message becomes a dead letter, unread. Nor can an outcome be read without the key that it was signed with."""
    stranger = App(app.name, app.client.url, signing_keys=["not a key of this app"])

    with pytest.raises(ResultTimeout):
        stranger.submit(square.function, 3).result(timeout=0.5)
    ours = square.delay(3)
    ours.result(timeout=60)
    with pytest.raises(SignatureInvalid):
        stranger.handle(ours.id).result(timeout=60)
    stranger.close()


def test_a_key_has_to_be_long_enough() -> None:
    """One that can be guessed protects nothing."""
    with pytest.raises(ConfigurationError, match="at least 16 characters"):
        App("weak", signing_keys=["secret"]).client.keyring  # noqa: B018  # it is checked when it is first used
