"""Metrics: those of the conventions for messaging, and this package's own, `jobq.*`, with labels that are bounded.

What is counted anyway is only read when somebody collects; what happens to calls is added up in a dictionary, and of calls that end
by the thousand a sample is in the two histograms.

Next: `telling.py`, which hears what happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from ..version import __version__
from .labels import MOST_ERROR_TYPES, MOST_TASKS, Bounded
from .spans import SCOPE, SYSTEM
from .working import Gauges, Seen

SAMPLE = 32
"""Of calls that begin or end at one time, so many are in the histograms: to record one takes longer than many a call."""

Labels = Mapping[str, str]
Callback = Callable[[CallbackOptions], Iterable[Observation]]

OPERATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Seconds, as the conventions for messaging advise."""

TASK_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 43200, 86400)
"""Seconds that calls run and wait: from what a chunk has by the thousand to a day; those of `distribution.py`."""


def meter_of(provider: MeterProvider) -> Meter:
    """What makes this package's instruments."""
    return provider.get_meter(SCOPE, __version__)


def messaging(operation: str, destination: str, common: Labels, error: str = "") -> dict[str, str]:
    """The labels of the conventions' metrics."""
    labels = {
        **common,
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.destination.name": destination,
    }
    return labels | ({"error.type": error} if error else {})


class ProducerInstruments:
    """What a producer counts."""

    def __init__(self, meter: Meter, app: str) -> None:
        self._common = {"jobq.app": app}
        self._errors, self._tasks = Bounded(MOST_ERROR_TYPES), Bounded(MOST_TASKS)
        self._messages = meter.create_counter("messaging.client.sent.messages", "{message}", "Messages that were sent.")
        self._calls = meter.create_counter("jobq.calls.sent", "{call}", "Calls that were sent, alone or in packs.")
        self._durations = _operation_duration(meter)

    def sent(self, destination: str, seconds: float, *, messages: int, error: str) -> None:
        """A submission is done: `messages` were sent."""
        labels = messaging("send", destination, self._common, self._errors(error) if error else "")
        self._durations.record(seconds, labels)
        if messages:
            self._messages.add(messages, labels)

    def calls(self, count: int, *, task: str, queue: str) -> None:
        """So many calls were sent."""
        if count:
            self._calls.add(count, {**self._common, "jobq.task": self._tasks(task), "jobq.queue": queue})


