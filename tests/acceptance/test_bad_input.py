"""Bad input to real workers and producers: one clear line that says what to do, the right exit code, and nothing lost."""

from __future__ import annotations

import base64
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from projects import NewProject, Project, WorkerProcess, new_project, until

from ai4s.jobq import App
from ai4s.jobq.codec import codec_named
from ai4s.jobq.errors import (
    AccessDenied,
    ConfigurationError,
    HandleAsArgument,
    JobQError,
    NotSerializable,
    TaskFailed,
    Unreachable,
    WouldDeadlock,
)
from ai4s.jobq.message import Call
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.place import AZURITE_KEY
from ai4s.jobq.wire import Wire

FAILED, MISUSED = 1, 2

SQUARE = """
@app.task
def square(x):
    return x * x
"""

OTHER_KEY = base64.b64encode(b"not the key of this account").decode()


def error_lines(worker: WorkerProcess) -> list[str]:
    """What the worker has to say when it ends; a traceback of ours is not among what a user should read."""
    assert 'ai4s/jobq/worker/runtime.py"' not in worker.log, f"the traceback of our own code is shown:\n{worker.log}"
    return [line for line in worker.log.splitlines() if line.startswith("Error: ")]


def one_error(worker: WorkerProcess, code: int) -> str:
    """The one line with which a worker ended that could not start."""
    assert worker.wait() == code, worker.log
    lines = error_lines(worker)
    assert len(lines) == 1, worker.log
    return lines[0]


def closed_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def refusing_account() -> str:
    """An account at an address where every connection is refused."""
    url = f"http://127.0.0.1:{closed_port()}/devstoreaccount1"
    return f"AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};BlobEndpoint={url};QueueEndpoint={url}"


# The target.


def test_a_module_that_is_not_there_is_named(new: NewProject) -> None:
    """A wrong module ends the worker with code 2 and a line that names it and says where to run."""
    error = one_error(new().worker(target="no_such_module:app", ready=False), MISUSED)
    assert "there is no module 'no_such_module'" in error
    assert "Run this where the module lies, or install it" in error


def test_a_wrong_attribute_is_named_beside_the_right_one(new: NewProject) -> None:
    """A wrong attribute ends the worker with code 2 and a line that names the module's app."""
    project = new()
    module = project.module.__name__
    error = one_error(project.worker(target=f"{module}:aap", ready=False), MISUSED)
    assert "'aap' does not exist" in error
    assert f"There is {module}:app" in error


def test_an_attribute_that_is_no_app_is_refused(new: NewProject) -> None:
    """A function where the app belongs ends the worker with code 2."""
    project = new(SQUARE)
    error = one_error(project.worker(target=f"{project.module.__name__}:square", ready=False), MISUSED)
    assert "'square' is no App" in error


@pytest.mark.parametrize("target", ["", "nothing", "a:b:c", "/", "sb://x/y", "local://relative/app", "local:///tmp/place/Bad_Name"])
def test_a_target_that_names_nothing_says_what_would(new: NewProject, target: str) -> None:
    """A target that is neither a module's app nor a place's ends the command with code 2 before anything starts."""
    worker = new().worker(target=target or " ", ready=False)
    assert len(one_error(worker, MISUSED)) > len("Error: ")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "exit code 0"),
        ("class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad", "Bad"),
    ],
    ids=["raises", "lacks-a-dependency", "syntax", "exits", "vanishes", "raises-without-str"],
)
def test_a_module_that_fails_on_import_ends_the_worker_with_its_error(new: NewProject, source: str, says: str) -> None:
    """A worker whose module cannot be imported ends with code 2, and says what the module raised."""
    project = new()
    (project.folder / "failing.py").write_text(source)
    error = one_error(project.worker(target="failing:app", ready=False), MISUSED)
    assert "failing" in error or "child process" in error
    assert says in project.workers[0].log


@pytest.mark.parametrize(
    "options", [["--queue", "Bad"], ["--queue", "failed"], ["--queue", ","], ["--queue", "a:0"], ["--queue", "a:x"]]
)
def test_a_queue_that_cannot_be_ends_the_worker(new: NewProject, options: list[str]) -> None:
    """A wrong queue ends the worker with code 2 and a line that says what would be right."""
    assert "queue" in one_error(new().worker(*options, ready=False), MISUSED).lower()


