"""Keys, signatures and tokens leave no trace in what is stored, logged or shown of somebody's exception; other text stays as it is.

Exceptions of storage libraries have connection strings and signed addresses in their texts, arguments and frames.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Callable

import pytest

from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import TaskFailed
from ai4s.jobq.failures import exception_of, failure_of
from ai4s.jobq.layout import call_id
from ai4s.jobq.message import Failure, Outcome, State
from ai4s.jobq.printable import MAX_CHARS, PlainFormatter, describe, has_secret, printable, redacted

KEY = "c2VjcmV0K2tleS9vZit0aGUrYWNjb3VudA=="
SIGNATURE = "Zm9yZ2VkK3NpZ25hdHVyZQ%3D%3D"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJvaWQiOiI0MiJ9.c2lnbmF0dXJl"
SECRETS = (KEY, SIGNATURE, TOKEN, "c2VjcmV0", "Zm9yZ2Vk", "eyJ")

CLOUDPICKLE = codec_named("cloudpickle")

TEXTS = {
    "a connection string": (
        f"DefaultEndpointsProtocol=https;AccountName=acc;AccountKey={KEY};EndpointSuffix=core.windows.net",
        "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=***;EndpointSuffix=core.windows.net",
    ),
    "a connection string in quotes": (f"bad: 'AccountName=acc;AccountKey={KEY}'", "bad: 'AccountName=acc;AccountKey=***'"),
    "a map": (repr({"AccountKey": KEY, "n": 1}), "{'AccountKey': '***', 'n': 1}"),
    "JSON": (json.dumps({"account_key": KEY, "n": 1}), '{"account_key": "***", "n": 1}'),
    "a keyword": (f"Client(account_key={KEY!r}, n=1)", "Client(account_key='***', n=1)"),
    "a signed address": (
        f"GET https://acc.blob.core.windows.net/c/b?sv=2024&sig={SIGNATURE}&se=2027 failed",
        "GET https://acc.blob.core.windows.net/c/b?sv=2024&sig=***&se=2027 failed",
    ),
    "a signed address, signature last": (f"<https://acc/c?sp=r&sig={SIGNATURE}>", "<https://acc/c?sp=r&sig=***>"),
    "a signed address, quoted once more": (f"?next=https%3A%2F%2Facc%3Fsig%3D{SIGNATURE}", "?next=https%3A%2F%2Facc%3Fsig%3D***"),
    "a signature in a map": (repr({"sig": SIGNATURE}), "{'sig': '***'}"),
    "a SAS in a connection string": (
        f"BlobEndpoint=https://acc;SharedAccessSignature=sv=2024&sp=rw&sig={SIGNATURE}&se=2027;X=1",
        "BlobEndpoint=https://acc;SharedAccessSignature=***;X=1",
    ),
    "a shared access key": (f"Endpoint=sb://x/;SharedAccessKey={KEY}", "Endpoint=sb://x/;SharedAccessKey=***"),
    "a header with a shared key": (f"Authorization: SharedKey acc:{KEY}\nDate: x", "Authorization: SharedKey ***\nDate: x"),
    "headers in a map": (
        repr({"Authorization": f"Bearer {TOKEN}", "Accept": "x"}),
        "{'Authorization': 'Bearer ***', 'Accept': 'x'}",
    ),
    "a shared key alone": (f"SharedKeyLite acc:{KEY} was refused", "SharedKeyLite acc:*** was refused"),
    "a token alone": (f"the token was Bearer {TOKEN}.", "the token was Bearer ***"),
    "our own keys": (f"JOBQ_SIGNING_KEYS={KEY} is set", "JOBQ_SIGNING_KEYS=*** is set"),
    "whatever the case": (f"accountkey={KEY} AUTHORIZATION: bearer {TOKEN}", "accountkey=*** AUTHORIZATION: bearer ***"),
    "two of them": (f"AccountKey={KEY};AccountKey={KEY}", "AccountKey=***;AccountKey=***"),
}


def clean(text: str) -> bool:
    """Whether no part of a secret is in a text."""
    return not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("name", TEXTS)
def test_a_secret_is_taken_out_and_the_rest_stays(name: str) -> None:
    """What opens an account becomes ***; what stands around it can still be read, and a second look finds nothing more."""
    text, shown = TEXTS[name]
    assert redacted(text) == shown
    assert clean(shown)
    assert has_secret(text)
    assert not has_secret(shown)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "design=modern sigma=0.3 _sig=4 my_sig=5",
        "the bearer of bad news, and Bearer bonds",
        "AccountKey is missing",
        "no AccountKey, no SharedAccessSignature",
        "def sign(sig, key): return sig",
        "SharedKey authentication is off",
        "x = {'signal': 'SIGTERM'}",
        "Ünïcödé ∑ 🙂",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    """Words that only look alike are left alone."""
    assert redacted(text) == text


@pytest.mark.parametrize("show", [printable, describe, lambda text: describe(ValueError(text))], ids=["log", "text", "exception"])
@pytest.mark.parametrize("before", [0, MAX_CHARS - 40, MAX_CHARS - 12], ids=["at the beginning", "near the cut", "across the cut"])
def test_no_secret_passes_the_functions_that_show_text(show: Callable[[str], str], before: int) -> None:
    """Logged, stored or described: the secret is out before the text is cut, or what was cut is out as well."""
    shown = show("x" * before + f" AccountKey={KEY}; sig={SIGNATURE}&")
    assert clean(shown)
    assert len(shown) <= MAX_CHARS + len("***")


def test_a_secret_on_many_lines_is_found_on_each() -> None:
    """A text keeps its lines, and each is looked at."""
    assert redacted(f"one\nsig={SIGNATURE}\nAccountKey={KEY}\nfour") == "one\nsig=***\nAccountKey=***\nfour"


def test_no_text_makes_the_search_slow() -> None:
    """Beginnings of secrets by the thousand take milliseconds; were the work to grow with the square, this would take minutes."""
    for piece in ("AccountKey", "sig=", "Authorization: ", "Bearer ", "SharedKey a", "a" * 10, " ", "=", "'", "%3D"):
        assert len(redacted(piece * 20_000)) > 0


# Exceptions.


class Refused(Exception):
    """One that keeps what it was made from."""

    def __init__(self, text: str, headers: dict[str, str]) -> None:
        super().__init__(text, headers)
        self.headers = headers


class Loud(Exception):
    """One whose secret is in a field that its text does not show."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.connection = {"AccountKey": KEY}


