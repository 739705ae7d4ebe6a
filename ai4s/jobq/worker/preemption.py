"""Notices that Azure takes this machine away: its Scheduled Events, asked for every second.

An onlooker beside the work: whatever goes wrong here is said once, and disturbs nothing. Only what surely names this machine
counts, and only an answer that surely does not name it any more withdraws a notice. An event that the worker has outlived, or by
which the machine went before, is none any more.

Facts, from Microsoft's page on Scheduled Events for Linux VMs: the first request may block for two minutes; Preempt comes at least
30 s ahead, Terminate, Reboot and Redeploy minutes; `NotBefore` is empty once an event has started; an event that is over vanishes.

Next: `shutdown.py`, which is told.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from .shutdown import Shutdown

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("ai4s.jobq.worker")

AZURE_URL = "http://169.254.169.254"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
OFF = "off"

ASSET_TAG_PATH = Path("/sys/class/dmi/id/chassis_asset_tag")
AZURE_ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"
"""In the firmware of every virtual machine of Azure, where cloud-init looks as well (`cloudinit/sources/azure/identity.py`)."""

FATAL = frozenset({"Preempt", "Terminate", "Reboot", "Redeploy"})
"""Events that no process survives. A Freeze it does: leases run on a clock that goes on meanwhile."""

RETURNING = frozenset({"Reboot", "Redeploy"})

LEAD_SECONDS = 120.0
"""An event that is further away is left alone until then: a reboot is announced 15 minutes ahead, too long to do nothing."""

SHORTEST_SECONDS = 5.0
"""What is taken to be left where the event is due, or does not say when."""

ROUND_SECONDS, FAULT_PAUSE_SECONDS = 1.0, 5.0
FIRST_ANSWER_SECONDS, ANSWER_SECONDS = 150.0, 10.0

LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class Event:
    """One scheduled event that ends processes. `due` is in epoch seconds, None where that is now; `resources` in lower case."""

    id: str
    kind: str
    resources: frozenset[str]
    due: float | None
    started: bool

    def seconds_left(self, now: float) -> float:
        """How long the machine has, at least."""
        return SHORTEST_SECONDS if self.due is None else max(SHORTEST_SECONDS, self.due - now)


def metadata_url(setting: str | None, asset_tag_path: Path = ASSET_TAG_PATH) -> str | None:
    """Whom to ask: what the setting says, and without one Azure, if this is a machine of Azure's. None: nobody.

    Raises ConfigurationError for a setting that is no URL.
    """
    if setting is None:
        return AZURE_URL if _asset_tag(asset_tag_path) == AZURE_ASSET_TAG else None
    if setting == OFF:
        return None
    if not setting.startswith(("http://", "https://")):
        raise ConfigurationError(f"JOBQ_METADATA_URL wants a URL or {OFF!r}; got {setting!r}.")
    return setting.rstrip("/")


def _asset_tag(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


async def follow_notices(url: str | None, shutdown: Shutdown) -> None:
    """Tell `shutdown` of what is announced at `url`, for ever."""
    if url is None:
        return
    import aiohttp  # only here: a worker on a folder needs none of it

    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    # The link-local address is never behind a proxy: trust_env stays off.
    async with aiohttp.ClientSession(headers={"Metadata": "true"}, timeout=timeout) as session:
        await Notices(_Metadata(session, url), shutdown).follow()


class _Metadata:
    """A machine's metadata service."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def events(self, answer_seconds: float) -> tuple[list[Event], float]:
        """The events of this machine and its neighbours, and the moment of the answer by its own clock.

        Raises OSError, TimeoutError or ValueError if there is no answer, or one that makes no sense.
        """
        text, date = await self._get(EVENTS, answer_seconds)
        return read_events(text), moment_of(date) or time.time()

    async def name(self) -> str | None:
        """The name by which events call this machine; None if the service does not tell."""
        try:
            name = (await self._get(NAME, ANSWER_SECONDS))[0].strip()
        except (OSError, ValueError) as exc:
            log.debug("The machine's name could not be read: %r", exc)
            return None
        return name if 0 < len(name) <= LONGEST_NAME and name.isprintable() else None

    async def _get(self, path: str, answer_seconds: float) -> tuple[str, str | None]:
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=answer_seconds, sock_connect=ANSWER_SECONDS)
            async with self._session.get(self._url + path, timeout=timeout, allow_redirects=False) as response:
                if response.status != 200:
                    raise ValueError(f"HTTP status {response.status}")
                return (await response.read()).decode(), response.headers.get("Date")
        except aiohttp.ClientError as exc:
            raise OSError(str(exc)) from exc


class Notices:
    """Follows the events of one machine."""

    def __init__(self, metadata: _Metadata, shutdown: Shutdown) -> None:
        self._metadata, self._shutdown = metadata, shutdown
        self._name: str | None = None
        self._behind: frozenset[str] | None = None
        self._told: str | None = None
        self._faulty = False

    async def follow(self) -> None:
        """Look again and again, for ever."""
        while True:
            try:
                await self._look()
                self._faulty = False
                pause = ROUND_SECONDS
            except (OSError, ValueError) as exc:  # TimeoutError is an OSError
                self._say_once(exc)
                pause = FAULT_PAUSE_SECONDS
            await asyncio.sleep(pause)

    async def _look(self) -> None:
        first = self._behind is None
        events, now = await self._metadata.events(FIRST_ANSWER_SECONDS if first else ANSWER_SECONDS)
        if first:
            # A machine that has just come back finds the event by which it went still there.
            self._behind = frozenset(event.id for event in events if event.started and event.kind in RETURNING)
        event = await self._next_of_mine(events, now)
        if event is not None and event.seconds_left(now) <= LEAD_SECONDS:
            self._told = f"{event.kind} of this machine is announced"
            self._shutdown.notice(self._told, event.seconds_left(now), event.id)
        elif self._told is not None:
            self._shutdown.withdraw(f"{self._told} no more")
            self._told = None

    async def _next_of_mine(self, events: Sequence[Event], now: float) -> Event | None:
        known = self._shutdown.outlived.union(self._behind or ())
        ahead = [event for event in events if event.id not in known]
        if not ahead:
            return None
        self._name = self._name or await self._metadata.name()
        own = (self._name or socket.gethostname()).lower()
        mine = [event for event in ahead if own in event.resources]
        return min(mine, key=lambda event: event.seconds_left(now), default=None)

    def _say_once(self, exc: Exception) -> None:
        if not self._faulty:
            log.warning("Notices that this machine goes cannot be read; trying on, without more of these lines: %r", exc)
        self._faulty = True


def read_events(text: str) -> list[Event]:
    """The events in an answer that end processes; one that makes no sense is left out. Raises ValueError if the whole does not."""
    try:
        document = json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    entries = document.get("Events") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"no list of events in {text[:80]!r}")
    return [_event(entry) for entry in entries if isinstance(entry, dict) and str(entry.get("EventType")) in FATAL]


def _event(entry: dict[str, Any]) -> Event:
    resources = entry.get("Resources")
    return Event(
        id=str(entry.get("EventId")),
        kind=str(entry["EventType"]),
        resources=frozenset(str(name).lower() for name in resources) if isinstance(resources, list) else frozenset(),
        due=moment_of(entry.get("NotBefore")),
        started=entry.get("EventStatus") == "Started",
    )


def moment_of(text: object) -> float | None:
    """Epoch seconds of a date in the form of RFC 1123 or of ISO 8601, in UTC unless it says otherwise; None if it is neither."""
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = parse(str(text))
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, TypeError):
            continue
    return None
