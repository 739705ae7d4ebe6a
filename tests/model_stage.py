"""Moves the processes of a history and its time, works off what it left behind, and judges what came of it.

Everything that waits at the gate goes on only through here; after each step everybody has come to where they wait again.

Next: `model_machine.py`, which says at random what happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from failure_points import QUEUE
from hypothesis.stateful import RuleBasedStateMachine
from model_processes import ModelWorker, Producer, crashed
from model_world import Fate, Gate, History, ModelWorld, Run, Turn, cause_is_real
from virtual_time import VirtualLoop

from ai4s.jobq import layout
from ai4s.jobq.message import Outcome, Spill, State

MOST_WORKERS = 3
MOST_TURNS = 2000
"""Requests in a row after which something is taken to go on for ever."""

MOST_ROUNDS = 200
"""Deliveries after which a message is taken to come again for ever."""

STEP_SECONDS = 10.0
"""How time passes for healthy workers: less than a third of the shortest lease."""


@dataclass(frozen=True)
class Budget:
    """What a call may cost, and when."""

    retries: int = 0
    max_deaths: int = 1
    delay_seconds: float = 0
    expires_seconds: float | None = None


@dataclass
class Tally:
    """What happened in all runs together."""

    runs: int = 0
    calls: int = 0
    executions: int = 0
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)


class Stage(RuleBasedStateMachine):
    """One history; subclasses say what happens, where its files lie and where it is counted."""

    folder: ClassVar[Path]
    tally: ClassVar[Tally]

    def __init__(self) -> None:
        super().__init__()
        self.loop, self.gate = VirtualLoop(), Gate()
        self.world = ModelWorld(self.loop, self.folder)
        self.workers: list[ModelWorker] = []
        self.producers: list[Producer] = []
        self.orders: list[tuple[str, Budget]] = []
        self.promised: set[Run] = set()
        self.failed = False

    # who there is

    @property
    def producer(self) -> Producer:
        """The process of those who submit; a new one where it has died."""
        if not self.producers:
            self.producers.append(Producer(self.gate, self.world))
            self._start(self.producers[0], self.producers[0].start())
        return self.producers[0]

    def _worker(self, n: int) -> ModelWorker:
        if n >= len(self.workers):
            worker = ModelWorker(self.gate, self.world)
            self.workers.append(worker)
            self._start(worker, worker.start())
            self._start(worker, worker.keeper.keep())
            return worker
        return self.workers[n]

    def _able_worker(self, n: int) -> ModelWorker | None:
        """The n-th worker, or one that comes after it and is not frozen."""
        candidates = (self._worker(min(each % MOST_WORKERS, len(self.workers))) for each in range(n, n + MOST_WORKERS))
        return next((worker for worker in candidates if not worker.frozen), None)

    def _receive(self, worker: ModelWorker) -> None:
        self._start(worker, worker.deliver(worker.ledger._queues[QUEUE]))

    def _start(self, process: ModelWorker | Producer, work: Coroutine[Any, Any, Any]) -> None:
        process.tasks.append(self.loop.create_task(work))
        self._settle()

    def _turn_of(self, process: ModelWorker | Producer, label: str | None = None) -> Turn | None:
        turns = (turn for turn in self.gate.turns if turn.process is process and label in (None, turn.label))
        return next(turns, None)

    def _go_on(self, process: Any, turns: int, fates: list[Fate] | None = None, label: str | None = None) -> None:
        """Let the first things that wait go, one after the other; without fates, executions wait on."""
        comes_to = iter(fates or ())
        for _ in range(turns):
            waiting = (turn for turn in self.gate.turns if turn.process is process and label in (None, turn.label))
            turn = next((turn for turn in waiting if turn.label != "run" or fates), None)
            if turn is None or process.frozen:
                return
            what: Any = None
            if turn.label == "run" and (what := next(comes_to, None)) is None:
                return
            self._let_go(turn, what)

    def _let_go(self, turn: Turn, what: Any) -> None:
        self.tally.requests += turn.label != "run"
        turn.to_go.set_result(what)
        self._settle()

    def _settle(self) -> None:
        """Let everybody come to where they wait, bury who died, and see whether all is well."""
        self.loop.until_still()
        processes: list[ModelWorker | Producer] = [*self.workers, *self.producers]
        for process in processes:
            if not process.alive:
                self._bury(process)
            for task in [task for task in process.tasks if task.done()]:
                process.tasks.remove(task)
                exc = None if task.cancelled() else task.exception()
                if not (crashed(exc) and (exc is None or not process.alive)):
                    self.failed = True
                    raise exc or AssertionError
        self.workers = [worker for worker in self.workers if worker.alive]
        self.producers = [producer for producer in self.producers if producer.alive]
        if self.world.violations:
            self.failed = True
            raise AssertionError("; ".join(self.world.violations))

    def _bury(self, process: ModelWorker | Producer) -> None:
        for task in process.tasks:
            task.cancel()
        self.loop.until_still()

    def _disturb(self, worker: ModelWorker, what: str) -> None:
        self.tally.faults[what] += 1
        worker.disturbances += 1
        for received in worker.at_work:
            self.world.disturb(received)

    def _advance(self, seconds: float) -> None:
        self.loop.now += seconds
        self._settle()

    def _pass_healthily(self, seconds: float) -> None:
        self._all_requests()
        for _ in range(int(seconds / STEP_SECONDS)):
            self._advance(STEP_SECONDS)
            self._all_requests()
        for worker in self.workers:
            for received in worker.at_work:
                lease = worker.lease_of(received)
                # What waits for nothing but its task, and was never disturbed, is still its worker's.
                if not (received.disturbed or worker.frozen):
                    self.world.claim(lease is not None and lease.held, "a healthy worker has lost a lease")
                    self._claim_hidden(received.message_id)
        self._settle()

    def _claim_hidden(self, message_id: str) -> None:
        message = self.world.box.messages.get(message_id)
        hidden = message is not None and message.visible_at > self.world.true_server_time
        self.world.claim(hidden, "the message of a healthy worker can be seen by others")

    def _all_requests(self, fate: Fate | None = None) -> None:
        """Let everything go that waits and is not frozen; executions only with a fate."""
        for _ in range(MOST_TURNS):
            able = (turn for turn in self.gate.turns if not turn.process.frozen)  # type: ignore[attr-defined]
            turn = next((turn for turn in able if turn.label != "run" or fate), None)
            if turn is None:
                return
            self._let_go(turn, fate if turn.label == "run" else None)
        self._fail("requests without end")

    def _fail(self, why: str) -> None:
        self.failed = True
        raise AssertionError(why)

    # the end

    def teardown(self) -> None:
        """Let what is left be worked off, and look at what came of it; unless something was found before."""
        try:
            if not self.failed:
                self._work_off()
                self._judge()
                self._count()
        finally:
            for process in (*self.workers, *self.producers):
                process.alive = False
                self._bury(process)
            self.loop.close()

    def _work_off(self) -> None:
        """Frozen workers come back only when everything has ended."""
        self._all_requests(Fate.RETURNS)
        self._advance(60)
        self._all_requests(Fate.RETURNS)
        self._drain()
        for worker in self.workers:
            worker.frozen = False
        self._all_requests(Fate.RETURNS)
        self._drain()
        self._ask_again()
        self._drain()

    def _ask_again(self) -> None:
        """Retries whose asker died on the way are there to be finished by whoever asks again."""
        spared = self.world.purged | self.world.forgotten
        for call in list(self.world.calls.values()):
            asked_for = layout.retry(call.id, call.run + 1) in self.world.blobs
            if asked_for and not self.world.sent[call.id, call.run + 1] and call.id not in spared:
                self._start(self.producer, self.producer.retry(call.id, self.promised.add))
                self._all_requests()
                self.world.claim(self.world.sent[call.id, call.run + 1], f"the retry of {call.id} cannot be finished")

    def _drain(self) -> None:
        worker = self._worker(len(self.workers))
        for _ in range(MOST_ROUNDS):
            messages = self.world.box.messages.values()
            if not messages:
                return
            due = min(message.visible_at for message in messages) - self.world.true_server_time
            self._advance(max(0.0, due) + 1)
            self._receive(worker)
            self._all_requests(Fate.RETURNS)
        self._fail("a message comes again for ever")

    def _judge(self) -> None:
        self.world.check()
        for run in self.promised:
            self.world.claim(layout.result(*run) in self.world.seen, f"{run} was promised, and has no outcome")
        for name, (_, data) in self.world.seen.items():
            call = self.world.calls[name]
            if data:
                outcome = self.world.ledger.wire.unseal_outcome(data, call.id, call.run)
                self._judge_outcome(outcome, self.world.history((call.id, call.run)))
            else:
                self.world.claim(call.id in self.world.forgotten, f"{name} has a tombstone, and nobody forgot it")
        for call_id in {call for call, _ in self.promised} - self.world.forgotten - self.world.purged:
            self._start(self.producer, self.producer.read(call_id))
            self._all_requests()
        if self.world.violations:
            self._fail("; ".join(self.world.violations))

    def _judge_outcome(self, outcome: Outcome, history: History) -> None:
        """Whether it is what happened."""
        claim, name = self.world.claim, layout.result(outcome.call, outcome.run)
        match outcome.state:
            case State.SUCCEEDED:
                number = int(self._value(outcome))
                execution = self.world.executions[number]
                claim(execution.received.run == (outcome.call, outcome.run), f"{name} has another call's value")
                claim(execution.fate is Fate.RETURNS, f"{name} has a value that was never returned")
            case State.FAILED:
                claim(cause_is_real(outcome, self.world), f"{name} failed for what did not happen: {outcome.failure}")
                claim(self.world._letter(name) in self.world.letters, f"{name} failed, and there is no dead letter")
            case State.CANCELLED:
                claim(outcome.call in self.world.cancelled, f"{name} is cancelled, and nobody asked for it")
            case State.EXPIRED:
                budget = next(budget for order, budget in self.orders if order == outcome.call)
                claim(budget.expires_seconds is not None, f"{name} expired, and never was to")
        claim(outcome.attempts <= history.executions + history.disturbed, f"{name} counts attempts that never were")

    def _value(self, outcome: Outcome) -> bytes:
        if isinstance(outcome.value, Spill):
            kept = self.world.blobs.get(layout.value(outcome.call, outcome.token))
            return kept.data if kept is not None else b"-1"
        assert isinstance(outcome.value, bytes)
        return outcome.value

    def _count(self) -> None:
        self.tally.runs += 1
        self.tally.calls += len(self.orders)
        self.tally.executions += len(self.world.executions)
        for name in self.world.seen:
            state = self.world._state(name, self.world.seen[name])
            self.tally.states[str(state) if state else "forgotten"] += 1
