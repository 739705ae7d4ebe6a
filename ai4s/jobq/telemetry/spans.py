"""Spans as the conventions for messaging name them: `send`, `receive`, `process` and `settle`, each with its queue.

A single call's `process` is a child of the producer's `send`; a pack's only links to it, since thousands of packs may come of one
map, and each is a trace that can be looked at. What a producer decided not to sample is not sampled here either.

Next: `working.py`, which says when.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from ..message import Call
from ..version import __version__
from .labels import LONGEST_VALUE

SCOPE = "ai4s.jobq"
SYSTEM = "jobq"
_FIELD = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()


def context_of(traced: str | None) -> Context:
    """The context that a text names, and nothing else; an empty one for a text that is none."""
    return _PROPAGATOR.extract({_FIELD: traced}, Context()) if traced else Context()


def text_of(span: Span) -> str | None:
    """The text that names a span's context; None if it has none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get(_FIELD)


def tracer_of(provider: trace.TracerProvider) -> Tracer:
    """What makes this package's spans."""
    return provider.get_tracer(SCOPE, __version__)


def attributes(operation: str, destination: str, **more: AttributeValue | None) -> dict[str, AttributeValue]:
    """What a span of an operation says; `conversation_id` and the like with their prefix, what is None not at all."""
    said: dict[str, AttributeValue] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
    }
    for name, value in more.items():
        if value is not None:
            said[_NAMES[name]] = value
    return said


_NAMES = {
    "id": "messaging.message.id",
    "batch": "messaging.message.conversation_id",
    "count": "messaging.batch.message_count",
    "task": "jobq.task",
}


def link_to(context: Context) -> list[Link]:
    """A link to the span of this context, if it has one."""
    named = trace.get_current_span(context).get_span_context()
    return [Link(named)] if named.is_valid else []


def begin_send(tracer: Tracer, destination: str, call: Call, batch: str | None) -> Span:
    """A producer's span, in the context of whoever calls this."""
    said = attributes("send", destination, id=None if batch else call.id, batch=batch, task=call.task[:LONGEST_VALUE])
    return tracer.start_span(f"send {destination}", kind=SpanKind.PRODUCER, attributes=said)


@dataclass(slots=True)
class Received:
    """A receive that brought messages; `contexts` are what those carried that have been read."""

    destination: str
    began_ns: int
    ended_ns: int
    count: int
    contexts: list[str | None] = field(default_factory=list)


def receive(tracer: Tracer, received: Received) -> None:
    """The span of a receive, once all its messages have been read."""
    links = [link for traced in received.contexts for link in link_to(context_of(traced))]
    said = attributes("receive", received.destination, count=received.count)
    name, began_ns = f"receive {received.destination}", received.began_ns
    tracer.start_span(name, Context(), SpanKind.CLIENT, attributes=said, links=links, start_time=began_ns).end(received.ended_ns)


def begin_process(tracer: Tracer, destination: str, call: Call, *, batch: str | None, count: int) -> Span:
    """The span of an attempt, or of all attempts of one delivery of a pack."""
    said = attributes("process", destination, task=call.task[:LONGEST_VALUE])
    parent = context_of(call.trace)
    links = link_to(parent)
    if batch is None:
        said |= {"messaging.message.id": call.id, "jobq.attempt": call.attempt}
    else:
        said |= {"messaging.message.conversation_id": batch, "messaging.batch.message_count": count}
        # Of a trace that is not sampled this goes on to be a part, and so is not sampled either.
        parent = parent if links and not links[0].context.trace_flags.sampled else Context()
    return tracer.start_span(f"process {destination}", parent, SpanKind.CONSUMER, attributes=said, links=links)


def begin_settle(tracer: Tracer, destination: str, *, within: Span, call: Call, batch: str | None) -> Span:
    """The span of a settlement, within that of its attempt."""
    said = attributes("settle", destination, id=None if batch else call.id, batch=batch)
    parent = trace.set_span_in_context(within, Context())
    return tracer.start_span(f"settle {destination}", parent, SpanKind.CLIENT, attributes=said)


def failed(span: Span, error: str, told: str = "") -> None:
    """Have a span say that it failed, with the error's type."""
    span.set_attribute("error.type", error)
    span.set_status(trace.StatusCode.ERROR, told or error)
