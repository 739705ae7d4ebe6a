"""What a child hears of what its code prints and logs: whose it is, that nothing is lost or shown less, and that it is bounded.

Next: `test_call_logs.py` for the supervisor's side.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai4s.jobq import App, current
from ai4s.jobq.log_lines import parsed, plain, split
from ai4s.jobq.message import Call, Pool
from ai4s.jobq.packing import packed
from ai4s.jobq.running import RunningCall, running, say
from ai4s.jobq.worker import streams, voices
from ai4s.jobq.worker.child import Channel
from ai4s.jobq.worker.chunks import ChunkRun
from ai4s.jobq.worker.execution import Desk, Execution, Functions
from ai4s.jobq.worker.jobs import Answer, Chunk, Job, Said
from ai4s.jobq.worker.journal import Journal
from ai4s.jobq.worker.voices import CallVoice, Voices

app = App("voices")
log = logging.getLogger("somelib")


CALL = RunningCall("a", 1, 1, "proj.step", "default", "w", "a")


class Line:
    """The way to the supervisor; `open` says whether it takes anything now."""

    def __init__(self) -> None:
        self.sent: list[Said] = []
        self.open = True

    def offer(self, said: Said, patience_seconds: float) -> bool:
        if self.open:
            self.send(said)
        return self.open

    def send(self, said: Said) -> None:
        self.sent.append(said)

    def text(self, number: int = 1, place: int = 0) -> str:
        return plain("".join(said.text for said in self.sent if (said.number, said.place) == (number, place)))


LINE, NUMBERS = Line(), itertools.count()
VOICES = Voices(LINE)
"""For a great many calls: all that speak in a process share a thread."""


class Ear:
    """Standard output and error that are heard, for the length of a test."""

    def __init__(self) -> None:
        self.line = Line()
        self.voices = Voices(self.line)
        self.out, self.err = io.BytesIO(), io.BytesIO()
        self.stdout = self.stderr = sys.stdout

    def listen(self, *, is_configured: bool = False) -> None:
        """As in a child, once its modules are loaded."""
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (io.TextIOWrapper(raw, "utf-8", line_buffering=True) for raw in (self.out, self.err))
        try:
            streams.hear(self.voices, is_configured=is_configured)
            self.stdout, self.stderr = sys.stdout, sys.stderr
        finally:
            sys.stdout, sys.stderr = before

    @contextmanager
    def printing(self) -> Iterator[None]:
        """What is printed within the block goes where it is heard: pytest puts streams of its own in place for each test."""
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self.stdout, self.stderr
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before

    @contextmanager
    def running(self, voice: CallVoice | None, call: str = "a") -> Iterator[None]:
        """A call runs, for the length of the block."""
        with self.printing(), running(RunningCall(call, 1, 1, "proj.step", "default", "w", call), None, voice):
            yield


@pytest.fixture
def ear() -> Iterator[Ear]:
    """Streams and the root logger as in a child."""
    ear, root = Ear(), logging.getLogger()
    before, level = list(root.handlers), root.level
    quiet = {name: logging.getLogger(name).level for name in streams.QUIET_LIBRARIES}
    root.handlers = []
    try:
        ear.listen()
        yield ear
    finally:
        root.handlers = before
        root.setLevel(level)
        for name, its_level in quiet.items():
            logging.getLogger(name).setLevel(its_level)


def test_what_is_printed_and_logged_is_the_running_calls(ear: Ear) -> None:
    """Line by line, of which stream, and where it goes anyway."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        print("to stdout", 1)
        print("to stderr", file=sys.stderr)
        log.info("logged %s", "it")
        log.debug("not from so low a level")
        sys.stdout.buffer.write(b"bytes\n")
        say("o", "said")
    with ear.printing():
        print("of nobody")
    voice.end()
    found = [parsed(line) for line in split("".join(said.text for said in ear.line.sent))]
    assert [(line.stream, line.text) for line in found] == [
        ("stdout", "to stdout 1"),
        ("stderr", "to stderr"),
        ("log", "INFO somelib: logged it"),
        ("stdout", "bytes"),
        ("stdout", "said"),
    ]
    assert ear.out.getvalue() == b"to stdout 1\nbytes\nof nobody\n"
    assert ear.err.getvalue() == b"to stderr\n"


