"""What cannot be is refused where it is said: at declaration, with a message that says what would be right."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ai4s.jobq import App, Backoff, ConfigurationError, DeclarationError, JobQError, Retry
from ai4s.jobq.message import Pool

app = App("declaration")


def plain(x: int = 0) -> int:
    return x


async def coroutine(x: int = 0) -> int:
    return x


def declare(function: Callable[..., Any] = plain, **options: Any) -> Any:
    """`function` as a task of a fresh app."""
    return App("fresh").task(**options)(function)


# names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My_Project", "how about 'my-project'?"),
        ("my--proj", "how about 'my-proj'?"),
        ("-proj", "how about 'proj'?"),
        ("proj-", "how about 'proj'?"),
        ("ab", "3 to 56"),
        ("", "3 to 56"),
        ("x" * 57, "3 to 56"),
        ("größe", "how about 'gr-e'?"),
        (None, "got None"),
        (3, "got 3"),
    ],
)
def test_a_bad_app_name_is_refused(name: Any, says: str) -> None:
    """With the rule, and a name that would do where one can be made of it."""
    with pytest.raises(DeclarationError) as caught:
        App(name)
    assert says in str(caught.value)
    assert "lower-case letters, digits and single hyphens" in str(caught.value)


@pytest.mark.parametrize("name", ["abc", "a1-b2-c3", "x" * 56, "007"])
def test_a_good_app_name_is_taken(name: str) -> None:
    """Up to the longest for which every derived name fits: 63 characters, `jobq-` before it and a suffix after it included."""
    assert App(name).name == name
    assert len(f"jobq-{name}") <= 63


@pytest.mark.parametrize(
    ("queue", "says"),
    [
        ("GPU", "how about 'gpu'?"),
        ("big_gpu", "how about 'big-gpu'?"),
        ("", "got ''"),
        (None, "got None"),
        ("failed", "is reserved"),
        ("q" * 51, "50 characters are left"),
    ],
)
def test_a_bad_queue_name_is_refused(queue: Any, says: str) -> None:
    """At the task, at a call's options, and where a worker is asked for; the app's name counts towards the length."""
    fresh = App("fresh")
    sayers: list[Callable[[], object]] = [
        lambda: fresh.task(queue=queue)(plain),
        lambda: fresh.task(plain).options(queue=queue),
        lambda: fresh.worker(queues=[queue]),
    ]
    for say in sayers:
        with pytest.raises(DeclarationError) as caught:
            say()
        assert says in str(caught.value)


def test_the_longest_queue_name_fits() -> None:
    """50 characters, after `fresh` and a hyphen."""
    assert declare(queue="q" * 50).declared.queue == "q" * 50


@pytest.mark.parametrize("name", ["", " x", "a b", "a\nb", "x" * 201, ".x", "ä", 3, "a/b"])
def test_a_bad_task_name_is_refused(name: Any) -> None:
    """It stands in messages, logs and command lines."""
    with pytest.raises(DeclarationError, match="A task's name is 1 to 200 letters, digits, dots, hyphens and underscores"):
        declare(name=name)


def test_a_task_is_named_after_its_function() -> None:
    """Module and qualified name, unless a name is given."""
    assert declare().name == "test_declaration.plain"
    assert declare(name="proj.square").name == "proj.square"


# options of tasks


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retires": 3}, "'retires' is not an option of a task. Did you mean 'retries'? There are: name, retries, retry_on"),
        ({"time_out": 3}, "Did you mean 'timeout'?"),
        ({"xyzzy": 3}, "'xyzzy' is not an option of a task. There are: name"),
        ({"countdown": 3}, "'countdown' is not an option of a task."),
        ({"key": "x"}, "'key' is not an option of a task."),
        ({"retries": -1}, "retries must be a whole number from 0 to 1,000,000; got -1"),
        ({"retries": 1.5}, "retries must be a whole number from 0 to 1,000,000; got 1.5"),
        ({"retries": True}, "retries must be a whole number from 0 to 1,000,000; got True"),
        ({"retries": None}, "retries must be a whole number from 0 to 1,000,000; got None"),
        ({"retries": "3"}, "got '3'"),
        ({"retries": 10**12}, "got 1000000000000"),
        ({"timeout": 1e12}, "timeout must be seconds, from 0 to 315,360,000 (ten years)"),
        ({"timeout": timedelta(days=9999)}, "ten years"),
        ({"max_deaths": 0}, "max_deaths must be a whole number from 1 to 1,000,000; got 0"),
        ({"retry_on": "ValueError"}, "retry_on must be an exception class or a tuple of them; got 'ValueError'"),
        ({"retry_on": ()}, "retry_on must be an exception class or a tuple of them; got ()"),
        ({"retry_on": (ValueError, int)}, "retry_on must be an exception class"),
        ({"retry_on": [ValueError]}, "retry_on must be an exception class"),
        ({"retry_on": ValueError()}, "retry_on must be an exception class"),
        ({"backoff": -1}, "backoff needs 0 <= first <= longest <="),
        ({"backoff": math.nan}, "backoff needs"),
        ({"backoff": math.inf}, "backoff needs"),
        ({"backoff": True}, "backoff must be seconds or a Backoff(first, factor, longest); got True"),
        ({"backoff": "1s"}, "backoff must be seconds or a Backoff"),
        ({"backoff": Backoff(first=10, longest=5)}, "backoff needs"),
        ({"backoff": Backoff(factor=0.5)}, "backoff needs"),
        ({"timeout": 0}, "timeout must be more than 0 seconds; leave it out, or give None, for no bound."),
        ({"timeout": -1}, "timeout must be seconds, from 0 to 315,360,000 (ten years), or a timedelta; got -1"),
        ({"timeout": "1h"}, "timeout must be seconds"),
        ({"timeout": math.inf}, "timeout must be seconds"),
        ({"timeout": math.nan}, "timeout must be seconds"),
        ({"timeout": True}, "timeout must be seconds"),
        ({"timeout": timedelta(0)}, "timeout must be more than 0 seconds"),
        ({"expires": 0}, "expires must be more than 0 seconds"),
        ({"expires": datetime(2030, 1, 1, tzinfo=UTC)}, "expires must be seconds"),
        ({"codec": "json"}, "codec must be one of 'cloudpickle', 'msgpack'; got 'json'"),
        ({"codec": None}, "codec must be one of"),
        ({"codec": []}, "codec must be one of"),
        ({"pool": "gpu"}, "pool must be one of 'process', 'async', 'thread'; got 'gpu'"),
        ({"pool": []}, "pool must be one of"),
        ({"pool": "async"}, "pool='async' does not fit a plain function: use 'process' or 'thread'."),
        ({"pool": "thread", "timeout": 5}, "timeout does not go with pool='thread': a thread cannot be stopped from outside."),
        ({"queue": "failed"}, "The queue name 'failed' is reserved"),
    ],
)
def test_a_bad_task_option_is_refused(options: dict[str, Any], says: str) -> None:
    """At declaration, by name, with what was given and what would be right."""
    with pytest.raises(DeclarationError) as caught:
        declare(**options)
    assert says in str(caught.value)


@pytest.mark.parametrize("pool", ["process", "thread"])
def test_an_async_task_runs_in_no_other_pool(pool: str) -> None:
    """A coroutine needs a loop."""
    with pytest.raises(DeclarationError, match=f"pool='{pool}' does not fit an async def: use 'async'"):
        declare(coroutine, pool=pool)


def test_options_have_the_defaults_that_are_documented() -> None:
    """One attempt, three deaths, no bounds."""
    declared = declare().declared

    assert (declared.policy.retries, declared.policy.max_deaths) == (0, 3)
    assert declared.policy.retry_on == (Exception,)
    assert (declared.timeout_seconds, declared.expires_seconds) == (None, None)
    assert (declared.queue, declared.codec.name, declared.pool) == ("default", "cloudpickle", Pool.PROCESS)
    assert declare(coroutine).declared.pool is Pool.ASYNC


def test_good_options_are_taken_in_every_form() -> None:
    """A class or a tuple, seconds or a timedelta, a number or a Backoff."""
    declared = declare(
        retries=3, retry_on=OSError, backoff=2, timeout=timedelta(minutes=1), expires=3600, pool="process", codec="msgpack"
    ).declared

    assert declared.policy.retry_on == (OSError,)
    assert declared.policy.backoff == Backoff(2.0, 1.0, 2.0)
    assert (declared.timeout_seconds, declared.expires_seconds) == (60.0, 3600.0)
    assert declare(backoff=Backoff(0.5, 3, 60)).declared.policy.backoff == Backoff(0.5, 3, 60)
    assert declare(retry_on=(OSError, Retry)).declared.policy.retry_on == (OSError, Retry)


# options of calls


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retires": 3}, "'retires' is not an option of a call. Did you mean 'retries'? There are: countdown, eta, expires"),
        ({"count_down": 3}, "Did you mean 'countdown'?"),
        ({"backoff": 3}, "'backoff' is not an option of a call."),
        ({"countdown": -1}, "countdown must be seconds, from 0 to 315,360,000 (ten years), or a timedelta; got -1"),
        ({"countdown": datetime(2030, 1, 1, tzinfo=UTC)}, "countdown must be seconds"),
        ({"countdown": None}, "countdown must be seconds"),
        ({"eta": datetime(2030, 1, 1)}, "eta must have a time zone, as in datetime.now(timezone.utc)"),  # noqa: DTZ001
        ({"eta": 10}, "eta must be a datetime with a time zone; got 10. For seconds from now, use countdown."),
        ({"eta": timedelta(seconds=10)}, "For seconds from now, use countdown."),
        (
            {"eta": datetime(2030, 1, 1, tzinfo=UTC), "countdown": 5},
            "Give countdown (seconds from now) or eta (a moment), not both.",
        ),
        ({"expires": datetime(2030, 1, 1)}, "expires must have a time zone"),  # noqa: DTZ001
        ({"expires": "tomorrow"}, "expires must be seconds"),
        ({"expires": 0}, "expires must be more than 0 seconds"),
        ({"retries": -1}, "retries must be a whole number from 0 to 1,000,000; got -1"),
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
        ({"queue": "GPU"}, "how about 'gpu'?"),
        ({"key": ""}, "key must be a text of 1 to 1024 characters; got ''"),
        ({"key": 3}, "key must be a text of 1 to 1024 characters; got 3"),
        ({"key": "x" * 1025}, "key must be a text of 1 to 1024 characters"),
    ],
)
def test_a_bad_call_option_is_refused(options: dict[str, Any], says: str) -> None:
    """When `options()` is called, long before anything is sent."""
    with pytest.raises(DeclarationError) as caught:
        app.task(plain).options(**options)
    assert says in str(caught.value)


def test_countdown_and_eta_exclude_each_other_across_copies() -> None:
    """Also where the one was said on an earlier copy."""
    later = app.task(plain).options(countdown=5)

    with pytest.raises(DeclarationError, match="not both"):
        later.options(eta=datetime(2030, 1, 1, tzinfo=UTC))


def test_a_thread_cannot_be_given_a_timeout_later() -> None:
    """Neither at declaration nor at a call."""
    threaded = declare(pool="thread")

    with pytest.raises(DeclarationError, match="timeout does not go with pool='thread'"):
        threaded.options(timeout=5)


def test_options_leave_the_task_as_it_was() -> None:
    """Each copy is its own."""
    task = app.task(plain)
    changed = task.options(retries=5).options(queue="gpu")

    assert changed is not task
    assert (changed(3), changed.name, changed.__doc__) == (3, task.name, task.__doc__)
    assert task.options().declared == task.declared == changed.declared


# functions


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [generator, async_generator])
def test_a_generator_is_no_task(function: Any) -> None:
    """Its values would have to wait for each other."""
    with pytest.raises(DeclarationError, match=r"A task returns one value; .* is a generator\. Return a list\."):
        app.task(function)


@pytest.mark.parametrize("thing", [3, "name", None])
def test_what_cannot_be_called_is_no_task(thing: Any) -> None:
    """As happens to `@app.task(3)` where `@app.task(retries=3)` was meant."""
    with pytest.raises(DeclarationError, match=r"A task is a function; got .* For options write @app.task\(retries=3\)\."):
        app.task(thing)


def test_a_task_is_not_declared_twice_over() -> None:
    """`@app.task` on what is a task already is a slip, not a wish."""
    fresh = App("fresh")

    with pytest.raises(DeclarationError, match="is a task already"):
        fresh.task(fresh.task(plain))
    with pytest.raises(DeclarationError, match="is a task already"):
        App("another").task(fresh.task(plain))


def test_a_class_or_a_callable_object_is_a_function_as_well() -> None:
    """`app.task` takes what can be called."""

    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    assert app.task(Adder())(1) == 2
    assert app.task(len)([1, 2]) == 2


# duplicates

MODULE = """
from the_app import app

