"""Every name in storage is one that Azure takes and stays in its folder, whatever it is made from."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ai4s.jobq import layout, version3
from ai4s.jobq.errors import DeclarationError, Malformed

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
AZURE_NAME = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""Of queues and containers: 3 to 63 lower-case letters, digits and single hyphens, none at an end."""

CLIENT = "abcdefgh234567ab"
names = st.text("abz019-", min_size=1, max_size=60)
call_ids = st.one_of(
    st.builds(layout.call_id, st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16), st.integers(0, 10**12 - 1)),
    st.builds(layout.keyed_call_id, st.text("0123456789abcdef", min_size=40, max_size=64)),
    st.builds(version3.message_call_id, st.one_of(st.uuids().map(str), st.text(max_size=20))),
)
ANY_TEXT = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "",
            ".",
            "..",
            "../x",
            "a/../../b",
            "/etc/passwd",
            "a//b",
            "https://evil.example/x",
            "a\\..\\b",
            "%2e%2e",
            "a\nb",
            "a\0b",
            f"{CLIENT}-000000000001\n",
            "key-../x",
            "x" * 3000,
        ]
    ),
)


def is_azure_blob(name: str) -> bool:
    """Whether Azure takes the name as it is, and no part of it means another folder."""
    parts = name.split("/")
    return (
        len(name) <= 1024
        and len(parts) <= 254
        and name.isascii()
        and name.isprintable()
        and not any(part in {"", ".", ".."} or part.endswith(".") for part in parts)
        and not set(name) & set('\\?#%"')
    )


def accepted(check: Callable[[], object]) -> bool:
    """Whether a declaration is taken; anything but DeclarationError is a fault."""
    try:
        check()
    except DeclarationError:
        return False
    return True


# Apps and queues.


@pytest.mark.parametrize("name", ["abc", "my-proj", "a1b", "0-0", "x" * 56, "a-b-c-d-e"])
def test_good_names_are_taken(name: str) -> None:
    """Lower-case letters, digits and single hyphens, 3 to 56 of them."""
    assert layout.check_app_name(name) == name


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("MyProj", "myproj"),
        ("my_proj", "my-proj"),
        ("my--proj", "my-proj"),
        ("-proj-", "proj"),
        ("my proj\n", "my-proj"),
        ("x" * 57, "x" * 56),
    ],
)
def test_a_bad_name_is_refused_with_a_better_one(name: str, suggested: str) -> None:
    """The error offers the nearest name that is right."""
    with pytest.raises(DeclarationError, match=re.escape(repr(suggested))):
        layout.check_app_name(name)


@pytest.mark.parametrize(
    "name", ["", "ab", "ä", "ÄÖÜ", "../x", "a/b", "abc\n", "abc\0", "\uff41\uff42\uff43", "٣٣٣", None, 5, b"abc", ["abc"]], ids=repr
)
def test_what_is_no_name_is_refused(name: object) -> None:
    """Other scripts, other types, ends of lines and separators are no part of a name."""
    with pytest.raises(DeclarationError):
        layout.check_app_name(name)


@pytest.mark.parametrize("queue", ["failed", "", "GPU", "a_b", "a--b", "x" * 56, "../x", "gpu\n", None, 1], ids=repr)
def test_what_is_no_queue_is_refused(queue: object) -> None:
    """Reserved, ill-formed and over-long queue names fail at declaration."""
    with pytest.raises(DeclarationError):
        layout.check_queue_name("proj", queue)


@pytest.mark.parametrize("app", ["abc", "x" * 30, "x" * 54, "x" * 55, "x" * 56])
def test_an_error_never_speaks_of_a_negative_number_of_characters(app: str) -> None:
    """How many characters are left for a queue's name is said only where some are."""
    with pytest.raises(DeclarationError) as caught:
        layout.check_queue_name(app, "q" * 57)
    assert not re.search(r"-\d", str(caught.value).replace(app, "").replace("q" * 57, ""))


@SAME_EACH_TIME
@given(names, names | st.just("default"))
def test_every_accepted_name_makes_names_that_azure_takes(app: str, queue: str) -> None:
    """Whatever app and queue are accepted, container and queue have names that Azure takes, with room for a suffix."""
    assume(accepted(lambda: layout.check_app_name(app)))
    assert AZURE_NAME.fullmatch(layout.container_name(app))
    assume(accepted(lambda: layout.check_queue_name(app, queue)))
    assert AZURE_NAME.fullmatch(layout.queue_name(app, queue))
    assert AZURE_NAME.fullmatch(layout.queue_name(app, queue) + "-failed")


def test_the_longest_names_fit_exactly() -> None:
    """At the bound, an app of 56 characters, or app and queue of 56 together, still work."""
    app = "x" * 56
    layout.check_app_name(app)
    layout.check_queue_name(app, "default")
    assert len(layout.queue_name(app, "default") + "-failed") == 63
    assert len(layout.queue_name("abc", layout.check_queue_name("abc", "q" * 52))) == 56
    assert not accepted(lambda: layout.check_queue_name("abc", "q" * 53))


