"""Checkpoints with real workers: an attempt that ends badly is followed by one that goes on where it was.

Next: `../unit/test_checkpoints.py` for the faults between any two requests; `test_preemption.py` for workers that have to go.
"""

from __future__ import annotations

import signal

import pytest
from projects import NewProject, peak_memory, until

from ai4s.jobq import CallTimedOut

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


UNRULY = """
    @app.task
    async def two_at_a_time():
        checkpoint = current().checkpoint
        return await asyncio.gather(checkpoint.asave(1), checkpoint.asave(2)), await checkpoint.aload() in (1, 2)

    @app.task(timeout=0.5, max_deaths=1)
    async def never_done():
        while True:
            await current().checkpoint.asave(b"x" * 3_000_000)

    @app.task(timeout=30)
    async def save_once():
        return await current().checkpoint.asave(1)

    @app.task
    def save_in_a_fork():
        if os.fork() == 0:
            try:
                current().checkpoint.save(1)
            except Exception as exc:
                note("fork", exc)
            os._exit(0)
        os.wait()
        return current().checkpoint.save(2)
"""


def test_what_one_call_does_with_its_checkpoints_harms_no_other(new: NewProject) -> None:
    """Two saves at a time, saves that are cut off by timeouts, more often than a process has threads, and saves in a fork."""
    project = new(UNRULY)
    project.worker("--concurrency", "1")
    assert project.task("two_at_a_time").delay().result(60) == ([True, True], True)
    cut_off = [project.task("never_done").delay() for _ in range(12)]
    for handle in cut_off:
        with pytest.raises(CallTimedOut):
            handle.result(60)
    assert project.task("save_once").delay().result(60) is True
    assert project.task("save_in_a_fork").delay().result(60) is True
    assert "not for a fork" in project.lines("fork")[0]


def test_a_task_may_save_when_it_gets_its_signal(new: NewProject) -> None:
    """A program that knows only SIGTERM saves in the moment that it is stopped, and its next attempt goes on from there."""
    project = new("""
        class Stopped(BaseException):
            pass

        def stop(number, frame):
            raise Stopped

        @app.task
        def run():
            found = current().checkpoint.load("nothing")
            if found != "nothing":
                return found
            signal.signal(signal.SIGTERM, stop)
            note("running", os.getpid())
            try:
                time.sleep(1000)
            except Stopped:
                note("saved", current().checkpoint.save("at the last moment"))
                raise
    """)
    handle = project.task("run").delay()
    worker = project.worker("--grace", "4s")
    until(lambda: project.lines("running"))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 75
    assert project.lines("saved") == ["True"]
    project.worker()
    assert handle.result(60) == "at the last moment"
