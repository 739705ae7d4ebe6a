"""Telemetry in one process: what switches it on, what is told under which names, and that labels stay few."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from ai4s.jobq.errors import ConfigurationError, Unreachable
from ai4s.jobq.message import Call
from ai4s.jobq.requests_made import Requests
from ai4s.jobq.telemetry import providers, spans, switches
from ai4s.jobq.telemetry.context import attached
from ai4s.jobq.telemetry.instruments import meter_of
from ai4s.jobq.telemetry.labels import MOST_ERROR_TYPES, MOST_TASKS, OTHER, Bounded
from ai4s.jobq.telemetry.opening import open_telemetry
from ai4s.jobq.telemetry.sending import UNTOLD, Producing
from ai4s.jobq.telemetry.switches import Switches
from ai4s.jobq.telemetry.tasks import trace_tasks
from ai4s.jobq.telemetry.telling import Telling
from ai4s.jobq.telemetry.working import SILENT, About, Gauges, Port, Silent, Telemetry
from ai4s.jobq.transports.base import Delivery, Receipt
from ai4s.jobq.worker import metering
from ai4s.jobq.worker.counts import Counts

ABOUT = About("app", "worker-1", "spot")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
CALL = Call("a" * 16 + "-" + "0" * 12, "mod.task", "gpu", b"", 0.0, trace=SAMPLED)

# what switches it on

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, Switches()),
        ({ENDPOINT: "http://here"}, Switches(otlp_traces=True, otlp_metrics=True)),
        ({ENDPOINT: ""}, Switches()),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://here"}, Switches(otlp_traces=True)),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://here"}, Switches(otlp_metrics=True)),
        ({ENDPOINT: "http://here", "OTEL_TRACES_EXPORTER": "none"}, Switches(otlp_metrics=True)),
        ({ENDPOINT: "http://here", "OTEL_METRICS_EXPORTER": "None "}, Switches(otlp_traces=True)),
        ({ENDPOINT: "http://here", "OTEL_SDK_DISABLED": "TRUE"}, Switches()),
        ({"APPLICATIONINSIGHTS_CONNECTION_STRING": "x"}, Switches(azure=True)),
        ({"OTEL_SERVICE_NAME": "mine"}, Switches()),
    ],
)
def test_the_variables_of_opentelemetry_switch_it_on(environ: dict[str, str], wanted: Switches) -> None:
    assert switches.switches(environ) == wanted


@pytest.mark.parametrize(
    ("wanted", "missing", "extra"),
    [
        (Switches(otlp_traces=True, otlp_metrics=True), "opentelemetry.exporter.otlp.proto.http", "otel"),
        (Switches(azure=True), "azure.monitor.opentelemetry.exporter", "azure-monitor"),
        (Switches(prometheus=True), "opentelemetry.exporter.prometheus", "otel"),
    ],
)
def test_an_extra_that_is_missing_is_named_once(
    wanted: Switches, missing: str, extra: str, *, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then there is no telemetry of that kind, and work goes on."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    assert switches.available(wanted, {}) == Switches()
    (record,) = caplog.records
    assert f"pip install 'ai4s-jobq[{extra}]'" in record.getMessage()


def test_grpc_is_refused_in_words(caplog: pytest.LogCaptureFixture) -> None:
    """To send HTTP to a port that takes gRPC would fail later, and say less."""
    on = switches.available(Switches(otlp_traces=True, prometheus=True), {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert on == Switches(prometheus=True)
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in caplog.text


def test_a_connection_string_that_is_none_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever works, works on; the log says what is wrong."""
    about = replace(ABOUT, environ={"APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=nonsense"})
    with open_telemetry(about) as telemetry, telemetry.processing(CALL) as process:
        assert process.trace is not None
    assert "No telemetry goes to Azure Monitor" in caplog.text


