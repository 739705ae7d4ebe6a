"""A real Prometheus for the tests: on a port of its own, with its data in the test's folder, stopped by its own process id.

Next: `programs.py`, which has the program; `grafana_board.py`, whose queries are asked.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import programs
from azurite import stop

SCRAPE_SECONDS = 1
START_SECONDS, ANSWER_SECONDS = 60.0, 20.0

CONFIG = """\
global:
  scrape_interval: {seconds}s
  scrape_timeout: {seconds}s
scrape_configs:
  - job_name: jobq
    static_configs:
      - targets: {targets}
"""

Series = tuple[dict[str, str], list[float]]
"""A series' labels, and its values that are numbers."""


@dataclass(frozen=True)
class Prometheus:
    """Its HTTP API, as far as Grafana uses it."""

    url: str

    def now(self, query: str) -> list[Series]:
        """What a query says of this moment."""
        answer = self._ask("query", query=query)
        return [(each["metric"], numbers([each["value"]])) for each in answer["result"]]

    def over(self, query: str, start: float, end: float) -> list[Series]:
        """What a query says of each second from `start` to `end`, both in epoch seconds."""
        answer = self._ask("query_range", query=query, start=f"{start:.3f}", end=f"{end:.3f}", step="1")
        return [(each["metric"], numbers(each["values"])) for each in answer["result"]]

    def label_values(self, label: str, selector: str) -> list[str]:
        """The values of a label among the series that a selector finds."""
        found: list[str] = self._ask(f"label/{label}/values", **{"match[]": selector})
        return found

    def number(self, query: str) -> float:
        """The one number that a query says of this moment; 0 where there is none yet."""
        return sum(sum(values) for _, values in self.now(query))

    def _ask(self, path: str, **arguments: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as exc:
            raise AssertionError(f"Prometheus refuses {arguments}: {exc.read().decode(errors='replace')}") from None


def numbers(points: Sequence[tuple[float, str]]) -> list[float]:
    """The values of some points without those that say that there is none."""
    return [value for _, text in points if math.isfinite(value := float(text))]


@contextlib.contextmanager
def running_prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Start a Prometheus that asks each target ("host:port") every second; it is stopped at the end of the block."""
    folder.mkdir()
    config, log = folder / "prometheus.yml", folder / "log"
    config.write_text(CONFIG.format(seconds=SCRAPE_SECONDS, targets=json.dumps(list(targets))))
    # Port 0: the system picks; the log says which.
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", "--web.listen-address=127.0.0.1:0"]
    with log.open("wb") as output:
        process = subprocess.Popen([programs.prometheus(), *options], cwd=folder, stdout=output, stderr=output)
    try:
        yield Prometheus(f"http://{wait_until_ready(process, log)}")
    finally:
        stop(process)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address at which it listens, once it answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text(errors="replace")
        address = re.search(r'msg="Listening on" address=(\S+)', text)
        if address and "Server is ready" in text:
            return address[1]
        time.sleep(0.05)
    raise AssertionError(f"Prometheus did not start within {START_SECONDS:.0f} s:\n{log.read_text(errors='replace')[-2000:]}")
