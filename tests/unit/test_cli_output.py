"""How answers look: whole names on a terminal, lines where there is no room or no terminal, and nothing raw."""

from __future__ import annotations

import json
import re
import sys

import pytest

from ai4s.jobq.cli.output import show

ID = "abcdefghijklmnop-000000000000"
ROWS = [{"id": ID, "task": "proj.square", "message": "x" * 300}]
STYLE = re.compile(r"\x1b\[[0-9;]*m")
COLUMNS = ("id", "task", "message")


def shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, spare: tuple[str, ...] = ()
) -> list[str]:
    """What a terminal of this width shows."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    show(ROWS, COLUMNS, spare=spare)
    return [STYLE.sub("", line).rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_name_is_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied into the next command; what is long besides gives way, and a row stays a line."""
    head, row = shown(capsys, monkeypatch, 80)
    assert head.split() == list(COLUMNS)
    assert row.startswith(f"{ID}  proj.square")
    assert row.endswith("…")
    assert len(row) <= 80


def test_a_narrow_terminal_gets_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a table would have to cut names."""
    assert shown(capsys, monkeypatch, 30) == ["\t".join(COLUMNS), "\t".join(ROWS[0].values())]


def test_a_narrow_terminal_goes_without_what_can_be_spared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order that is given, and only as many as it takes to leave room for the rest."""
    assert shown(capsys, monkeypatch, 80, spare=("task", "message"))[0].split() == list(COLUMNS)
    assert shown(capsys, monkeypatch, 45, spare=("task", "message"))[0].split() == ["id", "message"]
    assert shown(capsys, monkeypatch, 30, spare=("task", "message")) == ["id", ID]


def test_what_was_written_by_others_is_shown_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither terminal escapes nor markup have an effect."""
    monkeypatch.setitem(ROWS[0], "task", "[red]\x1b[31m")
    assert "[red]\\x1b[31m" in shown(capsys, monkeypatch, 200)[1]


def test_where_it_is_piped_rows_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """With tabs, or as JSON."""
    show(ROWS, ("id", "task"))
    show(ROWS, ("id", "task"), as_json=True)
    head, row, parsed = capsys.readouterr().out.splitlines()
    assert (head, row) == ("id\ttask", f"{ID}\tproj.square")
    assert json.loads(parsed) == ROWS[0]
