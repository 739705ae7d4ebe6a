"""Packs with real workers: killed while `map` calls run, frozen past their leases, and over a network that loses answers.

What was logged is never run again. So a kill may cost the executions of the time between two flushes on the worker that was
killed, and no more; they are counted, from the times that the tasks note, for each kill. The judge reads the log itself: no
entry ever changes, no index stands in two, and every outcome is what it should be.

Next: `pack_lives.py`, for a death at every request.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from between import proxy_before
from harness import TASKS, Experiment, Lab, Row, Trial, kill_machine, machine, trial
from lost_answers import losing, surely_each
from projects import WorkerProcess, until

from ai4s.jobq import layout
from ai4s.jobq.batches import BatchLedger
from ai4s.jobq.errors import NotFound, TransportError
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import State
from ai4s.jobq.packing import Code

SLOTS = 2
FLUSH_SECONDS = 5 + 2
"""Between two flushes, and what one takes on a busy machine."""

PACKED = """
@app.task(retries=3, retry_on=ConnectionError, backoff=0.05)
def packed(n, seconds):
    executed(n)
    time.sleep(seconds)
    if n % 20 == 7:
        raise ValueError(f"{n} fails")
    if n % 20 == 11 and current().attempt == 1:
        raise ConnectionError("once more")
    return [n, "x" * 100_000 if n % 20 == 13 else ""]

@app.task
def fatal(n, culprit):
    executed(n)
    if n == culprit:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return n

@app.task
def meet(n):
    executed(n)
    role = os.environ["ROLE"]
    while n >= 2 and not (HERE / f"go-{role}").exists():
        time.sleep(0.05)
    if role == "zombie" and n % 4 == 3:
        raise ValueError("the zombie fails")
    return role
"""


@dataclass
class Batches:
    """The batches of a trial, and what was seen of their logs."""

    trial: Trial
    sizes: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    _seen: dict[str, str] = field(default_factory=dict)

    def map(self, task: str, *iterables: Any, **options: Any) -> str:
        """Submit a batch; returns its id."""
        batch = self.trial.project.task(task).map(*iterables, **options)
        self.sizes[batch.id] = batch.progress().total
        return str(batch.id)

    def look(self) -> int:
        """Note entries that have changed or gone since they were first seen; returns how many there are."""

        async def listed(ledger: Ledger) -> dict[str, str]:
            store, found = await ledger.store(), {}
            for batch in self.sizes:
                async for info in store.list(layout.log_entries(batch), with_metadata=True):
                    found[info.name] = info.etag
            return found

        now = self.trial.judge.client.run(listed)
        self.changed += [name for name, etag in self._seen.items() if now.get(name) != etag]
        self._seen = now
        return len(now)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look again and again."""
        over = threading.Event()

        def keep_looking() -> None:
            while not over.wait(0.5):
                try:
                    self.look()
                except (TransportError, NotFound):
                    continue

        thread = threading.Thread(target=keep_looking, name="watch")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def outcomes(self, batch: str) -> dict[int, list[tuple[State, int]]]:
        """State and attempts of each index, as often as it stands in the log."""

        async def read(ledger: Ledger) -> dict[int, list[tuple[State, int]]]:
            found: dict[int, list[tuple[State, int]]] = {}
            records, store = BatchLedger(ledger, batch), await ledger.store()
            async for info in store.list(layout.log_entries(batch)):
                parts = layout.entry_parts(info.name)
                assert parts is not None
                entry = await records.entry(*parts, range(self.sizes[batch]))
                assert entry is not None
                for outcome in entry.outcomes:
                    found.setdefault(outcome.at, []).append((Code(outcome.code).state, outcome.attempts))
            return found

        return self.trial.judge.client.run(read)

    def row(self, *, faults: int, most_duplicates: float, needed: dict[int, int], remark: str = "") -> Row:
        """Judge: every index has one outcome, no entry has changed, values are right, no message is left."""
        for _ in range(2):
            self.look()
        it, wrong, lost = self.trial, list(self.changed), 0
        for batch, size in self.sizes.items():
            found = self.outcomes(batch)
            lost += size - len(found)
            wrong += [f"{batch}.{index} stands in {len(ends)} entries" for index, ends in found.items() if len(ends) > 1]
            wrong += [f"{batch}.{index} is no call" for index in found if not 0 <= index < size]
        runs = Counter(n for n, _, _ in it.executions())
        duplicated = (runs - Counter(needed)).total()
        complaints = [f"{lost} lost"] if lost else []
        complaints += [f"{it.depth()} messages left"] if it.depth() else []
        complaints += [f"{len(wrong)} unexpected", *wrong[:3]] if wrong else []
        if duplicated > most_duplicates:
            complaints.append(f"{duplicated} executions too many, at most {most_duplicates:g} can be the faults'")
        seconds = round(time.monotonic() - it.began, 1)
        calls = sum(self.sizes.values())
        return Row(it.fault, it.place, calls, faults, lost, len(wrong), duplicated, seconds, remark, tuple(complaints))


