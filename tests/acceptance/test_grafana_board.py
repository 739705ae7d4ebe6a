"""The Grafana board on a real Prometheus that has looked at real workers: what it asks for is there, and says what happened."""

from __future__ import annotations

import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grafana_board
import pytest
from gate import Gate, gate_in
from grafana_board import Query
from projects import NewProject, Project, WorkerProcess, until
from prometheus_server import Prometheus, running_prometheus

TASKS = """
from ai4s.jobq import Retry, preempted
from gate import Gate

@app.task
def square(x):
    time.sleep(0.01)
    return x * x

@app.task
def broken(x):
    raise ValueError("no")

@app.task(retries=1, backoff=0.05)
def flaky(x):
    if current().attempt == 1:
        raise ConnectionError("not yet")

@app.task(max_deaths=1)
def deadly():
    os._exit(9)

@app.task(queue="spot", retries=1)
def held(folder, fails=False):
    Gate(pathlib.Path(folder)).pass_through()
    if fails:
        raise TimeoutError("no")

@app.task(queue="spot")
def yields():
    note("yields", "begun")
    while not preempted():
        time.sleep(0.02)
    raise Retry()
"""

RARE = {"jobq_leases_lost_total": 1, "jobq_preemptions_total": 1, "jobq_calls_dead_lettered_total": 2}
"""What each campaign has at least; of the others there are many."""


@dataclass
class Campaign:
    """Two workers, each in an environment of its own, and a Prometheus that looks at both."""

    project: Project
    gate: Gate
    began: float = field(default_factory=time.time)
    sent: int = 0

    def worker(self, environment: str, *options: str) -> WorkerProcess:
        """Start a worker that shows its metrics."""
        tests = str(Path(__file__).parents[1])
        return self.project.worker(
            "--metrics-port", "0", "--concurrency", "2", *options, JOBQ_ENVIRONMENT_NAME=environment, PYTHONPATH=tests
        )

    def lose_a_lease(self, spot: WorkerProcess) -> None:
        """Take a message away from the worker that holds it, as another might after a stall."""
        self.project.task("held").delay(str(self.gate.folder), fails=True)
        self.gate.wait_until_reached()
        with closing(sqlite3.connect(Path(self.project.url.removeprefix("local://")) / "jobq.db")) as database, database:
            # In one step: made visible first, it could go to the worker's other slot.
            database.execute("UPDATE messages SET token = 'taken' WHERE queue LIKE '%-spot'")
        spot.until_says("A lease was lost")
        self.gate.open()  # only a success could still be written
        spot.until_says("the lease was lost before it was settled")

    def preempt(self, spot: WorkerProcess) -> None:
        """Tell a worker to go that has one call which yields at once, and another which it waits for."""
        for name, arguments in (("yields", []), ("held", [str(self.gate.folder)])):
            self.project.task(name).delay(*arguments)
        self.gate.wait_until_reached()
        until(lambda: self.project.lines("yields"))
        spot.signal(signal.SIGTERM)

    def go_on(self) -> None:
        """Send a call of each kind that ends."""
        for name in ("square", "broken", "flaky"):
            self.project.task(name).delay(self.sent)
        self.sent += 1


def metrics_address(worker: WorkerProcess) -> str:
    """The host and port at which a worker shows its metrics."""
    found = re.search(r"Metrics for Prometheus: http://([^/]+)/metrics", worker.log)
    assert found, worker.log
    return found[1]


@pytest.fixture
def campaign(new: NewProject, tmp_path: Path) -> Iterator[Campaign]:
    """A project whose calls do all that calls can do; nothing runs yet."""
    with gate_in(tmp_path) as gate:
        yield Campaign(new(TASKS), gate)


def answers(prometheus: Prometheus, query: Query, values: dict[str, str], began: float) -> list[float]:
    """The numbers that a query shows of the time since `began`."""
    now = time.time()
    text = grafana_board.put_in(query.text, {**values, **grafana_board.built_in(now - began)})
    found = prometheus.now(text) if query.instant else prometheus.over(text, began, now)
    return [number for _, numbers in found for number in numbers]


def unanswered(prometheus: Prometheus, campaign: Campaign) -> list[str]:
    """The panels, and their queries, that show nothing, whether nothing was chosen on the board, or everything one by one."""
    return [
        f"{query.panel}: {query.text}"
        for values in (grafana_board.everything(), grafana_board.chosen(prometheus))
        for query in grafana_board.queries()
        if not answers(prometheus, query, values, campaign.began)
    ]


def shown(prometheus: Prometheus, campaign: Campaign, title: str) -> list[float]:
    """The numbers that a panel shows."""
    return [
        number
        for query in grafana_board.queries()
        if query.panel == title
        for number in answers(prometheus, query, grafana_board.everything(), campaign.began)
    ]


def test_every_query_of_the_board_has_an_answer(campaign: Campaign, tmp_path: Path) -> None:
    """Whatever can happen to calls and workers happens; then each query shows numbers, and they are the right ones."""
    campaign.project.task("square").options(countdown=3600).delay(0)  # keeps the queue from being empty
    fixed = campaign.worker("fixed", "--queue", "default")
    spot = campaign.worker("spot", "--queue", "spot", "--lease", "10s", "--grace", "10m")
    with running_prometheus(tmp_path / "prometheus", [metrics_address(fixed), metrics_address(spot)]) as prometheus:
        campaign.lose_a_lease(spot)
        campaign.project.task("deadly").delay()
        campaign.project.task("square").map(range(50))
        campaign.preempt(spot)

        def all_answered() -> bool:
            campaign.go_on()
            rare = all(prometheus.number(f"sum({name})") >= count for name, count in RARE.items())
            return rare and not unanswered(prometheus, campaign)

        with suppress(AssertionError):  # which of them have none is told below
            until(all_answered, 30)
        assert unanswered(prometheus, campaign) == []
        assert shown(prometheus, campaign, "Workers") == [2]
        until(lambda: campaign.project.depth() == 1, what="only the call that is to run in an hour")
        until(lambda: prometheus.number('sum(jobq_calls_ended_total{jobq_outcome="succeeded"})') == 50 + 2 * campaign.sent)
        # Prometheus reckons what it has not seen, the time before the first look and after the last: hence so much leeway.
        dead, succeeded = len(campaign.project.names("failed/")), 50 + 2 * campaign.sent
        assert shown(prometheus, campaign, "Dead letters") == [pytest.approx(dead, rel=0.3)]
        assert shown(prometheus, campaign, "Succeeded") == [pytest.approx(succeeded, rel=0.3)]
        assert shown(prometheus, campaign, "Success rate") == [pytest.approx(succeeded / (succeeded + campaign.sent), abs=0.1)]
        assert min(shown(prometheus, campaign, "Messages waiting")) > 0
        by_class = sum(shown(prometheus, campaign, "Cost by class"))
        assert shown(prometheus, campaign, "Storage cost") == [pytest.approx(by_class, rel=0.3)] != [0]
        assert max(shown(prometheus, campaign, "Cost per hour")) > 0
        campaign.gate.open()
        spot.wait()
