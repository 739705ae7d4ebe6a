"""Packs of calls: how they grow, what lies together in them and what alone, and that nothing gets lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai4s.jobq import NotSerializable
from ai4s.jobq.codec import Codec, codec_named
from ai4s.jobq.maps import pack_maker
from ai4s.jobq.maps.mapping import encoder
from ai4s.jobq.maps.pack_maker import FIRST_PACK_CALLS, MadePack, PackMaker, Row
from ai4s.jobq.message import Spill
from ai4s.jobq.packing import MAX_INPUT_BYTES, MAX_ITEM_BYTES, Layout, numbers, read_input
from ai4s.jobq.wire import MAX_PACK_CALLS

PICKLE, PLAIN = codec_named("cloudpickle"), codec_named("msgpack")


def maker(codec: Codec = PICKLE, **options: Any) -> PackMaker:
    """A maker of packs of one batch."""
    return PackMaker(encoder(codec), codec, **options)


def packs_of(rows: list[Row], codec: Codec = PICKLE, **options: Any) -> list[MadePack]:
    """All packs of these calls."""
    making, made = maker(codec, **options), []
    made.extend(making.take() for row in rows if making.add(row))
    return [*made, making.take()] if making.count else made


def rows_of(made: MadePack, codec: Codec = PICKLE) -> list[Row]:
    """The calls' arguments, as a worker finds them in the pack's bytes."""
    spilled = {place: Spill(parts.size, "0" * 64) for place, parts in made.large.items()}
    found = read_input(made.input(spilled).to_bytes(), made.count)
    rows: list[Row] = []
    for piece in found.pieces(range(made.count)):
        if piece.layout is Layout.ALONE:
            rows += [tuple(codec.loads(data)) if data else () for data in piece.items()]
        else:
            column = codec.loads(piece.data)
            values = [column[place] for place in numbers(piece.places)]
            rows += [(value,) if piece.layout is Layout.SINGLE else tuple(value) for value in values]
    for place, parts in made.large.items():
        rows[place] = tuple(codec.loads(parts.joined()))
    return rows


def layouts(made: MadePack) -> list[tuple[str, int]]:
    """How the calls lie, and how many each time."""
    return [(str(each.layout), each.count) for each in made.slices]


# How many.


def test_packs_double_from_a_few_calls_to_thousands() -> None:
    """So that the first workers find work at once."""
    made = packs_of([(n,) for n in range(20_000)])
    assert [pack.count for pack in made[:4]] == [8, 16, 32, 64]
    assert max(pack.count for pack in made) == MAX_PACK_CALLS
    assert [pack.number for pack in made] == list(range(len(made)))
    assert [pack.first for pack in made] == [sum(pack.count for pack in made[:n]) for n in range(len(made))]


def test_a_pack_that_went_out_early_does_not_make_the_next_one_larger() -> None:
    """A slow source keeps its packs small."""
    making = maker()
    for n in range(3):
        making.add((n,))
    making.take()
    assert [making.add((n,)) for n in range(FIRST_PACK_CALLS)] == [False] * (FIRST_PACK_CALLS - 1) + [True]


def test_a_given_size_stays() -> None:
    """All packs have it, but for the last."""
    assert [pack.count for pack in packs_of([(n,) for n in range(25)], limit=10)] == [10, 10, 5]


def test_packs_grow_to_a_bound() -> None:
    """Where somebody reads along, several must fit between."""
    assert [pack.count for pack in packs_of([(n,) for n in range(40)], most=10)] == [8, 10, 10, 10, 2]


def test_a_pack_of_many_bytes_ends() -> None:
    """Whatever its calls' number."""
    made = packs_of([(b"x" * 100_000 + bytes([n]),) for n in range(30)], limit=4096)
    assert [pack.count for pack in made] == [11, 11, 8]
    assert sum(each.count for pack in made for each in pack.slices) == 30
    assert all(len(each.data) <= MAX_INPUT_BYTES + MAX_ITEM_BYTES for pack in made for each in pack.slices)


# What lies together.


def test_numbers_and_texts_are_encoded_together() -> None:
    """They can neither be shared nor fail alone."""
    (made,) = packs_of([(n, "text", b"bytes", None, True, 0.5) for n in range(100)], limit=100)
    assert layouts(made) == [("rows", 100)]
    (made,) = packs_of([(n,) for n in range(300)], limit=300)
    assert layouts(made) == [("single", 256), ("single", 44)]


