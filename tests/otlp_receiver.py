"""Where telemetry arrives in tests: a server on loopback that takes OTLP over HTTP, and Azure Monitor's envelopes.

It keeps what it is sent, decoded; `Span` says of a span what tests ask for.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = ("", "internal", "server", "client", "producer", "consumer")


@dataclass(frozen=True)
class Span:
    """A span as it arrived. `links` are ids of spans; `service` names its source, `instance` which one of these."""

    name: str
    kind: str
    id: str
    trace: str
    parent: str
    links: tuple[str, ...]
    attributes: dict[str, Any]
    service: str
    instance: str
    began_ns: int
    ended_ns: int
    is_error: bool


@dataclass
class Receiver:
    """What has arrived so far."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)
    metrics: set[str] = field(default_factory=set)
    envelopes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> list[Span]:
        """The spans whose name begins with this, in the order in which they began."""
        return sorted((span for span in self.spans if span.name.startswith(name)), key=lambda span: span.began_ns)

    def take(self, path: str, body: bytes) -> None:
        """Keep what was sent to a path."""
        if path.endswith("/v1/traces"):
            self.spans += _spans(ExportTraceServiceRequest.FromString(body))
        elif path.endswith("/v1/metrics"):
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics |= {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
        elif path.endswith("/track"):
            self.envelopes += json.loads(body)


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        source = _attributes(resource.resource.attributes)
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield Span(
                span.name,
                KINDS[span.kind],
                span.span_id.hex(),
                span.trace_id.hex(),
                span.parent_span_id.hex(),
                tuple(link.span_id.hex() for link in span.links),
                _attributes(span.attributes),
                source["service.name"],
                source.get("service.instance.id", ""),
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                span.status.code == 2,
            )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver for the length of the block."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # as the library calls it
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            answer = b""
            if self.path.endswith("/track"):
                count = len(json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body))
                answer = json.dumps({"itemsReceived": count, "itemsAccepted": count, "errors": []}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if answer else "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
