"""Checkpoints with real workers: an attempt that ends badly is followed by one that goes on where it was.

Next: `../unit/test_checkpoints.py` for the faults between any two requests; `test_preemption.py` for workers that have to go.
"""

from __future__ import annotations

import pytest
from projects import NewProject, peak_memory, until

STEPS = """
    @app.task(max_deaths=2)
    def climb(top):
        checkpoint = current().checkpoint
        reached = checkpoint.load(0)
        note("attempts", reached)
        while reached < top:
            reached += 1
            assert checkpoint.save(reached)
            if reached % 2 == 0 and reached < top:
                os._exit(3)
        return reached

    @app.task(retries=9, backoff=0)
    async def climb_together(top):
        checkpoint = current().checkpoint
        reached = await checkpoint.aload(0)
        note("attempts", reached)
        if reached < top:
            await checkpoint.asave(reached + 1)
            raise ValueError("one step at a time")
        return reached

    @app.task(retries=9, backoff=0, pool="thread")
    def climb_on_a_thread(top):
        checkpoint = current().checkpoint
        reached = checkpoint.load(0)
        if reached < top:
            checkpoint.save(reached + 1)
            raise ValueError("one step at a time")
        return reached
"""

FOLDERS = """
    @app.task(max_deaths=2)
    def build(megabytes):
        here = pathlib.Path(os.environ["TMPDIR"], f"build-{os.getpid()}")
        here.mkdir()
        if current().checkpoint.restore_dir(here):
            return sum(path.stat().st_size for path in here.rglob("*.bin")), (here / "deep" / "note").read_text()
        (here / "deep").mkdir()
        (here / "deep" / "note").write_text("written by the first attempt")
        for number in range(megabytes):
            (here / f"{number}.bin").write_bytes(os.urandom(1024 * 1024))
        assert current().checkpoint.save_dir(here)
        os._exit(3)
"""


def test_a_dead_process_goes_on_from_its_checkpoint(new: NewProject, place_url: str) -> None:
    """Four deaths of a call that may die twice: each attempt got further, and begins where the last one was."""
    project = new(STEPS, url=place_url)
    worker = project.worker("--concurrency", "1")
    assert project.task("climb").delay(9).result(60) == 9
    assert project.lines("attempts") == ["0", "2", "4", "6", "8"]
    until(lambda: project.depth() == 0)
    assert project.names("checkpoints/") == []
    assert "goes back" in worker.log


def test_coroutines_and_threads_have_checkpoints(new: NewProject, place_url: str) -> None:
    """Many in one process, each with its own."""
    project = new(STEPS, url=place_url)
    project.worker("--concurrency", "2")
    together = [project.task("climb_together").delay(top) for top in (1, 2, 3)]
    threads = [project.task("climb_on_a_thread").delay(top) for top in (1, 2, 3)]
    assert [handle.result(60) for handle in together + threads] == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("megabytes", [0, 96])
def test_a_folder_comes_back_in_the_next_process(new: NewProject, place_url: str, megabytes: int) -> None:
    """Through the worker in blocks: its memory does not grow with the folder."""
    project = new(FOLDERS, url=place_url)
    worker = project.worker("--concurrency", "1", TMPDIR=str(project.folder))
    before = peak_memory(worker.pid)
    size, note = project.task("build").delay(megabytes).result(60)
    assert (size, note) == (megabytes * 1024 * 1024, "written by the first attempt")
    assert peak_memory(worker.pid) - before < 80 * 1024 * 1024


def test_a_call_finds_no_checkpoint_of_another(new: NewProject) -> None:
    """A checkpoint belongs to its call: the next call of the same task begins at the beginning."""
    project = new(STEPS)
    project.worker("--concurrency", "1")
    assert project.task("climb").delay(3).result(60) == 3
    assert project.task("climb").delay(3).result(60) == 3
    assert project.lines("attempts") == ["0", "2", "0", "2"]
