"""Devices, cores and memory: what each child gets, and which calls run side by side. No device is needed: names of them will do.

Next: `tests/unit/test_gates.py` for the order in which calls get what they wait for.
"""

from __future__ import annotations

import pytest
from projects import NewProject, Project, until

from ai4s.jobq import WorkerDied

DEVICES = """
    def device():
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def together(how_many):
        '''Wait until so many calls run, each in a process of its own, and return this one's device.'''
        note("running", os.getpid())
        while len(set((HERE / "running").read_text().split())) < how_many:
            time.sleep(0.01)
        return device()

    @app.task
    def one_of(how_many):
        return together(how_many)

    @app.task(gpus=0)
    def without():
        return device()

    @app.task(gpus=2)
    def both(n=0):
        return device()

    @app.task
    def alone(n):
        mine = HERE / f"{device()}.lock"
        mine.touch(exist_ok=False)
        time.sleep(0.002)
        mine.unlink()
        return device()

    @app.task(max_deaths=1)
    def die():
        os._exit(3)

    @app.task
    async def on_a_loop():
        return device(), os.environ.get("OMP_NUM_THREADS")

    AT_IMPORT = os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS")

    @app.task
    def threads():
        return AT_IMPORT

    @app.task(cpus=2)
    def threads_of_two_cores():
        return AT_IMPORT
"""


def each_of_two(project: Project) -> list[str]:
    """The devices of two calls that run side by side."""
    (project.folder / "running").write_text("")
    return sorted(handle.result(60) for handle in [project.task("one_of").delay(2) for _ in range(2)])


def test_each_child_has_a_device_of_its_own(new: NewProject) -> None:
    """Never the same at a time; all of them on request or none; and a dead child's device goes to the next."""
    project = new(DEVICES)
    project.worker("--gpus", "auto", CUDA_VISIBLE_DEVICES="GPU-a,GPU-b").until_says("devices GPU-a,GPU-b")
    assert each_of_two(project) == ["GPU-a", "GPU-b"]
    batches = [project.task("alone").map(range(30)), project.task("both").map(range(3))]
    assert set(batches[0]) == {"GPU-a", "GPU-b"}
    assert set(batches[1]) == {"GPU-a,GPU-b"}
    assert project.task("both").delay().result(60) == "GPU-a,GPU-b"
    for _ in range(2):
        with pytest.raises(WorkerDied):
            project.task("die").delay().result(60)
    assert each_of_two(project) == ["GPU-a", "GPU-b"]
    assert project.task("without").delay().result(60) == ""
    assert project.task("on_a_loop").delay().result(60)[0] == "GPU-a,GPU-b"


def test_several_children_share_a_device_on_request(new: NewProject) -> None:
    """So many, and no more; and without the option nothing is said to them of devices."""
    project = new(DEVICES)
    project.worker("--gpus", "1", "--calls-per-gpu", "2", CUDA_VISIBLE_DEVICES="3,4")
    assert each_of_two(project) == ["3", "3"]
    plain = new(DEVICES)
    plain.worker("--concurrency", "1", CUDA_VISIBLE_DEVICES="3,4")
    assert plain.task("one_of").delay(1).result(60) == "3,4"


def test_children_start_as_many_threads_as_they_have_cores(new: NewProject) -> None:
    """Known before user code is imported; a variable that is set already stays, and event loops are left alone."""
    project = new(DEVICES)
    project.worker("--concurrency", "2", "--cpus", "6", MKL_NUM_THREADS="5")
    assert project.task("threads").delay().result(60) == ("3", "5")
    assert project.task("threads_of_two_cores").delay().result(60) == ("2", "5")
    assert project.task("on_a_loop").delay().result(60)[1] is None


LARGE = """
    @app.task(memory="600M")
    def large(n):
        note("notes", f"{n} begins")
        while not (HERE / f"end-{n}").exists():
            time.sleep(0.01)
        note("notes", f"{n} ends")
        return current().attempt

    @app.task
    def small(n=0):
        return "done"
"""


def end(project: Project, *numbers: int) -> None:
    """Let these large calls end."""
    for n in numbers:
        (project.folder / f"end-{n}").touch()


def test_large_calls_run_one_by_one_and_small_ones_go_on(new: NewProject) -> None:
    """What another large one holds is waited for; what needs none of it is not kept from running."""
    project = new(LARGE)
    worker = project.worker("--concurrency", "3", "--memory", "1g").until_says("1.0 GiB")
    handles = [project.task("large").delay(n) for n in range(3)]
    until(lambda: len(project.lines("notes")) == 1, what="the first large call begins")
    assert [project.task("small").delay().result(60) for _ in range(2)] == ["done"] * 2
    assert list(project.task("small").map(range(10))) == ["done"] * 10
    assert len(project.lines("notes")) == 1
    end(project, 0, 1, 2)
    assert [handle.result(60) for handle in handles] == [1, 1, 1]
    assert [line.split()[1] for line in project.lines("notes")] == ["begins", "ends"] * 3
    assert "put aside" not in worker.log


def test_large_calls_of_a_batch_run_one_by_one_and_small_ones_go_on(new: NewProject) -> None:
    """A pack of calls that cannot use all slots leaves the others to whatever else there is."""
    project = new(LARGE)
    project.worker("--concurrency", "3", "--memory", "1g")
    batch = project.task("large").map(range(6))
    until(lambda: project.lines("notes"), what="the first large call begins")
    assert [project.task("small").delay().result(60) for _ in range(5)] == ["done"] * 5
    assert list(project.task("small").map(range(10))) == ["done"] * 10
    assert len(project.lines("notes")) == 1
    end(project, *range(6))
    assert list(batch) == [1] * 6
    assert [line.split()[1] for line in project.lines("notes")] == ["begins", "ends"] * 6


def test_what_never_fits_is_left_to_a_larger_worker(new: NewProject) -> None:
    """It goes back uncharged, with a warning of what it needs; and its worker ends when nothing else is left."""
    project = new(LARGE)
    end(project, 7)
    large = project.task("large").options(gpus=1, memory="2G")
    handle, _ = large.delay(7), large.map([8])
    small = project.worker("--concurrency", "1", "--memory", "1g", "--cpus", "3", "--until-empty", ready=False)
    assert small.wait() == 0
    warning = "it needs 1 GPU, 2.0 GiB; this worker has 0 GPUs, 3 cores, 1.0 GiB; it was started without --gpus."
    assert small.log.count(warning) == 2
    assert project.depth() == 2
    project.make_visible()
    project.worker("--memory", "2g", "--gpus", "1", CUDA_VISIBLE_DEVICES="0")
    assert handle.result(60) == 1
    assert project.dead_letters() == []
