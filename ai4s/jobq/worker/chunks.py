"""Running the calls of a chunk, one after the other, in a child. Each outcome is written down before the next call begins.

What has not begun can be taken back at any moment, by another thread: both ends of a deque are safe to take from. A call
costs little beside its own work here, since there may be a hundred thousand of them in a second: what a task may ask for is
made when it asks.

Next: `journal.py` for what is written, `dealing.py` for who reads it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..buffers import mapped
from ..codec import Codec, codec_of
from ..errors import NotSerializable, Unfit
from ..failures import failure_of
from ..layout import packed_call_id
from ..message import Spill
from ..packing import Layout, Piece, numbers
from ..running import RunningCall, Support, set_running
from ..telemetry.context import attached
from ..wire import MAX_INLINE_VALUE
from .execution import Execution, Found, not_run
from .jobs import Chunk, Kind, Report
from .journal import Mark, report_frame, slice_frame, to_frame
from .voices import CallVoice, ChunkVoices

LEAST_DESCRIPTOR = 200
"""Above those that tasks use, mostly, and below every limit."""

JOURNAL_CLOSED = 71
"""Exit code of a child whose task has closed the journal."""

PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""Values whose pickle needs none of cloudpickle's care."""

Arguments = tuple[Any, ...] | Callable[[], tuple[Any, ...]]
"""A call's arguments, or what decodes them."""

Keywords = Callable[[], dict[str, Any]] | None
Write = Callable[[bytes | memoryview], int | None]


class _Now(NamedTuple):
    """The call at this place of the chunk, should its task ask."""

    run: ChunkRun
    place: int

    @property
    def call(self) -> RunningCall:
        return self.run.running_call(self.place)

    @property
    def support(self) -> Support | None:
        return self.run.support(self.place)

    @property
    def voice(self) -> CallVoice | None:
        return self.run.voices.of(self.place)


