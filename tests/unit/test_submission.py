"""From `delay` to a durable message: what is refused before the first request, what is uploaded once, and what a key promises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage_spy import Crash, blobs, calls, counted, crash_after, crash_before, depth

from ai4s.jobq import App, Handle, HandleAsArgument, KeyConflict, NotSerializable, ResultGone, spill
from ai4s.jobq.codec import codec_named
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.message import Spill
from ai4s.jobq.payload import python_minor
from ai4s.jobq.running import RunningCall, running

declared = App("submission")


@declared.task
def step(x: Any = None, *, y: Any = None) -> Any:
    return x


@declared.task(codec="msgpack")
def plain_step(x: Any = None) -> Any:
    return x


@dataclass
class Box:
    content: object
    more: dict[str, object] = field(default_factory=dict)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("I will not travel")


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file's tasks, on an empty store, without a worker."""
    return jobq_place(declared)


def nothing_was_sent(app: App) -> bool:
    """No message, and no blob: neither arguments, nor code, nor a key."""
    return depth(app) == 0 and blobs(app) == []


# refused before anything is sent


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: step.delay(1, 2), "too many positional arguments"),
        (lambda: step.delay(z=1), "got an unexpected keyword argument 'z'"),
        (lambda: step.delay(1, x=1), "multiple values for argument 'x'"),
        (lambda: step.options(key="k").delay(1, 2), "too many positional arguments"),
        (lambda: declared.submit(lambda a: a), "missing a required argument: 'a'"),
    ],
)
def test_arguments_that_do_not_fit_are_not_sent(app: App, call: Callable[[], object], says: str) -> None:
    """They raise TypeError at the caller, with the task's name and signature."""
    with pytest.raises(TypeError, match=says):
        call()
    assert nothing_was_sent(app)


async def test_adelay_refuses_what_delay_refuses(app: App) -> None:
    """In the same way, and before it is awaited for long."""
    with pytest.raises(TypeError, match="too many positional arguments"):
        await step.adelay(1, 2)  # type: ignore[call-arg]
    with pytest.raises(NotSerializable):
        await step.adelay(Unpicklable())


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {"a": (x,)}, Box])
def test_what_does_not_pickle_is_not_sent(app: App, wrap: Callable[[object], object]) -> None:
    """However deep it lies; the error says what went wrong in pickling."""
    with pytest.raises(NotSerializable, match=r"cloudpickle cannot encode .* I will not travel"):
        step.options(key="k").delay(wrap(Unpicklable()))
    assert nothing_was_sent(app)


def test_what_no_pickle_can_hold_is_not_sent(app: App) -> None:
    """A lock, an open file, a running generator: the usual suspects, by their type's name."""
    for thing, kind in [(threading.Lock(), "lock"), ((n for n in [1]), "generator")]:
        with pytest.raises(NotSerializable, match=kind):
            step.delay(thing)
    assert nothing_was_sent(app)


def test_a_function_that_does_not_pickle_is_not_sent(app: App) -> None:
    """A closure over a lock."""
    lock = threading.Lock()

    with pytest.raises(NotSerializable, match="lock"):
        app.submit(lambda: (lock, 1))
    assert nothing_was_sent(app)


@pytest.mark.parametrize("wrap", [lambda h: h, lambda h: [1, [h]], lambda h: {"a": {"b": h}}, lambda h: Box(Box(h))])
def test_a_handle_is_not_sent_as_an_argument(app: App, wrap: Callable[[object], object]) -> None:
    """Wherever it hides; the error names its call and says what to pass instead."""
    handle = app.handle("a" * 16 + "-" + "0" * 12)

    says = rf"A handle \(of call {handle.id}\) is not an argument: pass handle\.result\(\)"
    for call in (step.delay, partial(step.delay, y=1), step.options(key="k").delay):
        with pytest.raises(HandleAsArgument, match=says):
            call(wrap(handle))
    assert nothing_was_sent(app)


@pytest.mark.parametrize("wrap", [lambda h: h, lambda h: [1, [h]], lambda h: {"a": {"b": h}}])
def test_a_handle_is_not_sent_with_msgpack_either(app: App, wrap: Callable[[object], object]) -> None:
    """The error is the one about handles, not the codec's."""
    with pytest.raises(HandleAsArgument):
        plain_step.delay(wrap(app.handle("a" * 16 + "-" + "0" * 12)))
    assert nothing_was_sent(app)


@pytest.mark.parametrize(
    ("value", "kind"),
    [({1}, "set"), (1j, "complex"), (Box(1), "test_submission.Box"), ([Path("x")], "PosixPath"), (2**64, "int"), (len, "builtin")],
)
def test_msgpack_names_what_it_refuses(app: App, value: object, kind: str) -> None:
    """The offending type, and what can be done about it."""
    with pytest.raises(NotSerializable, match=kind):
        plain_step.delay(value)
    assert nothing_was_sent(app)


