"""Log records that know their call, and the two formats they are written in."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
import logging.handlers
import pickle
import queue
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context

import pytest

from ai4s.jobq.call_records import NOTHING, CallRecord, Subject, about, call_records, subject_of
from ai4s.jobq.errors import ConfigurationError, LeaseLost
from ai4s.jobq.log_formats import MAX_EXTRA_CHARS, MAX_EXTRAS, MAX_MESSAGE_CHARS, checked_format, formatter
from ai4s.jobq.message import Call
from ai4s.jobq.running import RunningCall, Support, running, running_kept, set_running
from ai4s.jobq.transports.base import Delivery, Receipt
from ai4s.jobq.worker.lease import LeaseKeeper

PACKED = RunningCall("b1a2c3d4e5f60718.7", 1, 2, "proj.square", "default", "node-1-ab", "b1a2c3d4e5f60718.7")
SINGLE = RunningCall("cab12-3", 1, 1, "proj.single", "default", "node-1-ab", "cab12-3")


class Written:
    """A logger of its own, and what its handler writes."""

    def __init__(self) -> None:
        self.log = logging.getLogger("tests.call_records")
        self.log.propagate = False
        self.log.setLevel(logging.DEBUG)
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.log.handlers = [self.handler]

    def format(self, chosen: logging.Formatter | str) -> Written:
        self.handler.setFormatter(logging.Formatter(chosen) if isinstance(chosen, str) else chosen)
        return self

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def json(self) -> dict[str, object]:
        found = json.loads(self.stream.getvalue())
        assert isinstance(found, dict)
        return found


@pytest.fixture
def written() -> Iterator[Written]:
    with call_records("node-1-ab"):
        made = Written()
        yield made
        made.log.handlers = []


def test_records_of_any_logger_carry_the_call_that_runs(written: Written) -> None:
    """A plain `%(call_id)s` in a user's format shows the call; what is logged outside of one has empty fields."""
    written.format("%(call_id)s|%(batch)s|%(attempt)s|%(task)s|%(worker)s|%(message)s")
    with running(PACKED):
        written.log.info("inside")
    written.log.info("outside")
    assert written.lines == [
        "b1a2c3d4e5f60718.7|b1a2c3d4e5f60718|2|proj.square|node-1-ab|inside",
        "||0||node-1-ab|outside",
    ]


def test_names_of_fields_stay_free_for_users(written: Written) -> None:
    """`extra={"batch": 3}` is what a training loop says: it neither fails nor is it lost."""
    written.format("%(batch)s %(task)s %(call_id)s")
    with running(PACKED):
        written.log.info("a", extra={"batch": 3, "worker": "mine", "task": "eval"})
    assert written.lines == ["3 eval b1a2c3d4e5f60718.7"]


def test_filters_may_ask_for_fields(written: Written) -> None:
    """They see a record before it is formatted."""
    written.handler.addFilter(lambda record: bool(record.batch))
    with running(SINGLE):
        written.log.info("single")
    with running(PACKED):
        written.log.info("packed")
    assert written.lines == ["packed"]


def test_an_unknown_attribute_is_still_an_error() -> None:
    """`hasattr` and `getattr` with a default work as for every record."""
    with call_records("w"):
        record = logging.makeLogRecord({})
    assert isinstance(record, CallRecord)
    assert not hasattr(record, "colour")


def test_the_logger_of_a_call_has_the_same_fields(written: Written) -> None:
    """`jobq.current().logger` brings its fields by `extra`, which does not collide with ours."""
    written.format("%(call_id)s %(attempt)s %(task)s %(worker)s %(run)s")
    with running(SINGLE):
        logger = SINGLE.logger.logger
        logger.addHandler(written.handler)
        logger.setLevel(logging.INFO)
        SINGLE.logger.info("x")
        logger.removeHandler(written.handler)
    assert written.lines == ["cab12-3 1 proj.single node-1-ab 1"]


