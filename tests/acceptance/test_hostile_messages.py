"""A hundred hostile messages on the queue of a real worker, amid good work: each ends as it must, and nothing else happens.

Each app is fed once, and then looked at. What its worker must not do shows in the canary's file, its process id, its memory, its
log, and in how often the good calls ran.

Next: `hostile_corpus.py`, the messages.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hostile_corpus import BLOBS, FRAMES, KEY, KEYED, KEYLESS, SECRETS, SIGNATURES, TASKS, Ends, Forge, Hostile, How
from projects import Project, WorkerProcess, new_project, peak_memory, until

from ai4s.jobq import Handle, layout
from ai4s.jobq.errors import MessageError
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Cause, DeadLetter, Outcome, State

MIB = 1024 * 1024
MEMORY_BYTES = 96 * MIB
"""What the supervisor may grow by: some copies of the largest blob in the corpus (10 MiB), and not one exception of 100 MB."""

GOOD_BETWEEN = 2
RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) ")


@dataclass(frozen=True)
class Sent:
    """A hostile message on its way: its id on the queue, its text, and the call that it is, if it is one."""

    message: str
    text: str
    call: str | None


@dataclass(frozen=True)
class Fed:
    """An app whose worker was fed, and what there is to see of it."""

    project: Project
    worker: WorkerProcess
    corpus: dict[str, Hostile]
    sent: dict[str, Sent]
    good: dict[int, int]
    grown: int
    letters: dict[str, DeadLetter]
    log: str

    def letter(self, subject: str | None) -> DeadLetter | None:
        """The dead letter of a message or a call."""
        return self.letters.get(f"failed/default/{subject}.r1")

    def said_of(self, sent: Sent) -> list[str]:
        """The lines of the log about a message."""
        about = [f"Message {sent.message} ", *([f"Call {sent.call} "] if sent.call else [])]
        return [line for line in self.log.splitlines() if any(name in line for name in about)]


def app(name: str, corpus: dict[str, Hostile], place: str) -> object:
    """One app to be fed, as a parameter of the tests."""
    return pytest.param((corpus, place), id=name)


ON_AZURITE = {**FRAMES, **BLOBS, **SIGNATURES}
"""What is made of bytes that any queue carries, and what lies in the container; the rest is the same at every place."""

APPS = [app("unsigned", KEYLESS, "local"), app("signed", KEYED, "local"), app("signed-on-azurite", ON_AZURITE, "azurite")]


@pytest.fixture(scope="module", params=APPS)
def fed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    """An app whose worker was sent its corpus amid good work; the worker still runs."""
    corpus, place = request.param
    folder = tmp_path_factory.mktemp("hostile")
    url = request.getfixturevalue("azurite_url") if place == "azurite" else f"local://{folder}/place"
    keys = () if corpus is KEYLESS else (KEY,)
    with new_project(folder / "project", url, TASKS, f"signing_keys={list(keys)!r}" if keys else "") as project:
        worker = project.worker("--concurrency", "2", "--async-concurrency", "8")
        yield feed(project, worker, corpus, keys)


def feed(project: Project, worker: WorkerProcess, corpus: dict[str, Hostile], keys: tuple[str, ...]) -> Fed:
    """Send it all, wait until nothing is left but what must be, and look."""
    forge = Forge(project.app_name, project.module.__name__, keys, project.folder / "canary")
    square, asquare = project.task("square"), project.task("asquare")
    warm = [square.delay(-1), square.delay(-2), asquare.delay(-3)]
    assert [handle.result(timeout=60) for handle in warm] == [1, 4, 9]
    before = peak_memory(worker.pid)
    sent, handles = {}, dict[int, Handle[int]]()
    for name, hostile in corpus.items():
        sent[name] = send(project, forge, hostile)
        for _ in range(GOOD_BETWEEN):
            number = len(handles)
            handles[number] = (asquare if number % 3 == 0 else square).delay(number)
    good = {number: handle.result(timeout=120) for number, handle in handles.items()}
    staying = sum(hostile.ends.how in (How.ASIDE, How.WAITS) for hostile in corpus.values())
    until(lambda: project.depth() == staying, 120, f"only the {staying} messages that stay")
    grown = peak_memory(worker.pid) - before
    return Fed(project, worker, corpus, sent, good, grown, look(project), worker.log)


def send(project: Project, forge: Forge, hostile: Hostile) -> Sent:
    """Forge a message, put what belongs to it into the container, and then the message on the queue."""
    text = hostile.make(forge)

    async def put(ledger: Ledger) -> str:
        store, queue = await ledger.store(), await ledger.queue("default")
        for name in list(forge.blobs):
            await store.put(name, forge.blobs.pop(name))
        return (await queue.send(text)).message_id

    try:
        call = replace(forge.wire.unseal_call(text, "default")).id
    except MessageError:
        call = None
    return Sent(project.app.client.run(put), text, call)


def look(project: Project) -> dict[str, DeadLetter]:
    """All dead letters by their names."""

    async def read(ledger: Ledger) -> dict[str, DeadLetter]:
        store, letters = await ledger.store(), {}
        async for info in store.list(layout.letters("default")):
            blob = await store.get(info.name)
            assert blob is not None
            letters[info.name] = ledger.wire.unseal(DeadLetter, blob.data, info.name)
        return letters

    return project.app.client.run(read)


def outcome_of(fed: Fed, sent: Sent) -> Outcome | None:
    """The outcome of the call that a message is."""
    call = sent.call
    assert call is not None

    async def read(ledger: Ledger) -> Outcome | None:
        return await ledger.outcome(call, 1)

    return fed.project.app.client.run(read)


# Each ends as it must.


def test_every_hostile_message_ends_as_it_must(fed: Fed) -> None:
    """A dead letter with the reason, a failure with its name, or put aside for a worker that may know it; never a success."""
    wrong = {}
    for name, hostile in fed.corpus.items():
        try:
            CHECKS[hostile.ends.how](fed, fed.sent[name], hostile.ends)
        except AssertionError as exc:
            wrong[name] = str(exc)
    assert not wrong, "\n\n".join(f"{name}: {how}" for name, how in wrong.items())


def ends_in_a_letter(fed: Fed, sent: Sent, ends: Ends) -> None:
    """The whole text is kept with the reason, under the message's id."""
    letter = fed.letter(sent.message)
    assert letter is not None, fed.said_of(sent)
    assert letter.raw == sent.text
    assert ends.says in letter.reason
    assert letter.reason.isprintable()
    assert fed.letter(sent.call) is None
    assert any(letter.reason.partition(": ")[2] in line for line in fed.said_of(sent))