@pytest.mark.parametrize(
    "options", [["--concurrency", "0"], ["--until-idle", "soon"], ["--time-limit", "-1s"], ["--no-such-option"]]
)
def test_a_wrong_option_is_refused_before_anything_starts(new: NewProject, options: list[str]) -> None:
    """A wrong option ends the command with code 2 and says how to write it."""
    worker = new().worker(*options, ready=False)
    assert worker.wait() == MISUSED
    assert "Error: " in worker.log


# The place.


def test_an_account_that_cannot_be_reached_is_named(new: NewProject) -> None:
    """Where connections are refused, `delay` raises Unreachable, the worker ends with code 1; both name the place, not its key."""
    project = new(SQUARE, url=refusing_account())
    worker = project.worker(ready=False)
    with pytest.raises(Unreachable) as caught:
        project.task("square").delay(2)
    for said in (str(caught.value), one_error(worker, FAILED)):
        assert "127.0.0.1" in said
        assert AZURITE_KEY[:20] not in said + worker.log


def test_a_worker_with_a_wrong_key_is_refused_at_once(new: NewProject, azurite_url: str) -> None:
    """With a wrong key, the worker ends with code 1 and one line that says which right or key to look at."""
    project = new(SQUARE, url=azurite_url.replace(AZURITE_KEY, OTHER_KEY))
    error = one_error(project.worker(ready=False), FAILED)
    assert "403" in error
    assert "key" in error.lower()
    assert OTHER_KEY not in project.workers[0].log


def test_a_producer_with_a_wrong_key_is_refused_at_once(azurite_url: str) -> None:
    """With a wrong key, `delay` raises AccessDenied at once, and repeats no secret."""
    app = App("refused", azurite_url.replace(AZURITE_KEY, OTHER_KEY))
    began = time.monotonic()
    try:
        with pytest.raises(AccessDenied) as caught:
            app.submit(abs, -1)
    finally:
        app.close()
    assert time.monotonic() - began < 20
    assert "key" in str(caught.value).lower()
    assert OTHER_KEY not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(new: NewProject, tmp_path: Path) -> None:
    """A place below a file ends a worker with code 2, and makes `delay` raise ConfigurationError; both name the folder."""
    (tmp_path / "file").write_text("")
    url = f"local://{tmp_path}/file/place"
    project = new(SQUARE, url=url)
    assert f"{tmp_path}/file/place" in one_error(project.worker(ready=False), MISUSED)
    with pytest.raises(ConfigurationError, match="file/place"):
        project.task("square").delay(2)


def test_a_key_that_is_too_short_is_not_repeated(new: NewProject) -> None:
    """A signing key of five characters ends the worker with code 2, and is not shown."""
    worker = new(SQUARE).worker(ready=False, JOBQ_SIGNING_KEYS="hush5")
    assert "at least 16 characters" in one_error(worker, MISUSED)
    assert "hush5" not in worker.log


# Values. One worker for all of these.

VALUES = """
class Odd:
    def __repr__(self):
        raise ValueError("no repr")
    __str__ = __repr__

class OddError(Exception):
    def __repr__(self):
        raise ValueError("no repr")
    __str__ = __repr__

class Unpicklable(Exception):
    def __reduce__(self):
        raise RuntimeError("not me")

class NotRebuilt(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

@app.task
def square(x):
    return x * x

@app.task
def identity(x):
    return x

@app.task
def lock():
    return threading.Lock()

@app.task
def odd():
    return Odd()

@app.task
def raise_odd():
    raise OddError()

@app.task
def raise_unpicklable():
    raise Unpicklable("kept as text")

@app.task
def raise_not_rebuilt():
    raise NotRebuilt("salt", "pepper")

@app.task
def raise_lone_surrogate():
    raise FileNotFoundError("no file " + chr(0xdcff))

@app.task(codec="msgpack")
def plain(x):
    return {1, 2} if x == "set" else x

@app.task(codec="msgpack")
def plain_error():
    raise ValueError("as text")

@app.task
def wait_for_another():
    return square.delay(2).result(timeout=5)

@app.task
async def await_another():
    return await square.delay(2)

@app.task
def look_at_another():
    handle = square.delay(2)
    return handle.exception(timeout=5)

@app.task
def return_handle():
    return square.delay(3)
"""


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with a worker, for as long as this module's tests run."""
    folder = tmp_path_factory.mktemp("values")
    with new_project(folder / "project", f"local://{folder}/place", VALUES) as project:
        project.worker("--concurrency", "2")
        yield project