def test_each_thread_and_coroutine_tells_of_its_own_call(written: Written) -> None:
    """The context decides, and not what began last."""
    written.format("%(call_id)s %(message)s")

    async def coroutine(call: RunningCall, barrier: asyncio.Barrier) -> None:
        with running(call):
            await barrier.wait()
            written.log.info(call.id)

    async def both() -> None:
        barrier = asyncio.Barrier(2)
        await asyncio.gather(coroutine(PACKED, barrier), coroutine(SINGLE, barrier))

    asyncio.run(both())
    meeting = threading.Barrier(2)

    def on_thread(call: RunningCall) -> None:
        with running(call):
            meeting.wait()
            written.log.info(call.id)

    threads = [threading.Thread(target=on_thread, args=(call,)) for call in (PACKED, SINGLE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written.lines) == 4
    assert all(line.split()[0] == line.split()[1] for line in written.lines)


def test_what_runs_is_asked_only_if_somebody_writes(written: Written) -> None:
    """A pack makes its calls' records when asked: a hundred thousand calls that log below the level pay nothing for it."""
    asked = []

    class Now:
        support: Support | None = None

        @property
        def call(self) -> RunningCall:
            asked.append(1)
            return PACKED

    written.log.addFilter(lambda record: record.levelno > logging.DEBUG)
    written.format("%(call_id)s")
    with running_kept():
        set_running(Now())
        written.log.debug("dropped")
        assert asked == []
        written.log.info("written")
    assert written.lines == [PACKED.id]
    assert asked == [1]


def test_records_travel_to_other_processes(written: Written) -> None:
    """A queue handler copies and pickles records; the fields go along, and what runs stays."""
    handler = logging.handlers.QueueHandler(queue.Queue())
    written.log.handlers = [handler]
    with running(PACKED, Support(object(), threading.Event())):  # type: ignore[arg-type]  # what cannot be pickled
        written.log.warning("far", extra={"batch": 3})
    arrived = pickle.loads(pickle.dumps(handler.queue.get_nowait()))
    assert (arrived.getMessage(), arrived.call_id, arrived.batch, arrived.task) == ("far", PACKED.id, 3, "proj.square")
    assert subject_of(copy.copy(arrived)) == Subject(PACKED.id, "b1a2c3d4e5f60718", 2, "proj.square", "node-1-ab")


def test_a_factory_that_is_there_goes_on() -> None:
    """Somebody's own factory keeps its attributes; its own class too, and then the context says what a record is about."""

    class Own(logging.LogRecord):
        pass

    def colouring(*args: object, **kwargs: object) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)  # type: ignore[arg-type]
        record.colour = "red"
        return record

    before = logging.getLogRecordFactory()
    try:
        for factory, kind in ((colouring, CallRecord), (Own, Own)):
            logging.setLogRecordFactory(factory)
            with call_records("w"), running(PACKED):
                record = logging.getLogRecordFactory()("n", 20, "f", 1, "m", (), None)
                assert type(record) is kind
                assert subject_of(record).call_id == PACKED.id
                assert getattr(record, "colour", None) == ("red" if factory is colouring else None)
            assert logging.getLogRecordFactory() is factory
    finally:
        logging.setLogRecordFactory(before)


def test_a_supervisor_says_what_its_lines_are_about(written: Written, call: Callable[..., Call]) -> None:
    """`about` holds for a block and for tasks that begin in it; the worker is there in any case."""
    written.format("%(call_id)s|%(batch)s|%(task)s|%(worker)s")

    async def inner() -> None:
        written.log.info("from a task of its own")

    async def outer() -> None:
        with about(Subject(batch="b1", task="proj.square")):
            task = asyncio.create_task(inner())
        await task

    asyncio.run(outer())
    with about(call()):
        written.log.info("x")
    assert written.lines[0] == "|b1|proj.square|node-1-ab"
    assert written.lines[1].startswith(f"{call().id}||{call().task}|")


@pytest.fixture
def call() -> Callable[..., Call]:
    return lambda: Call("cab12-3", "proj.square", "default", b"", 0.0)


# formats


def test_json_has_one_object_a_line(written: Written) -> None:
    """Time, level, logger, message, what is known of the call, and what users added."""
    written.format(formatter("json"))
    with running(PACKED):
        written.log.warning("two\nlines \x1b[31m é", extra={"loss": 0.5, "batch": 3, "at": NOTHING, "nan": float("nan")})
    (line,) = written.lines
    assert line.isascii()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    at = found["extra"].pop("at")
    assert at.startswith("Subject(")
    assert found == {
        "level": "WARNING",
        "logger": "tests.call_records",
        "message": "two\nlines \x1b[31m é",
        "call_id": PACKED.id,
        "batch": "b1a2c3d4e5f60718",
        "attempt": 2,
        "task": "proj.square",
        "worker": "node-1-ab",
        "extra": {"loss": 0.5, "batch": 3, "nan": "nan"},
    }