def needed_by(numbers: range) -> dict[int, int]:
    """How often each call of `packed` runs undisturbed."""
    return {n: 2 if n % 20 == 11 else 1 for n in numbers}


def check_values(batches: Batches, batch: str) -> list[str]:
    """What is wrong with the outcomes of `packed` as its caller reads them."""
    wrong = []
    for outcome in batches.trial.judge.batch(batch).as_completed(timeout=120):
        n = outcome.index
        if outcome.state is not (State.FAILED if n % 20 == 7 else State.SUCCEEDED):
            wrong.append(f"{n} has {outcome.state}")
        elif outcome.ok and outcome.value != [n, "x" * 100_000 if n % 20 == 13 else ""]:
            wrong.append(f"{n} has a wrong value")
    return wrong


# Kills.


@dataclass(frozen=True)
class Size:
    """How many calls, of how many seconds, on how many workers, of which so many are killed."""

    calls: int = 2000
    seconds: float = 0.05
    workers: int = 4
    faults: int = 40
    seed: int = 1
    lease_seconds: float | None = None  # the real one


def run(lab: Lab, place: str, size: Size) -> Row:
    dice = random.Random(size.seed)
    with trial(lab, "SIGKILL with map", place, lease_seconds=size.lease_seconds, source=TASKS + PACKED) as it:
        batches, most = Batches(it), 0
        batch = batches.map("packed", range(size.calls), [size.seconds] * size.calls)
        workers = [it.worker("--concurrency", str(SLOTS), ready=False) for _ in range(size.workers)]
        with batches.watched():
            for number in range(1, size.faults + 1):
                due = 0.9 * size.calls * number / size.faults
                until(lambda due=due: len({n for n, _, _ in it.executions()}) >= due, 300, f"{due:.0f} calls begun")
                victim = dice.choice([worker for worker in workers if worker.until_ready()])
                pids, now = set(machine(victim)), time.time()
                victim.kill() if dice.random() < 0.5 else kill_machine(victim)
                most += sum(pid in pids and at > now - FLUSH_SECONDS for _, at, pid in it.executions())
                workers[workers.index(victim)] = it.worker("--concurrency", str(SLOTS), ready=False)
            it.until_empty()
        remark = f"seed {size.seed}; between flushes and kills: {most} executions"
        row = batches.row(faults=size.faults, most_duplicates=most, needed=needed_by(range(size.calls)), remark=remark)
        return row.but(*check_values(batches, batch)[:3])


# A call that kills its worker.


@dataclass(frozen=True)
class Culprit:
    """A pack of so many calls, one of which kills its whole worker, whenever it runs; two workers at a time."""

    calls: int = 200
    lease_seconds: float = 5


MOST_DEATHS = 6
"""The first delivery is unmarked, the second divides the pack, the third its part; then the culprit is alone for three deaths."""


def run_culprit(lab: Lab, place: str, size: Culprit) -> Row:
    with trial(lab, "a call that kills its worker", place, lease_seconds=size.lease_seconds, source=TASKS + PACKED) as it:
        batches, culprit = Batches(it), size.calls * 2 // 3
        batch = batches.map("fatal", range(size.calls), [culprit] * size.calls, pack=size.calls)
        workers, deaths = [it.worker("--concurrency", "2") for _ in range(2)], 0
        while it.depth():
            for worker in [worker for worker in workers if worker.process.poll() is not None]:
                deaths += 1
                workers[workers.index(worker)] = it.worker("--concurrency", "2")
            time.sleep(0.1)
        outcomes = {outcome.index: outcome for outcome in it.judge.batch(batch).as_completed(timeout=60)}
        row = batches.row(faults=deaths, most_duplicates=deaths * size.calls, needed=dict.fromkeys(range(size.calls), 1))
        failed = {n: str(outcome.error) for n, outcome in outcomes.items() if not outcome.ok}
    row = row if failed.keys() == {culprit} else row.but(f"failed are {failed}, not {culprit}")
    return row if deaths <= MOST_DEATHS else row.but(f"{deaths} workers died")


# Zombies.


@dataclass(frozen=True)
class Meetings:
    """So many packs of eight calls, one after the other, each on a zombie and then on its successor."""

    packs: int = 12
    lease_seconds: float = 5


def run_successor_first(lab: Lab, place: str, size: Meetings) -> Row:
    return _meet(lab, place, size, zombie_first=False)


def run_zombie_first(lab: Lab, place: str, size: Meetings) -> Row:
    return _meet(lab, place, size, zombie_first=True)


CALLS, LOGGED = 8, 2
"""Of the calls of a pack so many are logged before the zombie freezes, and run nowhere else."""


