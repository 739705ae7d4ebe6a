"""`app.worker()`: a worker for the length of a block, in scripts, notebooks and programs that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from projects import NewProject, alive, children_of, environment, new_project, until

from ai4s.jobq.errors import ConfigurationError

TASKS = """
@app.task
def square(x):
    return x * x

@app.task
async def where():
    return os.getpid()

@app.task
def read_standard_input():
    return sys.stdin.read()

@app.task
def say(text):
    print(text, flush=True)

@app.task
def run_for(seconds):
    note("begun", os.getpid())
    time.sleep(seconds)
    return seconds
"""

SCRIPT = """
from ai4s.jobq import App

app = App("script", {url!r})
factor = 3

@app.task
def triple(x):
    return factor * x

class Point:
    def __init__(self, x):
        self.x = x

@app.task
async def mirrored(point):
    return Point(-point.x)
"""


def test_a_worker_lives_as_long_as_its_block(new: NewProject, place_url: str) -> None:
    """Within the block calls are run, in other processes; after it, none of these is left."""
    project = new(TASKS, url=place_url)
    with project.app.worker(concurrency=1) as worker:
        assert project.task("square").delay(7).result(timeout=30) == 49
        assert project.task("where").delay().result(timeout=30) != os.getpid()
        pids = [worker.pid, *children_of(worker.pid)]
        assert len(pids) >= 3
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(ConfigurationError):
        _ = worker.pid


def test_a_block_that_is_entered_again_works_again(new: NewProject) -> None:
    """Three blocks after each other, and two at a time, all run calls."""
    project = new(TASKS)
    for n in range(3):
        with project.app.worker(concurrency=1):
            assert project.task("square").delay(n).result(timeout=30) == n * n
    with project.app.worker(concurrency=1), project.app.worker(concurrency=1):
        assert project.task("square").delay(5).result(timeout=30) == 25


def test_an_error_in_the_block_ends_the_worker(new: NewProject) -> None:
    """An exception leaves the block as itself, and the worker is gone; what it had not begun is still there."""
    project = new(TASKS)

    def fail() -> None:
        with project.app.worker(concurrency=1) as worker:
            pids.append(worker.pid)
            raise RuntimeError("of the user")

    pids: list[int] = []
    with pytest.raises(RuntimeError, match="of the user"):
        fail()
    assert not alive(pids[0])


def test_what_has_not_begun_stays_for_the_next_worker(new: NewProject) -> None:
    """The end of the block finishes what runs, and leaves the rest on the queue, visible."""
    project = new(TASKS)
    with project.app.worker(concurrency=1):
        handles = [project.task("run_for").delay(0.8) for _ in range(4)]
        until(lambda: project.lines("begun"), what="a running call")
    left = [handle for handle in handles if not handle.done()]
    assert len(left) >= 2
    assert project.depth() == len(left)
    with project.app.worker(concurrency=2):
        assert [handle.result(timeout=30) for handle in handles] == [0.8] * 4


def test_a_start_that_fails_says_why(new: NewProject, tmp_path: Path) -> None:
    """A place that cannot be used, and a module that another process cannot import, raise ConfigurationError with the reason."""
    (tmp_path / "file").write_text("")
    broken = new(TASKS, url=f"local://{tmp_path}/file/place")
    with pytest.raises(ConfigurationError, match="file/place"), broken.app.worker():
        pass
    source = TASKS + f"\nif os.getpid() != {os.getpid()}:\n    raise OSError('no GPU')\n"
    with (
        new_project(tmp_path / "here-only", f"local://{tmp_path}/place", source) as project,
        pytest.raises(ConfigurationError, match="no GPU"),
        project.app.worker(),
    ):
        pass


def test_standard_input_is_not_the_tasks(new: NewProject) -> None:
    """A task that reads its standard input finds it empty; it neither waits nor takes what is meant for the worker."""
    project = new(TASKS)
    with project.app.worker(concurrency=1):
        assert project.task("read_standard_input").delay().result(timeout=20) == ""
        assert project.task("square").delay(2).result(timeout=20) == 4


def test_what_tasks_print_does_not_disturb_the_worker(new: NewProject, capfd: pytest.CaptureFixture[str]) -> None:
    """Lines on standard output, also ones that look like the worker's own, and megabytes of them, go where messages go."""
    project = new(TASKS)
    with project.app.worker(concurrency=1):
        for text in ("ready", "x" * 2_000_000):
            assert project.task("say").delay(text).result(timeout=30) is None
        assert project.task("square").delay(2).result(timeout=30) == 4
    assert "ready" in capfd.readouterr().err


def test_functions_of_a_script_travel_by_value(new: NewProject) -> None:
    """A program of one file runs its functions, with the globals and classes that they use, on its own worker."""
    project = new()
    script = SCRIPT.format(url=project.url) + textwrap.dedent("""
        if __name__ == "__main__":
            with app.worker(concurrency=1):
                print(triple.delay(4).result(timeout=30))
                print(mirrored.delay(Point(4)).result(timeout=30).x)
                print(app.submit(lambda x: x + factor, 1).result(timeout=30))
        """)
    done = project.run("script.py", script)
    assert (done.returncode, done.stdout.split()) == (0, ["12", "-4", "4"]), done.stderr
    assert "Traceback" not in done.stderr