def test_an_unpicklable_argument_is_refused_at_the_caller(values: Project) -> None:
    """An argument that cannot travel raises NotSerializable with its type, and nothing is sent."""
    before = values.depth()
    with pytest.raises(NotSerializable, match="lock"):
        values.task("identity").delay(__import__("threading").Lock())
    with pytest.raises(NotSerializable, match="set"):
        values.task("plain").delay({1})
    assert values.depth() == before


def test_an_unpicklable_result_fails_the_call_and_names_the_type(values: Project) -> None:
    """A result that cannot travel ends the call as failed with NotSerializable, and the next call is served."""
    with pytest.raises(NotSerializable, match="lock"):
        values.task("lock").delay().result(timeout=30)
    with pytest.raises((TaskFailed, NotSerializable), match="set"):
        values.task("plain").delay("set").result(timeout=30)
    assert values.task("square").delay(7).result(timeout=30) == 49


def test_a_result_whose_repr_raises_comes_back(values: Project) -> None:
    """Nobody needs the repr of a result: it comes back as it is."""
    assert type(values.task("odd").delay().result(timeout=30)) is values.module.Odd


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("raise_odd", "OddError", None),
        ("raise_unpicklable", "TaskFailed", "kept as text"),
        ("raise_not_rebuilt", "TaskFailed", "salt and pepper"),
        ("raise_lone_surrogate", "FileNotFoundError", "no file"),
        ("plain_error", "TaskFailed", "ValueError: as text"),
    ],
)
def test_an_exception_arrives_whatever_it_does(values: Project, name: str, kind: str, says: str | None) -> None:
    """An exception without repr, that cannot be pickled or rebuilt, or with odd text, ends one call, as itself or as TaskFailed."""
    error = values.task(name).delay().exception(timeout=30)
    assert type(error).__name__ == kind, error
    assert says is None or says in str(error)
    assert error is not None
    assert name in str(error.__cause__), "the remote traceback is in the chain"


def test_a_handle_as_an_argument_is_refused_at_the_caller(values: Project) -> None:
    """A handle among the arguments, however deep, raises a TypeError that says what to pass, and nothing is sent for it."""
    square = values.task("square")
    handle = square.delay(5)
    for argument in (handle, [handle], {"deep": ({"er": handle},)}):
        with pytest.raises(HandleAsArgument, match=r"pass handle\.result\(\)") as caught:
            square.delay(argument)
        assert isinstance(caught.value, TypeError)
    with pytest.raises(HandleAsArgument):
        values.task("plain").delay([handle])
    assert handle.result(timeout=30) == 25


@pytest.mark.parametrize("name", ["wait_for_another", "await_another", "look_at_another"])
def test_waiting_inside_a_task_is_refused_at_once(values: Project, name: str) -> None:
    """A task that waits for another call fails with WouldDeadlock, which says to return the handle; the other call runs."""
    with pytest.raises(WouldDeadlock, match="Return the handle"):
        values.task(name).delay().result(timeout=30)


def test_a_task_may_return_a_handle(values: Project) -> None:
    """What WouldDeadlock advises works: the handle that a task returns can be waited for by the caller."""
    assert values.task("return_handle").delay().result(timeout=30).result(timeout=30) == 9


def test_arguments_that_do_not_fit_are_refused_at_the_caller(values: Project) -> None:
    """Too many arguments raise TypeError with the signature, before anything is sent."""
    before = values.depth()
    with pytest.raises(TypeError, match=r"square\(x\)"):
        values.task("square").delay(1, 2)
    assert values.depth() == before


# Messages. One worker with a key for all of these.

