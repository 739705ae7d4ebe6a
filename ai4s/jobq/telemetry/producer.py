"""A producer's spans and metrics. Loaded where OpenTelemetry is there already, or is switched on.

A program that has set up OpenTelemetry gets them where its own go. Else, if a variable says where, this has a provider of its own,
and leaves the process's to the program, which may set one up later.

Next: `spans.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from opentelemetry import metrics, trace
from opentelemetry.trace import Span

from .. import layout
from ..message import Call
from .instruments import ProducerInstruments, meter_of
from .spans import begin_send, failed, text_of, tracer_of
from .switches import Switches

SERVICE = "jobq-producer"


class Producer:
    """One app's submissions, told."""

    def __init__(self, app: str, environ: Mapping[str, str], on: Switches) -> None:
        self._app, self._environ, self._on = app, environ, on
        self._own_traces: trace.TracerProvider | None = None
        self._own_metrics: metrics.MeterProvider | None = None
        self._instruments: ProducerInstruments | None = None
        self._close: Callable[[], None] = lambda: None
        if on.any:
            self._set_up()

    def _set_up(self) -> None:
        from .providers import Closer, Identity, meter_provider, resource, tracer_provider

        source = resource(Identity(SERVICE), self._environ)
        # A worker's child has the process's own already.
        traces = tracer_provider(self._on, source, self._environ) if self._on.traces and self._traces() is None else None
        meters = meter_provider(self._on, source, self._environ) if self._on.metrics else None
        self._own_traces, self._own_metrics, self._close = traces, meters, Closer(traces, meters).close

    def begin(self, call: Call, batch: str | None) -> OneSending | None:
        """A submission begins; None if nobody listens."""
        traces, meters = self._traces(), self._instruments or self._made_instruments()
        if traces is None and meters is None:
            return None
        destination = layout.queue_name(self._app, call.queue)
        span = None if traces is None else begin_send(tracer_of(traces), destination, call, batch)
        return OneSending(call, destination, span, meters)

    def _traces(self) -> trace.TracerProvider | None:
        programs_own = trace.get_tracer_provider()
        return self._own_traces if isinstance(programs_own, trace.ProxyTracerProvider) else programs_own

    def _made_instruments(self) -> ProducerInstruments | None:
        provider = metrics.get_meter_provider()
        # The API's own providers only stand in for one, and have no common name.
        if type(provider).__module__.startswith(metrics.__name__):
            if self._own_metrics is None:
                return None
            provider = self._own_metrics
        self._instruments = ProducerInstruments(meter_of(provider), self._app)
        return self._instruments

    def close(self) -> None:
        """Send what has not been sent yet, and stop."""
        self._close()
        self._own_traces = self._own_metrics = self._instruments = None


class OneSending:
    """See `sending.Sending`."""

    def __init__(self, call: Call, destination: str, span: Span | None, meters: ProducerInstruments | None) -> None:
        self._call, self._destination, self._span, self._meters = call, destination, span, meters
        self._began = time.monotonic()
        self._messages = self._calls = 1
        self._is_batch = False
        self.trace = None if span is None else text_of(span)

    def sent(self, *, messages: int, calls: int) -> None:
        """Of a batch."""
        self._messages, self._calls, self._is_batch = messages, calls, True

    def __enter__(self) -> OneSending:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        name = "" if kind is None else kind.__name__
        if self._span is not None:
            if self._is_batch:
                self._span.set_attribute("messaging.batch.message_count", self._calls)
            if name:
                failed(self._span, name)
            self._span.end()
        if self._meters is not None:
            seconds = time.monotonic() - self._began
            self._meters.sent(self._destination, seconds, messages=self._messages, error=name)
            self._meters.calls(0 if name and not self._is_batch else self._calls, task=self._call.task, queue=self._call.queue)
