"""Telemetry of real producers and workers: traces that follow a call, metrics on a port, and nothing where nobody asked."""

from __future__ import annotations

import signal

from otlp_receiver import Receiver, Span, receiving
from projects import NewProject, Project

from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call, PackHeader

TRACED = """
from opentelemetry import trace

@app.task(retries=1, backoff=0.01)
def flaky(n):
    with trace.get_tracer("mine").start_as_current_span("my own work") as span:
        span.set_attribute("n", n)
        if current().attempt == 1:
            raise ValueError("once")
    return n

@app.task
def square(x):
    if x == 0:
        with trace.get_tracer("mine").start_as_current_span("my own square"):
            pass
    return x * x
"""

PRODUCER = """
from {module} import flaky, square
print(flaky.delay(7).result(timeout=60))
print(sum(square.map(range(20))))
"""


def produced(project: Project, receiver: Receiver, **changes: str) -> None:
    """Run a producer to its end, and one worker that does its work."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_METRIC_EXPORT_INTERVAL": "600000", **changes}
    worker = project.worker("--concurrency", "1", **variables)
    ran = project.run("produce.py", PRODUCER.format(module=project.module.__name__), **variables)
    assert ran.stdout.split() == ["7", "2470"], ran.stderr
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 75, worker.log


def within(inner: Span, outer: Span) -> bool:
    """Whether a span is a child of another, in its trace and in its time."""
    return (inner.parent, inner.trace) == (outer.id, outer.trace) and inner.began_ns >= outer.began_ns


def test_a_trace_leads_from_the_producer_by_way_of_a_retry_to_the_outcome(new: NewProject) -> None:
    """Each attempt is a child of the producer's span, has the task's own spans below it, and is settled in it; of a map, each pack
    links to it. Of both sides the last spans arrive too, and the metrics.
    """
    with receiving() as receiver:
        project = new(TRACED)
        produced(project, receiver)

    app = project.app_name
    sent, mapped = receiver.named(f"send {app}")
    assert (sent.kind, sent.service, sent.parent, sent.is_error) == ("producer", "jobq-producer", "", False)
    call = sent.attributes["messaging.message.id"]
    assert sent.attributes == {
        "messaging.system": "jobq",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": app,
        "messaging.message.id": call,
        "jobq.task": f"{project.module.__name__}.flaky",
    }

    first, second = (span for span in receiver.named(f"process {app}") if span.attributes.get("messaging.message.id") == call)
    for span, attempt, outcome, own in zip(
        (first, second), (1, 2), ("retried", "succeeded"), receiver.named("my own work"), strict=True
    ):
        assert span.kind == "consumer"
        assert span.service == own.service == "jobq-worker"
        assert span.instance == own.instance
        assert within(span, sent)
        assert within(own, span)
        assert (span.attributes["jobq.attempt"], span.attributes["jobq.outcome"]) == (attempt, outcome)
        (settled,) = (other for other in receiver.named(f"settle {app}") if other.parent == span.id)
        assert settled.kind == "client"
        assert within(settled, span)
        assert settled.ended_ns <= span.ended_ns
    assert (first.is_error, first.attributes["error.type"]) == (True, "ValueError")
    assert not second.is_error
    received = [span for span in receiver.named(f"receive {app}") if sent.id in span.links]
    assert [span.kind for span in received] == ["client", "client"]

    batch = mapped.attributes["messaging.message.conversation_id"]
    assert mapped.attributes["messaging.batch.message_count"] == 20
    packs = [span for span in receiver.named(f"process {app}") if span.links == (mapped.id,)]
    assert sum(span.attributes["messaging.batch.message_count"] for span in packs) == 20
    assert {span.attributes["messaging.message.conversation_id"] for span in packs} == {batch}
    assert len({span.trace for span in (*packs, mapped)}) == len(packs) + 1
    (own,) = receiver.named("my own square")
    assert [within(own, span) for span in packs].count(True) == 1
    assert {"messaging.client.sent.messages", "jobq.calls.ended", "messaging.process.duration"} <= receiver.metrics


def test_a_producer_that_does_not_sample_is_not_followed(new: NewProject) -> None:
    """Nothing of a trace is told that its producer has decided to leave out."""
    with receiving() as receiver:
        project = new(TRACED)
        produced(project, receiver, OTEL_TRACES_SAMPLER="parentbased_always_off")
        assert not receiver.spans
        assert receiver.metrics


LISTS_MODULES = """
@app.task
def telemetry_modules(_=0):
    return [name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "prometheus_client")]
