"""What ai4s-jobq 3.x had given up: tasks in the queue `<queue>-failed`, which it never looked into again.

Each is sent back to its queue first, and deleted then: died in between, it lies in both. What is sent bears the id that its letter
has in the old queue, so that our workers run it once, however often it is sent; workers of 3.x would run it each time.

Next: `version3.py` for their text; `dead_letters.py` for what this version gives up.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from . import layout, version3
from .client import Client
from .errors import ConfigurationError, LeaseLost, MessageError, NotFound
from .handle import Handle
from .ledger import Ledger
from .retry import whole_number
from .transports.base import MAX_RECEIVE, Delivery, Queue

LEASE_SECONDS = 120.0
"""For so long a letter is hidden from others who retry at the same time; what was left alone is shown again at once."""


@dataclass(frozen=True, slots=True)
class OldLetter:
    """A task that failed under 3.x: its id there, and its keyword arguments (`cmd`, `env` ... for a shell command).

    What had gone wrong is not said in it. `problem` says why it cannot be read; then the rest is empty, but for `raw`.
    """

    id: str
    kwargs: dict[str, Any]
    raw: str
    problem: str = ""


class Resent(NamedTuple):
    """Handles of what was sent back to its queue, and how many letters were left there since they cannot be read."""

    handles: list[Handle[Any]]
    left: int


class OldLetters:
    """The old dead letters of one of an app's queues. Each method has an async twin with the prefix `a`; all are safe to repeat.

    Raises DeclarationError for no name of a queue.
    """

    def __init__(self, client: Client, queue: str = layout.DEFAULT_QUEUE) -> None:
        self._client, self._queue = client, layout.check_queue_name(client.name, queue)

    def count(self) -> int:
        """How many there are, about."""
        return self._client.run(self._count)

    async def acount(self) -> int:
        """As `count`."""
        return await self._client.arun(self._count)

    def peek(self, n: int = MAX_RECEIVE) -> list[OldLetter]:
        """Up to `n` of them, at most 32, which stay as they are."""
        return self._client.run(partial(self._peek, n))

    async def apeek(self, n: int = MAX_RECEIVE) -> list[OldLetter]:
        """As `peek`."""
        return await self._client.arun(partial(self._peek, n))

    def retry(self, limit: int | None = None, *, num_retries: int = 0) -> Resent:
        """Send them back to their queue, at most `limit`, with so many further attempts each.

        If this raises, ask again: what was sent before and still lies here is not run twice, unless by a worker of 3.x.
        Raises ConfigurationError for an app with a signing key, whose workers refuse such messages.
        """
        return self._client.run(self._retrying(limit, num_retries))

    async def aretry(self, limit: int | None = None, *, num_retries: int = 0) -> Resent:
        """As `retry`."""
        return await self._client.arun(self._retrying(limit, num_retries))

    def __repr__(self) -> str:
        return f"<OldLetters of {layout.queue_name(self._client.name, self._queue)} at {self._client.place.label}>"

    async def _count(self, ledger: Ledger) -> int:
        letters = await self._letters(ledger)
        return await letters.depth() if letters else 0

    async def _peek(self, n: int, ledger: Ledger) -> list[OldLetter]:
        letters = await self._letters(ledger)
        return [_read(text) for text in await letters.peek(n)] if letters else []

    def _retrying(self, limit: int | None, num_retries: int) -> partial[Coroutine[Any, Any, Resent]]:
        whole_number("num_retries", num_retries, least=0)
        if limit is not None:
            whole_number("limit", limit, least=0)
        if self._client.keyring:
            raise ConfigurationError(
                f"The app {self._client.name!r} has a signing key, and its workers refuse messages of ai4s-jobq 3.x, "
                "which are not signed."
            )
        return partial(self._retry, limit, num_retries)

    async def _retry(self, limit: int | None, num_retries: int, ledger: Ledger) -> Resent:
        letters = await self._letters(ledger)
        if letters is None:
            return Resent([], 0)
        handles, left = list[Handle[Any]](), list[Delivery]()
        while room := MAX_RECEIVE if limit is None else min(MAX_RECEIVE, limit - len(handles)):
            deliveries = await letters.receive(room, lease_seconds=LEASE_SECONDS)
            if not deliveries:
                break
            for delivery in deliveries:
                handle = await self._resend(ledger, letters, delivery, num_retries=num_retries)
                handles += [handle] if handle else []
                left += [] if handle else [delivery]
        for delivery in left:
            with suppress(LeaseLost):
                await letters.release(delivery.receipt)
        return Resent(handles, len(left))

    async def _resend(self, ledger: Ledger, letters: Queue, delivery: Delivery, *, num_retries: int) -> Handle[Any] | None:
        """Send one back and delete it; None for one that cannot be read."""
        try:
            parsed = version3.parse(delivery.body)
        except MessageError:
            return None
        call = version3.message_call_id(delivery.receipt.message_id, ledger.app, letters.name)
        await (await ledger.queue(self._queue)).send(version3.resent(parsed, call, num_retries))
        with suppress(LeaseLost):  # somebody else has it, and sends the same
            await letters.delete(delivery.receipt)
        return Handle(self._client, call, queue=self._queue)

    async def _letters(self, ledger: Ledger) -> Queue | None:
        """The old queue, if there is one. It is never made, and must not be another app's."""
        queue = ledger.transport.queue(version3.old_letters_queue(ledger.app, self._queue), app=ledger.app)
        try:
            await queue.check()
        except NotFound:
            return None
        return queue


def _read(text: str) -> OldLetter:
    try:
        parsed = version3.parse(text)
    except MessageError as exc:
        return OldLetter("", {}, text, problem=str(exc))
    return OldLetter(parsed.said.id, parsed.kwargs, text)