def test_calls_on_threads_and_coroutines_are_told_apart(ear: Ear) -> None:
    """Each writes parts of lines at the same time."""
    all_voices = [ear.voices.of(number) for number in range(6)]
    started = threading.Barrier(3)

    async def speak(number: int) -> None:
        with running(CALL, None, all_voices[number]):
            for part in range(50):
                print(number, end=" ")
                await asyncio.sleep(0)
                print(part)

    def on_thread(number: int) -> None:
        started.wait()
        asyncio.run(speak(number))

    async def on_one_loop() -> None:
        await asyncio.gather(*map(speak, (3, 4, 5)))

    with ear.printing(), ThreadPoolExecutor(3) as threads:
        list(threads.map(on_thread, (0, 1, 2)))
        asyncio.run(on_one_loop())
    for number, voice in enumerate(all_voices):
        voice.end()
        assert ear.line.text(number) == "\n".join(f"{number} {part}" for part in range(50))


def test_threads_that_wait_for_room_side_by_side_do_not_fail() -> None:
    """While the supervisor takes nothing, several calls of a process may wait for it at the same moment."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(2) as threads:
        channel, together = Channel(ours), threading.Barrier(2)
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))

        def offer(number: int) -> bool:
            together.wait()
            return channel.offer(Said(number, 0, "x"), 0.2)

        assert list(threads.map(offer, range(2))) == [False, False]


def test_a_thread_of_the_tasks_own_speaks_for_the_only_call_there_is(ear: Ear) -> None:
    """Where several share the process it is nobody's, unless it was given the context."""
    voice = ear.voices.of(1)
    ear.voices.now_runs(lambda: voice)
    shared = Voices(ear.line, shares_process=True)
    shared.now_runs(lambda: voice)
    assert shared.nobodys() is None
    with ear.running(voice):
        threads = [
            threading.Thread(target=print, args=("without context",)),
            threading.Thread(target=copy_context().run, args=(print, "with it")),
        ]
    with ear.printing():
        for thread in threads:
            thread.start()
            thread.join()
    voice.end()
    assert ear.line.text() == "without context\nwith it"


def test_a_record_that_a_handler_shows_is_not_told_twice(ear: Ear) -> None:
    """Then it stands there as that handler writes it; of other loggers once as well."""
    voice, handler = ear.voices.of(1), logging.StreamHandler(ear.stderr)
    handler.setFormatter(logging.Formatter("MINE %(message)s"))
    log.addHandler(handler)
    try:
        with ear.running(voice):
            log.warning("one")
            logging.getLogger("otherlib").warning("two")
            log.propagate = False
            log.warning("three")
    finally:
        log.propagate = True
        log.removeHandler(handler)
    voice.end()
    assert ear.line.text() == "MINE one\nWARNING otherlib: two\nMINE three"


def test_a_library_that_keeps_its_records_to_itself_is_heard(ear: Ear) -> None:
    """Its handler was made when it was imported, with the stream that was there then."""
    own, other = logging.getLogger("ownlib"), Ear()
    real = io.TextIOWrapper(other.err, "utf-8", line_buffering=True)
    handler = logging.StreamHandler(real)
    own.addHandler(handler)
    own.propagate = False
    streams.move_handlers({id(real): ear.stderr})
    voice = ear.voices.of(1)
    try:
        with ear.running(voice):
            own.warning("heard")
    finally:
        own.removeHandler(handler)
        own.propagate = True
    voice.end()
    assert ear.line.text() == "heard"


def test_a_handler_that_prints_ends(ear: Ear) -> None:
    """What it prints is told once more, and no more."""

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("printed:", record.getMessage())

    voice, handler = ear.voices.of(1), Printing()
    log.addHandler(handler)
    try:
        with ear.running(voice):
            log.warning("one")
    finally:
        log.removeHandler(handler)
    voice.end()
    assert ear.line.text() == "printed: one\nWARNING somelib: one"


def test_a_record_that_cannot_be_formatted_is_as_harmless_as_elsewhere(ear: Ear) -> None:
    """The task goes on."""
    voice = ear.voices.of(1)
    ours = next(each for each in logging.getLogger().handlers if type(each).__module__ == streams.__name__)
    with ear.running(voice):
        ours.handle(logging.LogRecord("somelib", logging.WARNING, "here.py", 1, "%d", ("no number",), None))
        print("went on")
    voice.end()
    assert ear.line.text().endswith("went on")


