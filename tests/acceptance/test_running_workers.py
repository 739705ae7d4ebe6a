"""A worker at work: plain functions and coroutines side by side, queues in turn and in order, code by value, odd tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from projects import NewProject, Project, new_project, until

from ai4s.jobq import App, as_completed
from ai4s.jobq.errors import CallError, TaskFailed

TASKS = """
@app.task
def square(x):
    return x * x

@app.task
def process_id():
    return os.getpid()

@app.task
async def together(name, wanted):
    # Returns once so many of these run at a time, in this very process.
    running.add(name)
    for _ in range(1500):
        if len(running) >= wanted:
            return os.getpid()
        await asyncio.sleep(0.02)
    raise TimeoutError(f"only {len(running)}")

running = set()

@app.task(pool="thread")
def thread_name():
    return threading.current_thread().name, os.getpid()

@app.task
def who():
    call = current()
    return call.id, call.attempt, call.queue, call.worker, call.task

# Tasks of all manners.

@app.task
def raise_kind(name):
    kinds = {
        "SystemExit": SystemExit(0), "KeyboardInterrupt": KeyboardInterrupt(), "GeneratorExit": GeneratorExit(),
        "CancelledError": asyncio.CancelledError(), "StopIteration": StopIteration(5), "StopAsyncIteration": StopAsyncIteration(),
        "ExceptionGroup": ExceptionGroup("several", [ValueError(1), ExceptionGroup("deeper", [KeyError(2)])]),
        "BaseExceptionGroup": BaseExceptionGroup("base", [KeyboardInterrupt()]),
        "MemoryError": MemoryError(), "TimeoutError": TimeoutError("mine"),
        "UnicodeDecodeError": UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        "RecursionError": RecursionError("deep"), "OSError": OSError(28, "No space left on device", "/data"),
    }
    raise kinds[name]

@app.task
async def raise_kind_on_a_loop(name):
    raise_kind(name)

@app.task
def recurse():
    return recurse() + 1

@app.task
def huge_message():
    raise ValueError("x" * 50_000_000)

@app.task
def cyclic_causes():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    raise one

@app.task
def exec_traceback():
    source = "\\n".join(f"def f{n}(): f{n + 1}()" for n in range(400)) + "\\ndef f400(): raise ValueError('deep')"
    names = {}
    exec(source, names)
    names["f0"]()

@app.task
def prints():
    for _ in range(200):
        print("x" * 50_000)
        print("y" * 50_000, file=sys.stderr)
    return "printed"

@app.task
def closes_standard_streams():
    for number in (0, 1, 2):
        os.close(number)
    sys.stdout.close()
    return "closed"

@app.task
def changes_folder_and_environment():
    os.chdir("/")
    os.environ.clear()
    sys.argv.clear()
    sys.path.clear()
    return "changed"

@app.task
def sets_odd_limits():
    threading.stack_size(1 << 20)
    sys.setrecursionlimit(200)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "set"

@app.task
def leaves_a_thread():
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return "left"

@app.task
def registers_at_exit():
    import atexit
    atexit.register(time.sleep, 1000)
    return "registered"

@app.task
def spoils_modules():
    import json, socket, struct
    os.read = os.write = None
    socket.socket = json.dumps = None
    return "spoilt"

@app.task
def none():
    return None

@app.task
async def returns_a_coroutine():
    return asyncio.sleep(0)

@app.task
def returns_itself():
    value = []
    value.append(value)
    return value

@app.task(name="odd.name-with_all-9.kinds")
def named():
    return current().task

@app.task
def takes(*args, **kwargs):
    return args, kwargs

class Tools:
    @staticmethod
    @app.task
    def nested(x):
        return x + 1
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with a worker of two slots, for as long as this module's tests run."""
    folder = tmp_path_factory.mktemp("running")
    with new_project(folder / "project", f"local://{folder}/place", TASKS) as made:
        made.worker("--concurrency", "2", "--async-concurrency", "300")
        yield made


def serves(project: Project) -> bool:
    """Whether both slots are there for the next call."""
    handles = [project.task("square").delay(n) for n in range(8)]
    return [handle.result(timeout=30) for handle in handles] == [n * n for n in range(8)]


