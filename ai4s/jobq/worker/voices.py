"""What running calls say, on its way from their process to the supervisor: gathered per call, cut into lines, sent now and then.

To say something costs a task well under a microsecond, and never an error: lines are made of it a little later, by a thread that
exists once something was said. The first words after a silence go at once, so that they are there should the process die of what
comes next. Whatever a task writes, memory stays bounded: of what comes faster than it can be passed on, the oldest is left out.

Next: `streams.py`, which hears it; `call_logs.py`, the supervisor's side.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from ..log_lines import MAX_PACKED_TAIL_BYTES, MAX_TAIL_BYTES, NOTE, last_lines, to_line
from ..printable import has_secret, redacted
from ..shell.output import MAX_LINE_CHARS, Lines
from .jobs import Chunk, Report, Said

ROUND_SECONDS = 0.2
"""Between two rounds of the thread, while anything is said."""

FRAME_CHARS = 32 * 1024
MAX_RAW_BYTES = 256 * 1024
"""Of a call, as it wrote them: who writes more makes lines of them before it goes on."""

CUT_BYTES, MAX_EDGE_BYTES = 64 * 1024, 2048
"""What is cut into lines at a time, and how much of a line that began before is looked at for secrets."""

MAX_READY_CHARS = 1024 * 1024
"""Lines of a call that its supervisor has not taken yet; older ones are left out, and counted."""

MAX_KEPT_CHARS = 16 * 1024 * 1024
"""Of an attempt; from then on only the last lines are passed on, for the outcome."""

PATIENCE_SECONDS = 0.05
"""How long a task waits, which writes that much, for the supervisor to take some."""

MOST_AT_ONCE, AT_ONCE_PER_SECOND = 64.0, 20.0
"""How many lines may go to the supervisor as they come, and how soon again."""

SAME_MOMENT_SECONDS = 0.02
"""What comes within this is cut into lines together."""


class Line(Protocol):
    """The way to the supervisor. Neither ever waits for a lock that an interrupted caller may hold."""

    def offer(self, said: Said, patience_seconds: float) -> bool:
        """Send it if it can be sent now, or that soon."""

    def send(self, said: Said) -> None:
        """Send it."""


class Voices:
    """All calls of this process that may say something.

    Where the process is one that runs a single call at a time, what a thread says that the task has started is that call's: unless
    `shares_process`.
    """

    def __init__(self, line: Line, *, shares_process: bool = False) -> None:
        self.line, self._shares_process = line, shares_process
        self.pid = os.getpid()
        self._alone: Callable[[], CallVoice | None] = lambda: None
        self._speaking: set[CallVoice] = set()
        self._woken, self._is_awake = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._at_once, self._counted_at = MOST_AT_ONCE, 0.0

    def of(self, number: int, place: int = 0, *, tail_only: bool = False) -> CallVoice:
        """The voice of a call; with `tail_only`, nothing but its last lines is passed on."""
        return CallVoice(self, number, place, tail_only=tail_only)

    def now_runs(self, voice: Callable[[], CallVoice | None]) -> None:
        """Note whose voice it is that speaks in this process."""
        self._alone = voice

    def nobodys(self) -> CallVoice | None:
        """Whose words they are of which is not known whose they are."""
        return None if self._shares_process else self._alone()

    def began(self, voice: CallVoice) -> None:
        """It has said its first words."""
        self._speaking.add(voice)
        if self._thread is None:
            self._thread = threading.Thread(target=self._rounds, name="jobq-voices", daemon=True)
            with suppress(RuntimeError):  # the interpreter ends
                self._thread.start()

    def ended(self, voice: CallVoice) -> None:
        """It says no more."""
        self._speaking.discard(voice)

    def wake(self) -> None:
        """There is something to pass on."""
        if not self._is_awake:  # an event takes its time, even to be told what it knows
            self._is_awake = True
            self._woken.set()

    def may_go_at_once(self, now: float) -> bool:
        """Whether so little is said that it can be passed on as it comes; counts as one that is."""
        if self._at_once < 1 and 0 <= now - self._counted_at < 1 / AT_ONCE_PER_SECOND:
            return False
        self._at_once = min(MOST_AT_ONCE, self._at_once + max(0.0, now - self._counted_at) * AT_ONCE_PER_SECOND)
        self._counted_at = now
        if self._at_once < 1:
            return False
        self._at_once -= 1
        return True

    def _rounds(self) -> None:
        while True:
            self._woken.wait()
            time.sleep(ROUND_SECONDS)
            self._woken.clear()
            self._is_awake = False  # before the round: what is said from now on wakes it anew
            for voice in tuple(self._speaking):
                voice.pass_on()


class CallVoice:
    """What one call says. `write` may be called from any thread, from signal handlers, and in forks, which have no voice."""

    def __init__(self, voices: Voices, number: int, place: int, *, tail_only: bool) -> None:
        self._voices, self._number, self._place, self._tail_only = voices, number, place, tail_only
        # A signal handler may write while this thread does: it must find the lock free, and `_busy` keeps it from more.
        self._lock = threading.RLock()
        self._busy = self._begun = self._ended = False
        self._raw: deque[tuple[float, str, bytes]] = deque()
        self._raw_bytes = 0
        self._lines: dict[str, Lines] = {}
        self._at, self._stream, self._in_frame = 0.0, "", 0
        self._edges: dict[str, bytes] = {}
        self._is_clean = True  # of secrets, so far
        self._ready: deque[str] = deque()
        self._ready_chars = self._kept_chars = self._left_out = 0
        self._tail = ""

    def write(self, stream: str, data: bytes) -> None:
        """Take what the call has written, a part of a line or many of them."""
        if self._ended or os.getpid() != self._voices.pid:
            return
        if not self._begun:
            self._begun = True
            self._voices.began(self)
        now = time.time()
        # Without the lock: to append is one step, and the count, which may miss some, is set right each time it is used.
        self._raw.append((now, stream, data))
        self._raw_bytes += len(data)
        if self._raw_bytes > MAX_RAW_BYTES:
            self._forget_raw() if self._tail_only else self.pass_on(PATIENCE_SECONDS)
        elif b"\n" in data and self._voices.may_go_at_once(now):
            self.pass_on()
        else:
            self._voices.wake()

    @property
    def tail(self) -> str:
        """The last lines; the whole of them once it has ended."""
        if not self._begun or os.getpid() != self._voices.pid:
            return ""
        with self._lock:
            return last_lines(self._tail, MAX_PACKED_TAIL_BYTES)

    def pass_on(self, patience_seconds: float = 0.0) -> None:
        """Send what there is, as far as the supervisor takes it now."""
        with self._lock:
            if self._busy or self._ended:
                return
            self._busy = True
            try:
                self._cut()
                while self._ready and self._offer(patience_seconds):
                    pass
                if self._ready:
                    self._voices.wake()
            finally:
                self._busy = False

    def end(self, *, wanted: bool = True) -> None:
        """Send the rest, unless it is not `wanted`; nothing is taken from now on."""
        if os.getpid() != self._voices.pid or not self._begun:
            self._ended = True
            return
        with self._lock:
            self._busy = True
            self._cut()
            for stream, lines in self._lines.items():
                self._stream = stream
                lines.close()
            self._ended = True
            while self._ready and wanted:
                with suppress(OSError):  # of the line, at whose other end nobody is
                    self._voices.line.send(self._said())
                self._take_ready()
        self._voices.ended(self)

    def _offer(self, patience_seconds: float) -> bool:
        if not self._voices.line.offer(self._said(), patience_seconds):
            return False
        self._take_ready()
        return True

    def _said(self) -> Said:
        """The next frame: as many lines as fit one."""
        text, self._in_frame = "", 0
        if self._left_out and not self._tail_only:
            text = to_line(self._at, NOTE, f"{self._left_out:,} lines are left out here, as they came too fast.")
        for line in self._ready:
            if self._in_frame and len(text) + len(line) > FRAME_CHARS:
                break
            text += line
            self._in_frame += 1
        return Said(self._number, self._place, text, tail_only=self._tail_only)

    def _take_ready(self) -> None:
        for _ in range(self._in_frame):
            line = self._ready.popleft()
            self._ready_chars -= len(line)
            self._kept_chars += len(line)
        self._left_out = 0
        if self._kept_chars > MAX_KEPT_CHARS:
            self._tail_only = True

    def _cut(self) -> None:
        """Make lines of what was written."""
        while self._raw:
            self._at, stream, data = self._raw.popleft()
            parts = [data]
            while self._raw and self._raw[0][1] == stream and self._raw[0][0] - self._at < SAME_MOMENT_SECONDS:
                parts.append(self._raw.popleft()[2])
            joined = b"".join(parts)
            self._stream = stream
            if stream not in self._lines:
                self._lines[stream], self._edges[stream] = Lines(self._add_line), b""
            # Of what is not kept, only the end; and never a hundred megabytes at once, which a task may print in one go.
            first = max(0, len(joined) - MAX_RAW_BYTES) if self._tail_only else 0
            for start in range(first, len(joined), CUT_BYTES):
                self._cut_block(stream, joined[start : start + CUT_BYTES])
        self._raw_bytes = 0

    def _cut_block(self, stream: str, block: bytes) -> None:
        # To look through all of it at once is many times faster than line by line; a line may have begun before it.
        begun = self._edges[stream]
        edge = begun + block
        self._is_clean = self._is_clean and not has_secret(edge)
        self._edges[stream] = edge[edge.rfind(b"\n") + 1 :][-MAX_EDGE_BYTES:]
        first = block.find(b"\n") + 1 if begun else 0
        end = block.rfind(b"\n") + 1
        if (begun and not first) or not self._is_clean or not _is_plain(block[first:end]):
            self._lines[stream].add(block)
            return
        self._lines[stream].add(block[:first])
        start = to_line(self._at, stream, "")[:-1]
        self._add(start + block[first : end - 1].decode("utf-8", "replace").replace("\n", f"\n{start}") + "\n")
        self._lines[stream].add(block[end:])

    def _add_line(self, text: str) -> None:
        self._add(to_line(self._at, self._stream, text if self._is_clean else redacted(text)))

    def _add(self, lines: str) -> None:
        """Have these lines passed on, in pieces that fit a frame."""
        self._tail += lines[-2 * MAX_PACKED_TAIL_BYTES :]
        if len(self._tail) > 8 * MAX_PACKED_TAIL_BYTES:
            self._tail = last_lines(self._tail, 2 * MAX_PACKED_TAIL_BYTES)
        start = 0
        while start < len(lines):
            end = len(lines) if len(lines) - start <= FRAME_CHARS else lines.rfind("\n", start, start + FRAME_CHARS) + 1
            piece = lines[start:end]
            self._ready.append(piece)
            self._ready_chars += len(piece)
            start = end
        most = MAX_TAIL_BYTES if self._tail_only else MAX_READY_CHARS
        while self._ready_chars > most and len(self._ready) > 1:
            dropped = self._ready.popleft()
            self._ready_chars -= len(dropped)
            self._left_out += dropped.count("\n")

    def _forget_raw(self) -> None:
        """Only the end will be wanted of it."""
        with self._lock:
            left = sum(len(data) for _, _, data in tuple(self._raw))
            while len(self._raw) > 1 and left > MAX_RAW_BYTES // 4:
                left -= len(self._raw.popleft()[2])
            self._raw_bytes = left


def _is_plain(block: bytes) -> bool:
    """Whether lines are what stands between line ends, so that they need not be made one by one."""
    if not block or b"\r" in block or b" \n" in block or b"\t\n" in block:
        return False
    return len(block) <= MAX_LINE_CHARS or max(map(len, block.split(b"\n"))) <= MAX_LINE_CHARS


class ChunkVoices:
    """The voices of a chunk's calls, which run one after the other: made when one first says something, ended when the next does.

    Of a vector's slice the first call speaks for all. `at` is the place of the call that runs.
    """

    def __init__(self, voices: Voices | None, chunk: Chunk, places: Sequence[int]) -> None:
        self._voices = None if chunk.call.logs is False else voices
        self._number, self._places, self._tail_only = chunk.number, places, chunk.call.logs is not True
        self._voice: CallVoice | None = None
        self._place = -1
        self.at = 0

    def __enter__(self) -> None:
        if self._voices is not None:
            self._voices.now_runs(lambda: self.of(self.at))

    def __exit__(self, *exc: object) -> None:
        self._end()

    def of(self, place: int) -> CallVoice | None:
        """The voice of the call at this place of the chunk; None once a later one has spoken."""
        if self._voices is None or place < self._place:
            return None
        if place > self._place:
            self._end()
            self._place = place
            self._voice = self._voices.of(self._number, self._places[place], tail_only=self._tail_only)
        return self._voice

    def with_tail(self, report: Report) -> Report:
        """The report of a call that has ended, with what it has said last if it failed."""
        voice = self._voice if self._place == self.at else None
        self._end()
        tail = voice.tail if voice is not None else ""
        return replace(report, failure=replace(report.failure, tail=tail)) if tail and report.failure is not None else report

    def _end(self) -> None:
        voice, self._voice = self._voice, None
        if voice is not None:
            voice.end(wanted=not self._tail_only)
