"""Workers whose clocks are an hour or a day off, both ways: nothing is redelivered, expires or begins earlier or later for that.

Only the server's clock counts, and the worker's for lengths of time. What is shifted is what Python programs read as the time of
day. On the local place there is nothing to see: the machine's clock is the server's there, and all workers have the same one.
A storage account itself refuses requests signed with a key if their date is more than 15 minutes off; Azurite does not.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from harness import TASKS, Expected, Experiment, Lab, Row, Trial, kill_machine, trial
from projects import WorkerProcess, until

from ai4s.jobq import Handle
from ai4s.jobq.message import State

HOUR, DAY = 3600, 86_400
OFFSETS = (HOUR, -HOUR, DAY, -DAY)

SHIFTED = """
import datetime, os, time

OFFSET = float(os.environ["CLOCK_OFFSET"])
real_time, real_time_ns, Real = time.time, time.time_ns, datetime.datetime
time.time = lambda: real_time() + OFFSET
time.time_ns = lambda: real_time_ns() + int(OFFSET * 1e9)

class Meta(type(Real)):
    def __instancecheck__(cls, made):
        return isinstance(made, Real)

class Shifted(Real, metaclass=Meta):
    __slots__ = ()

    @classmethod
    def now(cls, tz=None):
        return Real.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return Real.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)

datetime.datetime = Shifted
"""
"""A `sitecustomize.py`: every Python process that has it on its path reads another time of day."""

TASKS_IN_TIME = (
    TASKS
    + """
@app.task(retries=1, retry_on=ConnectionError, backoff=0.1)
def at(n, seconds=0.0, again=False):
    import datetime
    executed(n)
    now = time.clock_gettime(time.CLOCK_REALTIME)
    shifts = [time.time() - now, datetime.datetime.now(datetime.timezone.utc).timestamp() - now]
    note("ran", f"{n} {now} {round(shifts[0])} {round(shifts[1])} {os.getppid()}")
    time.sleep(seconds)
    if again and current().attempt == 1:
        from ai4s.jobq import Retry
        raise Retry(delay=2)
    return n
"""
)

SLACK_SECONDS = 1.1
"""How much too early a call may begin: a server's Date has whole seconds."""


@dataclass(frozen=True)
class Size:
    """So many calls in time, of some seconds, and workers that are killed; `late_seconds` is what a busy machine may take."""

    calls: int = 200
    faults: int = 3
    seconds: float = 0.1
    lease_seconds: float = 4
    delay_seconds: float = 5
    late_seconds: float = 10


@dataclass(frozen=True)
class Ran:
    """One execution, in true time."""

    n: int
    moment: float
    offset: int
    worker: int


Submit = Callable[[Trial, Size, int], tuple[Handle[Any], float, float]]
"""Submits a call; returns it with the earliest moment of its first execution, and the seconds it needs after that."""


def plain(it: Trial, size: Size, n: int) -> tuple[Handle[Any], float, float]:
    """A call without options."""
    return expected(it, it.project.task("at").delay(n, size.seconds), n), 0, size.late_seconds


def counted_down(it: Trial, size: Size, n: int) -> tuple[Handle[Any], float, float]:
    """A call that is to begin so many seconds later."""
    handle = it.project.task("at").options(countdown=size.delay_seconds).delay(n)
    return expected(it, handle, n), time.time() + size.delay_seconds, size.late_seconds


def dated(it: Trial, size: Size, n: int) -> tuple[Handle[Any], float, float]:
    """A call that is to begin at a moment."""
    moment = datetime.now(UTC) + timedelta(seconds=size.delay_seconds)
    return expected(it, it.project.task("at").options(eta=moment).delay(n), n), moment.timestamp(), size.late_seconds


def valid(it: Trial, size: Size, n: int) -> tuple[Handle[Any], float, float]:
    """A call that expires in a quarter of an hour: a clock that is ahead must not end it."""
    return expected(it, it.project.task("at").options(expires=900).delay(n), n), 0, size.late_seconds


def renewed(it: Trial, size: Size, n: int) -> tuple[Handle[Any], float, float]:
    """A call that runs for longer than its first lease."""
    return expected(it, it.project.task("at").delay(n, 1.5 * size.lease_seconds), n), 0, 5 * size.late_seconds


def retried(it: Trial, size: Size, n: int) -> tuple[Handle[Any], float, float]:
    """A call that asks to be run again two seconds later."""
    return expected(it, it.project.task("at").delay(n, again=True), n, executions=2), 0, size.late_seconds


KINDS: tuple[Submit, ...] = (plain, counted_down, dated, valid, retried)
LONG_ONE_OF = 20
SLOTS = 4
"""Few long calls and slots enough, so that no call begins late for want of one."""


def expected(it: Trial, handle: Handle[Any], n: int, *, executions: int = 1) -> Handle[Any]:
    """Note that a call must succeed."""
    return it.expect(handle, n, Expected(value=n, executions=executions))