def test_json_has_the_traceback(written: Written) -> None:
    """Of an exception, its end, where it says what was raised."""
    written.format(formatter("json"))
    try:
        raise ValueError("x" * 30_000 + "the end")
    except ValueError:
        written.log.exception("it failed")
    said = written.json["exception"]
    assert isinstance(said, str)
    assert said.endswith("the end")
    assert len(said) <= 16_000


class Unwilling:
    """Nothing can be said of it."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("message", "args"),
    [("%d", ("x",)), ("%s", (Unwilling(),)), (Unwilling(), ()), ("\ud800", ()), ("%(x)s", ({"y": 1},)), ("%s %s", (1,))],
)
def test_no_record_is_too_bad_to_be_written(message: object, args: tuple[object, ...]) -> None:
    """What does not fit its format, or cannot be shown, is a line of JSON all the same."""
    record = logging.makeLogRecord({"msg": message, "args": args, "bad": Unwilling(), "lone": "\ud800", "levelname": "INFO"})
    assert json.loads(formatter("json").format(record))["level"] == "INFO"


def test_json_is_bounded_and_keeps_no_secrets(written: Written) -> None:
    """However much is said, a line stays readable, and an account's key is not in it."""
    written.format(formatter("json"))
    extra = {f"x{number}": "y" * 10_000 for number in range(100)}
    written.log.info("AccountKey=c2VjcmV0c2VjcmV0; %s", "z" * 100_000, extra=extra)
    found = written.json
    assert len(str(found["message"])) <= MAX_MESSAGE_CHARS
    assert "c2VjcmV0" not in written.stream.getvalue()
    assert isinstance(found["extra"], dict)
    assert len(found["extra"]) == MAX_EXTRAS
    assert max(map(len, found["extra"].values())) <= MAX_EXTRA_CHARS


def test_json_says_the_call_once(written: Written) -> None:
    """`current().logger` puts it before its text, for formats that have no fields."""
    written.format(formatter("json"))
    logger = SINGLE.logger.logger
    logger.addHandler(written.handler)
    logger.setLevel(logging.INFO)
    with running(SINGLE):
        SINGLE.logger.info("hello")
    logger.removeHandler(written.handler)
    assert written.json["message"] == "hello"
    assert written.json["extra"] == {"run": 1}


def test_text_of_tasks_names_the_call_once(written: Written) -> None:
    """Lines of other loggers get what `current().logger` puts before its own."""
    written.format(formatter("text", of_tasks=True))
    with running(PACKED):
        written.log.info("plain")
        written.log.info("[%s attempt 2] named", PACKED.id)
    written.log.info("outside")
    texts = [line.partition("INFO    ")[2] for line in written.lines]
    assert texts == [f"[{PACKED.id} attempt 2] plain", f"[{PACKED.id} attempt 2] named", "outside"]


def test_an_unknown_format_is_refused() -> None:
    """With the formats that there are."""
    assert checked_format("json") == "json"
    with pytest.raises(ConfigurationError, match="text, json; got 'xml'"):
        checked_format("xml")


def test_a_lease_that_is_lost_says_of_which_call(written: Written, call: Callable[..., Call]) -> None:
    """Its renewal is no part of the call's own task, and yet in its context."""
    written.format("%(call_id)s %(levelname)s")
    log = logging.getLogger("ai4s.jobq.worker")
    log.addHandler(written.handler)

    async def lose() -> None:
        keeper = LeaseKeeper(lambda: 40.0)
        delivery = Delivery(Receipt("m", "r"), "", 1, 0.0, 0.0, 0.0)
        async with keeper.hold(None, delivery) as lease:  # type: ignore[arg-type]  # the queue is not asked
            with about(call()):
                lease.context = copy_context()
            renewed = asyncio.Event()

            async def refresh() -> None:
                renewed.set()
                raise LeaseLost("gone")

            lease.refresh = refresh
            keeping = asyncio.create_task(keeper.keep())
            await renewed.wait()
            await asyncio.sleep(0)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    try:
        asyncio.run(lose())
    finally:
        log.removeHandler(written.handler)
    assert written.lines == ["cab12-3 WARNING"]