def ends_as_failed(fed: Fed, sent: Sent, ends: Ends) -> None:
    """An outcome, and a dead letter with call and outcome, both of which say why."""
    letter, outcome = fed.letter(sent.call), outcome_of(fed, sent)
    assert letter is not None, fed.said_of(sent)
    assert outcome is not None
    assert letter.outcome == outcome
    assert letter.call is not None
    assert letter.call.id == sent.call
    assert outcome.state is State.FAILED
    assert outcome.failure is not None
    assert outcome.failure.cause in (Cause.RAISED, Cause.REFUSED, Cause.DIED)
    assert ends.says in outcome.failure.message
    assert len(outcome.failure.message) + len(outcome.failure.traceback) < 40_000


def ends_as_expired(fed: Fed, sent: Sent, ends: Ends) -> None:
    """An outcome that says so, and no dead letter."""
    outcome = outcome_of(fed, sent)
    assert outcome is not None
    assert outcome.state is State.EXPIRED
    assert fed.letter(sent.call) is None


def is_put_aside(fed: Fed, sent: Sent, ends: Ends) -> None:
    """The message stays, hidden for a while, and the log says why."""
    said = [line for line in fed.said_of(sent) if "is put aside for " in line]
    assert any(ends.says in line for line in said), fed.said_of(sent)
    assert_nothing_is_left_of(fed, sent)


def waits(fed: Fed, sent: Sent, ends: Ends) -> None:
    """The message stays, hidden until its time, and there is nothing to say."""
    assert fed.said_of(sent) == []
    assert_nothing_is_left_of(fed, sent)


def assert_nothing_is_left_of(fed: Fed, sent: Sent) -> None:
    """No outcome and no dead letter."""
    assert fed.letter(sent.message) is None
    if sent.call is not None:
        assert fed.letter(sent.call) is None
        assert outcome_of(fed, sent) is None


CHECKS = {
    How.LETTER: ends_in_a_letter,
    How.FAILED: ends_as_failed,
    How.EXPIRED: ends_as_expired,
    How.ASIDE: is_put_aside,
    How.WAITS: waits,
}


# And nothing else happens.


def test_nothing_that_came_in_a_message_was_executed(fed: Fed) -> None:
    """No canary was let out: no pickle was read that should not be, and no task ran that should not."""
    path = fed.project.folder / "canary"
    assert not path.exists()
    pickle.loads(Forge("", "", (), path).canary())
    assert path.exists(), "the canary does not sing"
    path.unlink()


def test_the_neighbours_ran_once_each(fed: Fed) -> None:
    """Every good call between the hostile ones succeeded, by one execution."""
    assert fed.good == {number: number * number for number in range(GOOD_BETWEEN * len(fed.corpus))}
    runs = Counter(int(line) for line in fed.project.lines("runs"))
    assert {number: runs[number] for number in fed.good} == dict.fromkeys(fed.good, 1)


def test_the_worker_is_the_same_process_and_serves(fed: Fed) -> None:
    """The worker has neither ended nor been hurt: it takes the next call."""
    assert fed.worker.process.poll() is None
    assert fed.project.task("square").delay(-7).result(timeout=60) == 49
    assert "hit a defect of the worker" not in fed.log


def test_the_supervisor_s_memory_stays_bounded(fed: Fed) -> None:
    """Bombs and exceptions of 100 MB do not unfold in the process that holds everybody's leases."""
    assert fed.grown < MEMORY_BYTES, f"grew by {fed.grown / MIB:.0f} MiB"


def test_there_are_no_more_dead_letters_than_hostile_messages(fed: Fed) -> None:
    """Each message has one letter at most, and no good call has any."""
    due = [hostile.ends.how in (How.LETTER, How.FAILED) for hostile in fed.corpus.values()]
    assert len(fed.letters) == sum(due)


def test_the_log_is_made_of_lines_of_its_own(fed: Fed) -> None:
    """No control character is in the log, and every line is a record: none was made up by a name or an error."""
    lines = fed.log.split("\n")
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line and not RECORD.match(line)] == []
    assert not any(line[24:].startswith("INFO    forged") for line in lines)


def test_no_secret_is_in_logs_letters_or_outcomes(fed: Fed) -> None:
    """What tasks raised with keys, signatures and tokens in it is redacted wherever it is kept; sent texts are kept as they are."""
    kept = [fed.log, *(repr(replace(letter, raw="", call=None)) for letter in fed.letters.values())]
    found = [text[max(0, at - 80) : at + 80] for text in kept for secret in SECRETS if (at := text.find(secret)) >= 0]
    assert found == []
