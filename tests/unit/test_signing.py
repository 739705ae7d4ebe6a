"""A MAC belongs to its bytes, its context and its key; the newest key signs and every key verifies."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai4s.jobq.signing import MAC_BYTES, Keyring

SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, database=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
OLD, NEW = "an old key, 16 and more", "a new key, 16 and more"


@SAME_EACH_TIME
@given(st.text(max_size=30), st.binary(max_size=200))
def test_what_was_signed_verifies(context: str, data: bytes) -> None:
    """Any bytes in any context verify with the key that signed them."""
    ring = Keyring((NEW, OLD))
    mac = ring.sign(context, data)
    assert len(mac) == MAC_BYTES
    assert ring.verifies(context, data, mac)


@SAME_EACH_TIME
@given(st.text(max_size=20), st.binary(max_size=20), st.text(max_size=20), st.binary(max_size=20))
def test_a_mac_is_for_one_context_and_one_text(context: str, data: bytes, other_context: str, other_data: bytes) -> None:
    """No other context or bytes verify, not even where bytes move from one to the other."""
    ring = Keyring((NEW,))
    mac = ring.sign(context, data)
    same = (context, data) == (other_context, other_data)
    assert ring.verifies(other_context, other_data, mac) is same


def test_the_end_of_a_context_is_not_the_beginning_of_data() -> None:
    """The context's length is signed with it."""
    ring = Keyring((NEW,))
    assert not ring.verifies("ab", b"c", ring.sign("a", b"bc"))


@pytest.mark.parametrize(
    ("signers", "verifiers", "expected"),
    [((NEW, OLD), (NEW,), True), ((NEW, OLD), (OLD,), False), ((OLD,), (NEW, OLD), True), ((OLD,), (NEW,), False)],
    ids=["the first signs", "the second does not", "the second verifies", "a key that was removed does not"],
)
def test_keys_rotate(signers: tuple[str, ...], verifiers: tuple[str, ...], *, expected: bool) -> None:
    """To rotate, the new key comes first everywhere; then the old one goes."""
    mac = Keyring(signers).sign("context", b"data")
    assert Keyring(verifiers).verifies("context", b"data", mac) is expected


@pytest.mark.parametrize("mac", [b"", b"\0", bytes(MAC_BYTES), bytes(MAC_BYTES + 1), "ü".encode() * 16], ids=len)
def test_a_mac_of_any_length_may_be_wrong(mac: bytes) -> None:
    """A MAC that is too short, too long or empty is just wrong."""
    assert not Keyring((NEW,)).verifies("context", b"data", mac)


def test_no_key_verifies_nothing() -> None:
    """An empty ring is false, and takes no MAC, not even that of the empty key."""
    assert not Keyring()
    assert Keyring((NEW,))
    assert not Keyring().verifies("context", b"data", Keyring(("",)).sign("context", b"data"))


def test_keys_do_not_show() -> None:
    """A keyring's repr, and that of what holds it, shows no key."""
    assert NEW not in repr(Keyring((NEW, OLD)))