def _meet(lab: Lab, place: str, size: Meetings, *, zombie_first: bool) -> Row:
    fault = f"zombies with packs: {'zombie' if zombie_first else 'successor'} first"
    wrong: list[str] = []
    with trial(lab, fault, place, lease_seconds=size.lease_seconds, source=TASKS + PACKED) as it:
        batches = Batches(it)
        for _ in range(size.packs):
            for role in ("zombie", "successor"):
                (it.project.folder / f"go-{role}").unlink(missing_ok=True)
            wrong += _one_meeting(it, batches, zombie_first=zombie_first)
        needed = {n: size.packs * (1 if n < LOGGED else 2) for n in range(CALLS)}
        row = batches.row(faults=size.packs, most_duplicates=0, needed=needed)
    return row.but(*wrong[:3])


def _one_meeting(it: Trial, batches: Batches, *, zombie_first: bool) -> list[str]:
    """Two calls end on the zombie and are logged; the others wait there while it freezes, and run again on its successor."""
    before = len(it.executions())
    batch = batches.map("meet", range(CALLS), pack=CALLS)
    zombie = it.worker("--concurrency", str(CALLS), ROLE="zombie")
    until(lambda: len(it.executions()) >= before + CALLS, 120, "all begun by the zombie")
    until(lambda: batches.outcomes(batch).keys() >= set(range(LOGGED)), 60, "two logged")
    frozen = _freeze(it, zombie)
    successor = it.worker("--concurrency", str(CALLS), ROLE="successor")
    until(lambda: len(it.executions()) >= before + 2 * CALLS - LOGGED, 120, "all others begun by the successor")
    first, second = ("zombie", "successor") if zombie_first else ("successor", "zombie")
    for role in (first, second):
        (it.project.folder / f"go-{role}").touch()
        if role == "zombie":
            _end(zombie, frozen)
        else:
            it.until_empty(120)
        batches.look()
    _end(successor, [])
    ends = {outcome.index: outcome.value if outcome.ok else "failed" for outcome in it.judge.batch(batch).as_completed(timeout=60)}
    successes = "zombie" if zombie_first else "successor"
    due = {n: "zombie" if n < LOGGED else "successor" if n % 4 == 3 else successes for n in range(CALLS)}
    return [f"{batch}: {ends}, not {due}"] if ends != due else []


def _freeze(it: Trial, zombie: WorkerProcess) -> list[int]:
    """Stop its processes as they are; again if it stops amid a transaction of a local store."""
    frozen = machine(zombie)
    while True:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        if it.is_writable():
            return frozen
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)


def _end(worker: WorkerProcess, frozen: list[int]) -> None:
    """Have a worker go on, and end in good order."""
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    if frozen:
        until(lambda: re.search("lease was lost", worker.log), 60, "the zombie's notice of its lost lease")
    worker.signal(signal.SIGTERM)
    worker.wait()


# Lost answers.


@dataclass(frozen=True)
class Answers:
    """How many calls, on how many workers; this share of all answers is lost."""

    calls: int = 2000
    seconds: float = 0.02
    workers: int = 4
    share: float = 0.1
    seed: int = 1
    lease_seconds: float | None = None


def run_lost_answers(lab: Lab, place: str, size: Answers) -> Row:
    with (
        proxy_before(lab.azurite()) as between,
        trial(lab, "lost answers with map", place, url=between.url, lease_seconds=size.lease_seconds, source=TASKS + PACKED) as it,
    ):
        between.follow(surely_each(losing(size.share, size.seed)))
        batches = Batches(it)
        batch = batches.map("packed", range(size.calls), [size.seconds] * size.calls, batch="lossy", key=lambda n, _: str(n))
        workers = [it.worker("--concurrency", str(SLOTS), ready=False) for _ in range(size.workers)]
        with batches.watched():
            it.until_empty()
        spoiled = between.spoiled
        remark = ", ".join(f"{kind} {number}" for kind, number in spoiled.most_common() if number)
        # A lost answer to an update costs a lease, and so at most what ran since the last flush; to a send, a pack twice.
        most = (spoiled["send"] + spoiled["update"]) * SLOTS * FLUSH_SECONDS / max(size.seconds, 0.001)
        row = batches.row(faults=spoiled.total(), most_duplicates=most, needed=needed_by(range(size.calls)), remark=remark)
        ended = [worker.process.returncode for worker in workers if worker.process.poll() is not None]
        return row.but(*check_values(batches, batch)[:3], *[f"a worker ended with {code}" for code in ended])


EXPERIMENTS = [
    Experiment(
        "pack-kills",
        run,
        full=[Size(seed=seed) for seed in (1, 2, 3)],
        short=Size(calls=200, seconds=0.02, workers=2, faults=2, lease_seconds=4),
        short_places=("azurite",),
    ),
    Experiment("pack-culprit", run_culprit, full=[Culprit()], short=Culprit(lease_seconds=4), short_places=("local",)),
    Experiment("pack-zombies-late", run_successor_first, full=[Meetings()], short=Meetings(1, 4), short_places=("local",)),
    Experiment("pack-zombies-early", run_zombie_first, full=[Meetings()], short=Meetings(1, 4), short_places=("local",)),
    Experiment(
        "pack-lost-answers",
        run_lost_answers,
        full=[Answers()],
        short=Answers(calls=60, seconds=0, workers=2, lease_seconds=4),
        places=("azurite",),
    ),
]
