"""A worker's spans and metrics. Loaded where they are switched on.

A receive's span is told once all its messages have been read, since it links to what they carry. What became of an attempt is known
by its call's id, from whoever counts.

Next: `spans.py` and `instruments.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.trace import Span, Tracer

from .. import layout
from ..message import Call
from ..transports.base import Delivery
from . import spans
from .instruments import WorkerInstruments, meter_of
from .providers import Closer, Identity, meter_provider, resource, tracer_provider
from .switches import Switches
from .working import About, Gauges, Port, Seen

SERVICE = "jobq-worker"
BAD = frozenset({"failed", "retried", "died", "lost"})
"""How attempts end that went wrong."""


@contextmanager
def opened(about: About, on: Switches, port: Port | None) -> Iterator[Telling]:
    """Set up what is switched on; at the end, send what has not been sent yet."""
    source = resource(Identity(SERVICE, about.worker, about.environment), about.environ)
    with ExitStack() as stack:
        readers = _served(stack, port) if on.prometheus and port is not None else []
        traces = tracer_provider(on, source, about.environ) if on.traces else None
        meters = meter_provider(on, source, about.environ, readers=readers) if on.metrics else None
        stack.callback(Closer(traces, meters).close)
        yield Telling(about, None if traces is None else spans.tracer_of(traces), None if meters is None else meter_of(meters))


def _served(stack: ExitStack, port: Port) -> list[MetricReader]:
    from .scraping import serving  # who sends to Azure Monitor alone need not have what it imports

    return [stack.enter_context(serving(port))]


class Telling:
    """See `working.Telemetry`."""

    is_on = True

    def __init__(self, about: About, tracer: Tracer | None, meter: Meter | None) -> None:
        self._about, self._tracer, self._meter = about, tracer, meter
        self._instruments: WorkerInstruments | None = None
        self._unread: dict[str, spans.Received] = {}
        self._open: dict[str, OneProcess] = {}

    @property
    def has_metrics(self) -> bool:
        """Whether anybody reads numbers."""
        return self._meter is not None

    def show(self, gauges: Gauges) -> None:
        """Show what these read, and count from now on."""
        if self._meter is not None:
            common = {"jobq.app": self._about.app}
            if self._about.environment:
                common["jobq.environment"] = self._about.environment
            self._instruments = WorkerInstruments(self._meter, common, self._about.worker, gauges)

    # messages

    def received(self, queue: str, deliveries: Sequence[Delivery], seconds: float) -> None:
        """A receive has just been answered, after so long."""
        destination = self._destination(queue)
        if self._instruments is not None:
            oldest = max((delivery.server_time - delivery.inserted for delivery in deliveries), default=0.0)
            self._instruments.received(queue, destination, count=len(deliveries), oldest_seconds=max(0.0, oldest), seconds=seconds)
        if self._tracer is not None and deliveries:
            now = time.time_ns()
            unread = spans.Received(destination, now - int(seconds * 1e9), now, len(deliveries))
            self._unread.update((delivery.receipt.message_id, unread) for delivery in deliveries)

    def opened(self, delivery: Delivery, trace: str | None) -> None:
        """A delivery has been read; after the last one of a receive, its span is complete."""
        unread = self._unread.pop(delivery.receipt.message_id, None)
        if unread is None or self._tracer is None:
            return
        unread.contexts.append(trace)
        if len(unread.contexts) == unread.count:
            spans.receive(self._tracer, unread)

    @contextmanager
    def processing(self, call: Call, *, batch: str | None = None, count: int = 1) -> Iterator[OneProcess]:
        """For the block, a call is worked on, or `count` calls of a batch."""
        destination = self._destination(call.queue)
        span = None
        if self._tracer is not None:
            span = spans.begin_process(self._tracer, destination, call, batch=batch, count=count)
        process = OneProcess(self, call, span, batch)
        if batch is None:
            self._open[call.id] = process
        try:
            yield process
        except BaseException as exc:
            process.failed(type(exc).__name__)
            raise
        finally:
            self._open.pop(call.id, None)
            process.end()

    # what becomes of attempts

    def began(self, call: Seen, number: int = 1, first: int = 1) -> None:
        """So many attempts begin, `first` of them at calls that waited as this one did."""
        if self._instruments is not None:
            self._instruments.began(call, number, first)

    def succeeded(self, call: Seen, seconds: Sequence[float]) -> None:
        """Attempts that took so long gave a value each."""
        if self._instruments is not None:
            self._instruments.ended(call, "succeeded", seconds)
        if process := self._open.get(call.id):
            process.ended("succeeded", "")

    def ended(self, call: Seen, how: str, seconds: float, error: str = "") -> None:
        """An attempt has ended in another way."""
        if self._instruments is not None:
            self._instruments.ended(call, how, (seconds,), error)
        if process := self._open.get(call.id):
            process.ended(how, error)

    def processed(self, call: Call, seconds: float, error: str) -> None:
        """A delivery was worked on."""
        if self._instruments is not None:
            self._instruments.processed(self._destination(call.queue), seconds, error)

    @contextmanager
    def settling(self, call: Call, batch: str | None, process: Span | None) -> Iterator[None]:
        """For the block, a delivery is settled."""
        began, destination, span = time.monotonic(), self._destination(call.queue), None
        if self._tracer is not None and process is not None:
            span = spans.begin_settle(self._tracer, destination, within=process, call=call, batch=batch)
        try:
            yield
        except BaseException as exc:
            if span is not None:
                spans.failed(span, type(exc).__name__)
            raise
        finally:
            if span is not None:
                span.end()
            if self._instruments is not None:
                self._instruments.settled(destination, time.monotonic() - began)

    def _destination(self, queue: str) -> str:
        return layout.queue_name(self._about.app, queue)


class OneProcess:
    """See `working.Process`."""

    def __init__(self, telling: Telling, call: Call, span: Span | None, batch: str | None) -> None:
        self._telling, self._call, self._span, self._batch = telling, call, span, batch
        self._began, self._seconds, self._error = time.monotonic(), 0.0, ""
        self.trace = call.trace if span is None else spans.text_of(span)

    def settling(self) -> AbstractContextManager[None]:
        """Its work is done, and within the block it is settled."""
        self._seconds = self._seconds or time.monotonic() - self._began
        return self._telling.settling(self._call, self._batch, self._span)

    def ended(self, how: str, error: str) -> None:
        """How the attempt ended."""
        if self._span is not None:
            self._span.set_attribute("jobq.outcome", how)
        if how in BAD:
            self.failed(error or how)

    def failed(self, error: str) -> None:
        """Something went wrong; what did so first counts."""
        if not self._error:
            self._error = error
            if self._span is not None:
                spans.failed(self._span, error)

    def end(self) -> None:
        """It is over."""
        self._telling.processed(self._call, self._seconds or time.monotonic() - self._began, self._error)
        if self._span is not None:
            self._span.end()