class _NotLoadedError(Exception):
    """The arguments of a slice, or those that all share, cannot be had: none of its calls can run."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


class ChunkRun:
    """A chunk on its way through this process."""

    def __init__(self, chunk: Chunk, execution: Execution) -> None:
        self.chunk, self._execution = chunk, execution
        self._places, self._attempts = numbers(chunk.places), numbers(chunk.attempts)
        self._left: deque[int] = deque(range(len(self._places)))
        self._process = os.getpid()
        self.voices = ChunkVoices(execution.voices, chunk, self._places)

    def take_back(self) -> int:
        """How many calls, from the end, have not begun and never will from now on. From any thread."""
        count = 0
        while self._left:
            try:
                self._left.pop()
            except IndexError:
                break
            count += 1
        return count

    def run(self) -> Report:
        """Run what is left, on this thread."""
        try:
            with self._journal() as journal, attached(self.chunk.call.trace), self.voices:
                if (found := self._find(journal.write)) is not None:
                    (self._vectors if self.chunk.vector else self._calls)(found, journal.write)
        except OSError as exc:  # of the journal; what the task raises is written down in it
            return self._hindered(exc)
        return Report(self.chunk.number, Kind.DONE)

    def _journal(self) -> FileIO:
        """The journal, under a number that no task takes for one of its own by mistake."""
        with Path(self.chunk.journal_path).open("ab", buffering=0) as opened:
            return FileIO(fcntl.fcntl(opened.fileno(), fcntl.F_DUPFD_CLOEXEC, LEAST_DESCRIPTOR), "ab")

    async def arun(self) -> Report:
        """Run what is left, as a coroutine."""
        try:
            with self._journal() as journal, attached(self.chunk.call.trace), self.voices:
                if (found := self._find(journal.write)) is not None:
                    await self._acalls(found, journal.write)
        except OSError as exc:
            return self._hindered(exc)
        return Report(self.chunk.number, Kind.DONE)

    def _hindered(self, exc: OSError) -> Report:
        if exc.errno == errno.EBADF:
            os._exit(JOURNAL_CLOSED)  # by the task, which closed what was not its own: its death, and no fault of this machine's
        self._left.clear()
        return Report(self.chunk.number, Kind.HINDERED, failure=failure_of(exc, codec_of(self.chunk.call.codec)))

    def running_call(self, place: int) -> RunningCall:
        """What a task hears of the call at this place."""
        common = self.chunk.call
        call = self._execution.current(replace(common, id=self._call_id(place), arguments=b""))
        return replace(call, attempt=self._attempts[place])

    def support(self, place: int) -> Support | None:
        """What is held ready for that call."""
        return self._execution.support(self.chunk, self._execution.find(self.chunk), self._places[place])

    def _call_id(self, place: int) -> str:
        return packed_call_id(self.chunk.call.id.partition(".")[0], self.chunk.first + self._places[place])

    def _find(self, write: Write) -> Found | None:
        """The function; None if it cannot be had, which is then written down for each call."""
        try:
            return self._execution.find(self.chunk)
        except (NotSerializable, Unfit) as exc:
            self._fail_all(not_run(self.chunk, exc), write)
            return None

    def _fail_all(self, report: Report, write: Write) -> None:
        for _ in self._take(len(self._places)):
            _write(write, report_frame(report))

    # one by one

    def _calls(self, found: Found, write: Write) -> None:
        try:
            arguments, keywords = self._loaded(found)
        except _NotLoadedError as exc:
            self._fail_all(self._reported(found, exc.reason), write)
            return
        # A hundred thousand times a second, perhaps: what is looked up here is looked up once.
        left, function, clock, execution, voices = self._left, found.function, time.monotonic, self._execution, self.voices
        while left:
            try:
                place = left.popleft()
            except IndexError:  # taken back between the two
                break
            set_running(_Now(self, place))
            voices.at = place
            notices, row, began = execution.unanswered_notices, arguments[place], clock()
            try:
                value = function(*(row if isinstance(row, tuple) else row()), **(keywords() if keywords else {}))
            except BaseException as exc:  # noqa: BLE001  # user code may raise anything, SystemExit included
                frame = self._raised(found, exc, notices, clock() - began)
            else:
                frame = self._returned(found.codec, place, value, clock() - began)
            self._check_process()
            _write(write, frame)
        set_running(None)

    async def _acalls(self, found: Found, write: Write) -> None:
        try:
            arguments, keywords = self._loaded(found)
        except _NotLoadedError as exc:
            self._fail_all(self._reported(found, exc.reason), write)
            return
        while self._left:
            try:
                place = self._left.popleft()
            except IndexError:  # taken back between the two
                break
            set_running(_Now(self, place))
            self.voices.at = place
            notices = self._execution.unanswered_notices
            began = time.monotonic()
            try:
                row = arguments[place]
                value = await found.function(*(row if isinstance(row, tuple) else row()), **(keywords() if keywords else {}))
            except BaseException as exc:  # noqa: BLE001  # user code may raise anything
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    break  # stopped by the supervisor, which says what that counts as
                _write(write, self._raised(found, exc, notices, time.monotonic() - began))
            else:
                _write(write, self._returned(found.codec, place, value, time.monotonic() - began))

    def _raised(self, found: Found, exc: BaseException, notices: int, seconds: float) -> bytes:
        return report_frame(self._reported(found, exc, notices, seconds))

    def _reported(self, found: Found, exc: BaseException, notices: int | None = None, seconds: float = 0.0) -> Report:
        told = notices is not None and self._execution.told_since(notices)
        return self.voices.with_tail(replace(self._execution.raised(self.chunk, found, exc, told=told), seconds=seconds))

    def _returned(self, codec: Codec, place: int, value: object, seconds: float) -> bytes:
        if type(value) in PLAIN and codec.allows_pickle:
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
            if len(data) <= MAX_INLINE_VALUE:
                return to_frame(Mark.VALUE, seconds, data)
        try:
            encoded = codec.dumps(value)
        except NotSerializable as exc:
            told = NotSerializable(f"What {self.chunk.call.task} returned cannot travel. {exc}")
            failure = failure_of(told.with_traceback(exc.__traceback__), codec)
            return report_frame(Report(self.chunk.number, Kind.RAISED, failure=failure, seconds=seconds))
        if encoded.size <= MAX_INLINE_VALUE:
            return to_frame(Mark.VALUE, seconds, encoded.data)
        try:
            with Path(f"{self.chunk.value_path}.{self._places[place]}").open("wb") as file:
                file.writelines(encoded.parts.pieces)
        except OSError as exc:
            failure = failure_of(exc, codec)
            return report_frame(Report(self.chunk.number, Kind.HINDERED, failure=failure, seconds=seconds))
        return to_frame(Mark.FILE, seconds, b"")

    # all at once

    def _vectors(self, found: Found, write: Write) -> None:
        """One call of the function for each slice; if it raises, one frame says so, for whoever finds out which item did it."""
        try:
            arguments, keywords = self._loaded(found)
        except _NotLoadedError as exc:
            self._fail_all(self._reported(found, exc.reason), write)
            return
        while places := self._take(self.chunk.vector):
            set_running(_Now(self, places[0]))
            self.voices.at = places[0]
            notices, began = self._execution.unanswered_notices, time.monotonic()
            try:
                items = [_item(arguments[place]) for place in places]
                values = found.function(items, **(keywords() if keywords else {}))
                results = _results(values, len(places), self.chunk.call.task)
            except BaseException as exc:  # noqa: BLE001  # user code may raise anything, SystemExit included
                report = self._reported(found, exc, notices, time.monotonic() - began)
                frames = slice_frame(report, len(places))
            else:
                seconds = (time.monotonic() - began) / len(places)
                frames = self._all_returned(found, dict(zip(places, results, strict=True)), notices, seconds)
            self._check_process()
            _write(write, frames)
        set_running(None)

    def _all_returned(self, found: Found, results: dict[int, Any], notices: int, seconds: float) -> bytes:
        """The frames of a slice, of which each result may be an exception."""
        if found.codec.allows_pickle and PLAIN.issuperset(map(type, results.values())):
            values = [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in results.values()]
            if max(map(len, values)) <= MAX_INLINE_VALUE:
                return b"".join(to_frame(Mark.VALUE, seconds, value) for value in values)
        return b"".join(
            self._raised(found, value, notices, seconds)
            if isinstance(value, BaseException)
            else self._returned(found.codec, place, value, seconds)
            for place, value in results.items()
        )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            os._exit(0)  # the task forked, and this is the copy

    def _take(self, most: int) -> list[int]:
        """The next calls that nobody has taken back by now."""
        places: list[int] = []
        with suppress(IndexError):
            while len(places) < most:
                places.append(self._left.popleft())
        return places

    # arguments

    def _loaded(self, found: Found) -> tuple[Sequence[Arguments], Keywords]:
        """What gives each call's arguments, and those that all share; raises _NotLoadedError if none can be had."""
        codec = self._decoder(found)
        try:
            return self._arguments(codec), self._keywords(codec)
        except OSError:
            raise
        except Exception as exc:  # to decode may run user code
            raise _NotLoadedError(exc) from exc

    def _decoder(self, found: Found) -> Codec:
        """What decodes arguments: with stored objects in place of their names."""
        return self._execution.resolving(self.chunk, found.codec)

    def _arguments(self, codec: Codec) -> Sequence[Arguments]:
        """For each call, what gives its arguments: those that lie alone are decoded when it begins, and may fail it alone."""
        if self.chunk.arguments_path is not None:
            path = Path(self.chunk.arguments_path)
            return [lambda: _row(codec.loads(mapped(path, writable=True)))]
        return list(chain.from_iterable(_loaders(piece, codec) for piece in self.chunk.pieces))

    def _keywords(self, codec: Codec) -> Keywords:
        """What gives the keyword arguments, anew for each call, since it may change them; None if there are none."""
        common = self.chunk.call.arguments
        if isinstance(common, Spill):
            assert self.chunk.common_path is not None
            path = Path(self.chunk.common_path)
            return lambda: dict(codec.loads(mapped(path, writable=True)))
        return (lambda: dict(codec.loads(common))) if common else None