@SAME_EACH_TIME
@given(names, names, names)
def test_two_queues_of_an_app_never_share_a_name(app: str, one: str, other: str) -> None:
    """Within an app, each queue has a storage queue of its own."""
    assume(one != other)
    assume(all(accepted(lambda queue=queue: layout.check_queue_name(app, queue)) for queue in (one, other)))  # type: ignore[misc]
    assert layout.queue_name(app, one) != layout.queue_name(app, other)


# Calls.


@SAME_EACH_TIME
@given(call_ids, st.integers(1, 10**6))
def test_every_name_of_a_call_is_one_that_azure_takes(call: str, run: int) -> None:
    """All names made from a call's id are printable, short, and go where they say."""
    token, digest = "f" * 16, "0" * 64
    made = {
        "results/": layout.result(call, run),
        "args/": layout.arguments(call),
        f"values/{call}/": layout.value(call, token),
        "payloads/": layout.payload(digest),
        "failed/gpu/": layout.dead_letter("gpu", call, run),
        "keys/": layout.key(call),
        layout.WORKERS: layout.worker("host-1-ab"),
    }
    for folder, name in made.items():
        assert name.startswith(folder)
        assert is_azure_blob(name)
    assert len(set(made.values())) == len(made)


@SAME_EACH_TIME
@given(call_ids, call_ids, st.integers(1, 50), st.integers(1, 50))
def test_two_runs_never_share_an_outcome(one: str, other: str, run: int, other_run: int) -> None:
    """Each run of each call has a place of its own."""
    same = (one, run) == (other, other_run)
    assert (layout.result(one, run) == layout.result(other, other_run)) is same


@SAME_EACH_TIME
@given(st.integers(0, 10**12 - 1), st.integers(1, 20))
def test_an_outcome_lies_on_its_page(n: int, run: int) -> None:
    """Listing a call's page finds its outcome, and no more calls than one request can list."""
    call = layout.call_id(CLIENT, n)
    page = layout.result_page(call)
    assert page is not None
    assert layout.result(call, run).startswith(page)
    first = n - n % layout.CALLS_PER_PAGE
    last = min(first + layout.CALLS_PER_PAGE, 10**12) - 1
    assert layout.result_page(layout.call_id(CLIENT, first)) == page == layout.result_page(layout.call_id(CLIENT, last))
    if first:
        assert layout.result_page(layout.call_id(CLIENT, first - 1)) != page


def test_pages_and_outcomes_sort_as_calls_do() -> None:
    """Numbers have a fixed width, so that a listing is in the order of submission."""
    made = [layout.result(layout.call_id(CLIENT, n), 1) for n in (0, 9, 10, 4095, 4096, 99_999, 10**6, 10**11)]
    assert made == sorted(made)


def test_a_call_with_a_key_has_no_page() -> None:
    """Such calls have no neighbours: they are looked up one by one, spread over 256 folders."""
    call = layout.keyed_call_id("ab" + "0" * 62)
    assert layout.result_page(call) is None
    assert layout.result(call, 1) == "results/key/ab/" + "ab" + "0" * 38


@SAME_EACH_TIME
@given(ANY_TEXT)
def test_what_is_no_id_makes_no_name(text: str) -> None:
    """Whatever comes in place of an id is refused before it is part of a name."""
    assume(not layout.CALL_ID.fullmatch(text))
    for make in (
        layout.check_call_id,
        layout.result_page,
        lambda call: layout.result(call, 1),
        layout.arguments,
        lambda call: layout.value(call, "f" * 16),
        layout.key,
    ):
        with pytest.raises(Malformed) as caught:
            make(text)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


@SAME_EACH_TIME
@given(ANY_TEXT)
def test_what_is_no_digest_names_no_payload(text: str) -> None:
    """A payload is named by a SHA-256 in lower-case hex or not at all."""
    assume(not layout.SHA256.fullmatch(text))
    with pytest.raises(Malformed):
        layout.payload(text)


def made_or_refused(make: Callable[[str], str], text: str) -> str | None:
    """The name, or None if it was refused as it should be."""
    try:
        return make(text)
    except Malformed:
        return None


@SAME_EACH_TIME
@given(ANY_TEXT)
def test_no_name_leaves_its_folder(text: str) -> None:
    """A token, a message id or a worker's id becomes a name inside its folder, or is refused."""
    call = layout.call_id(CLIENT, 1)
    made = {
        f"values/{call}/": made_or_refused(lambda token: layout.value(call, token), text),
        "failed/gpu/": made_or_refused(lambda subject: layout.dead_letter("gpu", subject, 1), text),
        layout.WORKERS: made_or_refused(layout.worker, text),
    }
    for folder, name in made.items():
        if name is not None:
            assert name.startswith(folder)
            assert is_azure_blob(name)
            assert name.count("/") == folder.count("/")


def test_a_digest_is_that_of_the_bytes() -> None:
    """Payloads are named as everybody would name them."""
    assert layout.sha256_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