def run(lab: Lab, place: str, size: Size) -> Row:
    with trial(lab, "clocks off", place, lease_seconds=size.lease_seconds, source=TASKS_IN_TIME) as it, it.watched():
        (it.project.folder / "shifted").mkdir()
        (it.project.folder / "shifted" / "sitecustomize.py").write_text(SHIFTED)
        late = size.calls // 10
        for n in range(late):  # over before any worker is there: a clock that is behind must not run them
            it.expect(it.project.task("at").options(expires=0.5).delay(n), n, Expected(State.EXPIRED, executions=0))
        over = time.time() + 0.5 + 2 * SLACK_SECONDS
        until(lambda: time.time() > over, 30, "the end of what expires")
        workers = {offset: start(it, offset) for offset in OFFSETS}
        for worker in workers.values():
            worker.until_ready()
        due = {n: (KINDS[n % len(KINDS)] if n % LONG_ONE_OF else renewed)(it, size, n) for n in range(late, size.calls)}
        it.until_empty()
        said = [*in_time(it, due), *shifts(it, workers), *redelivered(it, size, workers)]
        alive = [worker for worker in workers.values() if worker.process.poll() is None]
        said += [] if len(alive) == len(OFFSETS) - size.faults else ["workers are gone that nobody has killed"]
        remark = f"off by {', '.join(f'{offset:+d}' for offset in OFFSETS)} s"
        return it.row(faults=len(OFFSETS) + size.faults, remark=remark).but(*said[:5])


def start(it: Trial, offset: int) -> WorkerProcess:
    """A worker whose clock is so far off."""
    shifted = {"PYTHONPATH": str(it.project.folder / "shifted"), "CLOCK_OFFSET": str(offset)}
    return it.worker("--concurrency", str(SLOTS), ready=False, **shifted)


def ran(it: Trial) -> dict[int, list[Ran]]:
    """The executions of each call."""
    found = defaultdict(list)
    for line in it.project.lines("ran"):
        n, moment, *offsets, worker = line.split()
        assert len(set(offsets)) == 1, "the clocks of one process differ"
        found[int(n)].append(Ran(int(n), float(moment), int(offsets[0]), int(worker)))
    return found


def in_time(it: Trial, due: dict[int, tuple[Handle[Any], float, float]]) -> list[str]:
    """Calls that began too early or too late, or ran again too early."""
    said, runs, began = [], ran(it), {}
    for n, (_, earliest, _) in due.items():
        began[n] = runs[n][0].moment
        if began[n] < earliest - SLACK_SECONDS:
            said.append(f"call {n} began {earliest - began[n]:.1f} s too early, at {runs[n][0].offset:+d} s")
        if earliest and began[n] > earliest + due[n][2]:
            said.append(f"call {n} began {began[n] - earliest:.1f} s too late, at {runs[n][0].offset:+d} s")
        said += [f"call {n} ran again too early" for again in runs[n][1:] if again.moment < began[n] + 2 - SLACK_SECONDS]
        said += [f"call {n} ran again too late" for again in runs[n][1:] if again.moment > began[n] + 2 + due[n][2]]
    return said


def shifts(it: Trial, workers: dict[int, WorkerProcess]) -> list[str]:
    """Whether each worker had the clock that it should have had, and, of many calls, any at all."""
    pids = Counter((run.offset, run.worker) for runs in ran(it).values() for run in runs)
    wanted = {(offset, worker.pid) for offset, worker in workers.items()}
    sound = set(pids) == wanted if len(it.expected) >= 10 * len(wanted) else set(pids) <= wanted
    return [] if sound else [f"clocks and workers were {dict(pids)}, not {wanted}"]


def redelivered(it: Trial, size: Size, workers: dict[int, WorkerProcess]) -> list[str]:
    """Kill workers, each while it runs a call: what its lease's end brings comes neither early nor late."""
    said = []
    for n in range(size.calls, size.calls + size.faults):
        handle = expected(it, it.project.task("at").delay(n, 0.5 * size.lease_seconds), n, executions=2)
        first = until(lambda n=n: ran(it)[n], 60, "its first execution")[0]  # type: ignore[misc]
        victim = next(worker for worker in workers.values() if worker.pid == first.worker)
        killed = time.time()
        kill_machine(victim)
        again = until(lambda n=n: ran(it)[n][1:], 120, "its second execution")[0].moment  # type: ignore[misc]
        if not first.moment + size.lease_seconds - SLACK_SECONDS < again < killed + size.lease_seconds + size.late_seconds:
            said.append(f"a call of a worker at {first.offset:+d} s ran again {again - killed:.1f} s after it was killed")
        assert handle.result(timeout=60) == n
    return said


EXPERIMENTS = [
    Experiment(
        "clocks",
        run,
        full=[Size()],
        short=Size(calls=22, faults=1, lease_seconds=3, delay_seconds=2, late_seconds=60),
        places=("azurite",),
    )
]
