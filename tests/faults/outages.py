"""Storage that is away for a while: 503 for everything and then for a part, and black holes that swallow requests.

All go through the proxy; producers repeat what failed under the same key. After each fault the workers must be at their full
rate again within the limit, by themselves, and nothing may have been given up. Rates are executions per second over a window;
calls sleep, so that the rate is one of slots and not of this machine.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from between import Between, proxy_before
from fault_proxy import Fault, Plan, at_random, no_faults, spoil_all
from harness import Experiment, Lab, Row, Trial, trial

from ai4s.jobq.errors import TransportError

WORKERS, SLOTS = 2, 5
FULL = 0.8
"""The part of the undisturbed rate that counts as full: a window holds some 40 executions."""

STEP_SECONDS = 0.25
"""From one window to the next."""

Phase = tuple[str, float, Plan]


@dataclass(frozen=True)
class Size:
    """So many rounds of: all refused, a part refused, then holes; in seconds.

    `backlog` calls wait: more than all slots do within the limit, so that what is measured is the workers and not the producer.
    """

    rounds: int = 1
    refused_seconds: float = 30
    partly_seconds: float = 60
    hole_seconds: float = 20
    holes: tuple[str, ...] = ("queue", "blob", "both")
    call_seconds: float = 1
    limit_seconds: float = 15
    window_seconds: float = 4
    backlog: int = 250
    read_seconds: float | None = None  # how long a worker waits for an answer, if not as long as it really does
    seed: int = 1

    def phases(self) -> list[list[Phase]]:
        """Faults of one round, in groups after each of which the full rate is waited for."""
        a_fifth = at_random(0.2, seed=self.seed, faults=[Fault.BUSY])
        refused = [("503", self.refused_seconds, spoil_all("", Fault.BUSY)), ("20 % 503", self.partly_seconds, a_fifth)]
        return [refused, *([(f"hole: {service}", self.hole_seconds, hole(service))] for service in self.holes)]


def hole(service: str) -> Plan:
    """A service that answers nothing; the requests that it has swallowed stay unanswered when it is back."""
    return lambda request: Fault.BLACK_HOLE if service in (request.service, "both") else Fault.NONE


@dataclass
class Load:
    """Calls that are submitted for as long as there is room in the backlog, and how fast they are executed."""

    trial: Trial
    size: Size
    over: threading.Event = field(default_factory=threading.Event)
    failed: list[BaseException] = field(default_factory=list)

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """Submit during this block."""
        thread = threading.Thread(target=self._submit, name="load")
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()
        if self.failed:
            raise self.failed[0]

    def _submit(self) -> None:
        n = 0
        try:
            while not self.over.is_set():
                if n - len(self.trial.executions()) >= self.size.backlog:
                    self.over.wait(0.5)
                    continue
                # Refused, or its answer lost: the same key makes it the same call, however often it is asked for.
                with contextlib.suppress(TransportError):
                    self.trial.submit(n, kind="keyed", seconds=self.size.call_seconds)
                    n += 1
        except BaseException as exc:  # noqa: BLE001  # told to whoever waits for the thread
            self.failed.append(exc)

    def rate(self, since: float) -> float:
        """Executions per second in the window that begins at a time of the clock."""
        inside = sum(since <= began < since + self.size.window_seconds for _, began, _ in self.trial.executions())
        return inside / self.size.window_seconds

    def best_rate(self) -> float:
        """The undisturbed rate, once it does not grow any more."""
        rates = [0.0]
        while rates[-1] == 0 or rates[-1] > 1.1 * rates[-2]:
            began = time.time()
            time.sleep(self.size.window_seconds)
            rates.append(self.rate(began))
        return rates[-1]

    def recovery_seconds(self, rate: float) -> float:
        """How long after now the rate is full again; what was waited, twice the limit, if it is not."""
        ended, after = time.time(), 0.0
        while after < 2 * self.size.limit_seconds:
            while time.time() < ended + after + self.size.window_seconds:
                time.sleep(0.1)
            if self.rate(ended + after) >= FULL * rate:
                break
            after += STEP_SECONDS
        return after


def run(lab: Lab, place: str, size: Size) -> Row:
    with proxy_before(lab.azurite()) as between, trial(lab, "outages", place, url=between.url) as it:
        between.follow(no_faults)
        patience = {"FAULTS_READ_SECONDS": str(size.read_seconds)} if size.read_seconds else {}
        workers = [it.worker("--concurrency", str(SLOTS), ready=False, **patience) for _ in range(WORKERS)]
        for worker in workers:
            worker.until_ready()
        load, slow, recoveries = Load(it, size), [], []
        with it.watched(), load.going():
            for number in range(size.rounds):
                full = load.best_rate()
                for group in size.phases():
                    have(between, load, group)
                    seconds = load.recovery_seconds(full)
                    recoveries.append(seconds)
                    if seconds > size.limit_seconds:
                        slow.append(f"round {number + 1}, {group[-1][0]}: at {full:.1f}/s again only after {seconds:.1f} s")
        it.until_empty()
        duplicates = size.rounds * len(size.phases()) * WORKERS * SLOTS
        remark = f"{full:.1f} calls/s; full rate again after {', '.join(f'{seconds:.1f}' for seconds in recoveries)} s"
        row = it.row(faults=between.spoiled.total(), most_duplicates=duplicates, remark=remark)
        ended = [worker.process.returncode for worker in workers if worker.process.poll() is not None]
    return row.but(*slow, *[f"a worker ended with {code}" for code in ended])


def have(between: Between, load: Load, group: list[Phase]) -> None:
    """Have these faults one after the other, and then none."""
    for _, seconds, plan in group:
        between.follow(plan)
        time.sleep(seconds)
        assert not load.failed, load.failed
    between.follow(no_faults)


SHORT = Size(
    rounds=1, refused_seconds=2, partly_seconds=2, hole_seconds=1, holes=("both",), call_seconds=0.25, limit_seconds=60,
    window_seconds=1.5, backlog=30, read_seconds=3,
)  # fmt: skip
EXPERIMENTS = [Experiment("outages", run, full=[Size(seed=seed) for seed in range(1, 6)], short=SHORT, places=("azurite",))]