KEY = "a signing key of this test"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose app has a signing key, with a worker."""
    folder = tmp_path_factory.mktemp("signed")
    source = "\n@app.task\ndef square(x):\n    note('runs', x)\n    return x * x\n"
    with new_project(folder / "project", f"local://{folder}/place", source, f"signing_keys=[{KEY!r}]") as project:
        project.worker("--concurrency", "1")
        yield project


def sealed(project: Project, keys: tuple[str, ...] = (KEY,), app: str = "", queue: str = "default") -> str:
    """The text of a call of `square`, signed with these keys, for this app and queue."""
    arguments = codec_named("cloudpickle").dumps(((3,), {})).data
    name = f"{project.module.__name__}.square"
    call = Call(id=project.app.client.next_call_id(), task=name, queue=queue, arguments=arguments, sent=time.time())
    text = Wire(app or project.app_name, Keyring(keys)).seal_call(call)
    assert text
    return text


def frame(data: bytes) -> str:
    """Bytes as a message's text."""
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda project: "", "empty"),
        (lambda project: "not base64, surely", "base64"),
        (lambda project: "Ünïcödé", "base64"),
        (lambda project: frame(b"hello"), "not a record of ai4s.jobq"),
        (lambda project: frame(b"JQ\x01"), "not a record of ai4s.jobq"),
        (lambda project: frame(b"JQ\x01\x00\xc1\xc1\xc1"), "not signed"),
        (lambda project: sealed(project, keys=()), "not signed"),
        (lambda project: sealed(project, keys=("the signing key of somebody",)), "signature"),
        (lambda project: sealed(project, app="another-app"), "signature"),
        (lambda project: sealed(project, queue="gpu"), "signature"),
        (lambda project: sealed(project)[:-8] + "AAAAAAA=", "signature"),
        (lambda project: sealed(project)[:40], "signature"),
    ],
    ids=[
        "empty", "not-base64", "not-ascii", "foreign", "cut-off", "not-msgpack", "unsigned",
        "wrong-key", "wrong-app", "wrong-queue", "changed", "cut-short",
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_trusted_is_a_dead_letter(signed: Project, make: Callable[[Project], str], says: str) -> None:
    """A message that is damaged or not ours ends as a dead letter with the reason, runs nothing, and the worker goes on."""
    square = signed.task("square")
    before, letters = square.delay(2), {letter.raw for letter in signed.dead_letters()}
    text = make(signed)
    signed.send_text(text)
    after = square.delay(4)
    assert (before.result(timeout=30), after.result(timeout=30)) == (4, 16)
    until(lambda: signed.depth() == 0, 30, "an empty queue")
    letter = until(lambda: [each for each in signed.dead_letters() if each.raw not in letters], 30, "the dead letter")[0]
    assert letter.raw == text
    assert says in letter.reason
    assert "3" not in signed.lines("runs")


@pytest.mark.parametrize(
    "data",
    [
        b"JQ\x01\x00\xc1",
        b"JQ\x01\x00\x93\x01\x02\x03",
        b"JQ\x01\x00\x80",
        b"JQ\x01\x01" + b"zlib?" * 20,
        b"JQ\x01\x00\xdf\xff\xff\xff\xff",
    ],
    ids=["not-msgpack", "not-a-map", "empty-map", "not-zlib", "a-map-without-end"],
)
def test_a_damaged_record_is_a_dead_letter_without_a_key_as_well(values: Project, data: bytes) -> None:
    """Where nothing is signed, a damaged record ends as a dead letter with the reason too."""
    known = len(values.dead_letters())
    values.send_text(frame(data))
    assert values.task("square").delay(6).result(timeout=30) == 36
    until(lambda: len(values.dead_letters()) > known and values.depth() == 0, 30, "the dead letter")


# Messages that another worker can run: put aside, not given up.


@pytest.fixture
def put_aside(new: NewProject) -> Callable[[Callable[[Project], object], str], tuple[Project, WorkerProcess]]:
    """A function that has a message put aside by a worker, and checks that it lies there still."""

    def check(send: Callable[[Project], object], says: str) -> tuple[Project, WorkerProcess]:
        project = new(SQUARE)
        worker = project.worker("--concurrency", "1")
        send(project)
        worker.until_says("put aside for 30 s")
        assert says in worker.log
        assert project.task("square").delay(8).result(timeout=30) == 64
        until(lambda: project.depth() == 1, 30, "only the message that was put aside")
        assert project.visible() == 0
        assert project.dead_letters() == []
        return project, worker

    return check


def send_forged(project: Project, **changes: object) -> None:
    """Send a call of `square` with some fields changed."""
    fields: dict[str, object] = {
        "id": project.app.client.next_call_id(),
        "task": f"{project.module.__name__}.square",
        "queue": "default",
        "arguments": codec_named("cloudpickle").dumps(((3,), {})).data,
        "sent": time.time(),
    }
    project.send_call(Call(**{**fields, **changes}))  # type: ignore[arg-type]


PutAside = Callable[[Callable[[Project], object], str], tuple[Project, WorkerProcess]]


def test_a_task_that_the_worker_does_not_know_is_put_aside(put_aside: PutAside) -> None:
    """A call of an unknown task stays on the queue, and the log says which tasks there are."""
    project, worker = put_aside(lambda project: send_forged(project, task="elsewhere.cube"), "knows no task 'elsewhere.cube'")
    assert f"{project.module.__name__}.square" in worker.log


def test_a_later_version_is_put_aside(put_aside: PutAside) -> None:
    """A message of a later format stays on the queue, and the log says to update."""
    put_aside(lambda project: project.send_text(frame(b"JQ\x02\x00whatever comes then")), "Update ai4s-jobq")


def test_a_later_field_is_put_aside(put_aside: PutAside) -> None:
    """A record with a field of a later version stays on the queue rather than being run without it."""
    import msgpack

    record = msgpack.packb({"kind": "call", "id": "x", "successors": ["y"]})
    put_aside(lambda project: project.send_text(frame(b"JQ\x01\x00" + record)), "successors")


def test_code_of_another_python_is_put_aside(put_aside: PutAside) -> None:
    """A call with code of another Python minor stays on the queue, and the log names both versions."""
    _, worker = put_aside(lambda project: send_forged(project, python="3.99"), "brings code of Python 3.99")
    assert f"runs Python {sys.version_info.major}.{sys.version_info.minor}" in worker.log


def test_a_worker_that_knows_the_task_runs_what_another_put_aside(new: NewProject) -> None:
    """What one worker does not know goes back whole, and one that knows it runs it with its first attempt's number."""
    project = new("""
        if "LATER" in os.environ:
            @app.task
            def added():
                return current().attempt
    """)
    old = project.worker("--concurrency", "1")
    call = project.app.client.next_call_id()
    send_forged(
        project, id=call, task=f"{project.module.__name__}.added", arguments=codec_named("cloudpickle").dumps(((), {})).data
    )
    old.until_says("put aside for 30 s")
    old.kill()
    project.make_visible()
    project.worker("--concurrency", "1", LATER="1")
    assert project.app.handle(call).result(timeout=30) == 1


def test_messages_of_other_apps_do_not_mix(new: NewProject, local_url: str, tmp_path: Path) -> None:
    """A queue that belongs to another app ends the worker with a line that says so, and leaves the queue alone."""
    with new_project(tmp_path / "other", local_url, SQUARE) as project:
        app_name = project.app_name
        project.task("square").delay(3)
        taken = App(f"{app_name}-x", local_url)
        taken.submit(abs, -1)
        taken.close()
        worker = project.worker("--queue", "x", ready=False)
        assert worker.wait() != 0
        assert f"belongs to the app '{app_name}-x'" in one_line(worker)


def one_line(worker: WorkerProcess) -> str:
    """The only error line."""
    lines = error_lines(worker)
    assert len(lines) == 1, worker.log
    return lines[0]


def test_every_error_of_ours_is_a_jobq_error() -> None:
    """One `except` clause takes them all."""
    for kind in (AccessDenied, ConfigurationError, HandleAsArgument, NotSerializable, TaskFailed, Unreachable, WouldDeadlock):
        assert issubclass(kind, JobQError)
