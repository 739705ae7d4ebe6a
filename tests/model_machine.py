"""The rules by which histories are made at random: who does what next, what goes wrong, and how time passes.

Whatever a history left behind, at its end time goes on and a healthy worker comes; then every call must have ended once, rightly.

Next: `unit/test_model.py`, which runs it; `faults/model.py` for thousands of runs.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from failure_points import QUEUE, TASK, Fault
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test
from model_processes import ModelWorker
from model_stage import MOST_WORKERS, Budget, Stage, Tally
from model_world import Fate
from virtual_time import virtual_clocks

from ai4s.jobq import layout
from ai4s.jobq.message import Backoff, Call
from ai4s.jobq.options import CallOptions
from ai4s.jobq.submission import Order

CLIENT = "abcdefgh234567ab"
MOST_CALLS, MOST_DELIVERIES = 3, 2
REQUEST_FAULTS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ANSWER_LOST, Fault.NOT_DONE)
FATES = tuple(fate for fate in Fate if fate is not Fate.STOPPED)
IS_LATE, IS_KILLED, FREEZES = "its answer is late", "the process is killed", "the process is stopped"
FATE = st.sampled_from((*FATES, *[Fate.RETURNS] * 4, *[Fate.SAVES] * 2, *[Fate.RAISES] * 2, *[Fate.RAISES_FOR_GOOD] * 2))
THEN = st.sampled_from((*[None] * 3, *REQUEST_FAULTS, *REQUEST_FAULTS, IS_LATE, IS_KILLED, FREEZES))

WORKER = st.integers(0, MOST_WORKERS - 1)
CALL = st.integers(0, MOST_CALLS - 1)
TURNS = st.sampled_from((0, 1, 2, 3, 4, 5, 8, 16))


BUDGETS = (
    Budget(),
    Budget(max_deaths=3),
    Budget(retries=1, max_deaths=2),
    Budget(retries=2, max_deaths=3),
    Budget(retries=1, delay_seconds=40),
    Budget(max_deaths=2, expires_seconds=70),
)


class Model(Stage):
    """One random history."""

    # what people do

    @initialize(budget=st.sampled_from(BUDGETS), has_key=st.booleans(), lose=st.booleans())
    def begin(self, *, budget: Budget, has_key: bool, lose: bool) -> None:
        """There is a call to begin with."""
        self.submit(budget=budget, has_key=has_key, lose=lose, turns=9)

    @precondition(lambda self: len(self.orders) < MOST_CALLS)
    @rule(budget=st.sampled_from(BUDGETS), has_key=st.booleans(), lose=st.booleans(), turns=st.sampled_from((9, 9, 9, 0, 1, 2, 3)))
    def submit(self, *, budget: Budget, has_key: bool, lose: bool, turns: int) -> None:
        """Submit a call; its message may be sent twice, and the rest of the submission may take its time."""
        n = len(self.orders)
        name = layout.keyed_call_id(layout.sha256_of(b"%d" % n)) if has_key else layout.call_id(CLIENT, n)
        self.orders.append((name, budget))
        self._submit(n, lose=lose, turns=turns)

    @precondition(lambda self: self.orders)
    @rule(n=CALL, lose=st.booleans(), turns=TURNS, rerun_failed=st.booleans())
    def submit_again(self, n: int, *, lose: bool, turns: int, rerun_failed: bool) -> None:
        """Ask for the same key again."""
        n %= len(self.orders)
        if self.orders[n][0].startswith("key-"):
            self._submit(n, lose=lose, turns=turns, rerun_failed=rerun_failed)

    def _submit(self, n: int, *, lose: bool, turns: int, rerun_failed: bool = False) -> None:
        name, budget = self.orders[n]
        bounds = {"retries": budget.retries, "max_deaths": budget.max_deaths, "backoff": Backoff(first=5, factor=2, longest=60)}
        call = Call(name, TASK, QUEUE, b"", sent=0, **bounds)  # type: ignore[arg-type]  # of three kinds
        self.world.calls.setdefault(layout.result(name, 1), call)
        key = name if name.startswith("key-") else None
        options = CallOptions(countdown_seconds=budget.delay_seconds, key=key, rerun_failed=rerun_failed)
        order = Order(call, (), options, budget.expires_seconds)
        self._start(self.producer, self.producer.submit(order, self.promised.add))
        for _ in range(turns):
            turn = self._turn_of(self.producer)
            if turn is None:
                break
            lost, lose = lose and turn.label == "send", lose and turn.label != "send"
            self._let_go(turn, Fault.ANSWER_LOST if lost else None)
            if lost:
                self._advance(1)

    @precondition(lambda self: self.orders)
    @rule(n=CALL, turns=TURNS)
    def cancel(self, n: int, turns: int) -> None:
        """Cancel a call, whether it was submitted by this process or another."""
        name = self.orders[n % len(self.orders)][0]
        self.world.cancelled.add(name)
        self._start(self.producer, self.producer.cancel(name))
        self._go_on(self.producer, turns)

    @precondition(lambda self: any(layout.result(name, 1) in self.world.seen for name, _ in self.orders))
    @rule(n=CALL, turns=TURNS)
    def forget(self, n: int, turns: int) -> None:
        """Forget a call that has ended."""
        name = self.orders[n % len(self.orders)][0]
        if layout.result(name, 1) in self.world.seen:
            self.world.forgotten.add(name)
            self._start(self.producer, self.producer.forget(name))
            self._go_on(self.producer, turns)

    @precondition(lambda self: self.world.letters)
    @rule(n=CALL, turns=st.integers(4, 30))
    def retry(self, n: int, turns: int) -> None:
        """Have a call that failed run again."""
        self._start(self.producer, self.producer.retry(self._letter(n), self.promised.add))
        self._go_on(self.producer, turns)

    @precondition(lambda self: self.world.letters)
    @rule(n=CALL, turns=TURNS)
    def purge(self, n: int, turns: int) -> None:
        """Remove a dead letter."""
        self.world.purged.add(self._letter(n))
        self._start(self.producer, self.producer.purge(self._letter(n)))
        self._go_on(self.producer, turns)

    def _letter(self, n: int) -> str:
        letters = sorted(self.world.letters)
        return layout.letter_parts(letters[n % len(letters)])[1]

    @precondition(lambda self: self._turn_of(self.producer))
    @rule(fault=st.sampled_from((None, None, *REQUEST_FAULTS)), turns=TURNS)
    def producer_goes_on(self, fault: Fault | None, turns: int) -> None:
        """What was begun by people goes on, or goes wrong."""
        turn = self._turn_of(self.producer)
        assert turn is not None
        self._let_go(turn, fault)
        self._go_on(self.producer, turns)

    # what workers do

    @rule(n=WORKER, turns=TURNS, fates=st.lists(FATE, min_size=1, max_size=3), then=THEN)
    def work(self, n: int, turns: int, fates: list[Fate], then: Fault | str | None) -> None:
        """A worker takes a message if it has none, goes on for a while, and then something may go wrong with it."""
        worker = self._able_worker(n)
        if worker is None:
            return
        if not worker.at_work and not self._turn_of(worker):
            self._receive(worker)
        self._go_on(worker, turns, fates)
        if then is not None and worker.alive:
            self._suffer(worker, then, fates)

    @rule(n=WORKER, turns=TURNS, fates=st.lists(FATE, min_size=1, max_size=3), then=st.sampled_from((*REQUEST_FAULTS, IS_LATE)))
    def go_wrong(self, n: int, turns: int, fates: list[Fate], then: Fault | str) -> None:
        """A worker goes on until one of its requests goes wrong."""
        self.work(n, turns=turns, fates=fates, then=then)

    def _suffer(self, worker: ModelWorker, then: Fault | str, fates: list[Fate]) -> None:
        if turn := self._turn_of(worker, "run"):
            self._let_go(turn, fates[-1])
        waiting = [turn for turn in self.gate.turns if turn.process is worker and turn.label != "run"]
        if then == FREEZES:
            self.freeze_or_thaw(self.workers.index(worker))
        elif then == IS_KILLED:
            self.crash(self.workers.index(worker), 0)
        elif waiting:
            self._disturb(worker, str(then))
            worker.late = then == IS_LATE and waiting[-1].label != "answer"
            # The last is what came last: a renewal beside a settlement, say.
            self._let_go(waiting[-1], then if isinstance(then, Fault) else None)

    @precondition(lambda self: any(worker.at_work for worker in self.workers))
    @rule(n=WORKER, turns=TURNS)
    def receive_another(self, n: int, turns: int) -> None:
        """A worker takes a message beside those that it has; executions wait meanwhile."""
        worker = self._able_worker(n)
        if worker is not None and len(worker.at_work) < MOST_DELIVERIES:
            self._receive(worker)
            self._go_on(worker, turns)

    @precondition(lambda self: self.workers)
    @rule(n=WORKER, seconds=st.sampled_from((0, 50, 50, 200)))
    def crash(self, n: int, seconds: float) -> None:
        """A worker is killed; and perhaps nothing happens for a while."""
        worker = self.workers[n % len(self.workers)]
        self._disturb(worker, IS_KILLED)
        worker.alive = False
        if seconds:
            self._stand_still(seconds)
        self._settle()

    @precondition(lambda self: any(turn.label == "run" for turn in self.gate.turns))
    @rule(times=st.integers(1, 3))
    def kill_again(self, times: int) -> None:
        """A task kills its worker, and the next one that has it as well."""
        for _ in range(times):
            killed: Any = next((turn.process for turn in self.gate.turns if turn.label == "run"), None)
            if killed is not None:
                self._disturb(killed, IS_KILLED)
                killed.alive = False
                self._stand_still(50)
            worker = self._able_worker(0)
            if worker is not None:
                self._receive(worker)
                self._go_on(worker, 4)

    @precondition(lambda self: any(turn.label == "run" for turn in self.gate.turns))
    @rule(n=WORKER, seconds=st.sampled_from((46, 50, 700)), fate=FATE, others=TURNS, turns=TURNS)
    def come_back(self, n: int, seconds: float, *, fate: Fate, others: int, turns: int) -> None:
        """A worker stands still while its task runs; another one may come; then the task ends as if nothing had been."""
        running = [turn for turn in self.gate.turns if turn.label == "run"]
        turn = running[n % len(running)]
        zombie: Any = turn.process
        zombie.frozen = True
        self._stand_still(seconds)
        if others:
            self.work(n, turns=others, fates=[Fate.RETURNS], then=None)
        zombie.frozen = False
        if turn in self.gate.turns:
            self._let_go(turn, fate)
            self._go_on(zombie, turns, [fate])

    @precondition(lambda self: self.workers)
    @rule(n=WORKER)
    def freeze_or_thaw(self, n: int) -> None:
        """A worker stops where it is, or goes on from there."""
        worker = self.workers[n % len(self.workers)]
        self._disturb(worker, "goes on" if worker.frozen else FREEZES)
        worker.frozen = not worker.frozen

    @precondition(lambda self: self.workers)
    @rule(n=WORKER)
    def read_orders(self, n: int) -> None:
        """A worker learns what was cancelled."""
        worker = self.workers[n % len(self.workers)]
        if not worker.frozen:
            self._start(worker, worker.attempts._orders.read())
            self._go_on(worker, 1, label="get control")

    # time

    @rule(n=WORKER, seconds=st.sampled_from((10, 40, 70, 300)))
    def wait(self, n: int, seconds: float) -> None:
        """Time passes while the network is well and what runs goes on, which takes long: nobody may lose a lease by that."""
        worker = self._able_worker(n)
        if worker is not None and not worker.at_work and not self._turn_of(worker):
            self._receive(worker)
        self._pass_healthily(seconds)

    @rule(seconds=st.sampled_from((2, 20, 50, 700)))
    def jump(self, seconds: float) -> None:
        """Time passes, and nobody gets anything done."""
        self._stand_still(seconds)

    def _stand_still(self, seconds: float) -> None:
        for worker in self.workers:
            self._disturb(worker, "standstill")
        self._advance(seconds)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the workers' log, which costs more than the work."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run(max_examples: int, *, seed_number: int = 0, explain: bool = True) -> Tally:
    """So many histories; raises AssertionError with the shortest one that breaks a promise."""
    tally = Tally()
    phases = (Phase.generate, Phase.shrink) if explain else (Phase.generate,)
    chosen = settings(
        max_examples=max_examples,
        stateful_step_count=30,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    with tempfile.TemporaryDirectory(prefix="jobq-model-") as folder, quiet(), virtual_clocks("ai4s.jobq.ledger.boottime"):
        machine = type("Model", (Model,), {"folder": Path(folder), "tally": tally})
        run_state_machine_as_test(seed(seed_number)(machine), settings=chosen)
    return tally