def test_coroutines_run_by_the_hundred_beside_plain_functions(project: Project) -> None:
    """250 coroutines run at a time in one process, while plain functions run in others."""
    waiting = [project.task("together").delay(n, 250) for n in range(250)]
    plain = [project.task("process_id").delay() for _ in range(20)]
    on_loop = {handle.result() for handle in as_completed(waiting, timeout=60)}
    others = {handle.result(timeout=30) for handle in plain}
    assert len(on_loop) == 1
    assert 1 <= len(others) <= 2
    assert not on_loop & others


def test_threads_run_beside_coroutines(project: Project) -> None:
    """`pool="thread"` runs on a thread of a process that plain functions do not have."""
    name, pid = project.task("thread_name").delay().result(timeout=30)
    assert name.startswith("jobq-task")
    assert pid != project.task("process_id").delay().result(timeout=30)


def test_a_task_knows_its_call(project: Project) -> None:
    """`current()` says which call, attempt, queue, worker and task it is."""
    handle = project.task("who").delay()
    worker = project.names("workers/")[0].removeprefix("workers/")
    assert handle.result(timeout=30) == (handle.id, 1, "default", worker, f"{project.module.__name__}.who")


def test_sync_and_async_callers_share_a_worker(project: Project) -> None:
    """Calls sent and awaited from a program's own loop end like those of a plain program."""

    async def program() -> list[int]:
        handles = await asyncio.gather(*(project.task("square").adelay(n) for n in range(50)))
        return list(await asyncio.gather(*(handle.aresult(timeout=30) for handle in handles)))

    assert asyncio.run(program()) == [n * n for n in range(50)]


def test_callers_on_many_threads_share_an_app(project: Project) -> None:
    """Eight threads of one program send and wait at once."""
    sums: list[int] = []

    def work() -> None:
        sums.append(sum(handle.result(timeout=60) for handle in [project.task("square").delay(n) for n in range(20)]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [sum(n * n for n in range(20))] * 8


# Tasks of all manners.

PASSING = [
    "StopIteration",
    "StopAsyncIteration",
    "ExceptionGroup",
    "MemoryError",
    "TimeoutError",
    "UnicodeDecodeError",
    "RecursionError",
    "OSError",
]
NOT_FOR_CALLERS = ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError", "BaseExceptionGroup"]


@pytest.mark.parametrize("name", PASSING)
def test_an_exception_arrives_as_itself(project: Project, name: str) -> None:
    """What a plain function raises is what its caller gets, with the remote traceback as its cause."""
    error = project.task("raise_kind").delay(name).exception(timeout=30)
    assert type(error).__name__ == name
    assert "raise_kind" in str(error.__cause__)
    if isinstance(error, ExceptionGroup):
        assert str(error.exceptions[1]) == "deeper (1 sub-exception)"
    if isinstance(error, OSError) and name == "OSError":
        assert (error.errno, error.filename) == (28, "/data")


@pytest.mark.parametrize("task", ["raise_kind", "raise_kind_on_a_loop"])
@pytest.mark.parametrize("name", NOT_FOR_CALLERS)
def test_what_would_end_or_cancel_the_caller_arrives_as_task_failed(project: Project, task: str, name: str) -> None:
    """A task's SystemExit must not end its caller's program with code 0, nor its CancelledError vanish in a TaskGroup."""
    handle = project.task(task).delay(name)
    try:
        error = handle.exception(timeout=30)
    except BaseException as exc:  # noqa: BLE001  # it must not get here, and not through the test either
        error = exc
    assert type(error) is TaskFailed, repr(error)
    assert name in str(error)
    assert serves(project)


def test_a_coroutine_cannot_raise_the_end_of_an_iteration(project: Project) -> None:
    """Python turns it into RuntimeError, and so it arrives."""
    assert type(project.task("raise_kind_on_a_loop").delay("StopIteration").exception(timeout=30)) is RuntimeError


@pytest.mark.parametrize(
    ("name", "kind"),
    [("recurse", RecursionError), ("huge_message", ValueError), ("cyclic_causes", ValueError), ("exec_traceback", ValueError)],
)
def test_a_monstrous_exception_is_cut_to_size(project: Project, name: str, kind: type[Exception]) -> None:
    """Tracebacks without end and messages of 50 MB arrive in part; the record of it stays small."""
    error = project.task(name).delay().exception(timeout=60)
    assert isinstance(error, kind | TaskFailed), repr(error)[:200]
    assert len(str(error)) < 10_000
    assert len(str(error.__cause__)) < 100_000
    assert serves(project)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prints", "printed"),
        ("closes_standard_streams", "closed"),
        ("changes_folder_and_environment", "changed"),
        ("sets_odd_limits", "set"),
        ("leaves_a_thread", "left"),
        ("registers_at_exit", "registered"),
        ("none", None),
        ("named", "odd.name-with_all-9.kinds"),
    ],
)
def test_a_task_may_do_odd_things(project: Project, name: str, value: object) -> None:
    """What a task does to its own process harms neither its value nor the calls that follow."""
    assert project.task(name).delay().result(timeout=60) == value
    assert serves(project)


