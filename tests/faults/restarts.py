"""The storage itself goes down in good order and comes up again: Azurite is stopped by SIGTERM while calls run, and started again.

It keeps its files in a folder and its ports. What it has confirmed it must still have, so whatever is lost then was ours to keep.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from azurite import PROGRAM, Node, connection_string, find_node, install, stop, wait_for_ports
from harness import Experiment, Lab, Row, trial
from projects import until


@dataclass(frozen=True)
class Size:
    """How many calls, on how many workers, and how often the storage is away for so long."""

    calls: int = 1000
    seconds: float = 0.05
    workers: int = 4
    faults: int = 5
    down_seconds: float = 3
    lease_seconds: float | None = None  # the real one


class DurableAzurite:
    """An Azurite whose files and ports outlive its process."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node, self._folder = node, folder
        self._ports = (0, 0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The same before and after a restart."""
        return connection_string(*self._ports, https=False)

    def start(self) -> None:
        """Start it, on the ports that it had before."""
        ports = ["--blobPort", str(self._ports[0]), "--queuePort", str(self._ports[1]), "--tablePort", "0"]
        modes = ["--skipApiVersionCheck", "--disableTelemetry", "--silent", "-l", str(self._folder / "files")]
        keep_alive = ["--queueKeepAliveTimeout", "300", "--blobKeepAliveTimeout", "300"]
        log = self._folder / "log"
        with log.open("wb") as output:
            command = [self._node.node, str(PROGRAM), *modes, *keep_alive, *ports]
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=output, stderr=output, start_new_session=True)
        self._ports = wait_for_ports(self._process, log)

    def stop(self) -> None:
        """SIGTERM, upon which it writes its files."""
        if self._process:
            stop(self._process)


@contextlib.contextmanager
def durable_azurite() -> Iterator[DurableAzurite]:
    """One that runs, until the end of the block."""
    node = find_node()
    install(node)
    with tempfile.TemporaryDirectory(prefix="azurite-", ignore_cleanup_errors=True) as folder:
        azurite = DurableAzurite(node, Path(folder))
        try:
            azurite.start()
            yield azurite
        finally:
            azurite.stop()


def run(lab: Lab, place: str, size: Size) -> Row:
    with durable_azurite() as azurite:
        own = replace(lab, azurite=lambda: azurite.url)
        with trial(own, "Azurite restarted", place, lease_seconds=size.lease_seconds) as it:
            it.submit_mix(range(size.calls), seconds=size.seconds)
            workers = [it.worker("--concurrency", "2", ready=False) for _ in range(size.workers)]
            with it.watched():
                for number in range(1, size.faults + 1):
                    due = 0.9 * size.calls * number / size.faults
                    until(lambda due=due: len(it.executions()) >= due, 300, f"{due:.0f} executions")
                    azurite.stop()
                    time.sleep(size.down_seconds)
                    azurite.start()
                it.until_empty()
            row = it.row(faults=size.faults, most_duplicates=size.faults * size.workers * 2)
            ended = [worker.process.returncode for worker in workers if worker.process.poll() is not None]
    return row.but(*[f"a worker ended with {code}" for code in ended])


EXPERIMENTS = [
    Experiment(
        "restarts",
        run,
        full=[Size()],
        short=Size(calls=40, seconds=0.02, workers=2, faults=1, down_seconds=0.5, lease_seconds=4),
        places=("azurite",),
    )
]