def test_functions_typed_into_an_interpreter_travel_by_value(new: NewProject) -> None:
    """The same from a prompt, where there is no file at all, and a function is defined anew with another body."""
    project = new()
    typed = SCRIPT.format(url=project.url).replace("\n\n@", "\n@").replace("\n\nclass", "\nclass") + textwrap.dedent("""
        worker = app.worker(concurrency=1)
        _ = worker.__enter__()
        print("first", triple.delay(4).result(timeout=30))
        @app.task
        def triple(x):
            return 3000 * x

        print("second", triple.delay(4).result(timeout=30))
        factor = 5
        print("third", app.submit(lambda x: x * factor, 4).result(timeout=30))
        worker.__exit__(None, None, None)
        """)
    typed = "\n".join(line if line.strip() else "" for line in interactive(typed))
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=typed,
        cwd=project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert [line for line in done.stdout.splitlines() if line] == ["first 12", "second 12000", "third 20"], done.stderr


def interactive(source: str) -> list[str]:
    """The lines as one types them: an empty one ends each block."""
    lines: list[str] = []
    for line in (line for line in source.splitlines() if line.strip()):
        if lines and lines[-1].startswith(" ") and not line.startswith(" "):
            lines.append("")
        lines.append(line)
    return [*lines, ""]


def test_a_worker_ends_with_a_program_that_is_killed(new: NewProject) -> None:
    """SIGKILL of the program ends its worker and all children within the grace period; what ran comes back."""
    project = new()
    script = SCRIPT.format(url=project.url) + textwrap.dedent("""
        import os, pathlib, time

        def report_and_sleep(folder):
            pathlib.Path(folder, "pid").write_text(str(os.getpid()))
            time.sleep(4)

        if __name__ == "__main__":
            with app.worker(concurrency=1) as worker:
                app.submit(report_and_sleep, os.getcwd())
                print(worker.pid, flush=True)
                time.sleep(1000)
        """)
    path = project.folder / "script.py"
    path.write_text(script)
    with subprocess.Popen(
        [sys.executable, str(path)], cwd=project.folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        worker = int(program.stdout.readline())
        child = int(
            until(lambda: (project.folder / "pid").exists() and (project.folder / "pid").read_text(), what="a running call")
        )
        assert child in children_of(worker)
        program.kill()
    until(lambda: not alive(worker) and not alive(child), 40, "the end of worker and child")


def test_an_interrupt_leaves_the_block_and_ends_the_worker(new: NewProject) -> None:
    """Ctrl-C in a program ends its worker too, without a traceback of the worker's."""
    project = new()
    script = SCRIPT.format(url=project.url) + textwrap.dedent("""
        import time
        if __name__ == "__main__":
            with app.worker(concurrency=1) as worker:
                print(worker.pid, triple.delay(1).result(timeout=30), flush=True)
                time.sleep(1000)
        """)
    path = project.folder / "script.py"
    path.write_text(script)
    program = subprocess.Popen(
        [sys.executable, str(path)], cwd=project.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    with program:
        assert program.stdout
        assert program.stderr
        worker = int(program.stdout.readline().split()[0])
        os.killpg(program.pid, signal.SIGINT)
        errors = program.stderr.read()
        program.wait(40)
    assert not alive(worker)
    assert errors.count("Traceback") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")


UNGUARDED = """
import os, pathlib

starts = pathlib.Path(__file__).with_name("starts")
with starts.open("a") as file:
    file.write("x")
if len(starts.read_text()) > 4:
    os._exit(9)  # enough: this test must not take the machine along

from ai4s.jobq import App

app = App("unguarded", {url!r})

@app.task
def square(x):
    return x * x

with app.worker(concurrency=1):
    print(square.delay(3).result(timeout=3))
"""


def test_a_module_that_starts_a_worker_when_imported_starts_only_one(new: NewProject) -> None:
    """A script without the guard `if __name__ == "__main__"` does not make each worker start another one, without end."""
    project = new()
    (project.folder / "unguarded.py").write_text(UNGUARDED.format(url=project.url))
    done = project.run("start.py", "import unguarded", within=60)
    assert "__main__" in done.stderr, done.stderr
    assert len((project.folder / "starts").read_text()) <= 3


def test_a_command_that_serves_such_a_module_says_so(new: NewProject) -> None:
    """`jobq-worker` of a script without the guard ends with code 2 and says what to put where."""
    project = new()
    (project.folder / "unguarded.py").write_text(UNGUARDED.format(url=project.url))
    worker = project.worker(target="unguarded:app", ready=False)
    assert worker.wait() == 2
    assert "__main__" in worker.log