def test_a_task_that_spoils_modules_harms_only_itself(new: NewProject) -> None:
    """A task that breaks the interpreter's own modules may cost its process, but no other call."""
    project = new(TASKS)
    project.worker("--concurrency", "2")
    project.task("spoils_modules").delay().exception(timeout=60)
    assert serves(project)


def test_odd_values_come_back(project: Project) -> None:
    """Lists that hold themselves, and arguments by position and name, arrive as they were."""
    value = project.task("returns_itself").delay().result(timeout=30)
    assert value[0] is value
    assert project.task("takes").delay(1, [2], x=None, self=4).result(timeout=30) == ((1, [2]), {"x": None, "self": 4})
    assert project.module.Tools.nested.delay(3).result(timeout=30) == 4


def test_a_coroutine_as_a_result_is_refused(project: Project) -> None:
    """A value that cannot travel fails its own call, and leaves no warning that ends the child."""
    assert project.task("returns_a_coroutine").delay().exception(timeout=30) is not None
    assert serves(project)


def test_a_worker_stops_in_time_whatever_its_tasks_left_behind(new: NewProject) -> None:
    """Threads without end, functions at exit and ignored signals do not keep a worker from ending."""
    project = new(TASKS)
    worker = project.worker("--concurrency", "3")
    for name in ("leaves_a_thread", "registers_at_exit", "sets_odd_limits"):
        project.task(name).delay().result(timeout=30)
    worker.process.terminate()
    assert worker.wait(30) == 75


# Queues.


def test_queues_are_served_in_turn(new: NewProject, place_url: str) -> None:
    """`--queue a,b` gives both their share: neither backlog is finished before the other has begun."""
    project = new("\n@app.task\ndef where():\n    note('order', current().queue)\n", url=place_url)
    for queue in ("a", "b"):
        for _ in range(30):
            project.task("where").options(queue=queue).delay()
    project.worker("--queue", "a,b", "--concurrency", "1", "--until-empty", ready=False).wait()
    order = project.lines("order")
    assert sorted(order) == ["a"] * 30 + ["b"] * 30
    assert {"a", "b"} == set(order[:45])


def test_queues_given_one_by_one_are_a_strict_order(new: NewProject, place_url: str) -> None:
    """`--queue first --queue second` does nothing of the second while the first has something."""
    project = new("\n@app.task\ndef where():\n    note('order', current().queue)\n", url=place_url)
    for queue in ("second", "first"):
        for _ in range(30):
            project.task("where").options(queue=queue).delay()
    project.worker("--queue", "first", "--queue", "second", "--concurrency", "1", "--until-empty", ready=False).wait()
    assert project.lines("order") == ["first"] * 30 + ["second"] * 30