def test_streams_that_are_heard_have_the_attributes_of_the_usual_ones() -> None:
    """Programs ask a stream for its name, its mode, its descriptor, and for the buffer below it."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as real, open(os.devnull, "w") as errors:  # noqa: PTH123  # as Python opens its own
        sys.stdout, sys.stderr = real, errors
        try:
            streams.hear(Voices(Line()), is_configured=True)
            heard = sys.stdout
        finally:
            sys.stdout, sys.stderr = before
            logging.getLogger().removeHandler(logging.getLogger().handlers[-1])
        assert (heard.name, heard.mode, heard.fileno(), heard.isatty()) == (os.devnull, "w", real.fileno(), False)
        assert (heard.buffer.name, heard.buffer.mode, heard.buffer.raw) == (os.devnull, "wb", real.buffer.raw)  # type: ignore[attr-defined]
        assert f"name='{os.devnull}' mode='w'" in repr(heard)


def test_a_traceback_is_told_line_by_line(ear: Ear) -> None:
    """After the message that it belongs to."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("it failed")
    voice.end()
    told = ear.line.text().split("\n")
    assert told[0] == "ERROR somelib: it failed"
    assert told[1] == "Traceback (most recent call last):"
    assert told[-1] == "ValueError: broken"


def test_what_the_task_logs_by_its_own_logger_is_not_introduced(ear: Ear) -> None:
    """The call's id before it would say nothing in that call's log."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        current().logger.info("step 1")
        current().logger.warning("step 2")
    voice.end()
    assert ear.line.text() == "step 1\nWARNING step 2"


def test_a_progress_bar_is_its_last_state(ear: Ear) -> None:
    """As on a terminal."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        for percent in range(101):
            print(f"\r{percent}%", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    voice.end()
    assert ear.line.text() == "100%"


def test_bytes_that_are_no_text_and_lines_without_end_are_lines(ear: Ear) -> None:
    """What is no UTF-8 is replaced, and what is too long comes in pieces."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        sys.stdout.buffer.write(b"\xff\x00\xfe\n")
        print("x" * 20_000)
        print("unfinished", end="")
    voice.end()
    told = ear.line.text().split("\n")
    assert told[0] == "\ufffd\x00\ufffd"
    assert "".join(told[1:-1]) == "x" * 20_000
    assert max(map(len, told)) <= 8192
    assert told[-1] == "unfinished"


def test_keys_of_the_storage_are_taken_out(ear: Ear) -> None:
    """Who may read a log need not have a right to the account."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        print("DefaultEndpointsProtocol=https;AccountKey=c2VjcmV0IGtleQ==;EndpointSuffix=x")
        print("and more")
    voice.end()
    assert ear.line.text() == "DefaultEndpointsProtocol=https;AccountKey=***;EndpointSuffix=x\nand more"


def test_a_key_is_taken_out_wherever_its_line_is_cut(ear: Ear) -> None:
    """Its name may have been printed, and passed on for cutting, long before its value."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        print("AccountKey=", end="")
        voice.pass_on()
        print("c2VjcmV0IGtleQ==")
    voice.end()
    assert ear.line.text() == "AccountKey=***"


@given(st.lists(st.binary(max_size=40).map(lambda data: bytes(b"ab \n\t\xff\xc3\xa4\n"[byte % 9] for byte in data)), max_size=12))
def test_lines_are_the_same_however_they_came(parts: list[bytes]) -> None:
    """Letter by letter or many at once, and whenever they are cut."""
    number = next(NUMBERS)
    voice = VOICES.of(number)
    for place, part in enumerate(parts):
        voice.write("o", part)
        if place % 3 == 0:
            voice.pass_on()
    voice.end()
    whole = b"".join(parts).decode("utf-8", "replace")
    told = [text.rstrip() for text in (whole.removesuffix("\n") if whole.endswith("\n") else whole).split("\n")]
    assert LINE.text(number) == ("\n".join(told) if whole else "")


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("tail_only", [False, True])
def test_a_huge_text_at_once_takes_no_time(ear: Ear, end: str, *, tail_only: bool) -> None:
    """Megabytes without a line's end, or a million short lines; cut piece by piece, and of what is not kept only the end."""
    voice = ear.voices.of(1, tail_only=tail_only)
    with ear.running(voice):
        print(f"x{end}" * 3_000_000)
        print("last")
    voice.end()
    assert ear.line.text().endswith("last")
    assert max(len(said.text) for said in ear.line.sent) <= voices.FRAME_CHARS + 9000


def test_first_words_are_passed_on_at_once(ear: Ear) -> None:
    """So that they are there should the process die of what comes next."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        print("about to crash")
    assert ear.line.text() == "about to crash"
    voice.end()


def test_who_says_much_is_passed_on_in_large_frames(ear: Ear) -> None:
    """A frame for each line would cost more than the task."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        for number in range(20_000):
            print("line", number)
    voice.end()
    assert ear.line.text() == "\n".join(f"line {number}" for number in range(20_000))
    assert len(ear.line.sent) < 200
    assert max(len(said.text) for said in ear.line.sent) <= voices.FRAME_CHARS


def test_memory_is_bounded_while_nobody_takes_it_and_the_gap_is_told(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is left out."""
    monkeypatch.setattr(voices, "MAX_READY_CHARS", 50_000)
    monkeypatch.setattr(voices, "MAX_RAW_BYTES", 20_000)
    monkeypatch.setattr(voices, "PATIENCE_SECONDS", 0)
    voice = ear.voices.of(1)
    ear.line.open = False
    with ear.running(voice):
        for number in range(20_000):
            print("line", number)
        assert voice._ready_chars + voice._raw_bytes < 100_000
    voice.end()
    first, *_, last = ear.line.text().split("\n")
    assert first.endswith("lines are left out here, as they came too fast.")
    assert last == "line 19999"


def test_beyond_the_limit_only_the_end_is_passed_on(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked, so that the supervisor keeps it for the outcome alone."""
    monkeypatch.setattr(voices, "MAX_KEPT_CHARS", 20_000)
    monkeypatch.setattr(voices, "MAX_RAW_BYTES", 10_000)
    voice = ear.voices.of(1)
    with ear.running(voice):
        for number in range(20_000):
            print("line", number)
    voice.end()
    assert sum(len(said.text) for said in ear.line.sent if not said.tail_only) < 60_000
    assert ear.line.sent[-1].tail_only
    assert ear.line.sent[-1].text.endswith("line 19999\n")


def test_a_signal_handler_may_print_at_any_moment(ear: Ear) -> None:
    """Also while what was said before is just being passed on."""
    voice = ear.voices.of(1)
    offer, before = ear.line.offer, signal.getsignal(signal.SIGUSR1)

    def interrupted(said: Said, patience_seconds: float) -> bool:
        if len(ear.line.sent) == 1:
            signal.raise_signal(signal.SIGUSR1)
        return offer(said, patience_seconds)

    ear.line.offer = interrupted  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, lambda *_: print("in the handler"))
    try:
        with ear.running(voice):
            for number in range(4):
                print("line", number)
    finally:
        signal.signal(signal.SIGUSR1, before)
    voice.end()
    assert sorted(ear.line.text().split("\n")) == ["in the handler", "line 0", "line 1", "line 2", "line 3"]


def test_a_fork_of_the_process_has_no_voice(ear: Ear) -> None:
    """It prints as ever, and its supervisor hears only what the process that runs the task says."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        print("parent")
        process = os.fork()
        if process == 0:
            ear.line.sent.clear()
            print("child")
            voice.end()
            os._exit(len(ear.line.sent))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    voice.end()
    assert ear.line.text() == "parent"


def test_what_is_said_after_the_end_is_nobodys(ear: Ear) -> None:
    """A thread may outlive the call that started it."""
    voice = ear.voices.of(1)
    with ear.running(voice):
        print("in time")
        context = copy_context()
    voice.end()
    with ear.printing():
        context.run(print, "late")
    assert ear.line.text() == "in time"


# calls and chunks


@app.task(name="talk")
def talk(number: int) -> int:
    print("first", number)
    if number % 3 == 0:
        raise ValueError(number)
    return number


@app.task(name="silent")
def silent(number: int) -> int:
    if number == 2:
        raise ValueError(number)
    if number == 1:
        print("only this one speaks")
    return number


@app.task(name="talk_all", vector=4)
def talk_all(numbers: list[int]) -> list[Any]:
    print("slice", *numbers)
    return [ValueError(number) if number > 1 else number for number in numbers]


Run = Callable[..., list[Any]]


@pytest.fixture
def execution(ear: Ear) -> Execution:
    def unasked(numbered: object) -> Answer:
        raise AssertionError

    return Execution(Functions(app.tasks), Desk("w", unasked, voices=ear.voices))


def chunk_of(task: Any, count: int, folder: Any, **options: Any) -> Chunk:
    from ai4s.jobq.codec import codec_named
    from ai4s.jobq.packing import Layout, Piece

    data = codec_named("cloudpickle").dumps(list(range(count))).data
    call = replace(Call("nightly.0", task.name, "default", b"", 0.0), **options)
    piece = Piece(Layout.SINGLE, data, places=packed(range(count)))
    return Chunk(
        1, call, 10, packed(range(5, 5 + count)), packed([1] * count), (piece,),
        str(folder / "journal"), str(folder / "value"), str(folder / "checkpoint"), vector=task.declared.vector,
    )  # fmt: skip


def failures(chunk: Chunk) -> list[str]:
    from pathlib import Path

    reports = [frame.report for frame in Journal(Path(chunk.journal_path)).read() if frame.mark > 1]
    return [plain(report.failure.tail) for report in reports if report.failure is not None]


def test_a_failure_of_a_batch_has_its_last_lines(ear: Ear, execution: Execution, tmp_path: Any) -> None:
    """And no other's; what the others say is kept nowhere."""
    chunk = chunk_of(talk, 7, tmp_path)
    with ear.printing():
        ChunkRun(chunk, execution).run()
    assert failures(chunk) == ["first 0", "first 3", "first 6"]
    assert all(said.tail_only for said in ear.line.sent)


def test_who_says_nothing_has_no_lines_of_another(ear: Ear, execution: Execution, tmp_path: Any) -> None:
    """A call that fails in silence after one that spoke."""
    chunk = chunk_of(silent, 3, tmp_path)
    with ear.printing():
        ChunkRun(chunk, execution).run()
    assert failures(chunk) == [""]


def test_calls_of_a_batch_that_asks_for_logs_have_one_each(ear: Ear, execution: Execution, tmp_path: Any) -> None:
    """By their place in the pack, all of it before the chunk's report."""
    chunk = chunk_of(talk, 4, tmp_path, logs=True)
    with ear.printing():
        ChunkRun(chunk, execution).run()
    assert [ear.line.text(place=place) for place in range(5, 9)] == ["first 0", "first 1", "first 2", "first 3"]
    assert failures(chunk) == ["first 0", "first 3"]


def test_of_a_slice_the_first_call_speaks_for_all(ear: Ear, execution: Execution, tmp_path: Any) -> None:
    """They run as one."""
    chunk = chunk_of(talk_all, 6, tmp_path, logs=True)
    with ear.printing():
        ChunkRun(chunk, execution).run()
    assert ear.line.text(place=5) == "slice 0 1 2 3"
    assert ear.line.text(place=9) == "slice 4 5"
    assert failures(chunk) == ["slice 0 1 2 3", "", "slice 4 5", ""]


@pytest.mark.parametrize("pool", [Pool.PROCESS, Pool.ASYNC])
def test_logs_false_keeps_nothing(ear: Ear, execution: Execution, tmp_path: Any, pool: Pool) -> None:
    """Not even the last lines."""
    from ai4s.jobq.codec import codec_named

    arguments = codec_named("cloudpickle").dumps(((3,), {})).data
    call = Call("a", "talk", "default", arguments, 0.0, logs=False)
    with ear.printing():
        report = execution.run(Job(1, call, str(tmp_path / "value"), str(tmp_path / "checkpoint")))
    assert report.failure is not None
    chunk = chunk_of(talk, 4, tmp_path, logs=False)
    with ear.printing():
        ChunkRun(chunk, execution).run()
    assert failures(chunk) == ["", ""]
    assert ear.line.sent == []