@app.task
def step():
    return 1
"""


Load = Callable[[str], Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Writes this source to a module and imports it, or imports it again."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two edits within a second would look like none
    (tmp_path / "the_app.py").write_text('from ai4s.jobq import App\napp = App("duplicates")\n')

    def write_and_import(source: str) -> Any:
        (tmp_path / "duplicates.py").write_text(source)
        importlib.invalidate_caches()
        loaded = sys.modules.get("duplicates")
        return importlib.reload(loaded) if loaded else importlib.import_module("duplicates")

    yield write_and_import
    for name in ("duplicates", "the_app"):
        sys.modules.pop(name, None)


def test_two_tasks_of_one_name_are_refused(load: Load) -> None:
    """A worker finds tasks by name, so there can be only one; the message says where both are, and what to do."""
    with pytest.raises(DeclarationError) as caught:
        load(f"{MODULE}\n@app.task\ndef step():\n    return 2\n")
    message = str(caught.value)
    assert "The app 'duplicates' has a task 'duplicates.step' already" in message
    assert "duplicates.py:4" in message
    assert "duplicates.py:8" in message
    assert "@app.task(name='duplicates.step-2')" in message


def test_a_given_name_may_be_taken_only_once() -> None:
    """It makes no difference that the functions are different ones."""
    fresh = App("fresh")
    fresh.task(name="work")(plain)

    with pytest.raises(DeclarationError, match="has a task 'work' already"):
        fresh.task(name="work")(coroutine)


def test_the_same_function_imported_again_is_no_duplicate(load: Load) -> None:
    """As a notebook does it with `importlib.reload`, where the app lives on in a module of its own."""
    load(MODULE)
    again = load(MODULE)

    assert again.app.tasks["duplicates.step"] is again.step


def test_an_edited_function_may_be_imported_again(load: Load) -> None:
    """A reload after an edit further up in the file moves the function to another line; it is the same function still."""
    load(MODULE)
    again = load(f"# a comment, and another line\n\n{MODULE}")

    assert again.app.tasks["duplicates.step"] is again.step


def test_a_task_by_value_may_be_declared_again() -> None:
    """A notebook's cell is run twice; each call carries the function as it is then."""
    fresh = App("fresh")

    for factor in (1, 2):

        @fresh.task
        def scale(x: int, factor: int = factor) -> int:
            return x * factor

        assert scale(2) == 2 * factor
    assert fresh.tasks == {}


