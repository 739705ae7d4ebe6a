"""Metrics on a port, as text that Prometheus reads: OpenTelemetry's exporter, served by the library that it is made for.

Next: `instruments.py` for what is shown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, start_http_server

from ..errors import ConfigurationError
from .working import Port

log = logging.getLogger("ai4s.jobq.worker")


@contextmanager
def serving(port: Port) -> Iterator[PrometheusMetricReader]:
    """A reader whose metrics can be had at `port` for the length of the block. Raises ConfigurationError for one that is taken."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry)
    try:
        server, thread = start_http_server(port.number, port.host, registry)
    except OSError as exc:
        raise ConfigurationError(
            f"Metrics cannot be served at {port.host}:{port.number} ({exc.strerror}): name another port."
        ) from exc
    log.info("Metrics for Prometheus: http://%s:%d/metrics", port.host, server.server_port)
    try:
        yield reader
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