def test_a_queue_that_is_not_named_is_left_alone(new: NewProject) -> None:
    """A worker serves the queues that it is told to, and by default those that its tasks name."""
    project = new("""
        @app.task(queue="gpu")
        def train():
            return current().queue

        @app.task
        def square(x):
            return x * x
    """)
    project.worker("--queue", "gpu", "--concurrency", "1")
    handle = project.task("square").delay(3)
    assert project.task("train").delay().result(timeout=30) == "gpu"
    assert not handle.done()
    project.worker("--concurrency", "1")
    assert handle.result(timeout=30) == 9


# Code by value.


def test_a_worker_without_a_module_runs_calls_by_value(new: NewProject) -> None:
    """`jobq-worker PLACE/APP` needs no module: functions come along with their calls."""
    project = new()
    project.worker("--concurrency", "1", "--forever", target=f"{project.url}/{project.app_name}")
    factor = 4
    assert project.app.submit(lambda x: x * factor, 5).result(timeout=30) == 20


def test_no_by_value_refuses_code_and_runs_the_rest(new: NewProject) -> None:
    """`--no-by-value` puts functions by value aside, for others, and serves the tasks that it knows."""
    project = new(TASKS)
    worker = project.worker("--no-by-value", "--concurrency", "1")
    handle = project.app.submit(lambda: 5)
    worker.until_says("--no-by-value")
    assert project.task("square").delay(3).result(timeout=30) == 9
    assert not handle.done()
    until(lambda: project.depth() == 1)  # an outcome is there before its message is removed


def test_no_by_value_refuses_shipped_modules_too(new: NewProject) -> None:
    """A module that travels with its calls is code by value: a worker that takes none neither unpacks nor imports it."""
    project = new(TASKS)
    (project.folder / "shipped_module.py").write_text("import pathlib\npathlib.Path('/proc/self').exists()\nVALUE = 5\n")
    import shipped_module  # type: ignore[import-not-found]  # written just now

    app = App(project.app_name, project.url, ship=[shipped_module])
    square = app.task(project.task("square").function)
    worker = project.worker("--no-by-value", "--concurrency", "1")
    handle = square.delay(3)
    try:
        until(lambda: "--no-by-value" in worker.log or handle.done(), 30, "what becomes of it")
        assert not handle.done()
    finally:
        app.close()


def test_shipped_modules_follow_their_version(new: NewProject) -> None:
    """Two programs that ship two versions of one module each get their own, from the same worker, call after call."""
    project = new()
    project.worker("--concurrency", "1", "--forever", target=f"{project.url}/{project.app_name}")
    script = f"""
        import sys
        import versioned
        from ai4s.jobq import App
        app = App({project.app_name!r}, {project.url!r}, ship=[versioned])
        print(app.submit(lambda: versioned.VALUE).result(timeout=40))
        """
    for n in range(3):
        (project.folder / "versioned.py").write_text(f"VALUE = {n}\n" + "#" * n)
        assert project.run("ship.py", script, PYTHONDONTWRITEBYTECODE="1").stdout.strip() == str(n)


# A module that breaks while its worker runs.


def test_a_module_that_breaks_meanwhile_fails_no_call(new: NewProject) -> None:
    """A child that cannot be started any more, as its module was edited, costs no call its attempts."""
    project = new("""
        @app.task(max_deaths=1)
        def crash():
            os._exit(1)

        @app.task(backoff=0.05)
        def square(x):
            return x * x
    """)
    worker = project.worker("--concurrency", "1")
    source = project.folder / f"{project.module.__name__}.py"
    sound = source.read_text()
    source.write_text(f"{sound}\nraise RuntimeError('edited meanwhile')\n")
    with pytest.raises(CallError):
        project.task("crash").delay().result(timeout=30)
    handle = project.task("square").delay(3)
    until(lambda: "edited meanwhile" in worker.log or handle.done(), 30, "a word on the failing import")
    give_up_at = time.monotonic() + 4
    until(lambda: time.monotonic() > give_up_at or handle.done(), 30)
    source.write_text(sound)
    until(lambda: worker.process.poll() is not None or handle.done(), 60, "a worker that ends, or mends itself")
    if not handle.done():
        project.worker("--concurrency", "1")
    assert handle.result(timeout=60) == 9
