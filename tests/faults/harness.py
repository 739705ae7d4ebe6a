"""What every experiment is made of: a place, a project with tasks that note each execution, real workers, and a judge at the end.

The truth is on this side: what each call must come to is known when it is submitted, and executions are lines in a file to which
tasks only append. The judge reads outcomes, dead letters and queues by a way of its own, past any proxy. An experiment is a
function of a `Lab`, a place's name and its size; it returns one `Row`.

Next: `kills.py`, the plainest experiment; `__main__.py`, which runs them all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from projects import Project, WorkerProcess, environment, new_project, until

from ai4s.jobq import App, Handle, layout
from ai4s.jobq.codec import codec_of
from ai4s.jobq.errors import JobQError, NotFound, TransportError
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Outcome, State

LAUNCHER = Path(__file__).with_name("launcher.py")
PRODUCERS = 8
"""Threads that submit calls at the same time."""

LONGEST_SECONDS = 600.0
"""After this a trial that does not end is given up; many times what any of them takes."""

TOLD = 600
"""Characters that are shown of an exception's beginning and of its end."""

TASKS = '''
LARGE = "x" * 100_000

def executed(n):
    with open(HERE / "executions", "a") as file:
        file.write(f"{n} {time.time():.3f} {os.getpid()}\\n")

@app.task(retries=3, retry_on=ConnectionError, backoff=0.05)
def work(n, kind="plain", seconds=0.0, padding=""):
    """One call of the ordinary mix."""
    executed(n)
    time.sleep(seconds)
    if kind == "failing":
        raise ValueError(f"{n} fails")
    if kind == "retried" and current().attempt == 1:
        raise ConnectionError("once more")
    return [n * n, LARGE if kind == "large" else len(padding)]
'''

MIX = {0: "failing", 1: "retried", 2: "large", 3: "keyed", 4: "padded"}
"""Of twenty calls, which are not plain: outcomes with dead letters, retries in place, spilled values, keys, spilled arguments."""


@dataclass(frozen=True)
class Expected:
    """What a call must come to. A failure has a dead letter. `value` of None is not compared."""

    state: State = State.SUCCEEDED
    value: Any = None
    executions: int = 1


@dataclass(frozen=True)
class Row:
    """What came of one experiment, in figures. It has passed if nobody complains."""

    fault: str
    place: str
    calls: int
    faults: int = 0
    lost: int = 0
    unexpected: int = 0
    duplicated: int = 0
    seconds: float = 0
    remark: str = ""
    complaints: tuple[str, ...] = ()

    @property
    def bound(self) -> float:
        """With no case in N calls, the rate is below 3/N with a confidence of 95 %."""
        return 3 / self.calls if self.calls else 1.0

    @property
    def passed(self) -> bool:
        return not self.complaints

    def but(self, *complaints: str) -> Row:
        """The row with more complaints."""
        return replace(self, complaints=(*self.complaints, *complaints))


@dataclass(frozen=True)
class Lab:
    """Where experiments are made: a folder for their files, an Azurite if they ask, and which package their workers import."""

    folder: Path
    azurite: Callable[[], str]
    package: Path | None = None
    _numbers: Iterator[int] = field(default_factory=count)

    def new_folder(self, name: str) -> Path:
        """A folder of its own for a trial."""
        folder = self.folder / f"{name.replace(' ', '-')}-{next(self._numbers)}"
        folder.mkdir(parents=True)
        return folder

    def url(self, place: str, folder: Path) -> str:
        """A place by its name: a folder of this trial's own, or the storage account that all share."""
        return self.azurite() if place == "azurite" else f"local://{folder / 'place'}"


@dataclass(frozen=True)
class Experiment:
    """An experiment as the program and the tests know it.

    Each size in `full` gives a row at each of `places`; `short` is for the ordinary tests, at `short_places` if they are fewer.
    """

    name: str
    run: Callable[[Lab, str, Any], Row]
    full: Sequence[Any]
    short: Any
    places: tuple[str, ...] = ("local", "azurite")
    short_places: tuple[str, ...] = ()


