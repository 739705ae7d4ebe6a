"""Which telemetry is switched on, by the variables that OpenTelemetry and Azure Monitor have defined.

Nothing is imported here that is not there anyway. What the variables mean beyond on and off, OpenTelemetry's SDK reads itself.

Next: `providers.py`, which sets up what is on.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ..printable import printable

log = logging.getLogger("ai4s.jobq")

AZURE_VARIABLE = "APPLICATIONINSIGHTS_CONNECTION_STRING"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
GRPC = "Telemetry goes by OTLP over HTTP only: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, and an endpoint that takes it."
OTLP_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
AZURE_MODULES = ("opentelemetry.sdk", "azure.monitor.opentelemetry.exporter")
PROMETHEUS_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.prometheus")


@dataclass(frozen=True, slots=True)
class Switches:
    """What goes where: traces and metrics by OTLP, both to Azure Monitor, and metrics on a port for Prometheus."""

    otlp_traces: bool = False
    otlp_metrics: bool = False
    azure: bool = False
    prometheus: bool = False

    @property
    def any(self) -> bool:
        """Whether anything goes anywhere."""
        return self.traces or self.metrics

    @property
    def traces(self) -> bool:
        """Whether traces go anywhere."""
        return self.otlp_traces or self.azure

    @property
    def metrics(self) -> bool:
        """Whether metrics go anywhere."""
        return self.otlp_metrics or self.azure or self.prometheus


def switches(environ: Mapping[str, str], *, port: bool = False) -> Switches:
    """What these variables switch on, and `port`, whether metrics are to be had on a port.

    OTEL_EXPORTER_OTLP_ENDPOINT, or that of one signal (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, …_METRICS_ENDPOINT), and
    APPLICATIONINSIGHTS_CONNECTION_STRING switch on; OTEL_SDK_DISABLED=true switches all off, OTEL_TRACES_EXPORTER=none and
    OTEL_METRICS_EXPORTER=none one signal by OTLP.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Switches()
    return Switches(
        otlp_traces=_has_endpoint(environ, "TRACES"),
        otlp_metrics=_has_endpoint(environ, "METRICS"),
        azure=bool(environ.get(AZURE_VARIABLE)),
        prometheus=port,
    )


def _has_endpoint(environ: Mapping[str, str], signal: str) -> bool:
    named = environ.get(ENDPOINT) or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return bool(named) and environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


def available(wanted: Switches, environ: Mapping[str, str], *, quietly: bool = False) -> Switches:
    """What of this can be had with what is installed here; says what to install for the rest, unless `quietly`."""
    is_grpc = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip().lower() == "grpc"
    otlp = wanted.otlp_traces or wanted.otlp_metrics
    # Not asked of what nobody wants: to find a module is to load the packages that it is in.
    has_otlp = otlp and _are_installed(*OTLP_MODULES)
    has_azure = wanted.azure and _are_installed(*AZURE_MODULES)
    has_prometheus = wanted.prometheus and _are_installed(*PROMETHEUS_MODULES)
    problems = {
        GRPC: otlp and is_grpc,
        f"{ENDPOINT} is set, but nothing is sent without: {_install('otel')}": otlp and not has_otlp,
        f"{AZURE_VARIABLE} is set, but nothing is sent without: {_install('azure-monitor')}": wanted.azure and not has_azure,
        f"Metrics are wanted on a port, but there are none without: {_install('otel')}": wanted.prometheus and not has_prometheus,
    }
    for problem, is_there in problems.items():
        if is_there and not quietly:
            log.warning("%s", problem)
    can_send = has_otlp and not is_grpc
    return Switches(wanted.otlp_traces and can_send, wanted.otlp_metrics and can_send, has_azure, has_prometheus)


def gave_up(exc: Exception) -> None:
    """Say that there is no telemetry since it could not be set up: no call is to suffer for it."""
    log.warning("No telemetry, since it could not be set up: %s: %s", type(exc).__name__, printable(str(exc)))


def _install(extra: str) -> str:
    return f"pip install 'ai4s-jobq[{extra}]'"


def _are_installed(*modules: str) -> bool:
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # of a package that it is in
        return False
