"""How many packs a worker holds: enough to keep its slots busy, and no more than others should wait for."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack

import pytest

from ai4s.jobq.message import Pool
from ai4s.jobq.worker.slots import MAX_HELD_CALLS, PACKS_A_FETCH, Slots

PROCESS = Pool.PROCESS


def slots(size: int = 4) -> Slots:
    return Slots({PROCESS: size, Pool.ASYNC: size, Pool.THREAD: size}, {PROCESS})


async def test_a_pack_of_unknown_length_keeps_others_out() -> None:
    """They go back, to workers that may be idle."""
    made = slots()
    async with made.pack(PROCESS, 8, 0) as first, made.pack(PROCESS, 8, 0) as second:
        assert first is not None
        assert first.estimate_seconds() == math.inf
        assert second is None
        assert made.room() == 0


async def test_a_pack_that_is_nearly_done_lets_the_next_one_in() -> None:
    """So that its slots never wait for a message."""
    made = slots()
    async with made.pack(PROCESS, 8, 0) as first:
        assert first is not None
        first.estimate_seconds = lambda: 0.5
        assert made.room() == PACKS_A_FETCH
        async with made.pack(PROCESS, 8, 0) as second:
            assert second is not None


async def test_short_calls_are_not_held_by_the_hundred_thousand() -> None:
    """However little time they will take, they take memory."""
    made = slots()
    async with AsyncExitStack() as held:
        for _ in range(2):
            turn = await held.enter_async_context(made.pack(PROCESS, MAX_HELD_CALLS // 2, 0))
            assert turn is not None
            turn.estimate_seconds = lambda: 0.001
        assert made.room() == 0
        assert await held.enter_async_context(made.pack(PROCESS, 1, 0)) is None
    assert made.room() == 4


@pytest.mark.parametrize(("calls", "room"), [(1, 16), (4, 4), (4096, PACKS_A_FETCH)])
async def test_small_packs_are_fetched_as_slots_are_free(calls: int, room: int) -> None:
    """A pack of one call occupies one slot; one of thousands occupies them all."""
    made = slots(16)
    async with made.pack(PROCESS, calls, 0) as turn:
        assert turn is not None
        turn.estimate_seconds = lambda: 0.0
        assert made.room() == room