def test_shipped_modules_too_large_are_refused(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ships a folder of data is told to install it instead."""
    import types

    package = types.ModuleType("heavy")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 16)
    monkeypatch.setattr("ai4s.jobq.payload.MAX_SHIPPED_BYTES", 100)
    sender = App("submission", app.client.url, ship=[package])

    with pytest.raises(ValueError, match=r"heavy is too large to ship \(\d+ bytes\): install it on the workers"):
        sender.submit(len, "x")
    sender.close()


# where a worker looks for it


class Methods:
    """Tasks need not stand at the top of a module."""

    @staticmethod
    @declared.task
    def twice(x: int) -> int:
        return 2 * x


def test_a_task_in_a_class_is_found_by_a_worker(app: App, jobq_worker: Callable[..., object]) -> None:
    """What is sent by name has to be found by name: else nobody could run it, and its caller would wait for ever."""
    jobq_worker(app)

    assert Methods.twice.delay(4).result(timeout=20) == 8


# what a message says


def test_a_message_says_what_was_asked_for(app: App) -> None:
    """The options of the call before those of the task."""
    step.options(retries=4, timeout=timedelta(minutes=2), expires=60).delay(1)

    [call] = calls(app)
    assert (call.task, call.queue, call.run) == ("test_submission.step", "default", 1)
    assert (call.retries, call.timeout_seconds) == (4, 120.0)
    assert call.expires is not None
    assert call.expires - call.sent == pytest.approx(60)


def test_a_moment_to_expire_at_is_kept_as_it_is(app: App) -> None:
    """It does not depend on when the call is sent."""
    moment = datetime(2035, 5, 5, tzinfo=UTC)
    step.options(expires=moment).delay()

    assert [call.expires for call in calls(app)] == [moment.timestamp()]


def test_an_eta_in_the_past_means_now(app: App) -> None:
    """The message is visible at once."""
    step.options(eta=datetime(2020, 1, 1, tzinfo=UTC)).delay()

    assert [call.eta for call in calls(app)] == [None]


def test_a_call_to_another_queue_lies_there(app: App) -> None:
    """And nowhere else."""
    step.options(queue="gpu").delay()

    assert (depth(app), depth(app, "gpu")) == (0, 1)


def test_a_later_change_of_an_argument_changes_nothing(app: App) -> None:
    """Arguments are encoded when the call is made."""
    values = [1]
    step.delay(values)
    values.append(2)

    [call] = calls(app)
    assert isinstance(call.arguments, bytes)
    assert app.tasks["test_submission.step"].declared.codec.loads(call.arguments) == (([1],), {})


def test_large_arguments_lie_beside_the_message(app: App) -> None:
    """The message says how long they are and what their digest is; there is one blob for them, named after the call."""
    handle = step.delay(bytes(range(256)) * 4096)

    [call] = calls(app)
    assert isinstance(call.arguments, Spill)
    assert call.arguments.size > 1024 * 1024
    assert blobs(app) == [f"args/{handle.id}"]


def test_large_arrays_lie_beside_the_message(app: App) -> None:
    """As they were, from where they lay; without them, no message."""
    with pytest.raises(Crash), crash_before(app, "put"):
        step.delay(np.arange(100_000))
    assert depth(app) == 0
    handle = step.delay(np.arange(100_000), y=b"x" * 300_000)

    [call] = calls(app)
    assert call.arguments == spill_of(app, f"args/{handle.id}")


def spill_of(app: App, name: str) -> Spill:
    """What would be said of a blob."""

    async def read(ledger: Ledger) -> Spill:
        blob = await (await ledger.store()).get(name)
        assert blob is not None
        return await spill.digest(blob.data)

    return app.client.run(read)


def test_a_plain_call_is_one_request(app: App) -> None:
    """The first call also makes queue and container; from then on each is a single message."""
    step.delay()

    with counted(app) as requests:
        step.delay(1)
        step.delay(2)
    assert requests == {"send": 2}


def test_ids_are_unique_among_threads(app: App) -> None:
    """One client may be used by all of them."""
    with ThreadPoolExecutor(8) as threads:
        handles = list(threads.map(step.delay, range(200)))

    assert len({handle.id for handle in handles}) == 200
    assert depth(app) == 200


async def test_adelay_and_asubmit_send_the_same_message(app: App) -> None:
    """They are the same submission, awaited."""
    handles = [await step.adelay(1), await app.asubmit(step, 1), await app.asubmit(len, "one")]

    assert [call.id for call in calls(app)] == [handle.id for handle in handles]


def test_a_call_outside_a_task_has_no_parent(app: App) -> None:
    """It is the root of its own tree."""
    step.delay()

    assert [(call.parent, call.root) for call in calls(app)] == [(None, None)]


def test_a_call_made_in_a_task_knows_its_parent_and_its_root(app: App) -> None:
    """So that what belongs together can be found, however deep."""
    parent, root = (f"{letter * 16}-{0:012d}" for letter in "pr")
    outer = RunningCall(id=parent, run=1, attempt=1, task="t", queue="default", worker="w", root=root)
    with running(outer):
        step.delay()
        app.submit(lambda: None)

    assert [(call.parent, call.root) for call in calls(app)] == [(parent, root)] * 2


# code by value


def test_a_function_is_uploaded_once_per_content(app: App) -> None:
    """Not once per call, nor once more by another process that has the same function."""
    factor = 2

    def scale(x: int) -> int:
        return x * factor

    with counted(app) as requests:
        for x in range(5):
            app.submit(scale, x)
    assert requests == {"put": 1, "send": 5}

    another = App(app.name, app.client.url)
    another.submit(scale, 5)
    another.close()
    assert len(blobs(app, "payloads/")) == 1
    assert len({call.function for call in calls(app)}) == 1


def test_a_change_of_the_function_is_another_payload(app: App) -> None:
    """Of its code, or of what it closes over: calls that were made before keep what they were made with."""

    def scaled_by(factor: int) -> Callable[[int], int]:
        return lambda x: x * factor

    app.submit(scaled_by(2), 1)
    app.submit(scaled_by(3), 1)
    app.submit(lambda x: x + 1, 1)

    assert len(blobs(app, "payloads/")) == 3
    assert len({call.function for call in calls(app)}) == 3
    assert len({call.task for call in calls(app)}) == 3


def test_the_code_is_there_before_its_message(app: App) -> None:
    """A worker that takes the message at once finds the function."""
    with pytest.raises(Crash), crash_before(app, "send"):
        app.submit(lambda: None)

    assert len(blobs(app, "payloads/")) == 1
    assert depth(app) == 0


def test_an_upload_that_failed_is_done_again(app: App) -> None:
    """What was not acknowledged does not count as uploaded."""

    def work() -> None:
        return None

    with pytest.raises(Crash), crash_before(app, "put", "payloads/"):
        app.submit(work)
    assert nothing_was_sent(app)

    app.submit(work)
    assert len(blobs(app, "payloads/")) == 1
    assert depth(app) == 1


class Dynamic:
    """Made to look like a class of the script that is run."""


Dynamic.__module__ = "__main__"


@pytest.mark.parametrize(
    ("send", "stamped"),
    [
        (lambda: step.delay(1), False),
        (lambda: step.delay(Box([1, 2])), False),
        (lambda: step.delay(nothing_was_sent), False),
        (lambda: step.delay(step), False),
        (lambda: plain_step.delay([1]), False),
        (lambda: step.delay(lambda: None), True),
        (lambda: step.delay([partial(lambda x: x, 1)]), True),
        (lambda: step.delay(Dynamic()), True),
        (lambda: declared.submit(lambda: None), True),
        (lambda: declared.submit(step), False),
    ],
)
def test_the_python_version_is_stamped_where_code_travels(app: App, send: Callable[[], object], stamped: bool) -> None:
    """Pickled code is bound to a minor version of Python; plain values and importable functions are not."""
    send()

    assert [call.python for call in calls(app)] == [python_minor() if stamped else None]


def test_a_task_can_be_an_argument(app: App) -> None:
    """It is a function after all."""
    step.delay(step)

    assert depth(app) == 1


# keys


def keyed(*args: Any, key: str = "one", **kwargs: Any) -> Handle[Any]:
    """A call of `step` with a key."""
    return step.options(key=key).delay(*args, **kwargs)


def test_a_key_is_sent_once(app: App) -> None:
    """The second `delay` finds the record and sends nothing."""
    first = keyed(1)
    with counted(app) as requests:
        again = keyed(1)

    assert first == again
    assert requests["send"] == 0
    assert depth(app) == 1


def test_keys_are_apart_by_task_and_text(app: App) -> None:
    """Another task, another key, another function by value: other calls."""
    handles = [
        keyed(1),
        keyed(1, key="two"),
        plain_step.options(key="one").delay(1),
        app.task(lambda x: x).options(key="one").delay(1),
        app.task(lambda x: x + 1).options(key="one").delay(1),
        app.task(name="named")(lambda x: x).options(key="one").delay(1),
    ]

    assert len({handle.id for handle in handles}) == len(handles)
    assert depth(app) == len(handles)


def test_a_key_with_other_arguments_is_refused(app: App) -> None:
    """The error names the call that has the key; nothing is sent."""
    first = keyed(1)

    with pytest.raises(KeyConflict, match=rf"used before with other arguments \(call {first.id}\)"):
        keyed(2)
    assert depth(app) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: keyed(1, y=2), lambda: keyed(y=2, x=1)),
        (lambda: keyed(x=1, y=2), lambda: keyed(y=2, x=1)),
        (lambda: keyed(1), lambda: keyed(1, y=None)),
    ],
    ids=["position-or-name", "order-of-names", "default-or-given"],
)
def test_equal_arguments_are_equal_however_they_are_given(
    app: App, one: Callable[[], Handle[Any]], other: Callable[[], Handle[Any]]
) -> None:
    """What counts is what the function gets: by position or by name, in any order, with or without the defaults."""
    assert one() == other()
    assert depth(app) == 1


def test_a_key_goes_with_large_arguments(app: App) -> None:
    """They are compared by digest, whether they fit into the message or not."""
    large = bytes(range(256)) * 4096

    assert keyed(large) == keyed(bytes(large))
    assert depth(app) == 1
    with pytest.raises(KeyConflict):
        keyed(large + b"x")


def test_a_key_goes_with_large_arrays(app: App) -> None:
    """They are never put together, and yet compared; after a crash the same arguments are sent, and no others."""
    large = np.arange(100_000)
    with pytest.raises(Crash), crash_before(app, "send"):
        keyed(large)
    with pytest.raises(KeyConflict):
        keyed(large + 1)
    assert keyed(large) == keyed(large.copy())

    [call] = calls(app)
    assert isinstance(call.arguments, Spill)
    [name] = blobs(app, "args/")
    sent = app.client.run(lambda ledger: spill.fetch(ledger._store, name, call.arguments))
    assert np.array_equal(codec_named("cloudpickle").loads(sent)[0][0], large)


def test_a_crash_between_claim_and_send_is_mended(app: App) -> None:
    """Nothing was sent then; whoever asks again sends it."""
    with pytest.raises(Crash), crash_before(app, "send"):
        keyed(1)
    assert len(blobs(app, "keys/")) == 1
    assert depth(app) == 0

    keyed(1)
    assert depth(app) == 1
    keyed(1)
    assert depth(app) == 1


@pytest.mark.parametrize("crash", [lambda app: crash_after(app, "send"), lambda app: crash_after(app, "put", "keys/")])
def test_a_key_claimed_by_a_dead_process_is_guarded(app: App, crash: Callable[[App], Any]) -> None:
    """A claim holds for its arguments, even if nobody knows whether its message was sent."""
    with pytest.raises(Crash), crash(app):
        keyed(1)

    with pytest.raises(KeyConflict):
        keyed(2)
    assert keyed(1) == keyed(1)


def test_a_message_sent_twice_says_so(app: App) -> None:
    """After a crash between the send and its note, there are two messages; the marks make a worker look before it runs one."""
    with pytest.raises(Crash), crash_after(app, "send"):
        keyed(1)
    keyed(1)

    assert [call.resent for call in calls(app)] == [True, True]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A file to which each run of a task adds a line."""
    path = tmp_path / "log"
    path.touch()
    return path


def append_to(log: Path) -> int:
    with log.open("a") as file:
        file.write("ran\n")
    return len(log.read_text().splitlines())


def test_a_call_that_was_sent_twice_runs_once(jobq_app: App, log: Path, jobq_worker: Callable[..., object]) -> None:
    """Where one message is worked on after the other."""
    task = jobq_app.task(append_to).options(key="once")
    with pytest.raises(Crash), crash_after(jobq_app, "send"):
        task.delay(log)
    handle = task.delay(log)
    assert depth(jobq_app) == 2

    jobq_worker(jobq_app, concurrency=1)
    assert handle.result(timeout=60) == 1
    # The last message on the queue is worked on after the second copy, so its result says that the copy is done with.
    assert jobq_app.submit(append_to, log).result(timeout=60) == 2


def test_a_key_still_counts_after_its_call_has_ended(jobq_app: App, log: Path, jobq_worker: Callable[..., object]) -> None:
    """Asked again, it gives the outcome that there is."""
    jobq_worker(jobq_app)
    task = jobq_app.task(append_to).options(key="once")

    assert task.delay(log).result(timeout=60) == 1
    assert task.delay(log).result(timeout=60) == 1
    assert log.read_text() == "ran\n"


def test_a_key_whose_outcome_was_forgotten_says_so(jobq_app: App, log: Path, jobq_worker: Callable[..., object]) -> None:
    """Nobody waits for ever for what is gone, and nothing runs twice behind anyone's back."""
    jobq_worker(jobq_app)
    task = jobq_app.task(append_to).options(key="once")
    handle = task.delay(log)
    handle.result(timeout=60)
    handle.forget()

    with pytest.raises(ResultGone):
        task.delay(log).result(timeout=60)
    assert log.read_text() == "ran\n"
