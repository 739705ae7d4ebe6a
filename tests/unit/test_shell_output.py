"""What a command writes: the end of it is kept, lines go to the log, and nothing that it writes makes either grow without bound."""

from __future__ import annotations

import pytest

from ai4s.jobq.shell.output import MAX_LINE_CHARS, PROGRESS_SECONDS, Lines, Tail, last_lines
from ai4s.jobq.shell_result import MAX_OUTPUT_BYTES


class Clock:
    """A clock that stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def logged(*parts: bytes) -> list[str]:
    """The lines that are logged of these parts."""
    found: list[str] = []
    lines = Lines(found.append, Clock())
    for part in parts:
        lines.add(part)
    lines.close()
    return found


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        ((b"one\ntwo\n",), ["one", "two"]),
        ((b"o", b"ne\ntw", b"o"), ["one", "two"]),
        ((b"one\r\n", b"\r\n", b"two"), ["one", "", "two"]),
        ((b"one\r", b"\ntwo\n"), ["one", "two"]),
        ((), []),
        (("ä".encode()[:1], "ä".encode()[1:], b"\n"), ["ä"]),
        ((b"\xff\xfe\n",), ["\ufffd\ufffd"]),
        ((b"a\x00b\n",), ["a\x00b"]),
        ((b"10%\r20%\r30%\n",), ["30%"]),
    ],
    ids=["whole", "parts", "dos", "dos-in-parts", "nothing", "split-letter", "no-text", "nul", "written-over"],
)
def test_lines_are_logged_as_they_were_written(parts: tuple[bytes, ...], lines: list[str]) -> None:
    """However they are cut on their way; what is no text is replaced, and of a line that was written over the last form counts."""
    assert logged(*parts) == lines


def test_a_long_line_is_logged_in_pieces() -> None:
    """Before its end comes, which may be never."""
    assert logged(b"x" * (2 * MAX_LINE_CHARS + 5)) == ["x" * MAX_LINE_CHARS, "x" * MAX_LINE_CHARS, "xxxxx"]
    assert logged(b"x" * (MAX_LINE_CHARS + 1) + b"\n") == ["x" * MAX_LINE_CHARS, "x"]


def test_a_progress_bar_is_logged_from_time_to_time() -> None:
    """Its first form, then one every ten seconds, and the last one."""
    found: list[str] = []
    clock = Clock()
    lines = Lines(found.append, clock)
    for step in range(100):
        clock.now = step * PROGRESS_SECONDS / 40
        lines.add(b"%d%%\r" % step)
    lines.add(b"\ndone\n")
    assert found == ["0%", "40%", "80%", "99%", "done"]


def test_a_progress_bar_of_any_length_takes_bounded_memory() -> None:
    """What is written over is forgotten."""
    found: list[str] = []
    lines = Lines(found.append, Clock())
    for _ in range(100):
        lines.add(b"x" * 50_000 + b"\r")
    lines.close()
    assert max(map(len, found)) <= MAX_LINE_CHARS
    assert len(found) < 1000


@pytest.mark.parametrize("piece", [b"0123456789abcdef\n", b"\xff" * 17, "ä\n".encode()], ids=["ascii", "no-text", "two-bytes"])
def test_the_end_is_kept(piece: bytes) -> None:
    """At most 64 KiB of it, also of what is no text, whose replacement takes more bytes."""
    tail = Tail()
    for _ in range(50_000):
        tail.add(piece)
    kept = tail.text.encode()
    assert MAX_OUTPUT_BYTES - 4 < len(kept) <= MAX_OUTPUT_BYTES
    assert tail.text.endswith(piece.decode("utf-8", "replace"))


def test_little_output_is_kept_whole() -> None:
    """In the order in which it came."""
    tail = Tail()
    tail.add(b"out\n")
    tail.add(b"err\n")
    assert tail.text == "out\nerr\n"


def test_the_last_lines_tell_no_secret() -> None:
    """They stand in the message of a failure."""
    assert last_lines("".join(f"{number}\n" for number in range(10))) == "5\n6\n7\n8\n9"
    assert last_lines("AccountKey=abcdef==;\n") == "AccountKey=***;"