@dataclass
class Trial:
    """One experiment under way at one place. Made by `trial`."""

    fault: str
    place: str
    project: Project
    package: Path | None
    lease_seconds: float | None
    judge: App
    expected: dict[str, Expected] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    handles: list[Handle[Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    changed: list[str] = field(default_factory=list)
    _seen: dict[str, str] = field(default_factory=dict)
    _looking: threading.Lock = field(default_factory=threading.Lock)

    # what one does

    def worker(self, *options: str, ready: bool = True, **variables: str) -> WorkerProcess:
        """Start a worker, with this trial's lease and package; it is stopped at the trial's end."""
        if self.package:
            variables["PYTHONPATH"] = str(self.package)
        if self.lease_seconds:
            variables["FAULTS_LEASE_SECONDS"] = str(self.lease_seconds)
        log_path = self.project.folder / f"worker-{len(self.project.workers)}.log"
        command = [sys.executable, str(LAUNCHER), self.project.target, *options]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.project.folder, env=environment(**variables), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        worker = WorkerProcess(process, log_path)
        self.project.workers.append(worker)
        if ready:
            worker.until_ready()
            assert not self.package or f"package {self.package}" in worker.log, f"not the mutant is imported:\n{worker.log}"
        return worker

    def submit(self, n: int, *, kind: str = "plain", seconds: float = 0) -> Handle[Any]:
        """Submit one call of the project's `work`, and note what it must come to."""
        work = self.project.task("work")
        if kind == "keyed":
            work = work.options(key=str(n))
        padding = "y" * 100_000 if kind == "padded" else ""
        handle = work.delay(n, kind, seconds, padding)
        value = [n * n, "x" * 100_000 if kind == "large" else len(padding)]
        state = State.FAILED if kind == "failing" else State.SUCCEEDED
        return self.expect(handle, n, Expected(state, value if state is State.SUCCEEDED else None, 2 if kind == "retried" else 1))

    def submit_mix(self, numbers: Iterable[int], *, seconds: float = 0) -> None:
        """Submit the ordinary mix, several at a time."""
        with ThreadPoolExecutor(PRODUCERS) as producers:
            list(producers.map(lambda n: self.submit(n, kind=MIX.get(n % 20, "plain"), seconds=seconds), numbers))

    def expect(self, handle: Handle[Any], n: int, expected: Expected) -> Handle[Any]:
        """Note what a call must come to, and the number under which its task notes executions."""
        self.expected[handle.id], self.numbers[handle.id] = expected, n
        self.handles.append(handle)
        return handle

    def until_empty(self, within: float = LONGEST_SECONDS) -> None:
        """Wait until no queue holds a message, invisible ones included."""
        until(lambda: self.depth() == 0 and self.depth() == 0, within, "empty queues")

    # what one sees

    def executions(self) -> list[tuple[int, float, int]]:
        """Number, time and process of each execution so far."""
        complete = [line.split() for line in self.project.lines("executions")]
        return [(int(line[0]), float(line[1]), int(line[2])) for line in complete if len(line) == 3]

    def depth(self) -> int:
        """Messages on the queue, invisible ones included; -1 while the storage cannot say."""

        async def ask(ledger: Ledger) -> int:
            return await (await ledger.queue("default")).depth()

        try:
            return self.judge.client.run(ask)
        except TransportError:
            return -1

    def is_writable(self) -> bool:
        """Whether the place takes a write now."""

        async def write(ledger: Ledger) -> None:
            await (await ledger.store()).put("writable", b"")

        try:
            self.judge.client.run(write)
        except TransportError:
            return False
        return True

    def etags(self) -> dict[str, str]:
        """Every outcome's name and ETag."""

        async def listed(ledger: Ledger) -> dict[str, str]:
            return {info.name: info.etag async for info in (await ledger.store()).list("results/", with_metadata=True)}

        try:
            return self.judge.client.run(listed)
        except NotFound:
            return {}

    def look(self) -> dict[str, str]:
        """The outcomes now; notes those that have changed or gone since they were first seen."""
        with self._looking:
            now = self.etags()
            self.changed += [name for name, etag in self._seen.items() if now.get(name) != etag]
            self._seen = now
        return now

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the outcomes again and again, taking a tenth of the time."""
        over = threading.Event()

        def keep_looking() -> None:
            pause = 0.5
            while not over.wait(pause):
                began = time.monotonic()
                with contextlib.suppress(TransportError):
                    self.look()
                pause = max(0.5, 10 * (time.monotonic() - began))

        thread = threading.Thread(target=keep_looking, name="watch")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # what comes of it

    def outcomes(self) -> dict[str, Outcome | str]:
        """The outcome of each call that has one; what went wrong with reading it, if anything did."""

        async def read(ledger: Ledger) -> dict[str, Outcome | str]:
            found: dict[str, Outcome | str] = {}
            for call, expected in self.expected.items():
                try:
                    outcome = await ledger.outcome(call, 1)
                    if outcome is not None:
                        found[call] = await _complaint(ledger, outcome, expected) or outcome
                except JobQError as exc:
                    found[call] = f"{call}: {type(exc).__name__}: {exc}"
            return found

        return self.judge.client.run(read)

    def dead_letters(self) -> set[str]:
        """The names of all dead letters."""

        async def read(ledger: Ledger) -> set[str]:
            return {info.name async for info in (await ledger.store()).list("failed/")}

        return self.judge.client.run(read)

    def row(self, *, faults: int = 0, most_duplicates: float = 0, remark: str = "") -> Row:
        """Judge: each call has one outcome, the right one, that never changed; dead letters are exact; the queue is empty.

        `most_duplicates`: executions beyond what the calls need that the faults may have caused.
        """
        wrong = Counter[str]()
        outcomes, letters, depth = self.outcomes(), self.dead_letters(), self.depth()
        for _ in range(2):
            self.look()
        runs = Counter(n for n, _, _ in self.executions())
        lost = [call for call in self.expected if call not in outcomes]
        unexpected = [f"{name} has changed" for name in self.changed]
        unexpected += [found for found in outcomes.values() if isinstance(found, str)]
        ran = {call for call in outcomes if runs[self.numbers[call]] or not self.expected[call].executions}
        unexpected += [f"{call} has an outcome and never ran" for call in outcomes if call not in ran]
        strangers = self.etags().keys() - {layout.result(call, 1) for call in self.expected}
        unexpected += [f"{name} belongs to no call" for name in strangers]
        due = {layout.dead_letter("default", call, 1) for call, want in self.expected.items() if want.state is State.FAILED}
        unexpected += [f"{name} is missing" for name in due - letters] + [f"{name} is superfluous" for name in letters - due]
        needed = Counter({self.numbers[call]: want.executions for call, want in self.expected.items()})
        duplicated = (runs - needed).total()
        wrong.update({"lost": len(lost), "unexpected": len(unexpected), "messages left": depth})
        complaints = [f"{number} {what}" for what, number in wrong.items() if number]
        complaints += [*lost[:3], *unexpected[:3]]
        if duplicated > most_duplicates:
            complaints.append(f"{duplicated} executions too many, at most {most_duplicates:g} can be the faults'")
        return Row(
            self.fault, self.place, len(self.expected), faults, len(lost), len(unexpected), duplicated,
            round(time.monotonic() - self.began, 1), remark, tuple(complaints),
        )  # fmt: skip


async def _complaint(ledger: Ledger, outcome: Outcome, expected: Expected) -> str:
    if outcome.state is not expected.state:
        return f"{outcome.call} has {outcome.state}, not {expected.state}: {outcome.failure}"
    if expected.value is not None:
        value = codec_of(outcome.codec).loads(await ledger.value(outcome))
        if value != expected.value:
            return f"{outcome.call} has {str(value)[:60]!r}, not {str(expected.value)[:60]!r}"
    return ""


@contextlib.contextmanager
def trial(
    lab: Lab, fault: str, place: str, *, url: str = "", lease_seconds: float | None = None, source: str = TASKS, options: str = ""
) -> Iterator[Trial]:
    """A trial with a fresh app. `url` is how producers and workers reach the place, if that is not the judge's way.

    `lease_seconds`: workers' first lease, if not the real one. `source` takes the place of the ordinary tasks. All
    processes are stopped at the end, frozen ones included.
    """
    folder = lab.new_folder(fault)
    direct_url = lab.url(place, folder)
    with new_project(folder, url or direct_url, source, options) as project:
        judge = App(project.app_name, direct_url)
        try:
            yield Trial(fault, place, project, lab.package, lease_seconds, judge)
        finally:
            judge.close()
            for worker in project.workers:
                kill_machine(worker)


def machine(worker: WorkerProcess) -> list[int]:
    """The processes of a worker: its supervisor and its children."""
    return [worker.pid, *worker.children]


def kill_machine(worker: WorkerProcess) -> None:
    """End a worker and its children at the same moment, as when their machine vanishes."""
    if worker.process.poll() is None:
        for pid in machine(worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        worker.process.wait()


def run_safely(experiment: Experiment, lab: Lab, place: str, size: Any) -> Row:
    """The experiment's row; whatever it raises is a complaint."""
    began = time.monotonic()
    try:
        return experiment.run(lab, place, size)
    except (AssertionError, JobQError, OSError, RuntimeError) as exc:
        seconds = round(time.monotonic() - began, 1)
        complaint = f"{type(exc).__name__}: {exc}"
        if len(complaint) > 2 * TOLD:  # logs of workers may be in it, whose ends matter most
            complaint = f"{complaint[:TOLD]}\n…\n{complaint[-TOLD:]}"
        return Row(experiment.name, place, 0, seconds=seconds, complaints=(complaint,))