def test_all_else_is_encoded_call_by_call() -> None:
    """In the order in which the calls came."""
    rows: list[Row] = [(1,), (2,), ([3],), ({4: 4},), (5,), ([6],)]
    (made,) = packs_of(rows)
    assert layouts(made) == [("single", 2), ("alone", 2), ("single", 1), ("alone", 1)]
    assert rows_of(made) == rows


def test_what_changes_later_has_travelled() -> None:
    """An item is what it was when it was added."""
    making, item = maker(), [1]
    making.add((item,))
    item.append(2)
    assert rows_of(making.take()) == [([1],)]


def test_a_large_item_that_changes_later_has_travelled_too() -> None:
    """It is copied, since it is uploaded later."""
    making, item = maker(), bytearray(MAX_ITEM_BYTES + 1)
    making.add((item,))
    item[0] = 1
    ((found,),) = rows_of(making.take())
    assert isinstance(found, bytearray)
    assert found[0] == 0


def test_large_items_lie_beside_the_pack() -> None:
    """Their place says whose they are."""
    rows: list[Row] = [(1,), (b"x" * (MAX_ITEM_BYTES + 1),), (2,)]
    (made,) = packs_of(rows)
    assert set(made.large) == {1}
    assert rows_of(made) == rows
    assert not made.borrows


def test_what_is_too_large_to_be_copied_ends_its_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller has to wait until it is put."""
    monkeypatch.setattr(pack_maker, "MAX_COPIED_BYTES", 2 * MAX_ITEM_BYTES)
    making = maker()
    assert not making.add((1,))
    assert making.add((b"x" * 3 * MAX_ITEM_BYTES,))
    assert making.take().borrows


def test_many_large_items_end_their_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is copied has a bound."""
    monkeypatch.setattr(pack_maker, "MAX_COPIED_BYTES", 4 * MAX_ITEM_BYTES)
    made = packs_of([(bytes([n]) * 2 * MAX_ITEM_BYTES,) for n in range(5)], limit=100)
    assert [pack.count for pack in made] == [2, 2, 1]
    assert not any(pack.borrows for pack in made)


def test_code_in_an_item_is_noted() -> None:
    """It binds its pack to this Python version."""
    making = maker()
    making.add(([1],))
    assert not making.take().has_code
    making.add((lambda: 1,))
    assert making.take().has_code


# What cannot travel.


def test_what_cannot_travel_leaves_the_pack_as_it_was() -> None:
    """The calls before it go on."""
    making = maker()
    making.add((1,))
    making.add(([2],))
    with pytest.raises(NotSerializable):
        making.add(((n for n in "abc"),))
    made = making.take()
    assert rows_of(made) == [(1,), ([2],)]


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800"], ids=["large", "low", "surrogate"])
def test_what_one_codec_refuses_fails_alone(value: object) -> None:
    """Some numbers and texts cannot travel as plain data; a pickle takes them."""
    making = maker(PLAIN)
    making.add((1,))
    with pytest.raises(NotSerializable):
        making.add((value,))
    assert rows_of(making.take(), PLAIN) == [(1,)]
    (made,) = packs_of([(value,)])
    assert rows_of(made) == [(value,)]


# Keys.


def test_calls_whose_keys_are_taken_can_be_left_out() -> None:
    """The pack keeps its number."""
    making = maker()
    making.take()
    for n in range(5):
        making.add((n,), str(n))
    made = making.take().without(lambda key: key in "13", encoder(PICKLE), PICKLE)
    assert (made.number, made.count, made.keys) == (1, 3, ("0", "2", "4"))
    assert rows_of(made) == [(0,), (2,), (4,)]


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
ITEMS = VALUES | st.lists(VALUES, max_size=3)


@given(st.lists(st.lists(ITEMS, min_size=1, max_size=1) | st.lists(ITEMS, min_size=2, max_size=2), max_size=40), st.integers(1, 50))
def test_all_arguments_arrive(rows: list[list[Any]], limit: int) -> None:
    """Whatever they are, in their order, each exactly once."""
    width = len(rows[0]) if rows else 1
    calls: list[Row] = [tuple(row) for row in rows if len(row) == width]
    made = packs_of(calls, limit=limit)
    assert [row for pack in made for row in rows_of(pack)] == calls
