"""OpenTelemetry's SDK, set up with the exporters that are switched on. Loaded only then.

What a supervisor and a producer use is theirs alone: the process's own tracing, which a program may set up later, is left to it.
A child's is the process's, since the spans that tasks make go there; a task's module that has set up its own keeps it.

Next: `spans.py` and `instruments.py`, which write to what is set up here.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from ..clock import boottime
from ..printable import printable
from ..version import __version__
from .switches import AZURE_VARIABLE, Switches

T = TypeVar("T")
log = logging.getLogger("ai4s.jobq")

OTLP, AZURE = "the OTLP endpoint", "Azure Monitor"

COMPLAINT_SECONDS = 600.0
"""What an exporter says it says at most so often, of traces and of metrics each."""

FLUSH_SECONDS = 3.0
"""How long the end of a worker, a child or a program waits for telemetry that has not been taken."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who tells: the service's name unless a variable names it, the worker's id or none, and the environment it runs in."""

    service: str
    instance: str | None = None
    environment: str | None = None


def resource(identity: Identity, environ: Mapping[str, str]) -> Resource:
    """What all telemetry of this process says of its source; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first."""
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    attributes = {"service.version": __version__} if named else {"service.version": __version__, "service.name": identity.service}
    if identity.instance is not None:
        attributes["service.instance.id"] = identity.instance
    if identity.environment:
        attributes["deployment.environment.name"] = identity.environment
    return Resource.create(attributes)


def tracer_provider(on: Switches, source: Resource, environ: Mapping[str, str]) -> TracerProvider:
    """Traces to where they are to go, until a `Closer` ends it."""
    provider = TracerProvider(resource=source, shutdown_on_exit=False)
    for exporter in _span_exporters(on, environ):
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def meter_provider(
    on: Switches, source: Resource, environ: Mapping[str, str], *, readers: Sequence[MetricReader] = ()
) -> MeterProvider:
    """Metrics to where they are to go, and to these readers."""
    return MeterProvider([*readers, *_metric_readers(on, environ)], resource=source, shutdown_on_exit=False)


def _span_exporters(on: Switches, environ: Mapping[str, str]) -> list[SpanExporter]:
    def otlp() -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()

    def azure() -> SpanExporter:
        from azure.monitor.opentelemetry.exporter import AzureMonitorTraceExporter

        return AzureMonitorTraceExporter(**_azure(environ))

    return [*(_made(otlp, OTLP) if on.otlp_traces else ()), *(_made(azure, AZURE) if on.azure else ())]


def _metric_readers(on: Switches, environ: Mapping[str, str]) -> list[MetricReader]:
    def otlp() -> MetricExporter:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter()

    def azure() -> MetricExporter:
        from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter

        return AzureMonitorMetricExporter(**_azure(environ))

    exporters = [*(_made(otlp, OTLP) if on.otlp_metrics else ()), *(_made(azure, AZURE) if on.azure else ())]
    return [PeriodicExportingMetricReader(exporter) for exporter in exporters]


def _azure(environ: Mapping[str, str]) -> dict[str, Any]:
    # Not by way of files in the machine's temporary folder: it may be gone before anybody sends them.
    return {"connection_string": environ[AZURE_VARIABLE], "disable_offline_storage": True}


def _made(make: Callable[[], T], where: str) -> list[T]:
    """What `make` makes; nothing, and a word in the log, if it cannot: for want of telemetry no call is to suffer."""
    try:
        made = make()
        for kind in type(made).__mro__:
            logging.getLogger(kind.__module__).addFilter(_SELDOM)
        return [made]
    except Exception as exc:  # noqa: BLE001  # of a package that may not fit the others, about variables that are its own to judge
        log.warning("No telemetry goes to %s: %s", where, printable(str(exc)))
        return []


class _Seldom(logging.Filter):
    """Lets an exporter complain from time to time: one whose collector is down does so every few seconds, for as long as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is said."""
        is_due = boottime() - self._said.get(record.name, -math.inf) >= COMPLAINT_SECONDS
        if is_due:
            self._said[record.name] = boottime()
        return is_due


_SELDOM = _Seldom()


def trace_this_process(on: Switches, source: Resource, environ: Mapping[str, str]) -> None:
    """Have spans that are made anywhere in this process go where they are to go, unless it has a provider of its own."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        provider = tracer_provider(on, source, environ)
        atexit.register(Closer(provider, None).close)
        trace.set_tracer_provider(provider)


class Closer:
    """Sends what these providers have not sent yet and closes them, within `FLUSH_SECONDS`, once it is told to.

    On a thread that is there beforehand, for at an interpreter's end none can be started; nobody waits for longer than that for a
    collector that does not answer.
    """

    def __init__(self, traces: TracerProvider | None, meters: MeterProvider | None) -> None:
        self._providers = [provider for provider in (traces, meters) if provider is not None]
        self._asked, self._done = threading.Event(), threading.Event()
        self._process = os.getpid()
        threading.Thread(target=self._close, name="jobq-telemetry", daemon=True).start()

    def close(self) -> None:
        """Close them; in a fork, which has no such thread, nothing."""
        if os.getpid() == self._process:
            self._asked.set()
            self._done.wait(FLUSH_SECONDS)

    def _close(self) -> None:
        self._asked.wait()
        try:
            for provider in self._providers:
                provider.shutdown()
        finally:
            self._done.set()