"""

LISTING_PRODUCER = """
import sys
from {module} import telemetry_modules
found = [telemetry_modules.delay().result(timeout=60), *telemetry_modules.map([1, 2])]
print([*found, [name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "prometheus_client")]])
"""


def test_nothing_of_opentelemetry_is_loaded_unless_it_is_switched_on(new: NewProject) -> None:
    """Neither a producer, nor a worker, nor its child loads any of it, though it is installed here."""
    project = new(LISTS_MODULES)
    worker = project.worker("--concurrency", "1", PYTHONPROFILEIMPORTTIME="1")
    ran = project.run("produce.py", LISTING_PRODUCER.format(module=project.module.__name__))
    assert ran.stdout == "[[], [], [], []]\n", ran.stderr
    imported = [line for line in worker.log.splitlines() if line.startswith("import time:")]
    assert any("ai4s.jobq.telemetry.switches" in line for line in imported)
    assert not [line for line in imported if "opentelemetry" in line or "prometheus_client" in line]


def test_azure_monitor_gets_what_a_worker_tells(new: NewProject) -> None:
    """With the extra, its variable is enough: spans and metrics arrive where the connection string says."""
    with receiving() as receiver:
        project = new(TRACED)
        key = "00000000-0000-0000-0000-000000000000"
        worker = project.worker(
            "--concurrency", "1",
            APPLICATIONINSIGHTS_CONNECTION_STRING=f"InstrumentationKey={key};IngestionEndpoint={receiver.url}/",
            APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL="true",
            APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED="true",
        )  # fmt: skip
        assert project.task("square").delay(0).result(timeout=60) == 0
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 75, worker.log
    named = {envelope["data"]["baseData"].get("name") for envelope in receiver.envelopes}
    metrics = {
        metric["name"]
        for envelope in receiver.envelopes
        if envelope["data"]["baseType"] == "MetricData"
        for metric in envelope["data"]["baseData"]["metrics"]
    }
    assert {f"process {project.app_name}", "my own square"} <= named
    assert {"jobq.calls.ended", "jobq.storage.requests"} <= metrics


OWN_PROVIDER = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from {module} import square

kept = InMemorySpanExporter()
provider = TracerProvider()
square.delay(1)                 # before anything is set up
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
with trace.get_tracer("mine").start_as_current_span("request") as request:
    square.delay(2)
    asyncio.run(square.adelay(3))
    square.map([4, 5])
own = request.get_span_context()
sent = [span for span in kept.get_finished_spans() if span.name.startswith("send ")]
print(f"{{own.trace_id:032x}}", *{{span.parent == own for span in sent}}, *(f"{{span.context.span_id:016x}}" for span in sent))
"""


def test_a_program_with_opentelemetry_of_its_own_gets_the_spans_of_sending(new: NewProject) -> None:
    """They are children of the span in which it sends, on whatever thread that is done, and messages carry their contexts."""
    project = new(TRACED)
    ran = project.run("produce.py", OWN_PROVIDER.format(module=project.module.__name__))
    own_trace, is_child, *sent = ran.stdout.split()
    assert (is_child, len(sent)) == ("True", 3), ran.stderr
    wire = project.app.client.run(ledger_of).wire
    read = [wire.unseal_delivery(delivery, "default") for delivery in project.take()]
    calls = [call.trace for call in read if isinstance(call, Call)]
    (pack,) = (header for header in read if isinstance(header, PackHeader))
    metas = project.app.client.run(lambda ledger: BatchLedger(ledger, pack.batch).meta())
    assert metas is not None
    carried = [traced and traced.split("-")[1:3] for traced in (*calls, metas.call.trace)]
    assert carried == [None, *([own_trace, span] for span in sent)]


async def ledger_of(ledger: Ledger) -> Ledger:
    """The ledger, to be asked what needs no request."""
    return ledger