class WorkerInstruments:
    """What a worker counts, and what it shows."""

    def __init__(self, meter: Meter, common: Labels, worker: str, gauges: Gauges) -> None:
        self._common = dict(common)
        self._tasks, self._errors = Bounded(MOST_TASKS), Bounded(MOST_ERROR_TYPES)
        self._started: Counter[tuple[str, ...]] = Counter()
        self._ended: Counter[tuple[str, ...]] = Counter()
        self._ages: dict[str, float] = {}
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Messages that were received.")
        self._operations = _operation_duration(meter)
        self._processing = meter.create_histogram(
            "messaging.process.duration", "s", "From the beginning of a delivery's work to its settlement.",
            explicit_bucket_boundaries_advisory=TASK_BOUNDS,
        )  # fmt: skip
        self._run_times = meter.create_histogram(
            "jobq.call.run_time", "s", "How long the task ran, of each attempt.", explicit_bucket_boundaries_advisory=TASK_BOUNDS
        )
        self._queue_times = meter.create_histogram(
            "jobq.call.queue_time", "s", "From when a call was sent, or was to run, to its first attempt.",
            explicit_bucket_boundaries_advisory=TASK_BOUNDS,
        )  # fmt: skip
        self._show_calls(meter)
        self._show_counts(meter, gauges)
        self._show_state(meter, worker, gauges)

    def received(self, queue: str, destination: str, *, count: int, oldest_seconds: float, seconds: float) -> None:
        """A receive was answered, and brought so many messages."""
        self._ages[queue] = oldest_seconds
        if count:
            labels = messaging("receive", destination, self._common)
            self._consumed.add(count, labels)
            self._operations.record(seconds, labels)

    def processed(self, destination: str, seconds: float, error: str) -> None:
        """A delivery was worked on."""
        self._processing.record(seconds, messaging("process", destination, self._common, self._errors(error) if error else ""))

    def settled(self, destination: str, seconds: float) -> None:
        """A delivery was settled."""
        self._operations.record(seconds, messaging("settle", destination, self._common))

    def began(self, call: Seen, number: int, first: int) -> None:
        """So many attempts at calls like this one begin, `first` of them at calls that waited as it did."""
        task = self._tasks(call.task)
        self._started[task, call.queue] += number
        if call.waited_seconds is not None:
            labels = {**self._common, "jobq.task": task, "jobq.queue": call.queue}
            for _ in range(min(first, SAMPLE)):
                self._queue_times.record(call.waited_seconds, labels)

    def ended(self, call: Seen, how: str, seconds: Sequence[float], error: str = "") -> None:
        """Attempts at calls like this one have ended so, after so long each."""
        task = self._tasks(call.task)
        self._ended[task, call.queue, how, self._errors(error) if error else ""] += len(seconds)
        labels = {**self._common, "jobq.task": task, "jobq.queue": call.queue}
        for each in seconds[:: -(-len(seconds) // SAMPLE)]:
            if each:
                self._run_times.record(each, labels)

    # what is read when somebody collects

    def _show_calls(self, meter: Meter) -> None:
        started, ended = self._started, self._ended
        names = ("jobq.task", "jobq.queue", "jobq.outcome", "error.type")
        meter.create_observable_counter(
            "jobq.calls.started", [self._each(started.copy, names)], "{call}", "Attempts that have begun."
        )
        meter.create_observable_counter(
            "jobq.calls.ended", [self._each(ended.copy, names)], "{call}", "Attempts that have ended, and how."
        )

    def _show_counts(self, meter: Meter, gauges: Gauges) -> None:
        for name, unit, key, told in (
            ("jobq.calls.dead_lettered", "{call}", "dead", "Calls and messages that became dead letters."),
            ("jobq.leases.lost", "{lease}", "lost", "Leases that were lost before their message was settled."),
            ("jobq.preemptions", "{call}", "preempted", "Attempts that were given back since the machine or worker was to go."),
        ):
            meter.create_observable_counter(name, [self._one(_counted(gauges.counts, key))], unit, told)
        requests = self._each(lambda: {(kind,): count for kind, count in gauges.requests().items()}, ("jobq.request.kind",))
        meter.create_observable_counter("jobq.storage.requests", [requests], "{request}", "Requests to the storage, by kind.")

    def _show_state(self, meter: Meter, worker: str, gauges: Gauges) -> None:
        depths = self._each(lambda: {(queue,): depth for queue, depth in dict(gauges.depths).items()}, ("jobq.queue",))
        ages = self._each(lambda: {(queue,): age for queue, age in self._ages.copy().items()}, ("jobq.queue",))
        info = {"jobq.worker": worker, "jobq.version": __version__}
        for name, unit, callback, told in (
            ("jobq.queue.depth", "{message}", depths, "Messages on the queue, those under way included; counted once a minute."),
            ("jobq.queue.oldest_age", "s", ages, "Age of the oldest message that the last receive brought; 0 if it brought none."),
            ("jobq.slots", "{slot}", self._one(lambda: gauges.slots()[0]), "Slots of this worker."),
            ("jobq.slots.busy", "{slot}", self._one(lambda: gauges.slots()[1]), "Slots that run something."),
            ("jobq.worker.cpu", "%", self._one(lambda: gauges.usage()[0]), "Percent of a core, children included."),
            ("jobq.worker.memory", "By", self._one(lambda: gauges.usage()[1]), "Resident bytes, children included."),
            ("jobq.worker.info", "", self._one(lambda: 1, info), "Always 1; which worker this is."),
        ):
            meter.create_observable_gauge(name, [callback], unit, told)

    def _one(self, read: Callable[[], float | None], more: Labels | None = None) -> Callback:
        labels = {**self._common, **(more or {})}
        return lambda options: [Observation(found, labels) for found in (read(),) if found is not None]

    def _each(self, read: Callable[[], Mapping[tuple[str, ...], float]], names: tuple[str, ...]) -> Callback:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            for values, number in read().items():
                yield Observation(number, self._common | {name: value for name, value in zip(names, values, strict=False) if value})

        return observe


def _counted(counts: Callable[[], Mapping[str, int]], key: str) -> Callable[[], int]:
    return lambda: counts().get(key, 0)


def _operation_duration(meter: Meter) -> Histogram:
    return meter.create_histogram(
        "messaging.client.operation.duration", "s", "Duration of an operation on a queue.",
        explicit_bucket_boundaries_advisory=OPERATION_BOUNDS,
    )  # fmt: skip
