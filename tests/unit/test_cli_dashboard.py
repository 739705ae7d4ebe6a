"""`dashboard` as a command: what it prints, when it opens a browser, how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from simulated import make

from ai4s.jobq import App
from ai4s.jobq.cli import dashboard, jobq


@pytest.fixture
def target(tmp_path: Path) -> str:
    app = App("watched", f"local://{tmp_path}")
    make(app)
    app.close()
    return f"local://{tmp_path}/watched"


def test_it_serves_until_ctrl_c(target: str) -> None:
    """The URL is the first line; whoever has it gets in, and Ctrl-C ends it in good order."""
    command = [sys.executable, "-m", "ai4s.jobq.cli", target, "dashboard", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url.partition("?")[0])
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with opener.open(url) as page:
                assert page.url == url.partition("?")[0]
                assert "html" in page.headers["Content-Type"]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        said = process.stderr.read()
        assert "watched" in said
        assert "Traceback" not in said


def test_a_taken_port_is_said_in_a_line(target: str) -> None:
    """With what to do; wrong usage, by its exit code."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(jobq, [target, "dashboard", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2
    assert "--port 0" in result.output
    assert result.output.count("\n") == 1


def test_too_quick_a_refresh_is_refused(target: str) -> None:
    """It would cost, and show nothing new."""
    result = CliRunner().invoke(jobq, [target, "dashboard", "--refresh", "0.1s"])
    assert (result.exit_code, "1s or more" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("terminal", "variables", "opens"),
    [
        (True, {"DISPLAY": ":0"}, True),
        (True, {"WAYLAND_DISPLAY": "wayland-0"}, True),
        (True, {}, False),
        (False, {"DISPLAY": ":0"}, False),
        (True, {"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, False),
    ],
)
def test_a_browser_is_opened_only_where_somebody_sees_it(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variables: dict[str, str], opens: bool
) -> None:
    """At a terminal with a screen beside it, and not on a machine that one is only connected to."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert dashboard.can_open() is opens