def _write(write: Write, frame: bytes) -> None:
    """Write all of a frame: a disk that fills up may take a part of it, and complain the next time."""
    written = write(frame)
    while written is None or written < len(frame):
        written = (written or 0) + (write(memoryview(frame)[written or 0 :]) or 0)


def _results(values: object, count: int, task: str) -> list[Any]:
    """What a vector task returned, one for each item; raises TypeError or ValueError if it is not."""
    if isinstance(values, str | bytes | dict) or not hasattr(values, "__iter__"):
        raise TypeError(f"{task} takes a list of items and returns a list of as many results; it returned {type(values).__name__}.")
    results = list(values)
    if len(results) != count:
        raise ValueError(f"{task} got {count} items and returned {len(results)} results: one is due for each.")
    return results


def _loaders(piece: Piece, codec: Codec) -> Iterable[Arguments]:
    if piece.layout is Layout.ALONE:
        return (partial(_decoded, codec, data) for data in piece.items())
    rows, places = codec.loads(piece.data), numbers(piece.places)
    return [(rows[place],) for place in places] if piece.layout is Layout.SINGLE else [tuple(rows[place]) for place in places]


def _item(arguments: Arguments) -> Any:
    """An item of a vector: what a call of one argument would get, or all of several."""
    row = arguments if isinstance(arguments, tuple) else arguments()
    return row[0] if len(row) == 1 else row


def _decoded(codec: Codec, data: bytes) -> tuple[Any, ...]:
    return _row(codec.loads(data))


def _row(decoded: object) -> tuple[Any, ...]:
    if not isinstance(decoded, list | tuple):
        raise NotSerializable("The call's arguments are not a list.")
    return tuple(decoded)
