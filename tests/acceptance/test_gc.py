"""gc and `result_ttl` with real workers and real results."""

from __future__ import annotations

from datetime import timedelta

import pytest
from projects import NewProject, Project, until

from ai4s.jobq import ResultGone, ResultTimeout
from ai4s.jobq.layout import container_name
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.transports.local import LocalTransport

TASKS = """
from datetime import timedelta

@app.task
def large(x):
    current().checkpoint.save(x)
    return x

@app.task
def broken():
    raise ValueError("no")
"""

LARGE = b"0123456789" * 50_000


def make_older(project: Project, days: float) -> None:
    """All blobs were written so many days earlier."""

    async def make(ledger: Ledger) -> None:
        assert isinstance(ledger.transport, LocalTransport)
        statement, values = (
            "UPDATE blobs SET modified = modified - ? WHERE container = ?",
            (days * 86_400, container_name(ledger.app)),
        )
        await ledger.transport.database.write(lambda transaction: transaction.execute(statement, values))

    project.app.client.run(make)


def test_old_results_go_and_failures_stay(new: NewProject) -> None:
    """With their arguments, values and checkpoints; the app goes on as before."""
    project = new(TASKS)
    done, kept = project.task("large").delay(LARGE), project.task("broken").delay()
    worker = project.worker("--until-empty", "--concurrency", "1", ready=False)
    assert worker.wait() == 0, worker.log
    assert done.result(timeout=1) == LARGE
    make_older(project, days=3)

    assert project.app.gc(timedelta(days=2)).calls == 1
    assert [name for name in project.names("") if done.id in name or name.startswith(("args/", "values/", "checkpoints/"))] == []
    assert kept.status() == "failed"
    assert len(project.dead_letters()) == 1
    with pytest.raises(ResultTimeout):
        project.app.handle(done.id).result(timeout=0)
    again = project.task("large").delay(b"1")
    assert project.worker("--until-empty", "--concurrency", "1", ready=False).wait() == 0
    assert again.result(timeout=1) == b"1"


@pytest.mark.parametrize("way", ["jobq-worker", "app.worker"])
def test_an_idle_worker_removes_what_is_past_its_ttl(new: NewProject, way: str) -> None:
    """By itself, step by step, while it waits for work; so it learns what the app says, however it was started."""
    project = new(TASKS, options="result_ttl=86_400")
    handle = project.task("large").delay(b"1")
    assert project.worker("--until-empty", "--concurrency", "1", ready=False).wait() == 0
    make_older(project, days=3)
    assert handle.status() == "succeeded"
    # A step a minute, over all letters in some order, would take half an hour.
    hurried = project.folder / "sitecustomize.py"
    hurried.write_text("import ai4s.jobq.worker.tidying as tidying\ntidying.PAUSE_SECONDS = 0.05\n")
    if way == "jobq-worker":
        project.worker("--concurrency", "1", PYTHONPATH=str(project.folder))
        until(lambda: project.names("results/") == [])
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(project.folder))
        with project.app.worker(concurrency=1):
            until(lambda: project.names("results/") == [])


def test_an_old_batch_goes_whole_and_a_late_pack_of_it_runs_nothing(new: NewProject) -> None:
    """A copy of its message comes to a worker that knows the batch already, and to one that does not."""
    project = new(TASKS + "\n@app.task\ndef record(x):\n    note('ran', x)\n")
    batch = project.task("record").map(range(20), pack=20)
    (delivery,) = project.take()
    project.give_back(delivery)
    worker = project.worker("--concurrency", "1")
    assert len(batch.results(timeout=60)) == 20
    until(lambda: project.depth() == 0)
    make_older(project, days=3)
    assert project.app.gc(timedelta(days=2)).batches == 1
    assert project.names("batches/") == [f"batches/{batch.id}/meta"]

    project.send_text(delivery.body)
    until(lambda: project.depth() == 0)
    worker.kill()
    project.send_text(delivery.body)
    assert project.worker("--until-empty", "--concurrency", "1", ready=False).wait() == 0
    assert project.depth() == 0
    assert sorted(map(int, project.lines("ran"))) == list(range(20))
    assert project.names("batches/") == [f"batches/{batch.id}/meta"]
    assert project.dead_letters() == []
    with pytest.raises(ResultGone):
        batch.results(timeout=60)


def test_an_idle_worker_removes_batches_that_are_past_its_ttl(new: NewProject) -> None:
    """As it does with calls."""
    project = new(TASKS, options="result_ttl=86_400")
    batch = project.task("large").map([1, 2, LARGE])
    assert project.worker("--until-empty", "--concurrency", "1", ready=False).wait() == 0
    make_older(project, days=3)
    assert batch.progress().done == 3
    hurried = project.folder / "sitecustomize.py"
    hurried.write_text("import ai4s.jobq.worker.tidying as tidying\ntidying.PAUSE_SECONDS = 0.05\n")
    project.worker("--concurrency", "1", PYTHONPATH=str(project.folder))
    until(lambda: project.names("batches/") == [f"batches/{batch.id}/meta"])
    until(lambda: not project.names("values/"))
