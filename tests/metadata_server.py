"""A machine's metadata service as Azure has it, on loopback: the machine's name, and the events that are announced for it.

`with metadata_server() as azure` serves until the end of the block, from a thread of its own, so that tests of any kind and the
workers that they start can ask it: `JOBQ_METADATA_URL=azure.url`.

Next: `unit/test_preemption.py` for how it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

from aiohttp import web

MACHINE = "This-Machine_7"
DEADLINE_SECONDS = 60.0


class MetadataServer:
    """What it answers is set by the test at any moment; each kind of answer is counted."""

    def __init__(self) -> None:
        self.url = ""
        self.events: dict[str, dict[str, Any]] = {}
        self.name: str | None = MACHINE
        self.spoilt: bytes | None = None  # the body of the events' answer, whatever it should be
        self.status = 200
        self.dated = True
        self.clock_offset_seconds = 0.0  # of its own clock, and so of all that it says
        self.answered = 0
        self.paths: list[str] = []
        self._ids = itertools.count(1)
        self._free = threading.Event()
        self._free.set()
        self._changed = threading.Condition()

    # What a test says.

    def announce(
        self,
        kind: str = "Preempt",
        *,
        seconds: float | None = 30,
        machines: tuple[str, ...] = (MACHINE,),
        started: bool = False,
        iso: bool = False,
    ) -> str:
        """Announce an event; returns its id. Without `seconds` its `NotBefore` is empty."""
        event_id = f"event-{next(self._ids)}"
        self.events[event_id] = {
            "EventId": event_id,
            "EventType": kind,
            "ResourceType": "VirtualMachine",
            "Resources": list(machines),
            "EventStatus": "Started" if started else "Scheduled",
            "NotBefore": "" if seconds is None else self._date(seconds, iso),
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }
        return event_id

    def withdraw(self, event_id: str) -> None:
        """Have an event vanish."""
        del self.events[event_id]

    def hang(self) -> None:
        """Leave every request without an answer until `go_on`."""
        self._free.clear()

    def go_on(self) -> None:
        """Answer again."""
        self._free.set()

    def until_answered(self, times: int = 2) -> None:
        """Wait for so many more answers about events; the second one was asked for after this call."""
        with self._changed:
            wanted = self.answered + times
            assert self._changed.wait_for(lambda: self.answered >= wanted, DEADLINE_SECONDS), "nobody asks for events"

    # What it answers.

    async def answer_events(self, request: web.Request) -> web.Response:
        self._note(request)
        await self._until_free()
        body = {"DocumentIncarnation": 1, "Events": list(self.events.values())}
        response = web.json_response(body) if self.spoilt is None else web.Response(body=self.spoilt)
        response.set_status(self.status)
        # An empty one stops the server from adding its own.
        response.headers["Date"] = self._date(0, iso=False) if self.dated else ""
        with self._changed:
            self.answered += 1
            self._changed.notify_all()
        return response

    async def answer_name(self, request: web.Request) -> web.Response:
        self._note(request)
        await self._until_free()
        return web.Response(status=404) if self.name is None else web.Response(text=self.name)

    def _note(self, request: web.Request) -> None:
        self.paths.append(request.path)
        expected = {"/metadata/scheduledevents": "2020-07-01", "/metadata/instance/compute/name": "2021-02-01"}
        if request.headers.get("Metadata") != "true" or request.query.get("api-version") != expected[request.path]:
            raise web.HTTPBadRequest

    async def _until_free(self) -> None:
        while not self._free.is_set():  # noqa: ASYNC110  # set from another thread
            await asyncio.sleep(0.02)

    def _date(self, seconds: float, iso: bool) -> str:
        moment = time.time() + self.clock_offset_seconds + seconds
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment)) if iso else formatdate(moment, usegmt=True)


@contextlib.contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    """Serve on a port of the system's choice."""
    server, ready, stop = MetadataServer(), threading.Event(), threading.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/metadata/scheduledevents", server.answer_events)
        app.router.add_get("/metadata/instance/compute/name", server.answer_name)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            server.url = f"http://{host}:{port}"
            ready.set()
            await asyncio.to_thread(stop.wait)
        finally:
            server.go_on()
            await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="metadata-server")
    thread.start()
    try:
        assert ready.wait(DEADLINE_SECONDS), "the metadata server did not start"
        yield server
    finally:
        stop.set()
        thread.join()
