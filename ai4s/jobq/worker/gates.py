"""The gate: which calls may hold how much of a worker's cores, memory and devices side by side.

What a call does not declare it is not asked for, so most pass without a look. Who waits is served in the order of arrival: a
call overtakes only those that wait for other things than it needs, so that a large one gets its turn. What is held is a
promise between calls, and limits nobody.

Next: `slots.py`, which asks here before it gives out a slot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace

from ..message import NO_NEEDS, Call, Pool, Resources
from .devices import Hardware

SMOOTHING = 0.2
"""Weight of the newest time in the running mean."""

MAX_WAITING = 64
WAITING_SECONDS = 1.0
"""So many calls may wait here as get their share within a second: others would only be kept from other workers."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a running call holds. `devices` is None where nothing is to be said about them, `cpus` where it declared none."""

    cpus: int | None = None
    memory_bytes: int = 0
    devices: tuple[str, ...] | None = None


@dataclass(slots=True, eq=False)
class _Waiter:
    needs: Resources
    turn: asyncio.Future[Share]


class Gate:
    """Deals out one worker's hardware."""

    def __init__(self, has: Hardware) -> None:
        self._has = has
        self._cpus, self._memory_bytes = has.cpus, has.memory_bytes
        self._loads = dict.fromkeys(has.devices or (), 0)
        self._line: deque[_Waiter] = deque()
        self._held_seconds: dict[str, float] = {}
        self._nothing = Share(devices=None if has.devices is None else ())

    def needs(self, call: Call) -> Resources:
        """What a call needs here: one that has a process of its own has a device as well, unless it declares otherwise."""
        if call.resources.gpus is None and call.pool is Pool.PROCESS and self._loads:
            return replace(call.resources, gpus=1)
        return call.resources

    @property
    def waiting(self) -> int:
        """Calls that wait for their share."""
        return len(self._line)

    def is_open(self, needs: Resources) -> bool:
        """Whether a call with such needs would get its share at once."""
        return not _kinds(needs) or (not self.is_awaited(needs) and self._share(needs) is not None)

    def is_awaited(self, needs: Resources) -> bool:
        """Whether anybody waits for something of what a call with such needs would want as well."""
        return self._waiting_for(_kinds(needs)) > 0

    def may_wait(self, needs: Resources) -> bool:
        """Whether one more call with such needs should wait: one may, so that its turn comes, and as many as are served soon."""
        kinds = _kinds(needs)
        waiting = self._waiting_for(kinds)
        if waiting == 0:
            return True
        seconds = max(self._held_seconds.get(kind, WAITING_SECONDS * MAX_WAITING) for kind in kinds)
        return waiting < MAX_WAITING and waiting * seconds < WAITING_SECONDS * self.width(needs, MAX_WAITING)

    def note(self, needs: Resources, seconds: float) -> None:
        """Note for how long a call with such needs held its share."""
        for kind in _kinds(needs):
            mean = self._held_seconds.get(kind, seconds)
            self._held_seconds[kind] = mean + SMOOTHING * (seconds - mean)

    def _waiting_for(self, kinds: set[str]) -> int:
        return sum(bool(kinds & _kinds(waiter.needs)) for waiter in self._line) if kinds else 0

    def width(self, needs: Resources, most: int) -> int:
        """How many calls with such needs fit at a time, `most` at most; one in any case."""
        has, gpus = self._has, needs.gpus or 0
        fits = [most, has.places if gpus == 1 else len(self._loads) // (gpus or 1) if gpus else most]
        fits += [has.cpus // needs.cpus] if needs.cpus else []
        fits += [has.memory_bytes // needs.memory_bytes] if needs.memory_bytes else []
        return max(1, min(fits))

    def turn_away(self, exc: Exception) -> None:
        """Have all that wait end with this."""
        while self._line:
            waiter = self._line.popleft()
            if not waiter.turn.done():
                waiter.turn.set_exception(exc)

    async def take(self, needs: Resources) -> Share:
        """A share; waits for it. Needs that never fit wait for ever: ask `Hardware.lacks` before."""
        if needs is NO_NEEDS:
            return self._nothing
        if self.is_open(needs):
            return self._taken(self._share(needs))
        waiter = _Waiter(needs, asyncio.get_running_loop().create_future())
        self._line.append(waiter)
        try:
            return await waiter.turn
        except BaseException:
            if waiter in self._line:
                self._line.remove(waiter)
                self._serve()  # who stood behind it may pass now
            elif waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self.give(waiter.turn.result())  # it was ours already, and nobody will use it
            raise

    def _share(self, needs: Resources) -> Share | None:
        """What a call with such needs would hold; None if that is not free now."""
        if (needs.cpus or 0) > self._cpus or (needs.memory_bytes or 0) > self._memory_bytes:
            return None
        devices = self._free_devices(needs.gpus or 0)
        if devices is None:
            return None
        return Share(needs.cpus, needs.memory_bytes or 0, None if self._has.devices is None else devices)

    def _free_devices(self, gpus: int) -> tuple[str, ...] | None:
        """The device that fewest calls use; or several, on which there is no other call."""
        most = 0 if gpus > 1 else self._has.calls_per_gpu - 1
        free = sorted((device for device, load in self._loads.items() if load <= most), key=self._loads.__getitem__)
        return tuple(free[:gpus]) if len(free) >= gpus else None

    def _taken(self, share: Share | None) -> Share:
        assert share is not None
        self._count(share, 1)
        return share

    def give(self, share: Share) -> None:
        """Take a share back, and give it to whose turn it is."""
        if share is self._nothing:
            return
        self._count(share, -1)
        self._serve()

    def _count(self, share: Share, sign: int) -> None:
        self._cpus -= sign * (share.cpus or 0)
        self._memory_bytes -= sign * share.memory_bytes
        devices = share.devices or ()
        for device in devices:
            self._loads[device] += sign * (self._has.calls_per_gpu if len(devices) > 1 else 1)

    def _serve(self) -> None:
        """Give their share to those whose turn it is: nobody passes one who came before and wants something of the same."""
        awaited: set[str] = set()
        for waiter in list(self._line):
            kinds = _kinds(waiter.needs)
            share = None if awaited & kinds else self._share(waiter.needs)
            if share is None:
                awaited |= kinds
                continue
            self._line.remove(waiter)
            if not waiter.turn.done():
                waiter.turn.set_result(self._taken(share))


def _kinds(needs: Resources) -> set[str]:
    """Of what it needs some."""
    if needs is NO_NEEDS:  # nearly always
        return set()
    found = {"gpus": needs.gpus, "cpus": needs.cpus, "memory": needs.memory_bytes}
    return {kind for kind, amount in found.items() if amount}