def raised(exc: Exception) -> Failure:
    """What is kept of an exception that a task raised."""
    try:
        raise exc
    except Exception as caught:  # noqa: BLE001  # as the worker does
        return failure_of(caught, CLOUDPICKLE)


LEAKS: dict[str, Callable[[], Exception]] = {
    "in its text": lambda: ValueError(f"cannot connect with AccountKey={KEY}"),
    "in its arguments": lambda: Refused("no", {"Authorization": f"Bearer {TOKEN}"}),
    "in a field": lambda: Loud("no"),
    "in bytes": lambda: ValueError(f"AccountKey={KEY}".encode()),
}


@pytest.mark.parametrize("where", LEAKS)
def test_an_exception_with_a_secret_is_kept_as_text_only(where: str) -> None:
    """Nothing of the secret is in the record, pickled or not; the caller gets TaskFailed with the text that may be shown."""
    failure = raised(LEAKS[where]())
    assert failure.exception is None
    assert clean(repr(failure))
    outcome = Outcome(call_id("a" * 16, 1), 1, State.FAILED, "0" * 16, task="t", failure=failure, attempts=1)
    told = exception_of(outcome)
    assert type(told) is TaskFailed
    assert failure.type in str(told)


def test_an_exception_without_a_secret_is_rebuilt_as_before() -> None:
    """Only where there is something to hide is the exception not the task's own."""
    failure = raised(ValueError("design=modern"))
    assert failure.exception is not None
    assert str(pickle.loads(failure.exception)) == "design=modern"


