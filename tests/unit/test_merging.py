"""Changes that are wanted at the same time are made together, and each of them surely, whoever is cut off or fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ai4s.jobq.errors import Unreachable
from ai4s.jobq.merging import Merged

Change = Callable[[str], str]


class Text:
    """A text that is changed once `open` is set; the n-th change raises `faults[n]`."""

    def __init__(self, faults: dict[int, Exception] | None = None) -> None:
        self.text = ""
        self.open, self.begun = asyncio.Event(), asyncio.Event()
        self.changes = 0
        self.faults = faults or {}
        self.merged = Merged(self._make)

    async def _make(self, change: Change) -> str:
        self.changes += 1
        self.begun.set()
        await self.open.wait()
        if self.changes in self.faults:
            raise self.faults[self.changes]
        self.text = change(self.text)
        return self.text

    def wanted(self, letters: str) -> list[asyncio.Task[str]]:
        """Append each, all at once."""
        return [asyncio.ensure_future(self.merged.change(lambda text, letter=letter: text + letter)) for letter in letters]  # type: ignore[misc]


async def test_those_that_wait_are_one_change() -> None:
    """Those that come while the first is under way are the second, in their order; each gets what it is then."""
    text = Text()
    first = text.wanted("a")
    await text.begun.wait()
    others = text.wanted("bcd")
    await asyncio.sleep(0)
    text.open.set()

    assert await asyncio.gather(*first, *others) == ["a", "abcd", "abcd", "abcd"]
    assert text.changes == 2


async def test_what_a_cancelled_caller_leaves_is_done_by_the_next() -> None:
    """Its own change and no other is dropped."""
    text = Text()
    tasks = text.wanted("abc")
    await text.begun.wait()
    tasks[0].cancel()
    text.open.set()

    assert await asyncio.gather(*tasks[1:]) == ["bc", "bc"]
    assert tasks[0].cancelled()


async def test_one_that_stops_waiting_takes_its_change_along() -> None:
    """Before anybody has begun to make it."""
    text = Text()
    first = text.wanted("a")
    await text.begun.wait()
    others = text.wanted("bc")
    await asyncio.sleep(0)
    others[0].cancel()
    text.open.set()

    assert await asyncio.gather(*first, others[1]) == ["a", "ac"]


async def test_a_failure_is_raised_to_all_whom_it_concerns() -> None:
    """And not to those before and after them."""
    text = Text({2: Unreachable(maybe_done=True)})
    first = text.wanted("a")
    await text.begun.wait()
    others = text.wanted("bc")
    await asyncio.sleep(0)
    text.open.set()

    assert await asyncio.gather(*first) == ["a"]
    for task in others:
        with pytest.raises(Unreachable):
            await task
    assert await asyncio.gather(*text.wanted("d")) == ["ad"]
    assert text.changes == 3