def test_azure_monitor_needs_nothing_of_prometheus(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its extra does not bring it."""
    for name in ("prometheus_client", "opentelemetry.exporter.prometheus", "ai4s.jobq.telemetry.scraping"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it could not be imported
    monkeypatch.delitem(sys.modules, "ai4s.jobq.telemetry.telling")
    with open_telemetry(replace(ABOUT, environ={"APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=x"})) as telemetry:
        assert telemetry.is_on
    assert "could not be set up" not in caplog.text


def test_a_collector_that_is_down_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter says so each time it tries, which is every few seconds for days."""
    monkeypatch.setattr(providers, "_SELDOM", providers._Seldom())
    on = Switches(otlp_traces=True)
    provider = providers.tracer_provider(on, Resource.create({}), {})
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for _ in range(3):
        logger.error("Failed to export")
    monkeypatch.setattr(providers, "COMPLAINT_SECONDS", 0.0)
    logger.error("Failed to export")
    provider.shutdown()
    logger.removeFilter(providers._SELDOM)
    assert caplog.text.count("Failed to export") == 2


UNFIT = {"OTEL_METRIC_EXPORT_INTERVAL": "-5", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100000"}


@pytest.mark.parametrize("unfit", UNFIT)
def test_what_opentelemetry_refuses_harms_nobody(
    unfit: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker and a producer go on, and say once that there is no telemetry, and why; a child's tasks run."""
    monkeypatch.setenv(unfit, UNFIT[unfit])
    environ = {ENDPOINT: "http://127.0.0.1:9", unfit: UNFIT[unfit]}
    with open_telemetry(replace(ABOUT, environ=environ)) as telemetry:
        assert telemetry is SILENT
    producing = Producing("app", environ)
    assert [producing.begin(CALL), producing.begin(CALL)] == [UNTOLD, UNTOLD]
    producing.close()
    assert caplog.text.count("could not be set up: ValueError") == 2


def test_a_setting_that_opentelemetry_refuses_stops_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever serves its tasks has said what is wrong."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000")
    trace_tasks("worker-1", {ENDPOINT: "http://127.0.0.1:9"})


def test_a_worker_of_which_nobody_wants_to_hear_is_silent() -> None:
    """Its tasks still get what the message carried, for spans of their own."""
    with open_telemetry(ABOUT) as telemetry:
        assert telemetry is SILENT
        with telemetry.processing(CALL) as process, process.settling():
            assert process.trace == SAMPLED


# metrics


@dataclass
class Told:
    """A worker's telemetry, and all metrics as Prometheus reads them."""

    telling: Telling
    registry: CollectorRegistry

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def families(self) -> set[str]:
        return set(re.findall(r"^# TYPE (\S+)", self.text(), re.MULTILINE))

    def values(self, family: str, label: str) -> set[str]:
        lines = [line for line in self.text().splitlines() if line.startswith(family)]
        return {found[1] for line in lines if (found := re.search(rf'\b{label}="([^"]*)"', line))}


@pytest.fixture
def told() -> Iterator[Told]:
    """What a worker tells, by a reader as `--metrics-port` has it."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider

    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry)])
    telling = Telling(ABOUT, None, meter_of(provider))
    telling.show(
        Gauges(
            slots=lambda: (4, 3),
            counts=lambda: {"dead": 1, "lost": 2, "preempted": 3},
            requests=lambda: {"blob_put": 7},
            usage=lambda: (12.5, 1024),
            depths={"gpu": 5},
        )
    )
    yield Told(telling, registry)
    provider.shutdown()


@dataclass(frozen=True)
class Seen:
    """A call as a worker's counts tell of it."""

    id: str = "c"
    task: str = "mod.task"
    queue: str = "gpu"
    batch: str = ""
    waited_seconds: float | None = 1.5


def delivery(number: int, inserted: float = 90.0) -> Delivery:
    """A message that was received at 100 by the server's clock."""
    return Delivery(Receipt(f"m{number}", "r"), "", 1, inserted, 100.0, 0.0)


def test_metrics_have_the_names_that_the_board_asks_for(told: Told) -> None:
    """OpenTelemetry's exporter makes them of names and units: the whole list stands here."""
    telling = told.telling
    telling.received("gpu", [delivery(1, 70.0), delivery(2)], 0.01)
    telling.began(Seen())
    with telling.processing(CALL) as process, process.settling():
        telling.ended(Seen(), "retried", 2.0, "ValueError")
    assert told.families() == {
        "messaging_client_consumed_messages_total",
        "messaging_process_duration_seconds",
        "messaging_client_operation_duration_seconds",
        "jobq_calls_started_total",
        "jobq_calls_ended_total",
        "jobq_calls_dead_lettered_total",
        "jobq_leases_lost_total",
        "jobq_preemptions_total",
        "jobq_call_run_time_seconds",
        "jobq_call_queue_time_seconds",
        "jobq_queue_depth",
        "jobq_queue_oldest_age_seconds",
        "jobq_slots",
        "jobq_slots_busy",
        "jobq_storage_requests_total",
        "jobq_worker_cpu_percent",
        "jobq_worker_memory_bytes",
        "jobq_worker_info",
        "target_info",
    }
    lines = [line for line in told.text().splitlines() if not line.startswith(("#", "target_info"))]
    assert all('jobq_app="app"' in line and 'jobq_environment="spot"' in line for line in lines)
    labels = 'jobq_outcome="retried",jobq_queue="gpu",jobq_task="mod.task"'
    ended = next(line for line in lines if line.startswith("jobq_calls_ended_total"))
    assert 'error_type="ValueError"' in ended
    assert labels in ended
    assert next(line for line in lines if line.startswith("jobq_queue_oldest_age")).endswith(" 30.0")
    assert told.values("messaging_", "messaging_operation_name") == {"receive", "process", "settle"}
    assert told.values("messaging_", "messaging_destination_name") == {"app-gpu"}


def test_the_oldest_age_is_that_of_the_last_receive(told: Told) -> None:
    """A receive that brings nothing says that nobody waits."""
    told.telling.received("gpu", [delivery(1, 70.0)], 0.01)
    told.telling.received("gpu", [], 0.01)
    assert re.search(r"^jobq_queue_oldest_age_seconds\{.*\} 0.0$", told.text(), re.MULTILINE)


def test_labels_take_few_values(told: Told) -> None:
    """However many tasks and types of errors there are: those beyond the first ones are one."""
    for number in range(3 * MOST_TASKS):
        told.telling.began(Seen(task=f"task-{number}"))
        told.telling.ended(Seen(task=f"task-{number}"), "failed", 1.0, f"Error{number}")
    for family in ("jobq_calls_started_total", "jobq_calls_ended_total", "jobq_call_run_time_seconds", "jobq_call_queue_time"):
        tasks = told.values(family, "jobq_task")
        assert len(tasks) == MOST_TASKS + 1
        assert OTHER in tasks
    assert len(told.values("jobq_calls_ended_total", "error_type")) == MOST_ERROR_TYPES + 1


def test_of_calls_by_the_thousand_a_sample_is_in_the_histograms(told: Told) -> None:
    """And all are in the counters: to record each would take longer than such a call."""
    told.telling.began(Seen(), 4096, 4000)
    told.telling.succeeded(Seen(), [float(number) for number in range(1, 4097)])
    counted = dict(re.findall(r"^(jobq_call\w+)\{[^}]*\} (\S+)$", told.text(), re.MULTILINE))
    assert (counted["jobq_calls_started_total"], counted["jobq_calls_ended_total"]) == ("4096.0", "4096.0")
    assert (counted["jobq_call_run_time_seconds_count"], counted["jobq_call_queue_time_seconds_count"]) == ("32.0", "32.0")
    assert 1900 < float(counted["jobq_call_run_time_seconds_sum"]) / 32 < 2200


def test_a_label_is_cut_to_a_length() -> None:
    """Names of tasks and types are the user's."""
    assert len(Bounded(1)("x" * 5000)) == 120


def test_metrics_are_served_on_loopback_until_the_worker_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Port 0 is one that is free, and the log says which; afterwards nobody listens there."""
    caplog.set_level(logging.INFO)
    with open_telemetry(ABOUT, Port(0)) as telemetry:
        telemetry.show(Gauges())
        (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)/metrics", caplog.text)
        text = _got(int(url))
    assert 'jobq_worker="worker-1"' in text
    with pytest.raises(ConnectionRefusedError):
        _got(int(url))


def _got(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def test_a_port_that_is_taken_is_a_wrong_setting() -> None:
    """The worker does not start, and says why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        opened = open_telemetry(ABOUT, Port(taken.getsockname()[1]))
        with pytest.raises(ConfigurationError, match="name another port"):
            opened.__enter__()


@dataclass
class Counted:
    """A queue that says how often it was counted, and cannot be at the second time."""

    name: str
    times: int = 0

    async def depth(self) -> int:
        self.times += 1
        if self.times == 2:
            raise Unreachable
        return 10 * self.times


class Shown(Silent):
    """Somebody reads metrics."""

    has_metrics = is_on = True

    def show(self, gauges: Gauges) -> None:
        self.gauges = gauges


@pytest.mark.parametrize("telemetry", [SILENT, Shown()])
async def test_queues_are_counted_once_a_minute_if_somebody_reads_it(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be counted now is not shown; without metrics nothing is asked."""
    queue, shown = Counted("app-gpu"), []
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        shown.append(dict(telemetry.gauges.depths) if isinstance(telemetry, Shown) else {})
        if len(pauses) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(metering.asyncio, "sleep", sleep)
    ledger = SimpleNamespace(transport=SimpleNamespace(requests=Requests()))
    workshop: Any = SimpleNamespace(telemetry=telemetry, slots=SimpleNamespace(total=1, running=0), counts=Counts(), ledger=ledger)
    poller: Any = SimpleNamespace(lines=[SimpleNamespace(name="gpu", queue=queue)])
    keeping = metering.keep_metered(workshop, poller)
    if telemetry is SILENT:
        await keeping
        assert queue.times == 0
    else:
        with pytest.raises(asyncio.CancelledError):
            await keeping
        assert (pauses, shown) == ([60.0] * 3, [{"gpu": 10}, {}, {"gpu": 30}])


async def test_metrics_are_there_before_anything_is_waited_for() -> None:
    """Else the first calls of a worker would not count."""
    telemetry = Shown()
    ledger = SimpleNamespace(transport=SimpleNamespace(requests=Requests()))
    workshop: Any = SimpleNamespace(telemetry=telemetry, slots=SimpleNamespace(total=1, running=0), counts=Counts(), ledger=ledger)
    keeping = asyncio.create_task(metering.keep_metered(workshop, SimpleNamespace(lines=[])))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    keeping.cancel()
    assert telemetry.gauges.slots() == (1, 0)


# traces


@contextmanager
def recorded() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """A provider whose spans are kept here."""
    provider, kept = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    try:
        yield provider, kept
    finally:
        provider.shutdown()


def processed(call: Call, **changes: Any) -> ReadableSpan | None:
    """The span of one attempt at a call; None if it was not sampled."""
    with recorded() as (provider, kept):
        with Telling(ABOUT, spans.tracer_of(provider), None).processing(call, **changes):
            pass
        return next(iter(kept.get_finished_spans()), None)


@pytest.mark.parametrize(
    "garbage", ["", "garbage", "00-0-0-01", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", f"{SAMPLED}\x00", "é" * 55]
)
def test_a_trace_that_is_none_is_ignored(garbage: str) -> None:
    """Whoever may send a message can write anything there."""
    span = processed(replace(CALL, trace=garbage))
    assert span is not None
    assert (span.parent, span.links) == (None, ())
    with attached(garbage):
        assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("batch", [None, "campaign"])
def test_what_the_producer_does_not_sample_is_not_sampled_here(batch: str | None) -> None:
    """Of a pack neither, though it is a trace of its own."""
    assert processed(replace(CALL, trace=UNSAMPLED), batch=batch) is None
    assert processed(CALL, batch=batch) is not None


def test_a_receive_is_told_once_all_its_messages_have_been_read() -> None:
    """It links to what those carry that carry something; what could not be read counts as read."""
    with recorded() as (provider, kept):
        telling = Telling(ABOUT, spans.tracer_of(provider), None)
        telling.received("gpu", [delivery(1), delivery(2)], 0.5)
        telling.opened(delivery(1), SAMPLED)
        assert not kept.get_finished_spans()
        telling.opened(delivery(2), None)
        (span,) = kept.get_finished_spans()
    assert span.name == "receive app-gpu"
    assert [f"{link.context.span_id:x}" for link in span.links] == [SPAN]
    assert span.end_time is not None
    assert span.start_time is not None
    assert span.end_time - span.start_time == 500_000_000


def test_an_attempt_that_breaks_off_is_a_failed_span() -> None:
    """A lost lease, say."""
    with recorded() as (provider, kept):
        telling = Telling(ABOUT, spans.tracer_of(provider), None)
        with pytest.raises(KeyError), telling.processing(CALL) as process, process.settling():
            raise KeyError
        settle, process_span = kept.get_finished_spans()
    assert settle.attributes is not None
    assert process_span.attributes is not None
    assert settle.attributes["error.type"] == process_span.attributes["error.type"] == "KeyError"


def test_a_producer_of_which_nobody_wants_to_hear_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where OpenTelemetry is not loaded, nor where a library has loaded it and nobody has set it up."""
    assert Producing("app", {}).begin(CALL) is UNTOLD
    monkeypatch.setattr("ai4s.jobq.telemetry.sending.is_loaded", lambda: False)
    monkeypatch.setattr(Producing, "_made", None)
    assert Producing("app", {}).begin(CALL) is UNTOLD


def test_a_producer_without_the_extra_says_so_once_and_sends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable that somebody has set for other programs breaks nothing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("ai4s.jobq.telemetry.sending.is_loaded", lambda: False)
    monkeypatch.setitem(sys.modules, "ai4s.jobq.telemetry.producer", None)  # as if it could not be imported
    producing = Producing("app", {ENDPOINT: "http://here"})
    assert [producing.begin(CALL), producing.begin(CALL)] == [UNTOLD, UNTOLD]
    assert len(caplog.records) == 1
    producing.close()


def test_spans_of_tasks_on_one_loop_do_not_mix() -> None:
    """Each task of a loop has its own context."""

    async def current_after(trace_text: str) -> int:
        with attached(trace_text):
            await asyncio.sleep(0)
            return trace.get_current_span().get_span_context().span_id

    async def both() -> list[int]:
        return await asyncio.gather(*(current_after(f"00-{TRACE}-{number:016x}-01") for number in (1, 2)))

    assert asyncio.run(both()) == [1, 2]


def test_this_file_leaves_the_process_as_it_was() -> None:
    """Neither supervisors nor producers set what belongs to the program they run in."""
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
