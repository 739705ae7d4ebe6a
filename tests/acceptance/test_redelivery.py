"""Messages that come twice: however often a call is delivered, it has one outcome, and what has one does not run again."""

from __future__ import annotations

import time

import pytest
from projects import NewProject, Project, until

from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import CallCancelled, ResultGone, WorkerDied
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Call

TASKS = """
@app.task
def count():
    note("runs", current().id)
    return len((HERE / "runs").read_text().splitlines())

@app.task
def slow_count():
    note("runs", current().id)
    time.sleep(1)
    return os.getpid()

@app.task(retries=3, backoff=0.05)
def flaky():
    note("runs", current().attempt)
    if current().attempt < 4:
        raise ConnectionError("not yet")
    return current().attempt
"""


@pytest.fixture
def project(new: NewProject, place_url: str) -> Project:
    """A project on a folder, and then on a storage account; without a worker so far."""
    return new(TASKS, url=place_url)


def copy_message(project: Project) -> str:
    """The text of the only message; it lies on the queue as before."""
    (delivery,) = project.take()
    project.give_back(delivery)
    return delivery.body


def test_two_copies_of_a_message_have_one_outcome(project: Project) -> None:
    """The same text sent three times may run more than once at a time, but ends in one value, seen by all, and an empty queue."""
    handle = project.task("slow_count").delay()
    text = copy_message(project)
    for _ in range(2):
        project.send_text(text)
    project.worker("--concurrency", "3")
    value = handle.result(timeout=30)
    until(lambda: project.depth() == 0, 30, "an empty queue")
    assert project.app.handle(handle.id).result(timeout=5) == value
    assert project.dead_letters() == []
    assert len(set(project.lines("runs"))) == 1


def test_a_message_that_comes_again_after_its_outcome_runs_nothing(project: Project) -> None:
    """A delivery with an older delivery behind it looks for the outcome first, and deletes the message."""
    handle = project.task("count").delay()
    text = copy_message(project)
    worker = project.worker("--concurrency", "1")
    assert handle.result(timeout=30) == 1
    until(lambda: project.depth() == 0, 30, "an empty queue")
    worker.kill()
    project.send_text(text)
    (delivery,) = project.take()
    project.give_back(delivery)
    project.worker("--until-empty", "--concurrency", "1", ready=False).wait()
    assert project.lines("runs") == [handle.id]
    assert project.depth() == 0


def test_a_resent_message_looks_for_its_outcome_on_its_first_delivery(project: Project) -> None:
    """A message that says that it may be there twice runs nothing once there is an outcome, at its first delivery."""
    call = Call(
        id=project.app.client.next_call_id(),
        task=f"{project.module.__name__}.count",
        queue="default",
        arguments=codec_named("cloudpickle").dumps(((), {})).data,
        sent=time.time(),
        resent=True,
    )
    project.worker("--concurrency", "1")
    for _ in range(3):
        project.send_call(call)
        assert project.app.handle(call.id).result(timeout=30) == 1
        until(lambda: project.depth() == 0, 30, "an empty queue")
    assert project.lines("runs") == [call.id]


def test_a_mark_without_a_settlement_is_a_death(project: Project) -> None:
    """A message whose mark was never settled, at the last death allowed, ends as WorkerDied and does not run again."""
    call = Call(
        id=project.app.client.next_call_id(),
        task=f"{project.module.__name__}.count",
        queue="default",
        arguments=codec_named("cloudpickle").dumps(((), {})).data,
        sent=time.time(),
        deaths=2,
        mark="0123456789abcdef",
    )
    project.send_call(call)
    (delivery,) = project.take()
    project.give_back(delivery)
    project.worker("--concurrency", "1")
    with pytest.raises(WorkerDied):
        project.app.handle(call.id).result(timeout=30)
    until(lambda: project.depth() == 0, 30, "an empty queue")
    assert project.lines("runs") == []
    assert [letter.call and letter.call.id for letter in project.dead_letters()] == [call.id]


def test_deliveries_alone_are_no_deaths(project: Project) -> None:
    """A message that was delivered ten times without ever being run is run as its first attempt."""
    handle = project.task("count").delay()
    for _ in range(10):
        (delivery,) = project.take()
        project.give_back(delivery)
    project.worker("--concurrency", "1")
    assert handle.result(timeout=30) == 1


def test_many_deliveries_do_not_make_a_call_unfit_at_once(new: NewProject) -> None:
    """A call that was delivered often to workers that know it (retries, hand-backs) is put aside by one that does not."""
    project = new(TASKS)
    arguments = codec_named("cloudpickle").dumps(((), {})).data
    call = Call(project.app.client.next_call_id(), "elsewhere.cube", "default", arguments, sent=time.time(), errors=23, retries=50)
    project.send_call(call)
    for _ in range(23):
        (delivery,) = project.take()
        project.give_back(delivery)
    worker = project.worker("--concurrency", "1")
    until(lambda: "put aside" in worker.log or project.dead_letters(), 30, "what becomes of it")
    assert project.dead_letters() == []


def test_retries_stay_in_place(project: Project) -> None:
    """An error goes back into the same message: no copy is sent, and the attempts count up."""
    project.worker("--concurrency", "1")
    assert project.task("flaky").delay().result(timeout=30) == 4
    assert project.lines("runs") == ["1", "2", "3", "4"]
    until(lambda: project.depth() == 0, 30, "an empty queue")


def test_a_cancelled_call_that_nobody_took_runs_nothing(project: Project) -> None:
    """Cancelling what lies on the queue takes the message away; a copy of it, delivered again, runs nothing."""
    handle = project.task("count").delay()
    text = copy_message(project)
    assert handle.cancel()
    project.send_text(text)
    for delivery in project.take():
        project.give_back(delivery)
    project.worker("--until-empty", "--concurrency", "1", ready=False).wait()
    with pytest.raises(CallCancelled):
        handle.result(timeout=5)
    assert project.lines("runs") == []


def test_a_forgotten_call_does_not_come_back(project: Project) -> None:
    """A late copy of a call whose outcome was forgotten runs nothing, and waiting for it says that it is gone."""
    handle = project.task("count").delay()
    text = copy_message(project)
    worker = project.worker("--concurrency", "1")
    assert handle.result(timeout=30) == 1
    until(lambda: project.depth() == 0, 30, "an empty queue")
    handle.forget()
    worker.kill()
    project.send_text(text)
    for delivery in project.take():
        project.give_back(delivery)
    project.worker("--until-empty", "--concurrency", "1", ready=False).wait()
    assert project.lines("runs") == [handle.id]
    with pytest.raises(ResultGone):
        project.app.handle(handle.id).result(timeout=5)


def test_an_outcome_that_cannot_be_read_does_not_stop_the_worker(new: NewProject) -> None:
    """A damaged outcome makes its message a dead letter, and the worker goes on."""
    project = new(TASKS)
    handle = project.task("count").delay()
    (delivery,) = project.take()
    project.give_back(delivery)

    async def damage(ledger: Ledger) -> None:
        from ai4s.jobq import layout

        await (await ledger.store()).put(layout.result(handle.id, 1), b"damaged")

    project.app.client.run(damage)
    project.worker("--concurrency", "1")
    good = project.task("count").delay()
    assert good.result(timeout=30) == 1
    until(lambda: project.depth() == 0, 30, "an empty queue")
    assert len(project.dead_letters()) == 1