# apps


@pytest.mark.parametrize("ship", [["os"], [3], [None]])
def test_ship_takes_modules(ship: Any) -> None:
    """Not their names."""
    with pytest.raises(DeclarationError, match=r"ship takes modules, as in ship=\[mymodule\]"):
        App("shipping", ship=ship)


def test_ship_needs_source() -> None:
    """A built-in or compiled module cannot travel: it is bound to its machine."""
    with pytest.raises(DeclarationError, match="ship takes modules with Python source; sys has none"):
        App("shipping", ship=[sys])


def test_making_an_app_opens_nothing(tmp_path: Path) -> None:
    """Declaring and configuring neither touches nor checks the place: a module with tasks can be imported anywhere."""
    quiet = App("quiet", f"local://{tmp_path}/place")
    quiet.task(plain).options(countdown=5)
    quiet.handle("a" * 16 + "-" + "0" * 12)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call_id", ["", "nonsense", "../../etc", "aaaaaaaaaaaaaaaa-1", "A" * 16 + "-" + "0" * 12])
def test_what_is_no_id_has_no_handle(call_id: str) -> None:
    """`app.handle` says where to find one."""
    with pytest.raises(DeclarationError, match=r"is not the id of a call\. It is what handle\.id says: "):
        app.handle(call_id)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", None, True])
def test_a_worker_of_no_size_is_refused(size: Any) -> None:
    """It would take no call and say nothing."""
    with pytest.raises(DeclarationError, match="concurrency must be a whole number"):
        app.worker(concurrency=size)
    with pytest.raises(DeclarationError, match="async_concurrency must be a whole number"):
        app.worker(async_concurrency=size)


def test_what_is_no_place_is_found_at_first_use() -> None:
    """With the forms that a place can take."""
    lost = App("lost", "ftp://somewhere")

    with pytest.raises(ConfigurationError, match=r"This is no place that I know\. A place is azure://ACCOUNT"):
        lost.submit(plain)


def test_a_declaration_error_is_a_value_error() -> None:
    """It can be caught as either."""
    assert issubclass(DeclarationError, ValueError)
    assert issubclass(DeclarationError, JobQError)