def test_causes_notes_and_source_lines_of_a_traceback_are_looked_at() -> None:
    """A secret of the exception's cause, of a note, or written in the program, is out of the traceback, which else is whole."""

    def connect() -> None:
        raise OSError("AccountKey=c2VjcmV0K2tleS9vZit0aGUrYWNjb3VudA==")

    try:
        try:
            connect()
        except OSError as exc:
            exc.add_note(f"headers: Authorization: SharedKey acc:{KEY}")
            raise RuntimeError("no connection") from exc
    except RuntimeError as exc:
        text = failure_of(exc, CLOUDPICKLE).traceback
    assert clean(text)
    assert "AccountKey=***" in text
    assert "SharedKey ***" in text
    assert text.rstrip().endswith("RuntimeError: no connection")
    assert "in connect" in text


@pytest.mark.parametrize("before", range(15_800, 16_400, 7))
def test_no_cut_of_a_long_traceback_uncovers_a_secret(before: int) -> None:
    """Wherever a long traceback is cut, before, in or after a secret: none of it is left."""
    text = raised(ValueError("x" * before + f" AccountKey={KEY} " + "y" * 15_000 + f" AccountKey={KEY} " + "z" * before)).traceback
    assert len(text) < 33_000
    assert clean(text)


def test_a_huge_text_is_not_searched_from_end_to_end() -> None:
    """Of 20 MB, only what is kept is looked through, and what is kept has no secret in it."""
    failure = raised(ValueError(f"AccountKey={KEY} " * 400_000))
    assert clean(repr(failure))
    assert len(failure.message) + len(failure.traceback) < 40_000
    assert failure.exception is None


def test_an_exception_whose_repr_raises_is_still_kept() -> None:
    """Looking for secrets calls the user's code, which may raise anything."""

    class Odd(Exception):
        def __init__(self) -> None:
            super().__init__()
            self.field = self

        def __repr__(self) -> str:
            raise SystemExit

    assert raised(Odd()).type.endswith("Odd")


# Logs.


def logged(write: Callable[[logging.Logger], object]) -> str:
    """What a worker's log shows of this."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("a test of the log")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        write(logger)
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


def test_a_record_of_the_log_is_one_line() -> None:
    """Line breaks and escapes in what is logged cannot make up another record, nor move the terminal's cursor."""
    assert logged(lambda log: log.error("Call %s failed: %s", 7, "no\r\nINFO all is well\x1b[2J\u2028")) == (
        "ERROR Call 7 failed: no\\r\\nINFO all is well\\x1b[2J\\u2028\n"
    )


def test_a_record_of_the_log_shows_no_secret() -> None:
    """Whoever forgets to look at a text before logging it is covered."""
    assert logged(lambda log: log.warning("No: %s", f"AccountKey={KEY};x")) == "WARNING No: AccountKey=***;x\n"


def test_a_traceback_in_the_log_has_lines_and_no_secrets() -> None:
    """A traceback may have many lines; escapes and secrets in it are treated as everywhere."""

    def fail(log: logging.Logger) -> None:
        try:
            raise ValueError(f"no \x1b[31m sig={SIGNATURE}")
        except ValueError:
            log.exception("A defect")

    text = logged(fail)
    assert text.startswith("ERROR A defect\nTraceback (most recent call last):\n")
    assert text.endswith("ValueError: no \\x1b[31m sig=***\n")
    assert clean(text)


def test_a_long_record_is_whole() -> None:
    """The log's own sentences are not cut: the names of all tasks may be longer than a line of somebody's text should be."""
    assert len(logged(lambda log: log.info("%s", "task, " * 1_000))) > 6_000
