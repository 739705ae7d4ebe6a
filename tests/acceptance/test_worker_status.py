"""What workers say of themselves, and what of it a batch's progress tells."""

from __future__ import annotations

from pathlib import Path

from gate import gate_in
from projects import NewProject, Project, until

from ai4s.jobq.ledger import Ledger

TASKS = """
import pathlib
from gate import Gate

@app.task
def stop_at(folder, x):
    Gate(pathlib.Path(folder)).pass_through()
    return x

@app.task(vector=8)
def stop_all(xs, *, folder):
    Gate(pathlib.Path(folder)).pass_through()
    return xs
"""

HURRIED = "import ai4s.jobq.worker.status as status\nstatus.BUSY_SECONDS = status.IDLE_SECONDS = status.LOOK_SECONDS = 0.05\n"


def said(project: Project) -> list[str]:
    """Which batches the workers name."""

    async def look(ledger: Ledger) -> list[str]:
        store = await ledger.store()
        return [info.metadata.get("batches", "") async for info in store.list("workers/", with_metadata=True)]

    return project.app.client.run(look)


def test_a_worker_says_how_many_calls_of_each_batch_run(new: NewProject, tmp_path: Path) -> None:
    """One for each slot, of a vector's slice all; and a batch's progress adds them up."""
    project = new(TASKS)
    (project.folder / "sitecustomize.py").write_text(HURRIED)
    tests = str(Path(__file__).parents[1])
    with gate_in(tmp_path) as gate:
        plain = project.task("stop_at").map([str(tmp_path)] * 2, range(2))
        vector = project.task("stop_all").map(range(8), kwargs={"folder": str(tmp_path)})
        project.worker("--concurrency", "3", PYTHONPATH=f"{project.folder}:{tests}")
        for _ in range(3):
            gate.wait_until_reached()
        until(lambda: [set(text.split()) for text in said(project)] == [{f"{plain.id}=2", f"{vector.id}=8"}])
        assert (plain.progress().running, vector.progress().running) == (2, 8)
        for _ in range(3):
            before = plain.progress().done + vector.progress().done
            gate.open()  # one by one: whoever reads takes all that is there
            until(lambda before=before: plain.progress().done + vector.progress().done > before)
        assert plain.results(timeout=60) == [0, 1]
        assert vector.results(timeout=60) == list(range(8))
        until(lambda: said(project) == [""])
        assert plain.progress().running == 0
